# SPDX-License-Identifier: BSD-3-Clause
"""blockdev-backup: what comes out is the disk at one instant, and bitmaps never lose a bit."""

import subprocess
import time

import pytest

from lib import pushes, tools
from lib.daemon import disk_args
from lib.patience import HANG, listening, wait_until
from lib.pushes import K, M, Writer, backup, bitmap, failed, read_image, succeeded, wait

SIZE = 16 * M


@pytest.fixture
def disk(daemon, tmp):
    """A served qcow2 disk with data; stands on a base image."""
    tools.create(tmp / "base.qcow2", SIZE)
    tools.qemu_io(tmp / "base.qcow2", "write -P 7 0 4M", "write -P 8 12M 1M")
    tools.create(tmp / "disk.qcow2", SIZE, backing=tmp / "base.qcow2")
    tools.qemu_io(tmp / "disk.qcow2", "write -P 9 2M 4M", "write -z 12M 64k")
    return daemon.serve(tmp / "disk.qcow2")


def content(tmp):
    """What the disk has before anybody writes."""
    return read_image(tmp / "disk.qcow2", "qcow2", SIZE, tmp)


@pytest.fixture
def remote(tmp):
    """An NBD server of QEMU's with an empty image; its socket and the image."""
    tools.create(tmp / "remote.qcow2", SIZE)
    sock = tmp / "remote"
    p = subprocess.Popen([tools.need("qemu-nbd"), "-t", "-e", "8", "-f", "qcow2", "-k", sock, "-x", "r", "--discard=unmap",
                          tmp / "remote.qcow2"])
    yield listening(sock, p), tmp / "remote.qcow2", p
    p.kill()
    p.wait()


def instant(w, path, fmt, lo, hi, tmp):
    """The image is one of the states between; qemu-img says so, too."""
    n = w.find(read_image(path, fmt, SIZE, tmp), lo, hi)
    assert n is not None, f"no state from {lo} to {hi}"
    (tmp / "state.raw").write_bytes(w.state(n))
    tools.run("qemu-img", "compare", "-f", fmt, "-F", "raw", path, tmp / "state.raw")


@pytest.mark.parametrize("fmt,kw", [("raw", {}), ("qcow2", {}), ("qcow2", {"compress": True}),
                                    ("raw", {"x_perf": {"max-workers": 1, "max-chunk": 65536, "min-cluster-size": 65536}})])
def test_full_under_writes(disk, tmp, fmt, kw):
    with Writer(disk, "disk", SIZE, content=content(tmp)) as w:
        path = pushes.target(disk, tmp, SIZE, fmt=fmt)
        lo = w.done
        backup(disk, speed=64 * K, **kw)
        hi = w.begun
        wait_until(lambda: w.done > hi + 20 or w.failure)    # they come while it copies
        disk.qmp.cmd("block-job-set-speed", device="j", speed=32 * M)
        succeeded(disk)
    disk.stop()
    instant(w, path, fmt, lo, hi, tmp)
    if fmt == "qcow2":
        tools.check(path)


def test_full_to_nbd(disk, tmp, remote):
    disk.qmp.cmd("blockdev-add", {"driver": "nbd", "node-name": "target", "export": "r", "server": {"type": "unix", "path": str(remote[0])}})
    with Writer(disk, "disk", SIZE, content=content(tmp)) as w:
        lo = w.done
        backup(disk, speed=32 * M)
        hi = w.begun
        succeeded(disk)
    disk.stop()
    remote[2].terminate()
    remote[2].wait()
    instant(w, remote[1], "qcow2", lo, hi, tmp)


def test_top(disk, tmp):
    """Only what the node itself has; standing on its base, that is the disk."""
    with Writer(disk, "disk", SIZE, content=content(tmp)) as w:
        tools.create(tmp / "target.qcow2", SIZE)
        pushes.node(disk, tmp / "target.qcow2", fmt="qcow2")
        lo = w.done
        backup(disk, sync="top", speed=32 * M)
        hi = w.begun
        succeeded(disk)
    disk.stop()
    tools.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", tmp / "base.qcow2", tmp / "target.qcow2")
    instant(w, tmp / "target.qcow2", "qcow2", lo, hi, tmp)


def test_top_leaves_the_base_out(disk, tmp):
    path = pushes.target(disk, tmp, SIZE)
    backup(disk, sync="top")
    succeeded(disk)
    disk.stop()
    data = read_image(path, "qcow2", SIZE, tmp)
    assert data[:2 * M] == bytes(2 * M) and data[2 * M:6 * M] == b"\x09" * 4 * M and not any(data[6 * M:])


def test_incremental_chain(disk, tmp):
    """Five rounds; each image on top of the former is the disk at that instant."""
    disk.qmp.cmd("block-dirty-bitmap-add", node="disk", name="b", persistent=True)
    below = None
    with Writer(disk, "disk", SIZE, content=content(tmp)) as w:
        for n in range(5):
            path = tmp / f"i{n}.qcow2"
            tools.create(path, SIZE, **({"backing": below} if below else {}))
            pushes.node(disk, path, f"i{n}", "qcow2", backing=None)
            lo = w.done
            if below:
                backup(disk, target=f"i{n}", sync="incremental", bitmap="b", speed=64 * M)
            else:
                backup(disk, target=f"i{n}", sync="full", bitmap="b", bitmap_mode="on-success")
            hi = w.begun
            succeeded(disk)
            disk.qmp.cmd("blockdev-del", node_name=f"i{n}")
            instant(w, path, "qcow2", lo, hi, tmp)
            below = path
            time.sleep(0.05)
        assert bitmap(disk, "b")["recording"] and not bitmap(disk, "b")["busy"]
    disk.stop()
    tools.check(tmp / "disk.qcow2")


@pytest.mark.parametrize("mode", ["on-success", "never", "always"])
def test_bitmap_after_success(disk, tmp, mode):
    """What was dirty is clean, what was written meanwhile is dirty; or nothing has changed."""
    disk.qmp.cmd("block-dirty-bitmap-add", node="disk", name="b")
    h = disk.libnbd()
    h.pwrite(b"a" * 2 * M, 8 * M)
    pushes.target(disk, tmp, SIZE)
    backup(disk, sync="bitmap", bitmap="b", bitmap_mode=mode, auto_finalize=False)
    wait(disk, end="pending")
    h.pwrite(b"b" * K, M)
    h.pwrite(b"b" * K, 8 * M)
    assert bitmap(disk, "b")["busy"] and bitmap(disk, None) is not None
    assert "currently in use" in disk.qmp.error("block-dirty-bitmap-clear", node="disk", name="b")[1]
    disk.qmp.cmd("block-job-finalize", id="j")
    succeeded(disk)
    b = bitmap(disk, "b")
    assert not b["busy"] and b["recording"] and bitmap(disk, None) is None
    assert b["count"] == (2 * M + 64 * K if mode == "never" else 128 * K)
    h.shutdown()


@pytest.fixture
def faulty(tmp):
    """An nbdkit whose writes fail while a file is there: blockdev-add's options, and the file."""
    sock, switch = tmp / "faulty", tmp / "fail"
    p = subprocess.Popen([tools.need("nbdkit"), "-f", "-U", sock, "--filter=error", "memory", str(SIZE),
                          "error-pwrite-rate=100%", "error-zero-rate=100%", f"error-file={switch}", "error=ENOSPC"])
    listening(sock, p)
    yield {"driver": "nbd", "node-name": "target", "server": {"type": "unix", "path": str(sock)}}, switch
    p.kill()
    p.wait()


def copied(sock):
    h = pushes_handle(sock)
    data = h.pread(SIZE // 2, 0) + h.pread(SIZE // 2, SIZE // 2)
    h.shutdown()
    return data


def pushes_handle(sock):
    import nbd
    h = nbd.NBD()
    h.connect_unix(str(sock))
    return h


@pytest.mark.parametrize("sync", ["full", "bitmap"])
@pytest.mark.parametrize("mode", ["on-success", "never", "always"])
def test_bitmap_after_failure(disk, tmp, faulty, mode, sync):
    """No bit is clean that is not in the target."""
    if mode == "never" and sync == "full":
        mode = "always"
    disk.qmp.cmd("blockdev-add", faulty[0])
    disk.qmp.cmd("block-dirty-bitmap-add", node="disk", name="b")
    h = disk.libnbd()
    h.pwrite(b"a" * 3 * M, 8 * M)
    before = bitmap(disk, "b")["count"]
    backup(disk, sync=sync, bitmap="b", bitmap_mode=mode, speed=64 * K, x_perf={"max-chunk": 64 * K, "max-workers": 2})
    wait_until(lambda: disk.qmp.cmd("query-block-jobs")[0]["offset"] > 0)
    h.pwrite(b"c" * K, 14 * M)
    h.pwrite(b"c" * K, 0)
    faulty[1].touch()
    disk.qmp.cmd("block-job-set-speed", device="j", speed=0)
    assert failed(disk) == "No space left on device"
    after = bitmap(disk, "b")
    assert not after["busy"] and bitmap(disk, None) is None
    if mode != "always":
        assert after["count"] == before + 128 * K
        return
    if sync == "bitmap":
        assert after["count"] < before + 128 * K
    data, now = copied(tmp / "faulty"), b"".join(h.pread(M, i * M) for i in range(16))
    for off in range(0, SIZE, 64 * K):
        if off in (0, 14 * M):
            assert dirty(disk, off)
        elif not dirty(disk, off) and (sync == "full" or 8 * M <= off < 11 * M):
            assert data[off:off + 64 * K] == now[off:off + 64 * K], hex(off)
    h.shutdown()


def dirty(d, off):
    """Whether bitmap b is dirty there, asked once and kept."""
    if not hasattr(d, "dirty_map"):
        d.qmp.cmd("block-dirty-bitmap-disable", node="disk", name="b")
        d.qmp.cmd("block-export-add", type="nbd", id="m", node_name="disk", name="m", bitmaps=["b"])
        h = d.libnbd("m", ["qemu:dirty-bitmap:b"])
        d.dirty_map = []
        at = 0
        while at < SIZE:
            got = []
            h.block_status(SIZE - at, at, lambda _c, o, e, _err, got=got: got.extend(e) and 0)
            for n, flags in zip(got[::2], got[1::2]):
                d.dirty_map.append((at, at + n, flags & 1))
                at += n
        h.shutdown()
    return any(a <= off < b and f for a, b, f in d.dirty_map)


def test_stop_on_error(disk, faulty, tmp):
    """The job waits for people, and goes on where it was."""
    disk.qmp.cmd("blockdev-add", faulty[0])
    faulty[1].touch()
    backup(disk, on_target_error="enospc")
    assert disk.qmp.event("BLOCK_JOB_ERROR")["data"] == {"device": "j", "operation": "write", "action": "stop"}
    while disk.qmp.cmd("query-block-jobs")[0]["status"] != "paused":
        time.sleep(0.01)
    info, = disk.qmp.cmd("query-block-jobs")
    assert (info["io-status"], info["paused"], info["busy"]) == ("nospace", True, False)
    assert "currently paused" in disk.qmp.error("block-job-cancel", device="j")[1]
    faulty[1].unlink()
    disk.qmp.cmd("block-job-resume", device="j")
    succeeded(disk)
    before = content(tmp)
    assert copied(tmp / "faulty") == before


def test_ignore_tries_again(disk, faulty, tmp):
    disk.qmp.cmd("blockdev-add", faulty[0])
    faulty[1].touch()
    backup(disk, on_target_error="ignore")
    for _ in range(3):
        assert disk.qmp.event("BLOCK_JOB_ERROR")["data"]["action"] == "ignore"
    faulty[1].unlink()
    succeeded(disk)
    assert copied(tmp / "faulty") == content(tmp)


def test_source_error(daemon, tmp):
    """Reads that fail are told as such."""
    tools.create(tmp / "disk.raw", SIZE, fmt="raw")
    (tmp / "disk.raw").write_bytes(b"x" * SIZE)
    (tmp / "rules").write_text('[inject-error]\nevent = "read_aio"\nerrno = "5"\nsector = "4096"\nonce = "off"\n')
    d = daemon.start("--blockdev", f"driver=raw,node-name=disk,file.driver=blkdebug,file.image.driver=file,"
                     f"file.image.filename={tmp}/disk.raw,file.inject-error.0.event=none,file.inject-error.0.iotype=read,"
                     "file.inject-error.0.errno=5,file.inject-error.0.sector=4096")
    pushes.target(d, tmp, SIZE)
    backup(d)
    events = wait(d)
    assert pushes.done(events) == ("BLOCK_JOB_COMPLETED", "Input/output error")
    assert ("BLOCK_JOB_ERROR", {"device": "j", "operation": "read", "action": "report"}) in events


def test_target_gone(disk, tmp, remote):
    """A target that stops costs the job, not the guest; a cancel ends it."""
    disk.qmp.cmd("blockdev-add", {"driver": "nbd", "node-name": "target", "export": "r", "server": {"type": "unix", "path": str(remote[0])}})
    remote[2].send_signal(19)                                  # SIGSTOP
    try:
        with Writer(disk, "disk", SIZE, content=content(tmp)) as w:
            backup(disk)
            n = w.done
            while w.done < n + 200:
                assert not w.failure
                time.sleep(0.01)
            disk.qmp.cmd("block-job-cancel", device="j")
            assert pushes.done(wait(disk)) == ("BLOCK_JOB_CANCELLED", None)
    finally:
        remote[2].send_signal(18)
    assert w.done > 200


def test_pause_speed_cancel(disk, tmp):
    pushes.target(disk, tmp, SIZE)
    backup(disk, speed=64 * K)
    disk.qmp.cmd("block-job-pause", device="j")
    wait(disk, end="paused")
    at = disk.qmp.cmd("query-block-jobs")[0]["offset"]
    time.sleep(0.2)
    assert disk.qmp.cmd("query-block-jobs")[0]["offset"] == at
    disk.qmp.cmd("block-job-set-speed", device="j", speed=0)
    disk.qmp.cmd("block-job-resume", device="j")
    succeeded(disk)
    pushes.target(disk, tmp, SIZE, name="other")
    backup(disk, target="other", speed=64 * K)
    disk.qmp.cmd("block-job-cancel", device="j")
    assert [data["status"] for e, data in wait(disk) if e == "JOB_STATUS_CHANGE"] == \
        ["created", "running", "aborting", "concluded", "null"]


def test_one_instant_of_three(daemon, tmp):
    """The same counter is written to three disks on different loops, one after the other."""
    args = ["--loops", "2"]
    for n in "abc":
        tools.create(tmp / f"{n}.qcow2", SIZE)
        args += disk_args(tmp / f"{n}.qcow2", name=n)
    d = daemon.start(*args)
    import threading
    handles, stop, counted = [d.libnbd(n) for n in "abc"], threading.Event(), threading.Event()

    def count():
        i = 0
        while not stop.is_set():
            i += 1
            for h in handles:
                h.pwrite(b"%016d" % i, 8 * M)
            counted.set()
    t = threading.Thread(target=count)
    t.start()
    try:
        assert counted.wait(HANG)
        for r in range(5):
            for n in "abc":
                pushes.target(d, tmp, SIZE, name=f"{n}{r}", fmt="raw")
            d.qmp.cmd("transaction", actions=[
                {"type": "blockdev-backup", "data": {"job-id": n, "device": n, "target": f"{n}{r}", "sync": "full"}} for n in "abc"],
                properties={"completion-mode": "grouped" if r % 2 else "individual"})
            ended = set()
            while len(ended) < 3:
                m = d.qmp.event("BLOCK_JOB_COMPLETED")["data"]
                assert "error" not in m
                ended.add(m["device"])
            a, b, c = (int((tmp / f"{n}{r}.raw").read_bytes()[8 * M:8 * M + 16]) for n in "abc")
            assert a >= b >= c >= a - 1 and c > 0, (a, b, c)
            while d.qmp.cmd("query-jobs"):
                time.sleep(0.01)
            for n in "abc":
                d.qmp.cmd("blockdev-del", node_name=f"{n}{r}")
    finally:
        stop.set()
        t.join()


def grouped(d, *jobs, mode="grouped"):
    d.qmp.cmd("transaction", actions=[{"type": "blockdev-backup", "data": j} for j in jobs], properties={"completion-mode": mode})


def test_grouped_failure(disk, faulty, tmp):
    """One fails: the others are cancelled, and no bitmap follows."""
    disk.qmp.cmd("blockdev-add", faulty[0])
    for b in "pq":
        disk.qmp.cmd("block-dirty-bitmap-add", node="disk", name=b)
    h = disk.libnbd()
    h.pwrite(b"a" * M, 8 * M)
    pushes.target(disk, tmp, SIZE, name="good")
    faulty[1].touch()
    job = {"device": "disk", "sync": "incremental"}
    grouped(disk, {**job, "job-id": "g", "target": "good", "bitmap": "p"}, {**job, "job-id": "f", "target": "target", "bitmap": "q"})
    ends = {}
    while len(ends) < 2:
        m = disk.qmp.event("JOB_STATUS_CHANGE")["data"]
        if m["status"] == "null":
            ends[m["id"]] = True
    words = {e["data"]["device"]: (e["event"], e["data"].get("error")) for e in disk.qmp.events if e["event"] in pushes.ENDS}
    assert words == {"g": ("BLOCK_JOB_CANCELLED", None), "f": ("BLOCK_JOB_COMPLETED", "No space left on device")}
    assert bitmap(disk, "p")["count"] == bitmap(disk, "q")["count"] == M
    h.shutdown()


def test_transaction_leaves_nothing(disk, tmp):
    """What fails at the instant undoes views and successors."""
    pushes.target(disk, tmp, SIZE)
    disk.qmp.cmd("block-dirty-bitmap-add", node="disk", name="b")
    kind, text = disk.qmp.error("transaction", actions=[
        {"type": "block-dirty-bitmap-add", "data": {"node": "disk", "name": "new"}},
        {"type": "blockdev-backup", "data": {"job-id": "j", "device": "disk", "target": "target", "sync": "full", "bitmap": "b",
                                             "bitmap-mode": "always"}},
        {"type": "abort", "data": {}}])
    assert text == "Transaction aborted using Abort action"
    assert disk.qmp.cmd("query-block-jobs") == [] and not bitmap(disk, "b")["busy"]
    assert bitmap(disk, "new") is None and bitmap(disk, None) is None
    disk.qmp.cmd("blockdev-del", node_name="target")
    disk.qmp.cmd("transaction", actions=[{"type": "block-dirty-bitmap-add", "data": {"node": "disk", "name": "new"}}])


def test_grouped_transaction_leaves_nothing(disk, tmp):
    """Jobs of a group that never began are taken back one by one."""
    for name in "abc":
        pushes.target(disk, tmp, SIZE, name)
    kind, text = disk.qmp.error("transaction", properties={"completion-mode": "grouped"}, actions=[
        {"type": "blockdev-backup", "data": {"job-id": name, "device": "disk", "target": name, "sync": "full"}} for name in "abc"
    ] + [{"type": "abort", "data": {}}])
    assert text == "Transaction aborted using Abort action"
    assert disk.qmp.cmd("query-jobs") == []
    for name in "abc":
        disk.qmp.cmd("blockdev-del", node_name=name)


def test_bitmap_made_in_the_transaction(disk, tmp):
    pushes.target(disk, tmp, SIZE)
    disk.qmp.cmd("transaction", actions=[
        {"type": "block-dirty-bitmap-add", "data": {"node": "disk", "name": "new"}},
        {"type": "blockdev-backup", "data": {"job-id": "j", "device": "disk", "target": "target", "sync": "full", "bitmap": "new",
                                             "bitmap-mode": "on-success"}}])
    succeeded(disk)
    assert bitmap(disk, "new")["count"] == 0


def test_killed(disk, tmp, daemon):
    """After kill -9 in the middle the disk is sound, and its bitmap has not lost a bit."""
    disk.qmp.cmd("block-dirty-bitmap-add", node="disk", name="b", persistent=True)
    disk.libnbd().pwrite(b"a" * M, 8 * M)
    pushes.target(disk, tmp, SIZE)
    backup(disk, sync="incremental", bitmap="b", speed=64 * K)
    disk.kill()
    tools.run("qemu-img", "check", "-q", "-r", "all", tmp / "disk.qcow2", check=False)
    tools.check(tmp / "disk.qcow2")
    d = daemon.serve(tmp / "disk.qcow2")
    b = bitmap(d, "b")
    assert b is None or b.get("inconsistent") or b["count"] >= M


@pytest.mark.parametrize("kw,text", [
    ({"filter_node_name": "f"}, "filter-node-name: with this sync mode there is no filter above the source"),
    ({"on_cbw_error": "break-guest-write"}, "on-cbw-error=break-guest-write is not supported: the guest comes first"),
    ({"discard_source": True}, "discard-source: node 'disk' is no snapshot-access node"),
    ({"x_perf": {"use-copy-range": True}}, "x-perf.use-copy-range=true is not supported"),
    ({"x_perf": {"min-cluster-size": 3}}, "min-cluster-size needs to be a power of 2"),
])
def test_refused_by_name(disk, tmp, kw, text):
    pushes.target(disk, tmp, SIZE)
    assert disk.qmp.error("blockdev-backup", job_id="j", device="disk", target="target", sync="full", **kw)[1] == text
    assert disk.qmp.cmd("query-jobs") == []
    disk.qmp.cmd("blockdev-del", node_name="target")


def test_no_resize_meanwhile(disk, tmp):
    pushes.target(disk, tmp, SIZE)
    backup(disk, speed=64 * K)
    for name in "disk", "target":
        assert "backup job 'j'" in disk.qmp.error("block_resize", node_name=name, size=2 * SIZE)[1]
        assert "use" in disk.qmp.error("blockdev-del", node_name=name)[1]
    assert "block device is in use by block job: backup" in disk.qmp.error(
        "blockdev-backup", job_id="k", device="disk", target="target", sync="full")[1]


def test_device_is_an_export(disk, tmp):
    pushes.target(disk, tmp, SIZE)
    disk.qmp.cmd("block-export-add", type="nbd", id="vda", node_name="disk", name="vda")
    disk.qmp.cmd("blockdev-backup", device="vda", target="target", sync="full")
    succeeded(disk, "vda")



def test_drive_backup(disk, tmp):
    """It makes the image, with what that stands on, and lets go of it."""
    before = content(tmp)
    for sync, fmt in ("full", "raw"), ("full", "qcow2"), ("top", "qcow2"):
        path = tmp / f"{sync}.{fmt}"
        disk.qmp.cmd("drive-backup", job_id="j", device="disk", target=str(path), sync=sync, format=fmt)
        succeeded(disk)
        assert read_image(path, fmt, SIZE, tmp) == before
        assert tools.info(path).get("backing-filename") == (str(tmp / "base.qcow2") if sync == "top" else None)
    disk.qmp.cmd("drive-backup", job_id="j", device="disk", target=str(tmp / "full.raw"), sync="full", format="raw", mode="existing")
    succeeded(disk)
    assert "not guessed" in disk.qmp.error("drive-backup", job_id="j", device="disk", target=str(tmp / "full.raw"), sync="full",
                                           mode="existing")[1]
    disk.qmp.cmd("drive-backup", job_id="j", device="disk", target=str(tmp / "none.qcow2"), sync="none")
    disk.qmp.cmd("job-cancel", id="j")
    wait(disk)
    assert len(disk.qmp.cmd("query-named-block-nodes")) == 4       # the disk, its base, their files
