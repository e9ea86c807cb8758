#!/bin/bash
# Makes a clean Debian root file system with systemd and udev, and prints where its archive is. From the mirror that apt is
# configured with; kept under WEFT_CACHE, so that a second call makes nothing.
set -euo pipefail

hash=$(sha256sum < "$0" | cut -c -12)
archive=${WEFT_CACHE:-$HOME/.cache/weft}/root-$hash.tar
mkdir -p "$(dirname "$archive")"
exec 9> "$archive.lock"
flock 9
if [ -e "$archive" ]; then
  echo "$archive"
  exit 0
fi

# shellcheck disable=SC1091 # what Debian this is
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
# shellcheck disable=SC2016 # apt's variable
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Component: main' |
  grep -v security | sed -n 1p)
trap 'rm -f "$archive.new"' EXIT
# The essential packages, without apt, and what looks at network links.
mmdebstrap --quiet --mode=root --variant=essential --include=systemd,udev,iproute2,iputils-ping,procps --format=tar "$suite" "$archive.new" \
  "${mirror:-http://deb.debian.org/debian}" >&2
mv "$archive.new" "$archive"
echo "$archive"
