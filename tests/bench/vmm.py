#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""tests/bench/vmm.py BUILD [REPS]: merino-vmm beside QEMU, the same payload as the guest, alternating.

The payload drives virtio-blk by polling.  Four pairs take turns, REPS times (5):

    ours        merino-vmm, merinod                     qemu        QEMU q35, qemu-storage-daemon
    ours-qsd    merino-vmm, qemu-storage-daemon         qemu-ours   QEMU q35, merinod

Each has booted once and measures every kind of request for MS milliseconds (300).  Of each kind: the medians of the rate and of
the CPU time that one request costs the machine without its vCPU, and the server; then the ratio of ours to qemu: the median
of neighbouring runs, and that of the best runs, which is what others who use the machine disturb least.  Then the time from
exec to the guest's first serial output, against QEMU's microvm, too; and the memory that a running machine takes beside its
guest's.

ONLY=ours,qemu: those pairs alone.  BENCH_DIR: where the disk lies.
"""

import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time

BUILD = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "build").resolve()
REPS = int(sys.argv[2]) if len(sys.argv) > 2 else 5
MS = int(os.environ.get("MS", 300))
SIZE = 512 << 20
KINDS = ["randread 32", "randwrite 32", "randread 1", "randwrite 1", "seqread 1M", "seqwrite 1M", "seqread 1M 8",
         "seqwrite 1M 8"]
WORDS = (f"disk=0 depth=32 randread={MS} randwrite={MS} depth=1 randread={MS} randwrite={MS} "
         f"size=1048576 seqread={MS} seqwrite={MS} depth=8 seqread={MS} seqwrite={MS} map")
RESULT = re.compile(r"(\w+) depth (\d+) size (\d+): (\d+) requests in (\d+) us")


def serve(tmp, name):
    """A server of a raw file, and where it listens."""
    disk, sock = tmp / f"disk-{name}", tmp / f"nbd-{name}"
    with open(disk, "wb") as f:
        for _ in range(SIZE >> 20):
            f.write(os.urandom(4096) * 256)
    argv = [BUILD / "merinod" if name == "merinod" else "qemu-storage-daemon",
            "--blockdev", f"driver=file,node-name=f,filename={disk}", "--nbd-server", f"addr.type=unix,addr.path={sock}",
            "--export", "type=nbd,id=e,node-name=f,name=d,writable=on"]
    p = subprocess.Popen([str(a) for a in argv], stdin=subprocess.DEVNULL)
    while not sock.exists():
        time.sleep(0.01)
    return p, sock


def merino(words, sock=None):
    disk = ["--disk", f"nbd+unix:///d?socket={sock},queues=1"] if sock else []
    return [BUILD / "merino-vmm", "--kernel", BUILD / "guest/payload", "--memory", "256", "--append", words, *disk]


def qemu(words, sock=None, machine="q35"):
    memory = "memory-backend-memfd,id=m,size=256M,share=on"
    disk = ["-object", "iothread,id=t", "-blockdev", f"driver=nbd,node-name=n,server.type=unix,server.path={sock},export=d",
            "-device", "virtio-blk-pci,drive=n,disable-legacy=on,num-queues=1,iothread=t"] if sock else []
    return ["qemu-system-x86_64", "-M", f"{machine},memory-backend=m", "-object", memory, "-accel", "kvm", "-cpu", "host",
            "-m", "256", "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-name",
            "bench,debug-threads=on", "-kernel", BUILD / "guest/payload", "-append", words, *disk]


def cpu_us(pid, but=None):
    """CPU time of a process, microseconds; without the threads whose name holds BUT."""
    total = 0
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        try:
            if not but or but not in (task / "comm").read_text():
                total += int((task / "schedstat").read_text().split()[0])
        except OSError:                # a thread that has ended
            pass
    return total / 1000


def beside(pid):
    """KiB of the process's own: PSS without the guest's memory."""
    total, guest = 0, False
    for line in pathlib.Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-", line):
            guest = "memfd:" in line
        elif line.startswith("Pss:") and not guest:
            total += int(line.split()[1])
    return total


class Run:
    """One machine, from exec to its last word."""

    def __init__(self, argv, server=None):
        self.results, self.first, self.beside = {}, None, 0
        began = time.monotonic()
        p = subprocess.Popen([str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        try:
            for line in p.stdout:
                if self.first is None and "payload" in line:
                    self.first = time.monotonic() - began
                m = RESULT.match(line)
                if m or "disk 0" in line:
                    cpu = cpu_us(p.pid, "vcpu" if "merino" in str(argv[0]) else "KVM"), cpu_us(server)
                if m:
                    self.take(m, [a - b for a, b in zip(cpu, self.cpu)])
                if m or "disk 0" in line:
                    self.cpu, self.beside = cpu, beside(p.pid)
                assert "FAIL" not in line, line
                if "PASS" in line:
                    break
        finally:
            p.send_signal(signal.SIGKILL)
            p.wait()
        assert self.first is not None, "it said nothing"

    def take(self, m, cpu):
        n, us = int(m[4]), int(m[5])
        name = m[1] + (f" {m[2]}" if m[3] == "4096" else " 1M" if m[2] == "1" else f" 1M {m[2]}")
        self.results[name] = n * 1e6 / us, cpu[0] / n, cpu[1] / n


def table(runs):
    print(f"{'':15}" + "".join(f"{who:>28}" for who in runs) + "   ours/qemu   best of ours, qemu")
    for kind in KINDS:
        line = f"{kind:15}"
        for who, got in runs.items():
            rate, vmm, server = (statistics.median(r.results[kind][i] for r in got) for i in range(3))
            line += f"{rate:10.0f}/s {vmm:6.1f}+{server:5.1f} us"
        if {"ours", "qemu"} <= set(runs):
            pairs = [a.results[kind][0] / b.results[kind][0] for a, b in zip(runs["ours"], runs["qemu"])]
            ours, peer = (max(r.results[kind][0] for r in runs[who]) for who in ("ours", "qemu"))
            line += f"   {statistics.median(pairs):9.2f}   {ours:8.0f} {peer:8.0f} {ours / peer:6.2f}"
        print(line, flush=True)


def starts():
    got = {"merino-vmm": [], "QEMU microvm": [], "QEMU q35": []}
    for _ in range(2 * REPS):
        got["merino-vmm"].append(Run(merino("map")).first)
        got["QEMU microvm"].append(Run(qemu("map", machine="microvm")).first)
        got["QEMU q35"].append(Run(qemu("map")).first)
    for who, all_of in got.items():
        print(f"start to the first serial output, {who:14} {statistics.median(all_of) * 1000:6.0f} ms "
              f"({min(all_of) * 1000:.0f} to {max(all_of) * 1000:.0f})")


def main():
    only = os.environ.get("ONLY", "ours,qemu,ours-qsd,qemu-ours").split(",")
    servers = {}
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as tmp:
        try:
            for name in "merinod", "qsd":
                servers[name] = serve(pathlib.Path(tmp), name)
            pairs = {"ours": (merino, "merinod"), "qemu": (qemu, "qsd"), "ours-qsd": (merino, "qsd"),
                     "qemu-ours": (qemu, "merinod")}
            runs = {who: [] for who in only}
            for i in range(REPS):
                for who in only[i % len(only):] + only[:i % len(only)]:
                    vmm, server = pairs[who]
                    runs[who].append(Run(vmm(WORDS, servers[server][1]), servers[server][0].pid))
            table(runs)
            for who in only:
                print(f"memory beside the guest's, {who}: {max(r.beside for r in runs[who])} KiB (PSS)")
            starts()
        finally:
            for p, _ in servers.values():
                p.terminate()
                p.wait()


main()
