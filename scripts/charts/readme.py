#!/usr/bin/python3
"""readme.py: writes charts/cloister/README.md: its text as it is, the table of values from what values.yaml says of each."""
import json
from pathlib import Path

import yaml

CHART = Path(__file__).resolve().parents[2] / "charts/cloister"
BEGIN, END = "<!-- values: scripts/charts/readme.py -->\n", "<!-- end of values -->\n"


def described(text):
    """(path, comment) of each value that has one."""
    path, comment = [], []
    for line in text.splitlines():
        words = line.strip()
        if words.startswith("# --"):
            comment = [words[4:].strip()]
        elif words.startswith("#"):
            comment = [*comment, words[1:].strip()] if comment else []
        elif ":" in words and not words.startswith("-"):
            depth = (len(line) - len(line.lstrip())) // 2
            path = [*path[:depth], words.split(":")[0]]
            if comment:
                yield tuple(path), " ".join(comment)
            comment = []


def table(text):
    values = yaml.safe_load(text)
    rows = ["| value | default | |", "| --- | --- | --- |"]
    for path, comment in described(text):
        default = values
        for key in path:
            default = default[key]
        rows.append(f"| `{'.'.join(path)}` | `{json.dumps(default)}` | {comment} |")
    return "\n".join(rows) + "\n"


def made():
    """The page as it has to be."""
    head, rest = (CHART / "README.md").read_text().split(BEGIN)
    return head + BEGIN + table((CHART / "values.yaml").read_text()) + END + rest.split(END)[1]


def check():
    """What is wrong, one line each."""
    if made() != (CHART / "README.md").read_text():
        yield "charts/cloister/README.md is not what values.yaml says: run scripts/charts/readme.py"


if __name__ == "__main__":
    text = made()
    (CHART / "README.md").write_text(text)
