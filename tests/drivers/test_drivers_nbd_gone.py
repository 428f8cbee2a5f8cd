# SPDX-License-Identifier: BSD-3-Clause
"""A remote export whose server goes away: what waits, what fails, and that nothing hangs."""

import contextlib
import os
import signal
import threading
import time

import nbd
import pytest

from lib import tools
from lib.daemon import DidNotStart
from lib.nbdserver import Server
from lib.patience import HANG, wait_until

from .test_drivers_nbd import SIZE, node, serve


def restart(servers, p, sock, path):
    servers.kill(p, sock)
    return servers.qemu_nbd(sock, path)


def test_reconnects(daemon, servers, tmp):
    """Without a delay: a request may fail, and a later one succeeds."""
    path, sock = tools.create(tmp / "a", SIZE, "raw"), tmp / "s"
    p = servers.qemu_nbd(sock, path)
    h = serve(daemon, node(sock)).libnbd()
    h.pwrite(b"a" * 4096, 0)
    servers.kill(p, sock)
    with pytest.raises(nbd.Error):
        h.pwrite(b"b" * 4096, 0)
    servers.qemu_nbd(sock, path)
    end = time.monotonic() + HANG
    while True:
        try:
            h.pwrite(b"c" * 4096, 0)
            break
        except nbd.Error:
            assert time.monotonic() < end
            time.sleep(0.05)
    assert h.pread(4096, 0) == b"c" * 4096


def test_waits_for_the_delay(daemon, servers, tmp):
    """Requests in flight and new ones wait, and are done when the server is back."""
    path, sock = tools.create(tmp / "a", SIZE, "raw"), tmp / "s"
    p = servers.qemu_nbd(sock, path)
    h = serve(daemon, node(sock, "reconnect-delay=90")).libnbd()
    for round_ in range(3):
        servers.kill(p, sock)
        cookies = [h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([round_ * 8 + i + 1]) * 65536), i << 16)
                   for i in range(8)]
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            h.poll(50)
        assert h.aio_in_flight() == 8
        p = servers.qemu_nbd(sock, path)
        while h.aio_in_flight():
            h.poll(-1)
        assert all(h.aio_command_completed(c) for c in cookies)
        assert h.pread(8 << 16, 0) == b"".join(bytes([round_ * 8 + i + 1]) * 65536 for i in range(8))


def test_the_delay_ends(daemon, servers, tmp):
    path, sock = tools.create(tmp / "a", SIZE, "raw"), tmp / "s"
    p = servers.qemu_nbd(sock, path)
    h = serve(daemon, node(sock, "reconnect-delay=1")).libnbd()
    start = time.monotonic()
    servers.kill(p, sock)
    with pytest.raises(nbd.Error) as e:
        h.pread(4096, 0)
    assert e.value.errnum in (5, 107) and time.monotonic() - start > 0.9


@pytest.mark.merino_only
def test_killed_under_load(daemon, servers, tmp):
    """The server dies five times in the middle of writes: all that was acknowledged is there."""
    path, sock = tools.create(tmp / "a", SIZE, "raw"), tmp / "s"
    p = servers.qemu_nbd(sock, path)
    d = serve(daemon, node(sock, "reconnect-delay=90"))
    h, model, stop = d.libnbd(), bytearray(SIZE), threading.Event()

    def write():
        n = 0
        while not stop.is_set():
            n += 1
            data = n.to_bytes(4, "big") * 16384
            at = n * 65536 % SIZE
            h.pwrite(data, at)
            model[at:at + 65536] = data
    t = threading.Thread(target=write)
    t.start()
    for _ in range(5):
        time.sleep(0.1)
        p = restart(servers, p, sock, path)
    stop.set()
    t.join(HANG)
    assert not t.is_alive() and h.pread(SIZE, 0) == model


def is_not_taken(daemon, s, why):
    """The server goes with the second request; who comes back is another."""
    d = serve(daemon, node(s.path, "reconnect-delay=1,read-only=on", ""), writable=False)
    h = d.libnbd()
    assert h.pread(512, 0) == bytes(512)

    def said():
        with pytest.raises(nbd.Error):
            h.pread(512, 0)
        return why in d.stderr()
    wait_until(said)
    assert s.connections > 1


@pytest.mark.merino_only
def test_another_size(daemon, tmp):
    """Whoever comes back with another disk is not taken for the old one."""
    class Grown(Server):
        def size_for(self, connection):
            return SIZE if connection == 0 else 2 * SIZE

    with Grown(tmp / "s", SIZE, die_after=1) as s:
        is_not_taken(daemon, s, "size has changed")


@pytest.mark.merino_only
@pytest.mark.parametrize("flags", [(4 | 8, 4), (4, 0), (0, 4)])
def test_another_way_to_make_data_durable(daemon, tmp, flags):
    """A server that comes back without FUA would lose what it was told to keep; one without FLUSH, or with it, too."""
    class Other(Server):
        def flags_for(self, connection):
            return flags[connection > 0]

    with Other(tmp / "s", SIZE, die_after=1) as s:
        is_not_taken(daemon, s, "makes data durable in another way")


def test_dies_in_an_answer(daemon, tmp):
    """The stream ends in the middle of a chunk."""
    class Short(Server):
        def read(self, offset, length):
            return bytes(length)

        def chunk(self, s, cookie, kind, payload, done=False):
            if kind == 1 and self.connections == 1:
                super_chunk = len(payload) // 2
                s.sendall(b"\x66\x8e\x33\xef" + bytes([0, 0, 0, 1]) + cookie.to_bytes(8, "big")
                          + len(payload).to_bytes(4, "big") + payload[:super_chunk])
                s.shutdown(2)
                return
            Server.chunk(self, s, cookie, kind, payload, done)

    with Short(tmp / "s", SIZE) as s:
        h = serve(daemon, node(s.path, "reconnect-delay=90,read-only=on", ""), writable=False).libnbd()
        assert h.pread(65536, 4096) == bytes(65536)
        assert s.connections >= 2


def test_dies_in_a_map(daemon, tmp):
    """What came of the extents before the link was lost is not taken for the start of those that come after."""
    class Short(Server):
        def status(self, context, offset, length):
            return [(1 << 20, 3), (1 << 20, 0), (length - (2 << 20), 3)] if offset == 0 else [(length, 3)]

        def chunk(self, s, cookie, kind, payload, done=False):
            if kind == 5 and self.connections == 1:
                s.sendall(b"\x66\x8e\x33\xef" + bytes([0, 0, 0, 5]) + cookie.to_bytes(8, "big")
                          + len(payload).to_bytes(4, "big") + payload[:12])
                s.shutdown(2)
                return
            Server.chunk(self, s, cookie, kind, payload, done)

    with Short(tmp / "s", SIZE) as s:
        d = serve(daemon, node(s.path, "reconnect-delay=90,read-only=on", ""), writable=False)
        h = d.libnbd(contexts=["base:allocation"])
        found = []
        h.block_status(SIZE, 0, lambda name, offset, entries, error: found.extend(entries))
        assert found == [1 << 20, 3, 1 << 20, 0, SIZE - (2 << 20), 3]
        assert s.connections >= 2


def test_open_timeout(daemon, tmp):
    """The server comes half a second later than we do."""
    servers = []
    t = threading.Timer(0.5, lambda: servers.append(Server(tmp / "s", SIZE)))
    t.start()
    try:
        d = serve(daemon, node(tmp / "s", "open-timeout=90,read-only=on", ""), writable=False)
        assert d.libnbd().get_size() == SIZE
    finally:
        t.join()
        servers[0].close()


@pytest.mark.merino_only
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_a_stuck_server_does_not_stop_the_end(daemon, servers, tmp, fmt):
    """SIGSTOP: no answer ever comes.  The daemon ends all the same."""
    path, sock = tools.create(tmp / "a", SIZE, fmt), tmp / "s"
    with open(path, "r+b") as f:
        f.truncate(2 * SIZE)
    p = servers.qemu_nbd(sock, path)
    option = node(sock) if fmt == "raw" else (
        f"driver=qcow2,node-name=disk,file.driver=nbd,file.server.type=unix,file.server.path={sock},file.export=exp")
    d = serve(daemon, option)
    h = d.libnbd()
    h.pwrite(b"x" * 65536, 0)
    p.send_signal(signal.SIGSTOP)
    h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(65536)), 1 << 20)
    h.aio_flush()
    d.proc.send_signal(signal.SIGTERM)
    d.wait_end()


@pytest.mark.merino_only
def test_a_dead_server_does_not_stop_the_end(daemon, servers, tmp):
    """Requests wait for a server that never comes back."""
    path, sock = tools.create(tmp / "a", SIZE, "raw"), tmp / "s"
    p = servers.qemu_nbd(sock, path)
    d = serve(daemon, node(sock, "reconnect-delay=3600"))
    h = d.libnbd()
    servers.kill(p, sock)
    h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(65536)), 1 << 20)
    h.poll(100)
    d.proc.send_signal(signal.SIGTERM)
    d.wait_end()


@pytest.mark.merino_only
def test_a_hard_removal_does_not_wait_for_ever(daemon, servers, tmp):
    path, sock = tools.create(tmp / "a", SIZE, "raw"), tmp / "s"
    p = servers.qemu_nbd(sock, path)
    d = serve(daemon, node(sock))
    h = d.libnbd()
    p.send_signal(signal.SIGSTOP)
    h.aio_pread(nbd.Buffer(65536), 0)
    h.poll(100)
    d.qmp.cmd("block-export-del", id="disk", mode="hard")
    d.qmp.cmd("blockdev-del", {"node-name": "disk"})


def test_memory_when_servers_come_and_go(daemon, servers, tmp):
    """Thirty connections later there are as many descriptors as before."""
    with Server(tmp / "s", SIZE, die_after=0) as s:
        d = serve(daemon, node(s.path, "reconnect-delay=90,read-only=on", ""), writable=False)
        h = d.libnbd()
        before = d.descriptors()
        h.aio_pread(nbd.Buffer(512), 0)
        end = time.monotonic() + HANG
        while s.connections < 5 and time.monotonic() < end:
            h.poll(100)
        s.die_after = None
        while h.aio_in_flight():
            h.poll(-1)
        assert h.pread(512, 0) == bytes(512)
        wait_until(lambda: d.descriptors() <= before + 1)


def test_a_socket_that_is_no_server(daemon, tmp):
    """It answers nothing that makes sense."""
    import socket
    s = socket.socket(socket.AF_UNIX)
    s.bind(str(tmp / "s"))
    s.listen(1)

    def talk():
        c, _ = s.accept()
        with c, contextlib.suppress(OSError):            # who has heard enough hangs up
            c.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 4)
    t = threading.Thread(target=talk)
    t.start()
    with pytest.raises(DidNotStart):
        serve(daemon, node(tmp / "s"))
    t.join()
    s.close()
    assert os.path.exists(tmp / "s")
