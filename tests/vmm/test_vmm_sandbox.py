# SPDX-License-Identifier: BSD-3-Clause
"""The sandbox of merino-vmm: what the process still has when its guest runs, and that all a machine does works in it."""

import contextlib
import os
import pathlib
import re
import resource
import signal
import socket
import subprocess
import sys
import time

import pytest

from lib import qmp, tools, vmm
from lib.daemon import content_of, die_with_parent, disk_args, wait_unlocked
from lib.daemon import program as daemon_program
from lib.machines import finishes, requests
from lib.patience import HANG

pytestmark = pytest.mark.merino_only


@pytest.fixture
def machine(tmp):
    """Starts machines with the filter's debug mode, so that a failure says which call it was."""
    vmm.need_kvm()
    started = []

    def start(words="hang", *options, sandbox="trap", **kw):
        started.append(vmm.Vmm(tmp, words, "--sandbox", sandbox, *options, **kw))
        return started[-1]

    yield start
    for m in started:
        m.end()


@pytest.fixture
def disk(daemon, tmp):
    image = tools.create(tmp / "a.raw", "4M", "raw")
    d = daemon.start("--blockdev", f"driver=raw,node-name=vda,file.driver=file,file.filename={image}",
                     "--export", "type=nbd,id=vda,node-name=vda,writable=on")
    return f"nbd+unix:///vda?socket={d.nbd_address}"


def threads(m, line):
    """The line of every thread's status but the kernel's own workers for a ring."""
    out = set()
    for t in pathlib.Path(f"/proc/{m.proc.pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):        # it has ended meanwhile
            if not (t / "comm").read_text().startswith("iou-"):
                out.add(re.search(rf"^{line}:[ \t]*(.*)$", (t / "status").read_text(), re.M).group(1).strip())
    return out


def descriptors(m):
    out = {}
    for fd in os.listdir(f"/proc/{m.proc.pid}/fd"):
        with contextlib.suppress(FileNotFoundError):    # it was closed meanwhile
            what = os.readlink(f"/proc/{m.proc.pid}/fd/{fd}")
            out[int(fd)] = re.sub(r":\[\d+\]$|:\d+$", "", what)
    return out


def writable(m, fd):
    with open(f"/proc/{m.proc.pid}/fdinfo/{fd}") as f:
        return int(re.search(r"^flags:\s*(\d+)", f.read(), re.M).group(1), 8) & os.O_ACCMODE != os.O_RDONLY


ANONYMOUS = {"anon_inode:[eventfd]", "anon_inode:[signalfd]", "anon_inode:[io_uring]", "anon_inode:kvm-vm",
             "anon_inode:kvm-vcpu", "socket", "/memfd:guest memory (deleted)"}


def test_all_threads(machine, disk):
    m = machine("hang", "--cpus", "2", "--disk", disk, "--net", "user", sandbox="on")
    m.says("hang")
    assert len(os.listdir(f"/proc/{m.proc.pid}/task")) >= 6
    assert threads(m, "Seccomp") == {"2"} and threads(m, "NoNewPrivs") == {"1"}
    assert resource.prlimit(m.proc.pid, resource.RLIMIT_CORE) == (1, 1)


def test_descriptors(machine, disk, tmp):
    """Nothing but sockets, memory, KVM and the serial line; what was left to it is gone."""
    (tmp / "initrd").write_bytes(b"nothing")
    secret = os.open("/etc/passwd", os.O_RDONLY)
    m = machine("hang", "--disk", disk, "--initrd", tmp / "initrd", "--console", f"unix:{tmp}/console",
                "--agent", f"unix:{tmp}/agent", inherit=secret)
    os.close(secret)
    m.says("hang")
    fds = descriptors(m)
    rest = {what for what in fds.values() if what not in ANONYMOUS}
    assert rest == {"/dev/null", str(vmm.payload()), str(tmp / "initrd"), str(m.serial_path), str(m.stderr_path)}
    for fd, what in fds.items():
        if what in (str(vmm.payload()), str(tmp / "initrd")):
            assert not writable(m, fd)


def test_fewer_descriptors(machine, tmp):
    """A machine that is never booted again has no file, and one with a socket for its serial line no standard input."""
    m = machine("hang", "--no-reboot", "--serial", f"unix:{tmp}/line")
    m.qmp.cmd("query-status")
    assert {w for w in descriptors(m).values() if w not in ANONYMOUS} == {"/dev/null", str(m.stderr_path)}
    assert os.readlink(f"/proc/{m.proc.pid}/fd/1") == "/dev/null"


def test_closed_standard_descriptors(tmp):
    """No device takes their place."""
    vmm.need_kvm()
    done = subprocess.run(["sh", "-c", 'exec "$@" <&- >&-', "sh", vmm.program(), "--kernel", vmm.payload(), "--append",
                           "count=1", "--serial", f"file:{tmp}/serial"], stderr=subprocess.PIPE, timeout=HANG)
    assert done.returncode == 0, done.stderr
    assert (tmp / "serial").read_text().endswith("PASS\n")


def test_off(machine):
    m = machine("hang", "--core", sandbox="off")
    m.says("hang")
    assert threads(m, "Seccomp") == {"0"} and threads(m, "NoNewPrivs") == {"0"}
    assert resource.prlimit(m.proc.pid, resource.RLIMIT_CORE) == resource.getrlimit(resource.RLIMIT_CORE)


@pytest.mark.parametrize("option, value, said", [
    ("--sandbox", "perhaps", "--sandbox: must be on, off or trap"),
    ("--user", "no-such-user", "there is no user 'no-such-user'"),
    ("--user", "0", "must not be root's"),
])
def test_wrong_options(tmp, option, value, said):
    done = subprocess.run([vmm.program(), "--kernel", vmm.payload(), option, value], capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, timeout=HANG)
    assert done.returncode == 1 and said in done.stderr


# --- another user


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")


@needs_root
def test_another_user(machine, disk, tmp):
    m = machine("hang", "--user", "65534:65533", "--disk", disk)
    m.says("hang")
    assert threads(m, "Uid") == {"\t".join(["65534"] * 4)} and threads(m, "Gid") == {"\t".join(["65533"] * 4)}
    assert threads(m, "Groups") == {""}
    for caps in "CapInh", "CapPrm", "CapEff", "CapAmb":
        assert threads(m, caps) == {"0" * 16}
    m.qmp.cmd("system_reset")
    m.wait(lambda: m.serial().count("hang\n") >= 2)
    m.qmp.cmd("quit")
    assert m.proc.wait(HANG) == 0, m.stderr()              # its socket stays: the directory is not that user's


# --- all that a machine does


def test_commands(machine, disk):
    """Every command that is the machine's own."""
    m = machine("hang", "--cpus", "2", "--name", "vm1", "--disk", disk)
    m.says("hang")
    for name in "query-status", "query-name", "query-version", "query-commands", "query-cpus-fast", "query-block":
        m.qmp.cmd(name)
    for _ in range(3):
        m.qmp.cmd("stop")
        m.qmp.cmd("cont")
    m.qmp.cmd("system_reset")
    m.wait(lambda: m.serial().count("hang\n") >= 2)
    m.qmp.cmd("system_powerdown")
    m.qmp.cmd("quit")
    m.ended()
    assert m.stderr() == ""


@pytest.mark.parametrize("engine", ["ring", "threads"])
def test_consoles(machine, tmp, engine, monkeypatch):
    """On sockets, with clients that come and go."""
    if engine == "threads":
        monkeypatch.setenv("MERINO_IO", "threads")
    m = machine("hang", "--serial", f"unix:{tmp}/line", "--console", f"unix:{tmp}/console", "--agent", f"unix:{tmp}/agent")
    m.qmp.cmd("query-status")
    for _ in range(2):
        for name in "line", "console", "agent":
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(str(tmp / name))
                s.send(b"x")
        with qmp.QMP(m.path) as other:
            other.cmd("query-status")
    m.qmp.cmd("quit")
    m.ended()
    assert not {"line", "console", "agent"} & set(os.listdir(tmp))


def test_signal(machine):
    m = machine("hang", "--serial", "none")
    m.qmp.cmd("query-status")
    m.proc.send_signal(signal.SIGTERM)
    m.ended()


# --- disks that are connected again


class Server:
    """A merinod that can be killed and started again at the same address."""

    def __init__(self, tmp, *listen, prefix=()):
        image = tools.create(tmp / "v.raw", "16M", "raw")
        self.pidfile, self.log = tmp / "server.pid", open(tmp / "server.stderr", "ab")
        self.argv = [*prefix, daemon_program(), "--pidfile", self.pidfile, *listen, *disk_args(image, "raw", "d")]
        self.start()

    def start(self):
        self.pidfile.unlink(missing_ok=True)
        self.proc = subprocess.Popen(list(map(str, self.argv)), stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
                                     preexec_fn=die_with_parent)
        end = time.monotonic() + HANG
        while not content_of(self.pidfile).strip():
            assert self.proc.poll() is None and time.monotonic() < end
            time.sleep(0.005)

    def kill(self):
        self.proc.kill()
        self.proc.wait()
        wait_unlocked(self.pidfile.parent)

    def end(self):
        self.kill()
        self.log.close()


@pytest.fixture
def server(tmp):
    started = []

    def start(*listen, **kw):
        started.append(Server(tmp, *listen, **kw))
        return started[-1]

    yield start
    for s in started:
        s.end()


def verifies(m, s, meanwhile=lambda: None):
    """The guest goes on after its server was killed and came back."""
    m.wait(lambda: requests(m))
    s.kill()
    m.wait(lambda: "no connection to" in m.stderr())
    meanwhile()
    s.start()
    m.wait(lambda: "connected to" in m.stderr())
    finishes(m)


GUEST = "disk=0 depth=8 verify=250000"


def test_reconnects_to_a_socket(machine, server, tmp):
    s = server("--nbd-server", f"addr.type=unix,addr.path={tmp}/nbd")
    verifies(machine(GUEST, "--disk", f"nbd+unix:///d?socket={tmp}/nbd,queues=1"), s)


@needs_root
def test_another_user_reconnects(machine, server, tmp):
    """Sockets that this user can reach, and its own that it may remove."""
    tmp.chmod(0o777)
    old = os.umask(0)
    try:
        s = server("--nbd-server", f"addr.type=unix,addr.path={tmp}/nbd")
        verifies(machine(GUEST, "--disk", f"nbd+unix:///d?socket={tmp}/nbd,queues=1", "--user", "65534"), s)
    finally:
        os.umask(old)


# --- names, in a network of their own with an /etc of their own


NAMESPACE = """
import fcntl, signal, socket, struct, subprocess, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
fcntl.ioctl(s, 0x8914, struct.pack("16sh14x", b"lo", 1))         # SIOCSIFFLAGS: up
s.bind(("127.0.0.1", 53))                                       # the name server, which says nothing
subprocess.run(["mount", "--bind", sys.argv[1], "/etc"], check=True)
print("ready", flush=True)
signal.pause()
"""


class Names:
    """A namespace whose /etc we write: files are replaced as an administrator's tools do it, by renaming."""

    def __init__(self, tmp):
        self.etc = tmp / "etc"
        self.etc.mkdir()
        self.write("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
        self.write("resolv.conf", "nameserver 127.0.0.1\n")
        self.write("passwd", "root:x:0:0::/root:/bin/sh\n")
        self.write("group", "root:x:0:\n")
        self.hosts("127.0.0.1 disk.test localhost")
        self.proc = subprocess.Popen(["unshare", "--net", "--mount", "--propagation", "private", sys.executable, "-c", NAMESPACE,
                                      self.etc], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, preexec_fn=die_with_parent)
        if self.proc.stdout.readline() != b"ready\n":
            self.end()
            pytest.skip("no namespaces here")
        self.prefix = ["nsenter", "--net", "--mount", "-t", str(self.proc.pid)]

    def write(self, name, text):
        (self.etc / "new").write_text(text)
        (self.etc / "new").rename(self.etc / name)

    def hosts(self, line):
        self.write("hosts", line + "\n")

    def end(self):
        self.proc.kill()
        self.proc.wait()
        self.proc.stdout.close()


@pytest.fixture
def names(tmp):
    if os.getuid() != 0:
        pytest.skip("a network of our own takes root")
    n = Names(tmp)
    yield n
    n.end()


LISTEN = ["--nbd-server", "addr.type=inet,addr.host=127.0.0.1,addr.port=10809"]


def looks_up(m):
    return any(content_of(t / "comm") == "lookup\n" for t in pathlib.Path(f"/proc/{m.proc.pid}/task").iterdir())


@pytest.mark.parametrize("tls", [False, True])
def test_reconnects_by_name(machine, server, names, pki, tls):
    """The file that has the name is another one by then.  Certificates are read again."""
    if tls:
        s = server(*pki.x509_object(), LISTEN[0], LISTEN[1] + ",tls-creds=tls", prefix=names.prefix)
        uri = f"nbds://localhost/d?tls-certificates={pki.root}/client"
    else:
        s = server(*LISTEN, prefix=names.prefix)
        uri = "nbd://disk.test/d"
    m = machine(GUEST, "--disk", uri + ",queues=1", prefix=names.prefix)
    verifies(m, s, lambda: names.hosts("127.0.0.1 localhost disk.test"))


def test_quit_while_the_resolver_is_silent(machine, server, names):
    """The disk waits, the machine does not: neither its commands, nor a reset, nor its end."""
    s = server(*LISTEN, prefix=names.prefix)
    m = machine("disk=0 verify=600000", "--disk", "nbd://disk.test/d,queues=1", prefix=names.prefix)
    m.says("disk 0:")
    names.hosts("127.0.0.1 localhost")
    s.kill()
    m.wait(lambda: looks_up(m))
    m.qmp.cmd("query-block")
    m.qmp.cmd("system_reset")
    m.wait(lambda: looks_up(m))
    m.qmp.cmd("quit")
    m.ended()


def test_end_while_it_starts(machine, names):
    """Before there is anything to connect to."""
    names.hosts("127.0.0.1 localhost")
    m = machine("hang", "--disk", "nbd://disk.test/d", prefix=names.prefix, wait=False)
    m.wait(lambda: looks_up(m))
    m.proc.send_signal(signal.SIGTERM)
    m.ended(1)
    assert "stopped by a signal" in m.stderr()
