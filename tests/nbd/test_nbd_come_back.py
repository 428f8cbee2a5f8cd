# SPDX-License-Identifier: BSD-3-Clause
"""Clients that lose their connection and come back: what the old one brought is done before anything of the new one."""

import contextlib
import socket
import threading
import time

import pytest

from lib import smalldisk
from lib.nbdproto import *                               # noqa: F403
from lib.patience import HANG, wait_until
from lib.slowserver import SlowServer

pytestmark = pytest.mark.merino_only                     # no other server promises it

SIZE, OLD, NEW = 1 << 20, b"o" * 4096, b"n" * 4096


class Storage(SlowServer):
    """Holds writes until .go is set."""

    def __init__(self, path):
        self.go = threading.Event()
        super().__init__(path, SIZE)

    def late(self, offset):
        assert self.go.wait(HANG)


@pytest.fixture
def storage(tmp):
    with Storage(tmp / "storage") as s:
        yield s
        s.go.set()


@pytest.fixture
def disk(daemon, storage):
    return daemon.start("--blockdev", f"driver=nbd,node-name=disk,server.type=unix,server.path={storage.path}",
                        "--export", "type=nbd,id=disk,node-name=disk,writable=on")


def held(storage):
    """A while in which a write that may come would have come."""
    time.sleep(0.3)
    return len(storage.came)


@pytest.mark.parametrize("how", ["close", "half", "disconnect"])
def test_an_old_write_is_done_first(disk, storage, how):
    old = disk.enter()
    old.start(CMD_WRITE, 0, data=OLD)
    wait_until(lambda: storage.came)
    if how == "disconnect":
        old.send(old.pack(CMD_DISC))
    if how == "half":
        old.sock.shutdown(socket.SHUT_WR)
    else:
        old.close()
    new = disk.enter()
    cookie = new.start(CMD_WRITE, 0, data=NEW)
    assert held(storage) == 1
    storage.go.set()
    assert new.answer(cookie).error == 0
    assert storage.done == [(0, OLD[0]), (0, NEW[0])] and new.read(0, 4096) == NEW


def test_writes_that_were_not_even_read(disk, storage):
    """More than may be in flight: what the server has not begun when it sees the end is not done later, either."""
    old = disk.enter()
    old.sock.settimeout(1)
    with contextlib.suppress(TimeoutError):                # more than the server and the socket take
        for i in range(2000):
            old.send(old.pack(CMD_WRITE, i % 8 * 4096, 512, data=OLD[:512]))
    wait_until(lambda: len(storage.came) >= 16)
    old.close()
    new = disk.enter()
    cookies = [new.start(CMD_WRITE, i * 4096, data=NEW) for i in range(8)]
    held(storage)
    assert all(byte == OLD[0] for _, byte in storage.came)
    storage.go.set()
    assert not any(new.answer(c).error for c in cookies)
    assert new.read(0, 8 * 4096) == NEW * 8 and [byte for _, byte in storage.done[-8:]] == [NEW[0]] * 8


def test_several_that_come_and_go(disk, storage):
    """Whoever gives up while he waits is not waited for longer than the first one."""
    for i in range(4):
        c = disk.enter()
        c.start(CMD_WRITE, 0, data=bytes([i + 1]) * 4096)
        wait_until(lambda: storage.came)
        c.close()
    new = disk.enter()
    cookie = new.start(CMD_WRITE, 0, data=NEW)
    assert held(storage) == 1
    storage.go.set()
    assert new.answer(cookie).error == 0 and new.read(0, 4096) == NEW
    order = [byte for _, byte in storage.done]
    assert order == sorted(order), "the last bytes are the last client's"


def test_others_do_not_wait(disk, storage):
    """Those who were there go on, and who comes when nobody has hung up does not wait."""
    there, old = disk.enter(), disk.enter()
    old.start(CMD_WRITE, 0, data=OLD)
    wait_until(lambda: storage.came)
    assert disk.enter().read(0, 4096) == bytes(4096)
    old.close()
    new = disk.enter()
    cookie = new.start(CMD_READ, 0, 4096)
    assert there.read(0, 4096) == bytes(4096)
    there.start(CMD_WRITE, 8192, data=NEW)
    wait_until(lambda: len(storage.came) == 2)
    storage.go.set()
    assert new.answer(cookie).error == 0


def test_half_a_socket(daemon, tmp):
    """Who has sent all that he will has his answers; if he does not take them he is not waited for, for long."""
    d = daemon.serve(smalldisk.raw(tmp), "raw")
    whole, taking, idle = d.enter(), d.enter(), d.enter()
    reads = [taking.start(CMD_READ, 0, 1 << 20) for _ in range(2)]
    for _ in range(24):
        idle.send(idle.pack(CMD_READ, 0, 1 << 20))
    taking.sock.shutdown(socket.SHUT_WR)
    idle.sock.shutdown(socket.SHUT_WR)
    new = d.enter()
    cookie = new.start(CMD_READ, 0, 4096)
    assert whole.read(0, 4096) and all(taking.answer(c).error == 0 for c in reads)
    assert new.answer(cookie).error == 0
