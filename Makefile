# Everything a developer or a first user does here, as one word each. `make help` lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.NOTPARALLEL:
.DEFAULT_GOAL := help

# The interpreter to make the environment with. Empty: the newest that will do is picked.
PYTHON ?=
PYTHONS := python3.14 python3.13 python3.12 python3.11 python3
VENV ?= .venv
# Passed on to the command: `make demo ARGS=--help`, `make test-python ARGS='-k readers'`.
ARGS ?=
# 1: what would be left out for want of something on this machine is an error instead.
STRICT ?= 0

BIN := $(VENV)/bin
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
MIN_RUST := $(shell sed -n 's/^rust-version *= *"\(.*\)"/\1/p' Cargo.toml)
CORE_SOURCES := Cargo.toml $(wildcard Cargo.lock) pyproject.toml $(shell find src -name '*.rs')

# Tools look for an environment of their own in these; ours is VENV and nothing else.
unexport CONDA_PREFIX PYTHONHOME PYTHONPATH
# cargo must build against the interpreter that the Python tests run under.
export VIRTUAL_ENV := $(abspath $(VENV))
export PYO3_PYTHON := $(abspath $(BIN))/python
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# For the recipes: `die WHAT HOW` says what is missing and how to get it.
define SHELL_FUNCTIONS
die() { printf 'make: %s\n      %s\n' "$$1" "$$2" >&2; exit 1; }
endef

.PHONY: help demo test test-rust test-python test-system faults lint bench wheel build clean preflight

help: ## List the targets
	@echo "usage: make TARGET [PYTHON=python3.12] [VENV=.venv] [ARGS=...]"
	awk -F ': .*## ' '/^[a-z-]+: .*## /{printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.extra-cli ## Build, then receive from a simulated array on loopback and account for every heap
	@$(BIN)/speadrx demo $(ARGS)

test: test-rust test-python ## Run all tests

test-rust: $(VENV)/.made | preflight ## Run the Rust tests, without and with the Python module
	@set -x
	cargo test
	if cargo nextest --version >/dev/null 2>&1; then cargo nextest run; fi
	if [ -e tests/loom.rs ]; then
	    # Optimised, for loom runs every interleaving; without LTO, for it is linked far more often than run.
	    CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
	        RUSTFLAGS="$${RUSTFLAGS:-} --cfg loom" cargo test --release --target-dir '$(TARGET_DIR)/loom' --test loom
	fi
	{ set +x; } 2>/dev/null
	# A test executable that holds the Python module is linked to libpython, which not every Python brings.
	libdir=$$($(BIN)/python -c 'import sysconfig as s; print(s.get_config_var("LIBDIR"))')
	library=$$($(BIN)/python -c 'import sysconfig as s; print(s.get_config_var("LDLIBRARY"))')
	if [[ $$library == *.so && -e $$libdir/$$library ]]; then
	    set -x
	    LD_LIBRARY_PATH="$$libdir$${LD_LIBRARY_PATH:+:$$LD_LIBRARY_PATH}" cargo test --features python
	else
	    reason="there is no shared libpython in $$libdir (Debian has it in python3-dev)"
	    if [ '$(STRICT)' = 1 ]; then
	        echo "make: cannot run cargo test --features python: $$reason" >&2
	        exit 1
	    fi
	    echo "make: NOT RUN: cargo test --features python: $$reason" >&2
	fi

test-python: $(VENV)/.extra-test ## Run the Python tests
	@set -x
	$(BIN)/python -m pytest --ignore tests/system $(ARGS)

test-system: $(VENV)/.extra-test ## Run the tests that need programs of the system: Prometheus, ip and nft (as root)
	@set -x
	STRICT='$(STRICT)' $(BIN)/python -m pytest tests/system $(ARGS)

faults: $(VENV)/.extra-test ## Run the tests of the faults, and write what they saw into doc/faults.md
	@results='$(TARGET_DIR)/faults.json' cargo_output='$(TARGET_DIR)/faults.txt'
	rm -f "$$results"
	mkdir -p '$(TARGET_DIR)'
	status=0
	set -x
	cargo test --test callback --test properties --test snapshots 2>&1 | tee "$$cargo_output" || status=$$?
	STRICT='$(STRICT)' $(BIN)/python -m pytest -m fault --fault-results "$$results" $(ARGS) || status=$$?
	$(BIN)/python tests/fault_table.py "$$results" --cargo "$$cargo_output"
	exit $$status

lint: $(VENV)/.extra-lint ## Check formatting, lints, types and stubs
	@set -x
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	cargo clippy --all-targets --features python -- -D warnings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest --mypy-config-file pyproject.toml speadrx._core

bench: $(VENV)/.extra-test ## Run the benchmarks (Rust, then end to end)
	@set -x
	cargo bench
	for bench in benches/bench_*.py; do $(BIN)/python "$$bench"; done

wheel: $(VENV)/.made | preflight ## Build the wheel into dist/
	@set -x
	$(BIN)/maturin build --release --out dist

build: $(VENV)/.built ## Build the core and install the package into the environment, editable

clean: ## Remove the environment and everything built
	@set -x
	rm -rf '$(VENV)' target dist python/speadrx/_core*.so .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Everything needed that pip and cargo cannot get; each message says how to.
preflight:
	@$(SHELL_FUNCTIONS)
	command -v cargo >/dev/null && command -v rustc >/dev/null \
	    || die "no Rust: cargo and rustc are not on PATH" "Install Rust $(MIN_RUST) or newer: https://rustup.rs"
	rust=$$(rustc --version) \
	    || die "rustc is there but does not run" "With rustup, install a toolchain: rustup default stable"
	rust=$${rust#rustc } rust=$${rust%% *}
	printf '%s\n' '$(MIN_RUST)' "$$rust" | sort --check=quiet --version-sort \
	    || die "Rust $$rust is too old: $(MIN_RUST) or newer is needed" "With rustup: rustup update stable"
	command -v cc >/dev/null \
	    || die "no C compiler: Rust links with cc" "On Debian: apt-get install gcc libc6-dev"
	if [ -n '$(PYTHON)' ] && [ -x '$(BIN)/python' ]; then
	    version='import sys; print(*sys.version_info[:3], sep=".")'
	    asked=$$('$(PYTHON)' -c "$$version") || die "PYTHON=$(PYTHON) does not run" "Name another, or leave it out"
	    have=$$($(BIN)/python -c "$$version")
	    [ "$$asked" = "$$have" ] || die "$(VENV) has Python $$have, but PYTHON=$(PYTHON) is $$asked" \
	        "Use another environment (VENV=.venv-$$asked), or make clean first"
	fi

# An environment that is there already is kept, and added to.
$(VENV)/.made: | preflight
	@$(SHELL_FUNCTIONS)
	new_enough() { "$$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
	complete() { "$$1" -c 'import ensurepip, venv' 2>/dev/null; }
	if ! { new_enough $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1; }; then
	    python=
	    for candidate in $(or $(PYTHON),$(PYTHONS)); do
	        if new_enough "$$candidate"; then
	            python=$$candidate
	            if complete "$$candidate"; then break; fi
	        fi
	    done
	    [ -n "$$python" ] || die "no Python 3.11 or newer: none of $(or $(PYTHON),$(PYTHONS)) is one" \
	        "On Debian 12 or newer: apt-get install python3 python3-venv; or name one: make PYTHON=/path/to/python3.12"
	    complete "$$python" || die "$$python cannot make virtual environments" "On Debian: apt-get install python3-venv"
	    echo "Making $(VENV) with $$("$$python" --version)"
	    "$$python" -m venv --clear '$(VENV)'
	fi
	$(BIN)/python -c 'import tomllib
	print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' > '$(VENV)/build-requires'
	$(BIN)/python -m pip install --quiet --requirement '$(VENV)/build-requires'
	touch $@

# The library itself may be gone though the stamp is there (git clean leaves a nested environment alone).
$(VENV)/.built: $(VENV)/.made $(CORE_SOURCES) $(if $(wildcard python/speadrx/_core*.so),,missing-core) | preflight
	@echo "Building speadrx"
	PIP_QUIET=1 $(BIN)/maturin develop --release
	touch $@

.PHONY: missing-core
missing-core: ;

# The package is installed already: pip adds what the extra asks for beyond it.
$(VENV)/.extra-%: $(VENV)/.built
	@echo "Adding what the extra '$*' asks for"
	$(BIN)/python -m pip install --quiet 'speadrx[$*]'
	touch $@
