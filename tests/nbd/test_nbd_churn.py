# SPDX-License-Identifier: BSD-3-Clause
"""All that goes wrong at once, for some seconds: then nothing may be left of it."""

import os
import random
import socket
import struct
import threading
import time

import pytest

from lib import nbdraw, pattern, smalldisk
from lib.daemon import disk_args
from lib.nbdproto import *                               # noqa: F403
from lib.nbdraw import info_payload, meta_payload
from lib.patience import HANG, wait_until

SECONDS = 7
GONE = (OSError, nbdraw.Closed, nbdraw.ProtocolError, nbdraw.OptionRefused)    # a server that stops ends replies anywhere


def script(rng, name):
    """All bytes of a client's life: handshake, then requests of every kind."""
    option = lambda n, data: OPTS_MAGIC + struct.pack(">II", n, len(data)) + data
    out = struct.pack(">I", FIXED_NEWSTYLE | NO_ZEROES) + option(OPT_STRUCTURED_REPLY, b"")
    out += option(OPT_SET_META, meta_payload(name, ["base:allocation"])) + option(OPT_GO, info_payload(name))
    for i in range(rng.randrange(40)):
        cmd = rng.choice([CMD_READ, CMD_READ, CMD_WRITE, CMD_FLUSH, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES,
                          CMD_BLOCK_STATUS, 77])
        length = rng.choice([0, 1, 512, 4096, 65536, 100000, 1 << 20, 3 << 20])
        offset, flags = rng.choice([0, 4096, 12345, 1 << 20, 1 << 63]), rng.choice([0, 0, F_FUA, F_DF])
        out += struct.pack(">IHHQQI", REQUEST_MAGIC, flags, cmd, i, offset, length)
        out += bytes(length) if cmd == CMD_WRITE else b""
    return out


def vanish(address, rng, stop):
    """Sends a life up to a random byte, reads some of the answers or none, and goes, with FIN or RST."""
    while not stop.is_set():
        try:
            with nbdraw.Conn(address, timeout=0.05) as c:
                data = script(rng, rng.choice(["disk0", "disk1", "none"]))
                c.send(data[:rng.randrange(len(data))] if rng.random() < 0.8 else data)
                if rng.random() < 0.5:
                    c.recv(rng.randrange(1 << 18))
                if rng.random() < 0.5:
                    c.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except GONE:
            pass


def sit(address, rng, stop):
    """Asks for more than any buffer holds, takes nothing, and stays for a while, half closed sometimes."""
    while not stop.is_set():
        try:
            with nbdraw.Conn(address, timeout=0.2) as c:
                c.enter(rng.choice(["disk0", "disk1"]))
                for _ in range(20):
                    c.send(c.pack(CMD_READ, 0, smalldisk.SIZE, rng.choice([0, F_DF])))
                if rng.random() < 0.3:
                    c.sock.shutdown(socket.SHUT_WR)
                stop.wait(rng.random())
        except GONE:
            pass


def work(address, rng, stop, bad, base):
    """A decent client: what it reads back from its MiB is what it wrote, as long as the server lets it."""
    while not stop.is_set():
        try:
            with nbdraw.Conn(address, timeout=HANG) as c:
                c.enter("calm")
                for _ in range(20):
                    at, data = base + rng.randrange(1 << 19), pattern.block(rng.random(), rng.randrange(1, 1 << 19))
                    c.write(at, data)
                    if c.read(at, len(data)) != data:
                        bad.append(f"wrong data at {at:#x}")
        except TimeoutError:
            bad.append(f"the decent client had to wait for {HANG} s")
        except GONE:
            pass


def shake(d, rng, until):
    """Exports come and go, by force; so does the server, with everything."""
    add = {"type": "nbd", "writable": True}
    while time.monotonic() < until:
        for i in rng.sample(range(2), 2):
            d.qmp.cmd("block-export-del", {"id": f"disk{i}", "mode": "hard"})
            d.qmp.cmd("block-dirty-bitmap-add", node=f"disk{1 - i}", name="b")
            d.qmp.cmd("block-dirty-bitmap-remove", node=f"disk{1 - i}", name="b")
            d.qmp.cmd("block-export-add", add | {"id": f"disk{i}", "node-name": f"disk{i}", "name": f"disk{i}"})
            time.sleep(rng.random() / 20)
        if rng.random() < 0.2:
            d.qmp.cmd("nbd-server-stop")
            d.qmp.cmd("nbd-server-start", {"addr": {"type": "unix", "data": {"path": d.nbd_address}}})
            for name in ("disk0", "disk1", "calm"):
                d.qmp.cmd("block-export-add", add | {"id": name, "node-name": name, "name": name})


@pytest.mark.slow
@pytest.mark.merino_only
def test_nothing_is_left_of_a_riot(daemon, tmp):
    files = {name: str(tmp / name) for name in ("disk0", "disk1", "calm")}
    os.rename(smalldisk.qcow2(tmp), files["disk0"])
    for name in ("disk1", "calm"):
        os.rename(smalldisk.raw(tmp), files[name])
    args = [a for name in files for a in disk_args(files[name], "qcow2" if name == "disk0" else "raw", name)]
    d = daemon.start("--loops", "2", *args)
    d.qmp.cmd("query-version")
    seed, stop, bad = os.environ.get("MERINO_TEST_SEED", "riot"), threading.Event(), []
    peace = d.descriptors()
    threads = [threading.Thread(target=f, args=(d.nbd_address, random.Random(f"{seed}{i}"), stop, *more))
               for i, (f, *more) in enumerate([(vanish,)] * 4 + [(sit,)] * 3 + [(work, bad, 0), (work, bad, 1 << 20)])]
    for t in threads:
        t.start()
    try:
        rng = random.Random(seed)
        shake(d, rng, time.monotonic() + SECONDS / 2)
        before = d.memory()
        shake(d, rng, time.monotonic() + SECONDS / 2)
    finally:
        stop.set()
        for t in threads:
            t.join()
    assert not bad, bad
    wait_until(lambda: d.descriptors() <= peace)
    wait_until(lambda: d.memory() - before < 32 << 20)
    c = d.enter("disk0")
    assert len(c.read(0, smalldisk.SIZE)) == smalldisk.SIZE
