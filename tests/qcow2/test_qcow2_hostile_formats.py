# SPDX-License-Identifier: BSD-3-Clause
"""Snapshot tables, subclusters and compressed clusters that a stranger made: refused, or an I/O error, never more."""

import struct

import pytest

from lib import tools
from lib.nbdproto import *                               # noqa: F403
from lib.qcow2bytes import get, get64, put, put64

K, M = 1 << 10, 1 << 20
MASK = 0x00FFFFFFFFFFFE00


def add(daemon, path, **more):
    d = daemon.start()
    node = {"driver": "qcow2", "node-name": "n", "file": {"driver": "file", "filename": str(path)}, **more}
    return d.qmp.error("blockdev-add", node)[1]


@pytest.fixture
def snapshots(tmp):
    path = tools.create(tmp / "a.qcow2", 4 * M)
    tools.qemu_io(path, "write -P 1 0 64k")
    tools.run("qemu-img", "snapshot", "-c", "one", path)
    return path


def entry(path):
    return get(path, "snapshots_offset")


def poke(path, offset, data):
    with open(path, "r+b") as f:
        f.seek(offset)
        f.write(data)


@pytest.mark.merino_only                                 # QEMU looks at some of it only when it is used
@pytest.mark.parametrize("at, data", [
    (36, struct.pack(">I", 1025)),                       # extra data
    (36, struct.pack(">I", 0xFFFFFFFF)),
    (0, struct.pack(">Q", 0x10001)),                     # L1 table: not aligned
    (0, struct.pack(">Q", 1 << 50)),                     # ... outside the file
    (0, struct.pack(">Q", 0)),                           # ... the header
    (8, struct.pack(">I", 0x7FFFFFFF)),                  # ... too long
], ids=lambda v: v.hex() if isinstance(v, bytes) else str(v))
def test_snapshot_entry(daemon, snapshots, at, data):
    poke(snapshots, entry(snapshots) + at, data)
    before = open(snapshots, "rb").read()
    assert add(daemon, snapshots)
    assert add(daemon, snapshots, **{"read-only": True, "internal-snapshot": "one"})
    assert open(snapshots, "rb").read() == before


@pytest.mark.merino_only
@pytest.mark.parametrize("fields", [dict(snapshots=65537), dict(snapshots=60000), dict(snapshots_offset=0x10200),
                                    dict(snapshots_offset=1 << 60)], ids=str)
def test_snapshot_table(daemon, snapshots, fields):
    put(snapshots, **fields)
    assert add(daemon, snapshots)


@pytest.mark.merino_only
def test_snapshot_table_over_the_l1_table(daemon, snapshots):
    table = entry(snapshots)
    poke(snapshots, table, struct.pack(">Q", get(snapshots, "l1_offset")))
    assert "overlap" in add(daemon, snapshots)


def table_of(path):
    return get64(path, get(path, "l1_offset")) & MASK


@pytest.mark.parametrize("bits", [1 << 32 | 1, (1 << 64) - 1])
def test_subcluster_that_is_data_and_zero(daemon, tmp, bits):
    path = tools.create(tmp / "a.qcow2", 4 * M, extended_l2="on")
    tools.qemu_io(path, "write -P 1 0 128k")
    put64(path, table_of(path) + 8, bits)
    c = daemon.serve(path).enter()
    assert c.call(CMD_READ, 0, 512).error == EIO
    assert c.call(CMD_WRITE, 100, data=b"x" * 100).error == EIO
    assert c.call(CMD_READ, 64 * K, 512).error == 0


def test_subcluster_without_its_cluster(daemon, tmp):
    path = tools.create(tmp / "a.qcow2", 4 * M, extended_l2="on")
    tools.qemu_io(path, "write -P 1 0 128k")
    put64(path, table_of(path), 0)
    c = daemon.serve(path, writable=False).enter()
    assert c.call(CMD_READ, 0, 512).error == EIO
    assert c.call(CMD_READ, 64 * K, 512).error == 0


@pytest.mark.parametrize("value", [1 << 62 | (1 << 53), 1 << 62 | ((1 << 62) - 1), 1 << 62, 1 << 62 | 1 << 61 | 0x30000])
def test_compressed_cluster_somewhere_else(daemon, tmp, value):
    """Behind the end, as long as may be, in the header, in a table: an error or rubbish, no crash; never freed if it is a table."""
    path = tools.create(tmp / "a.qcow2", 4 * M)
    tools.qemu_io(path, "write -P 1 0 128k")
    put64(path, table_of(path), value)
    d = daemon.serve(path)
    c = d.enter()
    assert c.call(CMD_READ, 0, 512).error == EIO
    c.call(CMD_TRIM, 0, 64 * K)
    c.call(CMD_WRITE, 0, data=bytes(64 * K))
    c.call(CMD_FLUSH)
    assert c.call(CMD_READ, 64 * K, 512).error == 0
    d.stop()
    assert tools.run("qemu-img", "info", path).returncode == 0
