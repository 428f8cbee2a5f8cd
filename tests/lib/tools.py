# SPDX-License-Identifier: BSD-3-Clause
"""Stock programs, run as their users run them; also the oracle for what we store."""

import json
import os
import shutil
import subprocess
import tempfile

import pytest

from lib.patience import HANG, wait_until


def need(program):
    """The program's path; a missing one is a failure with the remedy, not a silent skip."""
    path = shutil.which(program)
    if path is None:
        pytest.fail(f"{program} is not installed: run `make deps`")
    return path


def run(*argv, check=True, timeout=HANG, stdin=None, env=None):
    """Run a program; stdout and stderr as text.  CHECK: it must exit 0."""
    argv = [str(a) for a in argv]
    done = subprocess.run([need(argv[0])] + argv[1:], input=stdin, text=True, timeout=timeout, env=env,
                          stdin=None if stdin is not None else subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def create(path, size, fmt="qcow2", backing=None, backing_fmt=None, **options):
    """qemu-img create; options with underscores as qemu-img spells them (cluster_size, refcount_bits ...)."""
    argv = ["qemu-img", "create", "-q", "-f", fmt]
    if backing:
        argv += ["-b", backing, "-F", backing_fmt or "qcow2"]
    if options:
        argv += ["-o", ",".join(f"{k}={v}" for k, v in options.items())]
    run(*argv, path, *([] if size is None else [size]))
    return str(path)


def info(path, fmt=None):
    return json.loads(run("qemu-img", "info", "--output=json", *(["-f", fmt] if fmt else []), path).stdout)


def mapping(path, fmt="qcow2"):
    return json.loads(run("qemu-img", "map", "--output=json", "-f", fmt, path).stdout)


def bitmaps(path):
    """What qemu-img says of the stored bitmaps: {name: {"granularity", "flags"}}."""
    data = info(path)["format-specific"]["data"]
    return {b["name"]: b for b in data.get("bitmaps", [])}


def check(path, fmt="qcow2"):
    """qemu-img check must find neither errors nor leaks; returns its report."""
    done = run("qemu-img", "check", "--output=json", "-f", fmt, path, check=False)
    assert done.returncode == 0, f"qemu-img check {path}: {done.stdout}{done.stderr}"
    report = json.loads(done.stdout)
    assert not report.get("leaks") and not report.get("corruptions") and not report["check-errors"], report
    return report


def compare(a, b, fmt_a="qcow2", fmt_b="raw", strict=False):
    """qemu-img compare must find no difference (STRICT: in size and allocation neither)."""
    done = run("qemu-img", "compare", *(["-s"] if strict else []), "-f", fmt_a, "-F", fmt_b, a, b, check=False)
    assert done.returncode == 0, f"{a} and {b}: {done.stdout}{done.stderr}"


def content(path, fmt="qcow2"):
    """All guest-visible bytes of an image, as QEMU reads them."""
    out = f"{path}.content"
    run("qemu-img", "convert", "-f", fmt, "-O", "raw", path, out)
    with open(out, "rb") as f:
        return f.read()


def qemu_io(target, *commands, fmt="qcow2", options=()):
    """qemu-io -c COMMAND ...; any "failed" in its output fails the test."""
    argv = ["qemu-io", *options]
    if fmt:
        argv += ["-f", fmt]
    for c in commands:
        argv += ["-c", c]
    done = run(*argv, target)
    assert "failed" not in done.stdout + done.stderr, done.stdout + done.stderr
    return done.stdout


def trace(pid, expression, *paths):
    """strace -e EXPRESSION of a running process, once it is attached to all its threads; PATHS: only calls about these."""
    said = tempfile.TemporaryFile()
    argv = [need("strace"), "-f", "-o", "/dev/null", "-e", expression, "-p", str(pid)]
    for p in paths:
        argv += ["-P", str(p)]
    tracer = subprocess.Popen(argv, stderr=said)

    def attached():                                      # which it says once it has stopped every thread
        assert tracer.poll() is None, f"strace ended with {tracer.returncode}"
        return b" attached" in os.pread(said.fileno(), 65536, 0)
    wait_until(attached)
    return tracer
