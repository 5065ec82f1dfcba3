#!/usr/bin/python3
"""check.py: the charts: linted, rendered for each file in ci/, and everything in them compared with what it speaks of."""
import re
import sys
from pathlib import Path

import helm
import messages
import monitoring
import objects
import readme
import values
import yaml

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "cloister-system"


def lint(chart, given):
    report = helm.helm.lint(chart, given, strict=True)
    yield from (f"{chart.name}: {m['path']}: {m['error']}" for m in report["messages"] if m["severity"] > 1)
    yield from report["errors"]


def rendered(chart, file):
    given = yaml.safe_load(file.read_text()) or {}
    yield from lint(chart, given)
    documents = objects.parse(helm.render(chart, given, namespace=NAMESPACE))
    print(f"{file.relative_to(ROOT)}: {len(documents)} objects")
    yield from (f"{file.name}: {line}" for line in objects.check(documents, NAMESPACE))


def definitions(chart):
    """The chart of the definition changes nothing of it but whether Helm may remove it."""
    yield from lint(chart, {})
    source = yaml.safe_load((chart / "files/cloister.dev_imagebuilds.yaml").read_text())
    for keep, annotations in ((True, {"helm.sh/resource-policy": "keep"}), (False, None)):
        (document,) = objects.parse(helm.render(chart, {"keep": keep}))
        if document["metadata"].pop("annotations", None) != annotations or document != source:
            yield f"{chart.name}: keep={keep} renders something else"


def versions():
    """The charts are of the programs' version, and name images of no other."""
    version = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]
    for path in sorted(ROOT.glob("charts/*/Chart.yaml")):
        chart = yaml.safe_load(path.read_text())
        found = {chart["version"], chart["appVersion"]}
        found |= {image["image"].split(":")[1] for image in yaml.safe_load(chart["annotations"].get("artifacthub.io/images", "[]"))}
        if found != {version}:
            yield f"{path.relative_to(ROOT)} is of {', '.join(sorted(found))}, the programs of {version}"


def main():
    chart = ROOT / "charts/cloister"
    wrong = [
        *versions(),
        *(line for file in sorted(chart.glob("ci/*.yaml")) for line in rendered(chart, file)),
        *definitions(ROOT / "charts/cloister-crds"),
        *values.check(chart),
        *monitoring.check(chart, ROOT / "docs"),
        *messages.check(ROOT),
        *readme.check(),
    ]
    for line in wrong:
        print(line, file=sys.stderr)
    sys.exit(bool(wrong))


try:
    main()
except helm.helm.HelmError as error:
    sys.exit(f"charts: {error}")
