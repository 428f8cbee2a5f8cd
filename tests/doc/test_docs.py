# SPDX-License-Identifier: BSD-3-Clause
"""The man pages against the code: options, drivers, commands, limits, in both directions."""

import json
import re
import subprocess

import pytest

from lib import ctables, tools
from lib.daemon import ROOT, program

pytestmark = pytest.mark.merino_only

OPTION = re.compile(r"(?<![\w-])--?[A-Za-z][\w-]*")


def in_help(text):
    lines = [line[:34] for line in text.splitlines() if re.match(r"  +--?[A-Za-z]", line)]
    return {o for line in lines for o in OPTION.findall(line)}


def in_page(page):
    return {o for item in page.part("OPTIONS").items() for o in OPTION.findall(item)}


def bold(text):
    return set(re.findall(r"B<([\w.-]+)=", text)) | set(re.findall(r"B<([\w.-]+)>", text))


def test_options_of_merinod(merinod_help, merinod_page):
    assert len(in_help(merinod_help)) > 15
    assert in_page(merinod_page) == in_help(merinod_help)


def test_members_of_a_configuration_file(merinod_page):
    table = re.findall(r'\.member = "([\w-]+)"', (ROOT / "nbd-server/cmdline.c").read_text())
    items = " ".join(merinod_page.part("CONFIGURATION FILE").items())
    assert len(table) > 15 and set(re.findall(r"B<([\w-]+)>", items)) == set(table)


def test_options_of_merino_pull(pull_help, merino_page):
    assert len(in_help(pull_help)) > 15
    assert in_page(merino_page) == in_help(pull_help)


def verbs_in(page):
    return set(re.findall(r"^merino (\w+)$", "\n".join(page.part("DESCRIPTION").headings(2)), re.M))


def test_verbs_of_merino(merino, merino_page, backup_page, run_page):
    text = tools.run(merino, "--help").stdout.split("verbs:")[1].split("\n\n")[0]
    assert set(re.findall(r"^  (\w+)", text, re.M)) == \
        verbs_in(merino_page) | verbs_in(backup_page) | verbs_in(run_page)
    assert verbs_in(backup_page) and verbs_in(run_page)


def options_of_verbs(merino, page):
    """A verb's section ends with its long options; all of them are explained in OPTIONS."""
    everything = set()
    for verb in verbs_in(page):
        options = in_help(tools.run(merino, verb, "--help").stdout)
        named = page.part(f"merino {verb}", 2).text.split("\nOptions:")[1].split("\n\n")[0]
        assert set(re.findall(r"B<(--[\w-]+)>", named)) | {"--help", "--version"} == \
            {o for o in options if o.startswith("--")}, verb
        everything |= options
    return everything


def test_options_of_the_backup_verbs(merino, backup_page):
    assert in_page(backup_page) == options_of_verbs(merino, backup_page)


def test_options_of_the_machine_verbs(merino, run_page):
    assert in_page(run_page) == options_of_verbs(merino, run_page)


def test_options_of_merino_vmm(merino, vmm_page):
    options = in_help(tools.run(merino + "-vmm", "--help").stdout)
    assert len(options) > 15 and in_page(vmm_page) == options


@pytest.mark.parametrize("page", ["merinod.8.pod", "merino.1.pod", "merino-backup.1.pod", "merino-run.1.pod",
                                  "merino-vmm.1.pod", "merinod-qmp.7.pod"])
def test_pod_is_clean(page, tmp, qmp_page):
    path = ROOT / "doc" / page
    if not path.exists():
        path = tmp / page
        path.write_text(qmp_page.text)
    done = subprocess.run([tools.need("podchecker"), "-warnings", path], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.strip() == f"{path} pod syntax OK."


def test_pages_refer_to_pages_that_exist(merinod_page, merino_page, backup_page, run_page, vmm_page, qmp_page):
    ours = {p.name.split(".pod")[0] for p in (ROOT / "doc").glob("*.pod*")}
    for page in merinod_page, merino_page, backup_page, run_page, vmm_page, qmp_page:
        for name, section in re.findall(r"L<(merino[\w-]*)\((\d)\)", page.text):
            assert f"{name}.{section}" in ours


# --- drivers and values of options


def test_drivers(merinod_page):
    named = re.findall(r"C<([\w-]+)>", merinod_page.part("DRIVERS").item("B<driver=NAME>"))
    sections = [n for h in merinod_page.part("DRIVERS").headings(2) if h != "all drivers" for n in h.split(", ")]
    assert set(named) == set(sections) == set(ctables.drivers())


@pytest.mark.parametrize("driver", ctables.drivers())
def test_options_of_a_driver(driver, merinod_page):
    heading = next(h for h in merinod_page.headings(2) if driver in h.split(", "))
    items = merinod_page.part(heading, 2).items()
    assert set().union(*(bold(i) for i in items)) == set(ctables.drivers()[driver])


@pytest.mark.parametrize("name", ctables.object_classes())
def test_options_of_an_object(name, merinod_page):
    items = merinod_page.part("OBJECTS").part(name, 2).items()
    assert set().union(*(bold(i) for i in items)) == set(ctables.object_classes()[name])


def test_objects(merinod_page):
    registered = ctables.source("nbd-server/main.c").count("object_class_register(&")
    assert set(merinod_page.part("OBJECTS").headings(2)) == set(ctables.object_classes())
    assert len(ctables.object_classes()) == registered > 0


def test_options_of_all_drivers(merinod_page):
    code = ctables.options_taken("format/graph.c") - {"cache"}
    code |= {f"cache.{o}" for o in ctables.options_taken("format/graph.c", "cache")}
    items = merinod_page.part("all drivers", 2).items()
    assert set().union(*(bold(i) for i in items)) == code and len(code) > 6


def test_options_of_qcow2_that_are_refused(merinod_page):
    refused = ctables.array_of_strings(ctables.source("format/qcow2.c"), "unsupported")
    text = merinod_page.part("qcow2", 2).text.split("refused by name:")[1].split(". So are")[0]
    assert bold(text) == set(refused)


@pytest.mark.parametrize("option, names", [
    ("--chardev", ctables.options_taken("nbd-server/chardev.c") - {"backend"}
     | set(ctables.array_of_strings(ctables.source("nbd-server/chardev.c"), "shared"))),
    ("--monitor", ctables.options_taken("nbd-server/monitor.c")),
    ("--nbd-server", {n for t in ("nbd_server_flat", "unix", "inet", "fd")
                      for n, *_ in ctables.qmp_tables()[f"args_{t}"]}),
    ("--export", {n for n, *_ in ctables.qmp_tables()["args_export_add"]}),
])
def test_members_of_an_option(option, names, merinod_page):
    options = merinod_page.part("OPTIONS")
    text = options.item(f"B<{option}>")
    missing = {n for n in names if not re.search(rf"(?<![\w-]){re.escape(n)}(?![\w-])", text)}
    assert len(names) > 3 and not missing


def test_environment(merinod_page):
    code = {name for folder in ("common", "format", "bitmaps", "backup", "nbd-server")
            for path in (ROOT / folder).glob("*.c") for name in re.findall(r'getenv\("(\w+)"\)', path.read_text())}
    assert set(merinod_page.part("ENVIRONMENT").items()) == code


@pytest.mark.parametrize("path, name, unit, phrase", [
    ("nbd-server/commands-export.c", "DEFAULT_CONNECTIONS", 1, "{} for each listener"),
    ("nbd-server/commands-export.c", "DEFAULT_HANDSHAKE", 1, "A handshake ends after {} s"),
    ("nbd-server/address-int.h", "ADDRESS_BACKLOG", 1, "{} more wait in the kernel"),
    ("nbd-server/negotiate-int.h", "HANDSHAKE_OPTIONS_MAX", 1, "after {} options"),
    ("nbd-server/negotiate-int.h", "HANDSHAKE_SENT_MAX", 1 << 20, "after {} MiB of replies"),
    ("common/nbd-proto.h", "NBD_OPTION_MAX", 1 << 10, "An option has at most {} KiB"),
    ("common/nbd-proto.h", "NBD_STRING_MAX", 1, "a name {} bytes"),
    ("common/nbd-proto.h", "NBD_REQUEST_MAX", 1 << 20, "A read or write has at most {} MiB"),
    ("common/tls-int.h", "TLS_HANDSHAKE_MESSAGE", 1 << 10, "messages have at most {} KiB"),
    ("common/tls-int.h", "TLS_HANDSHAKES", 1, "{} of them are worked at at a time"),
    ("nbd-server/transmission.h", "CONTEXTS_MAX", 1, "{} metadata contexts"),
    ("nbd-server/conn.h", "CONN_REQUESTS_MAX", 1, "{} in flight on a connection"),
    ("nbd-server/conn.h", "CONN_MEM_MAX", 1 << 20, "{} MiB of payloads and replies for a connection"),
    ("nbd-server/conn.h", "SERVER_MEM_MAX", 1 << 20, "{} MiB for all connections together"),
    ("nbd-server/conn.h", "REQUEST_PIECE", 1 << 20, "more than {} MiB is served piece by piece"),
    ("nbd-server/conn.h", "RX_SIZE", 1 << 10, "a receive buffer of {} KiB"),
    ("nbd-server/monitor.c", "CLIENTS_MAX", 1, "{} clients for each monitor"),
    ("common/qmp-sender.c", "QUEUE_MAX", 1 << 20, "leaves {} MiB of replies and events unread"),
    ("nbd-server/cmdline.c", "LOOPS_MAX", 1, "over I<N> threads, 1 to {}"),
    ("bitmaps/bitmap.h", "BITMAP_GRANULARITY_MIN", 1, "Granularity {} bytes"),
    ("bitmaps/bitmap.h", "BITMAP_GRANULARITY_MAX", 1 << 30, "to {} GiB"),
    ("bitmaps/bitmap.h", "BITMAP_BYTES_MAX", 1 << 20, "{} MiB of memory each"),
    ("bitmaps/bitmap.h", "BITMAPS_MAX", 1, "{} on a node"),
    ("format/node.h", "NODE_CHAIN_MAX", 1, "Chains of {} nodes"),
    ("format/node.h", "NODE_NAME_MAX", 1, "up to {} bytes"),
    ("format/qcow2-int.h", "QCOW2_L1_BYTES_MAX", 1 << 20, "L1 tables of {} MiB"),
], ids=lambda v: v if isinstance(v, str) and v.isupper() else "")
def test_limit(path, name, unit, phrase, merinod_page):
    assert phrase.format(ctables.constant(path, name) // unit) in merinod_page.text.replace("\n", " ")


# --- the control socket


def test_commands(daemon, qmp_page):
    queried = {c["name"] for c in daemon.start(listen=None).qmp.cmd("query-commands")}
    assert queried == set(qmp_page.part("COMMANDS").headings(2))


@pytest.mark.parametrize("command", ctables.qmp_commands())
def test_arguments(command, qmp_page):
    page = qmp_page.part(command, 2)
    items = {}
    for item in page.items():
        name, kind, optional = re.fullmatch(r"B<(.*?)> \(([^;:]*)(?:: .*?)?(; optional)?\)", item).groups()
        items[name] = kind, not optional
        assert len(page.item(f"B<{name}>").split("\n\n")[1]) > 2, f"{name} is not explained"
    assert items == ctables.qmp_commands()[command]
    assert items or "No arguments." in page.text


def test_addresses(qmp_page):
    page = qmp_page.part("ADDRESSES")
    for kind in ctables.array_of_strings(ctables.source("nbd-server/commands.c"), "address_types"):
        named = set(re.findall(r"C<([a-z0-9-]+)>", page.item(f"C<{kind}>"))) - {kind}
        assert named == {n for n, *_ in ctables.qmp_tables()[f"args_{kind}"]}


def test_actions_of_transactions(qmp_page):
    verbs = set(re.findall(r'^\t\{ "([\w-]+)"', ctables.source("nbd-server/verbs.c"), re.M))
    named = qmp_page.part("TRANSACTIONS").text.strip().split("\n\n")[0]
    assert len(verbs) > 5 and set(re.findall(r"C<([a-z-]+)>", named)) - {"transaction", "data", "grouped"} == verbs


def test_events(qmp_page):
    code = {e for p in (ROOT / "nbd-server").glob("*.c") for e in re.findall(r'qmp_event(?:_post)?\("(\w+)"', p.read_text())}
    assert {f"C<{e}>" for e in code} == set(qmp_page.part("EVENTS").items()) and code


def test_error_classes(qmp_page):
    """Those that are in use."""
    names = dict(re.findall(r"case ERROR_(\w+):\s+return \"(\w+)\"", ctables.source("common/error.c")))
    used = {n for folder in ("format", "bitmaps", "nbd-server") for p in (ROOT / folder).glob("*.c")
            for n in re.findall(r"error_set_class\(\w+, ERROR_(\w+)", p.read_text())}
    assert {f"C<{names[u]}>" for u in used} | {"C<GenericError>"} == set(qmp_page.part("ERRORS").items())


def test_session_in_the_page(daemon, tmp, qmp_page):
    """What the page shows as sent is sent, in its order; what comes back is what it shows."""
    tools.create(tmp / "vm.qcow2", "8M")
    client = daemon.start(listen=None).connect_qmp(negotiate=False)
    lines = re.findall(r"^ (->|<-) (.*)$", qmp_page.text, re.M)
    assert len(lines) > 20
    for direction, text in lines:
        if direction == "->":
            client.send(text.replace('"vm.', f'"{tmp}/vm.'))
            continue
        shown, came = json.loads(text), client.message()
        if "QMP" in shown:
            shown["QMP"]["version"]["package"] = came["QMP"]["version"]["package"]
        if "timestamp" in shown:
            assert shown.pop("timestamp").keys() == came.pop("timestamp").keys()
        assert came == shown


def test_unknown_format_of_the_list():
    done = subprocess.run([program(), "--qmp-commands=html"], capture_output=True, text=True)
    assert done.returncode == 1 and "must be pod" in done.stderr and not done.stdout
