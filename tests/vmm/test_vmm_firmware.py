# SPDX-License-Identifier: BSD-3-Clause
"""A disk boots by the firmware that Debian ships, from its own first sectors (tests/guest/bios): on real KVM."""

import os
import pathlib
import re
import shutil
import struct
import subprocess
import time

import pytest

from lib import nbdserver, vmm
from lib.daemon import REPORT, die_with_parent
from lib.patience import HANG

pytestmark = [pytest.mark.merino_only, pytest.mark.timeout(600)]

BIOS = pathlib.Path("/usr/share/seabios")
MIB = 1 << 20
BOOTED = 8 * 512                        # where the boot sector counts


def need_bios(name="bios-256k.bin"):
    if not (BIOS / name).exists():
        pytest.skip(f"no {BIOS / name}: it is in Debian's package seabios")
    return BIOS / name


def make_disk(path, size=4 * MIB, text=b"the last sector\r\n"):
    with open(path, "wb") as f:
        f.write(vmm.sector().read_bytes())
        f.truncate(size)
        f.seek(size - 512)
        f.write(text.ljust(512, b"\0"))
    return path


def booted(path):
    return struct.unpack_from("<I", path.read_bytes(), BOOTED)[0]


def run(argv, timeout=500):
    """Status, what is on the serial line, what the programs say."""
    r = subprocess.run([str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                       timeout=timeout, preexec_fn=die_with_parent)
    out, err = r.stdout.decode(errors="replace"), r.stderr.decode()
    assert not REPORT.search(err), err
    return r.returncode, out.replace("\r\n", "\n"), err


@pytest.mark.parametrize("bios,memory,cpus", [
    ("bios-256k.bin", 3080, 2), pytest.param("bios.bin", 64, 1, marks=pytest.mark.soak)])
def test_boot_sector(tmp, bios, memory, cpus):
    """It is loaded, reads and writes the disk by the BIOS, resets, is booted again, and powers off."""
    vmm.need_kvm()
    disk, other = make_disk(tmp / "disk.raw"), make_disk(tmp / "other.raw", text=b"the wrong disk\r\n")
    status, out, err = run([vmm.BUILD / "merino", "run", "--run-dir", tmp / "run", "--memory", f"{memory}M", "--cpus", cpus,
                            "--bios", need_bios(bios), disk, other])
    assert status == 0, out + err
    assert re.findall(r"^(sector 0|sector 1|the last sector|waited|boot \w+|.*error.*|.*wrong.*)$", out, re.M) == \
        ["sector 0", "sector 1", "the last sector", "waited", "boot 00000001",
         "sector 0", "sector 1", "the last sector", "waited", "boot 00000002"], out + err
    assert (booted(disk), booted(other)) == (2, 0)
    ram = [(int(base, 16), int(size, 16)) for base, size in re.findall(r"^map (\w+) (\w+) 00000001$", out, re.M)]
    assert ram[:len(ram) // 2] == ram[len(ram) // 2:]
    ram = ram[:len(ram) // 2]
    assert ram[0][0] == 0 and ram[1][0] == MIB
    # The BIOS keeps some for its tables, below the end of what is below 4 GiB.
    low = min(memory, 3072)
    assert low * MIB - 256 * 1024 <= sum(ram[1]) <= low * MIB
    assert ram[2:] == ([(1 << 32, (memory - low) * MIB)] if memory > low else [])


@pytest.mark.soak
def test_read_only_disk(tmp):
    """The guest is told of the error, and nothing else happens."""
    vmm.need_kvm()
    disk = make_disk(tmp / "disk.raw")
    status, out, err = run([vmm.BUILD / "merino", "run", "--run-dir", tmp / "run", "--bios", need_bios(),
                            f"{disk},read-only=on"])
    assert status == 0 and "waited\nerror\n" in out and booted(disk) == 0, out + err


def test_no_boot_loader(tmp):
    """Said by the firmware; the machine can be ended."""
    vmm.need_kvm()
    need_bios()
    with nbdserver.Server(tmp / "nbd", 4 * MIB), \
            open(tmp / "out", "wb") as out, \
            subprocess.Popen([vmm.program(), "--disk", f"nbd+unix://?socket={tmp}/nbd", "--serial", f"file:{tmp}/serial"],
                             stdin=subprocess.DEVNULL, stdout=out, stderr=out, preexec_fn=die_with_parent) as p:
        try:
            while not (tmp / "serial").exists() or b"No bootable device" not in (tmp / "serial").read_bytes():
                assert p.poll() is None, (tmp / "out").read_text()
                time.sleep(0.05)
            p.terminate()
            assert p.wait(HANG) == 0
        finally:
            p.kill()
    said = (tmp / "serial").read_text(errors="replace")
    assert "not a bootable disk" in said and (tmp / "out").read_text() == ""


@pytest.mark.parametrize("make,text", [
    (lambda p: None, "No such file"),
    (lambda p: p.mkdir(), "not a regular file"),
    (lambda p: p.write_bytes(b""), "not a multiple of 64 KiB"),
    (lambda p: p.write_bytes(bytes(100000)), "not a multiple of 64 KiB"),
    (lambda p: p.write_bytes(bytes(2 * MIB)), "larger than 256 KiB: SeaBIOS is supported, UEFI is not"),
])
def test_bad_files(tmp, make, text):
    make(tmp / "bios")
    status, out, err = run([vmm.program(), "--bios", tmp / "bios"])
    assert (status, out) == (1, "") and f"could not load firmware '{tmp}/bios'" in err and text in err, err


@pytest.mark.parametrize("options,text", [
    (["--bios", "b", "--kernel", "k"], "--bios not allowed with --kernel option"),
    (["--append", "x"], "--append only allowed with --kernel option"),
    (["--initrd", "x"], "--initrd only allowed with --kernel option"),
    (["--memory", "8M"], "firmware needs 16 MiB of memory at least"),
])
def test_options(options, text):
    status, _, err = run([vmm.program(), *options])
    assert status == 1 and text in err, err


def test_missing(tmp):
    """Both programs say which package has it (in a mount namespace, where it is hidden)."""
    vmm.need_kvm()
    need_bios()
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("takes root")
    disk = make_disk(tmp / "disk.raw")
    for argv in [vmm.program()], [vmm.BUILD / "merino", "run", "--run-dir", tmp / "run", disk]:
        status, _, err = run(["unshare", "-m", "sh", "-c", f'mount -t tmpfs none {BIOS} && exec "$@"', "sh", *argv])
        if "unshare" in err or "mount:" in err:
            pytest.skip(err.strip())
        assert status == 1 and f"could not load firmware '{BIOS}/bios-256k.bin': No such file" in err, err
        assert "install Debian's package seabios" in err, err
