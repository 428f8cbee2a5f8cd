# SPDX-License-Identifier: BSD-3-Clause
"""Machines of tests/vmm together with the merinods that serve their disks."""

import contextlib
import re
import signal
import subprocess
import time

import pytest

from lib import cutter, daemon, stages, tools, vmm
from lib.patience import HANG, wait_until

SIZE = 64 << 20


class Server:
    """A merinod that can be killed and started again on the same socket."""

    def __init__(self, tmp, fmt="raw", size=SIZE, writable=True, socket="nbd", blockdev=None):
        """BLOCKDEV: options of the node "d", when it is no image."""
        self.image, self.socket, self.fmt, self.writable = tmp / f"disk.{fmt}", tmp / socket, fmt, writable
        self.blockdev = blockdev
        self.log = open(tmp / f"{socket}.stderr", "ab")
        if not blockdev and not self.image.exists():
            tools.run("qemu-img", "create", "-q", "-f", fmt, self.image, size)
        self.start()

    def disk_args(self):
        if self.blockdev:
            return ["--blockdev", self.blockdev, "--export", "type=nbd,id=d,node-name=d,writable=on"]
        return daemon.disk_args(self.image, self.fmt, "d", self.writable)

    def start(self):
        pid = self.socket.with_suffix(".pid")
        pid.unlink(missing_ok=True)
        argv = [daemon.program(), "--nbd-server", f"addr.type=unix,addr.path={self.socket}",
                *self.disk_args(), "--pidfile", pid]
        self.proc = subprocess.Popen([str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=self.log,
                                     stderr=self.log, preexec_fn=daemon.die_with_parent)
        wait_until(lambda: daemon.content_of(pid) or self.proc.poll() is not None)
        assert self.proc.poll() is None

    def kill(self, signo=signal.SIGKILL):
        self.proc.send_signal(signo)
        self.proc.wait()
        daemon.wait_unlocked(self.image.parent)

    def uri(self, socket=None, more=""):
        return f"nbd+unix:///d?socket={socket or self.socket}{more and ',' + more}"

    def end(self):
        if self.proc.poll() is None:
            self.kill(signal.SIGTERM)
            assert self.proc.returncode == 0
        self.log.close()


@pytest.fixture
def world(tmp):
    """What a test starts is ended in reverse order."""
    vmm.need_kvm()
    with contextlib.ExitStack() as stack:
        class World:
            dir = tmp

            def server(self, **kw):
                s = Server(tmp, **kw)
                stack.callback(s.end)
                return s

            def machine(self, words, *disks, **kw):
                """DISKS, and options behind them."""
                n = next((i for i, d in enumerate(disks) if d.startswith("--")), len(disks))
                m = vmm.Vmm(tmp, words, *sum((["--disk", d] for d in disks[:n]), []), *disks[n:], **kw)
                stack.callback(m.end)
                return m

            def cutter(self, server, seed=1):
                c = cutter.Cutter(tmp / "cut", server.socket, seed)
                stack.callback(c.close)
                return c

            def stages(self, server, name="staged"):
                c = stages.Stages(tmp / name, server.socket)
                stack.callback(c.close)
                return c
        yield World()


def passes(m, timeout=HANG):
    """The payload is content, and the machine ends by itself."""
    m.proc.wait(timeout)
    text = m.serial()
    assert text.endswith("PASS\n"), text[-500:] + m.stderr()
    m.ended()
    return text


def finishes(m):
    """A guest that verifies is told that it is enough; it reads everything once more."""
    m.qmp.cmd("system_powerdown")
    return passes(m)


def requests(m):
    """How many the guest has seen answered, in round numbers."""
    return int(([0] + re.findall(r"verified (\d+)", m.serial()))[-1])


def quits_soon(start):
    """The machine that START gives, with its proxies, ends when it is told.

    Five seconds are the promise; where much else is to be done it may be late, but not again and again."""
    for _ in range(4):
        m, proxies = start()
        began = time.monotonic()
        m.qmp.cmd("quit")
        m.ended(timeout=HANG)
        took = time.monotonic() - began
        for c in proxies:
            c.close()
        if took < 5:
            return
    raise AssertionError("it took more than 5 s, four times")
