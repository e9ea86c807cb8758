#!/bin/sh
# Puts the files of `files` below DESTDIR, or takes away what it put there.
#
#   install.sh stage      copies everything: for packages, whose manager keeps the books itself
#   install.sh install    copies, but keeps configuration that was changed, and writes down what it made
#   install.sh uninstall  removes what is written down, but for configuration that was changed
#   install.sh list       prints `files` with its @names@ filled in
#
# Environment: DESTDIR; PREFIX, by default /usr/local; CNI_BIN_DIR, the folder of the CNI plugins, by default /opt/cni/bin;
# CNI_LINK_DIR, another such folder, which gets a link; ZSH_DIR, where zsh looks for completions, by default
# PREFIX/share/zsh/site-functions; BIN_DIR, where the built programs are.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=${DESTDIR:-}
root=${root%/}
prefix=${PREFIX:-/usr/local}
cnidir=${CNI_BIN_DIR:-/opt/cni/bin}
zshdir=${ZSH_DIR:-$prefix/share/zsh/site-functions}
# The book: `file PATH`, `config SUM PATH` and `folder PATH`, of what was made here and by earlier versions.
book=$prefix/share/weft/installed

expand() {
    sed -e "s|@bindir@|$prefix/bin|g" -e "s|@libdir@|$prefix/lib|g" -e "s|@datadir@|$prefix/share/weft|g" \
        -e "s|@docdir@|$prefix/share/doc/weft|g" -e "s|@sharedir@|$prefix/share|g" -e "s|@zshdir@|$zshdir|g" \
        -e "s|@cnidir@|$cnidir|g" "$@"
}

# A row `pages` becomes a row `page` for each.
table() {
    "$BIN_DIR/weft" man "$scratch/pages"
    expand "$here/files" | sed '/^#/d' | while read -r kind mode source destination; do
        case $kind in
        pages) find "$scratch/pages" -type f -printf "page $mode %f $destination/%f\n" | sort ;;
        *) echo "$kind $mode $source $destination" ;;
        esac
    done
    if [ -n "${CNI_LINK_DIR:-}" ]; then echo "link - $cnidir/weft $CNI_LINK_DIR/weft"; fi
}

say() { echo "install.sh: $*" >&2; }
sum() { sha256sum <"$root$1" | cut -d' ' -f1; }
note() { echo "$*" >>"$notes"; }
recorded() { [ ! -e "$root$book" ] || awk -v path="$1" '$1 == "config" && $3 == path { print $2 }' "$root$book"; }
# The running system, and not a folder that a package or an image is made of.
live() { [ -z "$root" ] && [ -d /run/systemd/system ]; }

# A folder, its parents first; those that were not there are ours to remove.
folder() {
    if [ ! -d "$root$1" ]; then
        folder "$(dirname "$1")"
        mkdir -m 755 "$root$1"
        note "folder $1"
    fi
}

# Written beside and moved: a program may be running, and containerd reads a configuration as soon as it sees it.
put() {
    kind=$1 mode=$2 source=$3 destination=$4 new=$root$4.tmp$$
    folder "$(dirname "$destination")"
    case $kind in
    program) install -m "$mode" "$BIN_DIR/$source" "$new" ;;
    link) ln -s "$source" "$new" ;;
    page) install -m "$mode" "$scratch/pages/$source" "$new" ;;
    says)
        # shellcheck disable=SC2046 # words
        "$BIN_DIR/weft" $(echo "$source" | tr : ' ') >"$new"
        chmod "$mode" "$new"
        ;;
    *)
        expand "$here/$source" >"$new"
        chmod "$mode" "$new"
        ;;
    esac
    mv -fT "$new" "$root$destination"
}

# Whether there is nothing of the administrator's at $2: no file, the one that $1 would make, or the one that was installed.
replaceable() {
    [ ! -e "$root$2" ] || cmp -s "$here/$1" "$root$2" || [ "$(sum "$2")" = "$(recorded "$2")" ]
}

configure() {
    if replaceable "$2" "$3"; then
        put config "$@"
        note "config $(sum "$3") $3"
    else
        put config "$1" "$2" "$3.new"
        note "file $3.new"
        say "kept $3, which was changed; the new one is $3.new"
    fi
}

stage() {
    mkdir -p "$root/"
    table | while read -r kind mode source destination; do
        if [ "$1 $kind" = "install config" ]; then
            configure "$mode" "$source" "$destination"
        else
            put "$kind" "$mode" "$source" "$destination"
            note "file $destination"
        fi
    done
}

# The new notes, and the old ones of what is not among them.
write_book() {
    folder "$(dirname "$book")"
    note "file $book"
    [ -e "$root$book" ] || : >"$root$book"
    awk '!seen[$NF]++' "$notes" "$root$book" >"$root$book.tmp$$"
    mv -f "$root$book.tmp$$" "$root$book"
}

uninstall() {
    [ -e "$root$book" ] || { say "nothing is installed here: there is no $root$book"; exit 1; }
    if live; then
        systemctl disable --quiet weft-init.service weft.socket
        "$prefix/share/weft/before-removal.sh"
    fi
    cp "$root$book" "$notes"
    while read -r kind what path; do
        case $kind in
        file) rm -f "$root$what" ;;
        config) if [ ! -e "$root$path" ] || [ "$(sum "$path")" = "$what" ]; then rm -f "$root$path"; else
            say "kept $path, which was changed"; fi ;;
        esac
    done <"$notes"
    # In reverse order a folder comes after what is in it.
    sed -n 's/^folder //p' "$notes" | sort -r | while read -r made; do
        if [ -d "$root$made" ]; then rmdir --ignore-fail-on-non-empty "$root$made"; fi
    done
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
notes=$scratch/notes
: >"$notes"
case ${1:-} in
list) table ;;
stage) stage stage ;;
install)
    stage install
    write_book
    ;;
uninstall) uninstall ;;
*)
    say "want stage, install, uninstall or list"
    exit 2
    ;;
esac
if [ "$1" != list ] && live; then systemctl daemon-reload; fi
