# SPDX-License-Identifier: BSD-3-Clause
"""64 disks on all cores, their exports added and removed under load: right data, and nothing is kept afterwards.

Under `make check-asan` and `make check-tsan` the sanitizers look on; the long form is ten minutes.
"""

import os
import random
import threading
import time

import pytest

from lib import nbdraw, tools
from lib.nbdproto import *                               # noqa: F403
from lib.patience import HANG, wait_until

K, M = 1 << 10, 1 << 20
DISKS, SIZE, BLOCK = 64, M, 4 * K
LOOPS = max(4, os.cpu_count() or 1)
WORKERS = 6


class Disk:
    """One image.  Its worker alone writes to it, and knows what is on it: block -> value."""

    def __init__(self, tmp, number):
        self.name, self.fmt = f"disk{number}", ("raw", "qcow2")[number % 2]
        self.path = tools.create(tmp / self.name, SIZE, self.fmt, **({"cluster_size": 4096} if number % 4 == 1 else {}))
        self.values = {}

    def add(self, q):
        q.cmd("blockdev-add", {"driver": self.fmt, "node-name": self.name, "discard": "unmap",
                               "file": {"driver": "file", "filename": self.path, "discard": "unmap"}})
        self.export(q)

    def export(self, q):
        q.cmd("block-export-add", {"type": "nbd", "id": self.name, "node-name": self.name, "writable": True})

    def remove(self, q, node=True):
        q.cmd("block-export-del", {"id": self.name, "mode": "hard"})
        if node:
            q.cmd("blockdev-del", {"node-name": self.name})


class Worker(threading.Thread):
    """Writes, reads, zeroes and flushes on its disks, and comes again when it was thrown out."""

    def __init__(self, address, disks, seed, stop):
        super().__init__()
        self.address, self.disks, self.rng, self.stop = address, disks, random.Random(seed), stop
        self.error, self.sessions, self.requests, self.thrown_out = None, 0, 0, 0

    def run(self):
        try:
            while not self.stop.is_set():
                self.session(self.rng.choice(self.disks))
        except Exception as e:                            # noqa: BLE001: the test reports it
            self.error = e

    def session(self, disk):
        try:
            with nbdraw.Conn(self.address) as c:
                c.enter(disk.name, ["base:allocation"])
                for _ in range(self.rng.randrange(200)):
                    self.request(c, disk)
                self.sessions += 1
                c.disconnect()
        except nbdraw.OptionRefused:
            self.thrown_out += 1                          # it is not there just now
        except (nbdraw.Closed, ConnectionError):
            self.thrown_out += 1

    def request(self, c, disk):
        kind, block = self.rng.randrange(8), self.rng.randrange(SIZE // BLOCK)
        value = self.rng.randrange(1, 256)
        self.requests += 1
        if kind < 4:
            disk.values.setdefault(block, {0}).add(value)  # until it is answered: the old or the new one
            c.write(block * BLOCK, bytes([value]) * BLOCK)
            disk.values[block] = {value}
        elif kind == 4:
            disk.values.setdefault(block, {0}).add(0)
            c.zero(block * BLOCK, BLOCK)
            disk.values[block] = {0}
        elif kind == 5:
            c.flush()
        elif kind == 6:
            c.status(0, SIZE)
        else:
            data = c.read(block * BLOCK, BLOCK)
            assert data[0] in disk.values.get(block, {0}) and data == data[:1] * BLOCK, f"{disk.name} block {block}"


def costs(d):
    return {"descriptors": d.descriptors(), "threads": len(os.listdir(f"/proc/{d.proc.pid}/task"))}


def churn(d, disks, rng, until, enough):
    """Exports go and come back, sometimes with their nodes, for so long, and until ENOUGH() has come of it."""
    q = d.qmp
    while time.monotonic() < until or not enough():
        for disk in rng.sample(disks, 4):
            if rng.random() < 0.5:
                disk.remove(q)
                disk.add(q)
            else:
                disk.remove(q, node=False)
                disk.export(q)
        q.cmd("query-block-exports")
        q.events.clear()
        time.sleep(0.02)


def work(d, disks, seconds, seed):
    stop = threading.Event()
    workers = [Worker(d.nbd_address, disks[i::WORKERS], (seed, i).__repr__(), stop) for i in range(WORKERS)]
    for disk in disks:
        disk.add(d.qmp)
    for w in workers:
        w.start()
    try:
        churn(d, disks, random.Random(seed), time.monotonic() + seconds, lambda: any(w.error for w in workers) or
              sum(w.requests for w in workers) > 100 and any(w.thrown_out for w in workers))
    finally:
        stop.set()
        for w in workers:
            w.join(HANG)
    assert not [w.error for w in workers if w.error], [w.error for w in workers]
    assert not any(w.is_alive() for w in workers)
    with_all(d, disks)
    for disk in disks:
        disk.remove(d.qmp)


def with_all(d, disks):
    """What is on every disk."""
    for disk in disks:
        with nbdraw.Conn(d.nbd_address) as c:
            data = c.enter(disk.name).read(0, SIZE)
        for block, values in disk.values.items():
            assert data[block * BLOCK] in values, f"{disk.name} block {block}"


def many_disks(daemon, tmp, seconds):
    d = daemon.start("--loops", LOOPS)
    disks = [Disk(tmp, i) for i in range(DISKS)]
    work(d, disks, seconds / 4, 1)                        # what is pooled is there after this
    first, memory = costs(d), d.memory()
    work(d, disks, seconds, 2)
    wait_until(lambda: costs(d)["descriptors"] <= first["descriptors"])       # idle workers go after a while
    wait_until(lambda: costs(d)["threads"] <= first["threads"] + 4 * LOOPS)
    wait_until(lambda: d.memory() <= memory * 1.25 + (8 << 20))
    d.stop()
    for disk in disks[1::2]:
        tools.check(disk.path)


@pytest.mark.merino_only
@pytest.mark.slow
def test_many_disks(daemon, tmp):
    many_disks(daemon, tmp, 8)


@pytest.mark.merino_only
@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_many_disks_for_ten_minutes(daemon, tmp):
    many_disks(daemon, tmp, 600)
