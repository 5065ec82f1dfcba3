"""What docs/operations.md quotes of the programs is what they say."""
import re
import subprocess

# Words of Kubernetes, containerd and its annotations.
OTHERS = re.compile(r"^(0/3 nodes|node\(s\) didn't|RuntimeClass \"|no runtime for|Err|:latest|imagePullPolicy|--max|hostUsers)")


def check(root):
    """What is wrong, one line each."""
    page = (root / "docs/operations.md").read_text().split("## Troubleshooting")[1]
    files = subprocess.run(["git", "ls-files", "*.rs"], cwd=root, capture_output=True, text=True, check=True).stdout
    code = "".join((root / file).read_text() for file in files.split()).replace('\\"', '"')
    for row in re.findall(r"^\| (.*?) \|", page, re.MULTILINE):
        for quote in re.findall(r"`([^`]+)`", row):
            if quote not in code and not OTHERS.match(quote):
                yield f"docs/operations.md: no program says {quote!r}"
