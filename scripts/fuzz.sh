#!/usr/bin/env bash
# fuzz.sh [TARGET…]: builds the fuzz targets with AddressSanitizer and runs each for FUZZ_SECONDS (default 20).
#
# Plain cargo, no cargo-fuzz: libFuzzer comes with the crate libfuzzer-sys, coverage from rustc's own pass. The sanitizer is
# unstable, so the stable compiler is told to allow it. Seeds stand in fuzz/seeds; what is found grows target/fuzz/corpus. An input
# that fails is kept in target/fuzz/artifacts; `target/fuzz/TRIPLE/release/TARGET FILE` runs it again.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh
[ $# -gt 0 ] || set -- tar_layer inflate erofs_reader manifest protocol vsock_header context_patterns build_output source_archive

seconds=${FUZZ_SECONDS:-20}
triple=$(rustc -vV | sed -n 's/^host: //p')
out=target/fuzz
say "fuzz targets: building (minutes the first time)"
flags=(-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Cdebug-assertions
    -Zsanitizer=address -Ccodegen-units=4)
RUSTC_BOOTSTRAP=1 RUSTFLAGS="${flags[*]}" cargo build --quiet --release --locked --manifest-path fuzz/Cargo.toml \
    --target "$triple" --target-dir "$out"

# A scoped thread is joined before its thread-locals are gone, which looks like a leak; endless growth meets the memory limit instead.
# A busy machine takes seconds for what takes milliseconds, so the time limit for one input is wide.
export ASAN_OPTIONS=detect_leaks=0
for target in "$@"; do
    mkdir -p "$out/corpus/$target" "$out/artifacts/$target"
    log=$out/$target.log
    if ! "$out/$triple/release/$target" -max_total_time="$seconds" -timeout=60 -detect_leaks=0 -rss_limit_mb=1024 -max_len=16384 -print_final_stats=1 \
        -artifact_prefix="$out/artifacts/$target/" "$out/corpus/$target" "fuzz/seeds/$target" >"$log" 2>&1; then
        tail -n 40 "$log" >&2
        say "$target failed; the whole output is in $log"
        exit 1
    fi
    say "$target: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs in $seconds s, $(
        grep -o 'cov: [0-9]* ft: [0-9]* corp: [0-9]*' "$log" | tail -n 1), none failed"
done
