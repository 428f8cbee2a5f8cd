# SPDX-License-Identifier: BSD-3-Clause
"""Debian's stock cloud kernel: as a guest, and as the host that has KVM where this machine's own is no use.

Packages are fetched once, by apt-get download, into $MERINO_CACHE (default: ~/.cache/merino) and unpacked there.
An Outer is a QEMU machine without hardware help whose kernel loads kvm-amd (TCG emulates AMD's virtualisation
whole), and whose root is an archive of the programs under test: Outer.sh() runs a command in it.
"""

import fcntl
import os
import pathlib
import re
import select
import shutil
import socket
import stat
import subprocess
import time

import pytest

from lib.daemon import die_with_parent

CACHE = pathlib.Path(os.environ.get("MERINO_CACHE") or
                     pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "merino")
DOWNLOAD = 300                  # seconds
BOUND = 500                     # seconds, for what takes a few on a machine that has nothing else to do
MODULES = {                     # in the order in which they are loaded
    "kvm": ["virt/lib/irqbypass", "arch/x86/kvm/kvm", "arch/x86/kvm/kvm-amd"],
    "virtio": ["drivers/virtio/virtio_ring", "drivers/virtio/virtio", "drivers/virtio/virtio_pci_legacy_dev",
               "drivers/virtio/virtio_pci_modern_dev", "drivers/virtio/virtio_pci"],
    "blk": ["drivers/block/virtio_blk"],
    "net": ["net/core/failover", "drivers/net/net_failover", "drivers/net/virtio_net"],
    "console": ["drivers/char/virtio_console"],
    "rng": ["drivers/char/hw_random/virtio-rng"],
    "button": ["drivers/acpi/button", "drivers/input/evdev"],
}


def _fetch(package):
    """The package's file, from the cache or from Debian; skips where neither has it."""
    have = sorted(CACHE.glob(package + "_*.deb"))
    if not have:
        try:
            got = subprocess.run(["apt-get", "download", "-q", package], cwd=CACHE, capture_output=True, text=True,
                                 timeout=DOWNLOAD, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip(f"no {package}: Debian's server does not answer")
        have = sorted(CACHE.glob(package + "_*.deb"))
        if not have:
            pytest.skip(f"no {package}: {got.stderr.strip().splitlines()[-1:]}")
    return have[-1]


def _newest_kernel():
    have = sorted(CACHE.glob("linux-image-*-cloud-amd64_*.deb"))
    if have:
        return have[-1].name.split("_")[0]
    told = subprocess.run(["apt-cache", "depends", "linux-image-cloud-amd64"], capture_output=True, text=True,
                          check=False).stdout
    name = re.search(r"Depends: (linux-image-\S+-cloud-amd64)", told)
    if not name:
        pytest.skip("apt knows no linux-image-cloud-amd64")
    return name.group(1)


class Package:
    """A package of Debian's: .file, and .root, where it is unpacked."""

    def __init__(self, name):
        """NAME may be a function, which finds it out."""
        for program in ("apt-get", "apt-cache", "dpkg-deb"):
            if not shutil.which(program):
                pytest.skip(f"no {program} to fetch Debian's packages with")
        CACHE.mkdir(parents=True, exist_ok=True)
        with open(CACHE / "lock", "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.file = _fetch(name() if callable(name) else name)
            self.root = CACHE / ("unpacked-" + self.file.stem)
            if not (self.root / "done").exists():
                shutil.rmtree(self.root, ignore_errors=True)
                subprocess.run(["dpkg-deb", "-x", self.file, self.root], check=True)
                (self.root / "done").touch()


class Kernel:
    """The kernel, its modules and busybox."""

    def __init__(self):
        kernel, self.package = Package(_newest_kernel), Package("busybox-static")
        self.image = next(kernel.root.glob("boot/vmlinuz-*"))
        self.busybox = self.package.root / "bin/busybox"
        self.modules = next(kernel.root.glob("lib/modules/*/kernel"))

    def module(self, name):
        return self.modules / (name + ".ko")

    def initramfs(self, path, init, modules=(), files=()):
        """Writes an archive of INIT (a shell script), MODULES (keys of MODULES) and FILES ({name: path or bytes})."""
        a = Archive(path)
        for d in ("bin", "dev", "etc", "mnt", "modules", "proc", "run", "sys", "tmp"):
            a.directory(d)
        a.device("dev/console", 5, 1)
        a.file("bin/busybox", self.busybox.read_bytes(), 0o755)
        a.link("bin/sh", "busybox")
        loads = []
        for m in (m for key in modules for m in MODULES[key]):
            a.file("modules/" + m.rpartition("/")[2] + ".ko", self.module(m).read_bytes())
            loads.append(f"insmod /modules/{m.rpartition('/')[2]}.ko || echo 'no {m}'\n")
        a.file("modules/load", "".join(loads).encode(), 0o755)
        a.file("init", init.encode(), 0o755)
        for name, what in dict(files).items():
            a.file(name, what if isinstance(what, bytes) else pathlib.Path(what).read_bytes(), 0o755)
        a.close()


class Archive:
    """A cpio archive in the format that kernels take (Documentation/driver-api/early-userspace/buffer-format.rst)."""

    def __init__(self, path):
        self.out = open(path, "wb")
        self.n = 0
        self.made = set()

    def _entry(self, name, mode, data=b"", device=(0, 0)):
        self.n += 1
        fields = (self.n, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08x" % f for f in fields) + name.encode() + b"\0"
        self.out.write(head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4))

    def directory(self, name):
        if name and name not in self.made:
            self.directory(name.rpartition("/")[0])
            self.made.add(name)
            self._entry(name, stat.S_IFDIR | 0o755)

    def file(self, name, data, mode=0o644):
        self.directory(name.rpartition("/")[0])
        self._entry(name, stat.S_IFREG | mode, data)

    def link(self, name, to):
        self._entry(name, stat.S_IFLNK | 0o777, to.encode())

    def device(self, name, major, minor):
        self._entry(name, stat.S_IFCHR | 0o600, device=(major, minor))

    def close(self):
        self._entry("TRAILER!!!", 0)
        self.out.close()


def with_libraries(*programs):
    """{name in the archive: path} of the programs (into usr/bin/) and of what they are linked with, at its own place."""
    files = {}
    for p in programs:
        files["usr/bin/" + pathlib.Path(p).name] = p
        told = subprocess.run(["ldd", p], capture_output=True, text=True, check=False).stdout
        if "not found" in told:
            pytest.skip(f"a library is missing: {told}")
        for path in re.findall(r"(/\S+) \(0x", told):
            files[path.lstrip("/")] = path
    return files


SHELL = """#!/bin/sh
/bin/busybox mkdir -p /sbin; /bin/busybox --install -s /bin
export PATH=/usr/bin:/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mkdir -p /dev/shm
mount -t tmpfs tmp /tmp
sh /modules/load
ip link set lo up
stty -F /dev/ttyS1 raw -echo
exec < /dev/ttyS1 > /dev/ttyS1 2>&1
echo ready
while read -r length; do
	command=$(dd bs=1 count="$length" 2> /dev/null)
	( eval "$command" )
	echo "
status $?"
done
"""


class Outer:
    """The machine that has KVM.  FILES go into its root (with_libraries())."""

    def __init__(self, directory, kernel, files, memory=3000, cpus=2):
        initrd, port, self.log = directory / "outer.cpio", directory / "outer.sock", directory / "outer.log"
        kernel.initramfs(initrd, SHELL, ["kvm"], files)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(port))
        listener.listen()
        with open(directory / "outer.err", "wb") as err:
            self.proc = subprocess.Popen(
                ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max,+svm", "-m", str(memory), "-smp",
                 str(cpus), "-nodefaults", "-display", "none", "-no-reboot", "-kernel", kernel.image, "-initrd", initrd,
                 "-append", "console=ttyS0 panic=-1 mitigations=off loglevel=5 tsc=reliable no_timer_check",
                 "-serial", f"file:{self.log}", "-serial", f"unix:{port}"],
                stdin=subprocess.DEVNULL, stdout=err, stderr=err, preexec_fn=die_with_parent)
        listener.settimeout(BOUND)
        self.sock = listener.accept()[0]
        listener.close()
        self.buffer = b""
        self.until(b"ready", BOUND)

    def until(self, mark, timeout):
        """What it says up to the end of the line that begins with MARK."""
        end = time.monotonic() + timeout
        while True:
            found = re.search(rb"(?:^|\n)" + mark + rb"([^\r\n]*)\r?\n", self.buffer)
            if found:
                before, self.buffer = self.buffer[:found.start()], self.buffer[found.end():]
                return before.decode(errors="replace").replace("\r\n", "\n"), found.group(1).decode()
            if not select.select([self.sock], [], [], max(0, end - time.monotonic()))[0]:
                raise AssertionError(f"outer machine: nothing after {timeout} s; it said:\n"
                                     f"{self.buffer.decode(errors='replace')}\n{self.console()}")
            got = self.sock.recv(65536)
            assert got, "the outer machine ended:\n" + self.console()
            self.buffer += got

    def sh(self, command, timeout=BOUND, check=True):
        """Runs COMMAND in a shell; its output."""
        data = command.encode()
        self.sock.sendall(b"%d\n" % len(data) + data)
        text, status = self.until(b"status ", timeout)
        assert not check or status == "0", f"{command}: status {status}\n{text}"
        return text

    def wait(self, condition, timeout=BOUND, see=""):
        """Waits until the shell says that CONDITION is true; else the files SEE go into the report."""
        end = time.monotonic() + timeout
        while self.sh(f"{condition} && echo yes || usleep 200000").strip() != "yes":
            assert time.monotonic() < end, f"not after {timeout} s: {condition}\n" + self.sh(f"cat {see} < /dev/null", check=False)

    def console(self):
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""

    def end(self):
        self.sock.close()
        self.proc.kill()
        self.proc.wait()
