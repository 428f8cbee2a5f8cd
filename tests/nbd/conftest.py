# SPDX-License-Identifier: BSD-3-Clause
"""Daemons that serve the small disk, for tests of the protocol."""

import pytest

from lib import smalldisk


@pytest.fixture
def disk(daemon, tmp):
    """A daemon that serves it as a writable qcow2 export "disk"."""
    return daemon.serve(smalldisk.qcow2(tmp))


@pytest.fixture
def rawdisk(daemon, tmp):
    """The same, raw."""
    return daemon.serve(smalldisk.raw(tmp), "raw")


@pytest.fixture
def readonly(daemon, tmp):
    """The same, raw and read-only."""
    return daemon.serve(smalldisk.raw(tmp), "raw", writable=False)
