# SPDX-License-Identifier: BSD-3-Clause
"""A daemon without disks, and a small setup of nodes, for tests of the monitor."""

import pytest

from lib import tools


@pytest.fixture
def bare(daemon):
    return daemon.start()


@pytest.fixture
def setup(daemon, tmp):
    """Nodes "q" (qcow2, 4 MiB), "f" (file, 1 MiB) and "r" (raw on f); no exports; .image is q's file."""
    d = daemon.start()
    d.image, d.rawfile = tools.create(tmp / "a.qcow2", "4M"), tools.create(tmp / "r.raw", "1M", "raw")
    d.qmp.cmd("blockdev-add", {"driver": "qcow2", "node-name": "q", "file": {"driver": "file", "filename": d.image}})
    d.qmp.cmd("blockdev-add", {"driver": "file", "node-name": "f", "filename": d.rawfile})
    d.qmp.cmd("blockdev-add", {"driver": "raw", "node-name": "r", "file": "f"})
    return d
