# Every target does what it needs by itself, on a fresh machine with make, a C compiler, Rust and Python 3.11+.

PYTHON ?= python3
# Of `make test-pythons`: versions or paths.
PYTHONS ?= 3.11 3.12 3.13
# Of `make chaos`.
CHAOS_SECONDS ?= 7200
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
MODULE := pylib/src/rebeam/_rebeam.abi3.so
TARGET := $(CURDIR)/target
CARGO := cargo
DENY_VERSION := 0.20.2
# Of `make image`.
ENGINE := $(shell command -v podman > /dev/null && echo podman || echo docker)
# A health check is nothing that podman writes into an image of its own format.
BUILD := $(if $(filter podman,$(ENGINE)),podman --runtime runc build --network=host --format docker --quiet,docker build)
OWN_BASE := localhost/rebeam-base:latest
APP := examples/shop
IMAGE := localhost/rebeam-shop:latest
# cargo-nextest where it is installed, cargo's own runner elsewhere: the tests are the same.
RUN_TESTS := $(shell cargo nextest --version >/dev/null 2>&1 && echo "nextest run --no-fail-fast" || echo "test --no-fail-fast")

.DEFAULT_GOAL := help
.PHONY: help setup build demo demo-batch test test-rust test-python test-wheel test-pythons test-container image lint fmt deny bench bench-batch bench-peers soak chaos torture-reload torture-tables instructions wheel fuzz doc docs clean FORCE

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  %-12s %s\n", $$1, $$2 }'

setup: $(VENV)/tools ## the virtual environment with the tools of lint and test, at fixed versions

$(VENV)/made:
	$(PYTHON) -m venv $(VENV)
	echo $(CURDIR)/pylib/src > $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/rebeam-dev.pth
	touch $@

$(VENV)/tools: $(VENV)/made pylib/requirements-dev.txt
	$(BIN)/python -m pip install --quiet --requirement pylib/requirements-dev.txt
	touch $@

build: $(VENV)/made FORCE ## both binaries and the module, for development
	$(CARGO) build --workspace
	@# Moved into place, so that a running interpreter keeps the file it has mapped.
	cp $(TARGET)/debug/lib_rebeam.so $(MODULE).new && mv $(MODULE).new $(MODULE)
	ln -sf $(TARGET)/debug/rebeam $(BIN)/rebeam

demo: build ## the main job: a census of the standard library by actors that are killed while they work
	VIRTUAL_ENV=$(VENV) $(BIN)/rebeam up examples/census/app.py

demo-batch: build ## a pipeline over the standard library's sources, with a crash, a leak and a hang among them
	cd examples/batch_sources && VIRTUAL_ENV=$(VENV) $(BIN)/rebeam batch --project . modules.py --fresh; [ $$? = 4 ] && $(BIN)/python check.py

test: test-rust test-python test-wheel ## all tests

test-rust: build setup
	REBEAM_TEST_PYTHON=$(BIN)/python $(CARGO) $(RUN_TESTS) --workspace

test-python: build setup
	$(BIN)/python -m pytest pylib/tests

test-wheel: wheel
	integration-tests/wheel.sh $(BIN)/python dist/*.whl

test-pythons: ## the suite, the package's own tests and the wheel on every Python of PYTHONS that the machine has
	integration-tests/pythons.sh $(PYTHONS)

docs: ## docs/reference/otp.md, from the names of the tests
	$(PYTHON) docs/reference/otp.py

lint: setup build deny ## formatting, clippy, ruff, mypy, pyright, rejected phrases
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(BIN)/ruff format --check pylib examples docs
	$(BIN)/ruff check pylib examples docs
	$(BIN)/mypy
	MYPYPATH=examples/census:pylib/src $(BIN)/mypy examples/census
	MYPYPATH=pylib/src $(BIN)/mypy examples/shop
	MYPYPATH=examples/mcp_host:pylib/src $(BIN)/mypy examples/mcp_host
	MYPYPATH=examples/batch_sources:pylib/src $(BIN)/mypy examples/batch_sources
	$(BIN)/basedpyright --level error
	$(PYTHON) docs/reference/otp.py --check
	$(PYTHON) docs/check_style.py

fmt: setup ## put everything into shape
	$(CARGO) fmt --all
	$(BIN)/ruff format pylib examples docs
	$(BIN)/ruff check --fix pylib examples docs

deny: .tools/bin/cargo-deny ## licences, sources and the graph of the crates
	PATH="$(CURDIR)/.tools/bin:$$PATH" cargo deny check bans licenses sources

.tools/bin/cargo-deny:
	$(CARGO) install cargo-deny --version $(DENY_VERSION) --locked --root .tools

bench: $(VENV)/made ## figures beside their floors, as ratios of one run
	$(BIN)/python -m pip install --quiet lmdb pandas 'uvicorn[standard]'
	$(CARGO) build --release --workspace
	cp $(TARGET)/release/lib_rebeam.so $(MODULE).new && mv $(MODULE).new $(MODULE)
	@# As an installed package is.
	$(BIN)/python -m compileall -q pylib/src
	VIRTUAL_ENV=$(VENV) $(TARGET)/release/rebeam-benches $(TARGET)/release/rebeam

bench-peers: $(VENV)/made ## the same work on other runtimes, in an environment of their own
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --requirement benches/requirements-peers.txt
	$(CARGO) build --release --workspace
	cp $(TARGET)/release/lib_rebeam.so $(MODULE).new && mv $(MODULE).new $(MODULE)
	@# As an installed package is.
	$(BIN)/python -m compileall -q pylib/src
	VIRTUAL_ENV=$(VENV) REBEAM=$(TARGET)/release/rebeam .venv-peers/bin/python benches/peers.py
	.venv-peers/bin/python benches/chart.py

bench-batch: $(VENV)/made ## items per second of `rebeam batch` beside other pools
	$(BIN)/python -m pip install --quiet joblib
	$(CARGO) build --release --workspace
	cp $(TARGET)/release/lib_rebeam.so $(MODULE).new && mv $(MODULE).new $(MODULE)
	@# As an installed package is.
	$(BIN)/python -m compileall -q pylib/src
	VIRTUAL_ENV=$(VENV) $(BIN)/python benches/batch.py $(TARGET)/release/rebeam

torture-reload: build setup ## reloads under load, killed in each step: 20 seeds, 50 reloads and 10,000 messages each
	REBEAM_RELOAD_SEEDS=20 REBEAM_RELOADS=50 REBEAM_RELOAD_MESSAGES=10000 REBEAM_TEST_PYTHON=$(BIN)/python \
		$(CARGO) test -p integration-tests --test main -- --exact \
		reload::nothing_is_lost_or_doubled_under_load_whichever_step_of_a_reload_is_killed

torture-tables: build ## twice ten minutes of readers of the tables and their store, stopped and killed at any moment
	REBEAM_TORTURE_S=600 $(CARGO) test --release -p rebeam-store --test torture -- --nocapture --test-threads 1
	REBEAM_TORTURE_S=600 $(CARGO) test -p integration-tests --test main torture_tables -- --nocapture

soak: $(VENV)/made ## ten minutes of examples/shop under load, with a kill every second
	$(CARGO) build --release --workspace
	cp $(TARGET)/release/lib_rebeam.so $(MODULE).new && mv $(MODULE).new $(MODULE)
	VIRTUAL_ENV=$(VENV) $(PYTHON) benches/soak.py $(TARGET)/release/rebeam

chaos: build setup ## two hours of actors killed in every way (CHAOS_SECONDS=7200, REBEAM_CHAOS_SEED= to repeat a run)
	REBEAM_CHAOS_SECONDS=$(CHAOS_SECONDS) REBEAM_TEST_PYTHON=$(BIN)/python \
		$(CARGO) test -p integration-tests --test main -- --exact --nocapture chaos::chaos

instructions: ## what the core spends on a message, in instructions, beside the committed baseline (needs valgrind)
	$(CARGO) build --release -p rebeam-benches
	$(PYTHON) benches/instructions.py $(TARGET)/release/hot_path

wheel: setup ## one wheel in dist/ with binaries, module and package
	rm -rf dist pylib/build
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist ./pylib
	@# Left there, it would make the sources an installed package, plugin of pytest and all.
	rm -rf pylib/src/*.egg-info

image: wheel ## an image of examples/shop, from a base that the machine makes (BASE=… for another, APP=… for another)
	$(if $(BASE),,$(ENGINE) image inspect $(OWN_BASE) > /dev/null 2>&1 || deploy/base.sh $(OWN_BASE) $(ENGINE))
	$(BUILD) --file deploy/Dockerfile --build-arg BASE=$(or $(BASE),$(OWN_BASE)) \
		--build-arg APP=$(APP) --tag $(IMAGE) .

test-container: ## the image, run for real (needs podman, runc and debootstrap, and installs them where it may)
	@if { command -v podman && command -v runc && command -v debootstrap; } > /dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq \
		&& apt-get install -qq --yes --no-install-recommends podman runc debootstrap > /dev/null; }; then \
		$(MAKE) image APP=integration-tests/container IMAGE=localhost/rebeam-test:latest \
			&& integration-tests/container.sh localhost/rebeam-test:latest; \
	else \
		echo "NOT TESTED: the container; podman, runc and debootstrap are not available here" >&2; \
	fi

fuzz: ## a minute of each fuzz target, from the inputs found before (needs a nightly toolchain and cargo-fuzz)
	cd fuzz && mkdir -p corpus && for target in frames messages core; do \
		tar xzf seeds/$$target.tar.gz -C corpus && cargo +nightly fuzz run $$target -- -max_total_time=60 || exit 1; \
	done

doc: ## the documentation of the crates
	$(CARGO) doc --workspace --no-deps

clean: ## everything that was made
	$(CARGO) clean
	rm -rf .venv .tools dist pylib/build $(MODULE)
