# Every target works on a bare checkout with Python >= 3.11, pip and make.
#
#   make demo    train on handwritten digits, generate, score: out/digits
#   make test    format check, lint, every test
#   make core    the tests that are not slow; TESTS=... names some of them
#   make docs    the site of docs and of the public names: out/site
#   make lint    format check and lint only
#   make format  rewrite the sources in the house's format
#   make clean   remove the environment and the caches

VENV ?= .venv
BIN := $(VENV)/bin
LEAN := $(VENV)/lean
STAMP := $(VENV)/installed
TPU := $(VENV)/tpu
MKDOCS := $(VENV)/mkdocs
DEMO := out/digits
START := $(shell date +%s)
# One worker per core, no more than eight: each runs eight fake devices.
WORKERS ?= logical
TESTS ?= tests
PYTEST = $(BIN)/python -m pytest $(TESTS) -n $(WORKERS) --maxprocesses 8 \
  --dist loadfile --no-loadscope-reorder --durations 15

.PHONY: demo test core docs lint format clean

demo: $(LEAN)
	$(BIN)/marjax train --config configs/digits.py:muon --workdir $(DEMO)
	$(BIN)/marjax evaluate --checkpoint $(DEMO) --out $(DEMO) --overwrite
	@seconds=$$(( $$(date +%s) - $(START) )); \
	echo "demo: $$((seconds / 60)) min $$((seconds % 60)) s in all;" \
	  "see $(DEMO)/samples.png, reveal.png, loss.png, report.json"

test: lint $(TPU)
	$(PYTEST)

core: $(STAMP)
	$(PYTEST) -m "not slow"

docs: $(MKDOCS)
	$(BIN)/mkdocs build --strict

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache

# The first interpreter that runs, is new enough and can make environments.
$(LEAN): setup.py pyproject.toml marjax/version.py
	@set -e; for python in $(PYTHON) python3 python3.11 python3.12 python3.13; do \
	  if $$python -c 'import ensurepip, sys; assert sys.version_info >= (3, 11)' \
	    2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "make: no Python >= 3.11 with venv found; install one, or name it:" \
	    "make PYTHON=/path/to/python3" >&2; exit 2; \
	fi; \
	echo "environment: $(VENV), $$($$found --version)"; \
	$$found -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[demo]"
	@touch $@

# What tests need besides, PyTorch among it.
$(STAMP): $(LEAN)
	$(BIN)/python -m pip install --quiet --editable ".[demo,test]"
	@touch $@

# The TPU compiler, for the tests alone: with it jax looks for a TPU at start.
$(TPU): $(STAMP)
	$(BIN)/python -m pip install --quiet "jax[tpu]"
	@touch $@

$(MKDOCS): $(STAMP)
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	@touch $@
