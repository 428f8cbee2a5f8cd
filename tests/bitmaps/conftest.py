# SPDX-License-Identifier: BSD-3-Clause
"""A daemon with two disks, for tests of bitmaps."""

import pytest

from lib import tools
from lib.daemon import disk_args

SIZE = 4 << 20


@pytest.fixture
def image(tmp):
    """An empty qcow2 image of 4 MiB."""
    return tools.create(tmp / "a.qcow2", SIZE)


@pytest.fixture
def disk(daemon, image):
    """It, served as "disk"."""
    return daemon.serve(image)


@pytest.fixture
def two(daemon, tmp, image):
    """It and a raw disk "other" of the same size."""
    return daemon.start(*disk_args(image), *disk_args(tools.create(tmp / "b.raw", SIZE, "raw"), "raw", "other"))
