# SPDX-License-Identifier: BSD-3-Clause
"""merino freeze and thaw, with a guest agent that is slow, dumb, hostile or well.  No machine: its directory."""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import threading
import time

import pytest

from lib import vmm
from lib.daemon import die_with_parent
from lib.patience import HANG, wait_until as wait

pytestmark = pytest.mark.merino_only

MERINO = str(vmm.BUILD / "merino")


class Agent(threading.Thread):
    """Answers as qemu-ga does, unless told otherwise; .log has the commands."""

    def __init__(self, base, name="vm1"):
        super().__init__(daemon=True)
        self.dir = base / name
        self.dir.mkdir(parents=True)
        base.chmod(0o700)
        self.lock = open(self.dir / "lock", "w")
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.dir / "agent"))
        self.listener.listen(4)
        self.log, self.frozen, self.dumb, self.prefix, self.errors, self.delay = [], 0, False, b"", {}, 0
        self.start()

    def run(self):
        while True:
            try:
                s, _ = self.listener.accept()
            except OSError:
                return
            with s, contextlib.suppress(OSError):
                self.serve(s)

    def serve(self, s):
        buffer = b""
        s.sendall(self.prefix)
        while True:
            got = s.recv(4096)
            if not got:
                return
            buffer += got.replace(b"\xff", b"")
            while b"\n" in buffer:
                line, _, buffer = buffer.partition(b"\n")
                answer = self.answer(json.loads(line))
                if not self.dumb:
                    s.sendall(answer)

    def answer(self, request):
        name = request["execute"]
        self.log.append(name)
        if name == "guest-sync-delimited":
            return b"\xff" + json.dumps({"return": request["arguments"]["id"]}).encode() + b"\n"
        if name in self.errors:
            return json.dumps({"error": {"class": "GenericError", "desc": self.errors[name]}}).encode() + b"\n"
        time.sleep(self.delay)
        self.frozen = 3 if name == "guest-fsfreeze-freeze" else 0
        return b'{"return": 3}\n'

    def end(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.lock.close()


@pytest.fixture
def agent(tmp):
    a = Agent(tmp / "run")
    yield a
    a.end()


def merino(tmp, verb, *args, **kw):
    return subprocess.run([MERINO, verb, "--run-dir", str(tmp / "run"), *args, "vm1"], capture_output=True, text=True,
                          timeout=HANG, **kw)


def test_freeze_and_thaw(agent, tmp):
    done = merino(tmp, "freeze", "--limit", "30")
    assert (done.returncode, done.stdout) == (0, "vm1: 3 file systems are frozen, for 30 s at most\n"), done.stderr
    assert agent.frozen and agent.log == ["guest-sync-delimited", "guest-fsfreeze-freeze"]
    again = merino(tmp, "freeze")
    assert again.returncode == 1 and "vm1 is frozen already" in again.stderr and agent.frozen
    done = merino(tmp, "thaw")
    assert (done.returncode, done.stdout) == (0, "vm1: 3 file systems go on\n")
    assert not agent.frozen and not (agent.dir / "frozen").exists()


def test_the_limit(agent, tmp):
    assert merino(tmp, "freeze", "--limit", "1").returncode == 0
    assert agent.log[:2] == ["guest-sync-delimited", "guest-fsfreeze-freeze"]
    wait(lambda: "guest-fsfreeze-thaw" in agent.log and not agent.frozen and not (agent.dir / "frozen").exists())


def test_the_guard_tries_again(agent, tmp):
    agent.errors["guest-fsfreeze-thaw"] = "not now"
    assert merino(tmp, "freeze", "--limit", "1").returncode == 0
    wait(lambda: agent.log.count("guest-fsfreeze-thaw") >= 2)
    assert agent.frozen
    agent.errors.clear()
    wait(lambda: not agent.frozen and not (agent.dir / "frozen").exists())


def test_killed_in_the_middle(agent, tmp):
    """kill -9 while the agent freezes: the guard thaws."""
    agent.delay = 1
    p = subprocess.Popen([MERINO, "freeze", "--run-dir", str(tmp / "run"), "--limit", "2", "vm1"],
                         stdout=subprocess.DEVNULL, preexec_fn=die_with_parent)
    wait(lambda: "guest-fsfreeze-freeze" in agent.log)
    p.send_signal(signal.SIGKILL)
    p.wait()
    agent.delay = 0
    wait(lambda: "guest-fsfreeze-thaw" in agent.log and not (agent.dir / "frozen").exists())
    assert not agent.frozen


def test_a_guard_leaves_a_later_freeze_alone(agent, tmp):
    assert merino(tmp, "freeze", "--limit", "2").returncode == 0
    assert merino(tmp, "thaw").returncode == 0
    assert merino(tmp, "freeze", "--limit", "30").returncode == 0
    time.sleep(2.5)
    assert agent.frozen
    assert merino(tmp, "thaw").returncode == 0


def test_no_agent(agent, tmp):
    agent.dumb = True
    done = merino(tmp, "freeze", "--timeout", "1")
    assert done.returncode == 1 and "the guest agent does not answer" in done.stderr
    assert "guest-fsfreeze-freeze" not in agent.log and not (agent.dir / "frozen").exists()


def test_a_freeze_that_fails(agent, tmp):
    agent.errors["guest-fsfreeze-freeze"] = "failed to freeze /srv: busy"
    done = merino(tmp, "freeze")
    assert done.returncode == 1 and "guest-fsfreeze-freeze: failed to freeze /srv: busy" in done.stderr
    assert agent.log[-1] == "guest-fsfreeze-thaw" and not (agent.dir / "frozen").exists()


def test_a_freeze_that_takes_too_long(agent, tmp):
    agent.delay = 3
    done = merino(tmp, "freeze", "--limit", "1")
    assert done.returncode == 1 and "the guest agent does not answer" in done.stderr
    agent.delay = 0
    wait(lambda: agent.log[-1] == "guest-fsfreeze-thaw" and not agent.frozen and not (agent.dir / "frozen").exists())


@pytest.mark.parametrize("noise", [b'{"return": 1}\n{"return": {}}\n', b"\xff\x00\x01garbage{{{", b"[" * 100000,
                                   b'{"return": "' + b"x" * 100000],
                         ids=["answers", "garbage", "brackets", "text"])
def test_what_was_said_to_others(agent, tmp, noise):
    """Answers to earlier clients, and noise, before ours."""
    agent.prefix = noise
    done = merino(tmp, "freeze")
    assert done.returncode == 0, done.stderr
    assert merino(tmp, "thaw").returncode == 0


def test_no_machine(tmp):
    for verb in "freeze", "thaw":
        done = merino(tmp, verb)
        assert done.returncode == 1 and "no machine 'vm1' runs" in done.stderr
    assert not (tmp / "run").exists()
    assert os.listdir(tmp) == []
