# SPDX-License-Identifier: BSD-3-Clause
"""A machine's serial line on a terminal: in the sandbox, as another user, by merino run and merino console."""

import contextlib
import os
import re
import select
import subprocess
import termios
import time

import pytest

from lib import vmm
from lib.daemon import REPORT, die_with_parent
from lib.patience import HANG, wait_until

pytestmark = pytest.mark.merino_only

MERINO = str(vmm.BUILD / "merino")
ECHOES, ATTENTION, LEAVE = b"hello", b"\x01", b"\x1d"


class Terminal:
    """A program on a pseudoterminal; .said is what came to it."""

    def __init__(self, tmp, *argv):
        self.master, self.slave = os.openpty()
        self.before, self.said = termios.tcgetattr(self.slave), b""
        self.errors = tmp / "terminal.stderr"
        with open(self.errors, "wb") as err:
            self.proc = subprocess.Popen(list(map(str, argv)), stdin=self.slave, stdout=self.slave, stderr=err,
                                         preexec_fn=die_with_parent)

    def hears(self, text):
        """Waits for TEXT behind what was waited for before."""
        end = time.monotonic() + HANG
        while text not in self.said:
            left = end - time.monotonic()
            ready = select.select([self.master], [], [], min(max(left, 0), 0.1))[0]
            assert ready or (left > 0 and self.proc.poll() is None), (text, self.said, self.stderr())
            if ready:
                self.said += os.read(self.master, 65536)
        self.said = self.said.partition(text)[2]

    def types(self, keys):
        os.write(self.master, keys)

    def is_raw(self):
        return not termios.tcgetattr(self.slave)[3] & (termios.ECHO | termios.ICANON | termios.ISIG)

    def stderr(self):
        return self.errors.read_text(errors="replace")

    def ends(self, status=0):
        """By itself; the terminal is as it was."""
        def drained():
            if select.select([self.master], [], [], 0)[0]:
                os.read(self.master, 65536)
            return self.proc.poll() is not None
        wait_until(drained)
        assert self.proc.returncode == status and not REPORT.search(self.stderr()), self.stderr()
        assert termios.tcgetattr(self.slave) == self.before

    def close(self):
        self.proc.kill()
        self.proc.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal(tmp):
    vmm.need_kvm()
    with contextlib.ExitStack() as stack:
        def start(*argv):
            t = Terminal(tmp, *argv)
            stack.callback(t.close)
            return t
        yield start


def echoes(t):
    t.hears(b"echo")
    assert t.is_raw()
    t.types(ECHOES)
    t.hears(ECHOES)


@pytest.mark.parametrize("user", [[], ["--user", "65534"]], ids=["", "user"])
def test_stdio(terminal, user):
    if user and os.getuid() != 0:
        pytest.skip("only root can become another user")
    t = terminal(vmm.program(), "--kernel", vmm.payload(), "--append", "echo", "--sandbox", "trap", *user)
    echoes(t)
    t.types(ATTENTION + b"h")
    wait_until(lambda: "^A x ends the machine" in t.stderr())
    t.types(ATTENTION + ATTENTION)
    t.hears(ATTENTION)
    t.types(ATTENTION + b"x")
    t.ends()


def test_the_guest_ends(terminal):
    t = terminal(vmm.program(), "--kernel", vmm.payload(), "--append", "echo", "--sandbox", "trap")
    echoes(t)
    t.types(b"q")
    t.hears(b"PASS")
    t.ends()


def test_run(terminal, tmp):
    t = terminal(MERINO, "run", "--run-dir", tmp / "run", "--kernel", vmm.payload(), "--append", "echo", "--memory", "64M")
    echoes(t)
    t.types(ATTENTION + b"x")
    t.ends()
    assert os.listdir(tmp / "run") == []


def test_console(terminal, tmp):
    """Somebody looks in, leaves, and another one comes: the machine goes on."""
    def merino(verb, *args):
        return subprocess.run([MERINO, verb, "--run-dir", tmp / "run", *args], capture_output=True, text=True, check=True,
                              timeout=HANG, stdin=subprocess.DEVNULL).stdout
    merino("run", "--detach", "--name", "vm1", "--kernel", vmm.payload(), "--append", "echo", "--memory", "64M")
    try:
        for _ in range(2):
            t = terminal(MERINO, "console", "--run-dir", tmp / "run", "vm1")
            wait_until(t.is_raw)
            t.types(ECHOES)
            t.hears(ECHOES)
            t.types(LEAVE)
            t.ends()
            assert re.match("vm1: running", merino("status", "vm1"))
    finally:
        merino("stop", "--force", "vm1")
