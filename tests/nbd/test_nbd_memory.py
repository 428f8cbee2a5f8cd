# SPDX-License-Identifier: BSD-3-Clause
"""What many clients cost together: those that read nothing, those that do nothing, those that never begin.

Each test has a short form, and one of full size that `make soak` runs.
"""

import resource
import socket
import struct
import time

import pytest

from lib import nbdraw, smalldisk, tools
from lib.daemon import DidNotStart, disk_args
from lib.nbdproto import *                               # noqa: F403
from lib.patience import HANG, wait_until

pytestmark = pytest.mark.merino_only                     # the bounds are ours

MIB = 1 << 20


@pytest.fixture(autouse=True)
def descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def sizes(short, full):
    """The number of clients, in the short form and in the long one."""
    return pytest.mark.parametrize("n", [short, pytest.param(full, marks=[pytest.mark.soak, pytest.mark.timeout(300)])])


def serve(daemon, path, fmt="raw", limits="max-connections=0", **kw):
    d = daemon.start("--nbd-server", f"addr.type=unix,addr.path={daemon.dir}/many,{limits}",
                     *disk_args(path, fmt, **kw), listen=None)
    d.nbd_address = f"{daemon.dir}/many"
    return d


def full_qcow2(tmp, size=64):
    path = tools.create(tmp / "a.qcow2", f"{size}M")
    tools.qemu_io(path, f"write -P 7 0 {size}M")
    return path


def send_what_fits(c, data):
    """As much of DATA as the server takes now."""
    c.sock.setblocking(False)
    try:
        return c.sock.send(data)
    except BlockingIOError:
        return 0
    finally:
        c.sock.settimeout(HANG)


def settle(value, seconds=20):
    """Waits until VALUE() is the same for a while."""
    last, since, end = None, time.monotonic(), time.monotonic() + seconds
    while time.monotonic() < end and time.monotonic() - since < 0.5:
        now = value()
        if now != last:
            last, since = now, time.monotonic()
        time.sleep(0.05)


# --- replies that nobody reads

@sizes(16, 97)
@pytest.mark.parametrize("structured", [True, False])
def test_stuck_readers(daemon, tmp, n, structured):
    """Each asks for a GiB.  What they hold is bounded, others are served, and all is given back."""
    d = serve(daemon, full_qcow2(tmp), "qcow2")
    before, stuck = d.memory(), []
    for _ in range(n):
        c = d.enter(structured=structured)
        send_what_fits(c, b"".join(c.pack(CMD_READ, 0, 32 * MIB) for _ in range(32)))
        stuck.append(c)
    settle(d.memory)
    assert d.memory("VmHWM") - before < 256 * MIB
    other = d.enter()
    for at in range(0, 32 * MIB, MIB):
        assert other.read(at, MIB) == b"\7" * MIB
    other.write(0, b"x" * MIB)
    assert d.memory("VmHWM") - before < 256 * MIB
    for c in stuck:
        c.close()
    wait_until(lambda: d.memory() - before < 32 * MIB)


def test_a_stuck_reader_goes_on(daemon, tmp):
    """A paused virtual machine that runs again finds everything that it asked for."""
    d = serve(daemon, full_qcow2(tmp), "qcow2")
    c = d.enter()
    cookies = [c.start(CMD_READ, at << 20, MIB) for at in range(64)]
    time.sleep(1.5)
    for cookie in cookies:
        assert c.answer(cookie).error == 0


def test_the_stuck_are_dropped_when_memory_is_short(daemon, tmp):
    """15 hold all there is; the ones that come to wait for it get it some seconds later."""
    d = serve(daemon, full_qcow2(tmp), "qcow2")
    stuck = []
    for _ in range(20):
        c = d.enter()
        send_what_fits(c, b"".join(c.pack(CMD_READ, 0, 32 * MIB) for _ in range(32)))
        stuck.append(c)
    wait_until(lambda: "memory is short" in d.stderr())
    other = d.enter()
    for at in range(0, 32 * MIB, 4 * MIB):
        assert other.read(at, 4 * MIB) == b"\7" * (4 * MIB)
    assert d.stderr().count("memory is short") < 20      # not more than it takes


def test_the_stuck_of_one_thread_are_dropped_for_who_waits_on_another(daemon, tmp):
    """15 hold nearly all there is, and none of their own loop waits for more."""
    one, two = full_qcow2(tmp), tools.create(tmp / "two.qcow2", "64M")
    tools.qemu_io(two, "write -P 8 0 64M")
    d = daemon.start("--loops", "2", "--nbd-server", f"addr.type=unix,addr.path={daemon.dir}/many",
                     *disk_args(one, name="one"), *disk_args(two, name="two"), listen=None)
    d.nbd_address = f"{daemon.dir}/many"
    for _ in range(15):
        c = d.enter("one")
        send_what_fits(c, b"".join(c.pack(CMD_READ, 0, 32 * MIB) for _ in range(32)))
    settle(d.memory)
    assert "memory is short" not in d.stderr()
    other, end = d.enter("two"), time.monotonic() + HANG
    while "memory is short" not in d.stderr():
        assert time.monotonic() < end
        cookies = [other.start(CMD_READ, 0, 32 * MIB) for _ in range(4)]
        assert all(other.answer(cookie).error == 0 for cookie in cookies)


def test_nobody_is_dropped_while_there_is_memory(daemon, tmp):
    d = serve(daemon, full_qcow2(tmp), "qcow2")
    c = d.enter()
    cookies = [c.start(CMD_READ, at << 20, MIB) for at in range(64)]
    time.sleep(7)
    for cookie in cookies:
        assert c.answer(cookie).error == 0
    assert "dropped" not in d.stderr()


@pytest.mark.parametrize("by_listener", [True, False])
def test_send_timeout(daemon, tmp, by_listener):
    """Who takes nothing for so long is dropped; who is merely slow, or has nothing to take, is not."""
    path = full_qcow2(tmp)
    if by_listener:
        d = serve(daemon, path, "qcow2", limits="send-timeout=2")
    else:
        d = daemon.start("--send-timeout", "2", *disk_args(path, "qcow2"))
    stuck, slow, idle = d.enter(), d.enter(), d.enter()
    began = time.monotonic()
    for c in (stuck, slow):
        send_what_fits(c, b"".join(c.pack(CMD_READ, at << 20, MIB) for at in range(64)))
    while "not taken in time" not in d.stderr():
        assert time.monotonic() - began < HANG
        slow.sock.recv(200000)
        time.sleep(0.1)
    assert time.monotonic() - began > 1.5
    assert len(idle.read(0, 4096)) == 4096
    assert slow.sock.recv(1)
    with pytest.raises((nbdraw.Closed, ConnectionError)):
        while True:
            stuck.take()


@pytest.mark.parametrize("option", [["--send-timeout", "x"], ["--send-timeout", "-1"], ["--send-timeout", "86401"],
                                    ["--nbd-server", "addr.type=inet,addr.host=127.0.0.1,addr.port=0,send-timeout=x"]])
def test_send_timeout_refused(daemon, tmp, option):
    with pytest.raises(DidNotStart, match="send-timeout"):
        daemon.start(*option, *disk_args(smalldisk.raw(tmp), "raw"))


# --- clients that do nothing

@sizes(300, 1000)
def test_idle_clients(daemon, tmp, n):
    """After the handshake, after a read, and some seconds after much was written."""
    d = serve(daemon, smalldisk.raw(tmp))
    before = d.memory()
    each, rest = 24 * 1024, 4 * MIB                      # 1,000 of them: 24 MiB
    clients = [d.enter() for _ in range(n)]
    wait_until(lambda: d.memory() - before < n * each + rest)
    for c in clients:
        c.read(0, 4096)
    wait_until(lambda: d.memory() - before < n * each + rest)
    for c in clients:
        c.write(0, b"x" * 65536)
    wait_until(lambda: d.memory() - before < n * each + rest + 4 * MIB)
    assert len(d.enter().read(0, 4096)) == 4096
    for c in clients:                                    # whose large buffer was taken back meanwhile
        assert c.read(0, 512) == b"x" * 512


def test_idle_in_the_middle_of_a_write(daemon, tmp):
    """A large buffer is taken back from under half a request, which is then finished."""
    d = serve(daemon, smalldisk.raw(tmp))
    c = d.enter()
    for _ in range(3):
        c.write(0, bytes(65536))                         # so that it waits in a large one
    request = c.pack(CMD_WRITE, 0, 5000, data=b"y" * 5000)
    c.send(request[:3000])
    time.sleep(3.5)
    c.send(request[3000:])
    assert c.answer(c.last_cookie).error == 0
    request = c.pack(CMD_WRITE, 8192, 60000, data=b"z" * 60000)
    c.send(request[:40000])
    time.sleep(3.5)
    c.send(request[40000:])
    assert c.answer(c.last_cookie).error == 0
    assert c.read(0, 68192) == b"y" * 5000 + bytes(3192) + b"z" * 60000


def test_idle_without_a_ring(daemon, tmp, monkeypatch):
    monkeypatch.setenv("MERINO_IO", "threads")
    d = serve(daemon, smalldisk.raw(tmp))
    c = d.enter()
    for _ in range(3):
        c.write(0, b"a" * 65536)
    time.sleep(3.5)
    c.write(0, b"b" * 65536)
    assert c.read(0, 65536) == b"b" * 65536


# --- clients that never begin

def stall_silent(c):
    pass


def stall_greeting(c):
    c.recv(18)
    c.send(b"\0\0")


def stall_header(c):
    c.greet()
    c.send(b"IHAVEOPT\0\0")


def stall_payload(c):
    c.greet()
    c.send_option(OPT_GO, b"\0" * 30000, length=32768)


def stall_unread(c):
    c.greet()
    send_what_fits(c, (OPTS_MAGIC + struct.pack(">II", OPT_LIST, 0)) * 20000)


def drip(c):
    """One more byte of a long payload, one more option: a client that is slow on purpose."""
    try:
        c.sock.send(b"\0", socket.MSG_DONTWAIT)
    except OSError:
        pass


def ask(c):
    try:
        c.sock.send(OPTS_MAGIC + struct.pack(">II", OPT_LIST, 0), socket.MSG_DONTWAIT)
        c.sock.recv(65536, socket.MSG_DONTWAIT)
    except OSError:
        pass


@sizes(20, 200)
def test_stalled_handshakes(daemon, tmp, n):
    """All kinds at the same time: dropped after 10 s, 64 KiB each at most, and others come in meanwhile."""
    d = serve(daemon, smalldisk.raw(tmp))
    first = d.enter()
    fds, before = d.descriptors(), d.memory()
    kinds = [(stall_silent, None), (stall_greeting, None), (stall_header, None), (stall_payload, drip),
             (lambda c: c.greet(), ask), (stall_unread, None)]
    clients, began = [], time.monotonic()
    for stall, go_on in kinds:
        for _ in range(n):
            c = d.connect()
            stall(c)
            clients.append((c, go_on))
    connected = time.monotonic() - began
    while d.descriptors() > fds:
        assert d.memory() - before < len(clients) * 65536
        assert time.monotonic() - began < connected + HANG
        for c, go_on in clients:
            if go_on:
                go_on(c)
        other = nbdraw.Conn(d.nbd_address)
        assert len(other.enter("disk").read(0, 512)) == 512
        other.close()
        time.sleep(0.25)
        if d.descriptors() == fds + 1:                   # the one that has just left
            time.sleep(0.1)
    assert time.monotonic() - began > 9
    assert len(first.read(0, 512)) == 512


# --- clients that vanish

def reset(c):
    """RST rather than FIN."""
    c.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    c.close()


@sizes(40, 200)
@pytest.mark.parametrize("listen", ["unix", "inet"])
def test_resets_with_reads_in_flight(daemon, tmp, n, listen):
    path = full_qcow2(tmp, 16)
    d = daemon.serve(path, listen=listen)
    d.enter().read(0, 4096)
    d.close_clients()
    assert d.qmp.cmd("query-block-exports")              # the monitor's descriptor counts, too
    settle(d.descriptors)
    fds, before = d.descriptors(), d.memory()
    for i in range(n):
        c = nbdraw.Conn(d.nbd_address).enter("disk", structured=i % 2 == 0)
        c.send(b"".join(c.pack(CMD_READ, (k % 16) << 20, 1 << (12 + k % 9)) for k in range(64)))
        if i % 3 == 0:
            c.sock.recv(1000)
        reset(c)
    wait_until(lambda: d.descriptors() <= fds)
    wait_until(lambda: d.memory() - before < 32 * MIB)
    c = d.connect().enter("disk")
    assert len(c.read(0, 4096)) == 4096
    c.close()
    wait_until(lambda: "error" not in d.qmp.exchange("block-export-del", {"id": "disk"}))   # refused while anybody is there


@pytest.mark.parametrize("how", ["close", "reset"])
def test_gone_at_every_byte_of_the_handshake(daemon, tmp, how):
    d = daemon.serve(smalldisk.raw(tmp), "raw")
    d.enter().read(0, 512)
    d.close_clients()
    words = struct.pack(">I", FIXED_NEWSTYLE | NO_ZEROES)
    for option, data in ((OPT_STRUCTURED_REPLY, b""), (OPT_EXTENDED_HEADERS, b""),
                         (OPT_SET_META, nbdraw.meta_payload("disk", ["base:allocation"])),
                         (OPT_LIST, b""), (OPT_GO, nbdraw.info_payload("disk", [INFO_BLOCK_SIZE]))):
        words += OPTS_MAGIC + struct.pack(">II", option, len(data)) + data
    words += struct.pack(">IHHQQQ", EXT_REQUEST_MAGIC, 0, CMD_READ, 1, 0, 4096)
    assert d.qmp.cmd("query-block-exports")
    settle(d.descriptors)
    fds, before = d.descriptors(), d.memory()
    for n in range(len(words) + 1):
        c = nbdraw.Conn(d.nbd_address)
        c.send(words[:n])
        if n % 2:
            c.sock.recv(4096)
        reset(c) if how == "reset" else c.close()
    wait_until(lambda: d.descriptors() <= fds)
    wait_until(lambda: d.memory() - before < 8 * MIB)
    wait_until(lambda: "error" not in d.qmp.exchange("block-export-del", {"id": "disk"}))   # nobody holds it


# --- limits of connections

def test_limit_of_an_export(daemon, tmp):
    """Refused by the third GO, not made to wait; the other export and INFO are not concerned."""
    path = smalldisk.raw(tmp)
    d = daemon.serve(path, "raw", export="max-connections=2")
    d.qmp.cmd("block-export-add", {"type": "nbd", "id": "free", "node-name": "disk", "name": "free"})
    one, two = d.enter(), d.enter()
    with pytest.raises(nbdraw.OptionRefused, match="limit of 2 connections") as e:
        d.enter()
    assert e.value.type == REP_ERR_POLICY
    three = d.connect()
    three.greet()
    assert three.info("disk")
    old = d.connect()
    old.greet()
    old.send_option(OPT_EXPORT_NAME, b"disk")
    assert old.closed_by_server()
    assert len(d.enter("free").read(0, 512)) == 512
    one.close()

    def comes_in():
        try:
            with d.connect() as c:
                return c.enter("disk")
        except nbdraw.OptionRefused:
            return False
    wait_until(comes_in)
    assert len(two.read(0, 512)) == 512


@sizes(3000, 12000)
def test_any_number_of_connections(daemon, tmp, n, monkeypatch):
    """With max-connections=0 and few descriptors: the rest waits, nothing is given up."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard < n + 1000:
        pytest.skip(f"this shell may have {hard} descriptors")
    d = serve(daemon, smalldisk.raw(tmp))
    resource.prlimit(d.proc.pid, resource.RLIMIT_NOFILE, (n // 2, n // 2))
    clients = []
    for _ in range(n):
        s = socket.socket(socket.AF_UNIX)
        s.setblocking(False)
        try:
            s.connect(d.nbd_address)
        except BlockingIOError:                          # the backlog is full, as it may be
            s.close()
            continue
        clients.append(s)
    time.sleep(0.5)
    assert d.alive()
    for s in clients:
        s.close()
    assert len(d.enter().read(0, 512)) == 512


def test_many_queries_for_many_contexts(daemon, tmp):
    """1,000 queries of 32 KiB against 1,000 bitmaps, again and again: others are served meanwhile."""
    path = tools.create(tmp / "a.qcow2", "64M")
    d = daemon.serve(path)
    names = [f"bitmap-{i}" for i in range(1000)]
    for at in range(0, 1000, 100):
        d.qmp.cmd("transaction", {"actions": [{"type": "block-dirty-bitmap-add", "data": {
            "node": "disk", "name": name, "granularity": 65536}} for name in names[at:at + 100]]})
    d.qmp.cmd("block-export-add", {"type": "nbd", "id": "b", "node-name": "disk", "name": "b", "writable": True,
                                 "bitmaps": names})
    c = d.connect()
    c.greet()
    c.negotiate_structured()
    ids = c.meta(OPT_SET_META, "b", [f"qemu:dirty-bitmap:bitmap-{i}" for i in (0, 7, 500, 999)])
    assert sorted(ids.values()) == [1, 8, 501, 1000]
    assert len([n for n in c.meta(OPT_LIST_META, "b", []) if not n.startswith("merino:")]) == 1001
    assert len(c.meta(OPT_LIST_META, "b", ["qemu:"])) == 1000
    data = nbdraw.meta_payload("b", ["qemu:dirty-bitmap:n" for _ in range(1000)])
    before = d.cpu_seconds()
    for _ in range(30):                                  # a negotiation may take 10 s
        c = d.connect()
        c.greet()
        c.negotiate_structured()
        for _ in range(10):
            assert not c.must(OPT_SET_META, data)
        c.close()
    assert d.cpu_seconds() - before < 3                  # 1,000 x 1,000 comparisons each would be 30
