#!/usr/bin/env bash
# Imports a real Debian root and runs commands in a microVM, showing that kernel, PID 1 and filesystem are the guest's.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

root=target/demo
cloister() { "${CARGO_TARGET_DIR:-target}/release/cloister" --root "$root" "$@"; }
step() { # step TITLE COMMAND…: shows the command, runs it, says how long it took
    local title=$1 begin end
    shift
    printf '\n\033[1m%s\033[0m\n$ %s\n' "$title" "$*"
    begin=$(date +%s%N)
    "$@"
    end=$(date +%s%N)
    printf '  (%d.%03d s)\n' $(((end - begin) / 1000000000)) $(((end - begin) / 1000000 % 1000))
}

step 'A Debian image of three layers becomes three EROFS files' \
    cloister image import debian -i "$(scripts/debian-image.sh demo)"
cloister image ls
step 'The kernel is not this machine'"'"'s'" ($(uname -r))" \
    cloister run --rm debian -- uname -srv
step 'PID 1 is the command, in a namespace of its own' \
    cloister run --rm debian -- sh -c 'tr "\0" " " </proc/1/cmdline; echo'
step 'The filesystem is the image: layers stacked, whiteouts honoured' \
    cloister run --rm debian -- sh -c 'head -n 1 /etc/os-release; cat /etc/motd; ls /etc/issue /usr/share/locale; grep " / " /proc/mounts'
step 'Input, output and exit codes pass through' \
    sh -c 'seq 100000 | "$0" --root "$1" run --rm -i debian -- sh -c "sha256sum; exit 7"; code=$?; seq 100000 | sha256sum; echo "exit code $code"; [ $code = 7 ]' \
    "${CARGO_TARGET_DIR:-target}/release/cloister" "$root"
