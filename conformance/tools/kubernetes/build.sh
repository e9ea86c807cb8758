#!/bin/sh
# Builds the programs of a Kubernetes node and control plane, at the versions that go.mod here and in ../etcd pin.
#
#   build.sh [DIR]
#
# DIR defaults to ${WEFT_CACHE:-$HOME/.cache/weft}/kubernetes-HASH, or to .build/kubernetes-HASH in the checkout where that cannot be written.
# HASH covers both modules and this script; otherwise as ../build.sh. The first build takes 5 minutes. The last line on stdout is the directory.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cd "$here"
hash=$(cat go.mod go.sum ../etcd/go.mod ../etcd/go.sum build.sh | sha256sum | cut -c1-12)

if [ $# -gt 0 ]; then
    dir=$1
    case $dir in /*) ;; *) echo "build.sh: $dir: want an absolute path" >&2; exit 2 ;; esac
    mkdir -p "$(dirname "$dir")"
else
    cache=${WEFT_CACHE:-${HOME:-/nonexistent}/.cache/weft}
    if ! { mkdir -p "$cache" && [ -w "$cache" ]; } 2>/dev/null; then
        cache=$(cd ../../.. && pwd)/.build
        mkdir -p "$cache"
    fi
    dir=$cache/kubernetes-$hash
fi

# Two builds of one directory take turns; the second finds the stamp of the first.
exec 9>"$dir.lock"
flock 9
if [ "$(cat "$dir/stamp" 2>/dev/null || true)" = "$hash" ]; then
    echo "$dir"
    exit 0
fi
if [ -e "$dir" ] && [ ! -e "$dir/stamp" ]; then
    # An empty directory is as good as none; anything else was not made here.
    rmdir "$dir" || { echo "build.sh: $dir is not empty and has no stamp" >&2; exit 1; }
fi

new=$dir.new
rm -rf "$new"
mkdir -p "$new"
say() { echo "build.sh: $*" >&2; }

export CGO_ENABLED=0
# The programs say their version, and kubectl and the tests of features ask for it.
version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
ldflags="-s -w -X k8s.io/component-base/version.gitVersion=$version -X k8s.io/client-go/pkg/version.gitVersion=$version"
say "kube-apiserver, kube-controller-manager, kube-scheduler, kubectl, kubelet, agnhost $version"
go build -trimpath -ldflags "$ldflags" -o "$new/" \
    k8s.io/kubernetes/cmd/kube-apiserver \
    k8s.io/kubernetes/cmd/kube-controller-manager \
    k8s.io/kubernetes/cmd/kube-scheduler \
    k8s.io/kubernetes/cmd/kubectl \
    k8s.io/kubernetes/cmd/kubelet \
    k8s.io/kubernetes/test/images/agnhost >&2
say "etcd"
go -C ../etcd build -trimpath -ldflags '-s -w' -o "$new/etcd" go.etcd.io/etcd/server/v3 >&2

echo "$hash" >"$new/stamp"
rm -rf "$dir"
mv "$new" "$dir"
echo "$dir"
