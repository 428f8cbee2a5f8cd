# SPDX-License-Identifier: BSD-3-Clause
"""nbdinfo: what people look at first."""

import json

import pytest

from lib import layered, pattern, tools
from lib.daemon import disk_args

BITMAP = "qemu:dirty-bitmap:b0"


def nbdinfo(*args):
    return tools.run("nbdinfo", *args).stdout


def mapped(uri, context):
    return [(e["offset"], e["length"], e["type"], e["description"])
            for e in json.loads(nbdinfo(f"--map={context}", "--json", uri))]


def test_json(disk):
    told = json.loads(nbdinfo("--json", disk.uri()))
    assert (told["protocol"], told["structured"], told["TLS"]) == ("newstyle-fixed", True, False)
    export, = told["exports"]
    want = dict.fromkeys(["can_cache", "can_df", "can_fast_zero", "can_flush", "can_fua", "can_multi_conn", "can_trim",
                          "can_zero"], True)
    want |= {"export-size": layered.SIZE, "is_read_only": False, "is_rotational": False, "block_size_minimum": 1,
             "block_size_maximum": 32 << 20}
    assert {k: export.get(k) for k in want} == want
    assert sorted(export["contexts"]) == ["base:allocation", "merino:changes:b0", "qemu:allocation-depth", BITMAP]


def test_text_goes_to_the_end(disk):
    out = nbdinfo(disk.uri())
    assert "protocol: newstyle-fixed without TLS, using structured packets" in out
    assert "export-size: 4194304 (4M)" in out


def test_size(disk):
    assert nbdinfo("--size", disk.uri()) == "4194304\n"


def test_list(daemon, tmp):
    a, b = layered.make(tmp), layered.make_empty(tmp)
    d = daemon.start(*disk_args(a, name="a"), *disk_args(b, name="b", writable=False))
    told = json.loads(nbdinfo("--list", "--json", d.uri("")))
    assert {e["export-name"]: e["is_read_only"] for e in told["exports"]} == {"a": False, "b": True}


@pytest.mark.parametrize("question, status", [
    (["--can", "write"], 0), (["--can", "fua"], 0), (["--can", "multi-conn"], 0), (["--can", "structured-reply"], 0),
    (["--is", "read-only"], 2), (["--is", "tls"], 2)])
def test_questions(disk, question, status):
    assert tools.run("nbdinfo", *question, disk.uri(), check=False).returncode == status


def test_map_of_base_allocation(disk):
    names = {0: "data", 3: "hole,zero"}
    assert mapped(disk.uri(), "base:allocation") == [(*e, names[e[2]]) for e in layered.ALLOCATION]


def test_map_of_allocation_depth(disk):
    names = {0: "absent", 1: "local", 2: "backing depth 2"}
    assert mapped(disk.uri(), "qemu:allocation-depth") == [(*e, names[e[2]]) for e in layered.DEPTH]


def test_map_of_a_clean_bitmap(disk):
    assert mapped(disk.uri(), BITMAP) == [(0, layered.SIZE, 0, "clean")]


def test_map_of_a_dirty_bitmap(disk):
    disk.enter().write((2 << 20) + 5, pattern.block("x", 65536))
    assert mapped(disk.uri(), BITMAP) == [(0, 2 << 20, 0, "clean"), (2 << 20, 128 << 10, 1, "dirty"),
                                          ((2 << 20) + (128 << 10), (2 << 20) - (128 << 10), 0, "clean")]


def test_map_totals(disk):
    rows = [line.split() for line in nbdinfo("--map", "--totals", disk.uri()).splitlines()]
    assert [(r[0], r[-1]) for r in rows] == [("1572864", "data"), ("2621440", "hole,zero")]


def test_unknown_export_is_named(disk):
    done = tools.run("nbdinfo", disk.uri("nope"), check=False)
    assert done.returncode == 1 and "nope" in done.stderr
