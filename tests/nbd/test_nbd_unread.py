# SPDX-License-Identifier: BSD-3-Clause
"""Clients that ask and do not take the answers: what they cost is bounded, and nobody else waits for them."""

import time

import pytest

from lib import pattern, smalldisk, tools
from lib.nbdproto import *                               # noqa: F403
from lib.patience import HANG, wait_until

pytestmark = pytest.mark.merino_only                     # the bounds are ours

SHARE = 64 << 20                                         # more than one connection may cost, sockets aside


def send_unread(c, data):
    """As much of DATA as the server takes from a client that reads nothing; True when it took all."""
    c.sock.settimeout(1)
    try:
        c.send(data)
        return True
    except TimeoutError:
        return False
    finally:
        c.sock.settimeout(HANG)


def comb(tmp, size=64 << 20, tooth=4096):
    """A raw image of data and holes in turn, TOOTH bytes each: as many extents as there can be."""
    path = tmp / "comb.raw"
    with open(path, "wb") as f:
        for at in range(0, size, 2 * tooth):
            f.seek(at)
            f.write(b"#" * tooth)
        f.truncate(size)
    return str(path)


def test_refused_writes(daemon, tmp):
    """A refusal costs the server more than the request costs the client."""
    d = daemon.serve(smalldisk.raw(tmp), "raw", writable=False)
    c, before = d.enter(), d.memory()
    request = c.pack(CMD_WRITE, 0, 1, data=b"x")
    assert not send_unread(c, request * 500000)
    assert d.memory() - before < SHARE
    assert len(d.enter().read(0, 4096)) == 4096


def test_reads_of_many_holes(daemon, tmp):
    """Each 32 MiB of the comb are 8,192 chunks."""
    d = daemon.serve(comb(tmp), "raw", writable=False)
    c, before = d.enter(), d.memory()
    for _ in range(12):
        c.send(c.pack(CMD_READ, 0, 32 << 20))
    time.sleep(1)
    assert d.memory() - before < SHARE
    cookies = list(c.waiting)
    for cookie in cookies:
        a = c.answer(cookie)
        assert a.error == 0 and len(a.pieces()) == 8192


def test_block_status_of_many_extents(daemon, tmp):
    """128 KiB of descriptors for every 28 bytes of request."""
    d = daemon.serve(comb(tmp), "raw", writable=False)
    c, before = d.enter(contexts=["base:allocation"]), d.memory()
    for _ in range(2000):
        if not send_unread(c, c.pack(CMD_BLOCK_STATUS, 0, 64 << 20)):
            break
    assert d.memory() - before < SHARE
    assert d.enter(contexts=["base:allocation"]).status(0, 8192) == [(4096, 0), (4096, 3)]


def test_cache_requests(daemon, tmp):
    """They have no answer to speak of, but the disk is read somewhere."""
    path = tmp / "a.raw"
    path.write_bytes(pattern.block("cache", 32 << 20))
    d = daemon.serve(path, "raw", writable=False, blockdev="file.cache.direct=on")
    c, before = d.enter(), d.memory()
    cookies = [c.start(CMD_CACHE, 0, 16 << 20) for _ in range(120)]
    for cookie in cookies:
        assert c.answer(cookie).error == 0
    assert d.memory("VmHWM") - before < SHARE


@pytest.mark.parametrize("structured", [False, True])
def test_many_long_reads_at_once_all_end(daemon, tmp, structured):
    """Answers that are too long to hold are read while they are sent: none may starve the one being sent."""
    path = tmp / "a.raw"
    path.write_bytes(pattern.block("long", 32 << 20))
    d = daemon.serve(path, "raw", writable=False, blockdev="file.cache.direct=on")
    c = d.enter(structured=structured)
    cookies = [c.start(CMD_READ, 0, 32 << 20, F_DF if structured else 0) for _ in range(12)]
    for cookie in cookies:
        a = c.answer(cookie)
        data = a.assemble(0, 32 << 20) if structured else a.chunks[0].data
        assert a.error == 0 and data == path.read_bytes()


@pytest.mark.parametrize("flags", [0, F_DF])
def test_a_stalled_read_does_not_hold_the_gate(daemon, tmp, flags):
    """A command that needs the disk quiet for an instant goes through while a long read waits for its client."""
    path = tools.create(tmp / "a.qcow2", "64M")
    tools.qemu_io(path, "write -P 7 0 64M")
    d = daemon.serve(path)
    c = d.enter()
    for at in range(0, 64 << 20, 32 << 20):
        c.send(c.pack(CMD_READ, at, 32 << 20, flags))
    time.sleep(0.3)                                      # until it stalls; no harm when it has not yet
    d.qmp.cmd("block-dirty-bitmap-add", node="disk", name="b")
    for cookie in list(c.waiting):
        assert c.answer(cookie).error == 0


def test_an_export_with_stuck_clients_can_be_removed(daemon, tmp):
    """block-export-del and nbd-server-stop do not wait for clients that do not read, half-closed ones included."""
    path = tools.create(tmp / "a.qcow2", "64M")
    tools.qemu_io(path, "write -P 7 0 64M")
    d = daemon.serve(path)
    for i in range(6):
        c = d.enter()
        for _ in range(4):
            c.send(c.pack(CMD_READ, 0, 32 << 20, F_DF if i % 2 else 0))
        if i % 3 == 0:
            c.sock.shutdown(1)
    time.sleep(0.2)
    d.qmp.cmd("block-export-del", id="disk", mode="hard")
    d.qmp.cmd("nbd-server-stop")


def test_a_crowd_that_waits_costs_no_time(daemon, tmp):
    """Memory is short for all of them: they wait, they do not look again and again; who reads is served."""
    path = tools.create(tmp / "a.qcow2", "4M")
    tools.qemu_io(path, "write -P 7 0 4M")
    d = daemon.serve(path)
    for _ in range(95):
        c = d.enter()
        c.send(b"".join(c.pack(CMD_READ, 0, 1 << 20) for _ in range(100)))

    def idle():
        before = d.cpu_seconds()
        time.sleep(0.5)
        return d.cpu_seconds() - before < 0.05
    wait_until(idle)
    c = d.enter()
    cookies = [c.start(CMD_READ, 0, 1 << 20) for _ in range(32)]
    assert all(c.answer(cookie).error == 0 for cookie in cookies)
