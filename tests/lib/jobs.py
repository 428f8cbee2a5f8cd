# SPDX-License-Identifier: BSD-3-Clause
"""Jobs over QMP: their states as they are told, and blockdev-create from beginning to end."""

GOOD = ["created", "running", "waiting", "pending", "concluded"]
BAD = ["created", "running", "aborting", "concluded"]


def states(d, job, count):
    """The next COUNT states that are told, fewer where one is the last."""
    got = []
    while len(got) < count and got[-1:] not in (["concluded"], ["null"]):
        data = d.qmp.event("JOB_STATUS_CHANGE")["data"]
        assert data["id"] == job
        got.append(data["status"])
    return got


def create(d, job="j", good=True, **options):
    """Runs a blockdev-create to its end; what query-jobs says then."""
    d.qmp.cmd("blockdev-create", {"job-id": job, "options": {k.replace("_", "-"): v for k, v in options.items()}})
    want = GOOD if good else BAD
    assert states(d, job, len(want)) == want
    info, = d.qmp.cmd("query-jobs")
    assert (info["id"], info["type"], info["status"]) == (job, "create", "concluded")
    d.qmp.cmd("job-dismiss", {"id": job})
    assert states(d, job, 1) == ["null"] and d.qmp.cmd("query-jobs") == []
    return info


def failure(d, **options):
    return create(d, good=False, **options)["error"]
