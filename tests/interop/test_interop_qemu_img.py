# SPDX-License-Identifier: BSD-3-Clause
"""qemu-img over nbd://, in both directions."""

import json

import pytest

from lib import layered, pattern, tools


def test_info(disk):
    told = json.loads(tools.run("qemu-img", "info", "--output=json", disk.uri()).stdout)
    assert told["virtual-size"] == layered.SIZE and told["format"] == "raw"


def test_compare(disk, tmp):
    (tmp / "want").write_bytes(layered.CONTENT)
    tools.run("qemu-img", "compare", "-f", "raw", "-F", "raw", disk.uri(), tmp / "want")


def test_compare_sees_one_byte(disk, tmp):
    (tmp / "want").write_bytes(layered.CONTENT)
    disk.enter().write(3333333, b"\1")
    done = tools.run("qemu-img", "compare", "-f", "raw", "-F", "raw", disk.uri(), tmp / "want", check=False)
    assert done.returncode == 1 and "3333120" in done.stdout


def test_map(disk):
    told = json.loads(tools.run("qemu-img", "map", "--output=json", "-f", "raw", disk.uri()).stdout)
    assert [(e["start"], e["length"], 0 if e["data"] else 3) for e in told] == layered.ALLOCATION


@pytest.mark.parametrize("options", [[], ["-m", "16", "-W"], ["-m", "1"], ["-S", "0"]])
def test_convert_out(disk, tmp, options):
    tools.run("qemu-img", "convert", *options, "-f", "raw", "-O", "qcow2", disk.uri(), tmp / "out.qcow2")
    assert pattern.first_difference(tools.content(tmp / "out.qcow2"), layered.CONTENT) is None


@pytest.mark.parametrize("options", [[], ["-m", "16", "-W"], ["--target-is-zero"], ["-S", "0"]])
def test_convert_in(empty, tmp, options):
    (tmp / "in").write_bytes(layered.CONTENT)
    tools.run("qemu-img", "convert", "-n", *options, "-f", "raw", "-O", "raw", tmp / "in", empty.uri())
    empty.stop()
    tools.check(tmp / "empty.qcow2")
    assert pattern.first_difference(tools.content(tmp / "empty.qcow2"), layered.CONTENT) is None


def test_convert_over_old_data(daemon, tmp):
    """Zeros of the source must replace what the disk holds."""
    path = tools.create(tmp / "a.qcow2", layered.SIZE)
    tools.qemu_io(path, f"write -P 0xee 0 {layered.SIZE}")
    (tmp / "in").write_bytes(layered.CONTENT)
    d = daemon.serve(path)
    tools.run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", tmp / "in", d.uri())
    d.stop()
    tools.check(path)
    assert pattern.first_difference(tools.content(path), layered.CONTENT) is None


def test_qcow2_inside_the_export(daemon, tmp):
    """A format of QEMU's on top of our bytes: many small ordered writes and flushes."""
    d = daemon.serve(tools.create(tmp / "a.raw", "8M", "raw"), "raw")
    tools.run("qemu-img", "create", "-q", "-f", "qcow2", d.uri(), "4M")
    (tmp / "in").write_bytes(layered.CONTENT)
    tools.run("qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", tmp / "in", d.uri())
    tools.check(d.uri())
    tools.compare(d.uri(), tmp / "in")


def test_overlay_on_the_export(disk, tmp):
    """Our disk as the backing image of theirs."""
    over = tools.create(tmp / "over.qcow2", None, backing=disk.uri(), backing_fmt="raw")
    tools.qemu_io(over, "write -P 5 0 64k")
    assert pattern.first_difference(tools.content(over), b"\5" * 65536 + layered.CONTENT[65536:]) is None


def test_bench_writes(disk):
    tools.run("qemu-img", "bench", "-w", "-c", 2000, "-d", 64, "-s", 4096, "-f", "raw", disk.uri())
