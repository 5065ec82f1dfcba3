"""values.yaml, its schema and the templates say the same: every value is described, bounded and used."""
import copy
import json
import re
from pathlib import Path

import helm
import readme
import yaml

# What must be refused, and what the one line about it names.
REFUSED = {
    "operator.replicas=two": "/operator/replicas",
    "containerd.flavor=docker": "/containerd/flavor",
    "containerd.restart=systemd:containerd": "/containerd/restart",
    "image.repository=https://registry.example.com": "/image/repository",
    "node.image.digest=latest": "/node/image/digest",
    "node.metricsPort=99999": "/node/metricsPort",
    "node.folder=opt": "/node/folder",
    "metrics.podMonitor.enable=true": "'enable' not allowed",
    "nodes.folder=/opt": "'nodes' not allowed",
}


def leaves(tree, path=()):
    """The paths that values.yaml has a comment of its own for, with their values."""
    for key, value in tree.items():
        if isinstance(value, dict) and value and not free((*path, key)):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def free(path):
    """Whether a value is one mapping for its reader, whatever is in it."""
    return path[-1] in ("resources", "nodeSelector", "overhead", "labels", "priorityClasses")


class Schema:
    def __init__(self, chart):
        self.root = json.loads((chart / "values.schema.json").read_text())

    def at(self, path):
        """The schema of a value, with what stands beside a reference to it."""
        node = self.root
        for key in path:
            node = self.resolve(node).get("properties", {}).get(key)
            if node is None:
                return None
        return self.resolve(node)

    def resolve(self, node):
        reference = node.get("$ref")
        return {**self.root["$defs"][reference.rsplit("/", 1)[1]], **node} if reference else node

    def paths(self, node=None, path=()):
        node = self.resolve(node or self.root)
        for key, inner in node.get("properties", {}).items():
            if path or key != "global":
                yield (*path, key)
                if not free((*path, key)) and key not in ("affinity", "tolerations"):
                    yield from self.paths(inner, (*path, key))

    def closed(self, node=None, path=""):
        """Mappings that would take a misspelt key."""
        node = self.resolve(node or self.root)
        if "properties" in node and node.get("additionalProperties") is not False and path:
            yield path
        for key, inner in node.get("properties", {}).items():
            yield from self.closed(inner, f"{path}.{key}")


def other(value, schema):
    """A value that is allowed and not the default."""
    if "examples" in schema:
        return schema["examples"][0]
    if "enum" in schema:
        return next(choice for choice in schema["enum"] if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str):
        return value + "2"
    if "requests" in value:
        return {"requests": {"memory": "77Mi"}}
    return {**value, "memory": "77Mi"}


def put(tree, path, value):
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def check(chart):
    """What is wrong, one line each."""
    schema, values = Schema(chart), yaml.safe_load((chart / "values.yaml").read_text())
    loaded = helm.helm.Chart.load(chart)
    known = {path[:n] for path, _ in leaves(values) for n in range(1, len(path) + 1)}
    for path in sorted(known ^ set(schema.paths())):
        yield f"{'.'.join(path)} is in one of values.yaml and values.schema.json, and not in the other"
    described = {path for path, _ in readme.described((chart / "values.yaml").read_text())}
    for path in sorted({path for path, _ in leaves(values)} - described):
        yield f"{'.'.join(path)} has no comment"
    for path in schema.closed():
        yield f"values.schema.json: {path} takes unknown keys"
    text = "".join(file.read_text() for file in sorted(chart.glob("templates/**/*.*")))
    for name in sorted(set(re.findall(r"\.Values((?:\.[A-Za-z]+)+)", text))):
        path = tuple(name.split(".")[1:])
        if path not in known and not any(free(path[:n]) for n in range(1, len(path))):
            yield f"templates use .Values{name}, which values.yaml does not have"
    # Everything on, and nothing random.
    base = {"distribution": {"tlsSecret": "given"}, "shim": "boots = 1\n"}
    for part in ("podMonitor", "rules", "dashboard"):
        put(base, ("metrics", part, "enabled"), True)
    before = helm.render(loaded, base)
    for path, value in leaves(helm.merge(values, copy.deepcopy(base))):
        changed = copy.deepcopy(base)
        put(changed, path, other(value, schema.at(path)))
        if helm.render(loaded, changed) == before:
            yield f"{'.'.join(path)} changes nothing"
    for expression, words in REFUSED.items():
        try:
            helm.render(loaded, helm.helm.parse_set_string(expression))
            yield f"{expression} is not refused"
        except helm.helm.HelmError as error:
            lines = str(error).strip().splitlines()
            if len(lines) != 2 or words not in lines[1]:
                yield f"{expression} is refused with {lines}"
