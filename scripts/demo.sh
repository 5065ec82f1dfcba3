#!/usr/bin/env bash
# Imports a real Debian root and runs commands in a microVM, showing that kernel, PID 1 and filesystem are the guest's.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

root=${CLOISTER_DEMO_ROOT:-target/demo}
bin=${CLOISTER_BIN_DIR:-${CARGO_TARGET_DIR:-target}/release}/cloister
cloister() { "$bin" --root "$root" "$@"; }
step() { # step TITLE COMMAND…: shows the command (or $shown), runs it, says how long it took
    local title=$1 begin end
    shift
    printf '\n# %s\n$ %s\n' "$title" "${shown:-$*}"
    begin=$(date +%s%N)
    "$@"
    end=$(date +%s%N)
    printf '  (%d.%03d s)\n' $(((end - begin) / 1000000000)) $(((end - begin) / 1000000 % 1000))
}
piped() {
    local code=0
    seq 100000 | cloister run --rm -i debian -- sh -c 'sha256sum; exit 7' || code=$?
    printf 'exit code %s; the same made here: %s\n' "$code" "$(seq 100000 | sha256sum)"
}

image=$(scripts/debian-image.sh demo)
rm -rf "$root"
shown='cloister image import debian -i debian-demo.tar' \
    step 'A Debian image of three layers becomes three EROFS files' cloister image import debian -i "$image"
printf '$ cloister image ls\n'
cloister image ls
step "The kernel is not this machine's ($(uname -r)); where the time goes" \
    cloister run --rm --timings debian -- uname -srv
export CLOISTER_LOG=error # the warning about emulation was seen once
step 'PID 1 is the command, in a namespace of its own' cloister run --rm debian -- cat /proc/1/comm
inside='cat /etc/motd; [ -e /etc/issue ] || echo "no /etc/issue"; stat -fc %T /'
shown="cloister run --rm debian -- sh -c '$inside'" \
    step 'The filesystem is the image: layers stacked, whiteouts honoured' cloister run --rm debian -- sh -c "$inside"
shown='seq 100000 | cloister run --rm -i debian -- sh -c "sha256sum; exit 7"' \
    step 'Input, output and exit codes pass through' piped
printf '\n# Nothing is left\n$ cloister ps\n'
cloister ps
