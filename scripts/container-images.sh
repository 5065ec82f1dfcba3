#!/usr/bin/env bash
# container-images.sh: builds the images that the chart runs, with `cloister build` in a microVM, from the programs of `make build`, and
# prints their sizes beside the goals. The archives are target/images/NAME.tar, the builder's among them. The contexts beside them are what any other
# BuildKit can build as well: `docker build target/images/node`.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

out=target/images
release=${CARGO_TARGET_DIR:-target}/release
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
builder=$(scripts/builder-image.sh)

# libraries BASE PROGRAM…: what the programs are linked with, where they look for it.
libraries() {
    local base=$1 library
    shift
    for library in $(for program; do ldd "$program" | grep -o '/[^ ]*'; done | sort -u); do
        install -D -m 755 "$library" "$base$library"
    done
}

# base CONTEXT: folders and users that every program expects, and whom it trusts.
base() {
    local base=$1/base
    mkdir -p "$base/etc"
    install -d -m 1777 "$base/tmp"
    printf 'root:x:0:0:root:/:/bin/sh\nnonroot:x:65532:65532::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n' >"$base/etc/passwd"
    printf 'root:x:0:\nnonroot:x:65532:\nnogroup:x:65534:\n' >"$base/etc/group"
    install -D -m 644 /etc/ssl/certs/ca-certificates.crt "$base/etc/ssl/certs/ca-certificates.crt"
}

# parts CONTEXT CRATE…: what is in the image, beside it and in it.
parts() {
    local context=$1 name=${1##*/} folder=$1/base/usr/share/sbom
    shift
    mkdir -p "$folder"
    scripts/sbom.py "cloister-$name" "$version" "$context/base" "$@" >"$out/$name.spdx.json"
    install -m 644 "$out/$name.spdx.json" "$folder/"
}

operator() {
    local context=$out/operator
    base "$context"
    install "$release/cloister-operator" "$context/"
    libraries "$context/base" "$release/cloister-operator"
    parts "$context" cloister-operator
}

# Sources of builds come by git over https and ssh, which git starts through a shell.
node() {
    local context=$out/node remote=/usr/lib/git-core/git-remote-https tool
    base "$context"
    for tool in git ssh ssh-agent ssh-add; do install -D "/usr/bin/$tool" "$context/base/usr/bin/$tool"; done
    install -D /bin/dash "$context/base/bin/sh"
    install -D "$remote" "$context/base$remote"
    mkdir -p "$context/base/usr/share/git-core/templates"
    install -D -m 644 "$GUEST/vmlinux" "$context/kernel/vmlinux"
    install -D -m 644 "$GUEST/initramfs" "$context/kernel/initramfs"
    install -D -m 644 "$GUEST/kernel.json" "$context/kernel/kernel.json"
    install -D "$release/containerd-shim-cloister-v2" "$context/runtime/bin/containerd-shim-cloister-v2"
    install -D "$release/cloister" "$context/runtime/bin/cloister"
    install -D "$CACHE/tools/virtiofsd-1.13.2/bin/virtiofsd" "$context/runtime/libexec/virtiofsd"
    install "$release/cloister-node" "$context/"
    libraries "$context/base" "$release"/{cloister-node,cloister,containerd-shim-cloister-v2} /usr/bin/{git,ssh,ssh-agent,ssh-add} /bin/dash "$remote"
    parts "$context" cloister-node cloister cloister-shim
}

cloister() { "$release/cloister" "$@" --root "$out/store"; }

build() { # build NAME
    cp "images/$1/Dockerfile" "$out/$1/"
    cloister build --builder "$builder" --cache-key "image-$1" --progress plain --memory 1g \
        --build-arg "VERSION=$version" --build-arg SOURCE_DATE_EPOCH=0 -t "cloister.dev/$1:$version" \
        --out "type=oci,dest=$out/$1.tar" "$out/$1" >&2
    cloister image import "cloister.dev/$1:$version" -i "$out/$1.tar"
}

GUEST=${CLOISTER_KERNEL:-target/microvm}
export CLOISTER_KERNEL=$GUEST
rm -rf "$out"/{operator,node}
for name in operator node; do
    say "image $name: building"
    "$name"
    build "$name"
done
# What the programs start has to be there as well.
starts() { "$release/cloister" run --root "$out/store" --rm --entrypoint "$2" "cloister.dev/$1:$version" "${@:3}"; }
starts operator /usr/bin/cloister-operator --version
starts node /usr/bin/cloister-node --version
starts node /bin/sh -ec '
    git --version; ssh -V; /runtime/bin/cloister version >/dev/null; /runtime/bin/containerd-shim-cloister-v2 -v >/dev/null
    case $(git remote-https 2>&1) in *usage*) ;; *) exit 1 ;; esac' || { say "image node: a program in it does not start"; exit 1; }
install -m 644 "$builder" "$out/builder.tar"
scripts/image-size.py "$out/operator.tar" 25 "$out/node.tar" 60
