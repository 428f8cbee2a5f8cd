# SPDX-License-Identifier: BSD-3-Clause
"""The worked example of TLS in merinod(8), typed in as it stands there; names and places are the test's."""

import re
import subprocess

import pytest

from lib import tools
from lib.daemon import free_port, program
from lib.patience import HANG

pytestmark = pytest.mark.merino_only


def examples(page, here, port):
    """The lines with commands, those that go on joined, with the test's names in place."""
    text = page.part("TLS").text.replace("\\\n", " ")
    for old, new in [("store1.example.org", "localhost"), ("/etc/merino/pki", str(here)), ("/etc/merino/psk", str(here)),
                     ("/home/backup/pki", str(here)), ("/home/backup/keys.psk", f"{here}/keys.psk"),
                     ("addr.host=,", "addr.host=127.0.0.1,"), ("addr.port=10809", f"addr.port={port}"),
                     ("//localhost/", f"//localhost:{port}/"), ("@localhost/", f"@localhost:{port}/")]:
        assert old in text
        text = text.replace(old, new)
    return re.findall(r"^ (\S.*)$", text, re.M), re.findall(r"C<(psktool .*?)>", text)


def shell(command, here):
    done = subprocess.run(command, shell=True, cwd=here, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def served(command, client, here):
    """The daemon's command runs while the client's does."""
    proc = subprocess.Popen([program(), *command.split()[1:]], cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True)
    try:
        assert proc.stdout.readline().startswith("nbds://")
        return shell(client, here)
    finally:
        proc.terminate()
        proc.communicate(timeout=HANG)


def test_the_example_works(tmp, merinod_page):
    tools.create(tmp / "disk.qcow2", "1M")
    commands, psktool = examples(merinod_page, tmp, free_port())
    daemons = [c for c in commands if c.startswith("merinod ")]
    clients = [c for c in commands if c.startswith("nbdinfo ")]
    making = [c for c in commands if c not in daemons + clients]
    assert len(making) == 6 and len(daemons) == len(clients) == 2 and len(psktool) == 1
    for c in making:
        shell(c, tmp)
    # "For each client the same with `client` for `server` in the names, its own cn and tls_www_client"
    for c in making[3:]:
        shell(c.replace("server", "client").replace("cn = store1", "cn = backup1"), tmp)
    shell(psktool[0], tmp)
    for daemon, client in zip(daemons, clients):
        assert "with TLS" in served(daemon, client, tmp)
    # A client of another name is not in the list of those who may.
    shell(making[4].replace("server", "client").replace("cn = store1", "cn = other"), tmp)
    shell(making[5].replace("server", "client"), tmp)
    with pytest.raises(AssertionError):
        served(daemons[0], clients[0], tmp)
