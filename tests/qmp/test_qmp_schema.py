# SPDX-License-Identifier: BSD-3-Clause
"""query-qmp-schema: against itself, as libvirt looks into it, and against what commands take and return."""

import pytest

from lib import tools
from lib.schema import Schema


@pytest.fixture
def schema(bare):
    return Schema(bare.qmp.cmd("query-qmp-schema"))


def referred(e):
    """The types that an element names."""
    kind = e["meta-type"]
    if kind == "command":
        return [e["arg-type"], e["ret-type"]]
    if kind == "event":
        return [e["arg-type"]]
    if kind == "array":
        return [e["element-type"]]
    if kind == "object":
        return [m["type"] for m in e["members"] + e.get("variants", [])]
    return [m["type"] for m in e["members"]] if kind == "alternate" else []


def test_every_type_that_is_named_exists(schema):
    named = {t for e in schema.elements for t in referred(e)}
    assert named == set(schema.types) and len(named) > 50


def test_names_are_given_once(schema):
    names = [e["name"] for e in schema.elements]
    assert len(names) == len(set(names))


def test_it_is_as_its_own_schema_says(schema):
    assert schema.faults(schema.elements, schema.commands["query-qmp-schema"]["ret-type"]) == []


def test_commands_are_those_of_query_commands(bare, schema):
    assert set(schema.commands) == {c["name"] for c in bare.qmp.cmd("query-commands")}


def test_names_of_types_are_masked(schema):
    builtin = {"str", "int", "number", "bool", "null", "any"}
    assert all(n.strip("[]").isdigit() or n.strip("[]") in builtin for n in schema.types)


def test_enums_list_their_values_twice(schema):
    """QEMU's members replace values, and clients read either."""
    for e in schema.elements:
        if e["meta-type"] == "enum":
            assert [m["name"] for m in e["members"]] == e["values"] != []


def test_tags_are_members_and_cases_their_values(schema):
    for e in schema.elements:
        if "tag" in e:
            tag, = [m for m in e["members"] if m["name"] == e["tag"]]
            assert {v["case"] for v in e["variants"]} <= set(schema.types[tag["type"]]["values"])


PROBES = [
    "blockdev-add/arg-type/driver/^qcow2", "blockdev-add/arg-type/+qcow2/file", "blockdev-add/arg-type/+file/filename",
    "blockdev-add/arg-type/+file/aio/^io_uring", "blockdev-add/arg-type/+raw/offset",
    "blockdev-add/arg-type/detect-zeroes", "blockdev-add/arg-type/cache/direct",
    "blockdev-add/arg-type/+qcow2/backing/+file/filename",
    "nbd-server-start/arg-type/tls-creds", "nbd-server-start/arg-type/addr/+inet/data/host",
    "nbd-server-start/arg-type/addr/+unix/data/path", "nbd-server-start/arg-type/max-connections",
    "block-export-add/arg-type/+nbd/bitmaps", "block-export-add/arg-type/id",
    "transaction/arg-type/actions/+block-dirty-bitmap-merge/data/target", "transaction/arg-type/actions/+abort",
    "transaction/arg-type/properties/completion-mode/^grouped",
    "block-dirty-bitmap-merge/arg-type/bitmaps/node", "query-named-block-nodes/arg-type/flat",
    "query-named-block-nodes/ret-type/image/backing-image/filename",
    "query-named-block-nodes/ret-type/image/format-specific/+qcow2/data/bitmaps/flags",
    "query-block/ret-type/inserted/dirty-bitmaps/recording", "query-block/ret-type/qdev",
    "query-block-exports/ret-type/shutting-down",
    "object-add/arg-type/qom-type/^secret", "object-add/arg-type/+tls-creds-x509/verify-peer",
    "object-add/arg-type/+throttle-group/limits/iops-total", "object-add/arg-type/+authz-list/rules/policy/^allow",
    "blockdev-reopen/arg-type/options/+qcow2/l2-cache-size", "block_resize/arg-type/node-name",
    "blockdev-create/arg-type/job-id", "blockdev-create/arg-type/options/+qcow2/data-file-raw",
    "blockdev-create/arg-type/options/+file/preallocation/^falloc", "query-jobs/ret-type/current-progress",
    "job-dismiss/arg-type/id", "query-blockstats/arg-type/query-nodes", "qom-set/arg-type/value",
    "BLOCK_IO_ERROR/arg-type/nospace", "BLOCK_WRITE_THRESHOLD/arg-type/amount-exceeded",
    "JOB_STATUS_CHANGE/arg-type/status/^concluded",
]


@pytest.mark.parametrize("path", PROBES)
def test_probe(bare, schema, path):
    """As libvirt asks which QEMU it has; each path leads somewhere in QEMU's schema, too."""
    assert schema.find(path) is not None


@pytest.mark.parametrize("path", ["blockdev-add/arg-type/driver/^nope", "blockdev-add/arg-type/+raw/filename",
                                  "nbd-server-start/arg-type/nope", "nope/arg-type/x"])
def test_probe_of_what_is_not_there(bare, schema, path):
    assert schema.find(path) is None


@pytest.mark.merino_only
def test_no_argument_is_of_any_type(schema):
    """A driver's option is of any type until it has a row in nbd-server/blockdev-options.c (a class's: object-options.c): add one."""
    below, todo = set(), [schema.types[c["arg-type"]] for c in schema.commands.values()
                          if c["name"] != "qom-set"]
    while todo:
        e = todo.pop()
        if e["name"] not in below:
            below.add(e["name"])
            assert "any" not in referred(e) or [m["name"] for m in e["members"] if m["type"] == "any"] == ["props"], e
            todo += [schema.types[t] for t in referred(e)]


def test_blockdev_add_takes_what_the_schema_says(daemon, tmp):
    """Options as tests and clients give them are right by the schema."""
    d = daemon.start()
    schema = Schema(d.qmp.cmd("query-qmp-schema"))
    kind = schema.commands["blockdev-add"]["arg-type"]
    arguments = {"driver": "qcow2", "node-name": "q", "discard": "unmap", "cache": {"direct": False},
                 "file": {"driver": "file", "filename": tools.create(tmp / "a.qcow2", "1M"), "aio": "threads"},
                 "backing": None, "l2-cache-size": 1 << 20}
    assert schema.faults(arguments, kind) == []
    d.qmp.cmd("blockdev-add", arguments)
    assert schema.faults({**arguments, "bogus": 1}, kind) == [".bogus is unknown"]
    assert d.qmp.error("blockdev-add", {**arguments, "node-name": "n", "file": "q", "bogus": 1})[0] == "GenericError"
