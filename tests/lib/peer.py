# SPDX-License-Identifier: BSD-3-Clause
"""QEMU's own daemon or emulator beside ours, with a QMP client, for comparisons of answers."""

import subprocess
import time

from lib import tools
from lib.daemon import die_with_parent
from lib.patience import HANG
from lib.qmp import QMP

TRIES = 4                                                # to start it; what it does then is what tests look at


class Peer:
    """`with Peer(tmp, "qemu-storage-daemon", options...) as p: p.qmp.cmd(...)`; it ends with the block."""

    def __init__(self, tmp, program, *options):
        path = tmp / f"{program}.qmp"
        if program == "qemu-storage-daemon":
            monitor = ["--chardev", f"socket,id=m,path={path},server=on,wait=off", "--monitor", "chardev=m"]
        else:
            monitor = ["-machine", "microvm,accel=tcg", "-m", "16", "-display", "none", "-nodefaults",
                       "-qmp", f"unix:{path},server=on,wait=off"]
        self.argv, self.path = [tools.need(program), *monitor, *options], path
        for _ in range(TRIES):
            try:
                self.begin()
                return
            except TimeoutError:
                self.kill()
        raise AssertionError(f"{program} does not answer")

    def begin(self):
        """QEMU's monitor was seen to greet a client who came early, and never to answer him: see TRIES."""
        self.path.unlink(missing_ok=True)
        self.proc = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)
        end = time.monotonic() + HANG
        while True:
            try:
                self.qmp = QMP(str(self.path), timeout=HANG / TRIES)
                self.qmp.sock.settimeout(HANG)
                return
            except (FileNotFoundError, ConnectionError):
                assert self.proc.poll() is None and time.monotonic() < end, f"{self.argv[0]} does not start"
                time.sleep(0.02)

    def kill(self):
        self.proc.kill()
        self.proc.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.qmp.cmd("quit")
        finally:
            self.qmp.close()
            if self.proc.poll() is None:
                try:
                    self.proc.wait(HANG)
                except subprocess.TimeoutExpired:
                    self.kill()
