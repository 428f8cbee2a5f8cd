# SPDX-License-Identifier: BSD-3-Clause
"""Bitmaps of several granularities over random operations: no granule too few; none too many."""

import pytest

from lib import differential, dirty, tools
from lib.dirty import add, ranges, states

GRAINS = (512, 4096, 65536, 1 << 20)


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
@pytest.mark.parametrize("seed", [11, 12])
def test_exact_after_random_operations(daemon, tmp, fmt, seed):
    size = (8 << 20) + 512
    d = daemon.serve(tools.create(tmp / "a", size, fmt), fmt)
    for g in GRAINS:
        add(d, f"g{g}", granularity=g)
    r = differential.Run(seed, [d.enter(), d.enter()], bytearray(size), 65536)
    r.go(120)
    for g in GRAINS:
        assert states(d)[f"g{g}"]["count"] == dirty.count(r.touched, g)
        assert ranges(d, f"g{g}") == dirty.model(r.touched, g, size)


def test_stored_and_loaded_between_random_operations(daemon, tmp):
    """Four lives of the daemon; the bitmap collects over all of them, and QEMU agrees each time."""
    size = 8 << 20
    path, model, touched = tools.create(tmp / "a.qcow2", size), bytearray(size), []
    for g in GRAINS:
        tools.run("qemu-img", "bitmap", "--add", "-g", g, path, f"g{g}")
    for life in range(4):
        d = daemon.serve(path)
        r = differential.Run(f"stored {life}", [d.enter()], model, 65536)
        r.go(40)
        touched += r.touched
        d.stop()
        tools.check(path)
        for g in GRAINS:
            assert dirty.by_qemu(path, f"g{g}", tmp) == dirty.model(touched, g, size)


def test_incremental_copy_is_the_disk(daemon, tmp):
    """What it is all for: a full copy, and later only the dirty ranges, give the disk."""
    size = 8 << 20
    d = daemon.serve(tools.create(tmp / "a.qcow2", size))
    model, c = bytearray(size), d.enter()
    differential.Run(13, [c], model, 65536).go(200)
    copy = bytearray(c.read(0, size))
    for epoch in range(3):
        add(d, f"e{epoch}", granularity=4096)
        differential.Run(f"epoch {epoch}", [c], model, 65536).go(60)
        for at, n in ranges(d, f"e{epoch}"):
            copy[at:at + n] = c.read(at, n)
        assert copy == model


def test_bitmap_of_a_terabyte(daemon, tmp):
    """2^40 bytes at 64 KiB: counts and offsets beyond 32 bits."""
    size = 1 << 40
    d = daemon.serve(tools.create(tmp / "a.qcow2", size))
    add(d, "b", persistent=True)
    c = d.enter()
    c.write(size - 1, b"x")
    c.write((5 << 32) + 7, b"x")
    c.zero(1 << 39, 3 << 30)
    d.stop()
    tools.check(tmp / "a.qcow2")
    d = daemon.serve(tmp / "a.qcow2")
    assert states(d)["b"]["count"] == (3 << 30) + 2 * 65536
    assert ranges(d, "b") == [(5 << 32, 65536), (1 << 39, 3 << 30), (size - 65536, 65536)]
