# `make pretrain` and `make test` do it all on a machine with Python 3.11 to 3.13 and make.
PYTHON ?= python3
VENV ?= .venv
RUN_DIR ?= runs/pretrain_tiny
# Of tests, each with up to 3 GB.
WORKERS ?= 2
BIN = $(VENV)/bin
# Of `make lock` and `make audit`, apart from what they look at.
TOOLS ?= .venv_tools
TOOL_VERSIONS = uv==0.13.9 pip-audit==2.10.1
# Each by name: pdoc leaves out the modules of a package that says what it exports. Those that need torch are left out.
MODULES = $(subst /,.,$(patsubst %.py,%,$(patsubst %/__init__.py,%,$(sort $(shell find deltalm_jax tasks -name '*.py' -not -path 'tasks/sample/*' -not -name '*_deltalm.py')))))

.PHONY: help setup setup-locked lock audit pretrain chain test test-torch test-tpu test-slow test-soak lint docs verify bench clean

help:
	@echo "make pretrain    set up, then pretrain a tiny DeltaLM on the shipped sample (again: goes on where it stopped)"
	@echo "make chain       set up, then the whole chain on the sample: encoder, DeltaLM from it, DeltaLM from nothing"
	@echo "make test        set up, then run the tests"
	@echo "make test-torch  installs torch too, then compares exported models and files with torch and transformers"
	@echo "make test-tpu    installs libtpu too, then compiles for TPU pods (no TPU is needed)"
	@echo "make test-slow   the tests and the longer soaks"
	@echo "make test-soak   kills a run a hundred times, and compares its end with that of one nobody disturbed"
	@echo "make lint        ruff, mypy and shellcheck"
	@echo "make setup-locked  set up for development with exactly the files of requirements.lock, by their sha256"
	@echo "make lock        write requirements.lock anew, from setup.cfg and constraints.txt"
	@echo "make audit       look up the packages of requirements.lock in the database of vulnerabilities (network)"
	@echo "make docs        the site: these pages and a reference of all modules, into build/docs"
	@echo "make verify      print each claim of the README beside what this machine measures"
	@echo "make bench       the training step's speed at two sizes (beside PyTorch where it is installed)"
	@echo "make clean       remove the environment and caches (not runs, not prepared data)"

$(VENV)/.base: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Python 3.11 to 3.13 is needed, {sys.executable} is {v[0]}.{v[1]}: make PYTHON=/path/to/python3.11 …")'
	@echo "setting up $(VENV) (once; about 600 MB of packages)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.development: $(VENV)/.base
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint]'
	@touch $@

setup: $(VENV)/.base

# The project itself is built without isolation, with the locked setuptools: else pip would fetch one that nobody has locked.
setup-locked: requirements.lock
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(VENV)/.base $(VENV)/.development

$(TOOLS):
	@$(PYTHON) -m venv $@.new
	@$@.new/bin/python -m pip install --quiet --disable-pip-version-check $(TOOL_VERSIONS)
	@mv $@.new $@

# For Python 3.11 to 3.13 on Linux and macOS alike. Hashes of all files that the index has of a version, and no index's address.
lock: $(TOOLS)
	@$(TOOLS)/bin/python -m uv pip compile setup.cfg --extra test --extra lint --constraint constraints.txt --universal \
	  --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --custom-compile-command 'make lock' \
	  --quiet --output-file requirements.lock > /dev/null

# --strict: a package that could not be looked up is a failure, not a line of the table.
audit: $(TOOLS)
	@$(TOOLS)/bin/python -m pip_audit --strict --require-hashes --disable-pip --progress-spinner off -r requirements.lock || { \
	  echo "make audit: something was found, or the database could not be asked about everything (offline, or behind a mirror" \
	    "of the index that does not answer for it). This is no pass; the lines above say which." >&2; exit 1; }

# Huge pages for malloc: on a CPU, a third of a step went into page faults of XLA's temporary memory.
pretrain: $(VENV)/.base
	@GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/python -m deltalm_jax.train --gin_file=pretrain_tiny.gin --run_dir=$(RUN_DIR)

chain: $(VENV)/.base
	@GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/python -m benchmarks.chain

# A worker that is lost ends the run: by itself xdist starts another, hands it work that is done, and waits for ever. In the
# order of tests/conftest.py: by itself xdist begins with the files of most tests, and the longest have few.
test: $(VENV)/.development
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --max-worker-restart=0 --no-loadscope-reorder -m "not slow and not torch and not tpu"

# torch stays out of the development environment: from PyPI it brings gigabytes of CUDA libraries along on Linux.
$(VENV)/.torch: $(VENV)/.development
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[torch]'
	@touch $@

test-torch: $(VENV)/.torch
	@$(BIN)/python -m pytest -m torch tests/weights

$(VENV)/.tpu: $(VENV)/.development
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[tpu]'
	@touch $@

test-tpu: $(VENV)/.tpu
	@$(BIN)/python -m pytest -m tpu tests/test_plan.py tests/parallel

test-slow: $(VENV)/.development
	@$(BIN)/python -m pytest -m "not torch and not tpu"

KILLS ?= 100
test-soak: $(VENV)/.development
	@$(BIN)/python -m tests.faults.soak --kills=$(KILLS)

lint: $(VENV)/.development
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/shellcheck launch/*.sh

# Without pdoc's lines on modules that are named besides their package, and on those that need torch.
PDOC = $(BIN)/python -W 'ignore:The module specification' -W "ignore:Couldn't import deltalm_jax.weights.hugging_face" -m pdoc

# pdoc's pages become api/ of the site. -W: a link without a page or heading, and a page outside the navigation, end it.
docs: $(VENV)/.development
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@rm -rf build/docs build/pdoc && mkdir -p build
	@$(BIN)/python -m deltalm_jax.training.field_reference > build/configuration.md
	@cmp build/configuration.md docs/configuration.md || { \
	  echo "docs/configuration.md is out of date: $(BIN)/python -m deltalm_jax.training.field_reference > docs/configuration.md" >&2; exit 1; }
	@TF_CPP_MIN_LOG_LEVEL=3 $(PDOC) --docformat google --output-directory build/pdoc/api $(MODULES) '!deltalm_jax.weights.hugging_face.[a-z]+_deltalm'
	@$(BIN)/python -m sphinx -W --keep-going -n -q -d build/doctrees docs build/docs
	@$(BIN)/python -m tests.documentation.site build/docs
	@echo "open build/docs/index.html"

verify: $(VENV)/.development
	@$(BIN)/python -m benchmarks.verify

bench: $(VENV)/.development
	@$(BIN)/python -m benchmarks.train_step --json
	@$(BIN)/python -m benchmarks.train_step --json --d_model 384 --d_ff 1536 --num_heads 12 --num_encoder_layers 12 --num_decoder_layers 6 --vocab_size 250112 --batch_size 2

clean:
	rm -rf $(VENV) $(TOOLS) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
