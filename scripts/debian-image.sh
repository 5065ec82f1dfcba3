#!/usr/bin/env bash
# Makes a container image of a real Debian root from Debian's packages and prints the path of its docker-archive:
#
#   debian-image.sh demo     three layers: a minimal root; tools unpacked over it; edits, whiteouts, an opaque folder
#   debian-image.sh large    one layer of more than 400 MB of tar, for measuring conversion
#
# The result is kept in the cache under a hash of what it is made from.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
. "$here/scripts/common.sh"
kind=${1:?usage: debian-image.sh demo|large}
base_packages=()
case $kind in
demo) ;;
large) base_packages=(gcc g++ python3 perl git cmake) ;;
*) say "unknown kind: $kind"; exit 2 ;;
esac

dir=$CACHE/images
out=$dir/debian-$kind-$(hash_inputs "$0" "=$kind").tar
mkdir -p "$dir"
exec 9>"$dir/.lock-$kind"
flock 9
[ -e "$out" ] && { printf '%s\n' "$out"; exit 0; }
rm -rf "$dir/.tmp-$kind".*
tmp=$(mktemp -d "$dir/.tmp-$kind.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
export SOURCE_DATE_EPOCH=1700000000
tar_layer() { tar --sort=name --format=pax --numeric-owner --owner=0 --group=0 --mtime=@$SOURCE_DATE_EPOCH \
    --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime -C "$1" -cf "$2" .; }

say "image $kind: collecting Debian packages (one to three minutes)"
mode=root
[ "$(id -u)" = 0 ] || mode=unshare
mmdebstrap --quiet --mode=$mode --variant=minbase --format=tar \
    ${base_packages:+--include="$(IFS=,; printf '%s' "${base_packages[*]}")"} \
    --aptopt='APT::Install-Recommends "false"' bookworm "$tmp/layer1.tar" "$(debian_mirror)" 2>>"$LOG" >&2
layers=("$tmp/layer1.tar")

if [ "$kind" = demo ]; then
    mkdir "$tmp/l2" "$tmp/l3"
    (cd "$tmp" && apt-get -qq download busybox-static:amd64 attr:amd64 2>>"$LOG" >&2 && for deb in *.deb; do dpkg -x "$deb" l2; done)
    mkdir -p "$tmp/l2/usr/bin" # the base is usr-merged: a real /bin here would hide its link
    mv "$tmp"/l2/bin/* "$tmp/l2/usr/bin/"
    rmdir "$tmp/l2/bin"
    tar_layer "$tmp/l2" "$tmp/layer2.tar"
    mkdir -p "$tmp/l3/etc" "$tmp/l3/usr/share/locale" "$tmp/l3/usr/share/doc"
    printf 'This root came through Cloister.\n' >"$tmp/l3/etc/motd"
    : >"$tmp/l3/etc/.wh.issue"
    : >"$tmp/l3/usr/share/locale/.wh..wh..opq"
    : >"$tmp/l3/usr/share/doc/.wh..wh..opq"
    tar_layer "$tmp/l3" "$tmp/layer3.tar"
    layers+=("$tmp/layer2.tar" "$tmp/layer3.tar")
fi

mkdir "$tmp/archive"
diff_ids=() names=()
for layer in "${layers[@]}"; do
    diff_ids+=("\"sha256:$(sha256sum <"$layer" | cut -d' ' -f1)\"")
    gzip -6 -n "$layer"
    digest=$(sha256sum <"$layer.gz" | cut -d' ' -f1)
    mv "$layer.gz" "$tmp/archive/$digest.tar.gz"
    names+=("\"$digest.tar.gz\"")
done
join() { local IFS=,; printf '%s' "$*"; }
printf '{"architecture":"amd64","os":"linux","created":"2023-11-14T22:13:20Z","config":{"Cmd":["/bin/bash"],"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},"rootfs":{"type":"layers","diff_ids":[%s]}}' \
    "$(join "${diff_ids[@]}")" >"$tmp/archive/config.json"
config=$(sha256sum <"$tmp/archive/config.json" | cut -d' ' -f1)
mv "$tmp/archive/config.json" "$tmp/archive/$config.json"
printf '[{"Config":"%s.json","RepoTags":["debian-%s:bookworm"],"Layers":[%s]}]' "$config" "$kind" "$(join "${names[@]}")" \
    >"$tmp/archive/manifest.json"
tar --sort=name --numeric-owner --owner=0 --group=0 --mtime=@0 -C "$tmp/archive" -cf "$tmp/image.tar" .
publish "$tmp/image.tar" "$out"
printf '%s\n' "$out"
