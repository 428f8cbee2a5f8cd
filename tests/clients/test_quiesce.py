# SPDX-License-Identifier: BSD-3-Clause
"""merino backup --quiesce: the instant lies within the freeze, and whatever happens the guest is thawed."""

import contextlib
import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import threading

import pytest

from lib import tools
from lib.agent import Agent, wait
from lib.daemon import die_with_parent, disk_args
from lib.patience import HANG

pytestmark = pytest.mark.merino_only

SYNC, STATUS = "guest-sync-delimited", "guest-fsfreeze-status"
FREEZE, THAW, BEGIN = "guest-fsfreeze-freeze", "guest-fsfreeze-thaw", "checkpoint-begin"
PATIENCE = "12"                 # seconds that are to run out, within which an agent that is well does answer


class Tap(threading.Thread):
    """Between `merino backup` and merinod: notes checkpoint-begin in LOG, and holds it up while .gate is not set."""

    def __init__(self, path, upstream, log):
        super().__init__(daemon=True)
        self.upstream, self.log, self.gate = upstream, log, threading.Event()
        self.gate.set()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(8)
        self.start()

    def run(self):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self.serve, args=(self.listener.accept()[0],), daemon=True).start()

    def serve(self, s):
        with s, socket.socket(socket.AF_UNIX) as up, contextlib.suppress(OSError):
            up.connect(str(self.upstream))
            while True:
                for fd in select.select([s, up], [], [])[0]:
                    got = fd.recv(65536)
                    if not got:
                        return
                    if fd is s and BEGIN.encode() in got:
                        self.log.append(BEGIN)
                        self.gate.wait(HANG)
                        self.log.append("begun")
                    (up if fd is s else s).sendall(got)

    def end(self):
        self.gate.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


class Guest:
    """A disk of a merinod, an agent, and a tap at the control socket; all in one directory, as merino run has them."""

    def __init__(self, daemon, tmp, merino):
        self.merino, self.log = merino, []
        tools.create(tmp / "a.qcow2", 4 << 20)
        self.daemon = daemon.start(*disk_args(tmp / "a.qcow2", name="a"))
        self.dir = tmp / "vm"
        self.dir.mkdir()
        self.agent = Agent(self.dir / "agent", self.log)
        self.tap = Tap(self.dir / "qmp", self.daemon.qmp_path, self.log)

    def argv(self, *args, to="repo"):
        if "--quiesce" in args and "--quiesce-timeout" not in args:
            args = "--quiesce-timeout", "180", *args     # its half minute may be over sooner than a machine's bad one
        return ["backup", "--json", "--to", to, "--socket", self.dir / "qmp", *args]

    def backup(self, *args, to="repo"):
        """A run that succeeds: its point, and what it said."""
        done = self.merino.run(*self.argv(*args, to=to))
        return json.loads(done.stdout), done.stderr

    def start(self, *args, to="repo", **kw):
        return subprocess.Popen(self.merino.argv(*self.argv(*args, to=to)), cwd=self.merino.cwd, text=True,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                preexec_fn=die_with_parent, **kw)

    def thawed(self):
        wait(lambda: not self.agent.frozen and FREEZE in self.log and THAW in self.log[self.log.index(FREEZE):],
             what=self.log)

    def guards(self):
        """Processes named so that have this guest's repository as working directory."""
        found = []
        for p in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (p / "comm").read_text() == "merino-guard\n" and os.readlink(p / "cwd") == str(self.merino.cwd):
                    if (p / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                        found.append(int(p.name))
        return found

    def no_guard(self):
        wait(lambda: not self.guards(), what=self.log)

    def end(self):
        self.tap.end()
        self.agent.end()
        self.no_guard()


@pytest.fixture
def guest(daemon, tmp, merino):
    g = Guest(daemon, tmp, merino)
    yield g
    g.end()


def unquiesced(guest, *args, why):
    """The backup is good, and says that the guest was not at rest."""
    point, said = guest.backup("--quiesce", *args)
    assert not point["quiesced"] and point["consistency"] == "crash-consistent", said
    assert "warning" in said and why in said, said
    return said


# --- well

def test_the_instant_is_within_the_freeze(guest):
    point, said = guest.backup("--quiesce")
    assert point["quiesced"] and point["consistency"] == "filesystem-consistent" and said == "", said
    assert guest.log == [SYNC, STATUS, FREEZE, BEGIN, "begun", THAW] and not guest.agent.frozen
    again, _ = guest.backup(f"--quiesce={guest.agent.path}", "--quiesce-timeout", "60")
    assert again["quiesced"] and again["disks"][0]["level"] == "incremental"
    listed = json.loads(guest.merino.run("list", "--json", "repo").stdout)
    assert [p["consistency"] for p in listed["points"]] == ["filesystem-consistent"] * 2
    plain, _ = guest.backup()
    assert not plain["quiesced"] and plain["consistency"] == "crash-consistent" and guest.log.count(FREEZE) == 2


@pytest.mark.parametrize("noise", [b'{"return": 1}\n{"return": {}}\n', b"\xff\x00\x01garbage{{{", b"[" * 100000],
                         ids=["answers", "garbage", "brackets"])
def test_what_was_said_to_others(guest, noise):
    guest.agent.prefix = noise
    point, said = guest.backup("--quiesce")
    assert point["quiesced"] and not guest.agent.frozen, said


def test_two_at_once(guest, tmp):
    """Of two disks of one guest: one after the other."""
    tools.create(tmp / "b.qcow2", 4 << 20)
    guest.daemon.qmp.cmd("blockdev-add", {"driver": "qcow2", "node-name": "b", "file": {"driver": "file", "filename": str(tmp / "b.qcow2")}})
    guest.daemon.qmp.cmd("block-export-add", {"type": "nbd", "id": "b", "node-name": "b", "name": "b", "writable": True})
    guest.agent.delay = 0.2
    runs = [guest.start("--quiesce", "--quiesce-timeout", "180", disk, to=f"repo-{disk}") for disk in "ab"]
    for p in runs:
        out, said = p.communicate(timeout=HANG)
        assert p.returncode == 0 and json.loads(out)["quiesced"], (out, said)
    assert [w for w in guest.log if w in (FREEZE, "begun", THAW)] == [FREEZE, "begun", THAW] * 2


# --- an agent that fails

def test_no_agent(guest):
    guest.agent.end()
    unquiesced(guest, why="agent: Connection refused")
    os.unlink(guest.agent.path)
    unquiesced(guest, why="agent: No such file or directory")


def test_an_agent_that_does_not_answer(guest):
    guest.agent.dumb.add("")
    unquiesced(guest, "--quiesce-timeout", "2", why="the guest agent does not answer")
    assert guest.log == [BEGIN, "begun"]


def test_a_freeze_that_fails(guest):
    guest.agent.errors[FREEZE] = "failed to freeze /srv: busy"
    unquiesced(guest, why="guest-fsfreeze-freeze: failed to freeze /srv: busy")
    guest.thawed()                  # all the same: some of its file systems may be frozen


def test_a_guest_without_file_systems(guest):
    guest.agent.systems = 0
    unquiesced(guest, why="no file system that can be frozen")


@pytest.mark.parametrize("command", [STATUS, FREEZE, THAW])
def test_a_part_of_an_answer(guest, command):
    """The agent has done it, and its answer breaks off."""
    guest.agent.partial[command] = 5
    unquiesced(guest, "--quiesce-timeout", PATIENCE, why="the guest agent does not answer")
    assert (FREEZE in guest.log) == (command != STATUS)
    guest.agent.partial.clear()
    wait(lambda: not guest.agent.frozen)
    guest.no_guard()


@pytest.mark.parametrize("command", [SYNC, STATUS, FREEZE, THAW])
def test_an_agent_that_dies(guest, command):
    """It is gone when it should answer; a new one finds what the old one has left."""
    guest.agent.hang_up[command] = 1
    unquiesced(guest, why="the machine has closed the guest agent's port")
    wait(lambda: not guest.agent.frozen)
    guest.no_guard()


def test_a_thaw_that_fails(guest):
    """A process stays, and thaws when the agent can; the backup has long ended."""
    guest.agent.errors[THAW] = "not now"
    said = unquiesced(guest, why="guest-fsfreeze-thaw: not now")
    assert "the guest may still be frozen" in said and "goes on trying" in said
    wait(lambda: guest.log.count(THAW) >= 3)
    assert guest.agent.frozen
    guest.agent.errors.clear()
    wait(lambda: not guest.agent.frozen)
    guest.no_guard()


def test_the_machine_ends_while_it_is_frozen(guest):
    """Nobody is there to be thawed: the guard ends."""
    guest.agent.errors[THAW] = "not now"
    unquiesced(guest, why="not now")
    guest.agent.end()
    guest.no_guard()


def test_a_freeze_that_comes_late(guest):
    guest.agent.delay = int(PATIENCE) + 2
    unquiesced(guest, "--quiesce-timeout", PATIENCE, why="the guest agent does not answer")
    guest.agent.delay = 0
    guest.thawed()


def test_a_guest_that_thaws_by_itself(guest):
    guest.tap.gate.clear()
    p = guest.start("--quiesce")
    wait(lambda: BEGIN in guest.log)
    guest.agent.frozen = 0          # as VSS does after ten seconds
    guest.tap.gate.set()
    out, said = p.communicate(timeout=HANG)
    assert p.returncode == 0 and not json.loads(out)["quiesced"] and "by itself" in said, said


def test_a_guest_that_others_have_frozen(guest):
    """It is theirs to thaw."""
    guest.agent.frozen = 3
    unquiesced(guest, why="somebody else has frozen the guest")
    assert guest.agent.frozen == 3 and THAW not in guest.log


# --- the time is over, somebody is killed

def test_the_limit(guest):
    """An instant that takes too long: the guest does not wait for it."""
    guest.tap.gate.clear()
    p = guest.start("--quiesce", "--quiesce-timeout", PATIENCE)
    wait(lambda: THAW in guest.log, what=guest.log)
    assert guest.log[-3:] == [FREEZE, BEGIN, THAW]
    guest.tap.gate.set()
    out, said = p.communicate(timeout=HANG)
    assert p.returncode == 0 and not json.loads(out)["quiesced"], said
    assert f"its {PATIENCE} s were over before the instant was taken" in said


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_killed_while_it_is_frozen(guest, how):
    guest.tap.gate.clear()
    p = guest.start("--quiesce", "--quiesce-timeout", "180", "--hook-after", f"echo after > {guest.dir}/after")
    wait(lambda: BEGIN in guest.log)
    assert guest.agent.frozen
    p.send_signal(how)
    guest.thawed()
    guest.tap.gate.set()            # it asks the daemon to undo what it began
    p.communicate(timeout=HANG)
    assert p.returncode == -how
    wait(lambda: (guest.dir / "after").exists())
    guest.no_guard()


def test_killed_while_it_freezes(guest):
    guest.agent.delay = 1
    p = guest.start("--quiesce", "--quiesce-timeout", "180")
    wait(lambda: FREEZE in guest.log)
    p.kill()
    p.communicate(timeout=HANG)
    guest.agent.delay = 0
    guest.thawed()


def test_the_guard_is_killed(guest):
    guest.tap.gate.clear()
    p = guest.start("--quiesce", "--quiesce-timeout", "180")
    wait(lambda: BEGIN in guest.log)
    (guard,) = guest.guards()
    os.kill(guard, signal.SIGKILL)
    guest.tap.gate.set()
    out, said = p.communicate(timeout=HANG)
    assert p.returncode == 0 and not json.loads(out)["quiesced"] and "was killed" in said, said
    assert guest.log[-1] == THAW and not guest.agent.frozen


def test_the_repository_is_free_while_a_guard_stays(guest):
    """What stays behind holds no lock, and no pipe at which a caller waits."""
    guest.agent.errors[THAW] = "not now"
    unquiesced(guest, why="not now")
    assert guest.guards() and guest.agent.frozen
    point, _ = guest.backup()
    assert point["disks"][0]["level"] == "incremental"
    guest.agent.errors.clear()
    wait(lambda: not guest.agent.frozen)


# --- hooks

def test_hooks(guest):
    """Before the freeze, after the thaw; what they are told; what they have; where their words go."""
    hook = ('echo "hook $MERINO_HOOK $MERINO_POINT $MERINO_REPOSITORY $MERINO_SOCKET"; '
            'for f in /proc/self/fd/*; do [ -e "$f" ] && echo "$f"; done > {d}/fds.$MERINO_HOOK; '
            'wc -l < {d}/agent.log > {d}/$MERINO_HOOK 2>&1; true').replace("{d}", str(guest.dir))
    (guest.dir / "agent.log").touch()
    r, w = os.pipe()                # as one for --progress
    log, guest.agent.log = guest.log, Written(guest.dir / "agent.log")
    p = guest.start("--quiesce", "--name", "monday", "--hook-before", hook, "--hook-after", hook, pass_fds=[w])
    os.close(w)
    out, said = p.communicate(timeout=HANG)
    os.close(r)
    assert p.returncode == 0 and json.loads(out)["quiesced"], said
    assert said.splitlines() == [f"hook {n} monday repo {guest.dir}/qmp" for n in ("before", "after")]
    assert [(guest.dir / n).read_text() for n in ("before", "after")] == ["0\n", "4\n"]
    assert log == [BEGIN, "begun"]
    for n in "before", "after":
        fds = {int(f.rpartition("/")[2]) for f in (guest.dir / f"fds.{n}").read_text().split()}
        assert fds <= {0, 1, 2, 3, 10}, fds     # the last ones are the shell's, and the glob's


class Written:
    """A log in a file."""

    def __init__(self, path):
        self.path = path

    def append(self, word):
        with open(self.path, "a", encoding="ascii") as f:
            f.write(word + "\n")


def test_a_hook_before_that_fails(guest):
    """No freeze; the backup is made, and the hook after runs."""
    said = unquiesced(guest, "--hook-before", "exit 3", "--hook-after", "echo ran; kill -9 $$", why="ended with status 3")
    assert guest.log == [BEGIN, "begun"] and "ran" in said and "was killed by signal 9" in said


def test_a_hook_that_takes_too_long(guest):
    """It is killed, with what it has started."""
    said = unquiesced(guest, "--quiesce-timeout", PATIENCE, "--hook-before", f"sleep 1000 & echo $! > {guest.dir}/pid; wait",
                      why=f"took longer than {PATIENCE} s")
    assert guest.log == [BEGIN, "begun"] and "the hook before" in said
    pid = int((guest.dir / "pid").read_text())

    def ended():
        try:
            return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        except OSError:
            return True
    wait(ended)


def test_hooks_alone(guest):
    point, said = guest.backup("--hook-before", "echo 1", "--hook-after", "echo 2")
    assert said == "1\n2\n" and not point["quiesced"] and guest.log == [BEGIN, "begun"]


def test_a_hook_after_a_backup_that_fails(guest):
    """The instant could not be taken: the guest goes on, and the hook runs."""
    p = guest.start("--quiesce", "--hook-after", f"echo after > {guest.dir}/after", "nosuch")
    out, said = p.communicate(timeout=HANG)
    assert p.returncode == 1 and "nosuch" in said, said
    assert (guest.dir / "after").exists() and not guest.agent.frozen and guest.log[-1] == THAW


@pytest.mark.parametrize("args, text", [
    (("--quiesce", "image.qcow2"), "--quiesce and --hook-... go with --socket"),
    (("--hook-before", "true", "nbd://localhost"), "--quiesce and --hook-... go with --socket"),
    (("--socket", "x", "--quiesce-timeout", "5"), "--quiesce-timeout goes with"),
    (("--socket", "x", "--quiesce", "--quiesce-timeout", "181"), "quiesce-timeout")])
def test_refused(merino, args, text):
    assert text in merino.run("backup", "--to", "repo", *args, status=1).stderr
