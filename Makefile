# make run     set up, and serve a small real model through nginx over TLS     (PORT=8443)
# make test    set up, and run every test, in several PROCESSES                 (TESTS=core/tests picks some, in one)
# make lint    formatting, style, types                                        make docs    write the generated pages anew
# make test-sdks      install LangChain and other clients' packages into .headrace/sdks, and run the tests with them
# make test-vllm      install vLLM for the CPU into .headrace/vllm (3.4 GB), and run the tests of its plugin
# make test-engines   the same, and everything else that needs real engines
# make bench   what a request costs, beside nginx alone (BENCH="--help")       make bench-peers   other gateways to compare with

PORT ?= 8443
TESTS ?=
PROCESSES ?= 2
BENCH ?=
PYTHON ?=
PACKAGES := pyproject.toml uv.lock core/pyproject.toml $(wildcard plugins/*/pyproject.toml)
WHOLE := --ignore=tests/engines --ignore=tests/sdks
SYNC := .venv/bin/uv sync --frozen --inexact --quiet
HEADRACE := .venv/bin/headrace --config conf/headrace.toml

# Installs a Debian package where that is allowed, and fails where it is not.
debian = { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && echo "headrace: installing $(1)" >&2 && \
    apt-get update -qq >&2 && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(1) >&2; }

.PHONY: run test test-sdks test-vllm test-engines lint docs bench bench-peers clean
.SILENT:
.DELETE_ON_ERROR:

run: export HEADRACE_PORT = $(PORT)
run: .venv/.installed
	$(HEADRACE) nginx fetch >&2 || true
	$(HEADRACE) embedded fetch >&2
	exec $(HEADRACE) up

test: .venv/.installed-dev
	sh tests/setup.sh
	$(HEADRACE) embedded fetch >&2
	test -z "$(TESTS)" || exec .venv/bin/pytest $(TESTS); \
	test -n "$(TESTS)" || { .venv/bin/pytest -q -m alone $(WHOLE); alone=$$?; \
	    .venv/bin/pytest -q -n $(PROCESSES) --dist loadfile -m "not alone" $(WHOLE) && exit $$alone; }

test-engines: .venv/.installed-dev
	sh tests/setup.sh engines
	test -n "$$HEADRACE_VLLM_PYTHON" || sh tests/engines/setup.sh
	.venv/bin/pytest tests/engines

test-vllm: .venv/.installed-dev
	sh tests/setup.sh engines
	test -n "$$HEADRACE_VLLM_PYTHON" || sh tests/engines/setup.sh
	.venv/bin/pytest tests/engines/test_vllm_api.py tests/engines/test_vllm_launcher.py

test-sdks: .venv/.installed-dev
	sh tests/setup.sh
	sh tests/sdks/setup.sh
	.venv/bin/pytest tests/sdks

lint: .venv/.installed-dev
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/mypy
	.venv/bin/python docs/generate.py --check

docs: .venv/.installed-dev
	.venv/bin/python docs/generate.py

bench: .venv/.installed-dev
	.venv/bin/python tests/bench/run.py $(BENCH)

bench-peers: .venv/.installed-dev
	.venv/bin/python tests/bench/peers.py

.venv/.installed: $(PACKAGES) | .venv/bin/uv
	echo "headrace: installing the packages into .venv" >&2
	$(SYNC) --no-dev
	.venv/bin/python -c 'import xllamacpp' 2>/dev/null || $(call debian,libgomp1) || { \
	    echo "the engine needs libgomp: install it (Debian: apt install libgomp1)" >&2; exit 1; }
	touch $@

.venv/.installed-dev: .venv/.installed
	echo "headrace: installing the packages and the tools for development into .venv" >&2
	$(SYNC)
	touch $@

.venv/bin/uv:
	rm -rf .venv; python=; \
	for each in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11); do \
	    if "$$each" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$each; break; fi; \
	done; \
	test -n "$$python" || { echo "Headrace needs Python 3.11 or newer: install it (Debian: apt install python3 python3-venv," \
	    "macOS: brew install python) or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }; \
	"$$python" -c 'import ensurepip' 2>/dev/null || $(call debian,python3-venv) || { echo "$$python cannot make virtual environments:" \
	    "install its venv module (Debian: apt install python3-venv)" >&2; exit 1; }; \
	"$$python" -m venv .venv && .venv/bin/python -m pip install --quiet --disable-pip-version-check "uv>=0.9"

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache
