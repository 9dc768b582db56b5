# `make demo` and `make test` do all the set-up: a .venv with the versions of constraints.txt.
PYTHON ?= python3
READY := .venv/.ready

.PHONY: demo test lint

demo: $(READY)
	.venv/bin/unet demo

test: lint
	.venv/bin/python -m pytest -n 2 --dist worksteal

lint: $(READY)
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@
