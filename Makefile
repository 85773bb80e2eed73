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

# Seconds for each fuzz target (`make fuzz`) and for the soak; hostile packets of `make sanitize-wire`.
FUZZ_SECONDS ?= 600
SOAK_SECONDS ?= 600
PACKETS ?= 1000000

.PHONY: help demo test test-rust test-python test-system faults fuzz fuzz-short sanitize sanitize-rust sanitize-threads \
    sanitize-wire soak screens lint bench wheel build clean preflight

help: ## List the targets
	@echo "usage: make TARGET [PYTHON=python3.12] [VENV=.venv] [ARGS=...]"
	awk -F ': .*## ' '/^[a-z-]+: .*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

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

# Sanitizers and what fuzzers count with are unstable: this has a stable compiler take them too.
NIGHTLY := RUSTC_BOOTSTRAP=1
HOST = $(shell rustc -vV | sed -n 's/^host: //p')
FUZZ_TARGETS := layout place toml
# What would wrap unnoticed is an error here; without LTO, for these are built more often than they run.
CHECKED := CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
    CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true

# fuzz_for SECONDS NEW: fuzz each target for so long, from the kept corpus; what is new goes below the directory NEW.
define FUZZ_FOR
fuzz_for() {
    cargo fuzz --version >/dev/null 2>&1 || die "no cargo-fuzz" "cargo install cargo-fuzz --locked"
    command -v c++ >/dev/null || die "no C++ compiler: libFuzzer is C++" "On Debian: apt-get install g++"
    export $(NIGHTLY)
    cargo fuzz build --target-dir '$(TARGET_DIR)/fuzz'
    local target log status=0
    for target in $(FUZZ_TARGETS); do
        mkdir -p "$$2/$$target"
        log=$$2/$$target.log
        dictionary=
        if [ -e fuzz/$$target.dict ]; then dictionary=-dict=fuzz/$$target.dict; fi
        cargo fuzz run --target-dir '$(TARGET_DIR)/fuzz' $$target "$$2/$$target" fuzz/corpus/$$target -- \
            -max_total_time=$$1 -max_len=512 -print_final_stats=1 $$dictionary >"$$log" 2>&1 \
            || { status=$$?; tail -n 100 "$$log" >&2; }
        sed -n "s/^Done \([0-9]*\) runs in \([0-9]*\) .*/fuzz $$target: \1 executions in \2 s/p" "$$log"
    done
    return $$status
}
endef

fuzz: | preflight ## Fuzz each target for FUZZ_SECONDS, and add what is new to the corpus of this machine
	@$(SHELL_FUNCTIONS)
	$(FUZZ_FOR)
	fuzz_for $(FUZZ_SECONDS) '$(TARGET_DIR)/fuzz/corpus'

fuzz-short: | preflight ## Fuzz each target for some seconds, from the kept corpus
	@$(SHELL_FUNCTIONS)
	$(FUZZ_FOR)
	new=$$(mktemp -d)
	trap 'rm -rf "$$new"' EXIT
	fuzz_for 20 "$$new"

sanitize: sanitize-rust sanitize-threads ## Run the Rust tests under the sanitizers for addresses and threads

sanitize-rust: | preflight
	@set -x
	$(NIGHTLY) $(CHECKED) RUSTFLAGS=-Zsanitizer=address \
	    cargo test --release --lib --tests --target $(HOST) --target-dir '$(TARGET_DIR)/sanitize'

# The standard library must be instrumented too: it is built from its sources.
sanitize-threads: | preflight
	@if [ ! -e "$$(rustc --print sysroot)/lib/rustlib/src/rust/library/Cargo.lock" ]; then
	    reason="there are no sources of the standard library (rustup component add rust-src)"
	    if [ '$(STRICT)' = 1 ]; then
	        echo "make: cannot run the sanitizer for threads: $$reason" >&2
	        exit 1
	    fi
	    echo "make: NOT RUN: the sanitizer for threads: $$reason" >&2
	    exit 0
	fi
	set -x
	$(NIGHTLY) $(CHECKED) RUSTFLAGS=-Zsanitizer=thread cargo test -Zbuild-std --release --lib --test snapshots \
	    --target $(HOST) --target-dir '$(TARGET_DIR)/sanitize-threads'

# The sources of the package, with a core of their own beside them.
SANITIZED := $(TARGET_DIR)/sanitize/python
sanitize-wire: $(VENV)/.extra-test ## Send PACKETS hostile packets to receivers that an address sanitizer watches
	@set -x
	$(NIGHTLY) $(CHECKED) RUSTFLAGS=-Zsanitizer=address cargo build --release --lib --features abi3 \
	    --target $(HOST) --target-dir '$(TARGET_DIR)/sanitize'
	rm -rf '$(SANITIZED)'
	mkdir -p '$(SANITIZED)'
	cp -r python/speadrx '$(SANITIZED)'
	rm -f '$(SANITIZED)'/speadrx/_core*.so
	cp '$(TARGET_DIR)/sanitize/$(HOST)/release/libspeadrx.so' '$(SANITIZED)/speadrx/_core.abi3.so'
	# Its runtime must come first. Python itself leaks on purpose, and its own allocator would hide small overruns.
	export PYTHONPATH='$(abspath $(SANITIZED))' PYTHONMALLOC=malloc
	export ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=16
	{ set +x; } 2>/dev/null
	watched() { LD_PRELOAD="$$(cc -print-file-name=libasan.so) $$(cc -print-file-name=libstdc++.so.6)" "$$@"; }
	watched $(BIN)/python -c 'import speadrx._core, sys
	sys.exit(not speadrx._core.__file__.startswith(sys.argv[1]))' "$$PYTHONPATH"
	# The sanitizer must find a chunk that is one byte short, or its silence would prove nothing.
	! found=$$(watched $(BIN)/python tests/support/wire_fuzzer.py --short 2>&1)
	[[ $$found == *'AddressSanitizer: heap-buffer-overflow'* ]]
	watched $(BIN)/python tests/support/wire_fuzzer.py --exact --packets $(PACKETS)

soak: $(VENV)/.extra-test ## Receive at the highest rate without drops for SOAK_SECONDS: memory flat, no heap lost
	@$(BIN)/python benches/soak.py --seconds $(SOAK_SECONDS) $(ARGS)

faults: $(VENV)/.extra-test ## Run the tests of the faults, and write what they saw into doc/faults.md
	@results='$(TARGET_DIR)/faults.json' cargo_output='$(TARGET_DIR)/faults.txt'
	rm -f "$$results"
	mkdir -p '$(TARGET_DIR)'
	status=0
	set -x
	cargo test --test callback --test properties --test snapshots --test timeline 2>&1 | tee "$$cargo_output" || status=$$?
	STRICT='$(STRICT)' $(BIN)/python -m pytest -m fault --fault-results "$$results" $(ARGS) || status=$$?
	$(BIN)/python tests/support/fault_table.py "$$results" --cargo "$$cargo_output"
	exit $$status

screens: $(VENV)/.extra-test ## Run every command in terminals, and write what they show into doc/screens.md
	@$(BIN)/python tests/support/screens.py

lint: $(VENV)/.extra-lint ## Check formatting, lints, types and stubs
	@set -x
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	cargo clippy --all-targets --features python -- -D warnings
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --manifest-path fuzz/Cargo.toml --target-dir '$(TARGET_DIR)/fuzz-lint' -- -D warnings
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
