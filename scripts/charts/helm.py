#!/usr/bin/python3
"""helm.py COMMAND …: Helm's own engine, with the words of its command line that this project uses.

    lint CHART                           template RELEASE CHART
    install RELEASE CHART [--create-namespace] [--wait]
    upgrade RELEASE CHART [--reuse-values] [--wait]
    rollback RELEASE REVISION            uninstall RELEASE
    test RELEASE                         package CHART FOLDER
"""
import argparse
import json
import os
import sys
from pathlib import Path

import yaml

CACHE = Path(os.environ.get("CLOISTER_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cloister")
sys.path.insert(0, str(CACHE / "tools/helm-0.2.2"))
try:
    import helm_python as helm
except ImportError:
    sys.exit("helm.py: Helm's engine is missing: run make setup")


def merge(base, over):
    """One mapping over another, as Helm merges files of values."""
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            merge(base[key], value)
        else:
            base[key] = value
    return base


def values(args):
    """The values that files and --set say; later ones win."""
    found = {}
    for path in args.values:
        merge(found, yaml.safe_load(Path(path).read_text()) or {})
    for expression in args.set:
        merge(found, helm.parse_set_string(expression))
    return found


def render(chart, given, release="cloister", namespace="cloister-system"):
    """The manifests of a chart by the path of their templates."""
    loaded = chart if isinstance(chart, helm.Chart) else helm.Chart.load(chart)
    loaded.validate_schema(given)
    return loaded.render(given, name=release, namespace=namespace)


def lint(args):
    report = helm.lint(args.first, values(args), strict=True)
    for message in report["messages"]:
        print(f"{message['path']}: {message['error']}")
    if any(message["severity"] > 1 for message in report["messages"]) or report["errors"]:
        sys.exit("\n".join(report["errors"]) or 1)


def template(args):
    """As for the newest Kubernetes; with a kubeconfig as for that cluster."""
    shown = render(args.second, values(args), args.first, args.namespace)
    if args.kubeconfig:
        with helm.Config(kubeconfig_path=args.kubeconfig, namespace=args.namespace) as config:
            done = config.install(args.second, args.first, values(args), namespace=args.namespace, dry_run="server")
        print(done["manifest"])
        # What Helm calls hooks is no part of that.
        shown = {path: text for path, text in shown.items() if "/tests/" in path}
    for path, text in shown.items():
        if text.strip() and path.endswith(".yaml"):
            print(f"---\n# Source: {path}\n{text.strip()}")


def package(args):
    print(helm.package(args.first, destination=args.second))


def cluster(args):
    """What talks to an API server."""
    where = {"namespace": args.namespace, "timeout": args.timeout, "wait": "watcher" if args.wait else None}
    with helm.Config(kubeconfig_path=args.kubeconfig, namespace=args.namespace) as config:
        if args.command == "install":
            done = config.install(args.second, args.first, values(args), create_namespace=args.create_namespace, **where)
        elif args.command == "upgrade":
            done = config.upgrade(args.second, args.first, values(args), reuse_values=args.reuse_values, **where)
        elif args.command == "rollback":
            done = config.rollback(args.first, version=int(args.second))
        elif args.command == "uninstall":
            done = config.uninstall(args.first)
        else:
            done = config.test(args.first, timeout=args.timeout, logs=True)
    print(json.dumps(done))


def main():
    commands = {"lint": lint, "template": template, "package": package}
    commands.update(dict.fromkeys(("install", "upgrade", "rollback", "uninstall", "test"), cluster))
    parser = argparse.ArgumentParser(prog="helm.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=commands)
    parser.add_argument("first")
    parser.add_argument("second", nargs="?")
    parser.add_argument("-f", "--values", action="append", default=[])
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("-n", "--namespace", default="default")
    parser.add_argument("--kubeconfig")
    parser.add_argument("--create-namespace", action="store_true")
    parser.add_argument("--reuse-values", action="store_true")
    parser.add_argument("--wait", action="store_true")
    parser.add_argument("--timeout", type=int, default=300)
    args = parser.parse_args()
    try:
        commands[args.command](args)
    except helm.HelmError as error:
        sys.exit(f"helm.py: {error}")


if __name__ == "__main__":
    main()
