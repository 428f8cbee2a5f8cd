# SPDX-License-Identifier: BSD-3-Clause
"""BLOCK_STATUS: base:allocation, depth and dirty bitmaps, REQ_ONE, alone and together."""

import os

import pytest

from lib import layered, pattern, tools
from lib.daemon import disk_args
from lib.nbdproto import *                               # noqa: F403
from lib.smalldisk import SIZE

BASE, DEPTH, BITMAP = "base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:b0"
M = 1 << 20


@pytest.fixture
def rich(daemon, tmp):
    return daemon.serve(layered.make(tmp), bitmaps=("b0",), export="allocation-depth=on")


@pytest.mark.parametrize("which", ["disk", "rawdisk"])
def test_base_allocation(request, which):
    c = request.getfixturevalue(which).enter(contexts=[BASE])
    assert c.status_all() == [(0, M, 0), (M, SIZE - M, STATE_HOLE | STATE_ZERO)]


def test_whole_request_in_one_reply(disk):
    """One request for the whole disk suffices for a map this simple."""
    c = disk.enter(contexts=[BASE])
    assert sum(n for n, _ in c.status(0, SIZE)) == SIZE


@pytest.mark.parametrize("offset", [0, 1, 511, 4097, M - 1, M, M + 1, SIZE - 1])
def test_extents_start_where_asked(disk, offset):
    (length, flags), *_ = disk.enter(contexts=[BASE]).status(offset, SIZE - offset)
    want = (M - offset, 0) if offset < M else (SIZE - offset, 3)
    assert (length, flags) == want


def test_req_one_gives_one_extent_within_the_request(disk):
    c = disk.enter(contexts=[BASE])
    assert c.status(0, SIZE, F_REQ_ONE) == [(M, 0)]
    assert c.status(4096, 8192, F_REQ_ONE) == [(8192, 0)]
    assert c.status(2 * M, 4096, F_REQ_ONE) == [(4096, 3)]


def test_req_one_on_every_context(rich):
    c = rich.enter(contexts=[BASE, DEPTH, BITMAP])
    answer = c.ok(CMD_BLOCK_STATUS, 0, SIZE, F_REQ_ONE).extents()
    assert all(len(extents) == 1 and extents[0][0] <= SIZE for extents in answer.values())
    assert answer[c.contexts[BITMAP]] == [(SIZE, 0)]


def test_zero_clusters_are_zero_but_allocated(rich):
    c = rich.enter(contexts=[BASE])
    c.zero(0, 65536, F_NO_HOLE)
    (_, flags), *_ = c.status(0, 65536)
    assert flags & STATE_ZERO


def test_allocation_depth(rich):
    assert rich.enter(contexts=[DEPTH]).status_all() == layered.DEPTH


def test_depth_changes_with_a_write(rich):
    c = rich.enter(contexts=[DEPTH])
    c.write(100, b"x")
    assert c.status_all()[0] == (0, 65536, 1)


def test_depth_of_three_layers(daemon, tmp):
    layered.make(tmp)
    third = tools.create(tmp / "third.qcow2", None, backing=tmp / "top.qcow2")
    tools.qemu_io(third, "write 2M 64k")
    c = daemon.serve(third, export="allocation-depth=on").enter(contexts=[DEPTH])
    assert c.status_all() == [(0, 512 << 10, 3), (512 << 10, M, 2), (1536 << 10, 512 << 10, 0), (2 * M, 65536, 1),
                              (2 * M + 65536, M - 65536, 0), (3 * M, 65536, 2), (3 * M + 65536, M - 65536, 0)]


def test_dirty_bitmap_follows_writes(rich):
    c = rich.enter(contexts=[BITMAP])
    assert c.status_all() == [(0, SIZE, 0)]
    c.write(65536 * 3 + 5, b"x")
    c.write(65536 * 5 - 1, b"xx")
    assert c.status_all() == [(0, 196608, 0), (196608, 196608, 1), (393216, SIZE - 393216, 0)]


def test_dirty_bitmap_is_seen_by_a_connection_opened_before_the_write(rich):
    reader, writer = rich.enter(contexts=[BITMAP]), rich.enter()
    writer.write(0, b"x")
    assert reader.status_all()[0] == (0, 65536, 1)


def test_several_contexts_in_one_answer(rich):
    c = rich.enter(contexts=[BASE, DEPTH, BITMAP])
    c.write(2 * M, pattern.block("x", 65536))
    assert c.status_all(BITMAP) == [(0, 2 * M, 0), (2 * M, 65536, 1), (2 * M + 65536, 2 * M - 65536, 0)]
    assert c.status_all(DEPTH)[2:5] == [(1536 << 10, 512 << 10, 0), (2 * M, 65536, 1), (2 * M + 65536, M - 65536, 0)]
    assert [e for e in c.status_all(BASE) if e[2] == 0] == [(0, 1536 << 10, 0), (2 * M, 65536, 0)]


def test_two_bitmaps_in_one_answer(daemon, tmp):
    path = layered.make(tmp)
    tools.run("qemu-img", "bitmap", "--add", "-g", "4k", path, "b1")
    c = daemon.serve(path, bitmaps=("b0", "b1")).enter(contexts=[BITMAP, "qemu:dirty-bitmap:b1"])
    c.write(M + 4096, b"x")
    assert c.status_all(BITMAP)[1] == (M, 65536, 1)
    assert c.status_all("qemu:dirty-bitmap:b1")[1] == (M + 4096, 4096, 1)


@pytest.mark.parametrize("size", [65536 * 3 + 512, M + 4096 + 512, 512])
def test_tail_that_is_no_whole_cluster(daemon, tmp, size):
    """The extents end with the disk, though the last cluster and granule go past it."""
    path = tools.create(tmp / "odd.qcow2", size)
    tools.run("qemu-img", "bitmap", "--add", path, "b0")
    c = daemon.serve(path, bitmaps=("b0",)).enter(contexts=[BASE, BITMAP])
    assert c.status_all(BASE) == [(0, size, 3)] and c.status_all(BITMAP) == [(0, size, 0)]
    c.write(size - 1, b"x")
    start = (size - 1) // 65536 * 65536
    assert c.status_all(BITMAP)[-1] == (start, size - start, 1)
    assert c.status(size - 1, 1, context=BITMAP) == [(1, 1)]


def test_answers_of_a_fragmented_map_are_bounded_and_complete(daemon, tmp):
    """Every other granule of 32,768 dirty: several requests, each making progress."""
    path = tools.create(tmp / "a.raw", "128M", "raw")
    d = daemon.start("--blockdev", f"driver=raw,node-name=disk,file.driver=file,file.filename={path}")
    d.qmp.cmd("block-dirty-bitmap-add", node="disk", name="b0", granularity=4096)
    d.qmp.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "disk", "name": "disk", "writable": True,
                                   "bitmaps": ["b0"]})
    c = d.enter(contexts=[BITMAP])
    asked = [c.start(CMD_WRITE, at, data=b"x" * 512) for at in range(0, 128 << 20, 8192)]
    for cookie in asked:
        assert c.answer(cookie).error == 0
    got = c.status_all()
    assert got == [(at, 4096, 0 if at // 4096 % 2 else 1) for at in range(0, 128 << 20, 4096)]


def test_status_beyond_two_gigabytes_at_once(daemon, tmp):
    path = tmp / "big.raw"
    path.write_bytes(b"x" * 65536)
    os.truncate(path, 5 << 30)
    c = daemon.serve(path, "raw").enter(contexts=[BASE])
    extents = c.status(0, 0xFFFFF000)
    assert extents[0] == (65536, 0) and extents[1][1] == 3 and extents[1][0] > 1 << 30


def test_statuses_in_flight_together_with_writes(rich):
    c = rich.enter(contexts=[BASE, DEPTH, BITMAP])
    asked, written = [], []
    for i in range(64):
        written.append(c.start(CMD_WRITE, i * 65536, data=bytes([i]) * 100))
        asked.append(c.start(CMD_BLOCK_STATUS, i * 65536, 65536))
    for cookie in asked:
        a = c.answer(cookie)
        assert a.error == 0 and set(a.extents()) == set(c.contexts.values())
    assert all(c.answer(cookie).error == 0 for cookie in written)
    assert c.status_all(BITMAP) == [(0, SIZE, 1)]


def test_read_only_export_has_status(daemon, tmp):
    d = daemon.start(*disk_args(layered.make(tmp), writable=False))
    assert d.enter(contexts=[BASE]).status_all() == layered.ALLOCATION
