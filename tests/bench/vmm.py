#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""tests/bench/vmm.py BUILD [REPS]: merino-vmm against QEMU (q35), the same payload, the same server, alternating.

The payload drives virtio-blk by polling.  Both machines are clients of one qemu-storage-daemon (SERVER=merinod: of
merinod).  Prints what each reached, the median, and the ratio to QEMU's; then memory beside the guest's, and the
time from the start to the guest's first word.
"""

import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

BUILD = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "build").resolve()
REPS = int(sys.argv[2]) if len(sys.argv) > 2 else 3
MS = int(os.environ.get("MS", 2000))
SIZE = 1 << 30
WORDS = [("4k randread depth 32", f"depth=32 randread={MS}"), ("4k randwrite depth 32", f"depth=32 randwrite={MS}"),
         ("4k randread depth 1", f"randread={MS}"), ("4k randwrite depth 1", f"randwrite={MS}"),
         ("1M seqread depth 1", f"size=1048576 seqread={MS}"), ("1M seqwrite depth 1", f"size=1048576 seqwrite={MS}"),
         ("1M seqread depth 8", f"depth=8 size=1048576 seqread={MS}"),
         ("1M seqwrite depth 8", f"depth=8 size=1048576 seqwrite={MS}")]


def serve(tmp):
    disk, sock = tmp / "disk", tmp / "nbd"
    with open(disk, "wb") as f:
        for _ in range(SIZE >> 20):
            f.write(os.urandom(4096) * 256)
    server = BUILD / "merinod" if os.environ.get("SERVER") == "merinod" else "qemu-storage-daemon"
    p = subprocess.Popen([server, "--blockdev", f"driver=file,node-name=f,filename={disk}", "--nbd-server",
                          f"addr.type=unix,addr.path={sock}", "--export",
                          "type=nbd,id=e,node-name=f,name=d,writable=on"], stdin=subprocess.DEVNULL)
    while not sock.exists():
        time.sleep(0.01)
    return p, sock


def merino(sock, words):
    return [BUILD / "merino-vmm", "--kernel", BUILD / "guest/payload", "--memory", "256", "--append", f"disk=0 {words}",
            "--disk", f"nbd+unix:///d?socket={sock},queues=1"]


def qemu(sock, words):
    return ["qemu-system-x86_64", "-M", "q35", "-accel", "kvm", "-cpu", "host", "-m", "256", "-nodefaults", "-display",
            "none", "-serial", "stdio", "-kernel", BUILD / "guest/payload", "-append", f"disk=0 {words}",
            "-object", "iothread,id=t", "-blockdev",
            f"driver=nbd,node-name=n,server.type=unix,server.path={sock},export=d",
            "-device", "virtio-blk-pci,drive=n,disable-legacy=on,num-queues=1,iothread=t"]


def run(argv):
    """(IOPS, MiB/s), seconds to the first word, resident KiB beside the guest's pages."""
    began, first, beside, text = time.monotonic(), None, 0, ""
    p = subprocess.Popen([str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    for line in p.stdout:
        if first is None and "payload" in line:
            first = time.monotonic() - began
        if "disk 0" in line:
            status = pathlib.Path(f"/proc/{p.pid}/status").read_text()
            beside = int(re.search(r"RssAnon:\s+(\d+)", status)[1])
        text += line
    assert p.wait() in (0, 1) and "PASS" in text, text
    m = re.search(r"(\d+) IOPS, (\d+) MiB/s", text)
    return int(m[1]), int(m[2]), first, beside


def main():
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as tmp:
        server, sock = serve(pathlib.Path(tmp))
        try:
            starts = {"merino": [], "qemu": []}
            anon = []
            for name, words in WORDS:
                got = {"merino": [], "qemu": []}
                for _ in range(REPS):
                    for who, argv in ("merino", merino(sock, words)), ("qemu", qemu(sock, words)):
                        iops, _, first, beside = run(argv)
                        got[who].append(iops)
                        starts[who].append(first)
                        anon += [beside] if who == "merino" else []
                m, q = statistics.median(got["merino"]), statistics.median(got["qemu"])
                print(f"{name:24} merino {m:8.0f}/s  qemu {q:8.0f}/s  ratio {m / q:.2f}   {got}", flush=True)
            m, q = (statistics.median(starts[w]) * 1000 for w in ("merino", "qemu"))
            print(f"start to the first word  merino {m:.0f} ms  qemu {q:.0f} ms  ratio {m / q:.2f}")
            print(f"memory of its own        merino {max(anon)} KiB (RssAnon; the guest's is a memfd)")
        finally:
            server.terminate()
            server.wait()


main()
