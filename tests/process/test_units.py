# SPDX-License-Identifier: BSD-3-Clause
"""The units and the example configuration that are installed."""

import os
import re
import subprocess

import pytest

from lib import tools
from lib.daemon import ROOT, program

pytestmark = pytest.mark.merino_only


@pytest.fixture
def installed(tmp):
    """What `make install` puts on a machine; the program in its place."""
    build = os.environ.get("BUILD", str(ROOT / "build"))
    subprocess.run(["make", "-s", "-C", ROOT, f"BUILD={build}", f"DESTDIR={tmp}", "PREFIX=/usr", "install-units"], check=True,
                   capture_output=True)
    return tmp / "usr/lib/systemd/system"


def test_units_are_installed(installed):
    assert {p.name for p in installed.iterdir()} == {"merinod.service", "merinod@.service", "merinod.socket"}
    for path in installed.iterdir():
        assert not re.search(r"@[A-Z]+@", path.read_text())
    one, each = (installed / "merinod.service").read_text(), (installed / "merinod@.service").read_text()
    assert "--config /etc/merinod/merinod.json" in one and "--config /etc/merinod/%i.json" in each


def verify_here(installed):
    """The same units, which start the program under test."""
    for path in installed.iterdir():
        path.write_text(path.read_text().replace("/usr/bin/merinod", program()))
    (installed / "merinod@.service").rename(installed / "merinod@x.service")


def analyze(*args):
    tools.need("systemd-analyze")
    return subprocess.run(["systemd-analyze", *map(str, args)], capture_output=True, text=True)


needs_systemd = pytest.mark.skipif(subprocess.run(["which", "systemd-analyze"], capture_output=True).returncode != 0,
                                   reason="systemd is not installed")


@needs_systemd
@pytest.mark.parametrize("unit", ["merinod.service", "merinod@x.service", "merinod.socket"])
def test_systemd_finds_no_fault(installed, unit):
    verify_here(installed)
    done = analyze("verify", "--man=no", "--recursive-errors=no", installed / unit)
    ours = [line for line in (done.stdout + done.stderr).splitlines() if unit in line]
    assert done.returncode == 0 and not ours, done.stdout + done.stderr


@needs_systemd
def test_exposure_is_low(installed):
    """systemd's own measure: 10 is everything, below 2 is "OK"."""
    verify_here(installed)
    done = analyze("security", "--offline=yes", "--threshold=20", "--no-pager", installed / "merinod.service")
    assert done.returncode == 0, done.stdout[-600:] + done.stderr


def test_example_configuration_works(daemon, tmp):
    text = (ROOT / "doc" / "merinod.json").read_text()
    assert text.count("/srv/disks") == 3 and text.count("/run/merinod/merinod") == 2
    (tmp / "disks").mkdir()
    tools.create(tmp / "disks/vda.qcow2", "1M")
    tools.create(tmp / "disks/vdb.raw", "1M", "raw")
    config = tmp / "merinod.json"
    config.write_text(text.replace("/srv/disks", str(tmp / "disks")).replace("/run/merinod/merinod", str(tmp)))
    d = daemon.start("--config", config, "--state", tmp / "state", listen=None, monitor=False)
    d.nbd_address, d.qmp_path = str(tmp / "nbd"), str(tmp / "qmp")
    assert "no --allow-dir" not in d.stderr()
    for name in "vda", "vdb":
        h = d.libnbd(name)
        h.pwrite(b"x" * 4096, 0)
        assert h.pread(4096, 0) == b"x" * 4096
        h.shutdown()
    assert len(d.qmp.cmd("query-block-exports")) == 2
