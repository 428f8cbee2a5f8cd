# SPDX-License-Identifier: BSD-3-Clause
"""Structured reads: data and holes as chunks, DF, and simple replies beside them."""

import pytest

from lib import layered, pattern, tools
from lib.nbdproto import *                               # noqa: F403
from lib.smalldisk import CONTENT, SIZE


@pytest.mark.parametrize("offset, length", [(0, SIZE), (12345, SIZE - 23456), ((1 << 20) - 1, 2),
                                            ((1 << 20) - 512, 1024)])
def test_chunks_cover_the_request_exactly(disk, offset, length):
    """assemble() demands every byte once, in whatever order the chunks come."""
    assert disk.enter().read(offset, length) == CONTENT[offset:offset + length]


@pytest.mark.parametrize("which", ["disk", "rawdisk"])
def test_a_hole_is_a_hole_chunk(request, which):
    """3 MiB that were never written do not travel as zeroes."""
    pieces = request.getfixturevalue(which).enter().ok(CMD_READ, 1 << 20, 3 << 20).pieces()
    assert [p[1] for p in pieces] == [None] * len(pieces)


def test_holes_and_data_in_one_read(disk):
    pieces = sorted(disk.enter().ok(CMD_READ, 512 << 10, 1 << 20).pieces())
    data = sum(n for _, d, n in pieces if d is not None)
    holes = sum(n for _, d, n in pieces if d is None)
    assert (data, holes) == (512 << 10, 512 << 10)


def test_zero_clusters_over_a_backing_image_are_holes(daemon, tmp):
    c = daemon.serve(layered.make(tmp)).enter()
    c.zero(0, 65536)
    assert [p[1] for p in c.ok(CMD_READ, 0, 65536).pieces()] == [None]


@pytest.mark.parametrize("offset, length", [(512 << 10, 1 << 20), (0, 4096), (2 << 20, 4096), ((1 << 20) - 7, 14)])
def test_df_gives_one_chunk(disk, offset, length):
    pieces = disk.enter().ok(CMD_READ, offset, length, F_DF).pieces()
    assert len(pieces) == 1 and pieces[0][0] == offset and pieces[0][2] == length
    assert (pieces[0][1] or bytes(length)) == CONTENT[offset:offset + length]


def test_df_of_many_pieces(daemon, tmp):
    """Data and holes in turn: one chunk all the same, or EOVERFLOW where it is too long for that."""
    d = daemon.serve(tools.create(tmp / "a.qcow2", "8M"))
    c, model = d.enter(), bytearray(8 << 20)
    for at in range(0, 8 << 20, 128 << 10):
        model[at:at + 65536] = pattern.block(at, 65536)
        c.write(at, model[at:at + 65536])
    pieces = c.ok(CMD_READ, 1000, 60000, F_DF).pieces()
    assert [p[1] for p in pieces] == [model[1000:61000]]
    a = c.call(CMD_READ, 0, 8 << 20, F_DF)
    assert a.error == EOVERFLOW or [p[1] for p in a.pieces()] == [model]
    assert pattern.first_difference(c.read(0, 8 << 20), model) is None


def test_simple_replies_carry_holes_as_zeroes(disk):
    assert pattern.first_difference(disk.enter(structured=False).read(0, SIZE), CONTENT) is None


def test_both_kinds_of_client_at_once(disk):
    simple, structured = disk.enter(structured=False), disk.enter()
    for at in range(0, SIZE, 1 << 19):
        assert simple.read(at, 1 << 19) == structured.read(at, 1 << 19)


def test_unaligned_tail(daemon, tmp):
    """A raw image whose size is no multiple of 512."""
    path, data = tmp / "odd.raw", pattern.block("odd", 100001)
    path.write_bytes(data)
    c = daemon.serve(path, "raw", writable=False).enter()
    # QEMU rounds the size up to its sector; we may, too, with zeroes behind the end.
    assert 100001 <= c.size <= 100352
    assert c.read(0, c.size) == data + bytes(c.size - 100001)


def test_io_error_does_not_end_the_connection(daemon, tmp):
    """A file that was cut behind our back reads as zeroes or fails; the rest goes on."""
    path = tmp / "cut.raw"
    path.write_bytes(pattern.block("cut", 1 << 20))
    c = daemon.serve(path, "raw").enter()
    with open(path, "r+b") as f:
        f.truncate(65536)
    a = c.call(CMD_READ, 512 << 10, 4096)
    assert a.error == EIO or a.assemble(512 << 10, 4096) == bytes(4096)
    assert c.read(0, 4096) == pattern.block("cut", 1 << 20)[:4096]
