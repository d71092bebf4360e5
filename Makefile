# Every target makes .venv from nothing but python3 (>= 3.11) and make, once, and reuses it.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
UV := uv==0.13.9

.PHONY: demo test lint docs notebooks bench compat lock clean

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "amr needs python3 >= 3.11; set PYTHON=..."; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '$(UV)'
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

demo: $(READY)  ## synthetic clips, naive and naive + AMR, the table and the page
	$(BIN)/amr demo

test: $(READY)
	$(BIN)/pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)  ## site/, which opens from disk
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: $(READY)  ## executes examples/*.ipynb and stores their outputs
	$(BIN)/python -m examples.notebooks

BENCHMARKS ?= amr_overhead loader loader_step prepare_rate memory startup ddp multiviz sparse_path site step growth analyze explanations

bench: $(READY)  ## an hour on two cores; BENCHMARKS=loader for one of them
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --requirements requirements-bench.lock
	for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name || exit 1; done

compat: $(READY)  ## a short suite on the lowest and the newest versions; COMPAT='--newest python3.13'; gigabytes to download
	$(BIN)/python -m tests.compat $(COMPAT)

LOCK = $(BIN)/uv pip compile pyproject.toml --extra dev --group uci --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --custom-compile-command "make lock"

lock: $(READY)  ## after a change of pyproject.toml
	$(LOCK) --output-file requirements.lock
	$(LOCK) --extra bench --output-file requirements-bench.lock

clean:
	rm -rf .venv site
