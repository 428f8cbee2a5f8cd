# SPDX-License-Identifier: BSD-3-Clause
"""merino backup --socket of a daemon whose NBD server wants TLS."""

import json

import pytest

from lib import tools
from lib.daemon import disk_args, free_port
from lib.proof import leftovers, prove

pytestmark = pytest.mark.merino_only

SIZE = 1 << 20
CONTENT = bytes(64 << 10) + b"\7" * (128 << 10) + bytes(SIZE - (192 << 10))


def start(daemon, tmp, creds, listen):
    tools.create(tmp / "a.qcow2", SIZE)
    tools.qemu_io(tmp / "a.qcow2", "write -P 7 64k 128k")
    return daemon.start(*creds, "--nbd-server", listen, *disk_args(tmp / "a.qcow2", name="a"), listen=None)


def check(merino, d, tmp, *args):
    said = merino.run("backup", "--to", "repo", "--socket", d.qmp_path, status=1).stderr
    assert "wants TLS: give --tls-certificates or --tls-psk-file" in said
    assert not leftovers(merino.cwd / "repo")
    for _ in range(2):
        p = json.loads(merino.run("backup", "--json", "--to", "repo", "--socket", d.qmp_path, *args).stdout)
        assert prove(merino.cwd / "repo", p["point"])["a"] == CONTENT
    assert p["disks"][0]["level"] == "incremental"


def test_certificates(daemon, merino, tmp, pki):
    d = start(daemon, tmp, pki.x509_object(), f"addr.type=inet,addr.host=localhost,addr.port={free_port()},tls-creds=tls")
    check(merino, d, tmp, "--tls-certificates", pki.root / "client")
    merino.run("backup", "--to", "repo", "--socket", d.qmp_path, "--tls-certificates", pki.root / "nobody", status=1)


def test_keys(daemon, merino, tmp, pki):
    d = start(daemon, tmp, pki.psk_object(), f"addr.type=unix,addr.path={tmp}/n%bd,tls-creds=tls")
    check(merino, d, tmp, "--tls-psk-file", pki.root / "psk" / "keys.psk", "--tls-username", "alice")


@pytest.mark.parametrize("args, words", [
    (["--tls-certificates", "x", "a.img"], "goes with --socket"),
    (["--socket", "q", "--tls-username", "x"], "goes with --tls-psk-file"),
    (["--socket", "q", "--tls-certificates", "x", "--tls-psk-file", "y"], "do not go together"),
])
def test_words_that_do_not_go_together(merino, args, words):
    assert words in merino.run("backup", "--to", "repo", *args, status=1).stderr
