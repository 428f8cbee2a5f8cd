# SPDX-License-Identifier: BSD-3-Clause
"""The documents, and the programs that they are about."""

import os
import re
import subprocess

import pytest

from lib.daemon import ROOT, program
from lib.patience import HANG


def run(*argv):
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=HANG).stdout


@pytest.fixture(scope="session")
def merino():
    build = ROOT / os.environ.get("BUILD", "build")
    return str(ROOT / os.environ.get("MERINO", build / "merino"))


@pytest.fixture(scope="session")
def merinod_help():
    return run(program(), "--help")


@pytest.fixture(scope="session")
def pull_help(merino):
    return run(merino, "pull", "--help")


class Page:
    """A man page's source, and its parts."""

    def __init__(self, text):
        self.text = text

    def part(self, heading, level=1):
        """What is below =headLEVEL HEADING."""
        up_to = "".join(str(n) for n in range(1, level + 1))
        match = re.search(rf"^=head{level} {re.escape(heading)}\n(.*?)(?=^=head[{up_to}] |\Z)", self.text, re.S | re.M)
        assert match, f"no =head{level} {heading}"
        return Page(match.group(1))

    def headings(self, level):
        return re.findall(rf"^=head{level} (.*)$", self.text, re.M)

    def items(self):
        return re.findall(r"^=item (.*)$", self.text, re.M)

    def item(self, start):
        """The text of the items that begin with START, up to another one."""
        parts = re.split(r"^(?==item |=back|=head)", self.text, flags=re.M)
        at = [i for i, p in enumerate(parts) if p.startswith("=item " + start)]
        assert at, f"no =item {start}"
        return "".join(parts[at[0]:at[-1] + 1])


@pytest.fixture(scope="session")
def merinod_page():
    return Page((ROOT / "doc" / "merinod.8.pod").read_text())


@pytest.fixture(scope="session")
def merino_page():
    return Page((ROOT / "doc" / "merino.1.pod").read_text())


@pytest.fixture(scope="session")
def backup_page():
    return Page((ROOT / "doc" / "merino-backup.1.pod").read_text())


@pytest.fixture(scope="session")
def run_page():
    return Page((ROOT / "doc" / "merino-run.1.pod").read_text())


@pytest.fixture(scope="session")
def vmm_page():
    return Page((ROOT / "doc" / "merino-vmm.1.pod").read_text())


@pytest.fixture(scope="session")
def qmp_page():
    """As the build makes it."""
    template = (ROOT / "doc" / "merinod-qmp.7.pod.in").read_text()
    assert template.count("\n@COMMANDS@\n") == 1
    return Page(template.replace("@COMMANDS@", run(program(), "--qmp-commands=pod")))
