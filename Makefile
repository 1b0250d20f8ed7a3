# Everything here works in a fresh clone, with Python 3.11 to 3.13 and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Four tests at once would fight for two cores; one each is fastest.
JOBS ?= $(shell $(PYTHON) -c 'import os; print(min(4, os.cpu_count() or 1))')
LOCK := requirements-dev.txt
OSV ?= https://api.osv.dev/v1/query

.DEFAULT_GOAL := help
.PHONY: help demo test lint audit lock bench dashboard clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## train three networks on the built-in data and compare them
	@$(BIN)/python -m deepfake.train -m experiment=demo/frozen,demo/last_two,demo/last_two_plateau
	@echo
	@echo "comparison  $$(ls -td outputs/sweeps/*/ | head -n 1)comparison.png (and .md, .csv)"
	@echo "run folders outputs/demo-*"
	@echo "dashboard   make dashboard   (or $(BIN)/tensorboard --logdir outputs)"

test: $(VENV)/.test ## run the whole test suite
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0 $(TESTS)

lint: $(VENV)/.test ## style, security rules, types, and packages that fit together
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/uv pip check --python $(BIN)/python

# PyPI's own service is not asked: behind a mirror without it, pip-audit skips every package and calls that clean.
audit: $(VENV)/.test ## known vulnerabilities of the locked versions, by the OSV database; needs internet
	@$(BIN)/pip-audit --vulnerability-service osv --osv-url $(OSV) --progress-spinner off \
		--disable-pip --requirement $(LOCK) 2>$(VENV)/audit.log; status=$$?; \
	if grep -qE '^requests\.exceptions\.(Conn|Proxy|ReadTimeout|HTTPError: 5)|Could not connect' $(VENV)/audit.log; then \
		echo "not audited: $(OSV) cannot be reached ($(VENV)/audit.log says why)"; \
	else \
		cat $(VENV)/audit.log; exit $$status; \
	fi

lock: $(VENV)/.pip ## lock what pyproject.toml asks for anew; with UPGRADE=--upgrade the newest versions
	$(BIN)/uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 --extra test \
		--generate-hashes --custom-compile-command 'make lock' $(UPGRADE) --output-file $(LOCK) pyproject.toml

bench: $(VENV)/.test ## speed against plain loops, each ratio measured in one run; hours in all, see docs/speed.md
	$(BIN)/python -m benchmarks.reading
	$(BIN)/python -m benchmarks.engines
	$(BIN)/python -m benchmarks.study
	$(BIN)/python -m benchmarks.sweep
	$(BIN)/python -m benchmarks.predict
	$(BIN)/python -m benchmarks.growth
	$(BIN)/python -m benchmarks.overhead

dashboard: $(VENV)/.demo ## open TensorBoard on all runs
	$(BIN)/tensorboard --logdir outputs --window_title deepfake

clean: ## remove the virtual environment and what tools left; outputs/ stays
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.pip:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "expected Python 3.11 to 3.13, found $$($(PYTHON) --version). Name one: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "expected the venv module (Debian: apt install python3-venv), found none."; rm -rf $(VENV); exit 1; }
	@sed -n '/^uv==/,/[^\\]$$/p' $(LOCK) | $(BIN)/python -m pip install --quiet --require-hashes --requirement /dev/stdin
	@touch $@

# uv installs the same packages as pip, several at a time.
$(VENV)/.demo: $(VENV)/.pip $(LOCK) pyproject.toml
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraints $(LOCK) --build-constraints $(LOCK) -e '.[demo,openvino]'
	@touch $@

# What is built from source is built by locked versions too.
$(VENV)/.test: $(VENV)/.pip $(LOCK) pyproject.toml
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes --build-constraints $(LOCK) \
		--requirement $(LOCK)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-build-isolation --no-deps -e .
	@touch $@
