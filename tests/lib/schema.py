# SPDX-License-Identifier: BSD-3-Clause
"""query-qmp-schema as clients use it: look-ups by path, and values held against their types."""


class Schema:
    def __init__(self, elements):
        self.elements = elements
        self.commands = {e["name"]: e for e in elements if e["meta-type"] == "command"}
        self.events = {e["name"]: e for e in elements if e["meta-type"] == "event"}
        self.types = {e["name"]: e for e in elements if e["meta-type"] not in ("command", "event")}

    def find(self, path):
        """libvirt's way: "command/arg-type/member/+case/member"; the type at its end, or None."""
        name, way, *rest = path.split("/")
        entry = self.commands.get(name) or self.events.get(name)
        here = entry and self.types[entry[way]]
        for step in rest:
            while here and here["meta-type"] == "array":
                here = self.types[here["element-type"]]
            if here and here["meta-type"] == "alternate":
                here = next(t for t in (self.types[m["type"]] for m in here["members"]) if t["meta-type"] == "object")
            here = here and self.step(here, step)
        return here

    def step(self, here, step):
        if here["meta-type"] == "enum":
            return here if step.lstrip("^") in here["values"] else None
        if step.startswith("+"):
            found = [v["type"] for v in here.get("variants", ()) if v["case"] == step[1:]]
        else:
            found = [m["type"] for m in here["members"] if m["name"] == step]
        return self.types[found[0]] if found else None

    def faults(self, value, name, path=""):
        """What in VALUE is not as the type NAME says."""
        kind = self.types[name]
        return getattr(self, "faults_" + kind["meta-type"])(value, kind, path)

    def faults_builtin(self, value, kind, path):
        right = {"str": str, "int": int, "bool": bool, "null": type(None), "number": (int, float), "any": object}
        ok = isinstance(value, right[kind["name"]]) and (kind["name"] in ("bool", "any") or not isinstance(value, bool))
        return [] if ok else [f"{path}: {value!r} is no {kind['name']}"]

    def faults_enum(self, value, kind, path):
        return [] if value in kind["values"] else [f"{path}: {value!r} is not in {kind['values']}"]

    def faults_array(self, value, kind, path):
        if not isinstance(value, list):
            return [f"{path}: {value!r} is no array"]
        return [f for i, v in enumerate(value) for f in self.faults(v, kind["element-type"], f"{path}[{i}]")]

    def faults_alternate(self, value, kind, path):
        tries = [self.faults(value, m["type"], path) for m in kind["members"]]
        return [] if [] in tries else tries[0]

    def faults_object(self, value, kind, path):
        if not isinstance(value, dict):
            return [f"{path}: {value!r} is no object"]
        members = list(kind["members"])
        for v in kind.get("variants", ()):
            if v["case"] == value.get(kind["tag"]):
                members += self.types[v["type"]]["members"]
        faults = [f"{path}.{m['name']} is missing" for m in members if "default" not in m and m["name"] not in value]
        faults += [f"{path}.{k} is unknown" for k in value if k not in {m["name"] for m in members}]
        return faults + [f for m in members if m["name"] in value
                         for f in self.faults(value[m["name"]], m["type"], f"{path}.{m['name']}")]
