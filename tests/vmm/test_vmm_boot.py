# SPDX-License-Identifier: BSD-3-Clause
"""A machine boots the payload of tests/guest in every way there is, on real KVM: by PVH, by the
64-bit entry of ELF and of bzImage, with an initrd, several CPUs, much memory, resets; what no
kernel is is refused; the serial line on pipes, sockets, files and terminals."""

import contextlib
import fcntl
import os
import pty
import random
import re
import signal
import socket
import struct
import subprocess
import termios
import time

import pytest

from lib import vmm
from lib.daemon import REPORT, die_with_parent
from lib.patience import HANG, wait_until

pytestmark = pytest.mark.merino_only

MIB = 1 << 20
GONE = 0x100000 - 0x9fc00               # of memory, below 1 MiB


@pytest.fixture(scope="session")
def kvm():
    vmm.need_kvm()


def argv(words, *options, kernel=None):
    return [vmm.program(), "--kernel", kernel or vmm.payload(), "--append", words, *options]


def boot(words, *options, kernel=None, status=0, timeout=HANG, **kw):
    """What the guest prints, and what the program says."""
    kw.setdefault("stdin", subprocess.DEVNULL)
    r = subprocess.run(argv(words, *options, kernel=kernel), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                       timeout=timeout, preexec_fn=die_with_parent, **kw)
    out, err = r.stdout.decode().replace("\r\n", "\n"), r.stderr.decode()
    assert r.returncode == status and not REPORT.search(err), (r.returncode, out, err)
    return out, err


def passes(words, *options, **kw):
    out, err = boot(words, *options, **kw)
    assert out.endswith("PASS\n") and not err, (out, err)
    return out


@contextlib.contextmanager
def running(*args, **kw):
    """A machine that is gone behind this, whatever happens in it."""
    with subprocess.Popen(argv(*args, kernel=kw.pop("kernel", None)), preexec_fn=die_with_parent, **kw) as p:
        try:
            yield p
        finally:
            p.kill()


# -- kernels -------------------------------------------------------------------------------------

def segments(elf):
    phoff, = struct.unpack_from("<Q", elf, 32)
    size, n = struct.unpack_from("<HH", elf, 54)
    return [phoff + i * size for i in range(n)]


def without_pvh(tmp):
    """The payload without its note: the loader has to take the ELF entry."""
    elf = bytearray(vmm.payload().read_bytes())
    for at in segments(elf):
        if struct.unpack_from("<I", elf, at)[0] == 4:
            struct.pack_into("<I", elf, at, 0)
    (tmp / "elf64").write_bytes(elf)
    return tmp / "elf64"


def bzimage(tmp):
    """The payload as the body of a bzImage."""
    elf = vmm.payload().read_bytes()
    offset, _, paddr, filesz, memsz = struct.unpack_from("<5Q", elf, segments(elf)[0] + 8)
    assert paddr == 0x100000
    head = bytearray(1024)
    head[0x1f1] = 1
    head[0x201] = 0x66
    struct.pack_into("<4sH", head, 0x202, b"HdrS", 0x20f)
    head[0x211] = 1
    struct.pack_into("<I", head, 0x22c, 0x7fffffff)
    struct.pack_into("<H", head, 0x236, 1)
    struct.pack_into("<I", head, 0x238, 2047)
    struct.pack_into("<I", head, 0x260, memsz)
    (tmp / "bzImage").write_bytes(head + elf[offset:offset + filesz])
    return tmp / "bzImage"


KERNELS = {"pvh": lambda tmp: vmm.payload(), "elf64": without_pvh, "bzimage": bzimage}


@pytest.mark.parametrize("how", KERNELS)
def test_entries(kvm, tmp, how):
    initrd = random.Random(1).randbytes(3 * MIB + 17)
    (tmp / "initrd").write_bytes(initrd)
    out = passes("map initrd memory", "--memory", "96M", "--initrd", tmp / "initrd", kernel=KERNELS[how](tmp))
    assert out.startswith(f"payload by {'PVH' if how == 'pvh' else 'Linux'}: map initrd memory\n")
    total = 0
    for b in initrd:
        total = (total * 31 + b) & (2**64 - 1)
    at, size, got = re.search(r"^initrd (\w+) (\d+) (\w+)$", out, re.M).groups()
    assert int(at, 16) + int(size) <= 96 * MIB and int(at, 16) % 4096 == 0
    assert (int(size), int(got, 16)) == (len(initrd), total)


@pytest.mark.parametrize("mib", [64, 3071, 3072, 3073, 5000])
def test_memory(kvm, mib):
    """Around the hole below 4 GiB; all of it is there, at both ends of each range."""
    out = passes("map memory", "--memory", f"{mib}M")
    assert f"memory {mib * MIB - GONE}\n" in out
    ram = [(int(a, 16), int(n, 16)) for a, n, t in re.findall(r"^map (\w+) (\w+) (\d)$", out, re.M) if t == "1"]
    high = max(0, mib - 3072)
    assert ram[1] == (MIB, min(mib, 3072) * MIB - MIB)
    assert ram[2:] == ([(1 << 32, high * MIB)] if high else [])


@pytest.mark.parametrize("n", [1, 2, 5])
def test_cpus(kvm, n):
    out = passes(f"cpuid cpus={n}", "--cpus", str(n))
    khz, cores, apic_id = re.search(r"hypervisor KVMKVMKVM tsc-khz (\d+) cores (\d+) id (\d+)", out).groups()
    assert (int(cores), int(apic_id)) == (n, 0)
    assert 100_000 < int(khz) < 10_000_000


def test_resets(kvm):
    """By the reset port and by a triple fault; memory keeps what it had, several CPUs start anew."""
    out = passes("cpus=2 resets=3 fault", "--cpus", "2")
    assert out.count("payload by PVH") == 5 and out.count("cpus 2\n") == 5
    assert "resets 3\nfault\n" in out and "faults 1\n" in out


def test_no_reboot(kvm):
    out, _ = boot("resets=1", "--no-reboot")
    assert out.endswith("reset 1\n")


def test_bzimage_again(kvm, tmp):
    """A kernel file that was replaced meanwhile is not what a reset boots."""
    kernel = bzimage(tmp)
    def until_echo(p):
        line = b"-"
        while line.strip() != b"echo":
            assert line
            line = p.stdout.readline()

    with running("echo resets=1", kernel=kernel, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as p:
        until_echo(p)
        os.rename(kernel, tmp / "old")
        kernel.write_bytes(b"no kernel")
        p.stdin.write(b"q")
        p.stdin.flush()
        until_echo(p)
        p.stdin.write(b"q")
        p.stdin.flush()
        assert p.stdout.read().replace(b"\r", b"").endswith(b"resets 1\nPASS\n")


# -- what is refused --------------------------------------------------------------------------------

def test_no_kernel(kvm, tmp):
    elf = vmm.payload().read_bytes()
    files = {"empty": b"", "zeroes": bytes(MIB), "text": b"#!/bin/sh\n" * 100, "half": elf[:len(elf) // 4],
             "head": elf[:64], "short": elf[:20], "bz": bzimage(tmp).read_bytes()[:1500]}
    for name, data in files.items():
        (tmp / name).write_bytes(data)
        out, err = boot("", kernel=tmp / name, status=1)
        assert out == "" and err.startswith("merino-vmm: ") and "kernel" in err, (name, err)
    for path, text in ((tmp, "not a regular file"), (tmp / "gone", "No such file"), ("/dev/zero", "not a regular file")):
        assert text in boot("", kernel=path, status=1)[1]


@pytest.mark.parametrize("options,text", [
    (["--cpus", "0"], "from 1 to 64"), (["--cpus", "65"], "from 1 to 64"), (["--cpus", "x"], "from 1 to 64"),
    (["--memory", "1M"], "from 8 MiB"), (["--memory", "2T"], "to 1 TiB"), (["--memory", "x"], "--memory"),
    (["--memory", "16777217"], "to 1 TiB"), (["--memory", "65537K"], "multiple of 4 KiB"),
    (["--serial", "what"], "expected stdio, none, file:PATH or unix:PATH"), (["--serial", "file:/no/such"], "/no/such"),
    (["--initrd", "/no/such"], "could not load initrd '/no/such'"), (["more"], "more"), (["--what"], "--what"),
])
def test_options(kvm, options, text):
    out, err = boot("", *options, status=1)
    assert text in err and out == "", err


def test_help_and_version():
    for option in ("--help", "-h", "--version", "-V"):
        r = subprocess.run([vmm.program(), option], stdout=subprocess.PIPE, text=True, check=True)
        assert "merino-vmm" in r.stdout


# -- the serial line ----------------------------------------------------------------------------------

def test_input(kvm):
    """Much more than the port's 16 bytes at once: nothing is lost."""
    text = b"".join(b"%d " % i for i in range(500))
    r = subprocess.run(argv("echo"), input=text + b"q", stdout=subprocess.PIPE, timeout=HANG, check=True)
    assert text in r.stdout


@pytest.mark.parametrize("kib", [6, pytest.param(200, marks=[pytest.mark.soak, pytest.mark.timeout(600)])])
def test_nobody_reads(kvm, kib):
    """The guest goes on, and the program ends, when the reader of its console stops reading."""
    with running(f"flood={kib}", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as p:
        fcntl.fcntl(p.stdout, fcntl.F_SETPIPE_SZ, 4096)
        assert p.wait(500) == 0


def test_reader_leaves(kvm):
    with running("flood=6", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as p:
        p.stdout.read(100)
        p.stdout.close()
        assert p.wait(HANG) == 0


def test_file(kvm, tmp):
    boot("count=1", "--serial", f"file:{tmp}/log")
    assert (tmp / "log").read_bytes().endswith(b"PASS\r\n")
    assert boot("count=1", "--serial", "none") == ("", "")


def connect(path):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(HANG)
    wait_until(lambda: s.connect_ex(str(path)) == 0, why="nobody listens")
    return s


def until(s, text):
    got = b""
    while text not in got:
        piece = s.recv(4096)
        assert piece, got
        got += piece
    return got


def test_socket(kvm, tmp):
    """Clients come and go; the next one gets what was said meanwhile."""
    with running("echo", "--serial", f"unix:{tmp}/s") as p:
        one = connect(tmp / "s")
        until(one, b"echo\r\n")
        one.sendall(b"one ")
        until(one, b"one ")
        one.close()
        two = connect(tmp / "s")
        two.sendall(b"two ")
        until(two, b"two ")
        two.sendall(b"q")
        until(two, b"PASS")
        assert p.wait(HANG) == 0
        two.close()
    assert not (tmp / "s").exists()


@pytest.mark.parametrize("kib", [4, pytest.param(200, marks=[pytest.mark.soak, pytest.mark.timeout(600)])])
def test_socket_backlog(kvm, tmp, kib):
    """Who reads late gets the last 64 KiB, each byte once and in order."""
    with running(f"flood={kib} echo", "--serial", f"unix:{tmp}/s") as p:
        s = connect(tmp / "s")
        s.settimeout(500)
        time.sleep(0.5)                 # it does not read at first: the guest goes on
        s.sendall(b"q")
        got = until(s, b"PASS")
        assert p.wait(HANG) == 0
        lines = re.findall(rb"\n(1\d{5})x{57}(?=\n)", got)
        assert lines[-1] == b"%d" % (100000 + kib * 16 - 1) and len(lines) >= min(kib * 16 - 1, 900)
        assert sorted(set(lines)) == lines
        s.close()


def on_terminal(words, keys, signo=None):
    """Its exit status, whether the terminal was raw meanwhile, and whether it is as before."""
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    with running(words, stdin=slave, stdout=slave, stderr=slave) as p:
        got = b""
        while words.encode() + b"\r\r\n" not in got.partition(b"\n")[2]:
            got += os.read(master, 4096)
        raw = termios.tcgetattr(slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG) == 0
        os.write(master, keys)
        if signo:
            p.send_signal(signo)
        status = p.wait(HANG)
    after = termios.tcgetattr(slave)
    os.close(slave)
    with contextlib.suppress(OSError):      # EIO: that was all
        while more := os.read(master, 65536):
            got += more
    os.close(master)
    return status, raw, after == before, got


def test_terminal(kvm):
    status, raw, restored, got = on_terminal("echo", b"a\x03b\x01\x01cq")
    assert (status, raw, restored) == (0, True, True) and b"a\x03b\x01c" in got
    status, raw, restored, got = on_terminal("hang", b"x" * 200 + b"\x01h\x01x")
    assert (status, raw, restored) == (0, True, True) and b"^A x ends the machine" in got


@pytest.mark.parametrize("signo", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGSEGV, signal.SIGABRT,
                                   signal.SIGQUIT])
def test_terminal_restored(kvm, signo):
    status, raw, restored, _ = on_terminal("hang", b"", signo)
    assert raw and restored
    assert status == (0 if signo in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) else -signo)


def test_host_without_kvm():
    """The program says what is missing."""
    if os.getuid():
        pytest.skip("needs root for a namespace")
    script = f'mount -t tmpfs none /dev && mknod /dev/null c 1 3 && exec "{vmm.program()}" --kernel "{vmm.payload()}"'
    r = subprocess.run(["unshare", "-m", "sh", "-c", script], stderr=subprocess.PIPE, text=True)
    assert r.returncode == 1 and "/dev/kvm: No such file or directory" in r.stderr and "kvm_intel" in r.stderr
