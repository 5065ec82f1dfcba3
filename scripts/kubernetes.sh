#!/usr/bin/env bash
# Builds the programs of a small Kubernetes from Debian bookworm's source package and prints the folder that they are in:
#
#   kubernetes.sh [--print-dir]
#
# kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, and kubelet-cri-v1 for containerd 2.x, which speaks no
# CRI v1alpha2 any more: the same kubelet and the same messages under the service's newer name. For tests only, with two
# changes that spare them what later releases do better: kubelets remove what is left of ended pods every five seconds
# instead of every minute, for as long the object of a deleted pod stays; and the API server merges lists with keys also
# in definitions with an int-or-string, where it took every list for one value. Kept in the cache under a hash of this
# file; an interrupted build is continued.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
. "$here/scripts/common.sh"

release=1.20.2
root=$CACHE/kubernetes
inputs=$(hash_inputs "$0")
final=$root/$inputs
case ${1:-} in
--print-dir) printf '%s\n' "$final"; exit 0 ;;
esac
[ -e "$final" ] && { printf '%s\n' "$final"; exit 0; }

mkdir -p "$root"
exec 8>"$root/.lock"
flock 8
[ -e "$final" ] && { printf '%s\n' "$final"; exit 0; }
find "$root" -maxdepth 1 -name '.work-*' ! -name ".work-$inputs" -exec rm -rf {} +
work=$root/.work-$inputs log=$root/build-$inputs.log
mkdir -p "$work"
cd "$work"
fail() { say "kubernetes: $*; see $log"; exit 1; }

# apt with a list of its own, so that the machine's configuration needs no source packages.
source_apt() {
    apt-get -qq -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=- \
        -o Dir::State::Lists="$work/lists" -o APT::Sandbox::User=root -o Acquire::Retries=3 "$@" >>"$log" 2>&1
}

# change FILE OLD NEW: replaces a part of a line of the source, which has to be there.
change() {
    local file=gopath/src/k8s.io/kubernetes/$1
    grep -qF "$2" "$file" || fail "$1 is not what it was"
    sed -i "s/$2/$3/" "$file"
}

fetch() {
    mkdir -p lists/partial packages
    printf 'deb-src [signed-by=%s] %s bookworm main\n' /usr/share/keyrings/debian-archive-keyring.gpg \
        "$(debian_mirror)" >sources.list
    source_apt update || fail "cannot read the list of source packages"
    source_apt --download-only source kubernetes || fail "cannot fetch the source package"
    local package
    for package in golang-1.19-go golang-1.19-src golang-github-modern-go-reflect2-dev; do
        (cd packages && apt-get -qq -o Acquire::Retries=3 download "$package" >>"$log" 2>&1) || fail "cannot fetch $package"
    done
    for package in packages/*.deb; do dpkg -x "$package" go; done
    rm -rf gopath
    mkdir -p gopath/src/k8s.io
    dpkg-source --no-check -x kubernetes_*.dsc gopath/src/k8s.io/kubernetes >>"$log" 2>&1 || fail "cannot unpack the source"
    sed -n 's/^Version: //p' kubernetes_*.dsc >version
    # The vendored one crashes with this Go as soon as a custom resource is read.
    local vendored=gopath/src/k8s.io/kubernetes/vendor/github.com/modern-go/reflect2
    rm -f "$vendored"/*.go "$vendored"/*.s
    cp go/usr/share/gocode/src/github.com/modern-go/reflect2/*.{go,s} "$vendored/"
    rm -f "$vendored"/*_test.go
    change pkg/kubelet/kubelet.go 'ContainerGCPeriod = time.Minute' 'ContainerGCPeriod = 5 * time.Second'
    change staging/src/k8s.io/apiextensions-apiserver/pkg/controller/openapi/builder/builder.go \
        'schema = schema.Unfold()' 'if !opts.StripValueValidation { schema = schema.Unfold() }'
    touch fetched
}
[ -e fetched ] || { say "kubernetes: fetching $release and Go from Debian"; fetch; }

export GOROOT=$work/go/usr/lib/go-1.19 GOPATH=$work/gopath GOCACHE=$work/cache GOTMPDIR=$work/tmp
export GO111MODULE=off GOPROXY=off GOFLAGS= CGO_ENABLED=0 PATH=$work/go/usr/lib/go-1.19/bin:$PATH
mkdir -p "$GOTMPDIR" bin
cd gopath/src/k8s.io/kubernetes

# The one generated file that the package's own build makes: descriptions of the API's types.
describe_types() {
    local folders generator=$work/openapi-gen target=pkg/generated/openapi
    go build -o "$generator" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
    folders=$(grep -Rl --include='*.go' '^// *+k8s:openapi-gen=' vendor/k8s.io/ pkg plugin cmd test |
        grep -vE 'code-generator|sample-apiserver|_examples' | xargs -n 1 dirname | sort -u |
        sed 's#^#k8s.io/kubernetes/#' | paste -sd ,)
    "$generator" -i "$folders" -p "k8s.io/kubernetes/$target" -O zz_generated.openapi \
        -h vendor/k8s.io/code-generator/hack/boilerplate.go.txt -r "$work/violations"
    [ -s "$target/zz_generated.openapi.go" ]
}

start=$(date +%s)
if [ ! -e "$work/described" ]; then
    say "kubernetes: generating the description of the API"
    describe_types >>"$log" 2>&1 || fail "openapi-gen failed"
    touch "$work/described"
fi

flags="-s -w"
for package in component-base/version client-go/pkg/version; do
    for value in "gitVersion=v$release" gitMajor=1 gitMinor=20 gitTreeState=archive buildDate=2021-01-13T13:28:09Z; do
        flags+=" -X k8s.io/kubernetes/vendor/k8s.io/$package.$value"
    done
done
build() { # build NAME FOLDER, unless an interrupted run has
    [ ! -e "$work/bin/$1" ] || return 0
    say "kubernetes: building $1"
    nice -n 10 go build -trimpath -ldflags "$flags" -o "$work/$1" "$2" >>"$log" 2>&1 || fail "go build failed"
    mv "$work/$1" "$work/bin/$1"
}

api=staging/src/k8s.io/cri-api/pkg/apis/runtime/v1alpha2/api.pb.go
[ -e "$work/stock.go" ] || cp "$api" "$work/stock.go"
cp "$work/stock.go" "$api"
for program in kube-apiserver kube-controller-manager kube-scheduler kubelet; do build "$program" "./cmd/$program"; done
sed -i 's#"/runtime\.v1alpha2\.#"/runtime.v1.#g; s#ServiceName: "runtime\.v1alpha2\.#ServiceName: "runtime.v1.#' "$api"
grep -q 'ServiceName: "runtime\.v1\.RuntimeService"' "$api" || fail "the CRI's service is not where it was"
build kubelet-cri-v1 ./cmd/kubelet

cp "$work/version" "$work/bin/version"
cd "$root"
publish "$work/bin" "$final"
chmod -R u+w "$work" && rm -rf "$work"
say "kubernetes: ready in $final after $(($(date +%s) - start)) s ($(du -sm "$final" | cut -f 1) MiB)"
printf '%s\n' "$final"
