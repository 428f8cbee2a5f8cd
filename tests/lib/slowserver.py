# SPDX-License-Identifier: BSD-3-Clause
"""An NBD server whose writes take as long as a test wants, each by itself: storage that is late."""

import struct
import threading

from lib.nbdserver import Gone, Server

READ, WRITE, DISC, FLUSH = 0, 1, 2, 3


class SlowServer(Server):
    """.came and .done: (offset, first byte) of the writes that came, and of those that were done, in order."""

    def __init__(self, path, size):
        super().__init__(path, bytearray(size), structured=False)
        self.came, self.done = [], []

    def late(self, offset):
        """What a test overrides: returns when the write may be done."""

    def flags_for(self, connection):
        return 4 | 8                                       # flush, FUA

    def transmit(self, s, structured, contexts):
        lock = threading.Lock()

        def reply(cookie, data=b"", error=0):
            with lock:
                s.sendall(struct.pack(">IIQ", 0x67446698, error, cookie) + data)

        while True:
            _, _, cmd, cookie, offset, length = struct.unpack(">IHHQQI", self.recv(s, 28))
            if cmd == DISC:
                raise Gone
            if cmd == WRITE:
                data = self.recv(s, length)
                threading.Thread(target=self.write, args=(offset, data, cookie, reply), daemon=True).start()
            elif cmd == READ:
                with self.lock:
                    data = bytes(self.data[offset:offset + length])
                reply(cookie, data)
            else:
                reply(cookie, error=0 if cmd == FLUSH else 22)

    def write(self, offset, data, cookie, reply):
        with self.lock:
            self.came.append((offset, data[0]))
        self.late(offset)
        with self.lock:
            self.data[offset:offset + len(data)] = data
            self.done.append((offset, data[0]))
        try:
            reply(cookie)
        except OSError:
            pass                                           # whoever asked has gone
