#!/usr/bin/env bash
# bench.sh [--bin bench|bench-pods] [OPTION…]: the figures of docs/performance.md, each beside its peer in the same run, into
# target/bench.json or target/bench-pods.json.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh
program=bench
if [ "${1:-}" = --bin ]; then
    program=$2
    shift 2
fi
cargo build --quiet --release --locked -p cloister-e2e --bin "$program"
exec "${CARGO_TARGET_DIR:-target}/release/$program" "$@"
