# SPDX-License-Identifier: BSD-3-Clause
"""The guests: clients that do not stop writing while backups are made, and that come back when the daemon was killed."""

import random
import threading
import time

import nbd

SECTOR = 4096


class Client:
    """One NBD connection that is made again until it works; a request that failed is asked again."""

    def __init__(self, uri, ending):
        self.uri, self.ending, self.h = uri, ending, None
        self.breaks = 0

    def do(self, what):
        """WHAT(handle), once it has succeeded; False when the end came before."""
        while not self.ending.is_set():
            try:
                if self.h is None:
                    h = nbd.NBD()
                    h.connect_uri(self.uri)
                    self.h = h
                what(self.h)
                return True
            except nbd.Error:
                self.breaks += self.h is not None
                self.h = None
                time.sleep(0.01)
        return False

    def close(self):
        if self.h is not None:
            self.h.flush()
            self.h.shutdown()


class Load:
    """Writes, zeroes and trims in the room behind the known content of every disk; and a counter, which goes to the first
    sector of that room, disk after disk: whatever shows all disks at one instant shows counters that fall by one at most,
    and once.  It runs until the block is left; then everything is flushed."""

    def __init__(self, disks):
        self.disks = disks
        self.ending = threading.Event()
        self.failed = None
        self.writes = 0
        self.count = 0
        self.acknowledged = [0] * len(disks)
        self.threads = [threading.Thread(target=self.guard, args=(self.counter,))]
        self.threads += [threading.Thread(target=self.guard, args=(self.writer, i)) for i in range(len(disks))]

    def __enter__(self):
        for t in self.threads:
            t.start()
        while not (self.writes > 20 and self.count > 2) and not self.failed:
            time.sleep(0.01)
        return self

    def __exit__(self, *_):
        self.ending.set()
        for t in self.threads:
            t.join()
        if self.failed:
            raise OSError(f"a writing client failed: {self.failed}")

    def guard(self, work, *args):
        try:
            work(*args)
        except Exception as e:                             # pylint: disable=broad-except
            self.failed = e

    def counter(self):
        clients = [Client(d.uri, self.ending) for d in self.disks]
        while not self.ending.is_set():
            n = self.count + 1
            for i, (c, d) in enumerate(zip(clients, self.disks)):
                sector = n.to_bytes(8, "big") * (SECTOR // 8)
                if not c.do(lambda h, s=sector, at=d.known: h.pwrite(s, at)):
                    break
                self.acknowledged[i] = n
            self.count = n
            time.sleep(0.0005)
        for c in clients:
            c.close()

    def writer(self, i):
        disk, rng = self.disks[i], random.Random(i)
        client = Client(disk.uri, self.ending)
        while not self.ending.is_set():
            length = rng.randrange(1, 128) * 512
            at = disk.known + SECTOR + rng.randrange((disk.size - disk.known - SECTOR - length) // 512) * 512
            kind, data = rng.randrange(10), rng.randbytes(length)
            what = (lambda h: h.pwrite(data, at)) if kind < 8 else (lambda h: h.zero(length, at)) if kind == 8 \
                else (lambda h: h.trim(length, at))
            client.do(what)
            self.writes += 1
            time.sleep(0.002)
        client.close()


def counter_at(path, offset):
    """The counter that a restored disk shows; a torn one is an error."""
    with open(path, "rb") as f:
        f.seek(offset)
        sector = f.read(SECTOR)
    assert sector == sector[:8] * (SECTOR // 8), "the counter's sector is torn"
    return int.from_bytes(sector[:8], "big")
