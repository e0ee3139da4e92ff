# Everything runs from .venv, which the first target that needs it makes. `make help` lists the targets.
.DEFAULT_GOAL := help
.PHONY: run test unit check bench chaos chaos-mutants lock clean help
BIN := .venv/bin
ARGS ?=

run: .venv/.runtime ## Start Kafka, the fleet, the pipeline and the API on this machine
	@exec $(BIN)/headrace up $(ARGS)

test: .venv/.development ## Run all tests, on a real Kafka (ARGS="-k word" for some)
	@$(BIN)/python -m pytest -m "not bench" $(ARGS)

unit: .venv/.development ## Run the tests that need no broker
	@$(BIN)/python -m pytest -q tests/unit $(ARGS)

check: .venv/.development ## Lint, types, import layers, sizes, and that generated files are what they should be
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache >.venv/imports.txt 2>&1 || { cat .venv/imports.txt; exit 1; }
	@$(BIN)/python -m pytest -q tests/repo $(ARGS)

bench: .venv/.development ## Measure against other clients and stream processors
	@exec $(BIN)/headrace bench all $(ARGS)

chaos: .venv/.development ## Hurt a cluster under load by seeded faults, then prove every promise (SECONDS=60 SEED=1)
	@exec $(BIN)/python -m app.chaos --seconds $(or $(SECONDS),60) --seed $(or $(SEED),1) $(ARGS)

chaos-mutants: .venv/.development ## Seed bugs into the product one by one; the checker must convict each (ARGS="--only NAME")
	@exec $(BIN)/python -m app.chaos.mutants --all $(ARGS)

lock: .venv/.development ## Write the locks anew (UPGRADE=1 takes newer versions)
	@scripts/lock

clean: ## Remove the environment and all caches in the checkout; data in .headrace stays
	@rm -rf .venv dist build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The development environment holds the runtime one, so making it settles both.
.venv/.runtime: requirements.lock requirements-build.lock pyproject.toml
	@test .venv/.development -nt requirements.lock || $(call bootstrap,requirements.lock)
	@touch $@

.venv/.development: requirements-dev.lock requirements-build.lock pyproject.toml
	@$(call bootstrap,requirements-dev.lock)
	@touch $@ .venv/.runtime

bootstrap = python=$$(scripts/find-python) && "$$python" scripts/bootstrap.py $(1)
