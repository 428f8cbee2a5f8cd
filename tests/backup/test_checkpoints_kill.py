# SPDX-License-Identifier: BSD-3-Clause
"""kill -9 of the daemon anywhere between checkpoint-begin and the answer to checkpoint-end: the next backup is right."""

import random
import threading
import time

import pytest

from lib import tools
from lib.checkpoints import begin, end, epochs, pull, states
from lib.daemon import disk_args

K, M = 1 << 10, 1 << 20
SIZE = 4 * M
PHASES = ["begin", "pull", "end", "end", "end", "failure", "delete"]


def states_of(d, name):
    return [n for n, kept in epochs(d).items() if f"active {name}" in kept]


class World:
    """Two disks, the second of format OTHER, what they hold, and the last backup that was said to be safe."""

    def __init__(self, daemon, tmp, seed, other):
        self.daemon, self.rng, self.serial, self.formats = daemon, random.Random(seed), 0, ["qcow2", other]
        self.images = [tools.create(tmp / f"{n}.image", SIZE, f) for n, f in zip("ab", self.formats)]
        self.models = [bytearray(SIZE), bytearray(SIZE)]
        self.good, self.copies = None, [b"", b""]
        self.full = 0

    def start(self):
        self.d = self.daemon.start("--loops", "2", *[x for n, i, f in zip("ab", self.images, self.formats)
                                                     for x in disk_args(i, f, n)])
        self.handles = [self.d.libnbd(n) for n in "ab"]

    def write(self, n):
        for _ in range(n):
            k = self.rng.randrange(2)
            at, size = self.rng.randrange(SIZE // 512 - 512) * 512, self.rng.choice([512, 4 * K, 64 * K, 256 * K])
            data = self.rng.randbytes(16) * (size // 16)
            self.handles[k].pwrite(data, at)
            self.models[k][at:at + size] = data

    def backup(self, name, since):
        """A backup up to the point where it would be called safe; its copies."""
        c = begin(self.d, "ab", name, since)
        instant = [bytes(m) for m in self.models]
        self.write(5)
        self.full += since is not None and not all(x["incremental"] for x in c["disks"])
        copies = [pull(c, i, since if x["incremental"] else None, self.copies[i])
                  for i, x in enumerate(c["disks"])]
        assert copies == instant, (name, since, [x.get("reason") for x in c["disks"]])
        return copies

    def act(self, phase, name):
        """Goes on until it is killed; what was acknowledged is noted."""
        try:
            monitor = self.d.connect_qmp()
            if phase == "begin":
                begin(self.d, "ab", name, self.good, monitor=monitor)
            elif phase == "delete":
                monitor.cmd("checkpoint-delete", {"id": self.old})
            else:
                end(self.d, name, phase == "end", monitor=monitor)
            self.acked = True
        except (OSError, AssertionError):                # the monitor closed the connection
            pass

    def round(self, phase):
        if phase == "delete" and not self.good:
            return
        self.serial += 1
        name, self.acked, self.old = f"c{self.serial}", False, self.good
        self.write(5)
        copies = self.backup(name, self.good) if phase in ("pull", "end", "failure") else None
        t = threading.Thread(target=self.act, args=(phase, name))
        if phase != "pull":
            t.start()
        time.sleep(self.rng.random() * self.rng.choice([0.001, 0.004, 0.02]))
        self.d.proc.kill()
        if phase != "pull":
            t.join()
        self.d.kill()
        self.start()
        self.look(phase, name, copies)

    def look(self, phase, name, copies):
        now = states(self.d)
        if "incomplete" in now.values():                 # not on every disk: gone with the next beginning
            assert not self.acked and phase == "end" and now[name] == "incomplete"
            end(self.d, begin(self.d, "ab", "x", self.good)["id"], success=False)
            now = states(self.d)
        assert set(now.values()) <= {"active"}, now
        if phase == "delete" and len(states_of(self.d, self.old)) == 1:         # half deleted: again
            self.d.qmp.cmd("checkpoint-delete", {"id": self.old})
            now = states(self.d)
        kept = epochs(self.d)
        assert kept.get("a") == kept.get("b"), kept
        if phase == "end" and (self.acked or name in now):
            assert name in now, "a checkpoint that counted is lost"
            self.good, self.copies = name, copies
        else:
            assert name not in now, phase
        if phase == "delete" and self.old not in now:
            self.good = None


def rounds(daemon, tmp, n, seed, other):
    w = World(daemon, tmp, seed, other)
    w.start()
    w.copies = w.backup("c0", None)
    end(w.d, "c0")
    w.good = "c0"
    for _ in range(n):
        w.round(w.rng.choice(PHASES))
        w.d.close_clients()
        w.handles = [w.d.libnbd(x) for x in "ab"]
    w.backup("last", w.good)
    end(w.d, "last")
    w.d.stop()
    tools.check(w.images[0])
    return w


@pytest.mark.parametrize("other", ["qcow2", "raw"])
def test_killed_anywhere(daemon, tmp, other):
    w = rounds(daemon, tmp, 8, 1, other)
    assert w.full == 0, f"{w.full} backups had to be full"


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("other", ["qcow2", "raw"])
@pytest.mark.parametrize("seed", range(5))
def test_killed_anywhere_100_times(daemon, tmp, seed, other):
    w = rounds(daemon, tmp, 100, seed + 100, other)
    assert w.full == 0, f"{w.full} backups had to be full"
