# What people run. `make` alone says what there is.

CARGO ?= cargo
FUZZ_SECONDS ?= 60

# A program or file that has to be there, and the Debian package it comes from. protoc's own .proto files are in a
# package that protobuf-compiler only recommends. Where a machine starts services as it installs them, the package prometheus leaves one
# on port 9090, which no test uses.
NEEDS = cc:build-essential protoc:protobuf-compiler /usr/include/google/protobuf/descriptor.proto:libprotobuf-dev \
        haproxy:haproxy etcd:etcd-server etcdctl:etcd-client supervisord:supervisor curl:curl unshare:util-linux ip:iproute2 \
        pgrep:procps systemd-analyze:systemd openssl:openssl

# The Debian suites of HAProxy's other releases with long-term support, beside the one of this machine. Experimental's own
# libraries come from sid.
SUITE_3.0 ?= trixie
SUITE_3.2 ?= forky
SUITE_3.4 ?= experimental
# Most tests wait for something: more of them at once than there are cores. Those that must not run beside others see to
# that themselves (lab::heavy).
export RUST_TEST_THREADS ?= $(shell cores=$$(nproc); echo $$((cores > 4 ? cores : 4)))

# Where `make install` puts things, and where cargo has left them: its own variables count. BUILT=target/debug takes others.
PREFIX ?= /usr
SYSCONFDIR ?= /etc
BUILT ?= $(or $(CARGO_TARGET_DIR),target)/$(if $(CARGO_BUILD_TARGET),$(CARGO_BUILD_TARGET)/)release

# What `make build` leaves. Programs are run from there: cargo would build one package alone with fewer features of its
# libraries, and so build those again.
DEBUG = $(or $(CARGO_TARGET_DIR),target)/$(if $(CARGO_BUILD_TARGET),$(CARGO_BUILD_TARGET)/)debug

# The images' tag.
TAG ?= latest

# What `make deb`, `make static` and `make dist` make, and where. The same source gives the same bytes.
DIST ?= target/dist
VERSION ?= $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
MAINTAINER ?= The authors of haproxy-discover <maintainers@haproxy-discover.invalid>
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)
CARGO_DEB = target/tools/bin/cargo-deb
MUSL = $(shell uname -m)-unknown-linux-musl

# Whether there is a Docker that answers.
DOCKER = $(shell docker info >/dev/null 2>&1 && echo yes)

# Where Debian has haproxy; not on an ordinary user's PATH.
export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: help
help: ## What there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

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
demo: build ## The whole thing on this machine, on loopback ports of its own, with a walk-through; Ctrl-C ends it
	@exec $(DEBUG)/demo

.PHONY: screenshots
screenshots: NEEDS += chromedriver:chromium-driver
screenshots: build ## The README's pictures of the console, in docs/images
	SCREENSHOTS="$(CURDIR)/docs/images" $(IGNORED) console::pictures::readme

# Those that are ignored otherwise. Without all three, cargo builds the libraries with fewer features, and so once more.
IGNORED = $(CARGO) test --workspace --test e2e --test it --test processes -- --ignored

.PHONY: test
test: NEEDS += iptables:iptables promtool:prometheus chromedriver:chromium-driver $(if $(DOCKER),debootstrap:debootstrap)
test: deps ## Every test, against real etcd, HAProxy and supervisord; in namespaces and containers too where they can be made
	CARGO="$(CARGO)" tests/run

.PHONY: proof
proof: deps ## The model of the protocol: every state of its large sizes, and every seeded bug (docs/internals/proof.md)
	@exec $(CARGO) run --quiet --profile proof --bin proof

.PHONY: simulate
simulate: deps ## 10,000 seeds of the simulation (docs/internals/simulation.md); SEED=4711 replays one
	@exec $(CARGO) run --quiet --profile proof --bin simulation -- $(if $(SEED),--seed $(SEED))

.PHONY: test-images
test-images: NEEDS += debootstrap:debootstrap docker-compose:docker-compose
test-images: build ## The container images, built and run; needs Docker
	$(IGNORED) images::

# What each event does to a container, with Podman as the engine. Podman has no daemon that could restart, and 4.3 tells of a stop only
# after the container's end. On a busy machine it does not tell of it at all, and then a stop by hand counts as a crash. Its
# `docker commit` takes no health check.
WITH_PODMAN = tests/with-podman $(CARGO) test --workspace --test processes -- --ignored --test-threads 2 container:: \
    --skip restart_of_the_engine --skip come_back_with_their_engine \
    --skip a_stopped_container_drains --skip what_an_operator_does --skip healthcheck_decides

.PHONY: test-podman
test-podman: NEEDS += debootstrap:debootstrap patchelf:patchelf podman:podman runc:runc netavark:netavark \
        /usr/share/keyrings/debian-archive-keyring.gpg:debian-archive-keyring
test-podman: build ## The images under Podman; the quadlets, on a host that Ignition sets up; needs Docker too
	$(IGNORED) podman:: quadlet::
	$(WITH_PODMAN)

.PHONY: lab lab-test
lab lab-test: NEEDS += debootstrap:debootstrap
lab-test: NEEDS += podman:podman runc:runc netavark:netavark ansible:ansible ansible-lint:ansible-lint ignition-validate:ignition lintian:lintian vagrant:vagrant /usr/lib/python3/dist-packages/yaml/__init__.py:python3-yaml
lab: build ## Three hosts with systemd, etcd, two balancers and three apps, in containers, until Ctrl-C; needs Docker
	@exec $(DEBUG)/lab
lab-test: build ## What needs hosts: the units, faults, packages, Ansible, Vagrant, Ignition, the tutorial; needs Docker
	$(IGNORED) --nocapture --test-threads 1 \
	    lab:: packages:: ansible:: tutorial:: vagrant:: ignition::
	$(WITH_PODMAN)

.PHONY: test-haproxy
test-haproxy: test-haproxy-3.0 test-haproxy-3.2 ## What concerns HAProxy, with 3.0 and 3.2 from Debian (test-haproxy-3.0: with that alone; test-haproxy-3.4: from experimental)

.PHONY: test-haproxy-3.0 test-haproxy-3.2 test-haproxy-3.4
test-haproxy-3.0 test-haproxy-3.2 test-haproxy-3.4: NEEDS += patchelf:patchelf promtool:prometheus \
        /usr/share/keyrings/debian-archive-keyring.gpg:debian-archive-keyring
test-haproxy-3.0 test-haproxy-3.2 test-haproxy-3.4: test-haproxy-%: build
	tests/fetch-haproxy $(SUITE_$*) $* target/haproxy-$*
	OTHER_HAPROXY="$$(command -v haproxy)" PATH="$(CURDIR)/target/haproxy-$*:$$PATH" \
	    $(CARGO) test --workspace --no-fail-fast --lib --bins --test it --test e2e -- --include-ignored \
	    --skip container:: --skip images:: --skip lab:: --skip packages:: --skip ansible:: --skip tutorial:: --skip vagrant:: --skip ignition:: \
	    --skip podman:: --skip quadlet:: --skip console::

# The proofs have a profile of their own.
SHIPPED = --workspace --exclude model --exclude simulation

.PHONY: bench
bench: NEEDS += h2load:nghttp2-client
bench: deps ## Every figure of the documentation: a table, and target/bench/bench.html; BENCH="follow --rounds 41" for one
	$(CARGO) build --release $(SHIPPED) --bins
	$(CARGO) bench $(SHIPPED) --bench bench -- $(BENCH)

.PHONY: check
check: deps ## Format, lints, documentation, unused dependencies; licences and advisories where cargo-deny is installed
	$(CARGO) fmt --all --check
	tests/unused-dependencies
	$(CARGO) clippy --workspace --all-targets -- --deny warnings
	RUSTDOCFLAGS="--deny warnings" $(CARGO) doc --workspace --no-deps --document-private-items --quiet
	@if command -v cargo-deny >/dev/null; then \
	    $(CARGO) deny check licenses bans sources || exit 1; \
	    if $(CARGO) deny fetch db >/dev/null 2>&1; then $(CARGO) deny check advisories; \
	    else echo "the advisories can't be fetched from here: not looked at"; fi; \
	else \
	    echo "cargo-deny is not installed: licences and advisories were not looked at (cargo install cargo-deny)"; \
	fi

.PHONY: release
release: NEEDS = cc:build-essential protoc:protobuf-compiler /usr/include/google/protobuf/descriptor.proto:libprotobuf-dev
release: deps ## Build what is installed
	$(CARGO) build --release $(SHIPPED) --bins

.PHONY: images
images: ## Container images of what `make release` has built; TAG=latest; ENGINE=podman; HAProxy 3.4: BASE=debian:sid-slim HAPROXY_SUITE=experimental
	@BUILT="$(BUILT)" ENGINE="$(ENGINE)" TAG="$(TAG)" BASE="$(BASE)" HAPROXY_SUITE="$(HAPROXY_SUITE)" units/images/build

.PHONY: deb
deb: NEEDS = cc:build-essential dpkg-shlibdeps:dpkg-dev
deb: deps $(CARGO_DEB) ## A Debian package of what `make release` has built, in target/dist (DIST)
	@BUILT="$(BUILT)" CARGO_DEB="$(CARGO_DEB)" DIST="$(DIST)" MAINTAINER="$(MAINTAINER)" VERSION="$(VERSION)" units/deb/build

$(CARGO_DEB):
	$(CARGO) install --quiet --locked --root target/tools --version 3.8.0 cargo-deb

.PHONY: static
static: NEEDS = protoc:protobuf-compiler /usr/include/google/protobuf/descriptor.proto:libprotobuf-dev musl-gcc:musl-tools
static: deps ## An announcer that needs nothing of the image it runs in, in target/dist (DIST)
	test -d "$$(rustc --print sysroot)/lib/rustlib/$(MUSL)" || rustup target add $(MUSL)
	RUSTFLAGS="$$RUSTFLAGS --remap-path-prefix=$${CARGO_HOME:-$$HOME/.cargo}=/cargo --remap-path-prefix=$(CURDIR)=/haproxy-discover" \
	    $(CARGO) build --release --locked --package announcer --target $(MUSL)
	install -D -m 0755 --strip $(or $(CARGO_TARGET_DIR),target)/$(MUSL)/release/announcer $(DIST)/announcer-$(VERSION)-$(MUSL)

.PHONY: sums
sums: ## Checksums of the two, beside them
	cd $(DIST) && sha256sum *[-_]$(VERSION)[-_]* >SHA256SUMS

.PHONY: dist
dist: ## What a release publishes: package, static announcer, and their checksums
	$(MAKE) release
	$(MAKE) deb
	$(MAKE) static
	$(MAKE) sums

.PHONY: install uninstall
install: ## Copy what `make release` has built, with units and pages, below DESTDIR; PREFIX=/usr. Starts nothing
	@BUILT="$(BUILT)" DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" SYSCONFDIR="$(SYSCONFDIR)" units/install
uninstall: ## Remove it again, but for settings and state
	@BUILT="$(BUILT)" DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" SYSCONFDIR="$(SYSCONFDIR)" units/install --remove

.PHONY: ignition
ignition: ## An Ignition file of a CoreOS-style host: ROLE=store|balancer|containers|app NAME=… ETC=folder URL=… IMAGES=registry; see docs/deploy.md
	@BUILT="$(BUILT)" ROLE="$(ROLE)" NAME="$(NAME)" ETC="$(ETC)" URL="$(URL)" IMAGES="$(IMAGES)" TAG="$(TAG)" units/ignition

.PHONY: fuzz
fuzz: ## FUZZ_SECONDS of hostile keys and values (needs cargo-fuzz)
	cd crates/discovery && RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run topology -- -max_total_time=$(FUZZ_SECONDS)
