# SPDX-License-Identifier: BSD-3-Clause
"""Any command at any time, then kill -9: what stood is made again.

The short form is one client with fixed seeds, and waits for what goes on by itself: it is the same each time.  In the
long one many clients of the monitor and of the exports know nothing of each other.
"""

import json
import os
import random
import threading
import time

import nbd
import pytest

from lib import tools
from lib.patience import HANG, wait_until
from lib.qmp import QMP, QMPError

pytestmark = pytest.mark.merino_only
MIB = 1 << 20
NODES = ["f0", "f1", "r0", "r1", "q0", "q1", "q2", "ov", "t0", "t1", "c0", "n0", "b0", "d0"]
INSIDE = [f"{name}_file" for name in ("q0", "q1", "q2", "ov")]
NAMES = ["blockdev-add", "blockdev-del", "blockdev-reopen", "block-export-add", "block-export-del", "qom-set",
         "blockdev-set-active", "block_resize", "blockdev-create", "job-dismiss",
         "block-dirty-bitmap-add", "block-dirty-bitmap-remove", "object-add", "object-del",
         "query-named-block-nodes", "query-block", "query-blockstats", "query-jobs", "stop", "cont"]
PARTS, COMMANDS = 4, 120


class Chooser:
    """Commands that are mostly possible, from a seed."""

    def __init__(self, directory, seed, modes=("hard", "safe")):
        self.dir, self.r, self.modes = directory, random.Random(seed), modes

    def may(self, p, **what):
        return {k.replace("_", "-"): v for k, v in what.items()} if self.r.random() < p else {}

    def node(self, again=False):
        """Options of blockdev-add; AGAIN: of blockdev-reopen, which knows children by their names."""
        name, pick = self.r.choice(NODES), self.r.choice
        if again and self.r.random() < .2:
            name = pick(INSIDE)
        own = {"driver": "file", "filename": f"{self.dir}/{name.removesuffix('_file')}"}
        below = f"{name}_file" if again else {**own, **self.may(.7, node_name=f"{name}_file")}
        kinds = {
            "f": lambda: own,
            "r": lambda: pick([{"driver": "raw", "file": pick(["f0", "f1", "n0", "t0"])},
                               {"driver": "raw", "file": pick(INSIDE), "read-only": True}]),
            "q": lambda: {"driver": "qcow2", "file": below},
            "o": lambda: {"driver": "qcow2", "file": below, "backing": pick(["q0", "q1", "r0", None])},
            "t": lambda: {"driver": "throttle", "file": pick(NODES), "throttle-group": pick(["g0", "g1"])},
            "c": lambda: {"driver": "copy-on-read", "file": pick(["ov", "q0", "r0"])},
            "n": lambda: {"driver": "null-co", "size": 2 * MIB, "latency-ns": pick([0, 20000000])},
            "b": lambda: {"driver": "blkdebug", "image": pick(NODES)},
            "d": lambda: {"driver": "compress", "file": pick(["q0", "q1", "ov"])},
        }
        kind = "f" if name.endswith("_file") else name[0]
        return {"node-name": name, **kinds[kind](), **self.may(.2, read_only=True),
                **({} if again else self.may(.1, active=False)), **self.may(.2, detect_zeroes="on"),
                **self.may(.1, cache={"direct": True})}

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
            (8, "blockdev-reopen", lambda: {"options": [self.node(True) for _ in range(pick([1, 1, 2]))]}),
            (8, "block-export-add", self.export),
            (3, "block-export-del", lambda: {"id": self.name("e"), "mode": pick(self.modes)}),
            (5, "qom-set", lambda: {"path": f"/machine/peripheral/{self.name('e')}/virtio-backend",
                                    "property": "drive", "value": n}),
            (3, "blockdev-set-active", lambda: {"active": pick([False, True, True]), **self.may(.8, node_name=n)}),
            (1, "block_resize", lambda: {"node-name": n, "size": pick([1, 2, 3]) * MIB}),
            (4, "blockdev-create", self.creation),
            (6, pick(["job-cancel", "job-pause", "job-resume", "job-dismiss"]), lambda: {"id": self.name("j")}),
            (2, "block-dirty-bitmap-add", lambda: {"node": n, "name": "m"}),
            (2, "block-dirty-bitmap-remove", lambda: {"node": n, "name": "m"}),
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


class Log:
    """What was asked and what came of it; shown when the test fails."""

    def __init__(self):
        self.lines, self.done = [], {}

    def run(self, q, name, arguments):
        """One command; whether it was done."""
        self.lines.append(f"{q.sock.fileno()} {name} {json.dumps(arguments)}")
        try:
            q.cmd(name, arguments)
        except QMPError as e:
            self.lines.append(f"{q.sock.fileno()}   {e.desc}")
            return False
        self.lines.append(f"{q.sock.fileno()}   done")
        self.done[name] = self.done.get(name, 0) + 1
        return True

    def show(self, directory):
        print(*self.lines[-1000:], sep="\n")
        for state in directory.glob("state/state*"):
            print(state.name, *state.read_text().replace('{"kind"', '\n{"kind"').splitlines(), sep="\n")


def command_client(d, seed, end, log):
    chooser = Chooser(d.dir_of_images, seed)
    with QMP(d.qmp_path, timeout=HANG) as q:
        while time.monotonic() < end or len(log.done) <= 15:
            log.run(q, *chooser.command())
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
    def named(node):
        return "#" if node[0] == "#" else node
    nodes = {n["node-name"]: (n["drv"], n["ro"], n["active"], n["detect_zeroes"], n["cache"]["direct"],
                              sorted((c["child"], named(c["node-name"])) for c in n["children"]))
             for n in q.cmd("query-named-block-nodes") if n["node-name"][0] != "#"}
    return nodes, sorted((e["id"], e["node-name"]) for e in q.cmd("query-block-exports"))


class Storm:
    """A daemon with a state, and images; `with` it: ended, and what happened shown when it failed."""

    def __init__(self, daemon, tmp):
        self.daemon, self.tmp, self.log, self.d = daemon, tmp, Log(), None
        for name in ("q0", "q1", "q2"):
            tools.create(tmp / name, "2M")
        tools.create(tmp / "ov", None, backing=str(tmp / "q0"))
        for name in ("f0", "f1"):
            tools.create(tmp / name, "2M", "raw")

    def start(self):
        d = self.d = self.daemon.start(
            "--state", self.tmp / "state", "--loops", "2", "--nbd-server", f"addr.type=unix,addr.path={self.tmp}/n",
            "--chardev", f"socket,id=m,path={self.tmp}/qmp,server=on,wait=off", "--monitor", "m",
            listen=None, monitor=False)
        d.nbd_address, d.qmp_path, d.dir_of_images = str(self.tmp / "n"), str(self.tmp / "qmp"), self.tmp
        return d

    def restart(self, q):
        """Killed, it comes back as it was."""
        before = snapshot(q)
        q.close()
        self.d.kill()
        self.d.no_reports()
        with QMP(self.start().qmp_path) as again:
            now = snapshot(again)
            assert now == before, f"{before}\n{now}"

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, failed, *_):
        if failed:
            self.log.show(self.tmp)
            return
        self.d.stop()
        for name in ("q0", "q1", "q2", "ov"):
            if os.path.getsize(self.tmp / name):
                tools.check(str(self.tmp / name))


def settled(q):
    return all(j["status"] in ("paused", "concluded") for j in q.cmd("query-jobs"))


def visit(d, r):
    """A client of a disk, who comes, reads and writes, and leaves."""
    h = nbd.NBD()
    try:
        h.set_export_name(f"e{r.randrange(3)}")
        h.connect_unix(d.nbd_address)
        for _ in range(3):
            offset = r.randrange(0, MIB, 512)
            h.pread(4096, offset)
            h.pwrite(b"x" * 4096, offset)
            h.zero(65536, offset)
        h.shutdown()
    except nbd.Error:
        pass


def test_storm(daemon, tmp):
    with Storm(daemon, tmp) as storm:
        for part in range(PARTS):
            r = random.Random(f"{part}v")
            chooser = Chooser(tmp, f"{part}c", modes=["hard"])   # whether a client has gone yet is not foreseen
            with QMP(storm.d.qmp_path) as q:
                for _ in range(COMMANDS):
                    storm.log.run(q, *chooser.command())
                    wait_until(lambda: settled(q))
                    if r.random() < .1 and q.cmd("query-status")["running"]:
                        visit(storm.d, r)
                storm.restart(q)
        assert [name for name in NAMES if name not in storm.log.done] == []


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(int(os.environ.get("MERINO_STORMS", 30))))
def test_storms(daemon, tmp, seed):
    with Storm(daemon, tmp) as storm:
        d, end = storm.d, time.monotonic() + 10
        threads = [threading.Thread(target=command_client, args=(d, f"{seed}c{i}", end, storm.log)) for i in range(3)]
        threads += [threading.Thread(target=disk_client, args=(d, f"{seed}d{i}", end)) for i in range(3)]
        for t in threads:
            t.start()
        for t in threads[:3]:
            t.join(10 + HANG)
        with QMP(d.qmp_path) as q:                       # it is alive
            q.cmd("cont")                                # clients of what was stopped wait, as they must
            for t in threads:
                t.join(HANG)
            assert not any(t.is_alive() for t in threads)
            assert len(storm.log.done) > 15, storm.log.done
            storm.restart(q)
