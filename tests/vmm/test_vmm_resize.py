# SPDX-License-Identifier: BSD-3-Clause
"""A disk of a running machine becomes larger or smaller: the guest sees it, whoever has told merinod."""

import contextlib
import signal

import pytest

from lib import tools, vmm
from lib.daemon import disk_args
from lib.patience import HANG

pytestmark = pytest.mark.merino_only
SIZE = 16 << 20


class World:
    """A merinod with its monitor, and a machine that is told of both."""

    def __init__(self, daemon, tmp, stack):
        tools.create(tmp / "d.qcow2", SIZE)
        self.dir, self.stack = tmp, stack
        self.daemon = daemon.start(*disk_args(tmp / "d.qcow2", name="d"))

    def machine(self, words, *options):
        m = vmm.Vmm(self.dir, words, "--disk", self.daemon.uri("d"), "--merinod-qmp", f"unix:{self.daemon.qmp_path}",
                    *options)
        self.stack.callback(m.end)
        return m


@pytest.fixture
def world(daemon, tmp):
    vmm.need_kvm()
    with contextlib.ExitStack() as stack:
        yield World(daemon, tmp, stack)


def resize(client, size):
    client.cmd("block_resize", {"node-name": "d", "size": size})


def passes(m):
    m.proc.wait(HANG)
    assert m.serial().endswith("PASS\n"), m.serial()[-500:] + m.stderr()
    m.ended()


@pytest.mark.parametrize("by", ["machine", "merinod"])
@pytest.mark.parametrize("size", [2 * SIZE, SIZE // 2, 3 << 40], ids=["grown", "shrunk", "3T"])
def test_resize(world, by, size):
    """Every request on the new size, and beyond it."""
    m = world.machine(f"disk=0 sectors={size // 512} disk-test")
    m.says("disk 0:")
    resize(m.qmp if by == "machine" else world.daemon.qmp, size)
    passes(m)


def test_again_and_again(world):
    sizes = [SIZE + (5 * i % 13 << 20) for i in range(1, 9)]
    m = world.machine("disk=0 " + " ".join(f"sectors={s // 512}" for s in sizes) + " disk-test")
    for s in sizes:
        resize(world.daemon.qmp, s)
        m.says(f"sectors {s // 512}\n")
    passes(m)


def test_shrunk_under_requests(world):
    """What lies beyond the end then fails, for the guest; the machine lives."""
    m = world.machine("disk=0 depth=16 randread=60000")
    m.says("disk 0:")
    resize(m.qmp, SIZE // 4)
    m.says("FAIL randread: status 1, not 0")
    m.proc.wait(HANG)
    m.ended()


def test_event(world):
    """merinod's event, which the machine's clients get, too; none where nothing has changed."""
    m = world.machine("hang")
    m.qmp.cmd("query-status")
    resize(world.daemon.qmp, SIZE)
    resize(world.daemon.qmp, 2 * SIZE)
    for client in world.daemon.qmp, m.qmp:
        assert client.event("BLOCK_EXPORT_RESIZED")["data"] == {"id": "d", "size": 2 * SIZE}


def test_quit_while_it_looks(world, daemon):
    """A server that does not answer the look does not keep the machine from its end."""
    tools.create(world.dir / "other.qcow2", SIZE)
    other = daemon.start(*disk_args(world.dir / "other.qcow2", name="d"))
    m = world.machine("hang", "--merinod-qmp", f"unix:{other.qmp_path}")
    m.says("hang")
    world.daemon.proc.send_signal(signal.SIGSTOP)
    try:
        resize(other.qmp, 2 * SIZE)
        m.wait(lambda: "its size could not be looked at" in m.stderr())
        resize(other.qmp, 3 * SIZE)
        m.qmp.cmd("quit")
        m.ended()
    finally:
        world.daemon.proc.send_signal(signal.SIGCONT)
