# Every task of the project; CI runs the same names (.ci/run).
PYTHON ?= python3.11
BIN := .venv/bin
NEWER := 3.12 3.13 3.14
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install demo serve lint format test test-unit test-failed test-pythons test-slow bench bench-report soak dashboard docs lock clean

help: ## Say what each task does
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: .venv/installed ## Make .venv with everything for development

.venv/installed: requirements/dev.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: install ## Real Traefik and nginx in front of the sidecar, until Ctrl-C
	@$(BIN)/authsidecar demo

lint: install ## ruff, mypy --strict, import-linter, codespell
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

format: install ## Let ruff fix and format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

test: install ## unit, property, integration, end-to-end: under 5 minutes
	$(BIN)/pytest -q -n 3 --dist loadfile -m "not slow"

test-unit: install ## The unit tests alone: under 10 seconds
	$(BIN)/pytest -q tests/unit

test-failed: install ## What failed the last time, one after the other
	$(BIN)/pytest -q --last-failed --last-failed-no-failures none --timeout 1500

test-pythons: install ## Unit and integration tests under each newer Python of this machine
	@for version in $(NEWER); do \
		found=; \
		for one in python$$version $${PYENV_ROOT:-$$HOME/.pyenv}/versions/$$version.*/bin/python; do \
			if $$one -c "" 2>/dev/null; then found=$$one; fi; \
		done; \
		if test -z "$$found"; then echo "Python $$version: not on this machine, skipped"; continue; fi; \
		here=.venv/$$version; \
		if ! test $$here/installed -nt requirements/dev.txt; then \
			$$found -m venv --clear $$here && \
			$$here/bin/python -m pip install --quiet --require-hashes -r requirements/dev.txt && \
			$$here/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable . && \
			touch $$here/installed || exit 1; \
		fi; \
		echo "Python $$version: $$($$here/bin/python --version)"; \
		$$here/bin/pytest -q -n 3 --dist loadfile -m "not slow" $(or $(TESTS),tests/unit tests/integration) \
			|| $$here/bin/pytest -q --last-failed --last-failed-no-failures none || exit 1; \
	done

test-slow: install ## Failover, chaos, long fuzz, large data: under 30 minutes
	$(BIN)/pytest -q -m slow --timeout 1500

bench: install ## What one check costs, as ratios within one run (ARGS=--quick)
	$(BIN)/python -m benchmarks.bench $(ARGS)

bench-report: install ## bench with growth, and the pages of docs that it fills: 15 minutes
	$(BIN)/python -m benchmarks.bench --growth --json benchmarks/result.json
	$(BIN)/python -m benchmarks.report benchmarks/result.json

soak: install ## Ten minutes at half of capacity: is memory flat?
	$(BIN)/python -m benchmarks.soak $(ARGS)

dashboard: install ## Write deploy/grafana/authsidecar.json from generate.py beside it
	$(BIN)/python deploy/grafana/generate.py

lock: install ## Pin what pyproject.toml asks for, with hashes (ARGS=--upgrade: the newest)
	$(BIN)/uv pip compile --quiet $(ARGS) --universal --generate-hashes --no-emit-index-url \
		--no-header --no-annotate --no-emit-package authsidecar --python-version 3.11 --all-extras pyproject.toml \
		-o requirements/dev.txt

clean: ## Remove what the tasks made
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
