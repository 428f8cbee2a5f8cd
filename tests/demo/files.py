# SPDX-License-Identifier: BSD-3-Clause
"""The files of the demo's disk: where they come from, how they are changed, how that is seen in a restored copy."""

import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

import nbd

# mke2fs -d takes time for every file: enough of both for a real file system, not more.
FILES_MAX = 4000
BYTES_MAX = 100 << 20
PATIENCE = 100                  # seconds, for what takes none


class Failed(Exception):
    pass


def run(*argv, text=None):
    argv = [str(a) for a in argv]
    done = subprocess.run(argv, input=text, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise Failed(f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout}")
    return done.stdout


def measure(path, files_max, bytes_max):
    """(files, bytes) below PATH; None as soon as it is more than that."""
    count = size = 0
    for base, dirs, names in os.walk(path):
        count += len(dirs) + len(names)
        if count > files_max:
            return None
        size += sum(os.lstat(os.path.join(base, n)).st_size for n in names)
        if size > bytes_max:
            return None
    return count, size


def collect(source, target):
    """Copies as many of SOURCE's folders as the limits allow to TARGET; (files, bytes)."""
    target.mkdir()
    total = [0, 0]
    for part in sorted(pathlib.Path(source).iterdir()):
        if part.is_symlink() or not part.is_dir() or not os.access(part, os.R_OK | os.X_OK):
            continue
        found = measure(part, FILES_MAX - total[0], BYTES_MAX - total[1])
        if found is None:
            continue
        # What this user may not read is left out.
        subprocess.run(["cp", "-a", "--reflink=auto", part, target], stderr=subprocess.DEVNULL, check=False)
        total = [total[0] + found[0], total[1] + found[1]]
    return total


def mount(uri, directory):
    """The export as a file in a FUSE mount: (its path, the process), or None where there is no FUSE."""
    point = pathlib.Path(tempfile.mkdtemp(prefix="mnt-", dir=directory))
    disk = point / "nbd"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK) or not shutil.which("nbdfuse"):
        return None
    proc = subprocess.Popen(["nbdfuse", str(disk), uri], stderr=subprocess.DEVNULL)
    end = time.monotonic() + PATIENCE
    while proc.poll() is None and time.monotonic() < end:
        if disk.exists():
            return disk, proc
        time.sleep(0.02)
    unmount(disk, proc)
    return None


def unmount(disk, proc):
    """nbdfuse ends when its mount point is unmounted; who looks at it just now stands in the way."""
    end = time.monotonic() + PATIENCE
    while proc.poll() is None and time.monotonic() < end:
        subprocess.run(["fusermount3", "-u", str(disk.parent)], stderr=subprocess.DEVNULL, check=False)
        try:
            proc.wait(1)
        except subprocess.TimeoutExpired:
            pass
    if proc.poll() is None:
        proc.send_signal(signal.SIGTERM)
        proc.wait()


def write_back(uri, before, after, size):
    """Without FUSE: what differs between two copies goes to the export, as a guest would write it."""
    h = nbd.NBD()
    h.connect_uri(uri)
    with open(before, "rb") as old, open(after, "rb") as new:
        for at in range(0, size, 1 << 20):
            a, b = old.read(1 << 20), new.read(1 << 20)
            for i in range(0, len(b), 4096) if a != b else ():
                if a[i:i + 4096] != b[i:i + 4096]:
                    h.pwrite(b[i:i + 4096], at + i)
    h.flush()
    h.shutdown()


class Changes:
    """New files, a removed one, a moved one: made with debugfs(8), which needs no mount."""

    def __init__(self, directory):
        self.dir = directory
        self.new = directory / "new.bin"
        self.new.write_bytes(os.urandom(5 << 20) + bytes(3 << 20) + os.urandom(2 << 20))
        self.hole = directory / "zeroes.bin"
        self.hole.write_bytes(bytes(4 << 20))
        self.script = directory / "debugfs.commands"

    def commands(self, image):
        """Removes the first file that is there, adds two and a directory."""
        victim = self.find_file(image)
        self.victim = victim
        return "\n".join([f"rm {victim}", "mkdir /demo", f"write {self.new} demo/new.bin",
                          f"write {self.hole} demo/zeroes.bin", "ln demo/new.bin demo/again.bin",
                          "set_inode_field demo/new.bin links_count 2", ""])

    def find_file(self, image):
        """The path of some regular file of more than 4 KiB in the file system."""
        todo = [""]
        while todo:
            here = todo.pop(0)
            for line in run("debugfs", "-R", f"ls -p {here or '/'}", image).splitlines():
                part = line.split("/")             # /inode/mode/uid/gid/name/size/
                if len(part) < 8 or part[5] in (".", "..", "lost+found") or any(c in part[5] for c in ' "'):
                    continue
                if part[2].startswith("04"):
                    todo.append(f"{here}/{part[5]}")
                elif part[2].startswith("100") and int(part[6] or 0) > 4096:
                    return f"{here}/{part[5]}"
        raise Failed("the file system has no file to remove")

    def edit(self, image):
        self.script.write_text(self.commands(image))
        out = run("debugfs", "-w", "-f", self.script, image)
        for line in out.splitlines():
            if line and not line.startswith(("debugfs", "Allocated inode")):
                raise Failed(f"debugfs: {line}")

    def apply(self, uri, size):
        """Makes the changes on the export; what was done, as text."""
        mounted = mount(uri, self.dir)
        if mounted:
            disk, proc = mounted
            try:
                self.edit(disk)
            finally:
                unmount(disk, proc)
            if proc.returncode:
                raise Failed(f"nbdfuse ended with {proc.returncode}")
            how = "debugfs over nbdfuse"
        else:
            before, after = self.dir / "before.raw", self.dir / "after.raw"
            run("nbdcopy", uri, before)
            run("cp", "--sparse=always", before, after)
            self.edit(after)
            write_back(uri, before, after, size)
            before.unlink()
            after.unlink()
            how = "debugfs on a copy, differences written back (no FUSE here)"
        return f"{how}: removed {self.victim}, added 14 MiB in demo/"

    def verify(self, image):
        """The changes are in IMAGE."""
        out = self.dir / "dumped.bin"
        for name, want in ("demo/new.bin", self.new), ("demo/again.bin", self.new), ("demo/zeroes.bin", self.hole):
            run("debugfs", "-R", f"dump {name} {out}", image)
            run("cmp", out, want)
        gone = run("debugfs", "-R", f"stat {self.victim}", image)
        if "not found" not in gone:
            raise Failed(f"{self.victim} is still there")
        return "the new files are in it, the removed one is not"
