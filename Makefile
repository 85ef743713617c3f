# make quickstart   the whole job on made-up lesions, on a machine with only Python
# make test         the tests
# make lint         ruff and mypy
# Another Python than python3:   make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))

.PHONY: quickstart test lint
.DELETE_ON_ERROR:

quickstart: $(INSTALLED)
	@$(VENV_PYTHON) -m mela_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

test: $(INSTALLED)
	@$(VENV_PYTHON) -m pytest -n auto --dist=loadfile --no-loadscope-reorder

lint: $(INSTALLED)
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) -m ruff check --extend-select D1 --ignore D105,D107 --extend-exclude tests .
	@$(VENV_PYTHON) -m ruff format --check .
	@$(VENV_PYTHON) -m mypy
	@$(VENV)/bin/lint-imports --no-logo --no-cache

# A folder without a working pip is what an interrupted first try leaves: made anew.
$(INSTALLED): pyproject.toml
	@$(VENV_PYTHON) -m pip --version >/dev/null 2>&1 || { \
	  command -v $(PYTHON) >/dev/null || { \
	    echo "make: no $(PYTHON) here; install Python 3.11 or 3.12, or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1; }; \
	  $(PYTHON) -c '$(SUPPORTED)' || { \
	    echo "make: mela_jax needs Python 3.11 or 3.12, and $(PYTHON) is $$($(PYTHON) --version 2>&1); name another: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1; }; \
	  echo "Creating $(VENV) with $$($(PYTHON) --version)"; \
	  $(PYTHON) -m venv --clear $(VENV) || { \
	    echo "make: $(PYTHON) could not create $(VENV) (on Debian and Ubuntu: apt-get install python3-venv)" >&2; exit 1; }; }
	@$(VENV_PYTHON) -c '$(SUPPORTED)' || { \
	  echo "make: $(VENV) holds $$($(VENV_PYTHON) --version), mela_jax needs 3.11 or 3.12; remove $(VENV) and run this again" >&2; exit 1; }
	@echo "Installing mela_jax and what it needs into $(VENV) (some minutes, once)"
	@$(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@
