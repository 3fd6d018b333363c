# `make bench` and `make test` set up the environment where it is missing.
PYTHON ?= python3
VENV ?= .venv
READY := $(VENV)/.ready

.PHONY: bench test clean

bench: $(READY)
	$(VENV)/bin/purify bench

.PHONY: docs
docs: $(VENV)/.ready-docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict

$(VENV)/.ready-docs: $(READY)
	$(VENV)/bin/pip install --disable-pip-version-check --progress-bar off -e '.[docs]'
	@touch $@

test: $(READY)
	$(VENV)/bin/python -m pytest

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "purify needs Python 3.11 or newer; name one with PYTHON=..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --disable-pip-version-check --progress-bar off -e '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache
