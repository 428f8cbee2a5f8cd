# SPDX-License-Identifier: BSD-3-Clause
"""Error classes and texts, which clients match; each as qemu-storage-daemon 7.2 says it."""

import subprocess

import pytest

from lib import tools
from lib.daemon import die_with_parent
from lib.patience import HANG, listening
from lib.qmp import without_sizes

LONG = "x" * 120


def case(command, arguments, text, kind="GenericError", **marks):
    return pytest.param(command, arguments, kind, text, id=f"{command}: {text[:50]}", **marks)


def blockdev(**members):
    """Arguments of blockdev-add; node_name and so on with underscores."""
    return {k.replace("_", "-"): v for k, v in members.items()}


RAW = {"driver": "file", "filename": "RAWFILE"}
QCOW2 = {"driver": "file", "filename": "IMAGE"}

CASES = [
    case("nope", None, "The command nope has not been found", "CommandNotFound"),
    case("device_add", {}, "The command device_add has not been found", "CommandNotFound"),
    case("query-version", {"a": 1}, "Parameter 'a' is unexpected"),
    case("quit", {"a": 1}, "Parameter 'a' is unexpected"),

    case("blockdev-add", None, "Parameter 'driver' is missing"),
    case("blockdev-add", blockdev(driver="nope", node_name="n"), "Parameter 'driver' does not accept value 'nope'"),
    case("blockdev-add", blockdev(driver="file", node_name="n"), "Parameter 'filename' is missing"),
    case("blockdev-add", blockdev(driver="file", node_name="n", filename=5),
         "Invalid parameter type for 'filename', expected: string"),
    case("blockdev-add", blockdev(driver="file", node_name="n", filename="/nope/x"),
         "Could not open '/nope/x': No such file or directory"),
    case("blockdev-add", blockdev(**RAW), "'node-name' must be specified for the root node"),
    case("blockdev-add", blockdev(**RAW, node_name=""), "Invalid node-name: ''"),
    case("blockdev-add", blockdev(**RAW, node_name="#x"), "Invalid node-name: '#x'"),
    case("blockdev-add", blockdev(**RAW, node_name="1x"), "Invalid node-name: '1x'"),
    case("blockdev-add", blockdev(**RAW, node_name="x" * 33), "Node name too long"),
    case("blockdev-add", blockdev(**RAW, node_name="n", bogus=1), "Parameter 'bogus' is unexpected"),
    case("blockdev-add", blockdev(driver="raw", node_name="n", file={**RAW, "bogus": 1}),
         "Parameter 'file.bogus' is unexpected"),
    case("blockdev-add", blockdev(**RAW, node_name="f"), "Duplicate nodes with node-name='f'"),
    case("blockdev-add", blockdev(driver="raw", node_name="n", file="nope"),
         "Cannot find device='nope' nor node-name='nope'"),
    case("blockdev-add", blockdev(driver="raw", node_name="n"), "Parameter 'file' is missing"),
    case("blockdev-add", blockdev(driver="raw", node_name="n", file="f", offset="x"),
         "Invalid parameter type for 'offset', expected: integer"),
    case("blockdev-add", blockdev(driver="raw", node_name="n", file="f", offset=2097152),
         "Offset (2097152) cannot be greater than size of the containing file (1048576)"),
    case("blockdev-add", blockdev(driver="qcow2", node_name="n", file="f"), "Image is not in qcow2 format"),
    case("blockdev-add", blockdev(driver="qcow2", node_name="n", file=QCOW2), 'Failed to get "write" lock'),
    case("blockdev-add", blockdev(**RAW, node_name="n", discard="maybe"),
         "Parameter 'discard' does not accept value 'maybe'"),
    case("blockdev-add", {**RAW, "node-name": "n", "read-only": "yes"},
         "Invalid parameter type for 'read-only', expected: boolean"),

    case("blockdev-del", None, "Parameter 'node-name' is missing"),
    case("blockdev-del", {"node-name": 5}, "Invalid parameter type for 'node-name', expected: string"),
    case("blockdev-del", {"node-name": "nope"}, "Failed to find node with node-name='nope'"),
    case("blockdev-del", {"node-name": "f"}, "Block device f is in use"),

    case("nbd-server-start", None, "Parameter 'addr' is missing"),
    case("nbd-server-start", {"addr": {"type": "unix"}}, "Parameter 'addr.data' is missing"),
    case("nbd-server-start", {"addr": {"type": "bogus", "data": {}}}, "Parameter 'type' does not accept value 'bogus'"),

    case("block-export-add", None, "Parameter 'type' is missing"),
    case("block-export-add", {"type": "nope", "id": "e", "node-name": "q"},
         "Parameter 'type' does not accept value 'nope'"),
    case("block-export-add", {"type": "nbd", "id": "e"}, "Parameter 'node-name' is missing"),
    case("block-export-add", {"type": "nbd", "id": "e", "node-name": "nope"},
         "Cannot find device='' nor node-name='nope'"),
    case("block-export-add", {"type": "nbd", "id": "#e", "node-name": "q"}, "Invalid block export id"),
    case("block-export-add", {"type": "nbd", "id": "e", "node-name": "q", "bogus": 1},
         "Parameter 'bogus' is unexpected"),
    case("block-export-add", {"type": "nbd", "id": "e", "node-name": "q", "bitmaps": ["nope"]},
         "Bitmap 'nope' is not found"),
    case("block-export-del", None, "Parameter 'id' is missing"),
    case("block-export-del", {"id": "nope"}, "Export 'nope' is not found"),
    case("block-export-del", {"id": "nope", "mode": "bogus"}, "Parameter 'mode' does not accept value 'bogus'"),

    case("block-dirty-bitmap-add", None, "Parameter 'node' is missing"),
    case("block-dirty-bitmap-add", {"node": "q"}, "Parameter 'name' is missing"),
    case("block-dirty-bitmap-add", {"node": "q", "name": "b", "persistent": 1},
         "Invalid parameter type for 'persistent', expected: boolean"),
    case("block-dirty-bitmap-remove", {"name": "b"}, "Parameter 'node' is missing"),
    case("block-dirty-bitmap-merge", {"node": "q", "target": "b"}, "Parameter 'bitmaps' is missing"),
    case("block-dirty-bitmap-merge", {"node": "q", "target": "nope", "bitmaps": ["b"]},
         "Dirty bitmap 'nope' not found"),

    case("transaction", None, "Parameter 'actions' is missing"),
    case("transaction", {"actions": 5}, "Invalid parameter type for 'actions', expected: array"),
    case("transaction", {"actions": [], "properties": {"completion-mode": "bogus"}},
         "Parameter 'completion-mode' does not accept value 'bogus'"),
]


def filled(value, d):
    if isinstance(value, dict):
        return {k: filled(v, d) for k, v in value.items()}
    return {"IMAGE": d.image, "RAWFILE": d.rawfile}.get(value, value) if isinstance(value, str) else value


@pytest.mark.parametrize("command, arguments, kind, text", CASES)
def test_error(setup, command, arguments, kind, text):
    def graph():
        return without_sizes([setup.qmp.cmd("query-named-block-nodes"), setup.qmp.cmd("query-block-exports")])
    before = graph()
    assert setup.qmp.error(command, filled(arguments, setup)) == (kind, text)
    assert graph() == before


@pytest.mark.parametrize("member, start", [("name", "export name '"), ("description", "description '")])
def test_export_texts_too_long(setup, member, start):
    """4096 bytes are the protocol's limit; the text may quote the name cut short."""
    kind, text = setup.qmp.error("block-export-add", {"type": "nbd", "id": "e", "node-name": "q", member: "n" * 4097})
    assert kind == "GenericError" and text.startswith(start + "nnn") and text.endswith("' too long")


def test_export_without_a_server(daemon, tmp):
    image = tools.create(tmp / "a", "1M", "raw")
    d = daemon.start("--blockdev", f"driver=file,node-name=n,filename={image}", listen=None)
    assert d.qmp.error("block-export-add", {"type": "nbd", "id": "e", "node-name": "n"}) == (
        "GenericError", "NBD server not running")


def test_server_stop_without_a_server(daemon):
    d = daemon.start(listen=None)
    assert d.qmp.error("nbd-server-stop") == ("GenericError", "NBD server not running")


def test_server_already_running(setup):
    """Ours may have many listeners, but no two on one address."""
    assert setup.qmp.error("nbd-server-start", {"addr": {"type": "unix", "data": {"path": setup.nbd_address}}}) == (
        "GenericError", "NBD server already running")


def test_server_cannot_bind(daemon):
    d = daemon.start(listen=None)
    assert d.qmp.error("nbd-server-start", {"addr": {"type": "unix", "data": {"path": "/nope/s"}}}) == (
        "GenericError", "Failed to bind socket to /nope/s: No such file or directory")


def test_socket_path_too_long(daemon):
    d = daemon.start(listen=None)
    path = f"/tmp/{LONG}"
    assert d.qmp.error("nbd-server-start", {"addr": {"type": "unix", "data": {"path": path}}}) == (
        "GenericError", f"UNIX socket path '{path}' is too long")


def export(d, **more):
    d.qmp.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "q", "name": "n", **more})


def test_export_id_twice(setup):
    export(setup)
    assert setup.qmp.error("block-export-add", {"type": "nbd", "id": "e", "node-name": "q", "name": "other"}) == (
        "GenericError", "Block export id 'e' is already in use")


def test_export_name_twice(setup):
    export(setup)
    assert setup.qmp.error("block-export-add", {"type": "nbd", "id": "e2", "node-name": "q", "name": "n"}) == (
        "GenericError", "NBD server already has export named 'n'")


def test_node_with_an_export_is_in_use(setup):
    export(setup)
    assert setup.qmp.error("blockdev-del", {"node-name": "q"}) == ("GenericError", "Node q is in use")


def test_export_with_a_client_is_in_use(setup):
    """mode safe is the default; hard ends the client."""
    export(setup)
    c = setup.enter("n")
    assert setup.qmp.error("block-export-del", {"id": "e"}) == ("GenericError", "export 'e' still in use")
    assert setup.qmp.error("block-export-del", {"id": "e", "mode": "safe"}) == (
        "GenericError", "export 'e' still in use")
    setup.qmp.cmd("block-export-del", {"id": "e", "mode": "hard"})
    assert setup.qmp.event("BLOCK_EXPORT_DELETED")["data"] == {"id": "e"}
    assert c.closed_by_server()


def test_read_only_node_exported_writable(setup):
    setup.qmp.cmd("blockdev-add", {"driver": "file", "node-name": "ro", "read-only": True, "filename": setup.rawfile})
    assert setup.qmp.error("block-export-add", {"type": "nbd", "id": "e", "node-name": "ro", "writable": True}) == (
        "GenericError", "Cannot export read-only node as writable")


def test_image_locked_by_another_process(daemon, tmp, setup):
    other = daemon.start()
    assert other.qmp.error("blockdev-add", {"driver": "qcow2", "node-name": "n",
                                            "file": {"driver": "file", "filename": setup.image}}) == (
        "GenericError", 'Failed to get "write" lock')


def test_lock_keeps_qemu_out(setup):
    done = tools.run("qemu-io", "-f", "qcow2", "-c", "write 0 512", setup.image, check=False)
    assert done.returncode == 1 and 'Failed to get "write" lock' in done.stderr


def test_lock_of_qemu_keeps_us_out(daemon, tmp):
    """qemu-nbd has the image; we say so and name no other reason."""
    image = tools.create(tmp / "a.qcow2", "4M")
    d = daemon.start()
    other = subprocess.Popen([tools.need("qemu-nbd"), "-t", "-f", "qcow2", "-k", str(tmp / "s"), image],
                             preexec_fn=die_with_parent)
    try:
        listening(tmp / "s", other)
        assert d.qmp.error("blockdev-add", {"driver": "qcow2", "node-name": "n",
                                            "file": {"driver": "file", "filename": image}}) == (
            "GenericError", 'Failed to get "write" lock')
    finally:
        other.terminate()
        other.wait(HANG)
