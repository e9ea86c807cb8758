#!/bin/bash
# kernel.sh 6.1|6.12|newest: downloads Debian's kernel of that version, newest being that of the backports when it was first asked
# for, and makes an initrd that reaches the machine's own root file system. Prints where they are: kernel, initrd, modules. Kept
# under WEFT_CACHE; a second call makes nothing.
set -euo pipefail

version=$1
case $version in
  6.1) suite=bookworm ;;
  6.12) suite=trixie ;;
  newest) suite=trixie-backports ;;
  *) echo "kernel.sh: no kernel $version; there are 6.1, 6.12 and newest" >&2; exit 2 ;;
esac
here=$(dirname "$(readlink -f "$0")")
base=${WEFT_CACHE:-$HOME/.cache/weft}/vm
dir=$base/$version
mkdir -p "$base"
exec 9> "$dir.lock"
flock 9
# Another init makes another initrd, not another download.
initrd=$dir/initrd-$(cat "$here/kernel.sh" "$here/init.sh" | sha256sum | cut -c -12)

download() {
  rm -rf "$dir"
  mkdir -p "$dir/apt/lists/partial" "$dir/apt/archives/partial" "$dir/debs"

  # An apt of its own: the machine's lists and packages stay as they are. The mirror is the machine's.
  # shellcheck disable=SC2016 # apt's variable
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Component: main' |
    grep -v security | sed -n 1p)
  printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n' \
    "${mirror:-http://deb.debian.org/debian}" "$suite" > "$dir/apt/debian.sources"
  apt() { # TOOL ARGUMENTS
    "$1" -o Dir::Etc::sourcelist="$dir/apt/debian.sources" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$dir/apt/lists" \
      -o Dir::Cache="$dir/apt" -o Dir::Cache::archives="$dir/apt/archives" -o APT::Sandbox::User=root -qq "${@:2}"
  }
  apt apt-get update >&2
  depends() { apt apt-cache depends "$1" | sed -n 's/^ *Depends: \(linux-[a-z]*-[0-9].*\)$/\1/p'; }
  # The meta package names the kernel; newer releases split it into several packages, one of which lists what is built in.
  image=$(depends linux-image-amd64 | head -n 1)
  mapfile -t packages < <({ echo "$image"; depends "$image"; } | sort -u)
  (cd "$dir/debs" && apt apt-get download "${packages[@]}" >&2)
  for deb in "$dir"/debs/*.deb; do dpkg-deb -x "$deb" "$dir"; done
  if [ -d "$dir/usr/lib/modules" ]; then mkdir -p "$dir/lib"; mv "$dir/usr/lib/modules" "$dir/lib/"; fi
  release=$(ls "$dir/lib/modules")
  vmlinuz=$dir/boot/vmlinuz-$release
  [ -e "$vmlinuz" ] || vmlinuz=$dir/lib/modules/$release/vmlinuz
  cp "$vmlinuz" "$dir/vmlinuz"
  depmod -b "$dir" "$release"
  rm -rf "${dir:?}"/{apt,debs,boot,usr}
  echo "$release" > "$dir/release"
}

make_initrd() {
  release=$(< "$dir/release")
  tree=$dir/initrd.d
  rm -rf "$tree" "$dir"/initrd-*
  mkdir -p "$tree"/{bin,modules,proc,sys,dev,lower,upper,root}
  cp "$(command -v busybox)" "$tree/bin/busybox"
  cp "$here/init.sh" "$tree/init"
  chmod 755 "$tree/init"
  for module in virtio_pci 9pnet_virtio 9p overlay; do
    modprobe -d "$dir" -S "$release" --show-depends "$module" | awk '/^insmod/ { print $2 }'
  done | awk '!seen[$0]++' | while read -r file; do
    name=$(basename "$file")
    name=${name%%.ko*}.ko
    case $file in
      *.xz) xz -dc "$file" ;;
      *.zst) zstd -dqc "$file" ;;
      *) cat "$file" ;;
    esac > "$tree/modules/$name"
    echo "$name" >> "$tree/modules/order"
  done
  (cd "$tree" && find . | cpio -o -H newc -R 0:0 --quiet | gzip -1) > "$initrd.new"
  rm -rf "$tree"
  mv "$initrd.new" "$initrd"
}

if ! [ -e "$dir/release" ]; then download; fi
if ! [ -e "$initrd" ]; then make_initrd; fi
echo "$dir/vmlinuz $initrd $dir/lib/modules"
