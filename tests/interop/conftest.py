# SPDX-License-Identifier: BSD-3-Clause
"""The disk that the foreign clients meet: an overlay on a base, with a dirty bitmap."""

import pytest

from lib import layered


@pytest.fixture
def disk(daemon, tmp):
    """A daemon serving lib/layered.py's disk, writable, with every metadata context."""
    return daemon.serve(layered.make(tmp), bitmaps=("b0",), export="allocation-depth=on")


@pytest.fixture
def empty(daemon, tmp):
    """A daemon serving an empty qcow2 disk of the same size; its image is TMP/empty.qcow2."""
    return daemon.serve(layered.make_empty(tmp))
