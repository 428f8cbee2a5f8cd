# SPDX-License-Identifier: BSD-3-Clause
"""The daemon under test: starting it, reaching it, and a strict look at how it ends.

MERINOD names the program (default: merinod in $BUILD or build/); MERINOD_WRAPPER is put before it (valgrind ...).  It may be qemu-storage-daemon, whose command line
and QMP commands merinod takes over; that is how the tests themselves are validated.
Every daemon must exit 0 on SIGTERM with no report of a sanitizer or assertion, or the test that started it fails.
"""

import contextlib
import ctypes
import glob
import os
import pathlib
import random
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import time
import urllib.parse

import nbd

from lib import nbdraw, qmp
from lib.patience import HANG, wait_until

ROOT = pathlib.Path(__file__).resolve().parents[2]
REPORT = re.compile(r"(Address|Leak|Thread|Memory|UndefinedBehavior)Sanitizer|runtime error:|[Aa]ssertion .*failed")


def program():
    """The path of the program under test, or None when it is not there."""
    name = os.environ.get("MERINOD")
    if name is None:
        build = pathlib.Path(os.environ.get("BUILD", "build"))
        name = str(build / "merinod" if build.is_absolute() else ROOT / build / "merinod")
    return shutil.which(name)


def is_qsd():
    """Is the program under test QEMU's?"""
    return "qemu-storage-daemon" in (program() or "")


PRCTL = ctypes.CDLL(None).prctl                          # found before anybody forks, perhaps among threads


def die_with_parent():
    """No daemon outlives a test run, however that ends."""
    PRCTL(1, signal.SIGKILL)                             # PR_SET_PDEATHSIG


def sanitized():
    """Is it built with a sanitizer, which needs memory of its own?"""
    with open(program(), "rb") as f:
        return bool(re.search(rb"__(a|t|m)san_init", f.read()))


def differs(ours, qemu):
    """What to expect where QEMU 7.2 is known to answer something else."""
    return qemu if is_qsd() else ours


PORTS = []


def free_port(family=socket.AF_INET, host="127.0.0.1"):
    """A TCP port (or vsock's) that nobody takes before its user does: below those that the kernel gives to clients, and
    marked as taken, for all who run tests on this machine, until this process ends."""
    with open("/proc/sys/net/ipv4/ip_local_port_range") as f:
        first = int(f.read().split()[0])
    while True:
        port = random.randrange(min(10000, first // 2), min(first, 65536))
        mark = socket.socket(socket.AF_UNIX)
        with socket.socket(family) as s:
            try:
                mark.bind(f"\0merino-test-port-{port}")
                s.bind((host, port))
            except OSError:
                mark.close()
                continue
        PORTS.append(mark)
        return port


def content_of(path):
    """The file's text; none where it is missing, or goes away just now, as a thread of /proc does."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def gone(pid):
    """Whether a process that is nobody's child has ended, also where nobody has asked for its status yet."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def locked(locks):
    """The inodes that open files hold locks on, by lines as /proc/locks and fdinfo have them."""
    # [lock:] N: OFDLCK ADVISORY READ -1 MAJOR:MINOR:INODE START END; a waiting one has "->" behind N:
    return {int(w[-3].rsplit(":")[-1]) for w in map(str.split, locks) if "OFDLCK" in w}


def locked_by_processes():
    """The same of all that live."""
    out = set()
    for info in glob.iglob("/proc/[0-9]*/fdinfo/*"):
        with contextlib.suppress(OSError), open(info) as f:
            out |= locked(line for line in f if line.startswith("lock:"))
    return out


def inodes(paths):
    """Those of the files and devices that are there."""
    out = set()
    for p in paths:
        with contextlib.suppress(OSError):
            st = os.stat(p)
            if stat.S_ISREG(st.st_mode) or stat.S_ISBLK(st.st_mode):
                out.add(st.st_ino)
    return out


def wait_unlocked(directory, held=frozenset()):
    """The kernel closes a process's ring, and the images that it holds, some time after the process's end.
    HELD: inodes of others than those in DIRECTORY."""
    ours = held | inodes(os.path.join(d, name) for d, _, names in os.walk(directory) for name in names)

    def nobodys():
        with open("/proc/locks") as f:
            left = locked(f) & ours
        return not left or left <= locked_by_processes()
    wait_until(nobodys, why="a process that is gone holds images")


class DidNotStart(Exception):
    """The daemon ended before it was ready; .status and .stderr tell how."""

    def __init__(self, status, stderr):
        super().__init__(f"exit {status}: {stderr}")
        self.status, self.stderr = status, stderr


class Daemon:
    """One process.  Options are given in the order in which it is to process them."""

    def __init__(self, directory, argv, nbd_address, qmp_path):
        self.dir, self.nbd_address, self.qmp_path = directory, nbd_address, qmp_path
        self.argv = argv
        self.clients = []
        self.monitor = None
        self.ended = False
        self.stderr_path = directory / "stderr"
        with open(self.stderr_path, "wb") as err:
            self.proc = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=err, stderr=err,
                                         preexec_fn=die_with_parent)

    # --- life

    def wait_ready(self, pidfile, timeout=HANG):
        """The pid file is written last of all, when everything asked for is in place."""
        end = time.monotonic() + timeout
        while not content_of(pidfile).strip():
            status = self.proc.poll()
            if status is not None:
                self.ended = True
                self.no_reports()
                raise DidNotStart(status, self.stderr())
            if time.monotonic() > end:
                self.kill()
                raise AssertionError(f"{self.argv} is not ready after {timeout} s:\n{self.stderr()}")
            time.sleep(0.005)

    def stderr(self):
        return self.stderr_path.read_text(errors="replace")

    def no_reports(self):
        text = self.stderr()
        assert not REPORT.search(text), text

    def wait_end(self, timeout=HANG):
        """It was told to end: it must do so by itself, with status 0."""
        try:
            status = self.proc.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.argv[0]} did not end within {timeout} s:\n{self.stderr()}") from None
        self.ended = True
        wait_unlocked(self.dir.parent)
        self.close_clients()
        assert status == 0, f"{self.argv[0]} ended with {status}:\n{self.stderr()}"
        self.no_reports()

    def stop(self):
        """SIGTERM and a clean end; a second call does nothing."""
        if not self.ended:
            self.proc.send_signal(signal.SIGTERM)
            self.wait_end()

    def kill(self):
        """kill -9: the process dies where it stands."""
        if not self.ended:
            held = inodes(glob.glob(f"/proc/{self.proc.pid}/fd/*"))      # devices, too
            self.proc.kill()
            self.proc.wait()
            self.ended = True
            wait_unlocked(self.dir.parent, held)
        self.close_clients()

    def close_clients(self):
        for c in self.clients:
            c.close()
        self.clients = []
        self.monitor = None

    def alive(self):
        return self.proc.poll() is None

    # --- what it costs; where a sanitizer has costs of its own, memory and time are 0

    def memory(self, line="VmRSS"):
        """Resident bytes now; "VmHWM": the most they ever were."""
        with open(f"/proc/{self.proc.pid}/status") as f:
            return 0 if sanitized() else int(f.read().partition(line + ":")[2].split()[0]) << 10

    def cpu_seconds(self):
        with open(f"/proc/{self.proc.pid}/stat") as f:
            ticks = f.read().rpartition(")")[2].split()[11:13]
        return 0 if sanitized() else sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.proc.pid}/fd"))

    # --- clients

    def connect(self, **kw):
        """A raw NBD connection that has not said anything yet."""
        c = nbdraw.Conn(self.nbd_address, **kw)
        self.clients.append(c)
        return c

    def enter(self, name="disk", contexts=(), structured=True, extended=False):
        """A raw NBD connection in transmission."""
        return self.connect().enter(name, contexts, structured, extended)

    @property
    def qmp(self):
        """One monitor client, made at the first use (QEMU serves one per socket)."""
        if self.monitor is None:
            self.monitor = self.connect_qmp()
        return self.monitor

    def connect_qmp(self, negotiate=True):
        c = qmp.QMP(self.qmp_path, negotiate=negotiate)
        self.clients.append(c)
        return c

    def uri(self, name="disk"):
        quoted = urllib.parse.quote(name)
        if isinstance(self.nbd_address, str):
            return f"nbd+unix:///{quoted}?socket={self.nbd_address}"
        return f"nbd://{self.nbd_address[0]}:{self.nbd_address[1]}/{quoted}"

    def libnbd(self, name="disk", contexts=()):
        """A connected libnbd handle."""
        h = nbd.NBD()
        for c in contexts:
            h.add_meta_context(c)
        h.connect_uri(self.uri(name))
        return h


class Factory:
    """Starts daemons in one private directory and ends them all."""

    def __init__(self, directory):
        self.dir = directory
        self.all = []

    def start(self, *args, listen="unix", monitor=True):
        """ARGS after the listener and the monitor.  LISTEN: "unix", "inet" or None; MONITOR: have a QMP socket."""
        here = self.dir / f"d{len(self.all)}"
        here.mkdir()
        argv, address, qmp_path = [*shlex.split(os.environ.get("MERINOD_WRAPPER", "")), program()], None, None
        if monitor:
            qmp_path = str(here / "qmp")
            argv += ["--chardev", f"socket,id=mon0,path={qmp_path},server=on,wait=off",
                     "--monitor", "chardev=mon0"]
        if listen == "unix":
            address = str(here / "nbd")
            argv += ["--nbd-server", f"addr.type=unix,addr.path={address}"]
        elif listen == "inet":
            address = ("127.0.0.1", free_port())
            argv += ["--nbd-server", f"addr.type=inet,addr.host={address[0]},addr.port={address[1]}"]
        pidfile = here / "pid"
        d = Daemon(here, argv + [str(a) for a in args] + ["--pidfile", str(pidfile)], address, qmp_path)
        self.all.append(d)
        d.wait_ready(pidfile)
        return d

    def serve(self, path, fmt="qcow2", name="disk", writable=True, bitmaps=(), blockdev="", export="", **kw):
        """One image, node and export named NAME.  BLOCKDEV, EXPORT: further keys of these options."""
        return self.start(*disk_args(path, fmt, name, writable, bitmaps, blockdev, export), **kw)

    def end(self):
        """Stop what still runs; every daemon is ended even when one of them did not end well."""
        failures = []
        try:
            for d in self.all:
                d.close_clients()
                try:
                    d.stop()
                except AssertionError as e:
                    failures.append(str(e))
        finally:
            for d in self.all:                           # a time limit may have struck above
                d.kill()
        assert not failures, "\n".join(failures)


def blockdev(path, fmt, node, writable=True, extra=""):
    """The value of --blockdev, with discards let through to the file as VMs are set up today."""
    read_only = "" if writable else ",read-only=on,file.read-only=on"
    return (f"driver={fmt},node-name={node},discard=unmap,file.driver=file,file.filename={path},"
            f"file.discard=unmap{read_only}{extra and ',' + extra}")


def disk_args(path, fmt="qcow2", name="disk", writable=True, bitmaps=(), extra="", export=""):
    """--blockdev and --export of one disk."""
    contexts = "".join(f",bitmaps.{i}={b}" for i, b in enumerate(bitmaps))
    return ["--blockdev", blockdev(path, fmt, name, writable, extra),
            "--export", f"type=nbd,id={name},node-name={name},name={name},"
                        f"writable={'on' if writable else 'off'}{contexts}{export and ',' + export}"]
