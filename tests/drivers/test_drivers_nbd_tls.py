# SPDX-License-Identifier: BSD-3-Clause
"""A remote export behind TLS: who is let in, and which servers are believed."""

import os
import pathlib
import subprocess
import tempfile

import pytest

from lib import tools
from lib.daemon import DidNotStart
from lib.patience import HANG

from .test_drivers_nbd import SIZE, exercise, serve


def certtool(*argv):
    subprocess.run([tools.need("certtool"), *map(str, argv)], check=True, capture_output=True, timeout=HANG)


@pytest.fixture(scope="module")
def pki():
    """Authorities a and b, each with a server and a client for localhost; keys of alice and bob."""
    with tempfile.TemporaryDirectory(prefix="mt-", dir=os.environ.get("MERINO_TEST_DIR", "/tmp")) as top:
        yield make_pki(pathlib.Path(top))


def make_pki(top):
    for ca in "ab":
        key, cert = top / f"{ca}-key", top / f"{ca}-cert"
        certtool("--generate-privkey", "--key-type=ecdsa", "--curve=secp256r1", f"--outfile={key}")
        (top / "template").write_text(f"cn = {ca}\nca\ncert_signing_key\n")
        certtool("--generate-self-signed", f"--load-privkey={key}", f"--template={top}/template", f"--outfile={cert}")
        for kind, purpose in ("server", "tls_www_server"), ("client", "tls_www_client"):
            d = top / f"{ca}-{kind}"
            d.mkdir()
            (d / "ca-cert.pem").write_bytes(cert.read_bytes())
            certtool("--generate-privkey", "--key-type=ecdsa", "--curve=secp256r1", f"--outfile={d}/{kind}-key.pem")
            (top / "template").write_text(f"cn = localhost\ndns_name = localhost\n{purpose}\nsigning_key\nencryption_key\n")
            certtool("--generate-certificate", f"--load-ca-privkey={key}", f"--load-ca-certificate={cert}",
                     f"--load-privkey={d}/{kind}-key.pem", f"--template={top}/template", f"--outfile={d}/{kind}-cert.pem")
    keys = top / "psk"
    keys.mkdir()
    (keys / "keys.psk").write_text("alice:0123456789abcdef0123456789abcdef\nbob:00112233445566778899aabbccddeeff\n")
    wrong = top / "psk-wrong"
    wrong.mkdir()
    (wrong / "keys.psk").write_text("alice:ffffffffffffffffffffffffffffffff\n")
    return top


def client(pki, creds, options=""):
    d, kind = {"a": ("a-client", "x509"), "b": ("b-client", "x509"), "psk": ("psk", "psk"),
               "psk-wrong": ("psk-wrong", "psk")}[creds]
    return "--object", f"tls-creds-{kind},id=t,dir={pki}/{d},endpoint=client{options}"


def start(daemon, sock, obj, extra):
    return daemon.start(*obj, "--blockdev", "driver=nbd,node-name=disk,discard=unmap,server.type=unix,"
                        f"server.path={sock},export=exp,tls-creds=t{extra}",
                        "--export", "type=nbd,id=disk,node-name=disk,writable=on")


def server(servers, pki, tmp, creds):
    d, kind = {"a": ("a-server", "x509"), "psk": ("psk", "psk")}[creds]
    path = tools.create(tmp / "a", SIZE, "raw")
    servers.qemu_nbd(tmp / "s", path, "raw", "--object", f"tls-creds-{kind},id=t,dir={pki}/{d},endpoint=server",
                     "--tls-creds", "t")


@pytest.mark.parametrize("creds, options, extra", [
    ("a", "", ",tls-hostname=localhost"),
    ("a", ",verify-peer=off", ",tls-hostname=localhost"),
    ("psk", ",username=alice", ""),
    ("psk", ",username=bob", ""),
])
def test_works(daemon, servers, pki, tmp, creds, options, extra):
    server(servers, pki, tmp, creds)
    obj = client(pki, creds, options)
    exercise(start(daemon, tmp / "s", obj, extra).libnbd(), bytearray(SIZE), f"tls {creds}", 60)


def test_works_after_a_reconnect(daemon, servers, pki, tmp):
    server(servers, pki, tmp, "a")
    obj = client(pki, "a")
    h = start(daemon, tmp / "s", obj, ",tls-hostname=localhost,reconnect-delay=90").libnbd()
    h.pwrite(b"x" * 100000, 5)
    servers.kill(servers.all[0], tmp / "s")
    server_path = tmp / "a"
    servers.qemu_nbd(tmp / "s", server_path, "raw", "--object",
                     f"tls-creds-x509,id=t,dir={pki}/a-server,endpoint=server", "--tls-creds", "t")
    assert h.pread(100010, 0) == bytes(5) + b"x" * 100000 + bytes(5)


@pytest.mark.parametrize("creds, options, extra, words", [
    ("b", "", ",tls-hostname=localhost", "TLS handshake failed"),
    ("a", "", ",tls-hostname=other.example", "TLS handshake failed"),
    ("a", "", "", "tls-hostname is required"),
])
@pytest.mark.merino_only
def test_servers_that_are_not_believed(daemon, servers, pki, tmp, creds, options, extra, words):
    server(servers, pki, tmp, "a")
    obj = client(pki, creds, options)
    with pytest.raises(DidNotStart) as e:
        start(daemon, tmp / "s", obj, extra)
    assert words in e.value.stderr


@pytest.mark.merino_only
def test_wrong_key(daemon, servers, pki, tmp):
    server(servers, pki, tmp, "psk")
    obj = client(pki, "psk-wrong", ",username=alice")
    with pytest.raises(DidNotStart) as e:
        start(daemon, tmp / "s", obj, "")
    assert "TLS handshake failed" in e.value.stderr


def test_a_server_without_tls(daemon, servers, pki, tmp):
    """No falling back to plain text."""
    servers.qemu_nbd(tmp / "s", tools.create(tmp / "a", SIZE, "raw"))
    obj = client(pki, "a")
    with pytest.raises(DidNotStart):
        start(daemon, tmp / "s", obj, ",tls-hostname=localhost")


def test_a_server_that_requires_it(daemon, servers, pki, tmp):
    server(servers, pki, tmp, "a")
    with pytest.raises(DidNotStart) as e:
        serve(daemon, f"driver=nbd,node-name=disk,server.type=unix,server.path={tmp}/s,export=exp")
    assert "TLS" in e.value.stderr
