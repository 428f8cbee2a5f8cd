# SPDX-License-Identifier: BSD-3-Clause
"""Any command at any time: clients of the monitor and of the exports that know nothing of each other, then kill -9."""

import os
import random
import threading
import time

import nbd
import pytest

from lib import tools
from lib.patience import HANG
from lib.qmp import QMP, QMPError

pytestmark = pytest.mark.merino_only
MIB = 1 << 20
NODES = ["f0", "f1", "r0", "r1", "q0", "q1", "q2", "ov", "t0", "t1", "c0", "n0", "b0", "d0"]


class Chooser:
    """Commands that are mostly possible, from a seed."""

    def __init__(self, directory, seed):
        self.dir, self.r = directory, random.Random(seed)

    def may(self, p, **what):
        return {k.replace("_", "-"): v for k, v in what.items()} if self.r.random() < p else {}

    def node(self):
        name, pick = self.r.choice(NODES), self.r.choice
        own = {"driver": "file", "filename": f"{self.dir}/{name}"}
        kinds = {
            "f": lambda: own,
            "r": lambda: {"driver": "raw", "file": pick(["f0", "f1", "n0", "t0"])},
            "q": lambda: {"driver": "qcow2", "file": own},
            "o": lambda: {"driver": "qcow2", "file": own, "backing": pick(["q0", "q1", "r0", None])},
            "t": lambda: {"driver": "throttle", "file": pick(NODES), "throttle-group": pick(["g0", "g1"])},
            "c": lambda: {"driver": "copy-on-read", "file": pick(["ov", "q0", "r0"])},
            "n": lambda: {"driver": "null-co", "size": 2 * MIB, "latency-ns": pick([0, 20000000])},
            "b": lambda: {"driver": "blkdebug", "image": pick(NODES)},
            "d": lambda: {"driver": "compress", "file": pick(["q0", "q1", "ov"])},
        }
        return {"node-name": name, **kinds[name[0]](), **self.may(.2, read_only=True), **self.may(.1, active=False),
                **self.may(.2, detect_zeroes="on"), **self.may(.1, cache={"direct": True})}

    def export(self):
        name = self.name("e")
        return {"type": "nbd", "id": name, "name": name, "node-name": self.r.choice(NODES), **self.may(.8, writable=True),
                **self.may(.4, iothread="io0"), **self.may(.3, allow_inactive=True), **self.may(.2, bitmaps=["m"])}

    def name(self, kind):
        return f"{kind}{self.r.randrange(3)}"

    def creation(self):
        return {"job-id": self.name("j"), "options": self.r.choice([
            {"driver": "file", "filename": f"{self.dir}/new", "size": 8 * MIB},
            {"driver": "qcow2", "file": self.r.choice(["f0", "t0", "t1", "r0"]), "size": 4 * MIB}])
            | self.may(.5, preallocation="full")}

    def command(self):
        n, pick = self.r.choice(NODES), self.r.choice
        weight, name, arguments = pick_weighted(self.r, [
            (12, "blockdev-add", self.node),
            (4, "blockdev-del", lambda: {"node-name": n}),
            (8, "blockdev-reopen", lambda: {"options": [self.node() for _ in range(pick([1, 1, 2]))]}),
            (8, "block-export-add", self.export),
            (3, "block-export-del", lambda: {"id": self.name("e"), "mode": pick(["hard", "safe"])}),
            (5, "qom-set", lambda: {"path": f"/machine/peripheral/{self.name('e')}/virtio-backend",
                                    "property": "drive", "value": n}),
            (3, "blockdev-set-active", lambda: {"active": pick([False, True, True]), **self.may(.8, node_name=n)}),
            (1, "block_resize", lambda: {"node-name": n, "size": pick([1, 2, 3]) * MIB}),
            (4, "blockdev-create", self.creation),
            (6, pick(["job-cancel", "job-pause", "job-resume", "job-dismiss"]), lambda: {"id": self.name("j")}),
            (2, "block-dirty-bitmap-add", lambda: {"node": n, "name": "m"}),
            (1, "block-dirty-bitmap-remove", lambda: {"node": n, "name": "m"}),
            (3, "object-add", lambda: pick([
                {"qom-type": "iothread", "id": "io0"},
                {"qom-type": "throttle-group", "id": pick(["g0", "g1"]), "limits": {"iops-total": pick([50, 100000])}}])),
            (1, "object-del", lambda: {"id": pick(["g0", "g1", "io0"])}),
            (2, pick(["query-named-block-nodes", "query-block", "query-blockstats", "query-jobs"]), dict),
            (2, pick(["stop", "cont", "cont"]), dict),
        ])
        return name, arguments()


def pick_weighted(r, rows):
    return r.choices(rows, [row[0] for row in rows])[0]


def command_client(d, seed, end, done):
    chooser = Chooser(d.dir_of_images, seed)
    with QMP(d.qmp_path, timeout=HANG) as q:
        while time.monotonic() < end or len(done) <= 15:
            name, arguments = chooser.command()
            try:
                q.cmd(name, arguments)
                done[name] = done.get(name, 0) + 1
            except QMPError:
                pass
            q.events.clear()


def disk_client(d, seed, end):
    r = random.Random(seed)
    while time.monotonic() < end:
        h = nbd.NBD()
        try:
            h.set_export_name(f"e{r.randrange(3)}")
            h.connect_unix(d.nbd_address)
            while time.monotonic() < end and r.random() < .99:
                offset = r.randrange(0, MIB, 512)
                r.choice([lambda: h.pread(4096, offset), lambda: h.pwrite(b"x" * 4096, offset),
                          lambda: h.zero(65536, offset), h.flush])()
        except nbd.Error:
            time.sleep(.005)


def snapshot(q):
    nodes = {n["node-name"]: (n["drv"], n["ro"], n["active"]) for n in q.cmd("query-named-block-nodes")
             if n["node-name"][0] != "#"}
    return nodes, sorted((e["id"], e["node-name"]) for e in q.cmd("query-block-exports"))


def storm(daemon, tmp, seed, seconds):
    for name in ("q0", "q1", "q2"):
        tools.create(tmp / name, "2M")
    tools.create(tmp / "ov", None, backing=str(tmp / "q0"))
    for name in ("f0", "f1"):
        tools.create(tmp / name, "2M", "raw")
    options = ["--state", tmp / "state", "--loops", "2", "--nbd-server", f"addr.type=unix,addr.path={tmp}/n",
               "--chardev", f"socket,id=m,path={tmp}/qmp,server=on,wait=off", "--monitor", "m"]

    def start():
        d = daemon.start(*options, listen=None, monitor=False)
        d.nbd_address, d.qmp_path, d.dir_of_images = str(tmp / "n"), str(tmp / "qmp"), tmp
        return d

    d, done, end = start(), {}, time.monotonic() + seconds
    threads = [threading.Thread(target=command_client, args=(d, f"{seed}c{i}", end, done)) for i in range(3)]
    threads += [threading.Thread(target=disk_client, args=(d, f"{seed}d{i}", end)) for i in range(3)]
    for t in threads:
        t.start()
    for t in threads[:3]:
        t.join(seconds + HANG)
    with QMP(d.qmp_path) as q:                           # it is alive
        q.cmd("cont")                                    # clients of what was stopped wait, as they must
        for t in threads:
            t.join(HANG)
        assert not any(t.is_alive() for t in threads)
        before = snapshot(q)
    d.kill()
    d.no_reports()
    assert len(done) > 15, done
    d = start()
    with QMP(d.qmp_path) as q:
        assert snapshot(q) == before
    d.stop()
    for name in ("q0", "q1", "q2", "ov"):
        if os.path.getsize(tmp / name):
            tools.check(str(tmp / name))


def test_storm(daemon, tmp):
    storm(daemon, tmp, "short", 3)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(30))
def test_storms(daemon, tmp, seed):
    storm(daemon, tmp, seed, 10)
