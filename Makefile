# Needs Rust, make and git; the targets install the rest (.ci/setup). No PostgreSQL has to run, no variable to be set.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

.PHONY: help demo test faults bench fmt

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The profile that `make test` builds too: without thin LTO it is ready much sooner, and it is fast enough to watch.
demo: ## a service, a receiver and deliveries to watch, in one terminal (KEEP=1 leaves it running)
	@.ci/setup demo
	@cargo build --locked
	@cargo run --quiet --locked -- demo $(if $(KEEP),--keep)

# The tests come last, and all of them run, so that the summary counts every one.
test: ## everything that has to pass: format, lints, contract, documentation, packaging, tests
	@.ci/setup test
	@echo "== format"
	@cargo fmt --check
	@echo "== lints"
	@cargo clippy --all-targets --locked -- -D warnings
	@echo "== contract"
	@target/tools/node_modules/.bin/buf lint
	@echo "== documentation"
	@RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --locked
	@echo "== packaging"
	@cargo build --locked
	@target/tools/venv/bin/python -B -m unittest discover --start-directory packaging/checks
	@echo "== tests"
	@mkdir -p target; status=0; \
	cargo test --locked --no-fail-fast 2>&1 | tee target/test.log || status=$$?; \
	awk '/^test result: / { for (i = 2; i <= NF; i++) { if ($$i ~ /^passed/) passed += $$(i - 1); if ($$i ~ /^failed/) failed += $$(i - 1) } } \
		END { printf "%d passed, %d failed\n", passed, failed }' target/test.log; \
	exit $$status

# Each case stops, kills or cuts off something for as long as it says; `make test` runs all of them in a short form.
faults: ## every fault in full against a release build, and what holds after each (about 5 min; as root also a full disk)
	@.ci/setup demo
	@HOOKLANE_FAULTS=full cargo test --release --locked --test faults -- --nocapture

bench: ## the throughput and latency of this machine, service and database on it
	@.ci/setup demo
	@cargo run --release --locked -- bench

fmt: ## format the code
	@cargo fmt
