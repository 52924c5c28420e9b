# `make help` lists the targets. Each one that needs the virtual environment makes it first.
BIN := .venv/bin
GGML := $(CURDIR)/.cache/ggml
SEED ?= 1  # of the search in `make test`: the same cases for every change; `make run` draws new ones each time
CASES ?= 24  # of each op on each device in `make test`; `make run` and the nightly run draw many more
MINUTES ?= 14  # of `make run`: a slow pair of op and device ends with its share of them

.DEFAULT_GOAL := help
.PHONY: help setup run test nightly lint bench clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

setup:  ## install everything, in .venv and .cache; OPCONFORM_WITHOUT="torch …" leaves out (tools/setup.sh)
	@tools/setup.sh

# A backend that is named and cannot run is an error, so the set-up names those that it has set up. It prints a line
# for each that it had to leave out (torch, where its index cannot be reached).
run: setup  ## every op on every backend that was set up; ends with the matrix
	$(BIN)/opconform test $$(tools/setup.sh backends) --ggml-lib $(GGML)/v0.5.0 -n auto \
		--max-examples 1000 --minutes $(MINUTES)

lint: setup  ## ruff, mypy and the contract of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint  ## lint, then every test, against four builds of ggml
	OPCONFORM_GGML_LIB=$(GGML)/v0.5.0 \
	OPCONFORM_GGML_LIB_OLD=$(GGML)/b6673 \
	OPCONFORM_GGML_LIB_BROKEN=$(GGML)/b7836 \
	OPCONFORM_GGML_LIB_FIXED=$(GGML)/b8121 \
	$(BIN)/python -m pytest --seed $(SEED) --profile quick --max-examples $(CASES) -n auto --dist worksteal

nightly: setup  ## the nightly run, here: BUDGET minutes, SHARDS, GGML_LIB, EXTRA_GGML="NAME=FOLDER …" (tools/nightly.sh)
	@GGML_LIB='$(or $(GGML_LIB),$(GGML)/v0.5.0)' tools/nightly.sh

bench: setup  ## judged cases per second for each backend and op
	$(BIN)/python benchmarks/throughput.py --ggml-lib $(GGML)/v0.5.0

clean:  ## remove what builds and tests leave behind; .venv and .cache stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis opconform-out
	find . -name __pycache__ -type d -not -path './.venv/*' -not -path './.cache/*' -prune -exec rm -rf {} +
