# SPDX-License-Identifier: BSD-3-Clause
"""transaction over the bitmap verbs: all of it happens at one instant, or none of it."""

import threading

import pytest

from lib import tools
from lib.dirty import add, ranges, states, verb

M = 1 << 20


def action(what, **data):
    return {"type": what if what == "abort" else f"block-dirty-bitmap-{what}", "data": data}


def transaction(d, *actions):
    return d.qmp.cmd("transaction", {"actions": list(actions)})


def refused(d, *actions, **more):
    kind, text = d.qmp.error("transaction", {"actions": list(actions), **more})
    assert kind == "GenericError"
    return text


def test_empty(disk):
    assert transaction(disk) == {}


def test_next_epoch(disk):
    """What every incremental backup does: a new bitmap begins as the old one ends, and a third collects both."""
    add(disk, "old")
    c = disk.enter()
    c.write(0, b"x")
    transaction(disk, action("disable", node="disk", name="old"), action("add", node="disk", name="new"),
                action("add", node="disk", name="sum", disabled=True),
                action("merge", node="disk", target="sum", bitmaps=["old"]))
    c.write(M, b"x")
    assert (ranges(disk, "old"), ranges(disk, "new"), ranges(disk, "sum")) == (
        [(0, 65536)], [(M, 65536)], [(0, 65536)])


def test_members_see_those_before_them(disk):
    transaction(disk, action("add", node="disk", name="a"), action("disable", node="disk", name="a"),
                action("clear", node="disk", name="a"))
    assert not states(disk)["a"]["recording"]


def test_over_two_nodes(two):
    transaction(two, action("add", node="disk", name="b"), action("add", node="other", name="b"))
    assert "b" in states(two) and "b" in states(two, "other")


def test_no_write_falls_between_two_bitmaps(disk):
    """While a client writes, epochs are switched; every write must be in one of them."""
    add(disk, "e0")
    c, stop, written = disk.enter(), threading.Event(), []

    def writer():
        k = 0
        while not stop.is_set() and k < 64:
            c.write(k * 65536, b"x" * 512)
            written.append(k)
            k += 1
    t = threading.Thread(target=writer)
    t.start()
    for i in range(10):
        transaction(disk, action("disable", node="disk", name=f"e{i}"), action("add", node="disk", name=f"e{i + 1}"))
    stop.set()
    t.join()
    add(disk, "all", disabled=True)
    disk.qmp.cmd("block-dirty-bitmap-merge", {"node": "disk", "target": "all", "bitmaps": [f"e{i}" for i in range(11)]})
    assert ranges(disk, "all") == ([(0, 65536 * len(written))] if written else [])


def prepared(d):
    """A bitmap with something in it, recording; and a second one, disabled."""
    add(d, "a")
    d.enter().write(0, b"x")
    add(d, "off", disabled=True)


LAST = {
    "abort": (action("abort"), "Transaction aborted using Abort action"),
    "missing bitmap": (action("clear", node="disk", name="zz"), "Dirty bitmap 'zz' not found"),
    "missing node": (action("clear", node="zz", name="a"), "Node 'zz' not found"),
    "name taken": (action("add", node="disk", name="a"), "Bitmap already exists: a"),
}
FIRST = {
    "add": action("add", node="disk", name="new"),
    "clear": action("clear", node="disk", name="a"),
    "disable": action("disable", node="disk", name="a"),
    "enable": action("enable", node="disk", name="off"),
    "merge": action("merge", node="disk", target="off", bitmaps=["a"]),
    "remove": action("remove", node="disk", name="off"),
}


@pytest.mark.parametrize("last", list(LAST))
@pytest.mark.parametrize("first", list(FIRST))
def test_a_failing_member_undoes_all(disk, first, last):
    prepared(disk)
    before = states(disk), ranges(disk, "a"), ranges(disk, "off")
    failing, text = LAST[last]
    assert refused(disk, FIRST[first], failing) == text
    assert (states(disk), ranges(disk, "a"), ranges(disk, "off")) == before


def test_a_failing_member_in_the_middle(disk):
    prepared(disk)
    before = states(disk)
    refused(disk, FIRST["clear"], FIRST["add"], LAST["missing bitmap"][0], FIRST["disable"])
    assert states(disk) == before


def test_undone_bitmaps_go_on_recording(disk):
    prepared(disk)
    refused(disk, FIRST["disable"], FIRST["clear"], action("abort"))
    disk.enter().write(M, b"x")
    assert ranges(disk, "a") == [(0, 65536), (M, 65536)]


def test_removed_and_brought_back(disk):
    """remove in a failed transaction: the bitmap is there as before, under its name."""
    prepared(disk)
    refused(disk, action("remove", node="disk", name="a"), action("abort"))
    assert ranges(disk, "a") == [(0, 65536)]
    verb(disk, "remove", "a")


def test_remove_in_a_transaction(disk):
    prepared(disk)
    transaction(disk, action("remove", node="disk", name="a"))
    assert list(states(disk)) == ["off"]


def test_persistent_add_that_is_undone_leaves_nothing(daemon, image):
    d = daemon.serve(image)
    refused(d, action("add", node="disk", name="p", persistent=True), action("abort"))
    d.stop()
    assert tools.bitmaps(image) == {}
    tools.check(image)


def test_unknown_action(disk):
    text = refused(disk, {"type": "bogus", "data": {}})
    assert text == "Parameter 'type' does not accept value 'bogus'"


def test_missing_data(disk):
    assert refused(disk, {"type": "block-dirty-bitmap-add"}) == "Parameter 'actions[0].data' is missing"


def test_missing_member(disk):
    text = refused(disk, action("add", node="disk", name="x"), action("add", node="disk"))
    assert text == "Parameter 'actions[1].data.name' is missing"
    assert states(disk) == {}


def test_grouped_completion_is_refused_for_bitmaps(disk):
    text = refused(disk, FIRST["add"], properties={"completion-mode": "grouped"})
    assert text == ("Action 'block-dirty-bitmap-add' does not support Transaction property "
                    "completion-mode = grouped")
    assert states(disk) == {}


def test_individual_completion_is_the_default(disk):
    disk.qmp.cmd("transaction", {"actions": [FIRST["add"]], "properties": {"completion-mode": "individual"}})
    assert "new" in states(disk)
