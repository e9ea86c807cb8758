#!/bin/sh
# Builds the programs that the conformance tests drive, at the versions that go.mod pins.
#
#   build.sh [DIR]
#
# DIR defaults to ${WEFT_CACHE:-$HOME/.cache/weft}/tools-HASH, or to .build/tools-HASH in the checkout where that cannot be written.
# HASH covers go.mod, go.sum, the Go and C files and this script, so a directory whose stamp matches is left as it is. Everything is built beside DIR and
# moved into place at the end: an interrupted run leaves no half-filled DIR. The last line on stdout is the directory.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cd "$here"
hash=$(cat go.mod go.sum leases/*.go ./*.c build.sh | sha256sum | cut -c1-12)

if [ $# -gt 0 ]; then
    dir=$1
    case $dir in /*) ;; *) echo "build.sh: $dir: want an absolute path" >&2; exit 2 ;; esac
    mkdir -p "$(dirname "$dir")"
else
    cache=${WEFT_CACHE:-${HOME:-/nonexistent}/.cache/weft}
    if ! { mkdir -p "$cache" && [ -w "$cache" ]; } 2>/dev/null; then
        cache=$(cd ../.. && pwd)/.build
        mkdir -p "$cache"
    fi
    dir=$cache/tools-$hash
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
mkdir -p "$new/cni"
say() { echo "build.sh: $*" >&2; }

export CGO_ENABLED=0
plugins=github.com/containernetworking/plugins/plugins
say "containerd, ctr, containerd-shim-runc-v2, crictl, cnitool"
go build -trimpath -ldflags '-s -w' -o "$new/" \
    github.com/containerd/containerd/v2/cmd/containerd \
    github.com/containerd/containerd/v2/cmd/ctr \
    github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2 \
    sigs.k8s.io/cri-tools/cmd/crictl \
    github.com/containernetworking/cni/cnitool >&2
say "CNI plugins"
go build -trimpath -ldflags '-s -w' -o "$new/cni/" \
    $plugins/main/bridge $plugins/main/ptp $plugins/main/loopback $plugins/ipam/host-local \
    $plugins/meta/portmap $plugins/meta/bandwidth $plugins/meta/firewall $plugins/meta/tuning $plugins/meta/sbr >&2
say "leases"
go build -trimpath -ldflags '-s -w' -o "$new/" ./leases >&2
say "critest, and ginkgo, which runs its specs in parallel"
go build -trimpath -ldflags '-s -w' -o "$new/" github.com/onsi/ginkgo/v2/ginkgo >&2
go test -c -trimpath -ldflags '-s -w' -o "$new/critest" sigs.k8s.io/cri-tools/cmd/critest >&2
say "runc"
# runc enters namespaces in C before the Go runtime starts, and seccomp needs libseccomp: the one program that needs cgo.
CGO_ENABLED=1 go build -trimpath -tags 'seccomp netgo osusergo' -ldflags '-s -w -extldflags -static' \
    -o "$new/runc" github.com/opencontainers/runc >&2
say "pause, nonewprivs"
for program in pause nonewprivs; do
    cc -static -Os -s -Wall -Werror -o "$new/$program" $program.c >&2
done
say "nginx, busybox"
# Unpacked and not installed: an installed nginx would be started, and this busybox conflicts with the static one. Its shell, other than
# that of the static one, looks applets up as files, which critest relies on.
mkdir "$new/deb"
(cd "$new/deb" && apt-get download -q nginx busybox && for file in *.deb; do dpkg-deb -x "$file" .; done) >&2
mv "$new/deb/usr/sbin/nginx" "$new/deb/bin/busybox" "$new/"
rm -r "$new/deb"

echo "$hash" >"$new/stamp"
rm -rf "$dir"
mv "$new" "$dir"
echo "$dir"
