# SPDX-License-Identifier: BSD-3-Clause
"""merino-vmm under test, with the payload of tests/guest as its guest."""

import os
import pathlib
import signal
import subprocess
import time

import pytest

from lib import qmp
from lib.daemon import REPORT, ROOT, die_with_parent
from lib.patience import HANG

BUILD = ROOT / os.environ.get("BUILD", "build")


def program():
    return BUILD / "merino-vmm"


def payload():
    return BUILD / "guest/payload"


def sector():
    """The first sectors of a disk that a BIOS boots."""
    return BUILD / "guest/sector"


def need_kvm():
    """Skips the test where no machine can run."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR))
    except OSError as e:
        pytest.skip(f"/dev/kvm: {e.strerror}")


class Vmm:
    """One machine.  Its serial line goes to standard output, a file; .qmp is a client of its control socket."""

    def __init__(self, tmp, words, *options, wait=True, inherit=None, prefix=()):
        self.dir, self.path = tmp, str(tmp / "vmm.qmp")
        self.serial_path, self.stderr_path = tmp / "serial", tmp / "vmm.stderr"
        self.client = None
        argv = [*prefix, program(), "--kernel", payload(), "--append", words, "--qmp", f"unix:{self.path}", *options]
        with open(self.stderr_path, "wb") as err, open(self.serial_path, "wb") as out:
            self.proc = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                                         pass_fds=[] if inherit is None else [inherit], preexec_fn=die_with_parent)
        if wait:
            self.wait(lambda: os.path.exists(self.path) and self.answers())

    def wait(self, done, timeout=HANG):
        end = time.monotonic() + timeout
        while True:
            status = self.proc.poll()                    # first: its last words count
            if done():
                return
            assert status is None, f"ended with {status}: {self.stderr()} {self.serial()}"
            assert time.monotonic() < end, f"not within {timeout} s: {self.stderr()} {self.serial()}"
            time.sleep(0.005)

    def answers(self):
        try:
            self.qmp
        except (OSError, AssertionError):                # of one that was killed, perhaps
            return False
        return True

    @property
    def qmp(self):
        if self.client is None:
            self.client = qmp.QMP(self.path)
        return self.client

    def serial(self):
        return pathlib.Path(self.serial_path).read_text(errors="replace") if self.serial_path.exists() else ""

    def says(self, text, timeout=HANG):
        self.wait(lambda: text in self.serial(), timeout)

    def stat(self, thread):
        """What /proc says of a thread, behind its name."""
        with open(f"/proc/{self.proc.pid}/task/{thread}/stat") as f:
            return f.read().rpartition(")")[2].split()

    def cpu_ticks(self, thread):
        return sum(map(int, self.stat(thread)[11:13]))

    def sleeps(self, thread):
        return self.stat(thread)[0] == "S"

    def stderr(self):
        return self.stderr_path.read_text(errors="replace")

    def ended(self, status=0, timeout=HANG):
        """It ends by itself, whatever it was told by."""
        assert (got := self.proc.wait(timeout)) == status, (got, self.stderr())
        assert not REPORT.search(self.stderr()), self.stderr()
        assert not os.path.exists(self.path)

    def end(self):
        if self.client is not None:
            self.client.close()
        if self.proc.poll() is None:
            self.proc.send_signal(signal.SIGTERM)
            try:
                self.ended()
            finally:
                self.proc.kill()
                self.proc.wait()
