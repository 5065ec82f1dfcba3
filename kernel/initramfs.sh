#!/usr/bin/env bash
# Packs the guest agent as /init, the only file of the initramfs, and publishes it as <kernel dir>/initramfs.
#
#   initramfs.sh AGENT [-o FILE]      FILE defaults to initramfs beside the newest built kernel of this machine
#
# The archive is the kernel's own "newc" cpio (Documentation/driver-api/early-userspace/buffer-format.rst), plain: the
# kernel copies it in less time than it would take to inflate it. Owner, times and inode are fixed, so the same agent
# gives the same bytes. /dev and /dev/console are not in it: the kernel carries them in its built-in initramfs.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../scripts/common.sh"

fail() { say "initramfs: $*"; exit 1; }

agent=${1:-} target=
[ $# = 1 ] || { [ $# = 3 ] && [ "$2" = -o ] && target=$3; } || fail "usage: initramfs.sh AGENT [-o FILE]"
[ -f "$agent" ] || fail "$agent is not a file"
readelf -lW "$agent" 2>/dev/null | grep -q ' LOAD ' || fail "$agent is not an ELF program"
if readelf -lW "$agent" | grep -q ' INTERP '; then fail "$agent needs a dynamic loader, which is not in the initramfs: link it static"; fi
if [ -z "$target" ]; then
    dir=$CACHE/kernel/default-$(uname -m | sed 's/aarch64/arm64/')
    [ -e "$dir/vmlinux" ] || fail "no kernel in $dir: run kernel/build.sh first"
    target=$(readlink -f "$dir")/initramfs
fi

work=$(mktemp -d "$(dirname "$target")/.initramfs.XXXXXX")
trap 'rm -rf "$work"' EXIT
strip --strip-all -o "$work/init" "$agent" || fail "cannot strip $agent"

pad() { head -c $(((4 - $1 % 4) % 4)) /dev/zero; } # to the next multiple of four

entry() { # entry NAME MODE FILE: one newc header, name and content, each padded to four bytes
    local name=$1 mode=$2 file=$3 size=0 links=0
    if [ -n "$file" ]; then size=$(stat -c %s "$file") links=1; fi
    # magic ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    printf '070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X' \
        "$links" "$mode" 0 0 "$links" 0 "$size" 0 0 0 0 $((${#name} + 1)) 0
    printf '%s\0' "$name"
    pad $((110 + ${#name} + 1))
    if [ -n "$file" ]; then cat "$file"; pad "$size"; fi
}

{ entry init 0100755 "$work/init"; entry 'TRAILER!!!' 0 ''; } >"$work/initramfs"
chmod 644 "$work/initramfs"
mv -T "$work/initramfs" "$target"
say "initramfs: $target ($(stat -c %s "$target") bytes)"
printf '%s\n' "$target"
