# SPDX-License-Identifier: Apache-2.0
# The menu. Everything real is in Meson, and in scripts/.
BUILD ?= build
PYTHON ?= /usr/bin/python3

.PHONY: help setup build data demo demo-torch demo-torch-images install test test-cuda asan tsan fuzz chaos chaos-snapshots sim \
	sim-exhaustive bench \
	bench-pipeline bench-snapshots bench-torch lab compare compare-quick plan-check convergence format tidy \
	clean

help:
	@echo "make demo         set up, build, prepare the King James text, train two sites on it (6 minutes)"
	@echo "make demo-torch   the same for PyTorch: two sites, beside AllReduce and one site alone (4 minutes)"
	@echo "make demo-torch-images  two sites train a residual network on Fashion-MNIST (3 minutes)"
	@echo "make test         set up, build, run every test (15 minutes)"
	@echo "make build        build/dilocox, libdilocox, libdilocox_train"
	@echo "make install      libraries, headers, command and man pages; below DESTDIR where it is set"
	@echo "make data         data/kjv.{train,validation}.tokens"
	@echo "make asan tsan    the tests under sanitizers (make test runs them too)"
	@echo "make fuzz         the decoders' fuzzers, a minute each"
	@echo "make chaos        200 kills at random moments (8 minutes); SECONDS=n: all kinds of faults, for so long; SEED=n repeats their choice"
	@echo "make chaos-snapshots  200 kills of a site that writes snapshots (2 minutes); KILLS=n, SEED=n"
	@echo "make sim          10,000 simulated runs (a minute); SEEDS=N: as many; SEED=S: only that one, verbose"
	@echo "make sim-exhaustive  all that can happen in small runs (10 minutes)"
	@echo "make bench        the training step and the codec, measured"
	@echo "make bench-pipeline  two stages beside two threads, and how long stages wait (15 minutes)"
	@echo "make bench-snapshots  training that writes snapshots beside training that writes none (20 minutes)"
	@echo "make bench-torch  what DiLoCo costs a PyTorch loop, and its losses beside the native trainer's (15 minutes)"
	@echo "make lab          what the network lab's links do, measured with iperf3 and ping (2 minutes; root)"
	@echo "make compare      the methods on slow links, against AllReduce (30 minutes; root)"
	@echo "make compare-quick  four of them on two links (5 minutes; root)"
	@echo "make plan-check   what 'dilocox plan' predicts and advises, against runs (10 minutes; root)"
	@echo "make convergence  the tables of docs/convergence.md, measured anew (an hour; npm)"
	@echo "make format       clang-format over the tree"
	@echo "make tidy         clang-tidy over src/, cli/ and examples/ (5 minutes)"

setup:
	@scripts/setup.sh

$(BUILD)/build.ninja:
	@meson setup $(BUILD) --werror > $(BUILD).log 2>&1 || { cat $(BUILD).log; exit 1; }

build: $(BUILD)/build.ninja
	@ninja -C $(BUILD) --quiet
	@ln -sf cli/dilocox $(BUILD)/dilocox

install: build
	@meson install -C $(BUILD) --quiet

data: build
	@scripts/data.sh $(BUILD)/dilocox

demo:
	@scripts/setup.sh --without-tests
	@$(MAKE) --no-print-directory data
	@$(BUILD)/dilocox launch examples/quickstart.yaml --sites 2

demo-torch: setup data
	@PYTHONPATH=python $(PYTHON) examples/torch/demo.py

demo-torch-images: setup build
	@PYTHONPATH=python $(PYTHON) examples/torch/demo.py --images

test-cuda: build
	@meson test -C $(BUILD) python_torch_cuda --print-errorlogs

test: setup
	@$(MAKE) --no-print-directory data
	@meson test -C $(BUILD) --print-errorlogs
	@$(MAKE) --no-print-directory asan tsan

# Traces have lines, debuggers no variables: a fifth less to compile. Warnings are the other build's.
SANITIZED := -Db_lundef=false -Doptimization=2 -Ddebug=false -Dc_args='-g1 -w'

build-asan/build.ninja:
	@meson setup build-asan -Db_sanitize=address,undefined $(SANITIZED) > build-asan.log || { cat build-asan.log; exit 1; }

build-tsan/build.ninja:
	@meson setup build-tsan -Db_sanitize=thread $(SANITIZED) > build-tsan.log || { cat build-tsan.log; exit 1; }

# Detecting leaks needs ptrace, which containers may refuse.
asan: build-asan/build.ninja
	@ninja -C build-asan --quiet
	@ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
		meson test -C build-asan --suite unit --suite kernels --suite process --suite fuzz --print-errorlogs --timeout-multiplier 4

tsan: build-tsan/build.ninja
	@ninja -C build-tsan --quiet of_threads
	@meson test -C build-tsan --suite threads --print-errorlogs --timeout-multiplier 4

fuzz: build-asan/build.ninja
	@ninja -C build-asan --quiet
	@scripts/fuzz.sh build-asan/tests

bench-torch: data
	@PYTHONPATH=python $(PYTHON) bench/torch_overhead.py --step $(BUILD)/tests/step
	@PYTHONPATH=python $(PYTHON) bench/torch_equal.py --dilocox $(BUILD)/dilocox

chaos: build
	@DILOCOX=$(CURDIR)/$(BUILD)/dilocox SOURCE_ROOT=$(CURDIR) BUILD_ROOT=$(CURDIR)/$(BUILD) PYTHONDONTWRITEBYTECODE=1 \
		$(PYTHON) tests/process/test_chaos.py --at-once 3 $(if $(SECONDS),--seconds $(SECONDS),--kills $(or $(KILLS),200)) $(if $(SEED),--seed $(SEED))

chaos-snapshots: build
	@DILOCOX=$(CURDIR)/$(BUILD)/dilocox SOURCE_ROOT=$(CURDIR) BUILD_ROOT=$(CURDIR)/$(BUILD) PYTHONDONTWRITEBYTECODE=1 \
		$(PYTHON) tests/process/test_snapshot_kills.py --kills $(or $(KILLS),200) $(if $(SEED),--seed $(SEED))

# Two processes, each with half of the seeds.
SEEDS ?= 10000
sim: build
ifdef SEED
	@$(BUILD)/tests/sim_run --seed $(SEED) --runs 1 --verbose
else
	@half=$$((($(SEEDS) + 1) / 2)); \
		$(BUILD)/tests/sim_run --seed 1 --runs $$half & first=$$!; \
		$(BUILD)/tests/sim_run --seed $$((half + 1)) --runs $$(($(SEEDS) - half)); second=$$?; \
		wait $$first && exit $$second
endif

sim-exhaustive: build
	@$(BUILD)/tests/sim_exhaustive

bench: build
	@$(BUILD)/dilocox bench model
	@$(BUILD)/dilocox bench codec

bench-pipeline: build
	@$(PYTHON) bench/pipeline.py --dilocox $(BUILD)/dilocox

bench-snapshots: build
	@taskset -c 1 $(PYTHON) bench/snapshots.py --dilocox $(BUILD)/dilocox

lab: build
	@bench/lab --self-test

compare: data
	@$(PYTHON) bench/compare.py --dilocox $(BUILD)/dilocox

compare-quick: data
	@$(PYTHON) bench/compare.py --dilocox $(BUILD)/dilocox --quick

plan-check: data
	@$(PYTHON) bench/plan_check.py --dilocox $(BUILD)/dilocox

convergence: data
	@scripts/data-sotu.sh $(BUILD)/dilocox
	@$(PYTHON) bench/convergence.py --dilocox $(BUILD)/dilocox

format:
	@clang-format -i $$(git ls-files '*.c' '*.h')

tidy: build
	@command -v run-clang-tidy > /dev/null || { echo "tidy: clang-tidy is missing; apt-get install clang-tidy" >&2; exit 1; }
	@run-clang-tidy -quiet -p $(BUILD) '^$(CURDIR)/(src|cli|examples)/' > $(BUILD)/tidy.log 2>&1 || \
		{ grep -A 3 -E '(warning|error): ' $(BUILD)/tidy.log; exit 1; }

clean:
	rm -rf build build-asan build-tsan build.log
