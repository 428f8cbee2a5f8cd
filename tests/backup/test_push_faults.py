# SPDX-License-Identifier: BSD-3-Clause
"""Push backups whose source or target fails: the job says so, the guest feels nothing, and the next backup is right."""

import os
import random
import signal
import subprocess
import threading

import nbd
import pytest

from lib import pattern, tools
from lib.patience import HANG, listening, wait_until

MIB = 1 << 20
SIZE = 24 * MIB
EXPORT = {"type": "nbd", "id": "e", "node-name": "disk", "name": "disk", "writable": True}


def rule(kind, sector):
    return {"event": "none", "iotype": kind, "sector": sector, "once": True, "errno": 5}


class Guest(threading.Thread):
    """Writes all the time, one request at a time, as long as nobody stops it."""

    def __init__(self, rig):
        super().__init__(daemon=True)
        self.h, self.going, self.error, self.count = rig.d.libnbd("disk"), True, None, 0
        self.start()
        wait_until(lambda: self.count or self.error)

    def run(self):
        rng = random.Random(7)
        try:
            while self.going:
                self.h.pwrite(pattern.block(rng.randrange(99), 4096), rng.randrange(SIZE // 4096) * 4096)
                self.count += 1
        except nbd.Error as e:
            self.error = e

    def end(self):
        self.going = False
        self.join(HANG)
        assert not self.is_alive() and self.error is None


class Rig:
    def __init__(self, daemon, tmp, *rules):
        self.tmp = tmp
        self.path = tmp / "disk.raw"
        self.path.write_bytes(pattern.block(3, SIZE))
        self.d = daemon.start()
        file = {"driver": "file", "filename": str(self.path)}
        if rules:
            file = {"driver": "blkdebug", "image": file, "inject-error": list(rules)}
        self.add({"driver": "raw", "node-name": "disk", "file": file})
        self.cmd("block-export-add", EXPORT)

    def cmd(self, name, arguments):
        return self.d.qmp.cmd(name, arguments)

    def add(self, options):
        self.cmd("blockdev-add", options)

    def target(self, fmt="raw", rules=(), path=None):
        path = path or self.tmp / f"target.{fmt}"
        if path.exists():
            path.unlink()
        tools.create(path, SIZE, fmt)
        file = {"driver": "file", "filename": str(path)}
        if rules:
            file = {"driver": "blkdebug", "image": file, "inject-error": list(rules)}
        self.add({"driver": fmt, "node-name": "target", "file": file})
        return path

    def start(self, **more):
        self.cmd("blockdev-backup", {"job-id": "j", "device": "disk", "target": "target", "sync": "full"} | more)

    def ended(self):
        return self.d.qmp.event("BLOCK_JOB_COMPLETED")["data"]

    def gone(self, deleted=True):
        """The job and what it made are gone; the target's node can be deleted."""
        assert self.d.qmp.cmd("query-block-jobs") == []
        if deleted:
            self.cmd("blockdev-del", {"node-name": "target"})
            assert len(self.d.qmp.cmd("query-named-block-nodes")) == self.nodes

    def remember(self):
        self.nodes = len(self.d.qmp.cmd("query-named-block-nodes"))

    def next_is_right(self):
        """Another backup, with the guest quiet, equals the disk."""
        path = self.target("qcow2")
        self.start()
        assert "error" not in self.ended()
        self.gone()
        tools.compare(path, self.path, "qcow2", "raw")


def one_error(daemon, tmp, rng, side, fmt):
    at_source = side == "source"
    # The first clusters of a qcow2 image hold tables that are not written whole.
    sector = rng.randrange(0 if at_source or fmt == "raw" else MIB // 512, SIZE // 512)
    rig = Rig(daemon, tmp, *[rule("read", sector)] * at_source)
    rig.remember()
    rig.target(fmt, [] if at_source else [rule("write", sector)])
    guest = Guest(rig)
    rig.start()
    data = rig.ended()
    assert "error" in data and data["type"] == "backup", (sector, data)
    assert data["offset"] < data["len"]
    guest.end()
    rig.gone()
    rig.next_is_right()
    rig.d.stop()


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
@pytest.mark.parametrize("side", ["source", "target"])
def test_one_error_fails_the_job(daemon, tmp, side, fmt):
    rng = random.Random(f"{side} {fmt}")
    for _ in range(2):
        one_error(daemon, tmp, rng, side, fmt)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("side", ["source", "target"])
def test_one_error_fails_the_job_each_time(daemon, tmp, side):
    rng = random.Random(side)
    for i in range(100):
        one_error(daemon, tmp, rng, side, "qcow2" if i % 2 else "raw")


def test_target_full(daemon, tmp):
    small = tmp / "small"
    small.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", small], check=False).returncode:
        pytest.skip("needs a small file system")
    try:
        rig = Rig(daemon, tmp)
        rig.remember()
        rig.target("qcow2", path=small / "t.qcow2")
        guest = Guest(rig)
        rig.start()
        assert "No space left" in rig.ended()["error"]
        guest.end()
        rig.gone()
        rig.next_is_right()
        rig.d.stop()
    finally:
        # The kernel may still be about to close what a ring had open there.
        wait_until(lambda: subprocess.run(["umount", small], check=False).returncode == 0)


@pytest.fixture
def server(tmp):
    """An NBD server in memory that takes its time for writes."""
    tools.need("nbdkit")
    sock = tmp / "server.sock"
    p = subprocess.Popen(["nbdkit", "-f", "-U", sock, "--filter=delay", "memory", str(SIZE), "delay-write=20ms"])
    listening(sock, p)
    yield p, {"driver": "nbd", "node-name": "target", "server": {"type": "unix", "path": str(sock)}}
    p.send_signal(signal.SIGCONT)
    p.kill()
    p.wait()


def test_target_gone(daemon, tmp, server):
    rig = Rig(daemon, tmp)
    rig.remember()
    rig.add(server[1])
    guest = Guest(rig)
    rig.start(speed=MIB // 4, **{"x-perf": {"max-workers": 2, "max-chunk": 65536}})
    wait_until(lambda: rig.d.qmp.cmd("query-block-jobs")[0]["offset"] > 0)
    server[0].kill()
    assert "error" in rig.ended()
    guest.end()
    rig.gone()
    rig.next_is_right()


def test_target_stopped(daemon, tmp, server):
    """Nobody waits for it: neither the guest nor who cancels the job."""
    rig = Rig(daemon, tmp)
    rig.remember()
    rig.add(server[1])
    guest = Guest(rig)
    rig.start(speed=MIB // 4)
    wait_until(lambda: rig.d.qmp.cmd("query-block-jobs")[0]["offset"] > 0)
    server[0].send_signal(signal.SIGSTOP)
    before = guest.count
    wait_until(lambda: guest.count > before + 100 or guest.error)
    rig.cmd("block-job-cancel", {"device": "j", "force": True})
    assert rig.d.qmp.event("BLOCK_JOB_CANCELLED")["data"]["device"] == "j"
    guest.end()
    server[0].send_signal(signal.SIGCONT)
    rig.gone()
    rig.next_is_right()


@pytest.mark.parametrize("stopped", [False, True])
def test_none_is_whole_when_it_is_cancelled(daemon, tmp, server, stopped):
    """sync=none into a slow target: what was overwritten before the cancel is in it after.  A stopped one holds nobody up."""
    rig = Rig(daemon, tmp)
    rig.remember()
    rig.add(server[1])
    rig.start(sync="none", **{"x-perf": {"max-workers": 1}})
    h = rig.d.libnbd("disk")
    server[0].send_signal(signal.SIGSTOP)
    offsets = random.Random(5).sample(range(0, SIZE, 65536), 25)
    for off in offsets:
        h.pwrite(b"new!" * 1024, off)
    jobs = rig.d.qmp.cmd("query-block-jobs")
    assert len(jobs) == 1 and jobs[0]["busy"] and jobs[0]["offset"] < 25 * 65536        # it lags behind
    if not stopped:
        server[0].send_signal(signal.SIGCONT)
    rig.cmd("block-job-cancel", {"device": "j"})
    rig.d.qmp.event("BLOCK_JOB_CANCELLED")
    if not stopped:
        t = nbd.NBD()
        t.connect_unix(server[1]["server"]["path"])
        before = pattern.block(3, SIZE)
        for off in offsets:
            assert bytes(t.pread(4096, off)) == before[off:off + 4096]
        t.shutdown()
    server[0].send_signal(signal.SIGCONT)
    rig.gone()
    rig.next_is_right()
