# Commands for a checkout. README names `make demo` and `make test`; the others are for those who work on it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export CARGO_TARGET_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/spanweld/target

# What Debian has to offer: compiler, libbpf, and what the tests look at the kernel and load services with.
PACKAGES := clang-19 clang-format-19 libclang-rt-19-dev libbpf-dev libbpf1 bpftool make gcc libc6-dev wrk strace gdb procps iproute2 \
	binutils git curl
VM_PACKAGES := qemu-system-x86 busybox-static

# `make matrix CELLS='0.3?/raw/* */tracing/fatlto' AGAIN=1`
CELLS :=
AGAIN :=

.PHONY: help build native packages vm-packages services demo test test-fast test-vm chain w3c matrix profiles \
	fuzz-inspect lint format bench clean

help:
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

build: $(VENV)/.installed native ## the command, at .venv/bin/spanweld

# apt is asked only for what is not there, so that it works without root once everything is.
packages:
	@tools/install_packages $(PACKAGES)

vm-packages:
	@tools/install_packages $(VM_PACKAGES)

$(VENV)/.installed: pyproject.toml | packages
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

native: $(VENV)/.installed
	$(BIN)/python build_native.py

services: packages ## the Rust services under test, debug and release
	cd services && cargo build --locked --quiet && cargo build --locked --quiet --release

demo: build ## a service under the agent, a real OTLP receiver, and the joined tree
	$(BIN)/python -m tools.demo

test: build lint services ## everything that CI runs, but the virtual machine
	$(BIN)/python -m pytest

test-fast: build ## without what takes minutes
	$(BIN)/python -m pytest -m 'not slow'

test-vm: build services vm-packages ## the kernel writer, in a virtual machine with Debian's 6.1
	$(BIN)/python -m pytest tests/vm

chain: build services ## three services under the agent, 5,000 requests: every parent as they recorded it
	$(BIN)/python -m tests.support.chain

w3c: build services ## the W3C trace-context suite (fetched with git) against a service without tracing
	$(BIN)/python -m tests.w3c

# Hours from nothing; what is built and joined is kept. See tests/matrix/__main__.py.
matrix: build ## docs/matrix.md: each SDK version, API and build profile tried; CELLS=PATTERNS, AGAIN=1
	set -f; $(BIN)/python -m tests.matrix $(if $(AGAIN),--again) $(CELLS)

profiles: build services ## the lab in every build profile under the agent: minutes of compiling for each
	rustup target add x86_64-unknown-linux-musl
	$(BIN)/python -m pytest tests/profiles

CASES ?= 10000
FIRST ?= 0
SEED ?= 1
fuzz-inspect: build services ## inspect on damaged executables (CASES, FIRST, SEED): half an hour
	$(BIN)/python -m tests.fuzz.inspect_run --cases $(CASES) --first $(FIRST) --seed $(SEED)

lint: build ## types, style, generated files
	$(BIN)/mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	git ls-files '*.c' '*.h' | xargs clang-format-19 --dry-run --Werror
	$(BIN)/python tools/generate_events.py --check

format: build
	$(BIN)/ruff check --fix --quiet || true
	$(BIN)/ruff format
	git ls-files '*.c' '*.h' | xargs clang-format-19 -i

bench: build services ## figures for docs/performance.md
	$(BIN)/python -m bench.head_cost
	$(BIN)/python -m bench.inline_cost
	$(BIN)/python -m bench.throughput
	$(BIN)/python -m bench.tasks
	$(BIN)/python -m bench.inspect_cost

clean:
	rm -rf $(VENV) src/spanweld/bpf/objects src/spanweld/writers/bin
