# SPDX-License-Identifier: BSD-3-Clause
"""A proxy on a unix socket that breaks connections: after so many bytes either way, or by silence."""

import contextlib
import os
import random
import socket
import threading


class Cutter:
    """Forwards connections at .path to the server at TARGET.

    .cut: a function of a random.Random that says after how many bytes a connection is cut (None: never); each
    direction draws its own.  .stalled: nothing is forwarded while it is set.  .refuse: connections are closed at once."""

    def __init__(self, path, target, seed=1):
        self.path, self.target, self.random = str(path), str(target), random.Random(seed)
        self.cut, self.refuse, self.connections, self.cuts = lambda r: None, False, 0, 0
        self.flowing = threading.Event()
        self.flowing.set()
        self.open = set()
        self.lock = threading.Lock()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(64)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                a, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            b = socket.socket(socket.AF_UNIX)
            try:
                if self.refuse:
                    raise ConnectionError
                b.connect(self.target)
            except OSError:
                a.close()
                b.close()
                continue
            with self.lock:
                self.open |= {a, b}
            self.forward(a, b)

    def forward(self, a, b):
        """The client's connection A and the server's B, a thread for each direction."""
        for x, y in (a, b), (b, a):
            threading.Thread(target=self.pump, args=(x, y, self.cut(self.random)), daemon=True).start()

    def pump(self, x, y, left):
        with contextlib.suppress(OSError):
            while data := x.recv(65536):
                self.flowing.wait()
                if left is not None and left < len(data):
                    y.sendall(data[:left])
                    self.cuts += 1
                    break
                y.sendall(data)
                left = None if left is None else left - len(data)
        self.part(x, y)

    def part(self, x, y):
        for s in x, y:
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
        with self.lock:
            self.open -= {x, y}

    def stall(self):
        self.flowing.clear()

    def go_on(self):
        self.flowing.set()

    def cut_all(self):
        with self.lock:
            for s in self.open:
                with contextlib.suppress(OSError):
                    s.shutdown(socket.SHUT_RDWR)

    def close(self):
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.go_on()
        self.cut_all()
        with contextlib.suppress(OSError):
            os.unlink(self.path)
