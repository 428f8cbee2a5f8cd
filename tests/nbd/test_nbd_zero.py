# SPDX-License-Identifier: BSD-3-Clause
"""WRITE_ZEROES (NO_HOLE, FAST_ZERO), TRIM and CACHE: contents and allocation afterwards."""

import pytest

from lib import layered, pattern, tools
from lib.nbdproto import *                               # noqa: F403
from lib.smalldisk import CONTENT, SIZE

M = 1 << 20
RANGES = [(0, SIZE), (0, 65536), (65536, 196608), (1, 1), (511, 2), (4095, 200000), (65535, 65538), (M - 100, 200),
          (M + 70000, 4096), (SIZE - 1, 1), (SIZE - 70000, 70000)]


@pytest.mark.parametrize("flags", [0, F_NO_HOLE, F_FUA, F_FUA | F_NO_HOLE])
@pytest.mark.parametrize("offset, length", RANGES)
def test_zeroes(disk, tmp, offset, length, flags):
    model, c = bytearray(CONTENT), disk.enter()
    c.zero(offset, length, flags)
    model[offset:offset + length] = bytes(length)
    assert pattern.first_difference(c.read(0, SIZE), model) is None
    disk.stop()
    tools.check(tmp / "disk.qcow2")
    assert pattern.first_difference(tools.content(tmp / "disk.qcow2"), model) is None


@pytest.mark.parametrize("offset, length", RANGES)
def test_zeroes_on_raw(rawdisk, tmp, offset, length):
    model, c = bytearray(CONTENT), rawdisk.enter()
    c.zero(offset, length)
    model[offset:offset + length] = bytes(length)
    assert pattern.first_difference(c.read(0, SIZE), model) is None
    assert pattern.first_difference((tmp / "disk.raw").read_bytes(), model) is None


@pytest.mark.parametrize("which", ["disk", "rawdisk"])
def test_zeroes_give_space_back(request, which):
    c = request.getfixturevalue(which).enter(contexts=["base:allocation"])
    c.zero(0, 512 << 10)
    assert c.status_all()[0] == (0, 512 << 10, STATE_HOLE | STATE_ZERO)


def test_no_hole_keeps_raw_space(rawdisk, tmp):
    before = (tmp / "disk.raw").stat().st_blocks
    c = rawdisk.enter()
    c.zero(0, 512 << 10, F_NO_HOLE)
    c.flush()
    assert (tmp / "disk.raw").stat().st_blocks >= before
    assert c.read(0, 512 << 10) == bytes(512 << 10)


def test_no_hole_keeps_qcow2_clusters(disk, tmp):
    disk.enter().zero(0, 512 << 10, F_NO_HOLE)
    disk.stop()
    tools.check(tmp / "disk.qcow2")
    allocated = [e for e in tools.mapping(tmp / "disk.qcow2") if e["start"] < 512 << 10]
    assert all("offset" in e for e in allocated)


def test_zeroes_hide_the_backing_image(daemon, tmp):
    d = daemon.serve(layered.make(tmp))
    c = d.enter()
    for at, n in ((0, 65536), (65536 + 100, 300), (131072, 65536 + 1)):
        c.zero(at, n)
    model = bytearray(layered.CONTENT)
    for at, n in ((0, 65536), (65536 + 100, 300), (131072, 65536 + 1)):
        model[at:at + n] = bytes(n)
    assert pattern.first_difference(c.read(0, SIZE), model) is None
    d.stop()
    tools.check(tmp / "top.qcow2")
    assert pattern.first_difference(tools.content(tmp / "top.qcow2"), model) is None


@pytest.mark.parametrize("which", ["disk", "rawdisk"])
def test_fast_zero_is_done_or_refused(request, which):
    """ENOTSUP and nothing changed, or zeroes."""
    c = request.getfixturevalue(which).enter()
    error = c.call(CMD_WRITE_ZEROES, 65536, 131072, F_FAST_ZERO).error
    assert error in (0, ENOTSUP)
    want = CONTENT[65536:196608] if error else bytes(131072)
    assert c.read(65536, 131072) == want


def test_fast_zero_of_whole_clusters_is_fast(disk):
    """On qcow2 it takes a table entry only: no reason to refuse."""
    assert disk.enter().call(CMD_WRITE_ZEROES, 65536, 131072, F_FAST_ZERO).error == 0


@pytest.mark.parametrize("which", ["disk", "rawdisk"])
def test_trim_gives_space_back_and_reads_as_zeroes(request, which):
    c = request.getfixturevalue(which).enter(contexts=["base:allocation"])
    c.trim(0, 512 << 10)
    assert c.status_all()[0] == (0, 512 << 10, STATE_HOLE | STATE_ZERO)
    assert c.read(0, 512 << 10) == bytes(512 << 10)


@pytest.mark.parametrize("offset, length", RANGES)
def test_trim_touches_nothing_outside(disk, tmp, offset, length):
    """What lies in the range may be old or zero; whole clusters are dropped, parts of clusters stay."""
    c = disk.enter()
    c.trim(offset, length)
    got = c.read(0, SIZE)
    assert got[:offset] == CONTENT[:offset] and got[offset + length:] == CONTENT[offset + length:]
    for at in range(offset, offset + length):
        if got[at] not in (0, CONTENT[at]):
            raise AssertionError(f"byte {at:#x} is neither old nor zero")
    disk.stop()
    tools.check(tmp / "disk.qcow2")
    assert tools.content(tmp / "disk.qcow2") == got


def test_trim_does_not_bring_the_backing_image_back(daemon, tmp):
    """Data of the overlay that hid other data: after the trim, zeroes or old, never the base's."""
    d = daemon.serve(layered.make(tmp))
    c = d.enter()
    c.trim(512 << 10, 512 << 10)                         # here the base holds other bytes
    assert c.read(512 << 10, 512 << 10) == bytes(512 << 10)
    d.stop()
    tools.check(tmp / "top.qcow2")
    assert tools.content(tmp / "top.qcow2")[512 << 10:M] == bytes(512 << 10)


def test_trim_then_write(disk, tmp):
    """Freed clusters used again, with data that must land where it belongs."""
    c, model = disk.enter(), bytearray(CONTENT)
    for round_ in range(8):
        for k in range(16):
            at = 65536 * k
            c.trim(at, 65536)
            model[at:at + 65536] = bytes(65536)
            if (k + round_) % 3:
                model[at + 100:at + 40100] = pattern.block((round_, k), 40000)
                c.write(at + 100, model[at + 100:at + 40100])
    assert pattern.first_difference(c.read(0, SIZE), model) is None
    disk.stop()
    tools.check(tmp / "disk.qcow2")
    assert pattern.first_difference(tools.content(tmp / "disk.qcow2"), model) is None


@pytest.mark.parametrize("offset, length", [(0, 4096), (1, 1), (0, SIZE), (M - 1, 70000), (SIZE - 1, 1)])
def test_cache_changes_nothing(disk, offset, length):
    c = disk.enter()
    c.ok(CMD_CACHE, offset, length)
    assert c.read(0, SIZE) == CONTENT


def test_cache_on_read_only(readonly):
    readonly.enter().ok(CMD_CACHE, 0, SIZE)
