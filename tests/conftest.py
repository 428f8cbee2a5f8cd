# SPDX-License-Identifier: BSD-3-Clause
"""Fixtures of every test that talks to the daemon; README.md says what lives where."""

import os
import pathlib
import shutil
import signal
import sys
import tempfile

import pytest

sys.dont_write_bytecode = True

from lib import daemon as daemon_module                  # noqa: E402
from lib.pki import Pki                                  # noqa: E402


# Debian's programs first: its nbdsh runs the `python3` of the PATH, which must be the one that has libnbd.
os.environ["PATH"] = "/usr/bin:/usr/sbin:/bin:/sbin:" + os.environ.get("PATH", "")


# A shell's background job is started with SIGINT ignored, what nohup(1) starts with SIGHUP, and what we start would
# be, too: tests interrupt it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_configure(config):
    if daemon_module.program() is None:
        raise pytest.UsageError("no program to test: build merinod, or set MERINOD=/path/to/it")


def pytest_report_header(config):
    return f"testing {daemon_module.program()}"


def pytest_collection_modifyitems(items):
    if daemon_module.is_qsd():
        skip = pytest.mark.skip(reason="qemu-storage-daemon knowingly differs")
        for item in items:
            if "merino_only" in item.keywords:
                item.add_marker(skip)
    items.sort(key=longest_first)


def longest_first(item):
    """What may take longest begins first: no worker is left alone with it in the end."""
    limit = item.get_closest_marker("timeout")
    return -limit.args[0] if limit and limit.args else 0


@pytest.fixture
def tmp():
    """A private directory with a path short enough for sockets (pytest's own is not)."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="mt-", dir=os.environ.get("MERINO_TEST_DIR", "/tmp")))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def daemon(tmp):
    """Starts daemons (see lib/daemon.py: start, serve) and ends them after the test, strictly."""
    factory = daemon_module.Factory(tmp)
    yield factory
    factory.end()


@pytest.fixture(scope="session")
def pki():
    """Certificates and keys (see lib/pki.py), made once for each process that runs tests."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="mt-pki-", dir=os.environ.get("MERINO_TEST_DIR", "/tmp")))
    yield Pki(path)
    shutil.rmtree(path, ignore_errors=True)
