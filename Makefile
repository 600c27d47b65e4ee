# Everything a fresh machine needs: `make demo` and `make test` make .venv and install pinned versions into it.

PYTHON ?= python3
OUT ?= runs/demo
INTEROP_OUT ?= runs/interop
TOOLS ?=
WORKERS ?= 2
FUZZ_CASES ?= 10000
HTTP_CASES ?= 2000
STEP ?= 5
KILLS ?= 20
RANKS ?= 4

BIN := .venv/bin
# Modules are compiled when they are first imported: most of what comes along never is.
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test docs notebooks page lint pytest fuzz test-models durability ranks clean interop sinks engines

demo: .venv/run.stamp
	$(BIN)/saeforest demo --out $(OUT)

# The linters and the docs run beside the tests. When one of them fails, the others still come to their end.
test: .venv/dev.stamp
	@$(MAKE) --no-print-directory --jobs 2 --keep-going lint docs pytest

# `worksteal` gives each worker whole files, and divides those that come last so that all end together.
pytest: .venv/dev.stamp
	$(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal

# Damaged files and odd requests by the thousand, more than `make test` tries.
fuzz: .venv/dev.stamp
	SAEFOREST_FUZZ_CASES=$(FUZZ_CASES) SAEFOREST_HTTP_CASES=$(HTTP_CASES) $(BIN)/pytest \
		--numprocesses $(WORKERS) --dist worksteal tests/fuzz tests/explore/serving/test_server_fuzz.py

# Every architecture whose sites are known, with random weights; `make test` has ten of them.
test-models: .venv/dev.stamp
	$(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal -m 'models or not models' tests/models

# Every command killed, failed and told to stop at every STEP-th of its file operations; `make test` tries some.
durability: .venv/dev.stamp
	SAEFOREST_KILL_POINTS=$(STEP) $(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal tests/durability

# Worlds of up to RANKS processes, of which one is killed, KILLS times, and all that they divide; `make test` kills one of
# two, once.
ranks: .venv/dev.stamp
	SAEFOREST_RANK_KILLS=$(KILLS) SAEFOREST_RANKS=$(RANKS) $(BIN)/pytest \
		$(addprefix tests/training/test_,ranks.py ranks_end.py divided.py divided_checkpoints.py)

lint: .venv/dev.stamp
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --check --quiet
	$(BIN)/basedpyright

# The documentation as a site in site/, without the network; a warning is an error.
docs: .venv/dev.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The notebooks anew, with what they put out, to be committed: some minutes.
notebooks: .venv/dev.stamp
	$(BIN)/python notebooks/execute.py

# The explorer's page anew from page/, to be committed. Needs node; nothing else does.
page: page/node_modules/.stamp
	cd page && node build.mjs

page/node_modules/.stamp: page/package.json page/package-lock.json
	cd page && npm ci --no-audit --no-fund
	touch $@

# This pip unpacks wheels of many files a quarter faster than the one that Python brings. torch by itself first: whatever
# else asks for it then finds the pinned build in place. $(1): the extras.
define install
	$(PYTHON) -m venv .venv
	$(INSTALL) pip==26.3
	$(INSTALL) torch
	$(INSTALL) --editable '.$(1)'
	$(INSTALL) --no-deps --requirement requirements-embedded.txt
	touch .venv/run.stamp
endef

.venv/run.stamp: pyproject.toml constraints.txt requirements-embedded.txt
	$(call install)

# Not on top of run.stamp: packages are looked for and saeforest is built once, not twice.
.venv/dev.stamp: pyproject.toml constraints.txt requirements-embedded.txt
	$(call install,[dev])
	touch $@

clean:
	rm -rf .venv

# What other tools, each in an environment of its own, make of our files, and we of theirs: all, or TOOLS="NAME NAME". Needs
# the network; not part of `make test`.
interop: .venv/dev.stamp
	$(BIN)/python -m benchmarks.interop $(TOOLS) --out $(INTEROP_OUT)

# The harvest into an S3 object store (SeaweedFS) and as a step of datatrove, each in an environment of its own: all, or
# TOOLS="NAME". Needs the network once.
engines: .venv/dev.stamp
	$(BIN)/python -m benchmarks.engines $(TOOLS)
