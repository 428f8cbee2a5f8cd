# SPDX-License-Identifier: BSD-3-Clause
"""blockdev-create and the jobs that it makes: states, events and texts as QEMU's, images judged by qemu-img."""

import os
import stat

import pytest

from lib import tools
from lib.jobs import GOOD, create, failure, states
from lib.schema import Schema

MIB = 1 << 20


@pytest.mark.parametrize("size", [0, 512, 5000, MIB, 1 << 40])
def test_file(bare, tmp, size):
    info = create(bare, driver="file", filename=str(tmp / "a"), size=size)
    assert info == {"id": "j", "type": "create", "status": "concluded", "current-progress": 1, "total-progress": 1}
    assert os.stat(tmp / "a").st_size == size and os.stat(tmp / "a").st_blocks <= 8
    assert stat.S_IMODE(os.stat(tmp / "a").st_mode) & 0o111 == 0


@pytest.mark.parametrize("mode", ["falloc", "full"])
def test_file_preallocated(bare, tmp, mode):
    create(bare, driver="file", filename=str(tmp / "a"), size=3 * MIB + 512, preallocation=mode)
    assert os.stat(tmp / "a").st_size == 3 * MIB + 512 <= os.stat(tmp / "a").st_blocks * 512 + 4096
    assert not any((tmp / "a").read_bytes())


def test_file_that_exists_is_emptied(bare, tmp):
    (tmp / "a").write_bytes(b"old" * 1000)
    create(bare, driver="file", filename=str(tmp / "a"), size=MIB, nocow=True)
    assert (tmp / "a").read_bytes() == bytes(MIB)


def test_file_in_use_is_left_alone(bare, tmp):
    path = tools.create(tmp / "a.qcow2", "1M")
    before = (tmp / "a.qcow2").read_bytes()
    bare.qmp.cmd("blockdev-add", {"driver": "file", "node-name": "f", "filename": path})
    bare.qmp.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "f", "writable": True})
    assert "lock" in failure(bare, driver="file", filename=path, size=MIB)
    assert (tmp / "a.qcow2").read_bytes() == before


def test_file_that_cannot_be_made(bare):
    assert failure(bare, driver="file", filename="/nope/a", size=MIB) == (
        "Could not create '/nope/a': No such file or directory")


def test_file_metadata_preallocation(bare, tmp):
    assert failure(bare, driver="file", filename=str(tmp / "a"), size=MIB, preallocation="metadata") == (
        "Unsupported preallocation mode: metadata")


@pytest.mark.parametrize("arguments, text", [
    (None, "Parameter 'job-id' is missing"),
    ({"job-id": "j"}, "Parameter 'options' is missing"),
    ({"job-id": "j", "options": {}}, "Parameter 'options.driver' is missing"),
    ({"job-id": "j", "options": {"driver": "nope"}}, "Parameter 'driver' does not accept value 'nope'"),
    ({"job-id": "j", "options": {"driver": "raw"}}, "Driver does not support blockdev-create"),
    ({"job-id": "j", "options": {"driver": "raw", "size": 4}}, "Parameter 'options.size' is unexpected"),
    ({"job-id": "j", "options": {"driver": "file", "size": MIB}}, "Parameter 'options.filename' is missing"),
    ({"job-id": "j", "options": {"driver": "file", "filename": "x", "size": "1M"}},
     "Parameter 'options.size' expects uint64"),
    ({"job-id": "j", "options": {"driver": "qcow2", "file": "f", "size": 512, "bogus": 1}},
     "Parameter 'options.bogus' is unexpected"),
    ({"job-id": "1j", "options": {"driver": "file", "filename": "/nope/x", "size": 512}}, "Invalid job ID '1j'"),
    ({"job-id": "", "options": {"driver": "file", "filename": "/nope/x", "size": 512}}, "Invalid job ID ''"),
])
def test_refused_at_once(bare, arguments, text):
    assert bare.qmp.error("blockdev-create", arguments)[1] == text
    assert bare.qmp.cmd("query-jobs") == []


@pytest.mark.parametrize("job", ["nope", "n" * 100000, ""])
@pytest.mark.parametrize("verb", ["pause", "resume", "cancel", "complete", "finalize", "dismiss"])
def test_no_such_job(bare, verb, job):
    assert bare.qmp.error(f"job-{verb}", {"id": job}) == ("GenericError", "Job not found")


def test_a_concluded_job_takes_no_verb_but_dismiss(bare, tmp):
    for job in ("j", "k"):
        bare.qmp.cmd("blockdev-create", {"job-id": job, "options": {
            "driver": "file", "filename": str(tmp / job), "size": 512}})
        assert states(bare, job, 5) == GOOD
    assert bare.qmp.error("job-resume", {"id": "j"})[1] == "Can't resume a job that was not paused"
    for verb in ("pause", "cancel", "complete", "finalize"):
        assert bare.qmp.error(f"job-{verb}", {"id": "j"}) == (
            "GenericError", f"Job 'j' in state 'concluded' cannot accept command verb '{verb}'")
    assert bare.qmp.error("blockdev-create", {"job-id": "j", "options": {
        "driver": "file", "filename": str(tmp / "x"), "size": 512}}) == ("GenericError", "Job ID 'j' already in use")
    assert [j["id"] for j in sorted(bare.qmp.cmd("query-jobs"), key=lambda j: j["id"])] == ["j", "k"]


@pytest.mark.merino_only
def test_a_job_is_paused_resumed_and_cancelled(bare, tmp):
    """A long one: 8 GiB of zeroes, 8 MiB/s; paused at once, it has not written them."""
    (tmp / "a").touch()
    bare.qmp.cmd("object-add", {"qom-type": "throttle-group", "id": "g", "limits": {"bps-total": 8 * MIB}})
    bare.qmp.cmd("blockdev-add", {"driver": "throttle", "node-name": "t", "throttle-group": "g", "file": {
        "driver": "file", "filename": str(tmp / "a")}})
    bare.qmp.cmd("blockdev-create", {"job-id": "j", "options": {
        "driver": "qcow2", "file": "t", "size": 8 << 30, "preallocation": "full"}})
    assert states(bare, "j", 2) == ["created", "running"]
    bare.qmp.cmd("job-pause", {"id": "j"})
    assert bare.qmp.error("job-pause", {"id": "j"})[1] == "Job is already paused"
    assert states(bare, "j", 1) == ["paused"]
    info, = bare.qmp.cmd("query-jobs")
    assert info["status"] == "paused" and "error" not in info
    for verb in ("complete", "finalize", "dismiss"):
        assert bare.qmp.error(f"job-{verb}", {"id": "j"})[1] == (
            f"Job 'j' in state 'paused' cannot accept command verb '{verb}'")
    bare.qmp.cmd("job-resume", {"id": "j"})
    assert states(bare, "j", 1) == ["running"]
    assert bare.qmp.error("job-resume", {"id": "j"})[1] == "Can't resume a job that was not paused"
    bare.qmp.cmd("job-pause", {"id": "j"})
    assert states(bare, "j", 1) == ["paused"]
    bare.qmp.cmd("job-cancel", {"id": "j"})
    assert states(bare, "j", 3) == ["running", "aborting", "concluded"]
    info, = bare.qmp.cmd("query-jobs")
    assert (info["current-progress"], info["total-progress"]) == (0, 1) and "ancel" in info["error"]
    bare.qmp.cmd("job-dismiss", {"id": "j"})


@pytest.mark.merino_only
def test_the_daemon_ends_with_a_job(bare, tmp):
    bare.qmp.cmd("blockdev-create", {"job-id": "j", "options": {
        "driver": "file", "filename": str(tmp / "a"), "size": 64 << 30, "preallocation": "full"}})
    assert states(bare, "j", 2) == ["created", "running"]
    bare.stop()
    assert not (tmp / "a").exists() or os.stat(tmp / "a").st_blocks < 64 << 21


def test_results_are_as_the_schema_says(bare, tmp):
    schema = Schema(bare.qmp.cmd("query-qmp-schema"))
    arguments = {"job-id": "j", "options": {"driver": "file", "filename": str(tmp / "a"), "size": 512}}
    assert schema.faults(arguments, schema.commands["blockdev-create"]["arg-type"]) == []
    bare.qmp.cmd("blockdev-create", arguments)
    assert states(bare, "j", 5) == GOOD
    assert schema.faults(bare.qmp.cmd("query-jobs"), schema.commands["query-jobs"]["ret-type"]) == []


@pytest.mark.merino_only
def test_nodes_that_a_job_works_with_are_not_changed(bare, tmp):
    """Its requests are inside of drivers that a reopening would free."""
    q = bare.qmp
    (tmp / "f").touch()
    for group, rate in (("slow", MIB), ("fast", 1 << 40)):
        q.cmd("object-add", {"qom-type": "throttle-group", "id": group, "limits": {"bps-total": rate}})
    q.cmd("blockdev-add", {"driver": "file", "node-name": "f", "filename": str(tmp / "f")})
    other = {"driver": "throttle", "node-name": "t", "file": "f", "throttle-group": "fast"}
    q.cmd("blockdev-add", {**other, "throttle-group": "slow"})
    q.cmd("blockdev-create", {"job-id": "j", "options": {
        "driver": "qcow2", "file": "t", "size": 64 * MIB, "preallocation": "full"}})
    assert states(bare, "j", 2) == ["created", "running"]
    assert q.error("blockdev-reopen", {"options": [other]})[1] == "Node 't' is busy: job 'j' works with it"
    assert q.error("blockdev-reopen", {"options": [{"driver": "file", "node-name": "f", "filename": str(tmp / "f")}]})[1] == (
        "Node 'f' is busy: job 'j' works with it")
    assert "job 'j'" in q.error("block_resize", {"node-name": "t", "size": MIB})[1]
    assert "in use" in q.error("blockdev-del", {"node-name": "t"})[1]
    q.cmd("job-cancel", {"id": "j"})
    assert states(bare, "j", 2) == ["aborting", "concluded"]
    q.cmd("blockdev-reopen", {"options": [other]})
    q.cmd("object-del", {"id": "slow"})


@pytest.mark.parametrize("size", [-1, -512, -(1 << 63), (1 << 64) - 512])
@pytest.mark.parametrize("driver", ["file", "qcow2"])
def test_sizes_that_no_file_has(bare, tmp, driver, size):
    """A negative one is what QEMU makes of it, and never zero."""
    (tmp / "a").write_bytes(bytes(512))
    if driver == "qcow2":
        bare.qmp.cmd("blockdev-add", {"driver": "file", "node-name": "f", "filename": str(tmp / "a")})
    where = {"filename": str(tmp / "a")} if driver == "file" else {"file": "f"}
    assert failure(bare, driver=driver, size=size, **where)
