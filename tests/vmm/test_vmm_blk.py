# SPDX-License-Identifier: BSD-3-Clause
"""virtio-blk over NBD, driven by the payload on KVM: every request, and servers that fail under it."""

import os
import re
import signal
import subprocess
import time

import pytest

from lib import daemon, tools, vmm
from lib.machines import SIZE, finishes, passes, requests, world  # noqa: F401
from lib.patience import HANG, listening

pytestmark = pytest.mark.merino_only


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
@pytest.mark.parametrize("queues", [1, 4])
def test_requests(world, fmt, queues):
    """Right requests and wrong ones, and after them the disk is as the guest thinks."""
    s = world.server(fmt=fmt)
    m = world.machine("disk=0 disk-test depth=16 verify=300", s.uri(more=f"serial=abc,queues={queues}"), wait=False)
    assert f"disk 0: {SIZE // 512} sectors, serial abc\n" in passes(m)
    s.end = s.log.close
    s.kill(signal.SIGTERM)
    if fmt == "qcow2":
        tools.run("qemu-img", "check", "-q", s.image)


def test_two_disks(world):
    s = world.server()
    other = s.uri(more="id=b,serial=second,read-only=on")
    text = passes(world.machine("disk=1 disk=0 disk-test", s.uri(more="serial=first"), other, wait=False))
    assert "serial second" in text and "serial first" in text


def test_read_only(world):
    s = world.server(writable=False)
    m = world.machine("disk=0 randread=50 randwrite=50", s.uri(), wait=False)
    m.proc.wait(HANG)
    assert "FAIL randwrite: status 1, not 0" in m.serial(), m.serial()


LONG = 1 << 40                  # ms: until it is told to end


def kills(world, times, pause, fmt="raw", most=HANG):
    """MOST: seconds that a request takes; on a machine of its own it is a tenth of one."""
    s = world.server(fmt=fmt)
    m = world.machine(f"disk=0 depth=16 verify={LONG}", s.uri(more="queues=2"))
    m.wait(lambda: requests(m))
    for _ in range(times):
        time.sleep(pause)
        s.kill()
        s.start()
    text = finishes(m)
    longest = int(re.search(r"longest (\d+) us", text)[1])
    print(f"{times} kills: {re.search('verify .*', text)[0]}")
    assert longest < most * 1_000_000, text
    assert "connected to" in m.stderr()


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_killed(world, fmt):
    """kill -9 of the server under a verifying guest: no error, no mismatch."""
    kills(world, 5, 0.3, fmt)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_killed_often(world):
    """Restarts every 3 s for ten minutes; back within 2 s."""
    kills(world, 200, 3, "qcow2", most=2)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_killed_fifty_times(world, fmt):
    """At any moment, soon after it came back."""
    kills(world, 50, 0.5, fmt, most=2)


@pytest.mark.parametrize("most", [300, 5000, 500_000])
def test_cut_anywhere(world, most):
    """Connections that break after any number of bytes, in the handshake, a header, in data."""
    s = world.server()
    c = world.cutter(s, most)
    m = world.machine(f"disk=0 depth=8 verify={LONG}", s.uri(c.path, "queues=2"))
    m.wait(lambda: requests(m))
    c.cut = lambda r: r.randrange(most)
    c.cut_all()
    m.wait(lambda: c.cuts > 9)
    c.cut = lambda r: None
    c.cut_all()
    finishes(m)


def test_silence(world):
    """A server that says nothing for a while costs time, and nothing else."""
    s = world.server()
    c = world.cutter(s)
    m = world.machine(f"disk=0 depth=8 verify={LONG}", s.uri(c.path))
    m.wait(lambda: requests(m))
    c.stall()
    time.sleep(1)
    assert m.proc.poll() is None
    c.go_on()
    assert int(re.search(r"longest (\d+) us", finishes(m))[1]) > 700_000


@pytest.mark.parametrize("how", ["gone", "silent", "handshake"])
def test_quit(world, how):
    """Whatever the server does, the machine can be told to end, and does so within 5 s."""
    s = world.server()
    c = world.cutter(s)
    m = world.machine(f"disk=0 depth=16 verify={LONG}", s.uri(c.path, "queues=2"))
    m.wait(lambda: requests(m))
    if how == "gone":
        s.kill()
    else:
        c.stall()
        if how == "handshake":
            c.cut_all()
    time.sleep(0.3)
    m.proc.send_signal(signal.SIGTERM)
    m.ended(timeout=HANG)                     # 5, on a machine that has nothing else to do
    if how == "gone":
        s.start()


def test_reconnect_delay(world):
    """Past the delay requests fail; before it they wait."""
    s = world.server()
    m = world.machine(f"disk=0 depth=4 verify={LONG}", s.uri(more="reconnect-delay=1"))
    m.says("disk 0:")
    began = time.monotonic()
    s.kill()
    m.proc.wait(HANG)
    assert re.search(r"FAIL block \d+: status 1", m.serial()), m.serial()[-300:]
    assert time.monotonic() - began > 0.9
    assert "requests fail" in m.stderr()
    s.start()


def test_other_address(world):
    """The second address serves when the first is dead."""
    a = world.server(socket="a")
    m = world.machine(f"disk=0 depth=8 verify={LONG}", a.uri(more=f"uri.1=nbd+unix:///d?socket={world.dir}/b,queues=2"))
    m.wait(lambda: requests(m))
    a.kill()
    b = world.server(socket="b")
    finishes(m)
    assert f"connected to {b.uri()}" in m.stderr()
    a.end = a.log.close


def test_other_size(world):
    """A server that comes back with a larger disk: the guest sees it; with other features it is not taken."""
    s = world.server()
    m = world.machine(f"disk=0 sectors={SIZE // 256} disk=0 disk-test", s.uri())
    m.says("disk 0:")
    s.kill()
    os.truncate(s.image, 2 * SIZE)
    s.writable = False
    s.start()
    m.wait(lambda: "read-only now" in m.stderr())
    s.kill()
    s.writable = True
    s.start()
    assert f"disk 0: {SIZE // 256} sectors" in passes(m)


def test_server_errors(world):
    """An error that the server answers with is the guest's, once, and nobody reconnects for it."""
    sock = world.dir / "kit"
    kit = subprocess.Popen(["nbdkit", "-f", "-U", str(sock), "--filter=error", "memory", "1M", "error-pwrite=EIO",
                            "error-pwrite-rate=100%"], preexec_fn=daemon.die_with_parent)
    try:
        listening(sock, kit)
        m = world.machine("disk=0 randread=50 randwrite=50", f"nbd+unix:///?socket={sock}", wait=False)
        m.proc.wait(HANG)
        assert "FAIL randwrite: status 1, not 0" in m.serial(), m.serial()
        assert "no connection" not in m.stderr()
    finally:
        kit.kill()
        kit.wait()


@pytest.mark.parametrize("text,why", [
    ("nbd+unix:///d?socket=/none", "No such file or directory"),
    ("/a/file", "Invalid parameter '/a/file'"),
    ("serial=x", "Parameter 'uri' is missing"),
    ("uri=http://x", "http"),
    ("nbd://localhost,serial=" + 21 * "x", "Parameter 'serial' expects 1 to 20 bytes"),
    ("nbd://localhost,queues=0", "Parameter 'queues' expects a number from 1 to 16"),
    ("nbd://localhost,queue-size=100", "Parameter 'queue-size' expects a power of two"),
    ("nbd://localhost,read-only=maybe", "Parameter 'read-only' expects 'on' or 'off'"),
    ("nbd://localhost,cache=none", "Invalid parameter 'cache'"),
])
def test_refused(tmp, text, why):
    vmm.need_kvm()
    r = subprocess.run([vmm.program(), "--disk", text, "--kernel", vmm.payload()], capture_output=True, text=True,
                       timeout=HANG)
    assert r.returncode == 1 and why in r.stderr, r.stderr


def test_random(world):
    """virtio-rng, which every machine has; and a machine without a disk."""
    assert "random\n" in passes(world.machine("random", wait=False))
