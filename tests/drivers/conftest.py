# SPDX-License-Identifier: BSD-3-Clause
"""Block drivers and filters, each compared with QEMU's: run with MERINOD=qemu-storage-daemon, too."""

import os
import signal
import socket
import subprocess
import time

import pytest

from lib import tools
from lib.daemon import die_with_parent
from lib.patience import HANG


class Servers:
    """Foreign NBD servers on unix sockets; they end with the test."""

    def __init__(self):
        self.all = []

    def start(self, sock, *argv, timeout=HANG):
        p = subprocess.Popen([tools.need(str(argv[0])), *map(str, argv[1:])], stdin=subprocess.DEVNULL,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=die_with_parent)
        self.all.append(p)
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            with socket.socket(socket.AF_UNIX) as s:
                try:
                    s.connect(str(sock))
                    return p
                except OSError:
                    assert p.poll() is None, f"{argv} ended with {p.returncode}"
                    time.sleep(0.01)
        raise AssertionError(f"{argv} does not listen")

    def qemu_nbd(self, sock, path, fmt="raw", *options):
        return self.start(sock, "qemu-nbd", "-f", fmt, "-x", "exp", "-k", sock, "-t", "-e", "20", "--cache=writeback",
                          "--discard=unmap", *options, path)

    def nbdkit(self, sock, *args):
        return self.start(sock, "nbdkit", "-f", "-U", sock, *args)

    def kill(self, p, sock=None):
        p.send_signal(signal.SIGCONT)
        p.kill()
        p.wait()
        if sock and os.path.exists(sock):
            os.unlink(sock)

    def end(self):
        for p in self.all:
            if p.poll() is None:
                self.kill(p)


@pytest.fixture
def servers():
    s = Servers()
    yield s
    s.end()
