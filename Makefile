# `make demo` and `make test` are all the set-up there is; both work on a fresh clone.
PYTHON ?= python3
# The release that tests were run with. For a build without CUDA, see CONTRIBUTING.md.
TORCH ?= torch==2.13.0
PIP = .venv/bin/pip install --quiet --disable-pip-version-check

.PHONY: demo test check clean
.DEFAULT_GOAL := demo

demo: .venv/cpu
	.venv/bin/cdiff-rt generate --mask examples/1.png --text "$$(cat examples/1.txt)" --out out --force

test: .venv/test
	.venv/bin/python -m pytest

check: .venv/test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/python -m pytest -q

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/cpu: pyproject.toml | .venv/bin/python
	$(PIP) -e ".[cpu]"
	touch $@

.venv/test: pyproject.toml | .venv/bin/python
	$(PIP) $(TORCH)
	$(PIP) -e ".[test]"
	touch $@ .venv/cpu

clean:
	rm -rf .venv build dist *.egg-info out
