#!/usr/bin/env bash
# guest.sh DIR: builds the agent as one static file and puts kernel, initramfs and kernel.json side by side in DIR.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
. "$here/scripts/common.sh"
out=${1:?usage: guest.sh DIR}
cd "$here"

target=x86_64-unknown-linux-gnu
say "guest agent: building"
RUSTFLAGS='-C target-feature=+crt-static -C relocation-model=static' \
    cargo build --quiet --locked --profile guest --target $target -p cloister-agent
kernel=$(kernel/build.sh --print-dir)
mkdir -p "$out"
cp -f --reflink=auto "$kernel"/{vmlinux,config,kernel.json} "$out/"
kernel/initramfs.sh "${CARGO_TARGET_DIR:-target}/$target/guest/cloister-agent" -o "$out/initramfs"
say "guest: $(du -ch "$out/vmlinux" "$out/initramfs" | tail -n 1 | cut -f1) in $out"
