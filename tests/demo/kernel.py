# SPDX-License-Identifier: BSD-3-Clause
"""Debian's stock kernel on a disk of merinod's: `merino run`, a backup while it writes, the power button.

The guest is the kernel, busybox and an ext4 file system.  It checks the files that it finds, and writes others, with
their sums, until its button is pressed.  Some hosts' KVM emulates a kernel's code instead of running it, a thousand
times slower: where the guest's first program has not begun within PATIENCE seconds, this is skipped."""

import os
import pathlib
import re
import time

import pytest

from lib import realkernel
from machine import Machine, Wrong, check, hindered

PATIENCE = float(os.environ.get("KERNEL_PATIENCE", "20"))
DOWNLOAD = 20                          # seconds, where the kernel is not in the cache

INIT = """#!/bin/sh
/bin/busybox mkdir -p /sbin; /bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp
echo "guest: $(uname -r)"
sh /modules/load
mount -t ext4 /dev/vda /mnt || { echo 'guest: error: no disk'; poweroff -f; }
cd /mnt
md5sum -c known > /tmp/known 2>&1 && echo 'guest: its files are right' || { echo 'guest: error: files'; cat /tmp/known; }
for e in /sys/class/input/event*; do
	[ "$(cat $e/device/name)" != 'Power Button' ] ||
		{ dd if=/dev/input/${e##*/} of=/tmp/pressed bs=24 count=1 2> /dev/null; touch /tmp/enough; } &
done
n=0
until [ -e /tmp/enough ]; do
	n=$((n + 1))
	dd if=/dev/urandom of=file$((n % 8)) bs=128k count=2 conv=fsync 2> /dev/null || echo 'guest: error: write'
	md5sum file* > new-sums && sync && mv new-sums sums || echo 'guest: error: sums'
	echo "guest: round $n"
done
echo 3 > /proc/sys/vm/drop_caches
md5sum -c sums > /tmp/checked 2>&1 || { echo 'guest: error: read'; cat /tmp/checked; }
cd /
umount /mnt || echo 'guest: error: umount'
echo 'guest: end'
poweroff -f
"""


class Stock(Machine):
    """See machine.Machine; the directory, and what lies in it, are this machine's."""

    name, mark = "stock", "guest: round"
    wrong = re.compile(r"guest: error|Kernel panic|Oops|Call Trace")

    def __init__(self, directory, build, say, run):
        super().__init__(directory, build, say, run)
        self.dir = directory / "stock"
        self.dir.mkdir()
        self.disk, self.repo, self.tree = self.dir / "root.raw", self.dir / "backups", self.dir / "tree"

    def make(self, kernel):
        self.tree.mkdir()
        for i in range(4):
            (self.tree / f"known{i}").write_bytes(os.urandom(1 << 20))
        known = self.run("md5sum", *(f"known{i}" for i in range(4)), cwd=self.tree)
        (self.tree / "known").write_text(known)
        self.run("mke2fs", "-q", "-t", "ext4", "-d", self.tree, self.disk, "64M")
        kernel.initramfs(self.dir / "initrd", INIT, ["virtio", "blk", "button"])

    def start(self, kernel):
        self.make(kernel)
        self.say(f"Debian's kernel: merino run --detach --name {self.name} --kernel {kernel.image.name} root.raw (ext4)")
        self.launch("--memory", "256M", "--kernel", kernel.image, "--initrd", self.dir / "initrd", "--append",
                    "console=ttyS0 quiet panic=-1", self.disk)

    def hinders(self):
        """Why its first program was not reached, or None."""
        end = time.monotonic() + PATIENCE
        while "guest: " not in self.text():
            self.look("at the start")
            if self.console.poll() is not None:
                check(not self.text(), f"it ended:\n{self.text()}")
                return "it ended without a word: this host's KVM does not run a kernel"
            if time.monotonic() > end:
                return f"no program of the guest's ran within {PATIENCE:.0f} s: this host's KVM is too slow for a kernel"
            time.sleep(0.05)
        return None

    def stop(self):
        self.power_off("guest: end")
        self.run("e2fsck", "-fn", self.disk)
        rounds = self.text().count(self.mark)
        self.say(f"    merino stop: powered off by its power button after {rounds} rounds of writing; e2fsck: clean")

    def prove(self):
        """The backup is a disk whose plug was pulled: the journal makes it whole, and the files are right."""
        back = self.dir / "back.raw"
        self.merino("restore", "-q", "--format", "raw", f"{self.repo}@full", back)
        self.run("e2fsck", "-fp", back, ok=(0, 1))
        self.run("e2fsck", "-fn", back)
        for file in sorted(self.tree.iterdir()):
            self.run("debugfs", "-R", f"dump /{file.name} {self.dir}/file", back)
            self.run("cmp", self.dir / "file", file)
        self.say("    restored: e2fsck plays its journal back and finds no fault; its files are right")

    def go(self, kernel):
        self.start(kernel)
        why = self.hinders()
        if why:
            self.say(f"skipped: Debian's kernel: {why}")
            return
        self.say(f"    {re.search('guest: (.*)', self.text()).group(1)} is up")
        self.goes_on("at the start")
        check("guest: its files are right" in self.text(), f"its files are wrong:\n{self.text()}")
        self.backup("full", "full")
        self.stop()
        self.prove()


def find_kernel():
    """The kernel, or a text that says why there is none."""
    realkernel.DOWNLOAD = DOWNLOAD
    try:
        return realkernel.Kernel()
    except pytest.skip.Exception as e:
        return str(e)
    except OSError as e:
        return f"{realkernel.CACHE}: {e.strerror}"


def demonstrate(directory, build, say, run):
    """All of it, or a line that says why not."""
    why = hindered(build)
    kernel = None if why else find_kernel()
    if why or isinstance(kernel, str):
        say(f"skipped: Debian's kernel: {why or kernel}")
        return
    stock = Stock(pathlib.Path(directory), build, say, run)
    try:
        stock.go(kernel)
    finally:
        stock.close()
