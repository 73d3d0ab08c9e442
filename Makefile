# `make test` and `make demo` make ready what they need first; see tests/vm/setup.sh.
# KERNELS=6.1,7.3 restricts the matrix, KERNEL=6.12 chooses the demonstration's.

SHELL := /bin/bash
export KERNELS ?= 6.1,6.12,7.3
PREFIX ?= /usr
UNITS ?= /usr/lib/systemd/system
PRODUCT := underseal underseal-handshake underseal-spire
# Twins of the two with defences left out, for the scenario that shows what those are good for.
CONTROLS := underseal-controls underseal-handshake-controls
say = @printf '\n==> %s\n'

.PHONY: test demo check vm vm-all bench setup build install

# Everything but the matrix first: it takes seconds, and what it finds needs no machine to boot.
test: build
	$(say) 'tests on this machine'
	cargo test --locked --workspace
	@$(MAKE) --no-print-directory vm-built

# The scenarios on every kernel; make vm SCENARIO=6.12::wire runs one.
vm: build
	@$(MAKE) --no-print-directory vm-built

# All scenarios on all kernels: hours. `make test` has many of them on one kernel, and some on none.
vm-all: export SCENARIO = --include-ignored
vm-all: vm

.PHONY: vm-built
vm-built:
	$(say) 'scenarios on kernels $(KERNELS)'
	cargo test --locked --workspace --test vm -- $(SCENARIO)

demo: build
	cargo run --locked --quiet --bin demo

bench: build
	cargo run --locked --quiet --bin bench

# The programs as they are installed. The BPF object is built by the way, and embedded.
build: setup
	$(say) 'programs'
	cargo build --locked --release $(addprefix --bin ,$(PRODUCT) $(CONTROLS)) $(addprefix --example ,load interop spire-agent)

setup:
	@tests/vm/setup.sh

check: setup
	$(say) 'format'
	cargo fmt --all --check
	cd bpf && cargo fmt --check
	$(say) 'lints'
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cd bpf && RUSTC=/usr/bin/rustc /usr/bin/cargo-clippy clippy --locked --release -- -D warnings
	shellcheck -x -P SCRIPTDIR .ci/run tests/vm/*.sh
	$(say) 'documentation'
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps

install:
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/bin $(addprefix target/release/,$(PRODUCT))
	install -D -m 644 -t $(DESTDIR)$(UNITS) systemd/*.service systemd/*.timer
	sed -i 's|/usr/bin/|$(PREFIX)/bin/|; s|/usr/share/|$(PREFIX)/share/|' $(patsubst systemd/%,$(DESTDIR)$(UNITS)/%,$(wildcard systemd/*.service systemd/*.timer))
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/doc/underseal README.md LICENSE* docs/metrics.md examples/underseal.toml examples/policy.toml examples/alerts.yaml examples/alerts_test.yaml
	install -D -m 644 bpf/LICENSE $(DESTDIR)$(PREFIX)/share/doc/underseal/LICENSE-GPL
