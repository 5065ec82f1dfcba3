"""Alerts and dashboard ask only for metrics and labels that docs/metrics.md has; every alert is tested and explained."""
import json
import re
import subprocess
import tempfile
from pathlib import Path

import helm
import yaml

# Labels that Prometheus adds, and the histogram's own.
ADDED = {"instance", "job", "namespace", "pod", "node", "le"}


def documented(page):
    """Labels by metric, from the tables."""
    rows = re.findall(r"^\| `(\w+)` \| (counter|gauge|histogram) \| \w+ \| (.*?) \|", page, re.MULTILINE)
    found = {}
    for metric, kind, labels in rows:
        for suffix in ("_bucket", "_sum", "_count") if kind == "histogram" else ("",):
            found[metric + suffix] = set(re.findall(r"`(\w+)`", labels))
    return found


def expressions(chart):
    alerts = yaml.safe_load((chart / "files/alerts.yaml").read_text())
    for group in alerts["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    for panel in json.loads((chart / "files/dashboard.json").read_text())["panels"]:
        for target in panel.get("targets", []):
            yield f"panel {panel['title']!r}", target["expr"]


def wrong(where, query, metrics):
    used = set(re.findall(r"\b(?:cloister|process)_\w+", query))
    for metric in sorted(used - metrics.keys()):
        yield f"{where}: docs/metrics.md has no {metric}"
    labels = set(re.findall(r"[{,]\s*(\w+)\s*[=!]", query))
    for names in re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", query):
        labels |= set(filter(None, re.split(r"[,\s]+", names)))
    known = ADDED.union(*(metrics.get(metric, set()) for metric in used))
    for label in sorted(labels - known):
        yield f"{where}: none of its metrics has a label {label}"


def promtool(*args):
    tool = helm.CACHE / "tools/promtool/usr/bin/promtool"
    done = subprocess.run([tool, *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        yield f"promtool {args[0]} {args[1]}: {(done.stdout + done.stderr).strip()}"


def check(chart, docs):
    """What is wrong, one line each."""
    metrics = documented((docs / "metrics.md").read_text())
    for where, query in expressions(chart):
        yield from wrong(where, query, metrics)
    alerts = {where for where, _ in expressions(chart) if not where.startswith("panel")}
    tests = yaml.safe_load((chart / "tests/alerts.yaml").read_text())["tests"]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case.get("exp_alerts")}
    for alert in sorted(alerts - fired):
        yield f"{alert} has no test in which it fires"
    explained = set(re.findall(r"\bCloister[A-Z]\w+", (docs / "operations.md").read_text()))
    for alert in sorted(alerts ^ explained):
        yield f"{alert} is in one of files/alerts.yaml and docs/operations.md, and not in the other"
    yield from promtool("check", "rules", chart / "files/alerts.yaml")
    yield from promtool("test", "rules", chart / "tests/alerts.yaml")
    operations = (docs / "operations.md").read_text()
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as config:
        config.write(re.search(r"^```yaml\n(scrape_configs:\n.*?)^```", operations, re.MULTILINE | re.DOTALL)[1])
        config.flush()
        yield from promtool("check", "config", config.name)
    # promtool reads rules only: the dashboard's queries as such.
    queries = [{"record": f"panel:{n}", "expr": query.replace("$__rate_interval", "5m").replace("$__range", "1h")}
               for n, (where, query) in enumerate(expressions(chart)) if where.startswith("panel")]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as rules:
        yaml.safe_dump({"groups": [{"name": "dashboard", "rules": queries}]}, rules)
        rules.flush()
        yield from promtool("check", "rules", rules.name)
