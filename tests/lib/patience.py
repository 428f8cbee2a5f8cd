# SPDX-License-Identifier: BSD-3-Clause
"""How long tests wait: until something has happened, and no shorter than only what hangs would take.

A loaded machine, a sanitizer or both make everything ten times slower, now and then by seconds: no bound of a test is
near to what it takes.
"""

import socket
import time

HANG = 100                                               # seconds; a test may take 300 (pytest.ini)


def wait_until(done, seconds=HANG, why="it did not come to pass"):
    """Until DONE() is true; what it was then."""
    end = time.monotonic() + seconds
    while not (result := done()):
        assert time.monotonic() < end, why
        time.sleep(0.01)
    return result


def connect(sock, address, seconds=HANG):
    """SOCK is connected to ADDRESS, also where the queue of the listener is full: on a unix socket the kernel then says
    EAGAIN to who has set a time limit."""
    def connected():
        try:
            sock.connect(address)
            return True
        except BlockingIOError:
            return False
    wait_until(connected, seconds, f"no room in the queue of {address}")


def listening(path, proc):
    """PATH, once PROC listens there: between bind(2) and listen(2) there is a socket that refuses all."""
    def connects():
        assert proc.poll() is None, f"{proc.args} ended with {proc.returncode}"
        with socket.socket(socket.AF_UNIX) as s:
            return s.connect_ex(str(path)) == 0
    wait_until(connects, why=f"nobody listens on {path}")
    return path
