# `make demo` and `make test` are all the set-up there is; both work on a fresh clone.
PYTHON ?= python3
# The release that tests were run with. For a build without CUDA, see CONTRIBUTING.md.
TORCH ?= torch==2.13.0
# Which a build with CUDA brings itself; a CPU build has none, and takes the same.
TRITON ?= $(if $(filter torch==2.13.0%,$(TORCH)),triton==3.7.1)
PIP = .venv/bin/pip install --quiet --disable-pip-version-check
# Two workers, each on a core of its own (tests/conftest.py). Whoever is idle takes over whole files, for what a file's
# tests share is made once in each worker.
TESTS = .venv/bin/python -m pytest -n 2 --dist loadfile
QUICK = -m "not slow and not long"

.PHONY: demo test test-slow test-all fuzz check lint clean
.DEFAULT_GOAL := demo

demo: .venv/cpu
	.venv/bin/cdiff-rt generate --mask examples/1.png --text "$$(cat examples/1.txt)" --out out --force

# What a change needs: about seven minutes on two cores.
test: .venv/test
	$(TESTS) $(QUICK)

# Golden data on every backend, engines for GPUs, training: some minutes more.
test-slow: .venv/test
	$(TESTS) -m "slow and not long"

# With those that go on and on to find what is rare.
test-all: .venv/test
	$(TESTS)

# What reads foreign bytes, each for SECONDS with damaged ones.
SECONDS ?= 10
fuzz: .venv/fuzz
	.venv/bin/python -m tests.fuzz all --seconds $(SECONDS)

lint: .venv/test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

check: lint
	$(TESTS) $(QUICK) -q

.venv/bin/python:
	@$(PYTHON) -c "import sys; \
	sys.version_info >= (3, 11) or sys.exit('cdiff-rt needs Python 3.11 or later, this is %s; ' \
	'run make with PYTHON=python3.12 or so' % sys.version.split()[0])"
	$(PYTHON) -m venv .venv

.venv/cpu: pyproject.toml | .venv/bin/python
	$(PIP) -e ".[cpu]"
	touch $@

.venv/test: pyproject.toml | .venv/bin/python
	$(PIP) $(TORCH)
	$(PIP) -e ".[test]" $(TRITON)
	touch $@ .venv/cpu

.venv/fuzz: .venv/test
	$(PIP) "atheris>=3.0" || echo "no atheris for this system: a seeded mutator takes its place"
	touch $@

clean:
	rm -rf .venv build dist *.egg-info out
