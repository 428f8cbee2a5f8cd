#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""tests/bench/beside.py BUILD [ROUNDS]: what a guest keeps beside a full push, and what the push does beside a guest.

A raw disk and a raw target on the same storage, direct I/O.  The guest writes 4 KiB at random places: as fast as it can at
depth 1 ("closed"), or 1,000 times a second ("open", latency from the intended time).  Each round measures an idle job, the
guest alone, the guest with a view that nobody reads, and then both, from the job's beginning to its end and a tenth of a
second before it.  "guest" is its rate beside the job as a part of that alone, "job" how fast the job goes as a part of that
without a guest, "view" the guest's rate with a view as a part of that alone, "p99" a ratio, too.  OTHER is another build,
measured beside the job only.

    SIZE=4 (GiB, in steps of 1/64) SECONDS=3 GUESTS=closed,open OTHER=/path/to/another/merinod WORK=/var/tmp MERINO_BENCH=../shared/bench
"""

import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from lib import daemon, qmp                                 # noqa: E402

BUILD = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "build").resolve()
ROUNDS = int(sys.argv[2]) if len(sys.argv) > 2 else 3
SIZE = int(float(os.environ.get("SIZE", "4")) * 64) * (16 << 20)
SECONDS = float(os.environ.get("SECONDS", "3"))
GUESTS = os.environ.get("GUESTS", "closed,open").split(",")
BENCH = pathlib.Path(os.environ.get("MERINO_BENCH", "../shared/bench"))
SERVERS = {"merinod": BUILD / "merinod"}
if os.environ.get("OTHER"):
    SERVERS["other"] = pathlib.Path(os.environ["OTHER"])
LOAD = {"closed": ["-q", "1"], "open": ["-q", "256", "-r", "1000"]}
MEASURE = "g_measure = 1; usleep("


def make_client(work):
    """The shared folder's nbdload; SIGINT ends its measurement."""
    source = (BENCH / "nbdload.c").read_text()
    assert MEASURE in source and "static uint64_t g_size;" in source
    source = source.replace("static uint64_t g_size;", "static void enough(int s) { (void)s; }\nstatic uint64_t g_size;", 1)
    source = source.replace(MEASURE, "signal(SIGINT, enough); " + MEASURE)
    (work / "load.c").write_text("#include <signal.h>\n" + source)
    subprocess.run(["gcc", "-O2", "-pthread", "-o", work / "load", work / "load.c"], check=True)


def make_disk(work):
    with open(work / "disk", "wb") as f:
        for off in range(0, SIZE, 16 << 20):
            f.write(os.urandom(16 << 20))
        os.fsync(f.fileno())


class Server:
    def __init__(self, work, name):
        for x in "pid", "qmp", "nbd", "target":
            (work / x).unlink(missing_ok=True)
        with open(work / "target", "wb") as f:
            f.truncate(SIZE)
        self.work = work
        argv = [SERVERS[name], "--pidfile", work / "pid", "--chardev", f"socket,path={work}/qmp,server=on,wait=off,id=c",
                "--monitor", "c", "--nbd-server", f"addr.type=unix,addr.path={work}/nbd"]
        for node in "disk", "target":
            argv += ["--blockdev", f"file,node-name={node}-file,filename={work}/{node},cache.direct=on",
                     "--blockdev", f"raw,node-name={node},file={node}-file"]
        argv += ["--export", "nbd,id=e,node-name=disk,name=x,writable=on"]
        self.proc = subprocess.Popen([str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                     stderr=subprocess.DEVNULL, preexec_fn=daemon.die_with_parent)
        while not (work / "pid").exists() or not (work / "pid").read_text():
            if self.proc.poll() is not None:
                raise SystemExit("bench: merinod did not start")
            time.sleep(0.01)
        self.monitor = qmp.QMP(str(work / "qmp"), timeout=3600)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.monitor.close()
        self.proc.kill()
        self.proc.wait()

    def view(self):
        """The fleecing scheme, with nothing that reads: what is overwritten goes to an overlay, in the page cache."""
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", self.work / "overlay", str(SIZE)], check=True)
        self.monitor.cmd("blockdev-add", driver="qcow2", backing="disk",
                         **{"node-name": "view", "file": {"driver": "file", "filename": str(self.work / "overlay")}})
        self.monitor.cmd("blockdev-backup", **{"job-id": "v", "device": "disk", "target": "view", "sync": "none"})

    def push(self):
        """Bytes a second, sync of the target included."""
        began = time.monotonic()
        self.monitor.cmd("blockdev-backup", **{"job-id": "j", "device": "disk", "target": "target", "sync": "full"})
        while True:
            event = self.monitor.events.pop(0) if self.monitor.events else self.monitor.message()
            if event.get("event") == "BLOCK_JOB_COMPLETED":
                assert "error" not in event["data"], event
                return SIZE / (time.monotonic() - began)


class Guest:
    def __init__(self, server, kind):
        argv = [server.work / "load", "-u", server.work / "nbd", "-x", "x", "-w", "randwrite", "-b", "4k", *LOAD[kind], "-t",
                "3600", "-W", "0.3", "-p", str(server.proc.pid), "-S", str(int(time.time()) & 0xffff)]
        self.proc = subprocess.Popen([str(a) for a in argv], stdout=subprocess.PIPE, preexec_fn=daemon.die_with_parent)
        time.sleep(0.4)

    def end(self):
        self.proc.send_signal(signal.SIGINT)
        load = json.loads(self.proc.communicate()[0])
        assert not load["errors"], load
        return load


def tell(what, load=None, rate=None):
    cells = [what, f"{load['iops']:,}", f"{load['p50_us']:,.0f}", f"{load['p99_us']:,.0f}", f"{load['max_us'] / 1000:,.1f}"] if load \
        else [what, "", "", "", ""]
    print("| " + " | ".join([*cells, f"{rate / 1e6:,.0f}" if rate else ""]) + " |", flush=True)


def alone(work, kind, name, view=False):
    with Server(work, name) as server:
        if view:
            server.view()
        guest = Guest(server, kind)
        time.sleep(SECONDS)
        load = guest.end()
    tell(f"{kind} guest, {'view' if view else 'alone'}", load)
    return load


def both(work, kind, name):
    with Server(work, name) as server:
        guest = Guest(server, kind)
        rate = server.push()
        load = guest.end()
    tell(f"{kind} guest, push, {name}", load, rate)
    return load, rate


def idle(work, name):
    with Server(work, name) as server:
        rate = server.push()
    tell("idle push", None, rate)
    return rate


def one_round(work, kind, results):
    first = next(iter(SERVERS))
    rate, guest = idle(work, first), alone(work, kind, first)
    viewed = alone(work, kind, first, view=True)
    results.setdefault((kind, "view"), []).append(viewed["iops"] / guest["iops"])
    for name in SERVERS:
        load, beside = both(work, kind, name)
        results.setdefault((kind, name, "guest"), []).append(load["iops"] / guest["iops"])
        results.setdefault((kind, name, "job"), []).append(beside / rate)
        results.setdefault((kind, name, "p99"), []).append(load["p99_us"] / guest["p99_us"])


def main():
    results = {}
    print("| | writes/s | p50 us | p99 us | longest ms | job MB/s |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="merino-bench-", dir=os.environ.get("WORK", "/var/tmp")) as name:
        work = pathlib.Path(name)
        make_client(work)
        make_disk(work)
        for _ in range(ROUNDS):
            for kind in GUESTS:
                one_round(work, kind, results)
    for key, values in results.items():
        print(" ".join(key), "median", round(statistics.median(values), 2), [round(v, 2) for v in values])


if __name__ == "__main__":
    main()
