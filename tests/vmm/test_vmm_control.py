# SPDX-License-Identifier: BSD-3-Clause
"""The VMM's control socket, with a guest that runs on KVM and a merinod behind it."""

import fcntl
import os
import signal
import socket
import stat
import subprocess
import time

import pytest

from lib import qmp, tools, vmm
from lib.daemon import REPORT, die_with_parent
from lib.patience import HANG, wait_until
from lib.qmp import QMPError

pytestmark = pytest.mark.merino_only


@pytest.fixture
def machine(tmp):
    """Starts machines; what is left is ended strictly."""
    vmm.need_kvm()
    started = []

    def start(words="hang", *options, **kw):
        started.append(vmm.Vmm(tmp, words, *options, **kw))
        return started[-1]

    yield start
    for m in started:
        m.end()


def event(client, name):
    """The data of the next event, which has this name."""
    while not client.events:
        client.events.append(client.message())
    e = client.events.pop(0)
    assert e["event"] == name, e
    return e.get("data")


def test_queries(machine):
    m = machine("hang", "--name", "vm1", "--cpus", "2")
    assert m.qmp.greeting["QMP"]["version"]["package"].startswith("merino-")
    assert stat.S_IMODE(os.stat(m.path).st_mode) == 0o600
    assert m.qmp.cmd("query-name") == {"name": "vm1"}
    assert m.qmp.cmd("query-version")["qemu"]["major"] == 7
    cpus = m.qmp.cmd("query-cpus-fast")
    threads = set(map(int, os.listdir(f"/proc/{m.proc.pid}/task")))
    assert [c["cpu-index"] for c in cpus] == [0, 1] and {c["thread-id"] for c in cpus} <= threads
    assert len({c["thread-id"] for c in cpus}) == 2
    assert m.qmp.cmd("query-block") == []
    names = [c["name"] for c in m.qmp.cmd("query-commands")]
    assert "system_powerdown" in names and len(names) == len(set(names))
    with pytest.raises(QMPError, match="The command blockdev-add has not been found"):
        m.qmp.cmd("blockdev-add", {"driver": "null-co", "node-name": "n"})


def test_stop_and_cont(machine):
    """Both clients hear of it, and the threads of a stopped machine's CPUs do nothing."""
    m = machine("hang")
    second = qmp.QMP(m.path)
    m.says("hang")
    m.qmp.cmd("stop")
    event(m.qmp, "STOP")
    event(second, "STOP")
    assert m.qmp.cmd("query-status") == {"status": "paused", "singlestep": False, "running": False}
    cpus = [c["thread-id"] for c in m.qmp.cmd("query-cpus-fast")]
    m.wait(lambda: all(m.sleeps(c) for c in cpus))
    ticks = [m.cpu_ticks(c) for c in cpus]
    assert second.silent(0.5)
    assert [m.cpu_ticks(c) for c in cpus] == ticks
    m.qmp.cmd("stop")                   # again: no event
    second.cmd("cont")
    event(m.qmp, "RESUME")
    assert m.qmp.cmd("query-status")["running"]
    second.close()


def test_paused_at_start(machine):
    m = machine("count=1", "--paused")
    assert m.qmp.cmd("query-status")["status"] == "prelaunch"
    assert m.serial() == ""
    m.qmp.cmd("cont")
    event(m.qmp, "RESUME")
    assert event(m.qmp, "SHUTDOWN") == {"guest": True, "reason": "guest-shutdown"}
    m.ended()


def test_reset(machine):
    m = machine("hang")
    m.says("hang")
    m.qmp.cmd("system_reset")
    assert event(m.qmp, "RESET") == {"guest": False, "reason": "host-qmp-system-reset"}
    m.wait(lambda: m.serial().count("hang\n") >= 2)
    m.qmp.cmd("quit")
    assert event(m.qmp, "SHUTDOWN") == {"guest": False, "reason": "host-qmp-quit"}
    m.ended()


def test_reset_that_ends(machine):
    m = machine("hang", "--no-reboot")
    m.qmp.cmd("system_reset")
    assert event(m.qmp, "SHUTDOWN") == {"guest": False, "reason": "host-qmp-system-reset"}
    m.ended()


def test_the_guest_resets(machine):
    m = machine("resets=2", "--paused")
    m.qmp.cmd("cont")
    event(m.qmp, "RESUME")
    for _ in range(2):
        assert event(m.qmp, "RESET") == {"guest": True, "reason": "guest-reset"}
    assert event(m.qmp, "SHUTDOWN") == {"guest": True, "reason": "guest-shutdown"}
    m.ended()
    assert "PASS" in m.serial()


def test_power_button(machine):
    m = machine("button")
    m.says("button")
    m.qmp.cmd("system_powerdown")
    assert event(m.qmp, "POWERDOWN") is None
    assert event(m.qmp, "SHUTDOWN") == {"guest": True, "reason": "guest-shutdown"}
    m.ended()
    assert "PASS" in m.serial()


def test_signal(machine):
    m = machine("hang")
    m.qmp.cmd("query-status")
    m.proc.send_signal(signal.SIGTERM)
    assert event(m.qmp, "SHUTDOWN") == {"guest": False, "reason": "host-signal"}
    assert m.qmp.line() == b""
    m.ended()


def test_nothing_after_quit(machine, tmp):
    """What a client sends behind quit is not done: no CPU runs while its devices are taken apart."""
    m = machine("echo", "--agent", f"unix:{tmp}/agent")
    m.qmp.send('{"execute":"quit"}' + '{"execute":"cont"}{"execute":"query-status"}' * 3)
    said = b"".join(iter(m.qmp.line, b""))
    assert said.count(b'"SHUTDOWN"') == 1 and b"RESUME" not in said and b"running" not in said, said
    m.ended()


def test_signals_while_it_ends(machine, tmp):
    """More of them change nothing, though the control socket is gone: the end waits for who reads the serial line."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    with subprocess.Popen([vmm.program(), "--kernel", vmm.payload(), "--append", "flood=6", "--qmp", f"unix:{tmp}/qmp"],
                          stdin=subprocess.DEVNULL, stdout=write, stderr=subprocess.PIPE, preexec_fn=die_with_parent) as p:
        try:
            os.close(write)
            wait_until(lambda: (tmp / "qmp").exists() or p.poll() is not None)
            wait_until(lambda: not (tmp / "qmp").exists())
            while p.poll() is None:
                p.send_signal(signal.SIGTERM)
                time.sleep(0.01)
            said = p.stderr.read().decode()
            assert p.returncode == 0 and not REPORT.search(said), said
        finally:
            p.kill()
            os.close(read)


def test_a_client_that_does_not_read(machine):
    """It neither stops the machine nor its end."""
    m = machine("hang")
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(m.path)
        s.setblocking(False)
        s.send(b'{"execute":"qmp_capabilities"}')
        try:
            while True:
                s.send(b'{"execute":"query-commands"}' * 1000)
        except BlockingIOError:
            pass
        m.qmp.cmd("query-status")
        m.qmp.cmd("quit")
        m.ended()


def test_a_stale_socket(machine, tmp):
    """What a machine that was killed has left is replaced; a live one's is not, nor is a file."""
    m = machine("hang")
    m.proc.kill()
    m.proc.wait()
    again = machine("hang")
    third = vmm.Vmm(tmp, "hang", wait=False)
    assert third.proc.wait(HANG) == 1 and "Address already in use" in third.stderr()
    again.qmp.cmd("quit")
    again.ended()
    (tmp / "vmm.qmp").write_text("precious")
    fourth = vmm.Vmm(tmp, "hang", wait=False)
    assert fourth.proc.wait(HANG) == 1 and "Address already in use" in fourth.stderr()
    assert (tmp / "vmm.qmp").read_text() == "precious"


# --- with merinod


@pytest.fixture
def disk(daemon, tmp):
    image = tools.create(tmp / "a.qcow2", "4M")
    return daemon.start("--blockdev", f"driver=qcow2,node-name=vda,file.driver=file,file.filename={image}",
                        "--export", "type=nbd,id=vda,node-name=vda,writable=on")


def test_block_commands_go_on(machine, disk):
    m = machine("hang", "--merinod-qmp", f"unix:{disk.qmp_path}")
    names = [c["name"] for c in m.qmp.cmd("query-commands")]
    assert {"system_reset", "blockdev-add", "checkpoint-begin"} <= set(names) and len(names) == len(set(names))
    assert [n["node-name"] for n in m.qmp.cmd("query-named-block-nodes", {"flat": True})] == \
        [n["node-name"] for n in disk.qmp.cmd("query-named-block-nodes", {"flat": True})]
    m.qmp.cmd("blockdev-add", {"driver": "null-co", "node-name": "n", "size": 1 << 20})
    with pytest.raises(QMPError) as ours:
        m.qmp.cmd("blockdev-add", {"driver": "null-co", "node-name": "n"})
    with pytest.raises(QMPError) as theirs:
        disk.qmp.cmd("blockdev-add", {"driver": "null-co", "node-name": "n"})
    assert (ours.value.kind, ours.value.desc) == (theirs.value.kind, theirs.value.desc)


def test_events_come_back(machine, disk):
    m = machine("hang", "--merinod-qmp", f"unix:{disk.qmp_path}")
    m.qmp.cmd("blockdev-add", {"driver": "null-co", "node-name": "n", "size": 4 << 20})
    m.qmp.cmd("blockdev-backup", {"job-id": "j", "device": "vda", "target": "n", "sync": "full"})
    m.qmp.event("BLOCK_JOB_COMPLETED")
    while m.qmp.event("JOB_STATUS_CHANGE")["data"]["status"] != "null":
        pass
    m.qmp.cmd("stop")                   # one STOP: the machine's
    assert event(m.qmp, "STOP") is None
    disk.qmp.cmd("stop")
    disk.qmp.cmd("cont")
    assert m.qmp.silent(0.3)


def test_merinod_dies(machine, disk, daemon, tmp):
    """kill -9: the command fails or waits, never the machine; a new one is found."""
    m = machine("hang", "--merinod-qmp", f"unix:{disk.qmp_path}")
    assert m.qmp.cmd("query-jobs") == []
    disk.kill()
    with pytest.raises(QMPError, match="merinod"):
        m.qmp.cmd("query-jobs")
    assert m.qmp.cmd("query-status")["running"]
    m.qmp.cmd("quit")
    m.ended()


def test_merinod_hangs(machine, disk):
    m = machine("hang", "--merinod-qmp", f"unix:{disk.qmp_path}")
    m.qmp.cmd("query-jobs")
    disk.proc.send_signal(signal.SIGSTOP)
    try:
        m.qmp.send('{"execute":"query-jobs"}')
        other = qmp.QMP(m.path)
        assert other.cmd("query-status")["running"]
        other.cmd("quit")
        m.ended()
        other.close()
    finally:
        disk.proc.send_signal(signal.SIGCONT)
