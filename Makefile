# `make bench`, `make test` and `make check` set up the environment where it is missing.
PYTHON ?= python3
VENV ?= .venv
READY := $(VENV)/.ready
READY_CHECK := $(VENV)/.ready-check
# of the tests: processes, each with one thread; the tests of a file stay together, as they share what the file sets up,
# and in the order of the files: the long ones are in the middle, so that no process is left alone with one at the end
JOBS ?= auto
LONGEST := 350

.PHONY: bench test check lengths record record-check clean

bench: $(READY)
	$(VENV)/bin/purify bench

.PHONY: docs
docs: $(VENV)/.ready-docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict

$(VENV)/.ready-docs: $(READY)
	$(VENV)/bin/pip install --disable-pip-version-check --progress-bar off -e '.[docs]'
	@touch $@

test: $(READY)
	$(VENV)/bin/python -m pytest -n $(JOBS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder

check: $(READY_CHECK) lengths
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

# a file has one subject, and fits into a head
lengths:
	@find purify attacks benchmarks tests -name '*.py' -exec wc -l {} + | \
	    awk '$$2 != "total" && $$1 > $(LONGEST) { print $$2 ": " $$1 " lines, at most $(LONGEST)"; bad = 1 } END { exit bad }'
	@test ! -f README.md || awk 'END { if (NR > 150) { print "README.md: " NR " lines, at most 150"; exit 1 } }' README.md

# the record of results, bit for bit; on another machine write one from the revision to compare with, then check
record: $(READY)
	$(VENV)/bin/python tests/record/record.py write

record-check: $(READY)
	$(VENV)/bin/python tests/record/record.py check

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "purify needs Python 3.11 or newer; name one with PYTHON=..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --disable-pip-version-check --progress-bar off -e '.[test]'
	@touch $@

$(READY_CHECK): $(READY)
	$(VENV)/bin/pip install --disable-pip-version-check --progress-bar off -e '.[check]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
