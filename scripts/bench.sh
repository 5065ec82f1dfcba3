#!/usr/bin/env bash
# The figures of docs/performance.md, each beside its peer in the same run, into target/bench.json.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh
cargo build --quiet --release --locked -p cloister-e2e --bin bench
exec "${CARGO_TARGET_DIR:-target}/release/bench" "$@"
