# SPDX-License-Identifier: BSD-3-Clause
"""Disks that grow and shrink keep their bitmaps: in memory, beside the image, over a restart and a kill."""

import random

import pytest

from lib import dirty, pattern, tools
from lib.dirty import add, ranges, states

pytestmark = pytest.mark.merino_only

G = 65536
GRAINS = (512, 65536, 1 << 20)


class Disk:
    """A disk without an export, its content, and what was written since the bitmaps were made."""

    def __init__(self, daemon, path, fmt, size):
        self.daemon, self.path, self.fmt, self.serial = daemon, path, fmt, 0
        self.model, self.dirty, self.shrunk = bytearray(size), {g: set() for g in GRAINS}, False
        self.start()

    def start(self):
        self.d = self.daemon.start("--blockdev", f"driver={self.fmt},node-name=disk,discard=unmap,file.driver=file,"
                                   f"file.filename={self.path},file.discard=unmap")

    def again(self, end):
        getattr(self.d, end)()
        self.start()

    def write(self, rnd, n=8):
        self.serial += 1
        name = f"w{self.serial}"
        self.d.qmp.cmd("block-export-add", {"type": "nbd", "id": name, "node-name": "disk", "name": name, "writable": True})
        c = self.d.enter(name)
        assert c.size == len(self.model)
        for i in range(n):
            length = rnd.choice((1, 512, 4096, 70000))
            at = rnd.randrange(len(self.model) - length) if i else len(self.model) - length
            data = pattern.block((self.serial, i), length)
            c.write(at, data)
            self.model[at:at + length] = data
            self.touch(at, length)
        self.d.qmp.cmd("block-export-del", {"id": name, "mode": "hard"})
        self.d.qmp.event("BLOCK_EXPORT_DELETED")

    def touch(self, at, length):
        for g in GRAINS:
            self.dirty[g].update(range(at // g, (at + length - 1) // g + 1))

    def resize(self, size):
        self.d.qmp.cmd("block_resize", {"node-name": "disk", "size": size})
        old = len(self.model)
        self.model[size:] = bytes(max(0, size - old))
        for g in GRAINS:
            self.dirty[g] = {i for i in self.dirty[g] if i * g < size}
        if size > old and self.shrunk:                   # what was there before has gone
            self.touch(old, size - old)
        self.shrunk |= size < old

    def check(self):
        for g in GRAINS:
            assert states(self.d)[f"g{g}"]["count"] == g * len(self.dirty[g])
            assert ranges(self.d, f"g{g}") == dirty.model([(i * g, g) for i in self.dirty[g]], g, len(self.model))


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_grow_and_shrink(daemon, tmp, fmt, persistent):
    rnd = random.Random(f"{fmt} {persistent}")
    disk = Disk(daemon, tools.create(tmp / "a", 3 << 20, fmt), fmt, 3 << 20)
    for g in GRAINS:
        add(disk.d, f"g{g}", persistent=persistent, granularity=g)
    for size in ((3 << 20) + 512, 40 << 20, 5 << 20, (300 << 20) + 512, (2 << 20) + 512, 8 << 20):
        disk.write(rnd)
        disk.resize(size)
        disk.check()
        for end in ("kill", "stop") if persistent else ():
            disk.again(end)
            disk.check()
            if end == "stop" and fmt == "qcow2":
                disk.shrunk = True                       # the format cannot say: it may have been
            disk.write(rnd)
            disk.again(end)
            disk.check()


@pytest.mark.parametrize("end", ["kill", "stop"])
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
@pytest.mark.parametrize("sizes", [[(7 << 20) + 512], [1 << 20, 7 << 20], [(1 << 20) + 512, 2 << 20]])
def test_incremental_over_other_sizes(daemon, tmp, fmt, end, sizes):
    """The full before, the dirty ranges after, and the new size make the disk; what was cut off does not come back."""
    rnd = random.Random(f"{fmt} {end}")
    disk = Disk(daemon, tools.create(tmp / "a", 3 << 20, fmt), fmt, (3 << 20))
    disk.write(rnd, 30)
    copy = bytearray(disk.model)
    add(disk.d, "b", persistent=True, granularity=4096)
    disk.write(rnd)
    disk.again(end)
    for size in sizes:
        disk.resize(size)
        disk.again(end)
    disk.write(rnd)
    disk.again(end)
    size = len(disk.model)
    copy = copy[:size] + bytes(max(0, size - len(copy)))
    for at, n in ranges(disk.d, "b"):
        copy[at:at + n] = disk.model[at:at + n]
    assert copy == disk.model
    disk.d.stop()
    tools.check(disk.path) if fmt == "qcow2" else None
    assert tools.content(disk.path, fmt) == disk.model


def test_what_is_known_of_zeroes(daemon, tmp):
    """It stays when the disk grows, but for a last granule that was not a whole one."""
    d = daemon.start("--blockdev", "driver=raw,node-name=disk,discard=unmap,file.driver=file,file.discard=unmap,"
                     f"file.filename={tools.create(tmp / 'a', 3 * G + 512, 'raw')}")
    add(d, "b", granularity=G)

    def look(name, *then):
        d.qmp.cmd("block-export-add", {"type": "nbd", "id": name, "node-name": "disk", "name": name, "writable": True,
                                       "bitmaps": ["b"]})
        c = d.enter(name, ["merino:changes:b"])
        for call in then:
            call(c)
        out = [(at // G, -(-n // G), f) for at, n, f in c.status_all() if f]
        d.qmp.cmd("block-export-del", {"id": name, "mode": "hard"})
        d.qmp.event("BLOCK_EXPORT_DELETED")
        return out
    assert look("x", lambda c: c.zero(0, c.size)) == [(0, 4, 7)]
    d.qmp.cmd("block_resize", {"node-name": "disk", "size": 1 << 40})
    assert look("y") == [(0, 3, 7), (3, 1, 1)]
    assert look("z", lambda c: c.write(c.size - 1, b"x"), lambda c: c.zero(5 << 32, G)) == \
        [(0, 3, 7), (3, 1, 1), ((5 << 32) // G, 1, 7), ((1 << 40) // G - 1, 1, 1)]
    d.qmp.cmd("block_resize", {"node-name": "disk", "size": 2 * G})
    assert look("w") == [(0, 2, 7)]
