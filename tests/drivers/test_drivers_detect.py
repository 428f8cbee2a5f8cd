# SPDX-License-Identifier: BSD-3-Clause
"""detect-zeroes: zeroes that are written are stored as zeroes; nothing else changes."""

import os
import random

import pytest

from lib import tools
from lib.daemon import DidNotStart

SIZE = 4 << 20


def serve(daemon, path, fmt, extra):
    return daemon.start("--blockdev", f"driver={fmt},node-name=disk,{extra},file.driver=file,file.filename={path}",
                        "--export", "type=nbd,id=disk,node-name=disk,writable=on")


@pytest.mark.parametrize("mode, blocks", [("off", SIZE), ("on", SIZE), ("unmap", 0)])
def test_raw_space(daemon, tmp, mode, blocks):
    path = tmp / "a.raw"
    path.write_bytes(b"d" * SIZE)
    d = serve(daemon, path, "raw", f"detect-zeroes={mode},discard=unmap")
    h = d.libnbd()
    for at in range(0, SIZE, 1 << 20):
        h.pwrite(bytes(1 << 20), at)
    d.stop()
    assert path.read_bytes() == bytes(SIZE)
    assert (os.stat(path).st_blocks * 512 >= SIZE) == (blocks == SIZE)


@pytest.mark.parametrize("mode", ["on", "unmap"])
def test_qcow2_zero_clusters(daemon, tmp, mode):
    path = tools.create(tmp / "a.qcow2", SIZE)
    d = serve(daemon, path, "qcow2", f"detect-zeroes={mode},discard=unmap")
    d.libnbd().pwrite(bytes(1 << 20), 0)
    d.stop()
    tools.check(path)
    assert not any(e["data"] for e in tools.mapping(path))


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
@pytest.mark.parametrize("mode", ["on", "unmap"])
def test_mixed_writes(daemon, tmp, fmt, mode):
    """Writes of data and zeroes at odd places over what is there: every byte is what was written last."""
    path = tmp / f"a.{fmt}"
    tools.create(path, SIZE, fmt)
    d = serve(daemon, path, fmt, f"detect-zeroes={mode},discard=unmap")
    h, model, rnd = d.libnbd(), bytearray(SIZE), random.Random(mode + fmt)
    for _ in range(150):
        at, n = rnd.randrange(SIZE - 1), rnd.choice([1, 511, 4096, 65536, 200000, 400000])
        n = min(n, SIZE - at)
        data = bytearray(rnd.randbytes(n) if rnd.random() < 0.7 else bytes(n))
        for _ in range(rnd.randrange(3)):
            a = rnd.randrange(n)
            b = min(n, a + rnd.choice([5, 4096, 70000, 150000]))
            data[a:b] = bytes(b - a)
        if rnd.random() < 0.2:
            data[rnd.randrange(n)] = 1
        h.pwrite(bytes(data), at, 1 if rnd.random() < 0.1 else 0)
        model[at:at + n] = data
    assert h.pread(SIZE, 0) == model
    d.stop()
    if fmt == "qcow2":
        tools.check(path)
    assert tools.content(path, fmt) == model


@pytest.mark.merino_only
def test_runs_inside_a_write(daemon, tmp):
    """Where QEMU looks at whole writes only."""
    path = tools.create(tmp / "a.qcow2", SIZE)
    d = serve(daemon, path, "qcow2", "detect-zeroes=on")
    d.libnbd().pwrite(b"d" * 65536 + bytes(3 << 16) + b"d" * 65536, 0)
    d.stop()
    assert [(e["start"], e["length"]) for e in tools.mapping(path) if e["data"]] == [(0, 65536), (4 << 16, 65536)]


def test_overlay_zeroes_hide_the_backing(daemon, tmp):
    """A discard would show what is below (QEMU lost data this way, 1d47eb6898)."""
    base = tools.create(tmp / "b.qcow2", SIZE)
    tools.qemu_io(base, f"write -P 0x11 0 {SIZE}")
    path = tools.create(tmp / "a.qcow2", SIZE, backing=base)
    d = serve(daemon, path, "qcow2", "detect-zeroes=unmap,discard=unmap")
    h = d.libnbd()
    for at, n in ((0, 1 << 20), ((1 << 20) + 4096, 4096), ((2 << 20) + 100, 70000)):
        h.pwrite(bytes(n), at)
        assert h.pread(n, at) == bytes(n)
    assert h.pread(4096, 1 << 20) == b"\x11" * 4096 and h.pread(100, 2 << 20) == b"\x11" * 100
    d.stop()
    tools.check(path)


def test_unmap_needs_discard(daemon, tmp):
    path = tools.create(tmp / "a.qcow2", SIZE)
    with pytest.raises(DidNotStart) as e:
        serve(daemon, path, "qcow2", "detect-zeroes=unmap")
    assert "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap" in e.value.stderr
