#!/bin/sh
# Builds the containerd of a minor version, at the patch that MINOR/go.mod pins.
#
#   build.sh MINOR
#
# The program goes to ${WEFT_CACHE:-$HOME/.cache/weft}/containerd-MINOR-HASH, or to .build/ in the checkout where that cannot be written.
# HASH covers go.mod, go.sum and this script, so what is there is what they say. The last line on stdout is its path.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cd "$here/$1"
hash=$(cat go.mod go.sum ../build.sh | sha256sum | cut -c1-12)
cache=${WEFT_CACHE:-${HOME:-/nonexistent}/.cache/weft}
if ! { mkdir -p "$cache" && [ -w "$cache" ]; } 2>/dev/null; then
    cache=$(cd ../../../.. && pwd)/.build
    mkdir -p "$cache"
fi
program=$cache/containerd-$1-$hash

# Two builds of one version take turns; the second finds what the first made.
exec 9>"$program.lock"
flock 9
if [ ! -x "$program" ]; then
    echo "build.sh: containerd $1" >&2
    CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$program.new" "$(go list -f '{{.ImportPath}}' tool)" >&2
    mv "$program.new" "$program"
fi
echo "$program"
