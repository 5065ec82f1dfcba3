#!/usr/bin/python3
"""sbom.py NAME VERSION FOLDER CRATE…: what an image is made of, as SPDX 2.3: the crates that the programs are linked with, and the
Debian packages whose files are below FOLDER."""
import json
import re
import subprocess
import sys
from pathlib import Path


def crates(names):
    """(name, version, licence) of what cargo links, the programs themselves included."""
    args = ["cargo", "tree", "--locked", "--edges", "normal", "--prefix", "none", "--format", "{p}|{l}"]
    for name in names:
        args += ["--package", name]
    lines = subprocess.run(args, capture_output=True, text=True, check=True).stdout.splitlines()
    found = {re.match(r"(\S+) v(\S+).*?\|(.*)", line.replace(" (*)", "")).groups() for line in lines if line}
    for name, version, licence in sorted(found):
        yield name, version, licence or "NOASSERTION"


def packages(folder):
    """(name, version) of the packages that files come from; libraries are known by their paths of before the merge of /usr."""
    files = [f"/{path.relative_to(folder)}" for path in folder.rglob("*") if path.is_file()]
    both = [path for file in files for path in (file, f"/usr{file}", file.removeprefix("/usr"))]
    owners = subprocess.run(["dpkg", "-S", *both], capture_output=True, text=True).stdout
    names = sorted({line.split(": ")[0].split(", ")[0] for line in owners.splitlines() if not line.startswith("diversion")})
    for name in names:
        version = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", name], capture_output=True, text=True, check=True)
        yield name.split(":")[0], version.stdout


def package(kind, name, version, licence="NOASSERTION"):
    where = {"cargo": f"pkg:cargo/{name}@{version}", "deb": f"pkg:deb/debian/{name}@{version}?distro=bookworm"}[kind]
    return {
        "SPDXID": re.sub(r"[^A-Za-z0-9.-]", "-", f"SPDXRef-{kind}-{name}-{version}"),
        "name": name,
        "versionInfo": version,
        "downloadLocation": "NOASSERTION",
        "licenseDeclared": licence.replace("/", " OR "),
        "externalRefs": [{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": where}],
    }


def main():
    name, version, folder, *programs = sys.argv[1:]
    parts = [package("cargo", *crate) for crate in crates(programs)]
    parts += [package("deb", *found) for found in packages(Path(folder))]
    document = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": f"{name}-{version}",
        "documentNamespace": f"https://cloister.dev/spdx/{name}-{version}",
        "creationInfo": {"created": "1970-01-01T00:00:00Z", "creators": ["Tool: scripts/sbom.py"]},
        "packages": parts,
        "relationships": [
            {"spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES", "relatedSpdxElement": part["SPDXID"]}
            for part in parts
        ],
    }
    json.dump(document, sys.stdout, indent=1)
    print()


main()
