# SPDX-License-Identifier: BSD-3-Clause
"""object-add and object-del; the texts are qemu-storage-daemon's where it has the same feature."""

import base64
import subprocess

import pytest

from lib import tools
from lib.daemon import program

KEY, IV = bytes(range(32)), bytes(range(100, 116))


def b64(data):
    return base64.b64encode(data).decode()


def secret(name="s", **options):
    return {"qom-type": "secret", "id": name, **options}


@pytest.fixture
def qmp(daemon):
    q = daemon.start(listen=None).qmp
    q.cmd("object-add", secret("key", data=b64(KEY), format="base64"))
    q.cmd("object-add", secret("short", data="abc"))
    return q


def encrypted(**more):
    return secret(**{"data": b64(bytes(16)), "format": "base64", "keyid": "key", "iv": b64(IV), **more})


@pytest.mark.parametrize("arguments, text", [
    ({}, "Parameter 'qom-type' is missing"),
    ({"qom-type": "secret"}, "Parameter 'id' is missing"),
    ({"qom-type": 5, "id": "s"}, "Invalid parameter type for 'qom-type', expected: string"),
    ({"qom-type": "nope", "id": "s"}, "Parameter 'qom-type' does not accept value 'nope'"),
    (secret("1a", data="x"), "Parameter 'id' expects an identifier"),
    (secret(), "Either 'file' or 'data' must be provided"),
    (secret(data="x", file="y"), "'file' and 'data' are mutually exclusive"),
    (secret(data="x", bogus=1), "Parameter 'bogus' is unexpected"),
    (secret(data=5), "Invalid parameter type for 'data', expected: string"),
    (secret(data="x", format="hex"), "Parameter 'format' does not accept value 'hex'"),
    (secret(data="!!", format="base64"), "Base64 data contains invalid characters"),
    (secret("key", data="x"), "attempt to add duplicate property 'key' to object (type 'container')"),
    (encrypted(keyid="short"), "Key should be 32 bytes in length"),
    (encrypted(keyid="nope"), "No secret with id 'nope'"),
    (encrypted(iv=b64(b"12")), "IV should be 16 bytes in length not 2"),
    (encrypted(data=b64(b"12")), "Length 2 must be a multiple of block size 16"),
    (secret(data=b64(bytes(16)), format="base64", keyid="key"), "IV is required to decrypt secret"),
])
def test_refused(arguments, text, qmp):
    assert qmp.error("object-add", arguments) == ("GenericError", text)
    assert qmp.error("object-del", {"id": "s"}) == ("GenericError", "object 's' not found")


def test_a_secret_that_was_encrypted(qmp, tmp):
    """By openssl, with another secret's bytes: what comes out is the key of a third one, so it was decrypted."""
    def encrypt(data, key):
        return subprocess.run([tools.need("openssl"), "enc", "-aes-256-cbc", "-K", key.hex(), "-iv", IV.hex()],
                              input=data, stdout=subprocess.PIPE, check=True).stdout
    inner = bytes(range(200, 232))
    (tmp / "inner").write_text(b64(encrypt(inner, KEY)))
    qmp.cmd("object-add", secret("inner", file=str(tmp / "inner"), format="base64", keyid="key", iv=b64(IV)))
    qmp.cmd("object-add", encrypted(data=b64(encrypt(b"well", inner)), keyid="inner"))
    # Under the wrong key the padding is not right (the chance that it is, is fixed by the constants above).
    kind, text = qmp.error("object-add", {**encrypted(data=b64(encrypt(b"well", inner))), "id": "t"})
    assert "padding" in text


def test_deleted_and_made_again(qmp):
    qmp.cmd("object-add", secret(data="a"))
    qmp.cmd("object-del", id="s")
    assert qmp.error("object-del", id="s") == ("GenericError", "object 's' not found")
    qmp.cmd("object-add", secret(data="b"))


@pytest.mark.merino_only
def test_props_as_before_qemu_6(qmp):
    qmp.cmd("object-add", {"qom-type": "secret", "id": "s", "props": {"data": "x"}})
    assert qmp.error("object-add", {"qom-type": "secret", "id": "t", "data": "x", "props": {"data": "y"}})[1] == \
        "Parameter 'props.data' is unexpected"
    assert qmp.error("object-add", {"qom-type": "secret", "id": "t", "props": {"bogus": "y", "data": "x"}})[1] == \
        "Parameter 'bogus' is unexpected"


def test_on_the_command_line(daemon, tmp):
    """keyval and JSON, with ,, for a comma."""
    (tmp / "f").write_bytes(b64(KEY).encode() + b"\n")
    d = daemon.start("--object", f"secret,id=a,file={tmp}/f,format=base64", "--object", "secret,id=b,data=x,,y",
                     "--object", '{"qom-type": "secret", "id": "c", "data": "x"}', listen=None)
    for name in "abc":
        d.qmp.cmd("object-del", id=name)


@pytest.mark.merino_only
def test_an_error_does_not_show_the_secret():
    done = subprocess.run([program(), "--object", "secret,id=a,data=hunter2,format=hex"], capture_output=True, text=True)
    assert done.returncode == 1 and "does not accept value 'hex'" in done.stderr and "hunter2" not in done.stderr


@pytest.mark.merino_only
@pytest.mark.parametrize("path, text", [("/nope", "No such file or directory"), ("/", "Is a directory"),
                                        ("/dev/zero", "Invalid argument")])
def test_files_that_are_none(path, text, qmp):
    assert qmp.error("object-add", secret(file=path))[1] == f"Unable to read {path}: {text}"


@pytest.mark.merino_only
def test_a_file_without_end_is_refused(qmp, tmp):
    with open(tmp / "big", "wb") as f:
        f.truncate(1 << 40)
    assert qmp.error("object-add", secret(file=str(tmp / "big")))[1].endswith("File too large")
