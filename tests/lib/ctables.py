# SPDX-License-Identifier: BSD-3-Clause
"""Tables read out of the C sources, for tests that compare documents with them.

Nothing is compiled: a table that is written in another way than its siblings is not found, and the test that asked
for it fails.
"""

import re

from lib.daemon import ROOT

TYPES = {"STR": "string", "BOOL": "boolean", "INT": "integer", "UINT": "integer, not negative", "OBJECT": "object",
         "ARRAY": "array", "STR_OR_OBJECT": "string or object",
         "STR_OBJECT_NULL": "string, object or null", "NUMBER": "number", "ANY": "any value"}


def source(path):
    return (ROOT / path).read_text()


def array_of_strings(text, name):
    """static const char *const NAME[] = { "a", "b", NULL };"""
    body = re.search(rf"\b{name}\[\] = \{{(.*?)\}};", text, re.S).group(1)
    return re.findall(r'"([^"]*)"', body)


def constant(path, name):
    """The value of a #define or an enumerator that is a number, a product or a shift."""
    value = re.search(rf"(?:#define {name}\s+|\b{name} = )\(?(\d+)u?l*(?: << (\d+))?", source(path))
    return int(value.group(1)) << int(value.group(2) or 0)


def drivers():
    """{name: [option, ...]} of the drivers that graph.c lists."""
    listed = re.search(r"node_drivers\[.*?\] = \{(.*?)\};", source("format/graph.c"), re.S).group(1)
    files = "".join(p.read_text() for d in ("format", "backup") for p in sorted((ROOT / d).glob("*.c")))
    found = {}
    for driver in re.findall(r"&(\w+)", listed) + re.findall(r"node_driver_add\(&(\w+)\)", files):
        body = re.search(rf"const struct node_driver {driver} = \{{(.*?)\n\}};", files, re.S).group(1)
        options = re.search(r"\.options = (\w+)", body).group(1)
        found[re.search(r'\.name = "([\w-]+)"', body).group(1)] = array_of_strings(files, options)
    return found


def object_classes():
    """{class: [option, ...]} of --object."""
    files = "".join(p.read_text() for folder in ("common", "format", "nbd-server")
                    for p in sorted((ROOT / folder).glob("*.c")))
    return {name: re.findall(r'"([\w-]+)"', options) for name, options in re.findall(
        r'struct object_class \w+ = \{\s*\.name = "([\w-]+)",\s*\.options = \(const char \*const\[\]\)\{(.*?)\}', files, re.S)}


def options_taken(path, variable="opts"):
    """Names that a file takes out of the object VARIABLE with common/options.h."""
    return set(re.findall(rf'\bopts_\w+\({variable}, "([\w-]+)"', source(path)))


def qmp_tables():
    """{table: [(name, type, required, members, item)]} of all struct qmp_arg in nbd-server/; items have one row."""
    found = {}
    for path in sorted((ROOT / "nbd-server").glob("*.c")):
        text = path.read_text()
        for table, body in re.findall(r"const struct qmp_arg (\w+)(?:\[\])? = \{(.*?)\};", text, re.S):
            rows = re.findall(r'"([\w-]+)", QMP_(\w+)(?:, (true|false))?((?:[^"]|"[^"]*"(?!, QMP_))*)', body)
            found.setdefault(table, []).extend(
                (name, TYPES[kind], required == "true", *(reference(rest, key) for key in ("members", "item")))
                for name, kind, required, rest in rows)
    return found


def reference(text, key):
    match = re.search(rf"\.{key} = &?(\w+)", text)
    return match and match.group(1)


def flatten(tables, name, path=""):
    """{path of an argument: (type, required)}, members of objects and of elements included."""
    found = {}
    for argument, kind, required, members, item in tables[name]:
        here = path + argument
        if item:
            _, element, _, members, _ = tables[item][0]
            kind, below = f"{kind} of {element}", here + "[]."
        else:
            below = here + "."
        found[here] = kind, required
        if members:
            found |= flatten(tables, members, below)
    return found


def qmp_commands():
    """{command: {path of an argument: (type, required)}}, as the table in commands.c has it."""
    tables = qmp_tables()
    body = re.search(r"struct qmp_command qmp_commands\[\] = \{(.*?)\n\};", source("nbd-server/commands.c"), re.S).group(1)
    rows = re.findall(r'\{ "([\w-]+)", (NULL|args_\w+)', body)
    return {name: {} if args == "NULL" else flatten(tables, args) for name, args in rows}
