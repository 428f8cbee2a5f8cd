# SPDX-License-Identifier: BSD-3-Clause
"""A virtual machine boots from our disk and writes to it (TCG: no KVM needed)."""

import pathlib

import pytest

from lib import pattern, tools

HERE = pathlib.Path(__file__).parent
SIZE = 4 << 20


@pytest.fixture
def boot(tmp):
    """bootsector.S as bytes."""
    tools.run("as", "--32", "-o", tmp / "boot.o", HERE / "bootsector.S")
    tools.run("ld", "-m", "elf_i386", "-Ttext=0x7c00", "--oformat=binary", "-o", tmp / "boot.bin", tmp / "boot.o")
    code = (tmp / "boot.bin").read_bytes()
    assert len(code) == 512
    return code


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
@pytest.mark.parametrize("interface", ["ide", "virtio"])
def test_guest_boots_reads_and_writes(daemon, tmp, boot, fmt, interface):
    content = bytearray(boot + pattern.block("guest", SIZE - 512))
    (tmp / "in").write_bytes(content)
    tools.run("qemu-img", "convert", "-f", "raw", "-O", fmt, tmp / "in", tmp / "disk")
    d = daemon.serve(tmp / "disk", fmt)
    vm = tools.run("qemu-system-x86_64", "-machine", "pc,accel=tcg", "-m", "16", "-display", "none", "-nodefaults",
                   "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=1",
                   "-drive", f"file={d.uri()},format=raw,if={interface},cache=writeback", check=False)
    assert vm.returncode == 1, f"exit {vm.returncode}: {vm.stderr}"
    d.stop()
    content[100 * 512:101 * 512] = bytes(255 - b for b in content[512:1024])
    if fmt == "qcow2":
        tools.check(tmp / "disk")
    assert pattern.first_difference(tools.content(tmp / "disk", fmt), content) is None
