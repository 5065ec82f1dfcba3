#!/usr/bin/env bash
# buildkit.sh [--print-dir]: builds BuildKit from Debian's source packages, in a Debian 13 root made for it, and prints the folder with
# the static programs buildkitd, buildctl, runc and busybox, and ca-certificates.crt. Kept in the cache under a hash of this
# script and of the versions of the packages.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
. "$here/scripts/common.sh"

# BuildKit's own source is in docker.io's, as a second tarball; the programs are built from the -dev packages of the same
# version, which carry Debian's security patches. runc's source comes with golang-github-opencontainers-runc-dev.
version() { apt-cache madison "$1" | cut -d'|' -f2,3 | sed -n 's/^ *\([^ ]*\) .* trixie\/.*/\1/p' | head -n 1; }
inputs=$(hash_inputs "$0" "=$(version golang-github-docker-docker-dev)" "=$(version runc)" "=$(version busybox-static)")
dir=$CACHE/buildkit
out=$dir/$inputs
mkdir -p "$dir"
if [ "${1:-}" = --print-dir ]; then printf '%s\n' "$out"; exit 0; fi
exec 9>"$dir/.lock"
if ! flock -n 9; then
    say "buildkit: another build is running, waiting for it"
    flock 9
fi
[ -e "$out" ] && { printf '%s\n' "$out"; exit 0; }
rm -rf "$dir"/.tmp.*
tmp=$(mktemp -d "$dir/.tmp.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
mkdir "$tmp/out"
log=$dir/build-$inputs.log
: >"$log"

# What BuildKit and runc import, as packages.
packages=(golang-go dpkg-dev gcc libc6-dev pkgconf libseccomp-dev busybox-static ca-certificates
    golang-github-docker-docker-dev golang-github-gofrs-flock-dev golang-github-google-shlex-dev
    golang-github-aws-aws-sdk-go-v2-dev golang-github-agext-levenshtein-dev golang-github-dimchansky-utfbom-dev
    golang-github-vbatts-tar-split-dev golang-github-seccomp-libseccomp-golang-dev
    golang-github-checkpoint-restore-go-criu-dev golang-github-mrunalp-fileutils-dev golang-gocapability-dev
    golang-github-urfave-cli-dev)

# Runs inside the root.
cat >"$tmp/build.sh" <<'INSIDE'
set -eu
mkdir -p /build/out
cd /build
# Some mirrors answer 404 for names with a + now and then; of the source only one tarball is needed.
for try in 1 2 3; do
    apt-get -q source --download-only docker.io || true
    ls *.orig-buildkit.tar.* >/dev/null 2>&1 && break
done
source=$(ls /build/*.orig-buildkit.tar.*)
bk=/build/gopath/src/github.com/moby/buildkit
mkdir -p "${bk%/*}"
cp -a /usr/share/gocode/src/github.com/moby/buildkit "$bk"
# The packages lack some vendored modules and the module file; the code itself is theirs, patched.
tar -xf "$source" -C "$bk" --strip-components=2 --wildcards '*/vendor/*' ./buildkit/go.mod
# docker.io 26.1 carries this release; its source says no version.
version=v0.13.2+debian
runc=$(dpkg-query -W -f '${Version}' golang-github-opencontainers-runc-dev | sed 's/+.*//')
export GO111MODULE=off GOPROXY=off GOTOOLCHAIN=local GOCACHE=/build/gocache GOFLAGS='-p=2 -trimpath'
for program in buildkitd buildctl; do
    echo "== $program"
    GOPATH=/build/gopath:/usr/share/gocode CGO_ENABLED=0 go build -tags 'osusergo netgo static_build seccomp' \
        -ldflags "-s -w -X github.com/moby/buildkit/version.Version=$version" -o "out/$program" "github.com/moby/buildkit/cmd/$program"
done
echo "== runc"
GOPATH=/usr/share/gocode CGO_ENABLED=1 go build -tags 'osusergo netgo seccomp' \
    -ldflags "-s -w -linkmode external -extldflags -static -X main.version=$runc+debian" -o out/runc github.com/opencontainers/runc
cp "$(command -v busybox)" out/busybox
cp /etc/ssl/certs/ca-certificates.crt out/
INSIDE

say "buildkit: building from Debian's packages (8 to 10 minutes once), log in $log"
start=$SECONDS
mirror=$(debian_mirror)
mode=root
[ "$(id -u)" = 0 ] || mode=unshare
join() { local IFS=,; printf '%s' "$*"; }
TMPDIR=$tmp nice -n 10 mmdebstrap --mode=$mode --variant=apt --format=null --include="$(join "${packages[@]}")" \
    --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Retries "5"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --customize-hook="copy-in '$tmp/build.sh' /" \
    --customize-hook='chroot "$1" bash /build.sh' \
    --customize-hook="sync-out /build/out '$tmp/out'" \
    trixie /dev/null "deb $mirror trixie main" "deb-src $mirror trixie main" >>"$log" 2>&1 || {
    say "buildkit: failed: $(grep -E '^(E:|[^ ]+\.go:|.*cannot find package)' "$log" | tail -n 1)"
    exit 1
}
chmod 755 "$tmp/out" "$tmp"/out/*
"$tmp/out/buildkitd" --version >&2
publish "$tmp/out" "$out"
say "buildkit: built in $((SECONDS - start)) s"
printf '%s\n' "$out"
