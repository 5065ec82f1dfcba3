#!/usr/bin/env bash
# Format, lint, documents, charts, dependencies and licences.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

say "format"
cargo fmt --all --check
say "lint"
cargo clippy --workspace --all-targets --locked -- -D warnings
say "documents"
RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --locked --quiet
say "shell scripts parse"
for script in $(git ls-files '*.sh') .ci/run; do bash -n "$script"; done
say "charts"
scripts/charts.sh
deny=$(ls -d "$CACHE"/tools/cargo-deny-*/bin/cargo-deny 2>/dev/null | tail -n 1)
if [ -n "$deny" ]; then
    say "dependencies and licences"
    "$deny" --locked check --hide-inclusion-graph bans licenses sources
else
    say "dependencies and licences: run scripts/setup.sh --ci first"
    exit 1
fi
