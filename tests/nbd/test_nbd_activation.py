# SPDX-License-Identifier: BSD-3-Clause
"""Sockets that others made (systemd, libnbd), what the service manager is told, and vsock."""

import contextlib
import ctypes
import fcntl
import os
import re
import signal
import socket
import subprocess
import time

import nbd
import pytest

from lib import nbdraw, tools
from lib.daemon import disk_args, die_with_parent, free_port, program
from lib.patience import HANG, listening, wait_until
from lib.qmp import QMP, QMPError
from lib.smalldisk import DATA, raw

pytestmark = pytest.mark.merino_only


class Activated:
    """merinod with listening sockets as descriptors 3, 4, ..., as systemd starts it."""

    def __init__(self, tmp, *args, sockets=1, names=None, pid=None, env=()):
        self.paths = [str(tmp / f"s{i}") for i in range(sockets)]
        self.sockets = []
        for path in self.paths:
            s = socket.socket(socket.AF_UNIX)
            s.bind(path)
            s.listen(16)
            self.sockets.append(s)
        high = [fcntl.fcntl(s, fcntl.F_DUPFD, 100) for s in self.sockets]

        def place():
            die_with_parent()
            for i, fd in enumerate(high):
                os.dup2(fd, 3 + i, inheritable=True)
                os.close(fd)
        # exec keeps the pid, so the shell can say it.
        script = f"export LISTEN_PID={pid or '$$'} LISTEN_FDS={sockets}; exec \"$@\""
        self.err = open(tmp / "err", "w+")
        self.proc = subprocess.Popen(["/bin/sh", "-c", script, "sh", program(), *map(str, args)],
                                     stdin=subprocess.DEVNULL, stdout=self.err, stderr=self.err,
                                     close_fds=False, preexec_fn=place,
                                     env={**os.environ, **({"LISTEN_FDNAMES": names} if names else {}), **dict(env)})
        for fd in high:
            os.close(fd)

    def stderr(self):
        self.err.seek(0)
        return self.err.read()

    def end(self, sig=signal.SIGTERM):
        self.proc.send_signal(sig)
        return self.wait()

    def wait(self):
        status = self.proc.wait(HANG)
        for s in self.sockets:
            s.close()
        return status


@pytest.fixture
def activated(tmp):
    started = []

    def start(*args, **kw):
        started.append(Activated(tmp, *args, **kw))
        return started[-1]
    yield start
    for a in started:
        if a.proc.poll() is None:
            a.proc.kill()
            a.proc.wait()


def test_nbdinfo_brackets(tmp):
    out = tools.run("nbdinfo", "--size", "--", "[", program(), "-r", raw(tmp), "]").stdout
    assert out == "4194304\n"                            # and not a word of merinod's own


def test_libnbd_activation_writes(tmp):
    path = raw(tmp)
    h = nbd.NBD()
    h.connect_systemd_socket_activation([program(), "-f", "raw", path])
    h.pwrite(b"x" * 512, 512)
    h.shutdown()
    del h
    with open(path, "rb") as f:
        assert f.read(1024) == DATA[:512] + b"x" * 512


def test_systemd_socket_activate(tmp):
    """It waits for the first client, whose connection must wait until the disk is there."""
    with open(tmp / "log", "wb") as log:
        proc = subprocess.Popen(["systemd-socket-activate", "-l", f"{tmp}/s", "--fdname=disk", program(), "--nbd-server",
                                 "addr.type=fd,addr.str=disk", *disk_args(raw(tmp), "raw")],
                                stdout=log, stderr=log, preexec_fn=die_with_parent)

    def connection():
        """Not before it listens; a mere look whether it does would be a client."""
        assert proc.poll() is None
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            return nbdraw.Conn(f"{tmp}/s")

    for _ in range(3):
        c = wait_until(connection).enter("disk")
        assert c.read(0, 4096) == DATA[:4096]
        c.close()
    proc.send_signal(signal.SIGTERM)
    assert proc.wait(HANG) == 0, (tmp / "log").read_text()


def test_all_sockets_serve(activated, tmp):
    a = activated("-r", raw(tmp), sockets=3)
    for path in a.paths:
        assert nbdraw.Conn(path).enter("").read(0, 512) == DATA[:512]
    assert a.end() == 0
    assert all(os.path.exists(p) for p in a.paths)       # they are not ours to remove


def test_by_name_and_by_number(activated, tmp):
    a = activated("--nbd-server", "addr.type=fd,addr.str=web", "--nbd-server", "addr.type=fd,addr.str=3",
                  *disk_args(raw(tmp), "raw"), sockets=4, names="one:web:other:web")
    for path in (a.paths[0], a.paths[1], a.paths[3]):
        assert nbdraw.Conn(path).enter("disk").read(0, 512) == DATA[:512]
    silent = nbdraw.Conn(a.paths[2], timeout=0.3)        # the kernel takes it, nobody else
    with pytest.raises(TimeoutError):
        silent.recv(1)
    assert a.end() == 0


def test_unknown_name(activated, tmp):
    a = activated("--nbd-server", "addr.type=fd,addr.str=nope", *disk_args(raw(tmp), "raw"), names="one")
    assert a.wait() == 1
    assert "File descriptor named 'nope' not found" in a.stderr()


@pytest.mark.parametrize("listen_fds", ["x", "-1", "2000", "1 "])
def test_broken_number_of_descriptors(activated, tmp, listen_fds):
    a = subprocess.run(["/bin/sh", "-c", f"LISTEN_PID=$$ LISTEN_FDS='{listen_fds}' exec {program()} -r {raw(tmp)}"],
                       capture_output=True, text=True, timeout=HANG)
    assert a.returncode == 1 and "LISTEN_FDS" in a.stderr


def test_meant_for_another_process(activated, tmp):
    """As if a shell had been started by systemd: its children are not meant."""
    a = activated("-r", "-k", tmp / "own", raw(tmp), pid=1)
    assert nbdraw.Conn(str(listening(tmp / "own", a.proc))).enter("").read(0, 512) == DATA[:512]
    silent = nbdraw.Conn(a.paths[0], timeout=0.3)
    with pytest.raises(TimeoutError):
        silent.recv(1)
    assert a.end() == 0


def test_stop_leaves_a_shared_socket_listening(activated, tmp):
    """systemd holds the same socket, and starts us again when the next client comes."""
    a = activated("--chardev", f"socket,id=m,path={tmp}/qmp,server=on,wait=off", "--monitor", "m", "--nbd-server",
                  "addr.type=fd,addr.str=3", *disk_args(raw(tmp), "raw"))
    busy = nbdraw.Conn(a.paths[0]).enter("disk")
    qmp = QMP(f"{tmp}/qmp")
    qmp.cmd("nbd-server-stop")
    assert busy.closed_by_server()
    waiting = nbdraw.Conn(a.paths[0], timeout=HANG)        # connected, and somebody may accept it
    a.sockets[0].settimeout(HANG)
    taken, _ = a.sockets[0].accept()
    taken.close()
    with pytest.raises(nbdraw.Closed):
        waiting.recv(1)
    qmp.cmd("nbd-server-start", {"addr": {"type": "fd", "data": {"str": "3"}}})
    qmp.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "disk"})
    assert nbdraw.Conn(a.paths[0]).enter("disk").read(0, 512) == DATA[:512]
    qmp.close()
    assert a.end() == 0


def test_not_a_listening_socket(tmp):
    here, there = socket.socketpair()
    with here, there:
        done = subprocess.run([program(), "--nbd-server", f"addr.type=fd,addr.str={here.fileno()}"],
                              pass_fds=[here.fileno()], capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 1 and "not a listening socket" in done.stderr


# --- sd_notify

def lines_of(sock):
    return dict(line.split("=", 1) for line in sock.recv(4096).decode().splitlines())


@pytest.mark.parametrize("abstract", [False, True])
def test_notify(activated, tmp, abstract):
    name = f"\0merino-{os.getpid()}" if abstract else str(tmp / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name)
        manager.settimeout(HANG)
        a = activated("-r", raw(tmp), env={"NOTIFY_SOCKET": name.replace("\0", "@")})
        ready = lines_of(manager)
        assert ready["READY"] == "1" and ready["MAINPID"] == str(a.proc.pid) and "1 export" in ready["STATUS"]
        a.proc.send_signal(signal.SIGTERM)
        assert lines_of(manager)["STOPPING"] == "1"
        assert a.wait() == 0


def test_notify_only_when_it_serves(activated, tmp):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp / "notify"))
        a = activated("-r", tmp / "missing.raw", env={"NOTIFY_SOCKET": str(tmp / "notify")})
        assert a.wait() == 1
        manager.settimeout(0.1)
        assert "READY" not in lines_of(manager)          # STOPPING it is


@contextlib.contextmanager
def stopped(pid, name):
    """The process's thread of that name stands still."""
    tids = wait_until(lambda: [int(t) for t in os.listdir(f"/proc/{pid}/task")
                               if content(f"/proc/{pid}/task/{t}/comm") == name])
    tid = min(tids, key=lambda t: began(pid, t))         # its workers have its name, and are younger
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(16, tid, None, None):                 # PTRACE_ATTACH
        pytest.skip("no thread can be stopped here")
    os.waitpid(tid, 0x40000000)                          # __WALL
    try:
        yield
    finally:
        libc.ptrace(17, tid, None, None)                 # PTRACE_DETACH


def began(pid, tid):
    stat = content(f"/proc/{pid}/task/{tid}/stat")
    return (int(stat.rpartition(")")[2].split()[19]) if stat else float("inf")), tid


def content(path):
    """None, where the thread has gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(path) as f:
        return f.read().strip()


@pytest.mark.parametrize("thread", ["disk1", "IO x"])
def test_watchdog_asks_every_loop(activated, tmp, thread):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp / "notify"))
        manager.settimeout(HANG)
        a = activated("--loops", "2", "--object", "iothread,id=x", "-r", raw(tmp),
                      env={"NOTIFY_SOCKET": str(tmp / "notify"), "WATCHDOG_USEC": "100000"})
        assert "READY" in lines_of(manager)
        with stopped(a.proc.pid, thread):
            with pytest.raises(BlockingIOError):         # what came until now
                manager.setblocking(False)
                while True:
                    lines_of(manager)
            manager.settimeout(0.7)
            with pytest.raises(TimeoutError):
                for _ in range(5):                       # some may be on their way
                    lines_of(manager)
        manager.settimeout(HANG)
        assert lines_of(manager) == {"WATCHDOG": "1"}
        assert a.end() == 0


def test_watchdog(activated, tmp):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp / "notify"))
        manager.settimeout(HANG)
        a = activated("--loops", "3", "-r", raw(tmp), env={"NOTIFY_SOCKET": str(tmp / "notify"),
                                                           "WATCHDOG_USEC": "100000"})
        assert "READY" in lines_of(manager)
        for _ in range(5):
            assert lines_of(manager) == {"WATCHDOG": "1"}
        assert a.end() == 0


def test_watchdog_of_another_process(activated, tmp):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp / "notify"))
        manager.settimeout(HANG)
        activated("-r", raw(tmp), env={"NOTIFY_SOCKET": str(tmp / "notify"), "WATCHDOG_USEC": "20000",
                                       "WATCHDOG_PID": "1"})
        assert "READY" in lines_of(manager)
        manager.settimeout(0.3)
        with pytest.raises(TimeoutError):
            manager.recv(4096)


# --- vsock

def vsock_loopback():
    """Whether this machine lets one of its sockets reach another: the vsock_loopback module."""
    try:
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as s, \
             socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as c:
            s.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
            s.listen()
            c.settimeout(1)
            c.connect((1, s.getsockname()[1]))
            return True
    except OSError:
        return False


def vsock_listens():
    try:
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as s:
            s.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
            return True
    except OSError:
        return False


@pytest.fixture
def vsock_port():
    return free_port(socket.AF_VSOCK, socket.VMADDR_CID_ANY)


@pytest.mark.skipif(not vsock_loopback(), reason="no vsock loopback on this machine")
def test_vsock_serves(daemon, tmp, vsock_port):
    d = daemon.start("--nbd-server", f"addr.type=vsock,addr.cid=4294967295,addr.port={vsock_port}",
                     *disk_args(raw(tmp), "raw"))
    assert tools.run("nbdinfo", "--size", f"nbd+vsock://1:{vsock_port}/disk").stdout == "4194304\n"
    d.stop()


@pytest.mark.skipif(not vsock_listens(), reason="no vsock on this machine")
def test_vsock_listens_and_stops(daemon, tmp, vsock_port):
    d = daemon.serve(raw(tmp), "raw")
    address = {"addr": {"type": "vsock", "data": {"cid": "4294967295", "port": str(vsock_port)}}}
    for _ in range(2):                                   # the port is free again after the stop
        d.qmp.cmd("nbd-server-start", address)
        with pytest.raises(QMPError, match="Failed to bind socket to 4294967295"):
            d.qmp.cmd("nbd-server-start", address)
        d.qmp.cmd("nbd-server-stop")


@pytest.mark.parametrize("cid, port, word", [("x", "1", "cid 'x'"), ("-1", "1", "cid '-1'"), ("4294967296", "1", "cid"),
                                             ("1", "", "port ''"), ("1", "1x", "port '1x'")])
def test_vsock_refusals(daemon, tmp, cid, port, word):
    d = daemon.serve(raw(tmp), "raw")
    with pytest.raises(QMPError, match=re.escape(f"Failed to parse {word}")):
        d.qmp.cmd("nbd-server-start", {"addr": {"type": "vsock", "data": {"cid": cid, "port": port}}})
