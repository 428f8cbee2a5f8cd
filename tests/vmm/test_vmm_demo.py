# SPDX-License-Identifier: BSD-3-Clause
"""The machine of `make demo`: backups while its guest writes, kill -9 of its merinod, restore, a clean end."""

import os
import subprocess
import sys

import pytest

from lib import realkernel, vmm
from lib.daemon import ROOT

sys.path.append(str(ROOT / "tests/demo"))

import kernel                                              # noqa: E402
import machine                                             # noqa: E402

pytestmark = pytest.mark.merino_only


def run(*argv, ok=(0,), **kw):
    done = subprocess.run([str(a) for a in argv], text=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=100,
                          **kw)
    assert done.returncode in ok, (argv, done.stdout, done.stderr)
    return done.stdout


def test_a_machine_is_backed_up_while_it_runs(tmp):
    vmm.need_kvm()
    said = []
    machine.demonstrate(tmp, vmm.BUILD, said.append, run)
    assert "restored: 256 numbers in succession" in said[-1] and not os.listdir(tmp / "run"), said


def test_what_is_not_of_one_instant_is_seen(tmp):
    """The proof itself: a ring that lacks a number, and one with a torn block."""
    def block(b, number):
        words = [(b * machine.GOLDEN & machine.MASK) ^ (number << 20) ^ i for i in range(512)]
        return b"".join(w.to_bytes(8, "little") for w in words)

    ring = [block(b, b or 256) for b in range(256)]
    raw = tmp / "raw"
    raw.write_bytes(b"".join(ring))
    assert machine.last_number(raw) == 256
    raw.write_bytes(b"".join([*ring[:7], block(7, 7 + 256), *ring[8:]]))
    with pytest.raises(machine.Wrong, match="not one instant"):
        machine.last_number(raw)
    raw.write_bytes(b"".join([*ring[:7], ring[7][:2048] + bytes(2048), *ring[8:]]))
    with pytest.raises(machine.Wrong, match="torn"):
        machine.last_number(raw)


def test_a_kernel_that_is_not_up_in_time_is_no_failure(tmp, monkeypatch):
    """It says so by name, and leaves nothing.  (What it does when the kernel is up: tests/vmm/test_vmm_kernel.py.)"""
    vmm.need_kvm()
    monkeypatch.setattr(kernel, "PATIENCE", 0)
    if isinstance(kernel.find_kernel(), str):
        pytest.skip(kernel.find_kernel())
    said = []
    kernel.demonstrate(tmp, vmm.BUILD, said.append, run)
    assert said[-1].startswith("skipped: Debian's kernel: no program of the guest's ran within 0 s"), said
    assert not os.listdir(tmp / "run")


def test_a_kernel_that_is_not_there_is_no_failure(tmp, monkeypatch):
    vmm.need_kvm()
    monkeypatch.setattr(realkernel, "CACHE", tmp / "cache")
    monkeypatch.setenv("PATH", str(tmp))
    said = []
    kernel.demonstrate(tmp, vmm.BUILD, said.append, run)
    assert said == ["skipped: Debian's kernel: no apt-get to fetch Debian's packages with"]
