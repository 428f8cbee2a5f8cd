# SPDX-License-Identifier: BSD-3-Clause
"""A virtual machine on a disk of merinod's: `merino run`, backups while the guest writes, kill -9 of merinod, the end.

The guest is tests/guest's payload.  It writes numbers into a ring of blocks, in succession, one at a time, and reads
what each block held before it is overwritten: so a copy of the ring shows whether it is one of a single instant.
"""

import json
import os
import pathlib
import re
import signal
import struct
import subprocess
import time

BLOCKS, BLOCK = 256, 4096
PATIENCE = 100                  # seconds, for what takes none
SIZE = 64 << 20
GOLDEN = 0x9e3779b97f4a7c15
MASK = (1 << 64) - 1


class Wrong(Exception):
    pass


def check(condition, text):
    if not condition:
        raise Wrong(text)


def content_of(path):
    """The file's text; none where it is missing just now."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def hindered(build):
    """Why no machine runs here, or None."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR))
    except OSError as e:
        return f"/dev/kvm: {e.strerror}"
    return None if (build / "guest/payload").exists() else f"{build}/guest/payload: not built"


def number_in(data, block):
    """The number that a block holds in all its words; 0: it was never written."""
    words = struct.unpack(f"<{BLOCK // 8}Q", data)
    if not any(words):
        return 0
    number = (words[0] ^ (block * GOLDEN & MASK)) >> 20
    for i, word in enumerate(words):
        check(word == (block * GOLDEN & MASK) ^ (number << 20) ^ i, f"block {block} is torn: word {i} is {word:x}")
    return number


def last_number(raw):
    """The last number of the ring in a raw image; all the others are those before it."""
    with open(raw, "rb") as f:
        numbers = [number_in(f.read(BLOCK), b) for b in range(BLOCKS)]
    last = max(numbers)
    for k in range(max(last - BLOCKS, 0) + 1, last + 1):
        check(numbers[k % BLOCKS] == k, f"the ring ends with {last}, and {k} is missing: not one instant")
    return last


class Machine:
    name, mark = "demo", "ring "       # the machine's name; what its guest says again and again
    wrong = re.compile("FAIL")         # what it never says

    def __init__(self, directory, build, say, run):
        self.dir, self.build, self.say, self.run = directory, build, say, run
        self.base, self.disk, self.repo = directory / "run", directory / "vm.qcow2", directory / "vm-backups"
        self.vm = self.base / self.name
        self.console, self.began = None, False

    def merino(self, verb, *args, **kw):
        return self.run(self.build / "merino", verb, *args, **kw)

    def close(self):
        """Whatever happened: nothing of the machine is left running."""
        if self.began:
            self.merino("stop", "--run-dir", self.base, "--force", self.name, ok=(0, 1))
        if self.console:
            self.console.kill()
            self.console.wait()

    def start(self):
        self.run("qemu-img", "create", "-q", "-f", "qcow2", self.disk, str(SIZE))
        self.say("a virtual machine: merino run --detach --name demo --kernel payload vm.qcow2")
        self.launch("--memory", "128M", "--kernel", self.build / "guest/payload", "--append", f"disk=0 ring={BLOCKS}",
                    self.disk)

    def launch(self, *args):
        self.began = True
        begun = time.monotonic()
        self.merino("run", "--run-dir", self.base, "--detach", "--name", self.name, *args)
        self.say(f"    it runs after {(time.monotonic() - begun) * 1000:.0f} ms")
        with open(self.dir / "console", "wb") as out:
            self.console = subprocess.Popen([str(a) for a in (self.build / "merino", "console", "--run-dir", self.base,
                                                              self.name)], stdin=subprocess.DEVNULL, stdout=out,
                                            stderr=subprocess.STDOUT)

    def text(self):
        return (self.dir / "console").read_text(errors="replace")

    def look(self, why):
        check(not self.wrong.search(self.text()), f"{why}: the guest found a fault:\n{self.text()}")

    def goes_on(self, why):
        """The guest does more than it has done; it never says that something is wrong."""
        before, end = self.text().count(self.mark), time.monotonic() + PATIENCE
        while self.text().count(self.mark) < before + 2:
            self.look(why)
            check(time.monotonic() < end, f"{why}: the guest does nothing any more:\n{self.text()}")
            time.sleep(0.02)

    def backup(self, label, level):
        got = json.loads(self.merino("backup", "--json", "--to", self.repo, "--socket", self.vm / "qmp", "--name", label,
                                     "vda"))
        disk, = got["disks"]
        check(disk["level"] == level, f"{label}: {disk['level']}: {disk.get('reason')}")
        self.goes_on("after the backup")
        self.say(f"    merino backup --socket run/{self.name}/qmp: {level}, {disk['read-bytes'] >> 10} KiB read, "
                 "the guest goes on")

    def crash(self):
        pidfile = self.vm / "merinod.pid"
        first = pidfile.read_text()
        os.kill(int(first), signal.SIGKILL)
        end = time.monotonic() + PATIENCE
        while content_of(pidfile) in ("", first):
            check(time.monotonic() < end, "no merinod has come back")
            time.sleep(0.02)
        self.goes_on("after kill -9 of merinod")
        self.say("    kill -9 of the machine's merinod: another one was started; the guest saw a pause, no error")

    def power_off(self, last_words):
        self.merino("stop", "--run-dir", self.base, self.name)
        self.began = False
        check(self.console.wait(PATIENCE) == 0 and last_words in self.text(), f"the guest failed:\n{self.text()}")
        self.look("at the end")
        check(not self.vm.exists(), f"{self.vm} is left")

    def stop(self):
        self.power_off("PASS")
        self.run("qemu-img", "check", self.disk)
        done = self.text().split("ring done, ")[1].splitlines()[0]
        self.say(f"    merino stop: powered off by its power button; {done}; qemu-img check: clean")

    def prove(self):
        """Each point is of one instant, and they are in order."""
        last = [self.number_at(point) for point in ("full", "incremental")]
        self.run("qemu-img", "convert", "-O", "raw", self.disk, self.dir / "vm.raw")
        last.append(last_number(self.dir / "vm.raw"))
        check(0 < last[0] < last[1] < last[2], f"the points are not in order: {last}")
        self.say(f"    restored: {BLOCKS} numbers in succession, up to {last[0]} and {last[1]}, each of one instant; "
                 f"the disk has {last[2]}")

    def number_at(self, point):
        out = self.dir / f"vm-{point}.raw"
        self.merino("restore", "-q", f"{self.repo}@{point}", out)
        return last_number(out)

    def go(self):
        self.start()
        self.goes_on("at the start")
        self.say("    its guest writes and verifies")
        self.backup("full", "full")
        self.backup("incremental", "incremental")
        self.crash()
        self.stop()
        self.prove()


def demonstrate(directory, build, say, run):
    """All of it.  What is missing is said."""
    why = hindered(build)
    if why:
        say(f"skipped: the virtual machine: {why}")
        return
    machine = Machine(pathlib.Path(directory), build, say, run)
    try:
        machine.go()
    finally:
        machine.close()
