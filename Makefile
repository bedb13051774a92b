# Everything a developer runs. On a fresh machine `make test` or `make demo` alone does it all, virtual environment
# included; besides make it needs only coreutils and Python 3.11 to 3.13.

PYTHON ?= python3
PYTHON312 ?= python3.12
VENV ?= .venv
VENV_ARVIZ1 ?= .venv-arviz1
JOBS ?= 2

# Modules are run with -m, never the scripts in bin/, whose first lines break when the checkout moves.
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
STAMP_ARVIZ1 := $(VENV_ARVIZ1)/.installed

TEST_ENV := MPLBACKEND=Agg
PARALLEL :=
ifneq ($(JOBS),1)
# With several workers, each keeps to one thread elsewhere.
TEST_ENV += OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
# A file's tests stay in one worker and in order: each worker compiles only the kernels that its files use.
PARALLEL += -n $(JOBS) --dist loadfile
endif
PYTEST := $(PY) -m pytest $(PARALLEL)
# ArviZ 0.23 writes a file to the user's cache on its first import of a day, and fails where two workers do so at once.
WARM_UP := $(PY) -W ignore -c 'import arviz'

.DEFAULT_GOAL := help
.PHONY: help install lint format test test-slow test-arviz1 demo clean

help:
	@echo 'make install      virtual environment $(VENV) with this package (editable) and all its extras'
	@echo 'make lint         ruff check, ruff format --check, mypy'
	@echo 'make format       let ruff mend what it can, and format'
	@echo 'make test         the tests, then those marked meta with default device "meta"'
	@echo 'make test-slow    the tests marked slow'
	@echo 'make test-arviz1  the tests marked arviz against ArviZ 1.x, in $(VENV_ARVIZ1) (Python >= 3.12)'
	@echo 'make demo         tutorials/01_denoise_a_photograph.py'
	@echo 'make clean        remove caches and build outputs; virtual environments stay'
	@echo 'Variables: PYTHON=$(PYTHON) PYTHON312=$(PYTHON312) VENV=$(VENV) JOBS=$(JOBS)'

install: $(STAMP)

# An environment whose pip answers is kept; a missing or half-made one is (re)made.
$(STAMP): pyproject.toml constraints.txt
	$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev,demo]'
	@touch $@

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(STAMP)
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .

test: $(STAMP)
	@$(WARM_UP)
	$(TEST_ENV) $(PYTEST)
	$(TEST_ENV) PYRO_MIXTURES_TEST_DEVICE=meta $(PYTEST) -m 'meta and not slow'

test-slow: $(STAMP)
	@$(WARM_UP)
	$(TEST_ENV) $(PYTEST) -m slow

# The tested versions but for ArviZ's own. On Linux, PyPI's torch is the CUDA build of several GB; for the CPU build set
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu in the environment.
$(STAMP_ARVIZ1): pyproject.toml constraints.txt
	$(VENV_ARVIZ1)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON312) -m venv $(VENV_ARVIZ1)
	$(VENV_ARVIZ1)/bin/python -c 'print(*(line for line in open("constraints.txt") if not line.startswith("arviz==")), sep="", end="")' > $(VENV_ARVIZ1)/constraints.txt
	$(VENV_ARVIZ1)/bin/python -m pip install --disable-pip-version-check -c $(VENV_ARVIZ1)/constraints.txt -e '.[dev,demo]' 'arviz>=1'
	@touch $@

test-arviz1: $(STAMP_ARVIZ1)
	$(TEST_ENV) $(VENV_ARVIZ1)/bin/python -m pytest $(PARALLEL) -m 'arviz and not slow'

demo: $(STAMP)
	MPLBACKEND=Agg $(PY) tutorials/01_denoise_a_photograph.py

clean:
	rm -rf build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	$(PYTHON) -c 'import pathlib, shutil; [shutil.rmtree(cache) for room in ("pyro_mixtures", "models", "guides", "tests", "tutorials") for cache in [*pathlib.Path(room).rglob("__pycache__")]]'
