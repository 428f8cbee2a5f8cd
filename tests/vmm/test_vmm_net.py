# SPDX-License-Identifier: BSD-3-Clause
"""Network cards in the sandbox: tap devices, in a network of the test's own, and libslirp with ports for the world."""

import ctypes
import fcntl
import os
import struct
import subprocess
import sys

import pytest

from lib import vmm
from lib.daemon import die_with_parent
from lib.patience import HANG

pytestmark = pytest.mark.merino_only

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454ca, 2, 0x1000

# Brings a device up, and sends frames to it.
UP = """
import fcntl, socket, struct, sys
name = sys.argv[1].encode()
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
fcntl.ioctl(s, 0x8914, struct.pack("16sh14x", name, 0x1043))            # SIOCSIFFLAGS: up
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
raw.bind((sys.argv[1], 0))
for _ in range(100):
    raw.send(b"\\xff" * 6 + bytes([0x52, 0x54, 0, 1, 2, 3, 0x88, 0xb5]) + bytes(46))
print("sent", flush=True)
"""


@pytest.fixture
def network():
    """A network namespace: what to put before a command that is to run in it."""
    if os.getuid() != 0:
        pytest.skip("a network of our own takes root")
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip("no /dev/net/tun")
    holder = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo ready; exec cat"], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, preexec_fn=die_with_parent)
    try:
        if holder.stdout.readline() != b"ready\n":
            pytest.skip("no namespaces here")
        yield ["nsenter", "--net", "-t", str(holder.pid)]
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()


@pytest.fixture
def machine(tmp):
    vmm.need_kvm()
    started = []

    def start(*options, **kw):
        started.append(vmm.Vmm(tmp, "hang", "--sandbox", "trap", *options, **kw))
        return started[-1]

    yield start
    for m in started:
        m.end()


def lives_and_ends(m):
    m.says("hang")
    m.qmp.cmd("stop")
    m.qmp.cmd("cont")
    m.qmp.cmd("system_reset")
    m.wait(lambda: m.serial().count("hang\n") >= 2)
    m.qmp.cmd("quit")
    m.ended()


def setns(fd):
    """os.setns() is younger than Debian 12's Python."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, 0):
        raise OSError(ctypes.get_errno(), "setns")


def open_tap(pid, name):
    """In the network of the process PID."""
    with open(f"/proc/{pid}/ns/net") as there, open("/proc/self/ns/net") as here:
        setns(there.fileno())
        try:
            tap = os.open("/dev/net/tun", os.O_RDWR)
        finally:
            setns(here.fileno())
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name, IFF_TAP | IFF_NO_PI))
    return tap


@pytest.mark.parametrize("user", [[], ["--user", "65534"]], ids=["", "user"])
def test_tap(machine, network, tmp, user):
    """One by its name, made by us, and one that was opened by who starts us; frames come to both."""
    tmp.chmod(0o777)
    tap = open_tap(network[-1], b"given0")
    try:
        m = machine("--net", "tap,ifname=named0", "--net", f"tap,fd={tap}", *user, prefix=network, inherit=tap)
    finally:
        os.close(tap)
    for name in "named0", "given0":
        done = subprocess.run([*network, sys.executable, "-c", UP, name], capture_output=True, text=True, timeout=HANG,
                              check=False)
        assert done.stdout == "sent\n", done.stderr
    lives_and_ends(m)


@pytest.mark.parametrize("user", [[], ["--user", "65534"]], ids=["", "user"])
def test_user_and_a_port_for_the_world(machine, network, tmp, user):
    """The guest has no driver: whoever connects waits for it, and the machine goes on."""
    if user:
        tmp.chmod(0o777)
    subprocess.run([*network, sys.executable, "-c", UP.partition("raw =")[0], "lo"], check=True, timeout=HANG)
    m = machine("--net", "user,hostfwd=tcp:127.0.0.1:2222-:22", *user, prefix=network)
    m.says("hang")
    clients = subprocess.run([*network, sys.executable, "-c", CLIENTS], capture_output=True, text=True, timeout=HANG, check=False)
    assert clients.stdout == "connected\n", clients.stderr
    lives_and_ends(m)


CLIENTS = """
import socket
many = [socket.create_connection(("127.0.0.1", 2222), 100) for _ in range(20)]
for s in many:
    try:
        s.send(b"hello")
    except OSError:
        pass                                               # nobody answers
    s.close()
print("connected")
"""
