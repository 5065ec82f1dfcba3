#!/usr/bin/env bash
# Builds the guest kernel once more, in another folder, and compares it with the cached one byte by byte (which is built first if
# there is none). About 17 minutes of processor time. What differs is kept for a look; what is equal is removed.
#
#   reproduce.sh [DIR]     DIR: an empty folder to build in, about 3 GB [default: one below target/]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../scripts/common.sh"

first=$("$here/build.sh")
if [ $# != 0 ]; then
    again=$1
    mkdir -p "$again"
else
    mkdir -p "$here/../target"
    again=$(mktemp -d "$here/../target/kernel-again.XXXXXX")
fi
again=$(cd "$again" && pwd)
# The interrupted build of an earlier run would bring its objects along.
[ -z "$(ls -A "$again")" ] || { say "kernel: $again is not empty"; exit 2; }

# The lock belongs to the folder, so the second build neither waits for nor sees the first. Another mask
# of permissions must not show in the result.
second=$(umask 077 && CLOISTER_CACHE=$again "$here/build.sh")
sum() { sha256sum <"$1" | cut -d ' ' -f 1; }
differ=
for file in vmlinux config; do
    if cmp -s "$first/$file" "$second/$file"; then
        say "kernel: $file is the same twice, sha256 $(sum "$first/$file")"
    else
        say "kernel: $file differs: $first/$file $(sum "$first/$file"), $second/$file $(sum "$second/$file")"
        differ=1
    fi
done
[ -z "$differ" ] || exit 1
rm -rf "$again"
