#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""tests/bench/region-log.py BUILD [ROUNDS]: what bitmaps, and their crash log, cost a guest's writes.

One merinod has three 64 GiB disks: without a bitmap, with one in memory, with a persistent one.  Short runs of 4 KiB
random writes by the shared folder's nbdload take turns over the three in changing order, so that a drifting machine
hits all alike.  A write goes to any of the 4,096 regions of a disk, into one of their first 16 blocks, which are
allocated before: so a disk takes 256 MiB of the file system.  Prints medians, and in brackets their ratios to the disk
without a bitmap.

    SECONDS=1 DEPTHS=1,16,32 CACHE=direct,page WORK=/var/tmp MERINO_BENCH=../shared/bench
"""

import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from lib import daemon, qmp                                 # noqa: E402

BUILD = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "build").resolve()
ROUNDS = int(sys.argv[2]) if len(sys.argv) > 2 else 15
SECONDS = float(os.environ.get("SECONDS", "1"))
DEPTHS = [int(d) for d in os.environ.get("DEPTHS", "1,16,32").split(",")]
CACHES = os.environ.get("CACHE", "direct,page").split(",")
BENCH = pathlib.Path(os.environ.get("MERINO_BENCH", "../shared/bench"))
REGIONS, REGION, USED = 4096, 16 << 20, 64 << 10
KINDS = ["none", "memory", "persistent"]
ANYWHERE = "(rnd(&th->rng) >> 8) % (o_len / o_bs) * o_bs"
SPREAD = f"({ANYWHERE}) / {REGION} * {REGION} + ({ANYWHERE}) % {USED} / o_bs * o_bs"


def make_client(work):
    source = (BENCH / "nbdload.c").read_text()
    assert ANYWHERE in source
    (work / "load.c").write_text(source.replace(ANYWHERE, SPREAD))
    subprocess.run(["gcc", "-O2", "-pthread", "-o", work / "load", work / "load.c"], check=True)


def make_disks(work):
    block = os.urandom(USED)
    for kind in KINDS:
        with open(work / kind, "wb") as f:
            f.truncate(REGIONS * REGION)
            for i in range(REGIONS):
                os.pwrite(f.fileno(), block, i * REGION)
            os.fsync(f.fileno())


def options(work, kind, cache):
    direct = "on" if cache == "direct" else "off"
    return ["--blockdev", f"file,node-name=f-{kind},filename={work / kind},cache.direct={direct}", "--blockdev",
            f"raw,node-name={kind},file=f-{kind}", "--export", f"nbd,id=e-{kind},node-name={kind},name={kind},writable=on"]


def start(work, cache):
    """merinod with its three disks, and their bitmaps."""
    (work / "pid").unlink(missing_ok=True)
    argv = [BUILD / "merinod", "--nbd-server", f"addr.type=unix,addr.path={work}/nbd", "--chardev",
            f"socket,id=c,path={work}/qmp,server=on,wait=off", "--monitor", "c", "--pidfile", work / "pid", "--allow-dir", work]
    for kind in KINDS:
        argv += options(work, kind, cache)
    proc = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                            preexec_fn=daemon.die_with_parent)
    while not (work / "pid").exists() or not (work / "pid").read_text():
        if proc.poll() is not None:
            raise SystemExit("bench: merinod did not start")
        time.sleep(0.01)
    with qmp.QMP(str(work / "qmp")) as m:
        m.cmd("block-dirty-bitmap-add", node="memory", name="b")
        m.cmd("block-dirty-bitmap-add", node="persistent", name="b", persistent=True)
    return proc


def load(work, kind, depth, pid):
    argv = [work / "load", "-u", work / "nbd", "-x", kind, "-w", "randwrite", "-b", "4k", "-q", str(depth), "-t",
            str(SECONDS), "-W", "0.1", "-p", str(pid)]
    return json.loads(subprocess.run([str(a) for a in argv], check=True, stdout=subprocess.PIPE).stdout)


def row(name, runs, base):
    cells = [name]
    for key, unit in ("iops", "/s"), ("p50_us", "us"), ("p99_us", "us"), ("max_us", "us"), ("server_us_per_io", "us CPU"):
        mine, other = (statistics.median(r[key] for r in v) for v in (runs, base))
        cells.append(f"{mine:,.1f} {unit} ({mine / other:.3f})")
    print("| " + " | ".join(cells) + " |", flush=True)


def rounds(work, depth, pid):
    runs = {kind: [] for kind in KINDS}
    for _ in range(ROUNDS):
        for kind in random.sample(KINDS, len(KINDS)):
            runs[kind].append(load(work, kind, depth, pid))
    return runs


def measure(work, cache):
    proc = start(work, cache)
    try:
        for depth in DEPTHS:
            runs = rounds(work, depth, proc.pid)
            for kind in KINDS:
                row(f"{cache} depth {depth} {kind}", runs[kind], runs["none"])
    finally:
        proc.terminate()
        proc.wait()


def main():
    print(f"4 KiB random writes, 64 GiB, {ROUNDS} rounds of {SECONDS} s\n")
    print("| | writes | p50 | p99 | longest | server |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="merino-bench-", dir=os.environ.get("WORK", "/var/tmp")) as name:
        work = pathlib.Path(name)
        make_client(work)
        make_disks(work)
        for cache in CACHES:
            measure(work, cache)
            for beside in work.glob(".persistent.*"):
                beside.unlink()


if __name__ == "__main__":
    main()
