# SPDX-License-Identifier: BSD-3-Clause
"""Servers that break off or fall silent at every stage of the protocol, under a guest that verifies."""

import random
import time

import pytest

from lib import slowserver
from lib.machines import finishes, quits_soon, requests, world  # noqa: F401
from lib.stages import HANDSHAKE, PLACES, TRANSMISSION

pytestmark = pytest.mark.merino_only

GUEST = "disk=0 depth=8 verify=250000"


CPUS = 8


def struck(m, c):
    m.wait(c.struck.is_set)


@pytest.mark.parametrize("parts", [HANDSHAKE, TRANSMISSION], ids=["handshake", "transmission"])
def test_cut(world, parts):
    """One guest goes on after each of them: no error, no mismatch.  The disk is small: at the end it reads all."""
    s = world.server(size=2 << 20)
    c = world.stages(s)
    m = world.machine(GUEST, s.uri(c.path, "queues=1"), "--memory", "72M")
    m.wait(lambda: requests(m))
    for part in parts:
        for place in PLACES:
            c.strike(part, place)
            if parts is HANDSHAKE:
                c.cut_all()
            struck(m, c)
            before = requests(m)
            m.wait(lambda: requests(m) > before)
    m.wait(lambda: c.connections > len(parts) * len(PLACES))          # none was left out
    finishes(m)


def test_quit_in_handshakes(world):
    """A disk for each stage; all of them connect again when the server falls silent."""
    s = world.server()
    where = [(part, place) for part in HANDSHAKE for place in PLACES]

    def start():
        stages = [world.stages(s, f"s{i}") for i in range(len(where))]
        m = world.machine("hang", *[f"{s.uri(c.path, 'queues=1')},id=d{i}" for i, c in enumerate(stages)],
                          "--memory", "72M")
        m.says("hang")
        for c, (part, place) in zip(stages, where):
            c.strike(part, place, silent=True)
            c.cut_all()
        for c in stages:
            struck(m, c)
        return m, stages

    quits_soon(start)


@pytest.mark.parametrize("part, word", [("request", "randwrite"), ("write data", "randwrite"), ("reply", "randread"),
                                        ("read data", "randread")])
@pytest.mark.parametrize("place", PLACES[1:])
def test_quit(world, part, word, place):
    """Silence before a part is that after the one before it."""
    s = world.server()

    def start():
        c = world.stages(s)
        c.strike(part, place, silent=True)
        m = world.machine(f"disk=0 depth=8 {word}=250000", s.uri(c.path, "queues=1"), "--memory", "72M")
        struck(m, c)
        return m, [c]

    quits_soon(start)


def test_quit_while_all_cpus_reset_disks(world):
    """A reset waits for a moment for its silent server; that of a disk on every CPU does not make it as many moments."""
    s = world.server()

    def start():
        c = world.cutter(s)
        disks = [f"{s.uri(c.path, 'queues=1')},id=d{i}" for i in range(CPUS)]
        m = world.machine(f"cpus={CPUS} abandon={CPUS}", *disks, "--cpus", str(CPUS), "--memory", "72M", "--paused")
        c.stall()
        m.qmp.cmd("cont")
        m.says("abandon\n")
        time.sleep(1)                                      # they do it now: too early, and there is nothing to see
        return m, [c]

    quits_soon(start)


class Late(slowserver.SlowServer):
    """One write in twenty takes long."""

    random = random.Random(1)

    def late(self, offset):
        if self.random.random() < 0.05:
            time.sleep(1)


def test_late_writes(world):
    """Connections are cut above storage that is late: what was sent again is not done once more after newer writes."""
    with Late(world.dir / "late", 64 << 10) as storage:
        s = world.server(blockdev=f"driver=nbd,node-name=d,server.type=unix,server.path={storage.path}")
        c = world.cutter(s)
        c.cut = lambda r: r.randrange(4 << 10, 128 << 10)
        m = world.machine("disk=0 depth=8 verify=250000", s.uri(c.path, "queues=2"), "--memory", "72M")
        m.wait(lambda: c.cuts > 8)
        c.cut = lambda r: None
        finishes(m)
