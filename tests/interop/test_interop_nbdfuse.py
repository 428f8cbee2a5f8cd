# SPDX-License-Identifier: BSD-3-Clause
"""nbdfuse: the disk as a file, and through it a file system that others wrote."""

import contextlib
import os
import subprocess
import time

import pytest

from lib import layered, pattern, tools
from lib.patience import HANG, wait_until

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="no FUSE for this user")


@contextlib.contextmanager
def mounted(d, tmp, *options):
    """The path of the disk's file while nbdfuse runs."""
    where = tmp / "mnt"
    where.mkdir()
    proc = subprocess.Popen([tools.need("nbdfuse"), *options, "-P", str(tmp / "fuse.pid"), f"{where}/disk", d.uri()])
    try:
        while not (tmp / "fuse.pid").exists():
            assert proc.poll() is None, "nbdfuse ended"
            time.sleep(0.01)
        yield where / "disk"
    finally:
        wait_until(lambda: proc.poll() is not None or tools.run("fusermount3", "-u", where, check=False).returncode == 0)
        assert proc.wait(HANG) == 0


def test_reads(disk, tmp):
    with mounted(disk, tmp, "-r") as path:
        assert path.stat().st_size == layered.SIZE
        assert pattern.first_difference(path.read_bytes(), layered.CONTENT) is None


def test_writes(disk, tmp):
    data = pattern.block("fuse", 300000)
    with mounted(disk, tmp) as path:
        fd = os.open(path, os.O_RDWR)
        os.pwrite(fd, data, 1234567)
        os.fsync(fd)
        os.close(fd)
    assert disk.enter().read(1234567, 300000) == data


def test_punched_holes_read_as_zeros(disk, tmp):
    with mounted(disk, tmp) as path:
        tools.run("fallocate", "--punch-hole", "--offset", 65536, "--length", 262144, path)
    want = bytearray(layered.CONTENT)
    want[65536:65536 + 262144] = bytes(262144)
    assert pattern.first_difference(disk.enter().read(0, layered.SIZE), want) is None


def test_file_system_made_through_it(daemon, tmp):
    d = daemon.serve(tools.create(tmp / "fs.qcow2", "64M"))
    (tmp / "tree").mkdir()
    for i in range(50):
        (tmp / "tree" / f"f{i}").write_bytes(pattern.block(i, 1000 + 9999 * i % 70000))
    with mounted(d, tmp) as path:
        tools.run("mke2fs", "-q", "-F", "-t", "ext4", "-d", tmp / "tree", path)
        tools.run("e2fsck", "-fn", path)
    d.stop()
    tools.check(tmp / "fs.qcow2")
    tools.run("qemu-img", "convert", "-O", "raw", tmp / "fs.qcow2", tmp / "fs.raw")
    tools.run("e2fsck", "-fn", tmp / "fs.raw")
    tools.run("debugfs", "-R", f"dump /f7 {tmp}/f7", tmp / "fs.raw")
    assert (tmp / "f7").read_bytes() == pattern.block(7, 1000 + 9999 * 7 % 70000)
