# SPDX-License-Identifier: BSD-3-Clause
"""The howtos are run as they stand: each page is one session in an empty directory."""

import os
import pathlib
import re
import signal
import subprocess
import time

import pytest

from lib import tools
from lib.daemon import ROOT, program
from lib.patience import HANG

pytestmark = pytest.mark.merino_only

FENCE = re.compile(r"^```(\w*) ?(\S*)\n(.*?)^```$", re.S | re.M)
PAGES = sorted(p.name for p in (ROOT / "doc").glob("howto-*.md"))


def test_pages_are_there():
    assert {"howto-backup-with-your-own-tool.md", "howto-restore-when-everything-is-gone.md"} <= set(PAGES)


def stop(directory):
    """Daemons that the page has started and not ended."""
    for pidfile in directory.glob("*.pid"):
        try:
            os.kill(int(pidfile.read_text()), signal.SIGKILL)
        except (ValueError, ProcessLookupError):
            pass


@pytest.mark.parametrize("page", PAGES)
def test_howto(page, tmp, merino):
    """sh blocks are run in order, by one shell each, and end with 0; python blocks become files of their names."""
    if not os.access(merino, os.X_OK):
        pytest.fail(f"{merino} is not built")
    work, bin_ = tmp / "work", tmp / "bin"
    work.mkdir()
    bin_.mkdir()
    for name, path in ("merino", merino), ("merinod", program()):
        (bin_ / name).symlink_to(pathlib.Path(path).resolve())
    env = {**os.environ, "PATH": f"{bin_}:/usr/sbin:/usr/bin:/sbin:/bin", "TMPDIR": str(tmp), "LC_ALL": "C.UTF-8"}
    blocks = FENCE.findall((ROOT / "doc" / page).read_text())
    assert sum(kind == "sh" for kind, *_ in blocks) > 4
    try:
        for kind, name, text in blocks:
            assert kind == "sh" and not name or kind == "python" and name
            if kind == "python":
                (work / name).write_text(text)
                continue
            done = subprocess.run(["/bin/sh", "-eu", "-c", text], cwd=work, env=env, text=True, timeout=HANG,
                                  stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            assert done.returncode == 0, f"{text}\n{done.stdout}"
            assert "WRONG" not in done.stdout and "failed" not in done.stdout, f"{text}\n{done.stdout}"
        for pidfile in work.glob("*.pid"):
            end = time.monotonic() + HANG
            while pidfile.exists():
                assert time.monotonic() < end, "the page leaves a daemon behind"
                time.sleep(0.01)
    finally:
        stop(work)


def test_a_block_that_fails_is_seen(tmp):
    """The shell stops at the first wrong line."""
    done = tools.run("/bin/sh", "-eu", "-c", "cmp /etc/passwd /etc/group\ntrue", check=False)
    assert done.returncode != 0
