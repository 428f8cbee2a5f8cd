# SPDX-License-Identifier: BSD-3-Clause
"""A paused machine goes on, whatever servers and clients do meanwhile.

That nothing changes its memory until then is what test-vmm-save looks at."""

import socket
import time

import pytest

from lib.machines import finishes, quits_soon, requests, world  # noqa: F401
from lib.patience import HANG

pytestmark = pytest.mark.merino_only


def goes_on(m):
    m.qmp.cmd("cont")
    before = requests(m)
    m.wait(lambda: requests(m) > before, HANG)


def test_server_slow(world):
    """Requests are under way, and are answered while the machine is paused."""
    s = world.server()
    c = world.cutter(s)
    m = world.machine("disk=0 depth=16 verify=250000", s.uri(c.path), "--memory", "72M")
    for _ in range(2):
        m.wait(lambda: requests(m))
        c.stall()
        m.qmp.cmd("stop")
        c.go_on()
        goes_on(m)
    finishes(m)
    assert c.connections == 1, "a slow server keeps its connection"


def test_server_gone(world):
    """Killed under requests, and back before the machine goes on."""
    s = world.server()
    m = world.machine("disk=0 depth=16 verify=250000", s.uri(more="queues=2"), "--memory", "72M")
    m.wait(lambda: requests(m))
    s.kill()
    m.qmp.cmd("stop")
    s.start()
    goes_on(m)
    m.qmp.cmd("stop")
    s.kill()
    s.start()
    goes_on(m)
    finishes(m)


def test_delay_stands(world):
    """The time that requests wait for a server does not pass while the machine is paused."""
    s = world.server()
    while True:
        m = world.machine("disk=0 depth=4 verify=250000", s.uri(more="reconnect-delay=12"), "--memory", "72M")
        m.wait(lambda: requests(m))
        began = time.monotonic()
        s.kill()
        m.wait(lambda: "no connection" in m.stderr())
        m.qmp.cmd("stop")
        if time.monotonic() < began + 6:
            break
        m.qmp.cmd("quit")               # the host has stood still: again, with all of the time
        m.ended()
        s.start()
    time.sleep(12.5)
    s.start()
    goes_on(m)
    finishes(m)


def test_clients_of_ports(world):
    """Bytes for a paused guest wait in their sockets, and a client that leaves is no harm."""
    s = world.server()
    m = world.machine("disk=0 depth=4 random verify=250000", s.uri(), "--memory", "72M",
                      "--console", f"unix:{world.dir}/console", "--agent", f"unix:{world.dir}/agent")
    m.wait(lambda: requests(m))

    m.qmp.cmd("stop")
    for name in "console", "agent":
        with socket.socket(socket.AF_UNIX) as c:
            c.connect(str(world.dir / name))
            c.sendall(b"x" * 100)
    goes_on(m)
    finishes(m)


@pytest.mark.parametrize("paused", [False, True])
def test_quit_at_rest(world, paused):
    """A server that never answers delays neither a pause nor the end."""
    s = world.server()

    def start():
        c = world.cutter(s)
        m = world.machine("disk=0 depth=16 verify=250000", s.uri(c.path),
                          *[f"{s.uri(c.path)},id=d{i}" for i in range(6)], "--memory", "72M")
        m.wait(lambda: requests(m))
        c.stall()
        if paused:
            m.qmp.cmd("stop")
        return m, [c]

    quits_soon(start)


def test_reset_at_rest(world):
    """A paused machine is reset with requests under way, and its guest begins anew."""
    s = world.server()
    c = world.cutter(s)
    m = world.machine("disk=0 depth=16 verify=250000", s.uri(c.path), "--memory", "72M")
    m.wait(lambda: requests(m))
    c.stall()
    m.qmp.cmd("stop")
    m.qmp.cmd("system_reset")
    c.go_on()
    m.qmp.cmd("cont")
    m.wait(lambda: m.serial().count("disk 0:") == 2)
    finishes(m)
