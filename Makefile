# What people run. `make` alone says what there is.

CARGO ?= cargo
FUZZ_SECONDS ?= 60

# A program or file that has to be there, and the Debian package it comes from. protoc's own .proto files are in a
# package that protobuf-compiler only recommends.
NEEDS = cc:build-essential protoc:protobuf-compiler /usr/include/google/protobuf/descriptor.proto:libprotobuf-dev \
        haproxy:haproxy etcd:etcd-server etcdctl:etcd-client supervisord:supervisor curl:curl unshare:util-linux \
        pgrep:procps systemd-analyze:systemd

# Where Debian has haproxy; not on an ordinary user's PATH.
export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: help
help: ## What there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: deps
deps: ## Install what is missing (Debian; asks for sudo when not root)
	@missing=; for need in $(NEEDS); do \
	    command -v $${need%%:*} >/dev/null || test -f $${need%%:*} || missing="$$missing $${need#*:}"; \
	done; \
	test -z "$$missing" && exit; \
	command -v apt-get >/dev/null || { echo "install these first:$$missing" >&2; exit 1; }; \
	echo "installing:$$missing"; \
	sudo=; test "$$(id -u)" = 0 || sudo=sudo; \
	$$sudo apt-get update -qq && \
	    $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null

.PHONY: build
build: deps ## Build everything, for development
	$(CARGO) build --workspace --bins

.PHONY: demo
demo: build ## The whole thing on this machine, on loopback ports of its own; Ctrl-C ends it
	@$(CARGO) run --quiet --package lab --bin demo

.PHONY: test
test: build ## Every test, against real etcd, HAProxy and supervisord
	$(CARGO) test --workspace --no-fail-fast

.PHONY: bench
bench: deps ## How long an announcement, a withdrawal and a crash take to be seen
	$(CARGO) build --release --workspace --bins
	$(CARGO) bench --package lab

.PHONY: check
check: deps ## Format, lints, documentation; licences and advisories where cargo-deny is installed
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- --deny warnings
	RUSTDOCFLAGS="--deny warnings" $(CARGO) doc --workspace --no-deps --document-private-items --quiet
	@if command -v cargo-deny >/dev/null; then \
	    $(CARGO) deny check licenses bans sources || exit 1; \
	    if $(CARGO) deny fetch db >/dev/null 2>&1; then $(CARGO) deny check advisories; \
	    else echo "the advisories can't be fetched from here: not looked at"; fi; \
	else \
	    echo "cargo-deny is not installed: licences and advisories were not looked at (cargo install cargo-deny)"; \
	fi

.PHONY: fuzz
fuzz: ## FUZZ_SECONDS of hostile keys and values (needs cargo-fuzz)
	cd crates/discovery && RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run topology -- -max_total_time=$(FUZZ_SECONDS)
