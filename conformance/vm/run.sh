#!/bin/bash
# run.sh 6.1|6.12|newest [network | short | PACKAGE TARGET [ARGUMENT]...]: boots that kernel of Debian's under qemu, without KVM, and
# runs test binaries in it: those that the file `tests` lists for the kernel, a part of these that it names, or the one that is
# named here. Wants WEFT_BIN_DIR, WEFT_TOOLS_DIR and CARGO_TARGET_DIR, and that nothing is built there meanwhile: the VM reads the
# machine's own files. One line per test; the exit status says whether all passed. A log below WEFT_CACHE/vm keeps what the VM
# printed.
set -euo pipefail

version=$1
shift
here=$(dirname "$(readlink -f "$0")")
root=$(readlink -f "$here/../..")
cache=${WEFT_CACHE:-$HOME/.cache/weft}
limit=${WEFT_VM_LIMIT:-2400} # seconds, of the whole VM
log=$cache/vm/$version${1:+-$1}.log
read -r vmlinuz initrd modules < <("$here/kernel.sh" "$version" | tail -n 1)
job=$(mktemp "$cache/vm/job-XXXXXX")
trap 'rm -f "$job"' EXIT

# Lines "PACKAGE TARGET DIRECTORY EXECUTABLE"; the unit tests of a library are the target "lib".
built=$(cd "$root" && cargo test --no-run --workspace --features weft-shim/failpoints --message-format=json 2> "$log" | sed -nE \
  's|.*"manifest_path":"([^"]*/([a-z]+))/Cargo.toml".*"kind":\["([a-z]+)"\].*"name":"([^"]*)".*"executable":"([^"]+)".*|\2 \3:\4 \1 \5|p' |
  sed -E 's/ lib:[^ ]*/ lib/; s/ test:/ /') || { cat "$log" >&2; exit 1; }

lines() { # the chosen tests: PACKAGE TARGET [ARGUMENT]...
  case ${1:-} in
    "") awk -v kernel="$version" '$1 == "all" || ("," $1 ",") ~ ("," kernel ",") { $1 = ""; print }' "$here/tests" ;;
    network | short) awk -v list="$1" '$1 == list { $1 = ""; print }' "$here/tests" ;;
    *) echo "$@" ;;
  esac
}
{
  printf 'export %s\n' "RUST_BACKTRACE=0" "WEFT_TEST_SLOWNESS=${WEFT_TEST_SLOWNESS:-8}" "WEFT_BIN_DIR=$WEFT_BIN_DIR" \
    "WEFT_TOOLS_DIR=$WEFT_TOOLS_DIR"
  echo 'failed=0'
  lines "$@" | while read -r package target arguments; do
    read -r _ _ dir executable < <(grep "^$package $target " <<< "$built") ||
      { echo "run.sh: no test binary $package $target" >&2; exit 2; }
    echo "echo 'vm: $package $target $arguments'; cd '$dir'"
    echo "CARGO_MANIFEST_DIR='$dir' '$executable' --color=never --test-threads=2 $arguments || failed=1"
    # shellcheck disable=SC2016
    echo 'read -r up _ < /proc/uptime; echo "vm: after $up s"'
  done
  # shellcheck disable=SC2016
  echo '[ "$failed" = 0 ] || dmesg | tail -n 40; exit "$failed"'
} > "$job"

# The two CPUs take turns in one thread of qemu's: in threads of their own they once lost an interrupt from one to the other, and both
# waited for each other until the time was up. It costs a tenth of the time, and leaves the machine's other CPU to another VM.
# shellcheck disable=SC2054 # qemu's commas
options=(-nodefaults -no-user-config -display none -no-reboot -machine q35 -accel tcg,thread=single,tb-size=512
  -cpu max,la57=off -smp 2 -m 2048 -serial stdio -kernel "$vmlinuz" -initrd "$initrd"
  -fsdev local,id=root,path=/,security_model=none,readonly=on,multidevs=remap -device virtio-9p-pci,fsdev=root,mount_tag=root
  -append "console=ttyS0 panic=-1 softlockup_panic=1 quiet weft.job=$job weft.modules=$modules weft.keep=$root:$cache:$CARGO_TARGET_DIR")
status=0
# timeout ends qemu, by its process id.
timeout --foreground -k 5 "$limit" qemu-system-x86_64 "${options[@]}" < /dev/null 2>&1 | sed -u 's,\r$,,' | tee "$log" |
  grep --line-buffered -E '^(vm: |test )|panicked at' | sed -u "s/^/$version: /" || status=$?
result=$(sed -n 's/^vm: status //p' "$log" | tail -n 1)
if [ "$result" != 0 ]; then
  echo "kernel $version: status ${result:-unknown: no end within $limit s, or the VM died ($status)}; the end of $log:" >&2
  tail -n 150 "$log" >&2
  exit 1
fi
sed -n "s/^out /kernel $version: left out: /p" "$here/tests"
awk -v kernel="$version" '/^test result:/ { p += $4; i += $8 } END { printf "kernel %s: %d passed, %d ignored\n", kernel, p, i }' "$log"
