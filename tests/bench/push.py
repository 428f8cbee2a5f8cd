#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""tests/bench/push.py BUILD [ROUNDS]: backup jobs, full and incremental, ours beside qemu-storage-daemon's; and pulls.

The source is a raw disk, half of it holes in pieces of 16 MiB, in the page cache.  For an incremental a tenth of the
disk is dirty, in runs of 64 KiB at random places.  Targets: raw, qcow2, and a NBD server: nbdkit's memory plugin, as
in the shared benchmark, or a file behind qemu-storage-daemon.  "pull" is `merino pull` beside nbdcopy, from a merinod
to a raw file.  Everything takes turns in changing order, and what a peer left in the page cache is synced within his
time.  Prints medians of seconds and of the CPU seconds that the copier's process used for each GiB of data.

    SIZE=4 (GiB) KINDS=full,incremental,pull TARGETS=raw,qcow2,nbd WORK=/var/tmp PEER=qemu-storage-daemon BEHIND=nbdkit
"""

import os
import pathlib
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from lib import daemon, qmp                                 # noqa: E402

BUILD = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "build").resolve()
ROUNDS = int(sys.argv[2]) if len(sys.argv) > 2 else 5
SIZE = int(float(os.environ.get("SIZE", "4")) * (1 << 30))
KINDS = os.environ.get("KINDS", "full,incremental,pull").split(",")
TARGETS = os.environ.get("TARGETS", "raw,qcow2,nbd").split(",")
SERVERS = {"merinod": BUILD / "merinod", "peer": os.environ.get("PEER", "qemu-storage-daemon")}
BEHIND = os.environ.get("BEHIND", "nbdkit")
PIECE, RUN = 16 << 20, 64 << 10
DIRTY = random.Random(1).sample(range(SIZE // RUN), SIZE // RUN // 10)


def make_source(work):
    block = os.urandom(PIECE)
    with open(work / "source", "wb") as f:
        f.truncate(SIZE)
        for off in range(0, SIZE, 2 * PIECE):
            os.pwrite(f.fileno(), block[off % 4096:], off)
        for i in DIRTY:                           # so that both kinds read data
            os.pwrite(f.fileno(), block[:RUN], i * RUN)
        os.fsync(f.fileno())


def data_bytes(kind):
    if kind == "incremental":
        return len(DIRTY) * RUN
    half = SIZE // 2
    return half + sum(RUN for i in DIRTY if i * RUN // PIECE % 2)


def start(program, *options):
    return subprocess.Popen([str(a) for a in (program, *options)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL, preexec_fn=daemon.die_with_parent)


def end(proc):
    proc.terminate()
    proc.wait()


def wait_for(path, proc):
    while not path.exists() or not path.read_text():
        if proc.poll() is not None:
            raise SystemExit(f"bench: {proc.args[0]} did not start")
        time.sleep(0.01)


def cpu(pid):
    total = 0
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def serve_target(work, fmt):
    """What stands behind the NBD target; None: the target is a file."""
    target = work / "target"
    target.unlink(missing_ok=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", fmt if fmt == "qcow2" else "raw", target, str(SIZE)], check=True)
    if fmt != "nbd":
        return None
    for x in "nbd.pid", "nbd":
        (work / x).unlink(missing_ok=True)
    if BEHIND == "nbdkit":
        argv = ["-f", "-P", work / "nbd.pid", "-U", work / "nbd", "memory", SIZE]
    else:
        argv = ["--pidfile", work / "nbd.pid", "--blockdev", f"file,node-name=t,filename={target},discard=unmap",
                "--nbd-server", f"addr.type=unix,addr.path={work}/nbd", "--export", "nbd,id=e,node-name=t,name=t,writable=on"]
    proc = start(BEHIND, *argv)
    wait_for(work / "nbd.pid", proc)
    return proc


def target_node(work, fmt):
    if fmt == "nbd":
        return {"driver": "nbd", "node-name": "dst", "export": "t", "server": {"type": "unix", "path": f"{work}/nbd"}}
    return {"driver": fmt, "node-name": "dst", "discard": "unmap",
            "file": {"driver": "file", "filename": f"{work}/target", "discard": "unmap"}}


def make_dirty(work, monitor):
    """A tenth of the disk is dirty, with the bytes that it has."""
    bits = "; ".join(["import nbd", "h = nbd.NBD()", f"h.connect_uri('nbd+unix:///x?socket={work}/x')",
                      f"[h.pwrite(h.pread({RUN}, i * {RUN}), i * {RUN}) for i in {DIRTY}]", "h.shutdown()"])
    monitor.cmd("nbd-server-start", addr={"type": "unix", "data": {"path": f"{work}/x"}})
    monitor.cmd("block-export-add", **{"id": "x", "type": "nbd", "node-name": "src", "name": "x", "writable": True})
    subprocess.run(["/usr/bin/python3", "-"], input=bits.encode(), check=True)
    monitor.cmd("block-export-del", id="x")
    monitor.cmd("nbd-server-stop")


def wait_job(monitor):
    while True:
        event = monitor.events.pop(0) if monitor.events else monitor.message()
        if event.get("event") == "BLOCK_JOB_COMPLETED":
            assert "error" not in event["data"], event
            return


def make_durable(path):
    """Our jobs and pulls end when the storage has it all; QEMU's and nbdcopy do not wait."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def push(work, kind, fmt, name):
    for x in "pid", "qmp", "x":
        (work / x).unlink(missing_ok=True)
    behind = serve_target(work, fmt)
    proc = start(SERVERS[name], "--pidfile", work / "pid", "--chardev",
                 f"socket,path={work}/qmp,server=on,wait=off,id=c", "--monitor", "c", "--blockdev",
                 f"driver=file,node-name=f,filename={work}/source", "--blockdev", "driver=raw,file=f,node-name=src")
    try:
        wait_for(work / "pid", proc)
        with qmp.QMP(str(work / "qmp"), timeout=300) as m:
            extra = {"sync": "full"}
            if kind == "incremental":
                m.cmd("block-dirty-bitmap-add", node="src", name="b")
                make_dirty(work, m)
                extra = {"sync": "incremental", "bitmap": "b"}
            m.cmd("blockdev-add", **target_node(work, fmt))
            before, began = cpu(proc.pid), time.monotonic()
            m.cmd("blockdev-backup", **{"job-id": "j", "device": "src", "target": "dst", **extra})
            wait_job(m)
            make_durable(work / "target")
            return time.monotonic() - began, cpu(proc.pid) - before
    finally:
        end(proc)
        if behind:
            end(behind)


def pull(work, name, server):
    (work / "target").unlink(missing_ok=True)
    uri = f"nbd+unix:///d?socket={work}/pull"
    argv = {"merinod": [BUILD / "merino", "pull", "--force", uri, work / "target"], "peer": ["nbdcopy", uri, work / "target"]}
    if name == "peer":
        subprocess.run(["truncate", "-s", "0", work / "target"], check=True)
    used, began, served = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic(), cpu(server.pid)
    subprocess.run([str(a) for a in argv[name]], check=True, stdout=subprocess.DEVNULL)
    make_durable(work / "target")
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (time.monotonic() - began, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
            + cpu(server.pid) - served)


def table(results):
    print("| | merinod s | peer s | ratio | merinod CPU s/GiB | peer | ratio |\n|---|---|---|---|---|---|---|")
    for key in dict.fromkeys((k, t) for k, t, _ in results):
        both = []
        for name in SERVERS:
            runs, gib = results[(*key, name)], data_bytes(key[0]) / (1 << 30)
            both.append([statistics.median(r[0] for r in runs), statistics.median(r[1] for r in runs) / gib])
        (a, ca), (b, cb) = both
        print(f"| {key[0]} {key[1]} | {a:.2f} | {b:.2f} | {b / a:.2f} | {ca:.2f} | {cb:.2f} | {ca / cb:.2f} |")


def main():
    results = {}
    with tempfile.TemporaryDirectory(prefix="merino-bench-", dir=os.environ.get("WORK", "/var/tmp")) as name:
        work = pathlib.Path(name)
        make_source(work)
        server = start(SERVERS["merinod"], "--pidfile", work / "pull.pid", "--blockdev",
                       f"driver=file,node-name=d,filename={work}/source,read-only=on", "--nbd-server",
                       f"addr.type=unix,addr.path={work}/pull,max-connections=16", "--export", "nbd,id=e,node-name=d,name=d")
        wait_for(work / "pull.pid", server)
        cases = [(k, t, s) for k in KINDS for t in (TARGETS if k != "pull" else ["raw"]) for s in SERVERS]
        for _ in range(ROUNDS):
            for kind, fmt, who in random.sample(cases, len(cases)):
                run = pull(work, who, server) if kind == "pull" else push(work, kind, fmt, who)
                results.setdefault((kind, fmt, who), []).append(run)
        end(server)
    table({c: results[c] for c in cases})


if __name__ == "__main__":
    main()
