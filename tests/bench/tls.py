#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""TLS throughput, ours beside qemu-nbd and nbdkit: nbdcopy reads and writes a raw image in the page cache.

    MERINOD=build/merinod REPS=3 BENCH_SIZE=1024 tests/bench/tls.py

Servers run one at a time, in changing order; medians of REPS runs.  "default" is what a client gets who asks for
nothing; "tuned" is told to prefer AES-GCM.  CPU is the server's, which other load on the machine disturbs less.
"""

import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from lib import pki as pki_module                         # noqa: E402

MIB = int(os.environ.get("BENCH_SIZE", "1024"))
REPS = int(os.environ.get("REPS", "3"))
TUNED = "NORMAL:-CIPHER-ALL:+AES-128-GCM:%SERVER_PRECEDENCE"


class Server:
    """One way to serve IMAGE at WHERE; MODE is psk or x509."""

    def __init__(self, name, mode, argv):
        self.name, self.mode, self.argv = name, mode, argv

    def start(self):
        self.proc = subprocess.Popen(self.argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def cpu(self):
        with open(f"/proc/{self.proc.pid}/stat") as f:
            return sum(map(int, f.read().rpartition(")")[2].split()[11:13])) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        self.proc.terminate()
        self.proc.wait()


def servers(pki, image, where):
    def qemu(mode, priority=None):
        creds = pki.root / {"psk": "psk", "x509": "server"}[mode]
        return ["qemu-nbd", "-t", "-e", "8", "-f", "raw", "-x", "disk", "-k", where, "--tls-creds", "t", "--object",
                f"tls-creds-{mode},id=t,dir={creds},endpoint=server" + (f",priority={priority}" if priority else ""), image]

    def ours(mode):
        make = {"psk": pki.psk_object, "x509": pki.x509_object}[mode]
        return [os.environ.get("MERINOD", "build/merinod"), *make("t"),
                "--nbd-server", f"addr.type=unix,addr.path={where},tls-creds=t",
                "--blockdev", f"file,node-name=disk,filename={image}", "--export", "nbd,id=e,node-name=disk,writable=on"]

    def nbdkit(*options):
        return ["nbdkit", "-f", "-U", where, "--tls=require", *options, "file", image]

    return [
        Server("merinod", "psk", ours("psk")),
        Server("qemu-nbd default", "psk", qemu("psk")),
        Server("qemu-nbd tuned", "psk", qemu("psk", TUNED)),
        Server("nbdkit default", "psk", nbdkit(f"--tls-psk={pki.root / 'psk' / 'keys.psk'}")),
        Server("merinod", "x509", ours("x509")),
        Server("qemu-nbd default", "x509", qemu("x509")),
        Server("qemu-nbd tuned", "x509", qemu("x509", TUNED)),
        Server("nbdkit default", "x509", nbdkit(f"--tls-certificates={pki.root / 'server'}", "--tls-verify-peer")),
    ]


def wait_for(where, proc):
    end = time.monotonic() + 20
    while not os.path.exists(where):
        if proc.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"bench: {proc.args[0]} did not start")
        time.sleep(0.02)
    time.sleep(0.1)


def measure(server, uri, image, writes, where):
    """MiB/s and the server's CPU seconds for each GiB."""
    server.start()
    try:
        wait_for(where, server.proc)
        ends = [str(image) + ".source", uri] if writes else [uri, "null:"]
        argv = ["nbdcopy", "--connections=1", "--requests=16", *ends]
        began, cpu = time.monotonic(), server.cpu()
        subprocess.run(argv, check=True, timeout=120)
        return MIB / (time.monotonic() - began), (server.cpu() - cpu) * 1024 / MIB
    finally:
        server.stop()
        if os.path.exists(where):
            os.unlink(where)


def prepare(work):
    image = work / "image.raw"
    block = os.urandom(1 << 20)
    for path in image, pathlib.Path(str(image) + ".source"):
        with open(path, "wb") as f:
            for _ in range(MIB):
                f.write(block)
    return image


def table(results, writes):
    print(f"\n{'write' if writes else 'read'}, nbdcopy, 1 connection, 16 requests of 256 KiB, {MIB} MiB, medians of {REPS}\n")
    print("| | MiB/s | merinod is | server CPU s/GiB |\n|---|---|---|---|")
    for (mode, name), runs in results.items():
        ours = statistics.median(r[0] for r in results[mode, "merinod"])
        speed, cpu = (statistics.median(r[i] for r in runs) for i in (0, 1))
        print(f"| {mode} {name} | {speed:,.0f} | {ours / speed:.2f} | {cpu:.2f} |")


def main():
    work = pathlib.Path(tempfile.mkdtemp(prefix="merino-bench-tls-", dir=os.environ.get("BENCH_WORK")))
    try:
        (work / "pki").mkdir()
        pki, where, image = pki_module.Pki(work / "pki"), str(work / "nbd"), prepare(work)

        class Address:
            nbd_address = where
        all_servers = servers(pki, image, where)
        for writes in False, True:
            results = {(s.mode, s.name): [] for s in all_servers}
            for _ in range(REPS):
                for s in random.sample(all_servers, len(all_servers)):
                    name = "" if s.argv[0] == "nbdkit" else "disk"
                    uri = pki.uri(Address, "psk" if s.mode == "psk" else "client",
                                  "alice" if s.mode == "psk" else None, name)
                    results[s.mode, s.name].append(measure(s, uri, image, writes, where))
            table(results, writes)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
