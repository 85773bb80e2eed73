# Everything a developer or a first user does here, as one word each. `make help` lists them.
#
# Settings: `ARGS=...` is passed on, as in `make demo ARGS=--help`. With `STRICT=1`, what cannot run on this machine is
# an error. `UV_PYTHON=3.12 UV_PROJECT_ENVIRONMENT=.venv-3.12` uses another Python, in an environment of its own.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.NOTPARALLEL:
.DEFAULT_GOAL := help

# Runs a command in the environment, which is first brought up to date: the core is built if its sources have changed.
RUN = tools/uv run --locked $(if $(wildcard python/speadrx/_core.abi3.so),,--reinstall-package speadrx)
RUN_TEST = $(RUN) --group test

# All that need anything begin by checking that the machine has it.
HABITS := build demo test test-all test-system lint fuzz sanitize sanitize-wire soak faults matrix screens bench performance budgets wheel
.PHONY: help preflight fresh clean $(HABITS)
$(HABITS): preflight

help: ## List the habits
	@echo "usage: make HABIT [ARGS=...] [STRICT=1]"
	@awk -F ': .*## ' '/^[a-z-]+: .*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## Build, then receive from a simulated array on loopback and account for every heap
	@$(RUN) --extra cli speadrx demo $(ARGS)

build: ## Build the core, and install the package into .venv with all that tests need
	$(RUN_TEST) python -c 'import speadrx'

test: ## Run the tests of the core and of the package, but for the slow ones
	cargo test
	$(RUN_TEST) pytest --ignore tests/system -m 'not slow' $(ARGS)

test-all: test test-system ## Run `make test`, and all that it leaves out because it takes long
	$(RUN_TEST) tools/test-variants
	$(RUN_TEST) pytest --ignore tests/system -m slow $(ARGS)

test-system: ## Run the tests that need programs of the system: Prometheus, ip and nft (as root)
	$(RUN_TEST) pytest tests/system $(ARGS)

lint: ## Check formatting, lints, types, stubs and scripts
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	cargo clippy --all-targets --features python -- -D warnings
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --manifest-path fuzz/Cargo.toml --target-dir $(or $(CARGO_TARGET_DIR),target)/fuzz-lint -- -D warnings
	$(RUN) --group lint ruff check
	$(RUN) --group lint ruff format --check
	$(RUN) --group lint mypy
	$(RUN) --group lint lint-imports
	$(RUN) --group lint stubtest --mypy-config-file pyproject.toml speadrx._core
	$(RUN) --group lint shellcheck --external-sources .ci/run tools/*

fuzz: ## Fuzz each target for FUZZ_SECONDS=600, and keep what is new in the corpus of this machine
	@tools/fuzz

sanitize: ## Run the Rust tests under the sanitizers for addresses and threads
	tools/sanitize addresses
	tools/sanitize threads

sanitize-wire: ## Send PACKETS=1000000 hostile packets to receivers that an address sanitizer watches
	@$(RUN_TEST) tools/sanitize wire

soak: ## Receive at the highest rate without drops for SOAK_SECONDS=600: memory flat, no heap lost
	@$(RUN_TEST) python benches/soak.py --seconds $(or $(SOAK_SECONDS),600) $(ARGS)

faults: ## Run the tests of the faults, and write what they saw into doc/faults.md
	@$(RUN_TEST) tools/faults $(ARGS)

matrix: ## Play all that may happen to an array to receivers, and write what was lost into doc/matrix.md
	@$(RUN_TEST) python tests/support/matrix.py $(ARGS)

screens: ## Run every command in terminals, and write what they show into doc/screens.md
	@$(RUN_TEST) python tests/support/screens.py

bench: ## Compare with rivals, one table, which is written to target/performance.json (15 minutes; ARGS=--quick)
	@$(RUN_TEST) --extra cli python benches/table.py $(ARGS)

performance: ## Measure on a machine that does nothing else, and make doc/performance.md of it (15 minutes)
	@$(RUN_TEST) --extra cli python benches/table.py --json doc/performance.json $(ARGS)
	@$(RUN_TEST) --extra plot python benches/performance.py

budgets: ## Count instructions per heap and packet (valgrind), and compare with benches/budgets.toml
	@$(RUN) python benches/budgets.py $(ARGS)

wheel: ## Build the wheel into dist/, for every glibc from 2.28 and every CPython from 3.11 on
	tools/uv run --locked --only-group wheel maturin build --release --zig --compatibility manylinux_2_28 --out dist

fresh: ## Run `make demo` and `make test` in a minimal Debian 13 (as root, with mmdebstrap)
	@tools/fresh

clean: ## Remove the environment and everything built
	rm -rf .venv .uv target dist python/speadrx/_core*.so
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

preflight:
	@tools/preflight
