#!/usr/bin/env bash
# Builds the guest kernel from Debian's kernel source package and publishes it under
# $CACHE/kernel/<hash of the inputs>/{vmlinux,config,kernel.json}; prints that folder. Safe to run twice at once (the
# second waits and finds the result) and after an interruption (the object tree is continued).
#
#   build.sh [--arch x86_64|arm64] [--config-only] [--keep-tree] [--print-dir]
#
# --config-only  generate and check the .config, publish nothing but it (prints its path); all there is for arm64 so far
# --keep-tree    keep sources and objects for a quick next build; otherwise they go once the kernel is published
# --print-dir    print the folder the kernel has or would have, build nothing
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../scripts/common.sh"

series=6.12
tarball=/usr/src/linux-source-$series.tar.xz
arch=x86_64 config_only= keep_tree= print_dir=
while [ $# != 0 ]; do
    case $1 in
        --arch) arch=${2:?--arch needs a name}; shift ;;
        --config-only) config_only=1 ;;
        --keep-tree) keep_tree=1 ;;
        --print-dir) print_dir=1 ;;
        *) say "kernel: unknown argument $1 (see the head of $0)"; exit 2 ;;
    esac
    shift
done
fragments=("$here/config/common.config" "$here/config/$arch.config" "$here/config/builder.config")

fail() { say "kernel: $*"; exit 1; }

# Kconfig asks the compiler what it can do, so even a mere configuration needs one for the right architecture.
case $arch in
    x86_64) cross=x86_64-linux-gnu- ;;
    arm64) cross=aarch64-linux-gnu-
        [ -n "$config_only" ] || fail "arm64 is configured and checked, not built: add --config-only" ;;
    *) fail "no configuration for architecture $arch (x86_64 or arm64)" ;;
esac
command -v "${cross}gcc" >/dev/null || fail "${cross}gcc is missing: install gcc-${cross%-}"

[ -r "$tarball" ] || fail "$tarball is missing: install linux-source-$series (scripts/setup.sh does)"
package=$(dpkg-query -W -f '${Version}' "linux-source-$series") || fail "package linux-source-$series is not installed"
compiler=$("${cross}gcc" --version | head -n 1)
# The hash covers what the bytes of vmlinux depend on. The git stamp is left out on purpose: a commit elsewhere must
# not cost a rebuild, so the stamp stands in kernel.json and not in the image.
inputs=$( (cd "$here" && cat config/common.config "config/$arch.config" config/builder.config build.sh
    printf '%s\n' "$arch" "$package" "$compiler" "$("${cross}ld" --version | head -n 1)") | sha256sum | cut -c 1-16)

root=$CACHE/kernel
final=$root/$inputs
mkdir -p "$root"
if [ -n "$print_dir" ]; then printf '%s\n' "$final"; exit 0; fi

# MAJOR.MINOR.PATCH-DATE-GITSHA of the last commit that changed an input, so a clean checkout makes the same stamp.
stamp() {
    local version commit date dirty=
    version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"$/\1/p' "$here/../Cargo.toml")
    commit=$(git -C "$here" log -1 --format=%h --abbrev=12 -- config build.sh 2>/dev/null || true)
    if [ -z "$commit" ]; then printf '%s-00000000-uncommitted\n' "$version"; return; fi
    date=$(TZ=UTC0 git -C "$here" log -1 --format=%cd --date=format-local:%Y%m%d -- config build.sh)
    [ -z "$(git -C "$here" status --porcelain -- config build.sh)" ] || dirty=-dirty
    printf '%s-%s-%s%s\n' "$version" "$date" "$commit" "$dirty"
}

# The stable name by which other programs find the newest kernel of an architecture.
point_default() {
    [ "$(readlink "$root/default-$arch" 2>/dev/null)" = "$inputs" ] && return
    ln -sfn "$inputs" "$root/.default-$arch.$$"
    mv -T "$root/.default-$arch.$$" "$root/default-$arch"
}

describe() { # describe DIR RELEASE: writes DIR/kernel.json
    local json
    json=$(cat <<JSON
{
  "version": "$(stamp)",
  "release": "$2",
  "arch": "$arch",
  "sha256": "$(sha256sum "$1/vmlinux" | cut -d ' ' -f 1)",
  "size": $(stat -c %s "$1/vmlinux"),
  "config_sha256": "$(sha256sum "$1/config" | cut -d ' ' -f 1)",
  "inputs": "$inputs",
  "source": "linux-source-$series $package",
  "compiler": "$compiler"
}
JSON
    )
    [ "$json" = "$(cat "$1/kernel.json" 2>/dev/null)" ] && return
    printf '%s\n' "$json" >"$1/.kernel.json.$$"
    mv -T "$1/.kernel.json.$$" "$1/kernel.json"
}

config=$root/config-$arch-$inputs
known() { # prints what an earlier run published, without waiting for a build of something else
    if [ -n "$config_only" ]; then
        [ -e "$config" ] || return 1
        say "kernel: configuration of $arch was generated and checked before"
        printf '%s\n' "$config"
    else
        [ -e "$final/vmlinux" ] && [ -e "$final/config" ] || return 1
        # Only its stamp may be older than the checkout.
        describe "$final" "$(sed -n 's/^  "release": "\(.*\)",$/\1/p' "$final/kernel.json")"
        point_default
        say "kernel: ready in $final"
        printf '%s\n' "$final"
    fi
}

if known; then exit 0; fi
exec 8>"$root/.lock"
if ! flock -n 8; then
    say "kernel: another build is running, waiting for it"
    flock 8
fi
if known; then exit 0; fi

src=$root/.src-$package out=$root/.out-$package-$arch
log=$root/build-$arch-$inputs.log
if [ ! -e "$src" ]; then
    say "kernel: unpacking linux-source-$series $package"
    rm -rf "$src.tmp"
    mkdir "$src.tmp"
    tar -xf "$tarball" -C "$src.tmp" --strip-components=1
    mv -T "$src.tmp" "$src"
fi
mkdir -p "$out"

# Everything kbuild would otherwise take from the clock, the user or the machine.
SOURCE_DATE_EPOCH=$(stat -c %Y "$src/Makefile")
KBUILD_BUILD_TIMESTAMP=$(date -u -d "@$SOURCE_DATE_EPOCH")
export SOURCE_DATE_EPOCH KBUILD_BUILD_TIMESTAMP
export KBUILD_BUILD_USER=cloister KBUILD_BUILD_HOST=cloister KBUILD_BUILD_VERSION=1 LC_ALL=C TZ=UTC0
kmake() { make -C "$src" O="$out" ARCH="$arch" CROSS_COMPILE="$cross" LOCALVERSION= "$@"; }
clean_up() { [ -n "$keep_tree" ] || rm -rf "$src" "$out"; }

say "kernel: generating the $arch configuration"
{
    printf 'CONFIG_LOCALVERSION="-cloister"\n# CONFIG_LOCALVERSION_AUTO is not set\n'
    cat "${fragments[@]}"
} >"$out/wanted"
kmake -s KCONFIG_ALLCONFIG="$out/wanted" allnoconfig >"$log" 2>&1 || fail "allnoconfig failed, see $log"
"$here/check-config.sh" "$out/.config" "${fragments[@]}"
say "kernel: $(grep -c '^CONFIG_.*=[^"]' "$out/.config") options on"
if [ -n "$config_only" ]; then
    cp "$out/.config" "$out/.config.publish"
    publish "$out/.config.publish" "$config"
    clean_up
    say "kernel: configuration of $arch generated and checked (not built)"
    printf '%s\n' "$config"
    exit 0
fi

# Lines that kbuild prints for a whole build of this configuration; only the percentage depends on it.
expected=2180
say "kernel: building with $(nproc) jobs, log in $log"
start=$(date +%s)
kmake -j"$(nproc)" vmlinux 2>&1 | tee -a "$log" | awk -v expected="$expected" '
    /^  (CC|AS|AR|LD|HOSTCC|GEN|UPD) / {
        n++; percent = int(n * 100 / expected); if (percent > 99) percent = 99
        if (percent >= last + 10) { last = percent - percent % 10; printf "==> kernel: %d %%\n", last; fflush() }
    }' >&2 || fail "make failed, see $log: $(grep -m 1 -E 'error|Error' "$log" || tail -n 1 "$log")"
say "kernel: built in $(($(date +%s) - start)) s"

tmp=$root/.tmp-$inputs
rm -rf "$tmp"
mkdir -p "$tmp"
# Symbols and notes that nobody reads at boot go; the PVH entry note (PT_NOTE) must stay and does.
"${cross}strip" --strip-all -o "$tmp/vmlinux" "$out/vmlinux"
readelf -n "$tmp/vmlinux" 2>/dev/null | grep -q Xen || [ "$arch" != x86_64 ] || fail "the built vmlinux has no PVH entry note"
cp "$out/.config" "$tmp/config"
describe "$tmp" "$(cat "$out/include/config/kernel.release")"
# The initramfs belongs to the checkout's agent, not to the kernel; the last one stays in use until it is packed anew.
cp -p "$root/default-$arch/initramfs" "$tmp/" 2>/dev/null || true
publish "$tmp" "$final"
point_default
clean_up
say "kernel: ready in $final ($(du -m "$final/vmlinux" | cut -f 1) MiB)"
printf '%s\n' "$final"
