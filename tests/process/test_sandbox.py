# SPDX-License-Identifier: BSD-3-Clause
"""Least privilege: what the process cannot do any more, looked at from outside."""

import re

import pytest

from lib.daemon import ROOT

pytestmark = pytest.mark.merino_only


def test_every_ring_operation_is_listed():
    """An operation that loop-ring.c does not list fails at run time only."""
    used = set()
    for path in (ROOT / "common").glob("*.c"):
        used |= set(re.findall(r"io_uring_prep_(\w+)\(", path.read_text()))
    listed = {w.lower() for w in re.findall(r"^\tIORING_OP_(\w+),", (ROOT / "common/loop-ring.c").read_text(), re.M)}
    assert used == listed
