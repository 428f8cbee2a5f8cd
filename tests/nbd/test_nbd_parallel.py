# SPDX-License-Identifier: BSD-3-Clause
"""Many requests and many connections at once; what flush and FUA promise among them."""

import random

import pytest

from lib import pattern, tools
from lib.nbdproto import *                               # noqa: F403
from lib.smalldisk import CONTENT, SIZE

M = 1 << 20


@pytest.mark.parametrize("structured", [True, False])
def test_hundreds_of_reads_in_flight(disk, structured):
    """Every cookie gets its own bytes, in whatever order they come."""
    c, rnd = disk.enter(structured=structured), random.Random(1)
    asked = {}
    packets = []
    for _ in range(500):
        at = rnd.randrange(SIZE - 8192)
        n = rnd.choice((1, 512, 4096, 8192))
        packets.append(c.pack(CMD_READ, at, n))
        asked[c.last_cookie] = (at, n)
    c.send(b"".join(packets))
    for cookie, (at, n) in asked.items():
        a = c.answer(cookie)
        got = a.assemble(at, n) if structured else a.chunks[0].data
        assert a.error == 0 and got == CONTENT[at:at + n]


def test_hundreds_of_writes_in_flight(disk, tmp):
    c, order = disk.enter(), list(range(0, SIZE, 8192))
    random.Random(2).shuffle(order)
    asked = []
    for at in order:
        asked.append(c.start(CMD_WRITE, at, data=pattern.sectors("w", at, 8192)))
    for cookie in asked:
        assert c.answer(cookie).error == 0
    want = pattern.sectors("w", 0, SIZE)
    assert pattern.first_difference(c.read(0, SIZE), want) is None
    disk.stop()
    tools.check(tmp / "disk.qcow2")
    assert pattern.first_difference(tools.content(tmp / "disk.qcow2"), want) is None


def test_pipelined_in_a_single_send(disk):
    """Writes, reads, a flush, an error, in one packet; each is answered once."""
    c = disk.enter()
    data = pattern.block("p", 3000)
    c.send(c.pack(CMD_WRITE, 100, 3000, data=data) + c.pack(CMD_READ, 2 * M, 100) + c.pack(CMD_FLUSH)
           + c.pack(CMD_WRITE_ZEROES, M, 5000) + c.pack(CMD_READ, SIZE, 1) + c.pack(CMD_TRIM, 3 * M, 65536))
    errors = {}
    for cookie in list(c.waiting):
        errors[cookie - 0x1000] = c.answer(cookie).error
    assert errors == {0: 0, 1: 0, 2: 0, 3: 0, 4: EINVAL, 5: 0}
    assert c.read(100, 3000) == data


def test_byte_by_byte(disk):
    """A request and its payload in packets of one byte."""
    c = disk.enter()
    for b in c.pack(CMD_WRITE, 777, 64, data=b"z" * 64):
        c.send(bytes([b]))
    assert c.answer(c.last_cookie).error == 0
    for b in c.pack(CMD_READ, 776, 66):
        c.send(bytes([b]))
    assert c.answer(c.last_cookie).assemble(776, 66) == CONTENT[776:777] + b"z" * 64 + CONTENT[841:842]


@pytest.mark.parametrize("cut", [1, 4, 27, 28, 29, 1000, 65536 + 27])
def test_two_packets_cut_anywhere(disk, cut):
    c, data = disk.enter(), pattern.block("cut", 65536)
    packet = c.pack(CMD_WRITE, 5000, 65536, data=data)
    c.send(packet[:cut])
    other = disk.enter()
    assert other.read(0, 512) == CONTENT[:512]           # meanwhile others are served
    c.send(packet[cut:])
    assert c.answer(c.last_cookie).error == 0
    assert c.read(5000, 65536) == data


def test_same_cookie_twice_in_a_row(disk):
    """A cookie may be used again once it was answered; 0 and 2^64 - 1 are cookies."""
    c = disk.enter()
    for cookie in (0, 0, (1 << 64) - 1, (1 << 64) - 1):
        assert c.answer(c.start(CMD_READ, 0, 512, cookie=cookie)).assemble(0, 512) == CONTENT[:512]


def test_overlapping_writes_leave_one_of_them(daemon, tmp):
    """Two writes in flight over the same unallocated cluster: one or the other, per byte, and no third thing."""
    d = daemon.serve(tools.create(tmp / "a.qcow2", "16M"))
    c = d.enter()
    for at in range(0, 16 * M, 65536):
        c.start(CMD_WRITE, at + 100, data=b"A" * 40000)
        c.start(CMD_WRITE, at + 20100, data=b"B" * 40000)
    for cookie in list(c.waiting):
        assert c.answer(cookie).error == 0
    for at in range(0, 16 * M, 65536):
        got = c.read(at, 65536)
        assert got[:100] == bytes(100) and got[60100:] == bytes(5436)
        assert got[100:20100] == b"A" * 20000 and got[40100:60100] == b"B" * 20000
        assert set(got[20100:40100]) <= {65, 66}
    d.stop()
    tools.check(tmp / "a.qcow2")


def test_parts_of_one_new_cluster_in_parallel(daemon, tmp):
    """Sixteen first writes into one cluster must share one allocation and one copy from below."""
    base = tools.create(tmp / "base.qcow2", "4M")
    tools.qemu_io(base, "write -P 7 0 4M")
    d = daemon.serve(tools.create(tmp / "a.qcow2", None, backing=base))
    c = d.enter()
    for at in range(0, SIZE, 4096):
        if at // 4096 % 16 != 9:
            c.start(CMD_WRITE, at, data=pattern.sectors("x", at, 4096))
    for cookie in list(c.waiting):
        assert c.answer(cookie).error == 0
    want = b"".join(b"\7" * 4096 if at // 4096 % 16 == 9 else pattern.sectors("x", at, 4096)
                    for at in range(0, SIZE, 4096))
    assert pattern.first_difference(c.read(0, SIZE), want) is None
    d.stop()
    tools.check(tmp / "a.qcow2")
    assert pattern.first_difference(tools.content(tmp / "a.qcow2"), want) is None


def test_many_connections(disk):
    conns = [disk.enter() for _ in range(30)]
    for i, c in enumerate(conns):
        c.start(CMD_WRITE, i * 65536, data=bytes([i + 1]) * 65536)
    for c in conns:
        assert c.answer(c.last_cookie).error == 0
    for i in range(30):
        assert conns[29 - i].read(i * 65536, 65536) == bytes([i + 1]) * 65536


def test_write_is_seen_by_another_connection_once_answered(disk):
    a, b = disk.enter(), disk.enter()
    for i in range(200):
        a.write(i * 1000, bytes([i]) * 1000)
        assert b.read(i * 1000, 1000) == bytes([i]) * 1000


@pytest.mark.parametrize("first", ["allocated", "new"])
def test_flush_covers_writes_of_other_connections(disk, tmp, first):
    """Multi-conn: a flush on one makes durable what was answered on the others.  Seen after kill -9."""
    base = 0 if first == "allocated" else 2 * M
    conns = [disk.enter() for _ in range(4)]
    for i, c in enumerate(conns):
        c.write(base + i * 100000, pattern.block(i, 100000))
    disk.enter().flush()
    disk.kill()
    got = tools.content(tmp / "disk.qcow2")
    for i in range(4):
        assert got[base + i * 100000:base + (i + 1) * 100000] == pattern.block(i, 100000)


@pytest.mark.parametrize("offset", [0, 3000, 2 * M, 2 * M + 12345])
def test_fua_write_survives_kill(disk, tmp, offset):
    disk.enter().write(offset, pattern.block("fua", 80000), F_FUA)
    disk.kill()
    assert tools.content(tmp / "disk.qcow2")[offset:offset + 80000] == pattern.block("fua", 80000)


def test_fua_zeroes_survive_kill(disk, tmp):
    disk.enter().zero(65536, 131072, F_FUA)
    disk.kill()
    assert tools.content(tmp / "disk.qcow2")[65536:196608] == bytes(131072)


def test_unflushed_image_is_consistent_after_kill(disk, tmp):
    """Leaks at worst: no error that qemu-img check would name."""
    c = disk.enter()
    for i in range(300):
        c.start(CMD_WRITE, i * 9999, data=pattern.block(i, 5000))
    for cookie in list(c.waiting)[:150]:
        assert c.answer(cookie).error == 0
    disk.kill()
    done = tools.run("qemu-img", "check", tmp / "disk.qcow2", check=False)
    assert done.returncode in (0, 3), done.stdout + done.stderr
