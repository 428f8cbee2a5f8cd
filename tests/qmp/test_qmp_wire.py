# SPDX-License-Identifier: BSD-3-Clause
"""QMP byte by byte: what breaks naive clients and naive servers (CLIENTS.md, 2.0 and 4)."""

import json
import socket
import subprocess
import time

import pytest

from lib.daemon import program
from lib.patience import HANG, wait_until
from lib.qmp import QMP

VERSION = '{"execute": "query-version"}'


def is_version(reply):
    return reply.get("return", {}).get("qemu", {}).keys() == {"major", "minor", "micro"}


def parse_error(reply):
    error = reply.get("error", {})
    return error.get("class") == "GenericError" and error["desc"].startswith("JSON parse error")


def test_greeting(bare):
    line = bare.connect_qmp(negotiate=False).line()
    assert line.endswith(b"\r\n")
    qmp = json.loads(line)["QMP"]
    assert qmp["version"]["qemu"].keys() == {"major", "minor", "micro"}
    assert isinstance(qmp["version"]["package"], str) and isinstance(qmp["capabilities"], list)


def test_replies_end_in_crlf_and_take_one_line(bare):
    bare.qmp.send(VERSION + "\n")
    line = bare.qmp.line()
    assert line.endswith(b"\r\n") and line.count(b"\n") == 1 and line.count(b"\r") == 1


def test_errors_end_in_crlf(bare):
    bare.qmp.send('{"execute": "nope"}\n')
    assert bare.qmp.line().endswith(b"\r\n")


def test_commands_before_the_negotiation(bare):
    q = bare.connect_qmp(negotiate=False)
    q.message()
    reply = q.raw(VERSION)
    assert reply == {"error": {"class": "CommandNotFound",
                               "desc": "Expecting capabilities negotiation with 'qmp_capabilities'"}}
    assert q.raw('{"execute": "qmp_capabilities"}') == {"return": {}}
    assert is_version(q.raw(VERSION))


def test_negotiation_twice(bare):
    assert bare.qmp.error("qmp_capabilities") == (
        "CommandNotFound", "Capabilities negotiation is already complete, command ignored")


def test_unknown_capability_is_refused(bare):
    q = bare.connect_qmp(negotiate=False)
    q.message()
    reply = q.raw('{"execute": "qmp_capabilities", "arguments": {"enable": ["warp"]}}')
    assert reply["error"]["class"] == "GenericError"


@pytest.mark.parametrize("value", ['"a"', "1", "-5", "1.5", "true", "null", "[]", "{}", '[1, {"a": [null]}]',
                                   '""', "18446744073709551615", "-9223372036854775808", '"\\u00e9 \\" \\\\ \\n"',
                                   '"' + "x" * 10000 + '"'])
def test_id_of_any_type_is_echoed(bare, value):
    reply = bare.qmp.raw('{"execute": "query-version", "id": %s}' % value)
    assert is_version(reply) and reply["id"] == json.loads(value)
    assert type(reply["id"]) is type(json.loads(value))


def test_id_is_echoed_in_errors(bare):
    assert bare.qmp.raw('{"execute": "nope", "id": {"k": 7}}')["id"] == {"k": 7}


def test_no_id_no_echo(bare):
    assert "id" not in bare.qmp.raw(VERSION)


def test_without_a_newline(bare):
    """qemu.qmp sends none: a command ends where its object ends."""
    assert is_version(bare.qmp.raw(VERSION))


def test_back_to_back(bare):
    bare.qmp.send("".join('{"execute": "query-version", "id": %d}' % i for i in range(50)))
    assert [bare.qmp.reply()["id"] for _ in range(50)] == list(range(50))


def test_byte_by_byte(bare):
    for b in '{"execute": "query-version", "id": "\u00e9}{"}'.encode():
        bare.qmp.send(bytes([b]))
    assert bare.qmp.reply()["id"] == "\u00e9}{"


def test_white_space_of_every_kind(bare):
    assert is_version(bare.qmp.raw('\n\r\n\t  {\r\n\t"execute"\n:\t"query-version"\r} \n\n'))


def test_single_quotes(bare):
    """QEMU's own tests write them."""
    reply = bare.qmp.raw("{'execute': 'query-version', 'id': 'it\\'s \"x\"'}")
    assert is_version(reply) and reply["id"] == "it's \"x\""


def test_0xff_resets_the_parser(bare):
    """Half a command, then 0xFF: the half is forgotten (QEMU reports it), the next one works."""
    bare.qmp.send(b'{"execute": "quit", "x": [[[')
    bare.qmp.send(b"\xff" + b'{"execute": "query-version", "id": 1}')
    replies = [bare.qmp.reply()]
    while "id" not in replies[-1]:
        replies.append(bare.qmp.reply())
    assert is_version(replies[-1]) and all("error" in r for r in replies[:-1])


@pytest.mark.parametrize("text", ["nonsense", '{"execute": "quit" "x"}', "{]", '{"execute": }', '{"execute": "quit",}',
                                  '{"a": 01x}', "]", "}", '{"execute": "x" : 1}', '{5: 1}', "[1 2]"])
def test_a_parse_error_does_not_close(bare, text):
    """One error at least, and the next command after a line end works."""
    q = bare.qmp
    q.send(text + "\n")
    assert parse_error(q.reply())
    q.send(b"\xff" + b'\n{"execute": "query-version", "id": "after"}\n')
    while (reply := q.reply()).get("id") != "after":
        assert parse_error(reply)
    assert is_version(reply)


@pytest.mark.parametrize("text", ['{"execute": "query-version", "execute": "quit"}',
                                  '{"execute": "query-version", "id": 1, "id": 2}'])
def test_duplicate_keys_are_refused(bare, text):
    assert parse_error(bare.qmp.raw(text + "\n"))
    assert bare.alive() and is_version(bare.qmp.raw(VERSION))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "0x10", "+1"])
def test_numbers_that_are_not_json_are_refused(bare, number):
    bare.qmp.send('{"execute": "query-version", "id": %s}\n' % number)
    assert parse_error(bare.qmp.reply())


@pytest.mark.merino_only                                 # QEMU turns it into a floating point number
def test_integers_past_64_bits_are_refused(bare):
    assert "error" in bare.qmp.raw('{"execute": "query-version", "id": 18446744073709551616}\n')


@pytest.mark.parametrize("raw", [b'{"execute": "\xff\xfe"}', b'{"execute": "a\xc3"}', b'{"execute": "\xed\xa0\x80"}',
                                 b'{"execute": "\xc0\xaf"}'])
def test_bytes_that_are_no_utf8_are_refused(bare, raw):
    bare.qmp.send(raw + b'\n\xff\n{"execute": "query-version", "id": "after"}\n')
    replies = [bare.qmp.reply()]
    while replies[-1].get("id") != "after":
        replies.append(bare.qmp.reply())
    assert "error" in replies[0] and is_version(replies[-1])


def test_lone_surrogate_is_refused(bare):
    assert parse_error(bare.qmp.raw('{"execute": "x\\ud800"}\n'))


@pytest.mark.parametrize("text, desc", [
    ("[]", "QMP input must be a JSON object"), ("5", "QMP input must be a JSON object"),
    ('"x"', "QMP input must be a JSON object"), ("{}", "QMP input lacks member 'execute'"),
    ('{"execute": 5}', "QMP input member 'execute' must be a string"),
    ('{"exec": "x"}', "QMP input member 'exec' is unexpected"),
    ('{"execute": "query-version", "bogus": 1}', "QMP input member 'bogus' is unexpected"),
    ('{"execute": "query-version", "arguments": 5}', "QMP input member 'arguments' must be an object"),
    ('{"execute": "query-version", "arguments": []}', "QMP input member 'arguments' must be an object"),
    ('{"exec-oob": "query-version"}', "QMP input member 'exec-oob' is unexpected"),
])
def test_objects_that_are_no_commands(bare, text, desc):
    assert bare.qmp.raw(text + "\n") == {"error": {"class": "GenericError", "desc": desc}}


def test_deep_nesting_is_bounded(bare):
    """100,000 brackets cost an error, not the stack; QEMU stops at 1024."""
    q = bare.qmp
    q.send("[" * 100000 + "\n")
    assert "error" in q.reply()
    assert bare.alive()


@pytest.mark.merino_only                                 # QEMU stops at 64 MiB, after minutes
def test_endless_string_is_bounded(bare):
    """80 MiB without an end: refused or cut off, without growing for ever."""
    q = bare.connect_qmp()
    try:
        q.send(b'{"execute": "')
        for _ in range(80):
            q.send(b"x" * (1 << 20))
        q.send(b'"}\n\xff')
        assert "error" in q.reply()
    except (ConnectionError, AssertionError, TimeoutError):
        pass
    q.close()
    bare.close_clients()
    wait_until(lambda: bare.memory() < 160 << 20, why="it keeps what nobody will end")
    assert is_version(bare.connect_qmp().raw(VERSION))


def test_a_client_that_leaves_in_the_middle(bare):
    q = bare.connect_qmp()
    q.send('{"execute": "query-ver')
    q.close()
    bare.clients.remove(q)
    assert is_version(bare.qmp.raw(VERSION))


def test_a_client_that_leaves_before_its_replies(bare):
    q = bare.connect_qmp()
    q.send((VERSION * 1000))
    q.close()
    bare.clients.remove(q)
    assert is_version(bare.qmp.raw(VERSION))


def test_two_monitors(daemon, tmp):
    """Two sockets, one client each: what QEMU offers, too."""
    d = daemon.start("--chardev", f"socket,id=m2,path={tmp}/q2,server=on,wait=off", "--monitor", "chardev=m2")
    with QMP(f"{tmp}/q2") as other:
        assert is_version(other.raw(VERSION)) and is_version(d.qmp.raw(VERSION))


@pytest.mark.merino_only                                 # in QEMU the second one hangs
def test_several_clients_on_a_socket(bare):
    clients = [bare.connect_qmp() for _ in range(5)]
    for i, q in enumerate(clients):
        q.send('{"execute": "query-version", "id": %d}' % i)
    for i, q in reversed(list(enumerate(clients))):
        assert q.reply()["id"] == i


@pytest.mark.merino_only
def test_each_client_negotiates_for_itself(bare):
    bare.qmp.cmd("query-version")
    q = bare.connect_qmp(negotiate=False)
    q.message()
    assert q.raw(VERSION)["error"]["class"] == "CommandNotFound"


@pytest.mark.merino_only
def test_events_reach_every_client(setup, tmp):
    a, b = setup.qmp, setup.connect_qmp()
    a.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "q"})
    a.cmd("block-export-del", {"id": "e"})
    assert a.event("BLOCK_EXPORT_DELETED")["data"] == b.event("BLOCK_EXPORT_DELETED")["data"] == {"id": "e"}


@pytest.mark.merino_only
def test_a_client_that_does_not_read_does_not_block_others(bare):
    slow = bare.connect_qmp()
    slow.sock.settimeout(1)
    try:
        for _ in range(400):
            slow.send('{"execute": "query-commands"}' * 100)
    except (TimeoutError, ConnectionError):
        pass
    assert is_version(bare.qmp.raw(VERSION))


def test_pretty_monitor_is_still_json(daemon, tmp):
    daemon.start("--chardev", f"socket,id=m2,path={tmp}/q2,server=on,wait=off", "--monitor", "chardev=m2,pretty=on")
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(HANG)
    s.connect(f"{tmp}/q2")
    text = b""
    while text.count(b"{") == 0 or text.count(b"{") != text.count(b"}"):
        text += s.recv(65536)
    s.close()
    assert "QMP" in json.loads(text)


def test_event_has_a_timestamp(setup):
    setup.qmp.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "q"})
    setup.qmp.cmd("block-export-del", {"id": "e"})
    event = setup.qmp.event("BLOCK_EXPORT_DELETED")
    assert event["timestamp"].keys() == {"seconds", "microseconds"}
    assert abs(event["timestamp"]["seconds"] - time.time()) < 60


def test_monitor_on_stdio(tmp):
    """KubeVirt runs it so."""
    done = subprocess.run([program(), "--chardev", "stdio,id=c", "--monitor", "chardev=c"], capture_output=True,
                          input=b'{"execute": "qmp_capabilities"}{"execute": "quit", "id": 1}', timeout=HANG)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and "QMP" in lines[0] and {"return": {}, "id": 1} in lines
