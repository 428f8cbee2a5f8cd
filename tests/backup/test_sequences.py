# SPDX-License-Identifier: BSD-3-Clause
"""What libvirt and qmpbackup send, command for command, with their names; and the older way to fleece."""

import json

import pytest

from lib import pushes, tools
from lib.patience import wait_until
from lib.peer import Peer
from lib.pushes import K, M, Writer, backup, read_image, wait

SIZE = 16 * M


@pytest.fixture
def disk(daemon, tmp):
    tools.create(tmp / "vda.qcow2", SIZE)
    tools.qemu_io(tmp / "vda.qcow2", "write -P 9 2M 4M", "write -z 12M 64k")
    return daemon.serve(tmp / "vda.qcow2", name="libvirt-1-format")


def content(tmp):
    return read_image(tmp / "vda.qcow2", "qcow2", SIZE, tmp)


def pulled(d, name, context=None):
    """All of an export, or what its context says is dirty: [(offset, bytes)]."""
    h = d.libnbd(name, [context] if context else [])
    out, at = [], 0
    while at < SIZE:
        runs = [SIZE - at, 1]
        if context:
            runs = []
            h.block_status(SIZE - at, at, lambda _c, o, e, _err, runs=runs: runs.extend(e) and 0)
        for n, flags in zip(runs[::2], runs[1::2]):
            step = 4 * M
            for o in range(at, at + n, step) if flags & 1 else ():
                out.append((o, bytes(h.pread(min(step, at + n - o), o))))
            at += n
    h.shutdown()
    return out


def scratch(d, tmp, name, file, backing):
    """libvirt's scratch image: a qcow2 that stands on the disk."""
    tools.create(tmp / f"{name}.qcow2", SIZE)
    d.qmp.cmd("blockdev-add", {"driver": "file", "filename": str(tmp / f"{name}.qcow2"), "node-name": file, "auto-read-only": True, "discard": "unmap"})
    d.qmp.cmd("blockdev-add", {"node-name": name, "read-only": False, "driver": "qcow2", "file": file, "backing": backing})


def test_libvirt_pull(disk, tmp):
    """virsh backup-begin in pull mode, twice: full with a checkpoint, incremental since it.  CLIENTS.md, section 8."""
    base = bytearray(content(tmp))
    q = disk.qmp
    with Writer(disk, "libvirt-1-format", SIZE, content=base) as w:
        for round, since in enumerate([None, "cp0"]):
            node, file = f"libvirt-{2 * round + 3}-format", f"libvirt-{2 * round + 3}-storage"
            scratch(disk, tmp, node, file, "libvirt-1-format")
            actions = [{"type": "block-dirty-bitmap-add", "data": {
                "node": "libvirt-1-format", "name": f"cp{round}", "persistent": True, "disabled": False}}]
            if since:
                actions += [
                    {"type": "block-dirty-bitmap-add", "data": {"node": "libvirt-1-format", "name": "backup-vda", "persistent": False,
                                                                "disabled": True, "granularity": 64 * K}},
                    {"type": "block-dirty-bitmap-merge", "data": {"node": "libvirt-1-format", "target": "backup-vda",
                                                                  "bitmaps": [{"node": "libvirt-1-format", "name": since}]}}]
            actions.append({"type": "blockdev-backup", "data": {
                "device": "libvirt-1-format", "job-id": "backup-vda-libvirt-1-format", "target": node, "sync": "none", "auto-finalize": True,
                "auto-dismiss": False}})
            lo = w.done
            q.cmd("transaction", actions=actions)
            hi = w.begun
            q.cmd("block-export-add", {"type": "nbd", "id": "libvirt-nbd-vda", "node-name": node, "writable": False, "name": "vda",
                                       **({"bitmaps": [{"node": "libvirt-1-format", "name": "backup-vda"}]} if since else {})})
            wait_until(lambda: w.done >= hi + 100 or w.failure)
            for off, data in pulled(disk, "vda", "qemu:dirty-bitmap:backup-vda" if since else None):
                base[off:off + len(data)] = data
            assert w.find(bytes(base), lo, hi) is not None, (round, lo, hi)
            q.cmd("block-export-del", id="libvirt-nbd-vda", mode="hard")
            q.cmd("job-cancel", id="backup-vda-libvirt-1-format")
            events = wait(disk, "backup-vda-libvirt-1-format", "concluded")
            assert pushes.done(events) == ("BLOCK_JOB_CANCELLED", None)
            assert [e for e in events if e[0] == "JOB_STATUS_CHANGE"] == [
                ("JOB_STATUS_CHANGE", {"id": "backup-vda-libvirt-1-format", "status": s}) for s in ("created", "running", "aborting", "concluded")]
            q.cmd("job-dismiss", id="backup-vda-libvirt-1-format")
            wait(disk, "backup-vda-libvirt-1-format")
            if since:
                q.cmd("block-dirty-bitmap-remove", node="libvirt-1-format", name="backup-vda")
            q.cmd("blockdev-del", node_name=node)
            q.cmd("blockdev-del", node_name=file)
    assert [n["node-name"] for n in q.cmd("query-named-block-nodes") if not n["node-name"].startswith("#")] == ["libvirt-1-format"]
    disk.stop()
    tools.check(tmp / "vda.qcow2")


def test_libvirt_push(disk, tmp):
    """virsh backup-begin in push mode: a full, then an incremental, with checkpoints."""
    q = disk.qmp
    with Writer(disk, "libvirt-1-format", SIZE, content=content(tmp)) as w:
        for round in range(2):
            path = tmp / f"push{round}.qcow2"
            tools.create(path, SIZE)
            node = f"libvirt-{round + 3}-format"
            pushes.node(disk, path, node, "qcow2")
            actions = [{"type": "block-dirty-bitmap-add", "data": {"node": "libvirt-1-format", "name": f"cp{round}", "persistent": True}}]
            job = {"device": "libvirt-1-format", "job-id": "backup-vda-libvirt-1-format", "target": node, "sync": "full", "auto-dismiss": False}
            if round:
                actions += [
                    {"type": "block-dirty-bitmap-add", "data": {"node": "libvirt-1-format", "name": "backup-vda", "disabled": True}},
                    {"type": "block-dirty-bitmap-merge", "data": {"node": "libvirt-1-format", "target": "backup-vda",
                                                                  "bitmaps": [{"node": "libvirt-1-format", "name": "cp0"}]}}]
                job.update({"sync": "incremental", "bitmap": "backup-vda"})
            lo = w.done
            q.cmd("transaction", actions=actions + [{"type": "blockdev-backup", "data": job}])
            hi = w.begun
            assert pushes.done(wait(disk, job["job-id"], "concluded")) == ("BLOCK_JOB_COMPLETED", None)
            q.cmd("job-dismiss", id=job["job-id"])
            if round:
                q.cmd("block-dirty-bitmap-remove", node="libvirt-1-format", name="backup-vda")
            q.cmd("blockdev-del", node_name=node)
            if round:
                tools.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", tmp / "push0.qcow2", path)
            assert w.find(read_image(path, "qcow2", SIZE, tmp), lo, hi) is not None, (round, lo, hi)


def test_scratch_after_the_end(disk, tmp):
    """Once the job is gone, nobody reads a mixture of then and now; and the scratch image serves again."""
    scratch(disk, tmp, "s", "sf", "libvirt-1-format")
    h = disk.libnbd("libvirt-1-format")
    backup(disk, "libvirt-1-format", "s", sync="none", filter_node_name="between")
    assert [n["node-name"] for n in disk.qmp.cmd("query-named-block-nodes") if n["drv"] == "view"] == ["between"]
    disk.qmp.cmd("block-export-add", type="nbd", id="s", node_name="s", name="s")
    h.pwrite(b"x" * 64 * K, 2 * M)
    r = disk.libnbd("s")
    assert r.pread(64 * K, 2 * M) == b"\x09" * 64 * K
    disk.qmp.cmd("job-cancel", id="j")
    wait(disk)
    with pytest.raises(Exception, match="[Ii]nput/output"):
        r.pread(64 * K, 2 * M)
    backup(disk, "libvirt-1-format", "s", sync="none")
    assert r.pread(64 * K, 2 * M) == b"x" * 64 * K
    r.shutdown()
    h.shutdown()


def test_none_to_a_target_of_its_own(disk, tmp):
    """What guests overwrite gets into a target that does not stand on the disk."""
    path = pushes.target(disk, tmp, SIZE, fmt="raw")
    backup(disk, "libvirt-1-format", sync="none")
    h = disk.libnbd("libvirt-1-format")
    h.pwrite(b"x" * 4 * K, 2 * M)
    h.pwrite(b"y" * 4 * K, 3 * M)
    while path.read_bytes()[3 * M:3 * M + 4 * K] != b"\x09" * 4 * K:
        assert disk.qmp.cmd("query-block-jobs")[0]["status"] == "running"
    assert path.read_bytes()[2 * M:2 * M + 4 * K] == b"\x09" * 4 * K
    disk.qmp.cmd("block-job-cancel", device="j")
    assert pushes.done(wait(disk)) == ("BLOCK_JOB_CANCELLED", None)
    h.shutdown()


def test_qmpbackup(disk, tmp):
    """The calls of one backup of qmpbackup with a fleecing image.  CLIENTS.md, section 3."""
    q, source = disk.qmp, "libvirt-1-format"
    q.cmd("query-status"), q.cmd("query-name"), q.cmd("query-tpm")
    device, = q.cmd("query-block")
    assert device["inserted"]["node-name"] == source
    q.cmd("query-named-block-nodes")
    with Writer(disk, source, SIZE, content=content(tmp)) as w:
        for round, level in enumerate(["full", "inc", "inc"]):
            path = tmp / f"q{round}.qcow2"
            tools.create(path, SIZE)
            tools.create(tmp / f"fleece{round}.qcow2", SIZE)
            pushes.node(disk, path, "qmpbackup-target", "qcow2", discard="unmap")
            pushes.node(disk, tmp / f"fleece{round}.qcow2", "qmpbackup-fleece", "qcow2", discard="unmap")
            if level == "full":
                q.cmd("block-dirty-bitmap-add", node=source, name="qmpbackup", persistent=True)
            q.cmd("blockdev-add", {"driver": "copy-before-write", "node-name": "qmpbackup-cbw", "file": source, "target": "qmpbackup-fleece",
                                   "on-cbw-error": "break-snapshot", "cbw-timeout": 45})
            lo = w.done
            q.cmd("qom-set", path=device["qdev"], property="drive", value="qmpbackup-cbw")
            q.cmd("blockdev-add", {"driver": "snapshot-access", "node-name": "qmpbackup-snap", "file": "qmpbackup-cbw"})
            q.cmd("block-dirty-bitmap-add", node="qmpbackup-snap", name="once")
            actions = [{"type": "block-dirty-bitmap-merge", "data": {"node": "qmpbackup-snap", "target": "once",
                                                                     "bitmaps": [{"node": source, "name": "qmpbackup"}]}}] if level == "inc" else []
            job = {"job-id": "qmpbackup", "device": "qmpbackup-snap", "target": "qmpbackup-target", "sync": "full"}
            if level == "inc":
                job.update({"sync": "bitmap", "bitmap": "once", "bitmap-mode": "never"})
            q.cmd("transaction", actions=actions + [{"type": "blockdev-backup", "data": job}])
            hi = w.begun
            events = wait(disk, "qmpbackup")
            assert pushes.done(events) == ("BLOCK_JOB_COMPLETED", None)
            q.cmd("blockdev-del", node_name="qmpbackup-snap")
            q.cmd("qom-set", path=device["qdev"], property="drive", value=source)
            for name in ("cbw", "fleece", "target"):
                q.cmd("blockdev-del", node_name=f"qmpbackup-{name}")
            if round:
                tools.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", tmp / f"q{round - 1}.qcow2", path)
            assert w.find(read_image(path, "qcow2", SIZE, tmp), lo, hi) is not None, (round, lo, hi)


def told(q, endless):
    """The events of jobs so far, when every job is gone, waits for something, or is ENDLESS; without the pauses that
    QEMU's drains make."""
    def still():
        jobs = q.cmd("query-block-jobs")
        held = any(j["status"] == "pending" and not j["auto-finalize"] for j in jobs)
        return all(j["status"] == "pending" and held or j["status"] == "concluded" and not j["auto-dismiss"] or
                   j["status"] in ("running", "paused") and j["device"] == endless for j in jobs)
    wait_until(still)
    out = [(m["event"], m["data"]) for m in q.events if "JOB" in m["event"]]
    q.events.clear()
    return [e for e in out if e[1].get("status") not in ("paused", "running")]


SCRIPT = [
    ("blockdev-backup", {"job-id": "j", "device": "s", "target": "t", "sync": "full"}),
    ("blockdev-backup", {"device": "s", "target": "t", "sync": "full"}),
    ("blockdev-backup", {"job-id": "1x", "device": "s", "target": "t", "sync": "full"}),
    ("blockdev-backup", {"job-id": "j", "device": "s", "target": "s", "sync": "full"}),
    ("blockdev-backup", {"job-id": "j", "device": "s", "target": "w", "sync": "full"}),
    ("blockdev-backup", {"job-id": "j", "device": "s", "target": "nope", "sync": "full"}),
    ("blockdev-backup", {"job-id": "j", "device": "nope", "target": "t", "sync": "full"}),
    ("blockdev-backup", {"job-id": "j", "device": "s", "target": "r", "sync": "full", "compress": True}),
    ("blockdev-backup", {"job-id": "j", "device": "s", "target": "t", "sync": "incremental"}),
    ("blockdev-backup", {"job-id": "j", "device": "s", "target": "t", "sync": "bitmap", "bitmap": "x", "bitmap-mode": "never"}),
    ("blockdev-backup", {"job-id": "j", "device": "s", "target": "t", "sync": "incremental", "bitmap": "x", "bitmap-mode": "never"}),
    ("blockdev-backup", {"job-id": "j", "device": "s", "target": "t", "sync": "full", "bitmap-mode": "never"}),
    ("block-dirty-bitmap-add", {"node": "s", "name": "b"}),
    ("blockdev-backup", {"job-id": "j", "device": "s", "target": "t", "sync": "none", "bitmap": "b", "bitmap-mode": "always"}),
    ("blockdev-backup", {"job-id": "j", "device": "s", "target": "t", "sync": "full", "bitmap": "b", "bitmap-mode": "never"}),
    ("blockdev-backup", {"job-id": "j", "device": "s", "target": "t", "sync": "full", "bitmap": "b"}),
    ("blockdev-backup", {"job-id": "j", "device": "s", "target": "t", "sync": "full", "x-perf": {"max-workers": 0}}),
    ("blockdev-backup", {"job-id": "j", "device": "s", "target": "t", "sync": "full", "x-perf": {"max-chunk": -1}}),
    ("blockdev-backup", {"job-id": "j", "device": "s", "target": "t", "sync": "incremental", "bitmap": "b"}),
    ("blockdev-backup", {"job-id": "j", "device": "s", "target": "t", "sync": "full", "auto-finalize": False, "auto-dismiss": False}),
    ("query-block-jobs", None),
    ("block-job-set-speed", {"device": "j", "speed": 5}),
    ("block-job-complete", {"device": "j"}),
    ("block-job-finalize", {"id": "j"}),
    ("query-jobs", None),
    ("block-job-dismiss", {"id": "j"}),
    ("block-job-dismiss", {"id": "j"}),
    ("blockdev-backup", {"job-id": "j", "device": "s", "target": "t", "sync": "none"}),
    ("blockdev-backup", {"job-id": "k", "device": "r", "target": "t", "sync": "full"}),
    ("blockdev-backup", {"job-id": "j", "device": "r", "target": "u", "sync": "full"}),
    ("block-job-pause", {"device": "j"}),
    ("block-job-pause", {"device": "j"}),
    ("block-job-cancel", {"device": "j"}),
    ("block-job-resume", {"device": "j"}),
    ("block-job-resume", {"device": "j"}),
    ("block-job-set-speed", {"device": "j", "speed": -5}),
    ("block-job-cancel", {"device": "j"}),
    ("block-job-cancel", {"device": "j"}),
    ("transaction", {"actions": [
        {"type": "blockdev-backup", "data": {"job-id": "a", "device": "s", "target": "t", "sync": "full"}}, {"type": "abort", "data": {}}]}),
    ("transaction", {"actions": [
        {"type": "blockdev-backup", "data": {"job-id": "a", "device": "s", "target": "t", "sync": "full"}},
        {"type": "blockdev-backup", "data": {"job-id": "b", "device": "r", "target": "u", "sync": "full"}}],
        "properties": {"completion-mode": "grouped"}}),
    ("transaction", {"actions": [
        {"type": "blockdev-backup", "data": {"job-id": "a", "device": "s", "target": "t", "sync": "full", "auto-finalize": False}},
        {"type": "blockdev-backup", "data": {"job-id": "b", "device": "r", "target": "u", "sync": "full"}}],
        "properties": {"completion-mode": "grouped"}}),
    ("block-job-cancel", {"device": "a"}),
    ("query-block-jobs", None),
]


def play(q):
    """What each command of the script returns, and the events after it."""
    out, endless = [], None
    for name, args in SCRIPT:
        reply = q.exchange(name, args)
        reply.pop("id")
        if name == "blockdev-backup" and args["sync"] == "none" and "return" in reply:
            endless = args["job-id"]
        elif name == "block-job-cancel" and "return" in reply:
            endless = None
        events = told(q, endless)
        out.append((name, json.dumps(args), reply, sorted(events, key=lambda e: e[1].get("id", e[1].get("device"))), ))
    return out


def test_like_qemu(tmp, daemon):
    """The same script against QEMU's daemon: the same replies, and each job's events in the same order."""
    options = []
    for name, fmt, size in ("s", "qcow2", SIZE), ("t", "qcow2", SIZE), ("u", "qcow2", SIZE), ("w", "qcow2", SIZE // 2), ("r", "raw", SIZE):
        tools.create(tmp / name, size, fmt=fmt)
        options += ["--blockdev", f"driver={fmt},node-name={name},file.driver=file,file.filename={tmp}/{name}"]
    with Peer(tmp, "qemu-storage-daemon", *options) as peer:
        theirs = play(peer.qmp)
    ours = play(daemon.start(*options, listen=None).qmp)
    for a, b in zip(ours, theirs):
        assert a == b
