#!/usr/bin/env bash
# Boots the guest kernel N times with an init that does nothing and prints where the time goes until PID 1 runs.
#
#   boot-profile.sh [-n RUNS] [-k KERNEL_DIR] [-a 'EXTRA KERNEL ARGUMENTS'] [-c CMDLINE_FILE] [-i] [-- QEMU COMMAND…]
#
# -i adds the initcalls of 1 ms and more (from one more boot, with initcall_debug kept off the console).
# The QEMU command defaults to the one below; it must not contain -kernel, -initrd, -append, -serial, -mon.
# Needs gcc (for boot-profile.c), QEMU, and a kernel from build.sh. Times are wall-clock milliseconds, median and range.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../scripts/common.sh"

runs=10 kernel=$CACHE/kernel/default-x86_64 extra='' initcalls='' cmdline=$here/cmdline
while getopts 'n:k:a:c:i' flag; do
    case $flag in
        n) runs=$OPTARG ;; k) kernel=$OPTARG ;; a) extra=$OPTARG ;; c) cmdline=$OPTARG ;; i) initcalls=1 ;;
        *) exit 2 ;;
    esac
done
shift $((OPTIND - 1))
if [ $# != 0 ]; then qemu=("$@"); else
    qemu=(qemu-system-x86_64 -M q35,accel=tcg,smbus=off,sata=off,usb=off,vmport=off,hpet=off,graphics=off,pit=off,pic=off
        -bios /usr/share/qemu/qboot.rom -cpu max,la57=off -m 256 -smp 1 -nodefaults -no-user-config -display none -no-reboot)
fi
[ -e "$kernel/vmlinux" ] || { say "boot-profile: no kernel in $kernel: run kernel/build.sh first"; exit 1; }

work=$(mktemp -d "${TMPDIR:-/tmp}/boot-profile.XXXXXX")
qemu_pid=
trap '[ -z "$qemu_pid" ] || kill "$qemu_pid" 2>/dev/null || true; rm -rf "$work"' EXIT
gcc -O2 -Wall -Wextra -static -o "$work/agent" "$here/boot-profile.c"
"$here/initramfs.sh" "$work/agent" -o "$work/initramfs" >/dev/null 2>&1
mkfifo "$work/serial" "$work/in" "$work/out"

stamp() { while IFS= read -r line; do printf '%s %s\n' "$EPOCHREALTIME" "${line%$'\r'}"; done; }

# boot NAME ARGUMENTS [INIT ARGUMENTS]: one boot; leaves $work/NAME.{start,serial,qmp} with a time before each line.
boot() {
    local readers=()
    stamp <"$work/serial" >"$work/$1.serial" & readers+=($!)
    stamp <"$work/out" >"$work/$1.qmp" & readers+=($!)
    { printf '{"execute":"qmp_capabilities"}\n'; sleep 60; } >"$work/in" & local feeder=$!
    printf '%s\n' "$EPOCHREALTIME" >"$work/$1.start"
    timeout 60 "${qemu[@]}" -kernel "$kernel/vmlinux" -initrd "$work/initramfs" -append "$2${3:+ -- $3}" \
        -chardev file,id=serial,path="$work/serial" -serial chardev:serial -qmp stdio \
        <"$work/in" >"$work/out" 2>"$work/$1.err" & qemu_pid=$!
    wait "$qemu_pid" || { say "boot-profile: QEMU failed or took 60 s: $(tail -n 1 "$work/$1.err")"; exit 1; }
    qemu_pid=
    wait "${readers[@]}"
    kill "$feeder" 2>/dev/null || true
    wait "$feeder" 2>/dev/null || true
    grep -q 'profile-pid1' "$work/$1.serial" || { say "boot-profile: PID 1 never ran: $(tail -n 1 "$work/$1.serial")"; exit 1; }
}

# Quiet boots give the true total.
# The host's TSC frequency goes with it, as the VMM passes it in emulation: measured by the guest it is wrong on a busy host.
arguments="$(cat "$cmdline") tsc_early_khz=$("$work/agent" tsc)${extra:+ $extra}"
for ((run = 1; run <= runs; run++)); do
    boot run "$arguments"
    awk -v start="$(cat "$work/run.start")" '
        FILENAME ~ /qmp$/ && /"return"/ && !machine { machine = $1 }
        /profile-pid1/ { pid1 = $1 }
        END { printf "%.1f %.1f %.1f\n", (machine - start) * 1000, (pid1 - machine) * 1000, (pid1 - start) * 1000 }
    ' "$work/run.qmp" "$work/run.serial" >>"$work/times"
    # One boot with an early console tells when the firmware is done; its output would spoil the other figures.
    boot early "${arguments/quiet/} earlyprintk=serial,ttyS0,115200"
    awk '
        FILENAME ~ /qmp$/ && /"return"/ && !machine { machine = $1 }
        /Linux version/ && !first { first = $1 }
        END { printf "%.1f\n", (first - machine) * 1000 }
    ' "$work/early.qmp" "$work/early.serial" >>"$work/early"
done

column() { # column FILE N LABEL: median and range of one column of the runs
    sort -n -k "$2,$2" "$1" | awk -v c="$2" -v label="$3" '
        { v[NR] = $c } END { printf "| %s | %.0f | %.0f–%.0f |\n", label, v[int((NR + 1) / 2)], v[1], v[NR] }'
}
printf 'Arguments: %s\n\n| step (%d boots) | median, ms | range |\n| --- | ---: | --- |\n' "$arguments" "$runs"
column "$work/times" 1 'QEMU process start → machine made, CPU runs'
column "$work/early" 1 'CPU runs → first line of the kernel (firmware, loading)'
column "$work/times" 2 'CPU runs → PID 1 (firmware included)'
column "$work/times" 3 'QEMU process start → PID 1'

[ -n "$initcalls" ] || exit 0
# Without the legacy timer the kernel's log has no usable times in its first half: it comes back for this boot.
qemu=("${qemu[@]/,pit=off,pic=off/}")
boot debug "$arguments initcall_debug log_buf_len=4M" dump
printf '\n| initcall (one boot, 1 ms and more) | ms |\n| --- | ---: |\n'
sed -n 's/.*initcall \([A-Za-z0-9_]*\).* returned .* after \([0-9]*\) usecs.*/\2 \1/p' "$work/debug.serial" |
    sort -rn | awk '{ all += $1 } $1 >= 1000 { printf "| %s | %.1f |\n", $2, $1 / 1000 } END { printf "| all %d initcalls | %.1f |\n", NR, all / 1000 }'
printf '\nGaps of 5 ms and more between two lines of the kernel log:\n'
sed -n 's/^[0-9.]* <[0-9]*>\[ *\([0-9.]*\)\] \(.*\)/\1 \2/p' "$work/debug.serial" | grep -vE '^[0-9.]+ (calling|initcall) ' |
    awk 'NR > 1 && $1 - last >= 0.005 { printf "%8.1f ms until  %s\n", ($1 - last) * 1000, $0 } { last = $1 }'
