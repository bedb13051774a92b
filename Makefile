# Every command of a developer. On a fresh machine `make test` or `make demo` first creates the virtual environment;
# they need only make, coreutils and Python 3.11 to 3.13.

PYTHON ?= python3
PYTHON311 ?= python3.11
PYTHON312 ?= python3.12
VENV ?= .venv
VENV_ARVIZ1 ?= .venv-arviz1
VENV_LOWEST ?= .venv-lowest
CONSTRAINTS ?= constraints.txt
ARVIZ ?=
JOBS ?= 2

# Modules are run with -m, never the scripts in bin/, whose first lines break when the checkout moves.
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
STAMP_ARVIZ1 := $(VENV_ARVIZ1)/.installed
STAMP_LOWEST := $(VENV_LOWEST)/.installed

TEST_ENV := MPLBACKEND=Agg
PARALLEL :=
ifneq ($(JOBS),1)
# With several workers, each uses one thread outside the library's own kernels.
TEST_ENV += OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
# A file's tests stay in one worker and in order: so a worker compiles only the kernels that its files use.
PARALLEL += -n $(JOBS) --dist loadfile
endif
PYTEST := $(PY) -m pytest $(PARALLEL)
# ArviZ 0.23 writes a file to the user's cache on its first import of a day, and fails where two workers do so at once.
WARM_UP := $(PY) -W ignore -c 'import arviz'

.DEFAULT_GOAL := help
.PHONY: help install hooks lint format test test-slow test-arviz1 test-lowest coverage wheel demo clean

help:
	@echo 'make install      create the virtual environment $(VENV) with this package (editable) and all extras'
	@echo 'make hooks        run `make lint` before each commit (installs the pre-commit hooks)'
	@echo 'make lint         ruff check, ruff format --check, mypy --strict on the layout as installed'
	@echo 'make format       fix what ruff can fix, and format'
	@echo 'make test         run the tests, then those marked meta with default device "meta"'
	@echo 'make test-slow    run the tests marked slow'
	@echo 'make test-arviz1  run the tests marked arviz with ArviZ 1.x, in $(VENV_ARVIZ1) (Python >= 3.12)'
	@echo 'make test-lowest  run the tests with the lowest supported versions, in $(VENV_LOWEST) (Python 3.11)'
	@echo 'make coverage     run the tests and write their line coverage to htmlcov/'
	@echo 'make wheel        build sdist and wheel in dist/'
	@echo 'make demo         run tutorials/01_denoise_a_photograph.py'
	@echo 'make clean        remove caches and build outputs, but no virtual environment'
	@echo 'Variables: PYTHON=$(PYTHON) PYTHON311=$(PYTHON311) PYTHON312=$(PYTHON312) VENV=$(VENV) JOBS=$(JOBS)'
	@echo '           CONSTRAINTS=$(CONSTRAINTS) (empty: the latest versions), ARVIZ=$(ARVIZ) (a requirement, such as arviz<1)'

install: $(STAMP)

# An environment with a working pip is kept; a missing or incomplete one is created.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e '.[dev,demo]' $(if $(ARVIZ),'$(ARVIZ)')
	@touch $@

hooks: $(STAMP)
	$(PY) -m pre_commit install

# The layout as installed, as links: models/ and guides/ lie inside the package.
TYPED := build/typed
lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	@rm -rf $(TYPED) && mkdir -p $(TYPED)/pyro_mixtures
	@ln -s $(CURDIR)/pyro_mixtures/* $(CURDIR)/models $(CURDIR)/guides $(TYPED)/pyro_mixtures/
	cd $(TYPED) && $(abspath $(PY)) -m mypy --config-file $(CURDIR)/pyproject.toml -p pyro_mixtures

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

# The versions of constraints.txt except that of ArviZ. On Linux, PyPI's torch is a CUDA build of several GB; for the CPU
# build set PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu in the environment.
$(STAMP_ARVIZ1): pyproject.toml constraints.txt
	$(VENV_ARVIZ1)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON312) -m venv $(VENV_ARVIZ1)
	$(VENV_ARVIZ1)/bin/python -c 'print(*(line for line in open("constraints.txt") if not line.startswith("arviz==")), sep="", end="")' > $(VENV_ARVIZ1)/constraints.txt
	$(VENV_ARVIZ1)/bin/python -m pip install --disable-pip-version-check -c $(VENV_ARVIZ1)/constraints.txt -e '.[dev,demo]' 'arviz>=1'
	@touch $@

test-arviz1: $(STAMP_ARVIZ1)
	$(TEST_ENV) $(VENV_ARVIZ1)/bin/python -m pytest $(PARALLEL) -m 'arviz and not slow'

# Old releases warn about newer releases of their own dependencies, so warnings are no errors here. The two tests that are
# left out compare with results whose last digits, and order of components, depend on the release of torch.
LOWEST_TESTS := not test_objectives_are_those_of_the_partitions and not test_planted_classes_are_recovered
$(STAMP_LOWEST): pyproject.toml constraints-lowest.txt
	$(VENV_LOWEST)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON311) -m venv $(VENV_LOWEST)
	$(VENV_LOWEST)/bin/python -m pip install --disable-pip-version-check -c constraints-lowest.txt -e '.[dev,demo]'
	@touch $@

test-lowest: $(STAMP_LOWEST)
	$(TEST_ENV) $(VENV_LOWEST)/bin/python -m pytest $(PARALLEL) -o filterwarnings=default -k '$(LOWEST_TESTS)'

coverage: $(STAMP)
	@$(WARM_UP)
	$(TEST_ENV) $(PYTEST) --cov --cov-report=html --cov-report=term:skip-covered

wheel: $(STAMP)
	rm -rf dist
	$(PY) -c 'from setuptools.build_meta import build_sdist; build_sdist("dist")'
	$(PY) -m pip wheel --no-deps --no-build-isolation --wheel-dir dist dist/*.tar.gz

demo: $(STAMP)
	MPLBACKEND=Agg $(PY) tutorials/01_denoise_a_photograph.py

clean:
	rm -rf build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache .coverage htmlcov
	$(PYTHON) -c 'import pathlib, shutil; [shutil.rmtree(cache) for folder in ("pyro_mixtures", "models", "guides", "tests", "tutorials") for cache in [*pathlib.Path(folder).rglob("__pycache__")]]'
