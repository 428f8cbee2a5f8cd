# SPDX-License-Identifier: BSD-3-Clause
"""README.md and its like: what they name exists, and the commands they show work."""

import os
import re
import signal
import subprocess

import pytest

from lib import tools
from lib.daemon import ROOT, program
from lib.patience import HANG, wait_until

pytestmark = pytest.mark.merino_only

LEFT_OUT = re.compile(r"\.(?!ci$|editorconfig$)|build|__pycache__")
TREE = {os.path.relpath(os.path.join(top, name), ROOT)
        for top, folders, names in os.walk(ROOT)
        if folders.__setitem__(slice(None), [f for f in folders if not LEFT_OUT.match(f)]) is None for name in names}
PAGES = sorted(p for p in TREE if p.endswith(".md"))
MAKEFILE = (ROOT / "Makefile").read_text()


def text_of(page):
    return (ROOT / page).read_text()


@pytest.mark.parametrize("page", PAGES)
def test_links(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text_of(page)):
        path = os.path.normpath(os.path.join(os.path.dirname(page), target))
        if not re.match(r"https?:", target):
            assert (ROOT / path).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named(page):
    """With a folder: that file.  Without: one of that name, in the page's folder if it has any source."""
    names = re.findall(r"(?<![\w/*.<-])((?:[\w-]+/)*\w[\w-]*\.(?:c|h|py))(?![\w/*])", text_of(page))
    for name in names:
        folder = os.path.dirname(page)
        found = os.path.join(folder, name) in TREE or name in TREE
        assert found or "/" not in name and any(os.path.basename(f) == name for f in TREE), name


@pytest.mark.parametrize("folder", sorted({p.split("/")[0] for p in TREE if "/" in p and p[0] != "."}))
def test_folder_has_a_readme(folder):
    assert len(text_of(f"{folder}/README.md").split()) > 10


def test_folders_of_tests():
    there = {p.split("/")[1] + "/" for p in TREE if p.count("/") > 1 and p.startswith("tests/")}
    assert set(re.findall(r"^\| `(\w+/)` \|", text_of("tests/README.md"), re.M)) == there


def defines(path, function):
    """A definition, not a call or a declaration."""
    return re.search(rf"^[a-z][^;{{}}()]*\b{function}\([^;{{}}]*\)\n\{{", text_of(path), re.M)


def test_functions_of_the_write_path():
    page = text_of("doc/write-path.md")
    files = re.findall(r"[\w-]+/[\w-]+\.[ch]", page)
    files += [f for n in re.findall(r"(?<![\w/-])[\w-]+\.c", page) for f in TREE if os.path.basename(f) == n]
    named = 0
    for function, rest in re.findall(r"`(\w+)\(\)`(.{0,60})", page.replace("\n", " ")):
        near = re.match(r"\**\s+(?:in \[|\(\[?)((?:[\w-]+/)?[\w-]+\.c)", rest)
        within = [f for f in set(files) if not near or f.endswith("/" + near.group(1)) or f == near.group(1)]
        assert any(defines(f, function) for f in within), function
        named += near is not None
    assert named >= 7
    assert len(re.findall(r"^\d\. \*\*", page, re.M)) == 5


def test_functions_in_hacking():
    sources = [p for p in TREE if re.match(r"(common|format|bitmaps|nbd-server|clients)/.*\.c$", p)]
    functions = set(re.findall(r"`(\w+)\(\)`", text_of("doc/HACKING.md")))
    assert functions and all(any(defines(p, f) for p in sources) for f in functions)


@pytest.mark.parametrize("page", ["README.md", "doc/HACKING.md", "doc/README.md"])
def test_targets_of_make(page):
    targets = re.findall(r"(?:^ +|`)make ([a-z][a-z-]*)", text_of(page), re.M)
    assert targets and all(re.search(rf"^{t}:", MAKEFILE, re.M) for t in targets)


def test_make_help_lists_the_targets_of_hacking():
    listed = tools.run("make", "-C", ROOT, "help").stdout
    for target in re.findall(r"^ +make ([a-z][a-z-]*)", text_of("doc/HACKING.md"), re.M):
        assert re.search(rf"^{target} ", listed, re.M), target


# --- the first incremental backup


def block(page, heading):
    return re.search(rf"^## {heading}\n\n((?:    .*\n)+)", text_of(page), re.M).group(1)


def stop(pidfile):
    """Ends a daemon that put itself into the background."""
    if not pidfile.exists():
        return
    pid = int(pidfile.read_text())
    os.kill(pid, signal.SIGTERM)
    try:
        wait_until(lambda: not pidfile.exists(), why="the daemon did not end")
    except AssertionError:
        os.kill(pid, signal.SIGKILL)
        raise


def test_first_incremental_backup(tmp, merino):
    """The lines of README.md, as they stand there but for the programs' places and /tmp."""
    lines = [line.strip() for line in block("README.md", "A first incremental backup").splitlines()]
    change = [i for i, line in enumerate(lines) if line.startswith("# … the disk goes on changing")]
    assert len(change) == 1 and len(lines) == 7
    lines[change[0]] = ("qemu-io -f raw -c 'write -P 7 1M 100k' -c 'write -z 3M 64k' "
                        "'nbd+unix:///?socket=/tmp/vm.sock'")
    tools.create(tmp / "vm.qcow2", "16M")
    tools.qemu_io(tmp / "vm.qcow2", "write -P 1 0 4M", "write -P 2 8M 1M")
    script = "\n".join(lines).replace("/tmp/", f"{tmp}/").replace("build/merinod", program())
    script = script.replace("build/merino ", f"{merino} ")
    try:
        done = subprocess.run(["sh", "-e", "-c", script], cwd=tmp, stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, timeout=HANG)
        assert done.returncode == 0, script + "\n" + done.stdout + done.stderr
    finally:
        stop(tmp / "vm.pid")
    assert f"nbd+unix:///?socket={tmp}/vm.sock" in done.stdout
    tools.compare(tmp / "restored.img", tmp / "vm.qcow2", "raw", "qcow2")
    tools.compare(tmp / "inc1.qcow2", tmp / "vm.qcow2", "qcow2", "qcow2")
    copied = sum(e["length"] for e in tools.mapping(tmp / "inc1.qcow2") if e["depth"] == 0)
    assert 0 < copied <= 4 * 65536, "only what has changed is in the increment"
