#!/usr/bin/python3
"""image-size.py ARCHIVE MEGABYTES …: how large images are, as nodes pull them; fails when one is larger than its goal."""
import gzip
import json
import sys
import tarfile


def measure(path):
    """Bytes of an OCI archive's one image: as it is pulled, and unpacked."""
    with tarfile.open(path) as archive:
        def blob(descriptor):
            return archive.extractfile("blobs/" + descriptor["digest"].replace(":", "/")).read()

        top = json.load(archive.extractfile("index.json"))["manifests"][0]
        manifest = json.loads(blob(top))
        while "manifests" in manifest:
            manifest = json.loads(blob(manifest["manifests"][0]))
        layers = manifest["layers"]
        return (
            sum(part["size"] for part in [manifest["config"], *layers]),
            sum(len(gzip.decompress(blob(layer))) for layer in layers),
        )


def main():
    large = False
    for path, goal in zip(sys.argv[1::2], map(float, sys.argv[2::2])):
        pulled, unpacked = (size / 1e6 for size in measure(path))
        print(f"{path}: {pulled:.1f} MB (to reach ≤ {goal:.0f} MB), unpacked {unpacked:.1f} MB")
        large |= pulled > goal
    sys.exit(large)


main()
