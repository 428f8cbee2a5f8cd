# SPDX-License-Identifier: BSD-3-Clause
"""nbdcopy, out of our disks and into them."""

import pytest

from lib import layered, pattern, tools
from lib.daemon import disk_args

CONTENT = layered.CONTENT


@pytest.mark.parametrize("options", [
    [], ["--synchronous"], ["--connections=1"], ["--connections=4", "--threads=2"], ["--request-size=4096"],
    ["--no-extents"], ["--allocated"]])
def test_out(disk, tmp, options):
    tools.run("nbdcopy", *options, disk.uri(), tmp / "out")
    assert pattern.first_difference((tmp / "out").read_bytes(), CONTENT) is None


def test_out_leaves_holes(disk, tmp):
    """Our extents tell it what need not be written."""
    tools.run("nbdcopy", disk.uri(), tmp / "out")
    assert (tmp / "out").stat().st_blocks * 512 <= 1600 * 1024


@pytest.mark.parametrize("options", [
    [], ["--synchronous"], ["--connections=4", "--threads=2"], ["--request-size=4096", "--requests=64"],
    ["--destination-is-zero"], ["--sparse=0"], ["--flush"]])
def test_in(empty, tmp, options):
    (tmp / "in").write_bytes(CONTENT)
    tools.run("nbdcopy", *options, tmp / "in", empty.uri())
    empty.stop()
    tools.check(tmp / "empty.qcow2")
    assert pattern.first_difference(tools.content(tmp / "empty.qcow2"), CONTENT) is None


def test_in_keeps_holes(empty, tmp):
    """Zeros that nbdcopy finds reach us as WRITE_ZEROES or TRIM, and take no clusters."""
    (tmp / "in").write_bytes(CONTENT)
    tools.run("nbdcopy", tmp / "in", empty.uri())
    empty.stop()
    allocated = sum(e["length"] for e in tools.mapping(tmp / "empty.qcow2") if e["data"])
    assert allocated == 1536 * 1024


def test_from_one_export_to_another(daemon, tmp):
    d = daemon.start(*disk_args(layered.make(tmp), name="a", writable=False),
                     *disk_args(layered.make_empty(tmp), name="b"))
    tools.run("nbdcopy", d.uri("a"), d.uri("b"))
    d.stop()
    tools.check(tmp / "empty.qcow2")
    tools.compare(tmp / "top.qcow2", tmp / "empty.qcow2", fmt_b="qcow2")


def test_read_only_target_is_refused(daemon, tmp):
    d = daemon.serve(layered.make(tmp), writable=False)
    (tmp / "in").write_bytes(bytes(layered.SIZE))
    done = tools.run("nbdcopy", tmp / "in", d.uri(), check=False)
    assert done.returncode != 0 and "read-only" in done.stderr


def test_stock_incremental(disk, tmp):
    """What users do today: a full copy, later only the dirty extents with nbdinfo and nbdsh."""
    tools.run("nbdcopy", disk.uri(), tmp / "copy")
    model = bytearray(CONTENT)
    c = disk.enter()
    for at, n in ((100, 70000), (3 << 20, 4096), ((4 << 20) - 3, 3)):
        model[at:at + n] = pattern.block(at, n)
        c.write(at, model[at:at + n])
    script = f"""
extents = []
h.block_status(h.get_size(), 0, lambda context, offset, entries, error: extents.extend(entries))
at = 0
with open({str(tmp / 'copy')!r}, "r+b") as f:
    for length, dirty in zip(extents[::2], extents[1::2]):
        if dirty:
            f.seek(at)
            f.write(h.pread(length, at))
        at += length
"""
    tools.run("nbdsh", "-c", "h.add_meta_context('qemu:dirty-bitmap:b0')", "-c", f"h.connect_uri({disk.uri()!r})",
              "-c", script)
    assert pattern.first_difference((tmp / "copy").read_bytes(), model) is None
