# SPDX-License-Identifier: BSD-3-Clause
"""doc/hazards.md: all of the list is there, and the tests that it names exist."""

import re

import pytest

from lib import hostile
from lib.daemon import ROOT

ROWS = [line.split("|")[1:-1] for line in (ROOT / "doc/hazards.md").read_text().splitlines()
        if re.match(r"\| \d+ \|", line)]


def test_all_of_them():
    assert [int(r[0]) for r in ROWS] == list(range(1, 45))


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r[0].strip())
def test_tests_exist(row):
    text, found = None, 0
    for name in re.findall(r"`([^`]+)`", row[2]):
        if name.startswith("tests/"):
            text = (ROOT / name).read_text()
        else:
            assert text and re.search(rf"^(def|static void) {name}\(", text, re.M), name
        found += 1
    for names in re.findall(r"hostile: ([\w, -]+)", row[2]):
        for group in names.split(", "):
            assert any(c.group == group.strip() for c in hostile.CASES), group
        found += 1
    assert found or "no mirror" in row[2]
