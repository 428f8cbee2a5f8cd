# SPDX-License-Identifier: BSD-3-Clause
"""Running `merino` and looking at how it ended."""

import os
import pathlib
import re
import subprocess

import pytest

from lib.nbdserver import Server
from lib.patience import HANG

ROOT = pathlib.Path(__file__).resolve().parents[2]
REPORT = re.compile(r"(Address|Leak|Thread|Memory|UndefinedBehavior)Sanitizer|runtime error:|[Aa]ssertion .*failed")


def program():
    """The merino under test: $MERINO, or in $BUILD, or in build/."""
    build = pathlib.Path(os.environ.get("BUILD", "build"))
    return os.environ.get("MERINO", str((build if build.is_absolute() else ROOT / build) / "merino"))


class Merino:
    """Runs the program in a private directory; every run's status is judged."""

    def __init__(self, cwd):
        self.cwd = cwd

    def argv(self, *args):
        return [program(), *map(str, args)]

    def run(self, *args, status=0, timeout=HANG, **kw):
        done = subprocess.run(self.argv(*args), cwd=self.cwd, text=True, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout, **kw)
        assert not REPORT.search(done.stderr), done.stderr
        assert done.returncode == status, f"{args}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def pull(self, *args, **kw):
        return self.run("pull", *args, **kw)

    def refused(self, *args):
        """Exit 1 with a message, and nothing left behind; the message."""
        before = sorted(os.listdir(self.cwd))
        text = self.run("pull", *args, status=1).stderr
        assert text.startswith("merino pull: "), text
        assert sorted(os.listdir(self.cwd)) == before
        return text


@pytest.fixture
def merino(tmp):
    """`merino` with a directory of its own (tmp/out) as working directory."""
    if not os.access(program(), os.X_OK):
        pytest.fail(f"{program()} is not built")
    (tmp / "out").mkdir()
    return Merino(tmp / "out")


@pytest.fixture
def serve(tmp):
    """Starts NBD servers of our own, which answer as a test wants."""
    servers = []

    def start(content, kind=Server, **kw):
        s = kind(tmp / f"s{len(servers)}", content, **kw)
        servers.append(s)
        return s
    yield start
    for s in servers:
        s.close()
