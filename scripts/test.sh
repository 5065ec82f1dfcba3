#!/usr/bin/env bash
# test.sh [cargo-nextest options]: every test of the workspace, or those that the options choose. `make` has built the
# programs, the guest and the images before.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

# cargo-nextest is either installed or was built by the set-up.
PATH=$PATH:$(printf '%s:' "$CACHE"/tools/cargo-nextest-*/bin)
start=$SECONDS
case ${1:-} in
-p) cargo nextest run --locked "$@" ;;
*) cargo nextest run --workspace --locked "$@" ;;
esac
say "all tests passed in $((SECONDS - start)) s"
