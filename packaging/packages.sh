#!/bin/sh
# packages.sh BIN_DIR OUT_DIR: makes the deb and the rpm of the built programs in BIN_DIR, and prints their paths.
#
# What is in them is what `install.sh stage` puts there: `files` is the only list. The same programs give the same bytes.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "$1" && pwd)
mkdir -p "$2"
out=$(cd "$2" && pwd)
work=$(mktemp -d "$out/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
umask 022

version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$here/../Cargo.toml")
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$here" log -1 --format=%ct 2>/dev/null || stat -c %Y "$here/../CHANGELOG.md")}
export SOURCE_DATE_EPOCH

export PREFIX=/usr BIN_DIR="$bin"

# stage FOLDER: a tree as the package has it.
stage() {
    DESTDIR=$1 "$here/install.sh" stage
    find "$1" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
}

# Where a distribution's own containerd looks for CNI plugins there is a link to the folder where all others do.

deb() {
    architecture=$(dpkg --print-architecture)
    export CNI_LINK_DIR=/usr/lib/cni ZSH_DIR=/usr/share/zsh/vendor-completions
    stage "$work/deb"
    size=$(du -sk --apparent-size "$work/deb" | cut -f1)
    mkdir "$work/deb/DEBIAN"
    sed -e "s/@version@/$version/" -e "s/@architecture@/$architecture/" -e "s/@size@/$size/" "$here/deb/control" >"$work/deb/DEBIAN/control"
    "$here/install.sh" list | awk '$1 == "config" { print $4 }' >"$work/deb/DEBIAN/conffiles"
    install -m 755 "$here/deb/postinst" "$here/deb/prerm" "$here/deb/postrm" "$work/deb/DEBIAN/"
    dpkg-deb --root-owner-group --build "$work/deb" "$out/weft_${version}_$architecture.deb" >"$work/log"
    echo "$out/weft_${version}_$architecture.deb"
}

rpm() {
    export CNI_LINK_DIR=/usr/libexec/cni ZSH_DIR=/usr/share/zsh/site-functions
    stage "$work/rpm"
    # Folders that are the distribution's own are left out; others, it is no harm to have beside another package.
    (cd "$work/rpm" && find . -type d \( -path '*weft*' -o -path '*cni*' -o -path '*containerd*' -o -path '*NetworkManager*' \
        -o -path '*completion*' -o -path '*/zsh*' -o -path '*/fish*' -o -name '*.wants' \)) | sed 's|^\.|%dir |' >"$work/list"
    "$here/install.sh" list |
        awk '{ print ($1 == "config" ? "%config(noreplace) " : "") $4 }' >>"$work/list"
    rpmbuild -bb --quiet --define "_topdir $work/rpmbuild" --define "_rpmdir $out" --define "_build_name_fmt %%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm" \
        --define "version $version" --define "stage $work/rpm" --define "list $work/list" \
        --define "debug_package %{nil}" --define "__os_install_post %{nil}" --define "_build_id_links none" --define "_binary_payload w6.xzdio" \
        --define "_buildhost localhost" --define "use_source_date_epoch_as_buildtime 1" --define "clamp_mtime_to_source_date_epoch 1" \
        "$here/rpm/weft.spec" >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
    echo "$out/weft-$version-1.$(command rpm --eval '%{_arch}').rpm"
}

deb
rpm
