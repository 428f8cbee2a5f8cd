# SPDX-License-Identifier: BSD-3-Clause
"""throttle: never more than the limit says; bursts; one limit for a group; and nothing is held up by it that must not be.

Only the least time is asked for: a loaded machine may take longer.
"""

import time

import nbd
import pytest

from lib import tools
from lib.daemon import DidNotStart

M = 1 << 20


def start(daemon, tmp, group, disks=1, extra=()):
    args = ["--object", f"throttle-group,id=g,{group}"]
    for i in range(disks):
        path = tmp / f"{i}.raw"
        path.write_bytes(b"d" * M)              # holes are found without a read
        args += ["--blockdev", f"driver=throttle,node-name=d{i},throttle-group=g,file.driver=file,file.filename={path}",
                 "--export", f"type=nbd,id=d{i},node-name=d{i},writable=on"]
    return daemon.start(*args, *extra)


def took(call, times):
    began = time.monotonic()
    for _ in range(times):
        call()
    return time.monotonic() - began


@pytest.mark.parametrize("limit, call, times, least", [
    # A tenth of a second is in the bucket at first, and the last request is not waited for.
    ("limits.iops-total=20", lambda h: h.pread(512, 0), 14, 0.45),
    ("limits.iops-read=20", lambda h: h.pread(512, 0), 14, 0.45),
    ("limits.iops-write=20", lambda h: h.pwrite(b"x" * 512, 0), 14, 0.45),
    ("x-iops-total=20", lambda h: h.pwrite(b"x" * 512, 0), 14, 0.45),
    ("limits.bps-total=1048576", lambda h: h.pread(65536, 0), 12, 0.45),
    ("limits.bps-write=1048576", lambda h: h.pwrite(b"x" * 65536, 0), 12, 0.45),
    ("limits.iops-total=20,limits.iops-size=4096", lambda h: h.pread(16384, 0), 5, 0.45),
    ("limits.iops-write=20", lambda h: h.zero(4096, 0), 14, 0.45),
    ("limits.iops-total=10,limits.iops-total-max=40", lambda h: h.pread(512, 0), 46, 0.35),
], ids=lambda v: v if isinstance(v, str) else "")
def test_holds(daemon, tmp, limit, call, times, least):
    h = start(daemon, tmp, limit).libnbd("d0")
    assert took(lambda: call(h), times) >= least


@pytest.mark.parametrize("limit, call", [
    ("limits.iops-read=1", lambda h: h.pwrite(b"x" * 512, 0)),
    ("limits.iops-write=1", lambda h: h.pread(512, 0)),
    ("limits.iops-total=1", lambda h: h.flush()),
    ("limits.iops-total=1,limits.iops-total-max=100", lambda h: h.pread(512, 0)),
    ("limits.iops-total=100,limits.iops-total-max=100,limits.iops-total-max-length=20", lambda h: h.pread(512, 0)),
], ids=lambda v: v if isinstance(v, str) else "")
def test_lets_pass(daemon, tmp, limit, call):
    """60 requests that would take a minute if the limit held them."""
    h = start(daemon, tmp, limit).libnbd("d0")
    assert took(lambda: call(h), 60) < 20


def test_one_limit_for_all(daemon, tmp):
    d = start(daemon, tmp, "limits.iops-total=20", 2)
    a, b = d.libnbd("d0"), d.libnbd("d1")
    assert took(lambda: (a.pread(512, 0), b.pread(512, 0)), 8) >= 0.5


def test_both_get_on(daemon, tmp):
    """Nobody starves behind a neighbour with many requests."""
    d = start(daemon, tmp, "limits.iops-total=100", 2)
    a, b = d.libnbd("d0"), d.libnbd("d1")
    for _ in range(60):
        a.aio_pread(nbd.Buffer(512), 0)
    assert took(lambda: b.pread(512, 0), 3) < 20
    while a.aio_in_flight():
        a.poll(-1)


@pytest.mark.merino_only
def test_the_end_does_not_wait(daemon, tmp):
    """A hundred requests at one per second, and SIGTERM."""
    d = start(daemon, tmp, "limits.iops-total=1")
    h = d.libnbd("d0")
    for _ in range(100):
        h.aio_pread(nbd.Buffer(512), 0)
    h.poll(100)
    began = time.monotonic()
    d.stop()
    assert time.monotonic() - began < 60


@pytest.mark.merino_only
def test_a_gate_does_not_wait(daemon, tmp):
    """A transaction closes the gate of a disk whose requests wait for their turn."""
    path = tools.create(tmp / "a.qcow2", 16 * M)
    d = daemon.start("--object", "throttle-group,id=g,limits.iops-total=2",
                     "--blockdev", "driver=throttle,node-name=d0,throttle-group=g,file.driver=qcow2,file.node-name=q,"
                     f"file.file.driver=file,file.file.filename={path}",
                     "--export", "type=nbd,id=d0,node-name=d0,writable=on")
    h = d.libnbd("d0")
    for _ in range(12):
        h.aio_pread(nbd.Buffer(512), 0)
    h.poll(50)
    d.qmp.cmd("block-dirty-bitmap-add", node="q", name="b")
    d.qmp.cmd("block-dirty-bitmap-clear", node="q", name="b")
    d.qmp.cmd("blockdev-add", {"driver": "null-co", "node-name": "n"})


@pytest.mark.parametrize("limits, words", [
    ("limits.iops-total=1,limits.iops-read=1", "bps/iops/max total values and read/write values cannot be used at the"),
    ("limits.iops-size=4096", "iops size requires an iops value to be set"),
    ("limits.bps-total-max=100", "bps_max/iops_max require corresponding bps/iops values"),
    ("limits.bps-total=100,limits.bps-total-max=10", "bps_max/iops_max cannot be lower than bps/iops"),
    ("limits.bps-total=100,limits.bps-total-max-length=10", "burst length set without burst rate"),
    ("limits.bps-total=100,limits.bps-total-max=1000,limits.bps-total-max-length=0", "the burst length cannot be 0"),
    ("limits.bps-total=100,limits.bps-total-max=1000000,limits.bps-total-max-length=2000000000",
     "burst length too high for this burst rate"),
    ("limits.bps-total=2000000000000000", "bps/iops/max values must be within [0, 1000000000000000]"),
    ("limits.what=1", "what"), ("x-what=1", "what"),
])
def test_refused(daemon, tmp, limits, words):
    with pytest.raises(DidNotStart) as e:
        start(daemon, tmp, limits)
    assert words in e.value.stderr


def test_no_such_group(daemon, tmp):
    with pytest.raises(DidNotStart) as e:
        daemon.start("--blockdev", "driver=throttle,node-name=d,throttle-group=nope,file.driver=null-co")
    assert "Throttle group 'nope' does not exist" in e.value.stderr


def test_a_group_in_use_stays(daemon, tmp):
    d = start(daemon, tmp, "limits.iops-total=100")
    assert "is in use, can not be deleted" in d.qmp.error("object-del", {"id": "g"})[1]
    d.qmp.cmd("block-export-del", {"id": "d0"})
    d.qmp.cmd("blockdev-del", {"node-name": "d0"})
    d.qmp.cmd("object-del", {"id": "g"})
