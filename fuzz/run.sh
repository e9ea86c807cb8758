#!/usr/bin/env bash
# Fuzzes every target for SECONDS, two at a time: run.sh SECONDS. libFuzzer sees which code an input reaches, by the compiler's
# own instrumentation, so the stable compiler does; what needs a nightly one is the address sanitizer, for which this code, with its
# few unsafe blocks, has little use. What is found stays in artifacts/TARGET/; to keep an input for good, move it to
# corpus/TARGET/.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:?usage: run.sh SECONDS}
targets='cni config netlink store ttrpc'
triple=$(rustc -vV | sed -n 's/^host: //p')
cache=${WEFT_CACHE:-$HOME/.cache/weft}/fuzz
target_dir=${CARGO_TARGET_DIR:-$PWD/../target}

flags='--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4'
flags+=' -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table'
flags+=' -Cllvm-args=-sanitizer-coverage-trace-compares'
# Of the target's triple only: build scripts and procedural macros have no counters.
export "CARGO_TARGET_$(tr 'a-z-' 'A-Z_' <<<"$triple")_RUSTFLAGS=$flags"
cargo build -q --profile fuzz --target "$triple" -p weft-fuzz --features guided
unset "CARGO_TARGET_$(tr 'a-z-' 'A-Z_' <<<"$triple")_RUSTFLAGS"
export BIN=$target_dir/$triple/fuzz CACHE=$cache SECONDS_EACH=$seconds

run() {
  local target=$1 log=$CACHE/$1.log status=0
  mkdir -p "$CACHE/$target" "artifacts/$target"
  # An input may take 20 s on a machine that is busy, and the whole 1 GiB.
  WEFT_FUZZ_SEEDS=$CACHE/$target "$BIN/$target" -max_total_time="$SECONDS_EACH" -timeout=20 -rss_limit_mb=1024 -max_len=8192 -print_final_stats=1 \
    -dict="dict/$target" -artifact_prefix="artifacts/$target/" "$CACHE/$target" "corpus/$target" >"$log" 2>&1 || status=$?
  local runs coverage
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  coverage=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -1)
  echo "$target: ${runs:-?} runs, ${coverage:-?} edges reached, $([ $status = 0 ] && echo 'no finding' || echo 'a finding')"
  [ $status = 0 ] || { tail -40 "$log"; return 1; }
}
export -f run

xargs -P 2 -I '{}' bash -c 'run {}' <<<"${targets// /$'\n'}"
