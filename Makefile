# The only entry point, for people and for CI. `make` prints what there is.

SHELL := /bin/bash -o pipefail
HOST := $(shell rustc -vV | sed -n 's/^host: //p')
# Programs start four times as fast with musl as with glibc (ARCHITECTURE.md). Where rustc has no standard library for musl and rustup
# gets none, they are made with glibc. Asked for when a recipe runs, for `deps` may just have got it.
MUSL := $(subst -gnu,-musl,$(HOST))
TRIPLE = $(shell test -d "$$(rustc --print target-libdir --target $(MUSL))" && echo $(MUSL) || echo $(HOST))
# Of all that cargo makes here, tests too: they run with the C library that the programs have.
export CARGO_BUILD_TARGET = $(TRIPLE)

# What is slow to build is kept outside the checkout where that is possible.
CACHE := $(shell mkdir -p "$${WEFT_CACHE:-$$HOME/.cache/weft}" 2>/dev/null && echo "$${WEFT_CACHE:-$$HOME/.cache/weft}" || echo "$(CURDIR)/.build")
export CARGO_TARGET_DIR ?= $(CACHE)/target
export WEFT_CACHE := $(CACHE)
RELEASE = $(CARGO_TARGET_DIR)/$(TRIPLE)/release

PACKAGES := gcc g++ libc6-dev musl-tools make pkg-config clang llvm libbpf-dev linux-libc-dev libseccomp-dev \
  iproute2 iputils-ping nftables iptables tcpdump bpftool busybox-static runc crun criu procps strace bsdutils util-linux shellcheck \
  e2fsprogs erofs-utils qemu-system-x86 cpio kmod xz-utils zstd systemd
# More of them for `make packages` and `make test-packages` alone.
PACKAGING := rpm mmdebstrap systemd-container

# What can be said of `make install`; packaging/install.sh has their meaning.
DESTDIR ?=
PREFIX ?= /usr/local
CNI_BIN_DIR ?= /opt/cni/bin
CNI_LINK_DIR ?=
BIN_DIR ?= $(RELEASE)
INSTALL = DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' CNI_BIN_DIR='$(CNI_BIN_DIR)' CNI_LINK_DIR='$(CNI_LINK_DIR)' BIN_DIR='$(BIN_DIR)' \
  packaging/install.sh

.DEFAULT_GOAL := help
.PHONY: help owned deps tools build demo test test-versions test-kubernetes test-vm test-packages soak fuzz kill-campaign conformance-table \
  lint fmt bench install uninstall packages clean

help: ## print this
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 19

owned:
	@# Cargo tells the crates of two checkouts apart by the age of their files alone, and would run one's tests for the other.
	@if [ "$$(cat $(CARGO_TARGET_DIR)/checkout 2>/dev/null)" != "$(CURDIR)" ]; then \
	  mkdir -p $(CARGO_TARGET_DIR) && find $(CARGO_TARGET_DIR) -path '*/.fingerprint/weft-*' -prune -exec rm -rf {} + && \
	  echo "$(CURDIR)" > $(CARGO_TARGET_DIR)/checkout; fi

# What of $(1) is not installed.
define apt
	@missing=$$(dpkg-query -W -f '$${Package} $${db:Status-Status}\n' $(1) 2>&1 | grep -v ' installed$$'); \
	if [ -n "$$missing" ]; then \
	  apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $(1); fi
endef

# One file, no interpreter: a dynamic binary starts 0.1 ms later. At a fixed address: relocations are written at every start, 106 kB in
# each of a pod's two processes. Not for what the compiler itself loads: procedural macros cannot be static.
static = CARGO_TARGET_$(shell echo $(1) | tr 'a-z-' 'A-Z_')_RUSTFLAGS='-C target-feature=+crt-static -C relocation-model=static'

deps: owned ## install the Debian packages that building and testing need (as root)
	$(call apt,$(PACKAGES))
	@test -d "$$(rustc --print target-libdir --target $(MUSL))" || timeout 120 rustup target add $(MUSL) || \
	  echo 'no standard library for $(MUSL): the programs are made with glibc, and start more slowly' >&2

tools: deps ## build containerd, runc, crictl, critest and the CNI plugins that the tests run against
	conformance/tools/build.sh

build: deps ## build the three static binaries
	$(call static,$(TRIPLE)) cargo build --release -p weft-shim

demo: build tools ## two pods under containerd, a page fetched from one to the other, and everything removed
	WEFT_BIN_DIR=$(RELEASE) WEFT_TOOLS_DIR=$$(conformance/tools/build.sh) cargo run -q -p weft-conformance --bin demo

test: build tools lint ## all tests, as root, on the real kernel and the real containerd
	WEFT_BIN_DIR=$(RELEASE) WEFT_TOOLS_DIR=$$(conformance/tools/build.sh) \
	  cargo test --workspace --features weft-shim/failpoints --no-fail-fast 2>&1 | tee $(CACHE)/test.log
	@# The tasks once more with another OCI runtime. crun refuses a cgroup2 beside cgroup v1, so it does not see one.
	WEFT_TEST_RUNTIME=crun unshare -m --propagation private sh -c '\
	  if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi && \
	  exec cargo test -p weft-shim --features failpoints --test task' 2>&1 | tee -a $(CACHE)/test.log
	@# The fuzz targets, a minute each.
	fuzz/run.sh 60 2>&1 | tee -a $(CACHE)/test.log
	@# Of the tests that `test-vm` has, a short list with cgroup v2 on another kernel, and one of the network on three. A VM keeps one
	@# CPU busy. Nothing is built while one runs.
	WEFT_BIN_DIR=$(RELEASE) WEFT_TOOLS_DIR=$$(conformance/tools/build.sh) && export WEFT_BIN_DIR WEFT_TOOLS_DIR && \
	  printf '%s\n' '6.1 short' '6.1 network' '6.12 network' 'newest network' | \
	  xargs -P 2 -I KERNEL sh -c 'exec conformance/vm/run.sh KERNEL'
	@awk '/^test result:/ { p += $$4; f += $$6; s += $$8 } END { printf "%d passed, %d failed, %d skipped\n", p, f, s }' $(CACHE)/test.log

soak: build tools ## pods made, used, killed and removed for 30 minutes, beside the reference; of this `make test` does 3
	WEFT_SOAK_SECONDS=$${WEFT_SOAK_SECONDS:-1800} WEFT_BIN_DIR=$(RELEASE) WEFT_TOOLS_DIR=$$(conformance/tools/build.sh) \
	  cargo test -p weft-conformance --test soak -- --nocapture

kill-campaign: build tools ## 2,000 pods made and removed while weft and containerd are killed; of this `make test` does 100
	WEFT_CAMPAIGN_PODS=$${WEFT_CAMPAIGN_PODS:-200} WEFT_CAMPAIGN_ROUNDS=$${WEFT_CAMPAIGN_ROUNDS:-10} \
	  WEFT_BIN_DIR=$(RELEASE) WEFT_TOOLS_DIR=$$(conformance/tools/build.sh) \
	  cargo test -p weft-conformance --test campaign -- --nocapture

fuzz: deps ## every fuzz target for 10 minutes, two at a time; of this `make test` does a minute each
	fuzz/run.sh $${WEFT_FUZZ_SECONDS:-600}

test-versions: build tools ## a pod's life under every containerd that is maintained, from 1.7 on; of these `make test` does three
	WEFT_BIN_DIR=$(RELEASE) WEFT_TOOLS_DIR=$$(conformance/tools/build.sh) cargo test -p weft-conformance --test versions -- --include-ignored

test-kubernetes: build tools ## a real Kubernetes node whose pods weft runs; builds Kubernetes first, which takes 5 minutes once
	@# One cluster at a time: each takes over half a gigabyte.
	WEFT_BIN_DIR=$(RELEASE) WEFT_TOOLS_DIR=$$(conformance/tools/build.sh) WEFT_KUBERNETES_DIR=$$(conformance/tools/kubernetes/build.sh) \
	  cargo test -p weft-conformance --test kubernetes -- --ignored --test-threads=1

conformance-table: build tools ## try every behaviour of the CNI reference plugins on them and on weft; writes docs/conformance.md
	WEFT_CONFORMANCE=write WEFT_BIN_DIR=$(RELEASE) WEFT_TOOLS_DIR=$$(conformance/tools/build.sh) \
	  cargo test -p weft-conformance --test reference -- --nocapture

test-vm: build tools ## chosen tests on Debian's kernel KERNEL=6.1 (the default), 6.12 or newest, with cgroup v2, in a VM without KVM
	WEFT_BIN_DIR=$(RELEASE) WEFT_TOOLS_DIR=$$(conformance/tools/build.sh) conformance/vm/run.sh $(or $(KERNEL),6.1)

lint: deps ## formatting and lints; warnings are errors
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --features weft-shim/failpoints -- -D warnings
	shellcheck conformance/tools/build.sh conformance/tools/*/build.sh conformance/vm/*.sh fuzz/*.sh packaging/*.sh packaging/deb/p* .ci/run

fmt: ## format the Rust sources
	cargo fmt --all

bench: build tools ## weft beside the reference, in one run; writes docs/benchmarks.md
	@# A step that fails panics: unwinding takes down what was started.
	CARGO_PROFILE_RELEASE_PANIC=unwind cargo build --release -q -p weft-conformance --bins
	$(call static,$(TRIPLE)) cargo build --release -q -p weft-netns --example attach --example floor -p weft-ipam --example lease
	@# The floor of the goals is made with glibc, as most static programs are.
	$(call static,$(HOST)) cargo build --release -q --target $(HOST) -p weft-netns --example floor
	cp $(CARGO_TARGET_DIR)/$(HOST)/release/examples/floor $(RELEASE)/examples/floor-glibc
	WEFT_BIN_DIR=$(RELEASE) WEFT_TOOLS_DIR=$$(conformance/tools/build.sh) $(RELEASE)/bench

install: ## put the binaries, units and configuration below DESTDIR, by default into the running system
	$(INSTALL) install

uninstall: ## remove what install put there; configuration that was changed stays, and is named
	$(INSTALL) uninstall

packages: build ## a deb and an rpm of the built binaries
	$(call apt,$(PACKAGING))
	packaging/packages.sh $(BIN_DIR) $(CARGO_TARGET_DIR)/packages

test-packages: packages tools ## the deb and the rpm in clean roots, and on a node that systemd boots
	WEFT_BIN_DIR=$(BIN_DIR) WEFT_TOOLS_DIR=$$(conformance/tools/build.sh) WEFT_ROOT=$$(conformance/tools/root/build.sh) \
	  cargo test -p weft-conformance --test packaging -- --include-ignored

clean: ## remove what was built here
	cargo clean
	rm -rf .build
