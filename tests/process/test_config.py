# SPDX-License-Identifier: BSD-3-Clause
"""--config: a file that says what options say, and what is said about a wrong one."""

import json

import pytest

from lib import tools
from lib.daemon import DidNotStart

pytestmark = pytest.mark.merino_only


def whole(tmp):
    """Every kind of member, deliberately in an order in which it could not be run."""
    image = tools.create(tmp / "a.qcow2", "1M")
    return {
        "monitors": [{"chardev": "m"}],
        "chardevs": [{"backend": "socket", "id": "m", "path": str(tmp / "qmp"), "server": True, "wait": False}],
        "exports": [{"type": "nbd", "id": "e", "node-name": "d", "name": "disk", "writable": True}],
        "nbd-servers": [{"addr": {"type": "unix", "path": str(tmp / "nbd")}, "max-connections": 7}],
        "blockdevs": [{"driver": "file", "node-name": "f", "filename": image},
                      {"driver": "qcow2", "node-name": "d", "file": "f"}],
        "loops": 2,
        "daemonize": False,
    }


def start(daemon, tmp, content, *args):
    """CONTENT: text, or what is to be JSON."""
    path = tmp / "config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
    d = daemon.start("--config", path, *args, listen=None, monitor=False)
    d.nbd_address, d.qmp_path = str(tmp / "nbd"), str(tmp / "qmp")
    return d


def refused(daemon, tmp, content, *args):
    with pytest.raises(DidNotStart) as failed:
        start(daemon, tmp, content, *args)
    assert failed.value.status == 1
    return failed.value.stderr


def test_serves_what_the_file_says(daemon, tmp):
    d = start(daemon, tmp, whole(tmp))
    assert [e["id"] for e in d.qmp.cmd("query-block-exports")] == ["e"]
    h = d.libnbd()
    h.pwrite(b"x" * 512, 4096)
    assert h.pread(512, 4096) == b"x" * 512


def test_options_around_the_file(daemon, tmp):
    """What stands before and behind it sees what the file made."""
    config = whole(tmp)
    image = config["blockdevs"][0]["filename"]
    config["blockdevs"] = config["blockdevs"][1:]
    path = tmp / "config.json"
    path.write_text(json.dumps(config))
    d = daemon.start("--blockdev", f"file,node-name=f,filename={image}", "--config", path,
                     "--export", "nbd,id=e2,node-name=d,name=second", listen=None, monitor=False)
    d.nbd_address = str(tmp / "nbd")
    assert d.libnbd("second").get_size() == 1 << 20


@pytest.mark.parametrize("text, line, what", [
    ('{\n "loops": 1,\n "loops": 2\n}', 3, "duplicate key"),
    ('{\n "loops": 1,\n}', 3, "JSON parse error"),
    ("{\n // a comment\n}", 2, "JSON parse error"),
    ("{\n 'loops': 1\n}", 2, "JSON parse error"),
    ('{\n "loops": 1\n}\n{}', 4, "at most one"),
    ("", 1, "JSON parse error"),
])
def test_syntax_error_names_the_line(daemon, tmp, text, line, what):
    said = refused(daemon, tmp, text)
    assert f"config.json: line {line}: " in said and what in said


@pytest.mark.parametrize("change, what", [
    ({"nonsense": 1}, "Parameter 'nonsense' is unexpected"),
    ({"loops": []}, "Invalid parameter type for 'loops'"),
    ({"loops": 0}, "--loops: must be a number from 1 to 64"),
    ({"daemonize": "on"}, "Invalid parameter type for 'daemonize', expected: boolean"),
    ({"blockdevs": {}}, "Invalid parameter type for 'blockdevs', expected: array"),
    ({"blockdevs": [7]}, "Invalid parameter type for 'blockdevs[0]', expected: object"),
    ({"exports": [{"type": "nbd", "id": "e", "node-name": "d", "writeable": True}]},
     "config.json: exports[0]: Parameter 'writeable' is unexpected"),
    ({"blockdevs": [{"driver": "file", "node-name": "x", "filename": "/nonexistent"}]},
     "config.json: blockdevs[0]: Could not open '/nonexistent'"),
])
def test_wrong_member_is_named(daemon, tmp, change, what):
    assert what in refused(daemon, tmp, whole(tmp) | change)


def test_not_an_object_or_not_there(daemon, tmp):
    assert "must hold one JSON object" in refused(daemon, tmp, "[]")
    with pytest.raises(DidNotStart, match="--config /nonexistent: No such file or directory"):
        daemon.start("--config", "/nonexistent", listen=None, monitor=False)


def test_once(daemon, tmp):
    assert "may be given once" in refused(daemon, tmp, {}, "--config", tmp / "config.json")
