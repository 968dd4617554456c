# Every task of the project; CI runs the same names (.ci/run).
PYTHON ?= python3.11
BIN := .venv/bin
# The newest first: test-pythons runs all tests there.
NEWER := 3.14 3.13 3.12
# Tests run by so many processes: one more than processors, because much of a test is waiting. With
# still more, the host would look busy to the sidecar, which is then more patient with Redis.
WORKERS ?= 3
# Each takes a file at a time, in order: the unit tests are last, and quick, so that all end together.
SPREAD := --dist loadfile --no-loadscope-reorder
# Finds the Python of a loop's $$version; says so and goes on with the next if there is none.
FIND = found=; \
	for one in python$$version $${PYENV_ROOT:-$$HOME/.pyenv}/versions/$$version.*/bin/python; do \
		if $$one -c "" 2>/dev/null; then found=$$one; fi; \
	done; \
	if test -z "$$found"; then echo "Python $$version: not on this machine, skipped"; continue; fi
# What is unpacked for one Python is there for the next: a third of the time that pip takes.
UV_INSTALL = $(BIN)/uv pip install --quiet --python
# What a user may install: all but `dev`.
EXTRAS := demo,embedded,coolify,mail,otel
ACTIONLINT := v1.7.12
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Each run would compile our sources and rewrite the tests' asserts anew: seconds in each process.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo serve lint format test test-unit test-failed test-pythons test-slow bench bench-report soak generate docs lock clean release-check screenshots sbom image-test test-aiohttp test-memo coverage mutate bench-proxies

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

lint: install docs ## ruff, mypy (--strict for the package), import-linter, codespell, and the site of docs/
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

docs: install ## The site of docs/, in site/: every doubt of mkdocs is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: install ## Let ruff fix and format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

test: install ## unit, property, integration, end-to-end: 6 minutes on two cores
	$(BIN)/pytest -q -n $(WORKERS) $(SPREAD) -m "not slow"

test-aiohttp: install ## The scenarios of every proxy, on aiohttp's own server
	AUTHSIDECAR_LISTEN__SERVER=aiohttp $(BIN)/pytest -q -n 2 $(SPREAD) -m "not slow" tests/e2e/test_scenarios.py

test-memo: install ## Scenarios and the order of checks, all of it answered from the memo
	TESTS_SIDECAR="-m tests.support.eager_memo" $(BIN)/pytest -q -n 2 $(SPREAD) -m "not slow" \
		tests/e2e/test_scenarios.py tests/e2e/test_same_request.py tests/integration/test_order_of_checks.py \
		tests/integration/test_allowlist_http.py tests/integration/test_usage.py

test-unit: install ## The unit tests alone: under 10 seconds
	$(BIN)/pytest -q -n 2 -m "not slow" tests/unit

test-failed: install ## What failed the last time, one after the other
	$(BIN)/pytest -q --last-failed --last-failed-no-failures none --timeout 1500

coverage: install ## Branch coverage of unit, property and integration tests; at least 93 %
	$(BIN)/pytest -q -m "not slow" --cov=authsidecar --cov-branch --cov-fail-under=93 \
		--cov-report=term:skip-covered tests/unit tests/property tests/integration

mutate: install ## Would the tests notice? Mutants of decision/ and of what the store keeps (ARGS='NAME*')
	$(BIN)/mutmut run $(ARGS)
	$(BIN)/mutmut results

# Without what holds whichever Python runs us: Redis's own failover, a shell's completion, a manifest.
# All of it under the newest Python that is here: `make test` runs the oldest, and what both agree on
# has not failed between them. There the unit tests and release-check's demo look for it.
test-pythons: install ## Unit tests under each newer Python of this machine, integration tests under the newest
	@tests="tests/integration tests/unit"; for version in $(NEWER); do \
		$(FIND); \
		here=.venv/$$version; \
		if ! test $$here/installed -nt requirements/dev.txt; then \
			$(BIN)/uv venv --quiet --clear --python $$found $$here && \
			$(UV_INSTALL) $$here/bin/python --require-hashes -r requirements/dev.txt && \
			$(UV_INSTALL) $$here/bin/python --no-deps --no-build-isolation --editable . && \
			touch $$here/installed || exit 1; \
		fi; \
		echo "Python $$version: $$($$here/bin/python --version)"; \
		$$here/bin/pytest -q -n $(WORKERS) $(SPREAD) -m "not slow and not any_python" $(or $(TESTS),$$tests) \
			|| $$here/bin/pytest -q --last-failed --last-failed-no-failures none || exit 1; \
		tests=tests/unit; \
	done

# What measures time runs after the rest, by itself.
test-slow: install ## Failover, chaos, long fuzz, large data: under 30 minutes
	$(BIN)/pytest -q -n $(WORKERS) --dist worksteal -m "slow and not alone" --timeout 1500; found=$$?; \
		$(BIN)/pytest -q -m "slow and alone" --timeout 1500 && exit $$found

bench: install ## What one check costs, as ratios within one run (ARGS=--quick)
	$(BIN)/python -m benchmarks.bench $(ARGS)

bench-proxies: install ## What a check costs behind the shipped Traefik, nginx, Caddy and Envoy files
	$(BIN)/python -m benchmarks.proxies $(ARGS)

bench-report: install ## bench with growth, bench-proxies, and the pages of docs that they fill: 25 minutes
	$(BIN)/python -m benchmarks.bench --growth $(ARGS) --json benchmarks/result.json
	$(BIN)/python -m benchmarks.proxies $(ARGS) --json benchmarks/proxies.json
	$(BIN)/python -m benchmarks.report benchmarks/result.json benchmarks/proxies.json

soak: install ## Ten minutes at half of capacity: is memory flat?
	$(BIN)/python -m benchmarks.soak $(ARGS)

generate: install ## Write anew what is made from the code: example, reference, man page, dashboard
	$(BIN)/python -m authsidecar config example > config.example.yaml
	$(BIN)/python -m authsidecar.config.describe docs/reference/configuration.md
	$(BIN)/python -m authsidecar.cli.reference docs/reference/cli.md
	$(BIN)/python -m authsidecar.serving.manage.openapi docs/reference/manage.openapi.json
	$(BIN)/python -m authsidecar.cli.manual man/authsidecar.1
	$(BIN)/python deploy/grafana/generate.py
	$(BIN)/python -m tests.e2e.scenarios > docs/reference/scenarios.md
	$(BIN)/python -m tests.e2e.own_answers > docs/reference/proxy-answers.md
	TESTS_REWRITE=1 $(BIN)/pytest -q -n 2 tests/integration/test_cli_explain.py -k for_people

screenshots: install ## Write docs/images from a demo that runs; needs /usr/bin/chromium
	$(BIN)/python -m tests.support.screenshots docs/images

release-check: install ## Build what is published, and run it under each Python of this machine
	rm -rf dist/*.whl dist/*.tar.gz
	$(BIN)/python -m build --no-isolation --outdir dist . > /dev/null
	$(BIN)/twine check --strict dist/*.whl dist/*.tar.gz
	@set -e; for version in $(PYTHON:python%=%) $(NEWER); do \
		$(FIND); \
		here=dist/python$$version; \
		$(BIN)/uv venv --quiet --clear --python $$found $$here; \
		$(UV_INSTALL) $$here/bin/python --only-binary :all: "$$(echo dist/*.whl)[$(EXTRAS)]"; \
		test -f $$here/share/man/man1/authsidecar.1; \
		$$here/bin/authsidecar demo --check > $$here/demo.txt || { cat $$here/demo.txt; exit 1; }; \
		echo "Python $$version: $$($$here/bin/authsidecar --version): $$(tail -1 $$here/demo.txt)"; \
	done
	@if command -v go > /dev/null; then \
		test -x $(BIN)/actionlint || GOBIN=$(CURDIR)/$(BIN) go install github.com/rhysd/actionlint/cmd/actionlint@$(ACTIONLINT); \
		$(BIN)/actionlint && echo "actionlint: nothing to say"; \
	else echo "actionlint: no go on this machine to build it, skipped"; fi

sbom: install ## What an installed wheel is made of: dist/authsidecar.cdx.json (CycloneDX)
	@mkdir -p dist && $(PYTHON) -m venv --clear dist/sbom
	@dist/sbom/bin/pip install --quiet --require-hashes --only-binary :all: -r requirements/run.txt
	$(BIN)/python -m build --no-isolation --wheel --outdir dist/sbom/wheel . > /dev/null
	@dist/sbom/bin/pip install --quiet --no-deps --no-index dist/sbom/wheel/*.whl
	@dist/sbom/bin/pip uninstall --quiet --yes setuptools pip
	$(BIN)/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml --output-file dist/authsidecar.cdx.json dist/sbom/bin/python

image-test: sbom ## Build the Dockerfile with buildah, and run it read-only as its user and another
	bash tests/image.sh

lock: install ## Pin what pyproject.toml asks for, with hashes (ARGS=--upgrade: the newest)
	$(BIN)/uv pip compile --quiet $(ARGS) --universal --generate-hashes --no-emit-index-url \
		--no-header --no-annotate --no-emit-package authsidecar --python-version 3.11 --all-extras pyproject.toml \
		-o requirements/dev.txt

clean: ## Remove what the tasks made
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist site mutants .coverage
