#!/usr/bin/env bash
# check-config.sh CONFIG FRAGMENT…: compares a generated .config with what the fragments ask for. Kconfig drops a line
# silently when a dependency is missing or a name changed with the kernel version; here each such line is an error.
set -euo pipefail
config=$1
shift
awk -v generated="$config" '
    FNR == 1 { file++ }
    file == 1 {
        if (match($0, /^CONFIG_[A-Za-z0-9_]+=/)) have[substr($0, 1, RLENGTH - 1)] = substr($0, RLENGTH + 1)
        next
    }
    /^CONFIG_[A-Za-z0-9_]+=/ {
        name = substr($0, 1, index($0, "=") - 1); want = substr($0, index($0, "=") + 1)
        got = (name in have) ? have[name] : "not set"
        checked++
        if (got != want) {
            printf "kernel: required option %s=%s is %s (asked by %s, generated %s)\n", name, want, got, FILENAME, generated
            bad++
        }
    }
    /^# CONFIG_[A-Za-z0-9_]+ is not set$/ {
        checked++
        if ($2 in have) {
            printf "kernel: option %s must be off and is %s (asked by %s, generated %s)\n", $2, have[$2], FILENAME, generated
            bad++
        }
    }
    END {
        if (bad) { printf "kernel: %d of %d options are wrong\n", bad, checked; exit 1 }
        printf "kernel: %d options checked\n", checked
    }' "$config" "$@" >&2
