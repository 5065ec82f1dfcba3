#!/usr/bin/env bash
# Every test of the workspace. `make test` has built the programs, the guest and the images before.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

# cargo-nextest is either installed or was built by the set-up.
PATH=$PATH:$(printf '%s:' "$CACHE"/tools/cargo-nextest-*/bin)
start=$SECONDS
cargo nextest run --workspace --locked "$@"
say "all tests passed in $((SECONDS - start)) s"
