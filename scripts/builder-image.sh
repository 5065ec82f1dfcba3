#!/usr/bin/env bash
# builder-image.sh: makes the image of the microVM that builds images, from the programs of buildkit.sh, and prints the path of its OCI
# archive: one zstd layer with buildkitd, buildctl, runc and a shell. Kept in the cache under a hash of what it is made
# from; $CACHE/builder/default.tar leads to the newest. Any moby/buildkit image can stand in for it.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
. "$here/scripts/common.sh"
programs=$("$here/scripts/buildkit.sh")

dir=$CACHE/builder
name=builder-$(hash_inputs "$0" "=${programs##*/}").tar
mkdir -p "$dir"
exec 9>"$dir/.lock"
flock 9
point_default() {
    [ "$(readlink "$dir/default.tar" 2>/dev/null)" = "$name" ] && return
    ln -sfn "$name" "$dir/.default.$$"
    mv -T "$dir/.default.$$" "$dir/default.tar"
}
if [ -e "$dir/$name" ]; then
    point_default
    printf '%s\n' "$dir/$name"
    exit 0
fi
rm -rf "$dir"/.tmp.*
tmp=$(mktemp -d "$dir/.tmp.XXXXXX")
trap 'rm -rf "$tmp"' EXIT

root=$tmp/root
mkdir -p "$root"/{bin,dev,etc/ssl/certs,proc,root,run,sys,tmp,usr/bin,usr/sbin,sbin,var/lib/buildkit}
chmod 1777 "$root/tmp"
chmod 700 "$root/root"
cp "$programs"/{buildkitd,buildctl,runc} "$root/usr/bin/"
cp "$programs/busybox" "$root/bin/"
for applet in $("$programs/busybox" --list); do
    [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
done
cp "$programs/ca-certificates.crt" "$root/etc/ssl/certs/"
printf 'root:x:0:0:root:/root:/bin/sh\n' >"$root/etc/passwd"
printf 'root:x:0:\n' >"$root/etc/group"

reproducible=(--sort=name --format=gnu --numeric-owner --owner=0 --group=0 --mtime=@0)
tar "${reproducible[@]}" -C "$root" -cf "$tmp/layer.tar" .
diff_id=$(sha256sum <"$tmp/layer.tar" | cut -d' ' -f1)
# The one large blob is read once for each machine; 19 takes four times as long to write for a tenth of its size.
nice -n 10 zstd -q -10 --rm "$tmp/layer.tar" -o "$tmp/layer.zst"

blobs=$tmp/image/blobs/sha256
mkdir -p "$blobs"
add() { # add FILE: moves a blob to its name and prints `"digest":…,"size":…`
    local digest
    digest=$(sha256sum <"$1" | cut -d' ' -f1)
    printf '"digest":"sha256:%s","size":%s' "$digest" "$(stat -c %s "$1")"
    mv "$1" "$blobs/$digest"
}
layer=$(add "$tmp/layer.zst")
# The variable makes buildkitd move itself out of its cgroup's root, so that it can give the controllers on.
printf '{"architecture":"amd64","os":"linux","created":"1970-01-01T00:00:00Z","config":{"Entrypoint":["buildkitd"],"Env":["PATH=/usr/bin:/bin","BUILDKIT_SETUP_CGROUPV2_ROOT=1"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
    "$diff_id" >"$tmp/config.json"
oci=application/vnd.oci.image
config=$(add "$tmp/config.json")
printf '{"schemaVersion":2,"mediaType":"%s.manifest.v1+json","config":{"mediaType":"%s.config.v1+json",%s},"layers":[{"mediaType":"%s.layer.v1.tar+zstd",%s}]}' \
    $oci $oci "$config" $oci "$layer" >"$tmp/manifest.json"
manifest=$(add "$tmp/manifest.json")
printf '{"schemaVersion":2,"mediaType":"%s.index.v1+json","manifests":[{"mediaType":"%s.manifest.v1+json",%s}]}' \
    $oci $oci "$manifest" >"$tmp/image/index.json"
printf '{"imageLayoutVersion":"1.0.0"}' >"$tmp/image/oci-layout"
tar "${reproducible[@]}" -C "$tmp/image" -cf "$tmp/image.tar" oci-layout index.json blobs
publish "$tmp/image.tar" "$dir/$name"
point_default
say "builder image: $(du -m "$dir/$name" | cut -f1) MiB in $dir/$name"
printf '%s\n' "$dir/$name"
