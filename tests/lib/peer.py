# SPDX-License-Identifier: BSD-3-Clause
"""QEMU's own daemon or emulator beside ours, with a QMP client, for comparisons of answers."""

import subprocess
import time

from lib import tools
from lib.daemon import die_with_parent
from lib.patience import HANG
from lib.qmp import QMP


class Peer:
    """`with Peer(tmp, "qemu-storage-daemon", options...) as p: p.qmp.cmd(...)`; it ends with the block."""

    def __init__(self, tmp, program, *options):
        path = tmp / f"{program}.qmp"
        path.unlink(missing_ok=True)
        if program == "qemu-storage-daemon":
            monitor = ["--chardev", f"socket,id=m,path={path},server=on,wait=off", "--monitor", "chardev=m"]
        else:
            monitor = ["-machine", "microvm,accel=tcg", "-m", "16", "-display", "none", "-nodefaults",
                       "-qmp", f"unix:{path},server=on,wait=off"]
        self.proc = subprocess.Popen([tools.need(program), *monitor, *options], stdin=subprocess.DEVNULL,
                                     preexec_fn=die_with_parent)
        end = time.monotonic() + HANG
        while True:
            try:
                self.qmp = QMP(str(path))
                break
            except (FileNotFoundError, ConnectionError):
                assert self.proc.poll() is None and time.monotonic() < end, f"{program} does not start"
                time.sleep(0.02)

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
                    self.proc.kill()
                    self.proc.wait()
