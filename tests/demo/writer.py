# SPDX-License-Identifier: BSD-3-Clause
"""A client that does not stop writing while backups are made."""

import random
import threading
import time

import nbd


class Writer:
    """Writes, zeroes and trims in [start, start + length) from a thread until the block is left.

    Every request has ended and is flushed when the block is left; an error in any of them is raised there.
    """

    def __init__(self, uri, start, length):
        self.uri, self.start, self.length = uri, start, length
        self.count = 0
        self.error = None
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self.work)

    def __enter__(self):
        self.thread.start()
        while not self.count and not self.error:
            time.sleep(0.01)
        return self

    def __exit__(self, *_):
        self.ending.set()
        self.thread.join()
        if self.error:
            raise OSError(f"the writing client failed: {self.error}")

    def work(self):
        try:
            h = nbd.NBD()
            h.connect_uri(self.uri)
            rng = random.Random(1)
            while not self.ending.is_set():
                self.one(h, rng)
                self.count += 1
                time.sleep(0.001)
            h.flush()
            h.shutdown()
        except nbd.Error as e:
            self.error = e.string

    def one(self, h, rng):
        length = rng.randrange(1, 128) * 512
        offset = self.start + rng.randrange((self.length - length) // 512) * 512
        kind = rng.randrange(10)
        if kind < 8:
            h.pwrite(rng.randbytes(length), offset)
        elif kind == 8:
            h.zero(length, offset)
        else:
            h.trim(length, offset)
