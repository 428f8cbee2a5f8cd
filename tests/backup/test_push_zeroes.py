# SPDX-License-Identifier: BSD-3-Clause
"""Zeroes that an incremental backup carries over NBD hide what the image below has, once it is put on it."""

import subprocess

import pytest

from lib import pushes, tools
from lib.patience import listening
from lib.pushes import K, M, backup, succeeded

SIZE = 16 * M
# What is zeroed since the full backup: whole clusters, parts of one, written as data, and what a discard gave up.
ZEROED = [(8 * M, M), (10 * M + 8 * K, 20 * K)]


@pytest.fixture
def disk(daemon, tmp):
    tools.create(tmp / "disk.qcow2", SIZE)
    tools.qemu_io(tmp / "disk.qcow2", "write -P 9 6M 8M")
    d = daemon.serve(tmp / "disk.qcow2")
    d.qmp.cmd("block-dirty-bitmap-add", node="disk", name="b", persistent=True)
    pushes.target(d, tmp, SIZE, "full")
    backup(d, target="full", sync="full", bitmap="b", bitmap_mode="on-success")
    succeeded(d)
    d.qmp.cmd("blockdev-del", node_name="full")
    h = d.libnbd()
    for off, n in ZEROED:
        h.zero(n, off)
    h.pwrite(bytes(64 * K), 11 * M)
    h.trim(64 * K, 12 * M)
    h.flush()
    return d


@pytest.mark.parametrize("server, options", [("merinod", {}), ("merinod", {"extended_l2": "on"}), ("merinod", {"compat": "0.10"}),
                                             ("qemu-nbd", {}), ("qemu-nbd", {"extended_l2": "on"})])
def test_incremental_over_nbd(disk, daemon, tmp, server, options):
    image = tmp / "remote.qcow2"
    tools.create(image, SIZE, **options)
    if server == "merinod":
        remote = daemon.serve(image)
        where = {"server": {"type": "unix", "path": remote.uri().split("socket=")[1]}, "export": "disk"}
    else:
        remote = subprocess.Popen([tools.need("qemu-nbd"), "-t", "-f", "qcow2", "-k", tmp / "r", "--discard=unmap", image])
        listening(tmp / "r", remote)
        where = {"server": {"type": "unix", "path": str(tmp / "r")}}
    disk.qmp.cmd("blockdev-add", {"driver": "nbd", "node-name": "target", **where})
    backup(disk, sync="incremental", bitmap="b")
    succeeded(disk)
    disk.stop()
    if server == "merinod":
        remote.stop()
    else:
        remote.terminate()
        remote.wait()
    tools.check(image)
    tools.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", tmp / "full.qcow2", image)
    tools.compare(image, tmp / "disk.qcow2", fmt_b="qcow2")


@pytest.mark.parametrize("options", [{}, {"extended_l2": "on"}, {"compat": "0.10"}], ids=["v3", "subclusters", "v2"])
@pytest.mark.parametrize("detect", [False, True])
def test_zeroes_are_kept(daemon, tmp, options, detect):
    """Whoever writes zeroes to us over NBD: as QEMU, they are there when the image gets a backing image."""
    image = tmp / "image.qcow2"
    tools.create(image, SIZE, **options)
    tools.create(tmp / "below.raw", SIZE, fmt="raw")
    tools.qemu_io(tmp / "below.raw", "write -P 5 0 16M", fmt="raw")
    d = daemon.serve(image, blockdev="detect-zeroes=on" if detect else "")
    h = d.libnbd()
    import nbd
    for off, flags in (0, 0), (2 * M, nbd.CMD_FLAG_NO_HOLE):
        if detect:
            h.pwrite(bytes(M), off)
        else:
            h.zero(M, off, flags)
    h.flush()
    d.stop()
    tools.check(image)
    tools.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", tmp / "below.raw", image)
    data = tools.content(image)
    assert not any(data[:M]) and not any(data[2 * M:3 * M]) and data[M:2 * M] == data[3 * M:4 * M] == b"\x05" * M
