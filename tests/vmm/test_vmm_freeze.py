# SPDX-License-Identifier: BSD-3-Clause
"""merino freeze and thaw, with a guest agent that is slow, dumb, hostile or well.  No machine: its directory."""

import fcntl
import os
import pathlib
import select
import signal
import subprocess
import time

import pytest

from lib import vmm
from lib.agent import Agent
from lib.daemon import die_with_parent
from lib.patience import HANG, wait_until as wait

pytestmark = pytest.mark.merino_only

MERINO = str(vmm.BUILD / "merino")
SOON = "3"                      # a limit that is to run out, within which an agent that is well does answer
SYNC, STATUS, FREEZE, THAW = "guest-sync-delimited", "guest-fsfreeze-status", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"


class Machine(Agent):
    """The directory of a machine that runs, and its agent."""

    def __init__(self, base, name="vm1"):
        self.dir = base / name
        self.dir.mkdir(parents=True)
        base.chmod(0o700)
        self.lock = open(self.dir / "lock", "w")
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        super().__init__(self.dir / "agent")

    def end(self):
        super().end()
        self.lock.close()


@pytest.fixture
def agent(tmp):
    a = Machine(tmp / "run")
    yield a
    a.end()


def merino(tmp, verb, *args, **kw):
    return subprocess.run([MERINO, verb, "--run-dir", str(tmp / "run"), *args, "vm1"], capture_output=True, text=True,
                          timeout=HANG, **kw)


def freeze_soon_over(agent, tmp):
    """Frozen, for SOON.  A machine that stands still for that long makes it fail; then again."""
    while (done := merino(tmp, "freeze", "--limit", SOON)).returncode:
        assert "the guest agent does not answer" in done.stderr, done.stderr
        errors, agent.errors = agent.errors, {}
        wait(lambda: not agent.frozen and not (agent.dir / "frozen").exists())
        agent.errors = errors
        agent.log.clear()


def test_freeze_and_thaw(agent, tmp):
    done = merino(tmp, "freeze", "--limit", "600")
    assert (done.returncode, done.stdout) == (0, "vm1: 3 file systems are frozen, for 600 s at most\n"), done.stderr
    assert agent.frozen and agent.log == [SYNC, STATUS, FREEZE]
    again = merino(tmp, "freeze")
    assert again.returncode == 1 and "vm1 is frozen already" in again.stderr and agent.frozen
    done = merino(tmp, "thaw")
    assert (done.returncode, done.stdout) == (0, "vm1: 3 file systems go on\n")
    assert not agent.frozen and not (agent.dir / "frozen").exists()


def test_the_limit(agent, tmp):
    freeze_soon_over(agent, tmp)
    assert agent.log[:3] == [SYNC, STATUS, FREEZE]
    wait(lambda: THAW in agent.log and not agent.frozen and not (agent.dir / "frozen").exists())


def test_the_guard_tries_again(agent, tmp):
    agent.errors[THAW] = "not now"
    freeze_soon_over(agent, tmp)
    wait(lambda: agent.log.count(THAW) >= 2)
    assert agent.frozen
    agent.errors.clear()
    wait(lambda: not agent.frozen and not (agent.dir / "frozen").exists())


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=lambda s: s.name)
def test_killed_in_the_middle(agent, tmp, how):
    """While the agent freezes: the guard does not wait for an hour."""
    agent.hold = True
    p = subprocess.Popen([MERINO, "freeze", "--run-dir", str(tmp / "run"), "--limit", "3600", "vm1"],
                         stdout=subprocess.DEVNULL, preexec_fn=die_with_parent)
    wait(lambda: FREEZE in agent.log)
    p.send_signal(how)
    p.wait(HANG)
    wait(lambda: THAW in agent.log and not (agent.dir / "frozen").exists())
    assert not agent.frozen


def test_the_guard_is_told_to_end(agent, tmp):
    """As by systemd, of what a unit has left: it thaws first.  It holds nothing of its caller's."""
    r, w = os.pipe()
    assert merino(tmp, "freeze", "--limit", "3600", cwd=tmp, pass_fds=[w]).returncode == 0
    os.close(w)
    assert select.select([r], [], [], HANG)[0] and os.read(r, 1) == b"" and agent.frozen
    os.close(r)
    (guard,) = [int(p.name) for p in pathlib.Path("/proc").glob("[0-9]*") if works_in(p, tmp)]
    os.kill(guard, signal.SIGTERM)
    wait(lambda: THAW in agent.log and not agent.frozen and not (agent.dir / "frozen").exists())
    wait(lambda: not works_in(pathlib.Path(f"/proc/{guard}"), tmp))


def works_in(proc, folder):
    try:
        return os.readlink(proc / "cwd") == str(folder)
    except OSError:                 # it has ended
        return False


def test_a_guest_that_others_have_frozen(agent, tmp):
    """It is theirs to thaw."""
    agent.frozen = 3
    done = merino(tmp, "freeze")
    assert done.returncode == 1 and "somebody else has frozen the guest" in done.stderr
    assert agent.frozen == 3 and agent.log == [SYNC, STATUS] and not (agent.dir / "frozen").exists()


def test_a_guard_leaves_a_later_freeze_alone(agent, tmp):
    freeze_soon_over(agent, tmp)
    assert merino(tmp, "thaw").returncode == 0
    assert merino(tmp, "freeze", "--limit", "3600").returncode == 0
    time.sleep(int(SOON) + 0.5)
    assert agent.frozen
    assert merino(tmp, "thaw").returncode == 0


def test_no_agent(agent, tmp):
    agent.dumb.add("")
    done = merino(tmp, "freeze", "--timeout", "1")
    assert done.returncode == 1 and "the guest agent does not answer" in done.stderr
    assert FREEZE not in agent.log and not (agent.dir / "frozen").exists()


def test_a_freeze_that_fails(agent, tmp):
    agent.errors[FREEZE] = "failed to freeze /srv: busy"
    done = merino(tmp, "freeze")
    assert done.returncode == 1 and "guest-fsfreeze-freeze: failed to freeze /srv: busy" in done.stderr
    assert agent.log[-1] == THAW and not (agent.dir / "frozen").exists()


def test_a_freeze_that_takes_too_long(agent, tmp):
    agent.hold = True
    done = merino(tmp, "freeze", "--limit", "1")
    assert done.returncode == 1 and "the guest agent does not answer" in done.stderr
    wait(lambda: agent.log[-1] == THAW and not agent.frozen and not (agent.dir / "frozen").exists())


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
