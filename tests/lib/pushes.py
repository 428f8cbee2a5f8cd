# SPDX-License-Identifier: BSD-3-Clause
"""Push jobs: starting them, waiting for their end, and a writer whose every state is known."""

import random
import threading
import time

from lib import tools

K, M = 1 << 10, 1 << 20
ENDS = ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")


def backup(d, device="disk", target="target", job="j", sync="full", **kw):
    """Starts blockdev-backup; further arguments with underscores."""
    d.qmp.cmd("blockdev-backup", job_id=job, device=device, target=target, sync=sync, **kw)


def wait(d, job="j", end="null"):
    """Until the job's status is END; [(event, data)] of that job, in their order."""
    mine = []
    while True:
        m = d.qmp.events.pop(0) if d.qmp.events else d.qmp.message()
        data = m.get("data", {})
        if job not in (data.get("id"), data.get("device")):
            continue
        mine.append((m["event"], data))
        if m["event"] == "JOB_STATUS_CHANGE" and data["status"] == end:
            return mine


def done(events):
    """The last word on a job: (event, its error or None)."""
    (name, data), = [e for e in events if e[0] in ENDS]
    return name, data.get("error")


def succeeded(d, job="j"):
    assert done(wait(d, job)) == ("BLOCK_JOB_COMPLETED", None)


def failed(d, job="j"):
    name, error = done(wait(d, job))
    assert name == "BLOCK_JOB_COMPLETED" and error
    return error


def bitmap(d, name, node="disk"):
    """What query-named-block-nodes says of a bitmap."""
    info, = [n for n in d.qmp.cmd("query-named-block-nodes") if n["node-name"] == node]
    found = [b for b in info.get("dirty-bitmaps", []) if b.get("name") == name]
    return found[0] if found else None


def node(d, path, name="target", fmt="raw", **kw):
    """blockdev-add of a file with a format on it."""
    d.qmp.cmd("blockdev-add", {"driver": fmt, "node-name": name, "file": {"driver": "file", "filename": str(path)}, **kw})


def target(d, tmp, size, name="target", fmt="qcow2", **kw):
    """A new empty image as a node; its path."""
    path = tmp / f"{name}.{fmt}"
    tools.create(path, size, fmt=fmt)
    node(d, path, name, fmt, **kw)
    return path


class Writer:
    """Writes and zeroes in a thread, one request at a time, so that the disk has a known state after each.

    `with Writer(d, "disk", size) as w: lo = w.done; ...; hi = w.begun`: what happened between the two took place
    after request number LO and before HI.  state(n) is the content after N requests.
    """

    def __init__(self, d, name, size, seed=1, content=None):
        self.handle, self.size = d.libnbd(name), size
        self.random = random.Random(seed)
        self.content = bytearray(content or size)
        self.log, self.begun, self.done = [], 0, 0
        self.stopping = False
        self.failure = None
        self.thread = threading.Thread(target=self.run)

    def one(self):
        r = self.random
        if r.random() < 0.7:
            length = r.choice((512, 4 * K, 4 * K, 4 * K, 12 * K, 64 * K, 200 * K))
            off = r.randrange((self.size - length) // 512 + 1) * 512
            return off, length, False
        length = r.choice((4 * K, 64 * K, 256 * K))
        off = r.randrange((self.size - length) // (4 * K) + 1) * 4 * K
        return off, length, True

    def data(self, n):
        """What request N, counted from 0, leaves there: made anew, as a slow backup sees very many."""
        off, length, zero = self.log[n]
        return off, bytes(length) if zero else (b"%08d" % n) * (length // 8)

    def run(self):
        try:
            while not self.stopping:
                self.log.append(self.one())
                off, data = self.data(len(self.log) - 1)
                self.begun += 1
                if self.log[-1][2]:
                    self.handle.zero(len(data), off)
                else:
                    self.handle.pwrite(data, off)
                self.done += 1
        except Exception as e:                  # told where the test looks
            self.failure = e

    def __enter__(self):
        self.thread.start()
        while self.done < 50 and self.failure is None:
            time.sleep(0.001)
        return self

    def __exit__(self, *_):
        self.stopping = True
        self.thread.join()
        if self.failure:
            raise self.failure
        self.handle.shutdown()

    def state(self, n):
        out = bytearray(self.content)
        for i in range(n):
            off, data = self.data(i)
            out[off:off + len(data)] = data
        return bytes(out)

    def find(self, data, lo, hi):
        """Which state DATA is, of those from LO to HI; None: none of them."""
        now = bytearray(self.state(lo))
        for n in range(lo, hi + 1):
            if now == data:
                return n
            if n < len(self.log):
                off, new = self.data(n)
                now[off:off + len(new)] = new
        return None


def read_image(path, fmt, size, tmp):
    """An image's content as its stock reader sees it."""
    out = tmp / "read.raw"
    tools.run("qemu-img", "convert", "-U", "-f", fmt, "-O", "raw", path, out)
    data = out.read_bytes()
    out.unlink()
    assert len(data) == size
    return data
