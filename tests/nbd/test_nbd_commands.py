# SPDX-License-Identifier: BSD-3-Clause
"""Every command at the edges: offsets, lengths, flags; and what a refused request leaves behind."""

import os

import pytest

from lib import pattern
from lib.daemon import differs
from lib.nbdproto import *                               # noqa: F403
from lib.nbdraw import Closed
from lib.smalldisk import CONTENT, DATA, SIZE

NOSPC, PERM = differs(ENOSPC, EINVAL), differs(EPERM, EINVAL)      # QEMU 7.2 says EINVAL to everything refused

NO_PAYLOAD = [CMD_READ, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES, CMD_BLOCK_STATUS]
PAST_END = {CMD_READ: EINVAL, CMD_TRIM: EINVAL, CMD_CACHE: EINVAL, CMD_WRITE_ZEROES: NOSPC, CMD_BLOCK_STATUS: EINVAL}


@pytest.fixture
def c(disk):
    """A connection with structured replies and base:allocation; after the test it must still work."""
    c = disk.enter(contexts=["base:allocation"])
    yield c
    assert len(c.read(SIZE - 512, 512)) == 512


@pytest.fixture
def simple(disk):
    """The same with simple replies."""
    c = disk.enter(structured=False)
    yield c
    assert len(c.read(SIZE - 512, 512)) == 512


@pytest.mark.parametrize("offset, length", [
    (0, 1), (0, 512), (1, 1), (511, 2), (4095, 4098), (65535, 2), (65536 - 1, 65536 * 3 + 2), (1 << 20, 65536),
    ((1 << 20) - 1, 2), (SIZE - 1, 1), (SIZE - 65537, 65537), (0, SIZE)])
def test_read(c, offset, length):
    assert c.read(offset, length) == (CONTENT)[offset:offset + length]


@pytest.mark.parametrize("offset, length", [
    (0, 1), (1, 1), (511, 2), (4095, 4098), (65535, 2), (65535, 65536 * 3 + 2), ((1 << 20) - 1, 2),
    ((2 << 20) + 7, 3), (SIZE - 1, 1), (SIZE - 65537, 65537)])
def test_write_changes_its_range_and_nothing_else(c, offset, length):
    model, data = bytearray(CONTENT), pattern.block(offset, length)
    c.write(offset, data)
    model[offset:offset + length] = data
    assert pattern.first_difference(c.read(0, SIZE), model) is None


@pytest.mark.parametrize("cmd", NO_PAYLOAD)
def test_past_the_end(c, cmd):
    for offset, length in (
            (SIZE, 1), (SIZE - 1, 2), (SIZE - 512, 1024), (SIZE + 1, 512), (1 << 40, 512), ((1 << 63) - 1, 512),
            (1 << 63, 512), ((1 << 64) - 512, 512), ((1 << 64) - 1, 1), ((1 << 64) - 1, 0xFFFFFFFF)):
        assert c.call(cmd, offset, length).error == PAST_END[cmd], f"{offset:#x}+{length:#x}"


def test_write_past_the_end(c):
    """ENOSPC, its payload taken along, and nothing of it stored."""
    for offset in (SIZE, SIZE - 1, SIZE - 511, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 512, (1 << 64) - 1):
        assert c.call(CMD_WRITE, offset, data=b"x" * 512).error == NOSPC, f"{offset:#x}"
        assert c.read(SIZE - 512, 512) == bytes(512)


def test_unknown_command(c):
    for cmd in (8, 9, 42, 0xFFFF):
        assert c.call(cmd, 0, 512).error == EINVAL, cmd


def test_unknown_command_with_simple_replies(simple):
    assert simple.call(77, 0, 512).error == EINVAL


BAD_FLAGS = {
    CMD_READ: (F_NO_HOLE, F_REQ_ONE, F_FAST_ZERO), CMD_TRIM: (F_NO_HOLE, F_DF, F_FAST_ZERO),
    CMD_CACHE: (F_NO_HOLE, F_REQ_ONE), CMD_WRITE_ZEROES: (F_DF, F_REQ_ONE), CMD_FLUSH: (F_NO_HOLE,),
    CMD_BLOCK_STATUS: (F_NO_HOLE, F_DF)}


@pytest.mark.parametrize("cmd", BAD_FLAGS)
def test_flags_that_the_command_does_not_know(c, cmd):
    for flags in (*BAD_FLAGS[cmd], 0x20, 0x8000, 0xFFFF):
        assert c.call(cmd, 0, 0 if cmd == CMD_FLUSH else 512, flags).error == EINVAL, f"{flags:#x}"


def test_write_with_wrong_flags(c):
    """Its payload is taken along, and nothing of it stored."""
    for flags in (F_NO_HOLE, F_DF, F_REQ_ONE, F_FAST_ZERO, 0x20, 0x8000):
        assert c.call(CMD_WRITE, 0, flags=flags, data=b"x" * 512).error == EINVAL, f"{flags:#x}"
        assert c.read(0, 512) == DATA[:512]


def test_df_without_structured_replies(simple):
    assert simple.call(CMD_READ, 0, 512, F_DF).error == EINVAL


@pytest.mark.parametrize("cmd", [CMD_READ, CMD_WRITE, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES])
def test_zero_length(c, cmd):
    """Unspecified by the protocol; QEMU says yes, and nothing changes."""
    assert c.call(cmd, 4096, 0).error == 0
    assert c.read(0, 65536) == DATA[:65536]


def test_zero_length_read_with_simple_replies(simple):
    assert simple.call(CMD_READ, 0, 0).error == 0


def test_zero_length_block_status_is_invalid(c):
    assert c.call(CMD_BLOCK_STATUS, 4096, 0).error == EINVAL


def test_read_of_the_largest_request(daemon, tmp):
    path = tmp / "big.raw"
    data = pattern.block("big", 1 << 20)
    with open(path, "wb") as f:
        for i in range(33):
            f.write(data)
    c = daemon.serve(path, "raw").enter()
    assert pattern.first_difference(c.read(4096, MAX_REQUEST), (data * 33)[4096:4096 + MAX_REQUEST]) is None


def test_write_of_the_largest_request(daemon, tmp):
    path = tmp / "big.raw"
    path.write_bytes(b"")
    os.truncate(path, 33 << 20)
    d = daemon.serve(path, "raw")
    data = pattern.block("big", MAX_REQUEST)
    d.enter().write(4096, data, F_FUA)
    assert pattern.first_difference(path.read_bytes()[4096:4096 + MAX_REQUEST], data) is None


def test_one_byte_more_than_the_largest_request(daemon, tmp):
    path = tmp / "big.raw"
    path.write_bytes(b"")
    os.truncate(path, 40 << 20)
    c = daemon.serve(path, "raw").enter()
    assert c.call(CMD_READ, 0, MAX_REQUEST + 1).error in (EINVAL, EOVERFLOW)
    assert c.call(CMD_CACHE, 0, MAX_REQUEST + 1).error in (0, EINVAL, EOVERFLOW)
    assert c.read(0, 512) == bytes(512)


@pytest.mark.parametrize("length", [MAX_REQUEST + 1, 0xFFFFFFFF])
def test_write_of_more_than_the_largest_request(daemon, tmp, length):
    """Answered by an error or by the end of the connection, without waiting for the payload to store it."""
    path = tmp / "big.raw"
    path.write_bytes(b"")
    os.truncate(path, 40 << 20)
    d = daemon.serve(path, "raw")
    c = d.enter()
    c.offer(c.pack(CMD_WRITE, 0, length, data=b"x" * 65536))
    try:
        assert c.answer(c.last_cookie).error in (EINVAL, EOVERFLOW)
    except (ConnectionError, Closed):
        pass
    assert d.enter().read(0, 65536) == bytes(65536)


@pytest.mark.parametrize("cmd", [CMD_WRITE_ZEROES, CMD_TRIM])
def test_zero_and_trim_may_be_longer_than_the_largest_request(daemon, tmp, cmd):
    path = tmp / "big.raw"
    path.write_bytes(b"x" * 4096)
    os.truncate(path, 5 << 30)
    c = daemon.serve(path, "raw").enter()
    c.ok(cmd, 0, 0xFFFFF000)
    assert c.read(0, 4096) == bytes(4096)


def test_errors_leave_the_connection_in_step(c):
    """A mix of good and bad requests, all sent before the first answer is read."""
    bad = [c.start(CMD_READ, SIZE, 512), c.start(CMD_WRITE, SIZE, data=b"x" * 70000), c.start(99, 0, 8),
           c.start(CMD_WRITE, 0, flags=0x40, data=b"y" * 4096)]
    good = c.start(CMD_READ, 0, 65536)
    assert c.answer(good).assemble(0, 65536) == DATA[:65536]
    assert [c.answer(b).error for b in bad] == [EINVAL, NOSPC, EINVAL, EINVAL]


@pytest.mark.parametrize("flags", [0, F_FUA])
@pytest.mark.parametrize("cmd", [CMD_WRITE_ZEROES, CMD_TRIM])
def test_read_only_refuses_without_payload(readonly, cmd, flags):
    c = readonly.enter()
    assert c.call(cmd, 0, 4096, flags).error == PERM
    assert c.read(0, 4096) == DATA[:4096]


def test_read_only_refuses_write(readonly):
    c = readonly.enter()
    assert c.call(CMD_WRITE, 0, data=b"x" * 100000).error == PERM
    assert c.read(0, 4096) == DATA[:4096]


def test_read_only_allows_flush(readonly):
    readonly.enter().flush()


def test_disconnect_closes(disk):
    assert disk.enter().disconnect()


def test_disconnect_does_what_came_before(disk):
    """The writes in front of DISC are done when the connection ends, whether or not they were answered."""
    c = disk.enter()
    c.send(b"".join(c.pack(CMD_WRITE, 65536 * i, 65536, data=bytes([i + 1]) * 65536) for i in range(8))
           + c.pack(CMD_DISC))
    with pytest.raises(Closed):
        while True:
            c.take()
    other = disk.enter()
    other.flush()
    assert all(other.read(65536 * i, 65536) == bytes([i + 1]) * 65536 for i in range(8))


def test_large_offsets(daemon, tmp):
    """A disk of 5 TiB: offsets beyond 32 bits reach the right place."""
    path = tmp / "huge.raw"
    path.write_bytes(b"")
    os.truncate(path, 5 << 40)
    c = daemon.serve(path, "raw").enter()
    for at in ((4 << 30) - 100, 1 << 40, (5 << 40) - 4096):
        c.write(at, pattern.block(at, 4096))
    for at in ((4 << 30) - 100, 1 << 40, (5 << 40) - 4096):
        assert c.read(at, 4096) == pattern.block(at, 4096)
    assert c.read(0, 4096) == bytes(4096)
