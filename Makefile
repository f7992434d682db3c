# make run     set up, and serve a small real model through nginx over TLS     (PORT=8443, CONFIG=conf/headrace.toml)
# make test    set up, and run every test                                      (TESTS=core/tests picks some)
# make lint    formatting, style, types                                        make docs    write the generated pages anew

PORT ?= 8443
CONFIG ?= conf/headrace.toml
TESTS ?=
PYTHON ?= $(firstword $(foreach name,python3.13 python3.12 python3.11 python3,$(shell command -v $(name) 2>/dev/null)))
PACKAGES := pyproject.toml uv.lock core/pyproject.toml $(wildcard plugins/*/pyproject.toml)
SYNC := .venv/bin/uv sync --frozen --inexact --quiet
HEADRACE := HEADRACE_PORT=$(PORT) .venv/bin/headrace --config $(CONFIG)

.PHONY: run test lint docs clean
.SILENT:
.DELETE_ON_ERROR:

run: .venv/.installed
	$(HEADRACE) nginx fetch >&2 || true
	$(HEADRACE) embedded fetch >&2
	exec $(HEADRACE) up

test: .venv/.installed-dev
	sh tests/setup.sh
	.venv/bin/headrace --config conf/headrace.toml embedded fetch >&2
	.venv/bin/pytest $(TESTS)

lint: .venv/.installed-dev
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/mypy
	.venv/bin/python docs/generate.py --check

docs: .venv/.installed-dev
	.venv/bin/python docs/generate.py

.venv/.installed: $(PACKAGES) | .venv/bin/uv
	echo "headrace: installing the packages into .venv" >&2
	$(SYNC) --no-dev
	touch $@

.venv/.installed-dev: $(PACKAGES) | .venv/bin/uv
	echo "headrace: installing the packages and the tools for development into .venv" >&2
	$(SYNC)
	touch $@ .venv/.installed

.venv/bin/uv:
	test -n "$(PYTHON)" || { echo "headrace needs Python 3.11 or newer: install it (Debian: apt install python3 python3-venv; macOS: brew install python)" >&2; exit 1; }
	"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "headrace needs Python 3.11 or newer, $(PYTHON) is older: install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments: apt install python3-venv" >&2; exit 1; }
	"$(PYTHON)" -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check "uv>=0.9"

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache
