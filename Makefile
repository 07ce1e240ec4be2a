.PHONY: check test

check: ## format, lint, types, quick tests
	ruff format --check .
	ruff check .
	mypy
	python -m pytest -q -m "not heavy and not benchmark and not gpu"

test: ## everything this machine can run
	python -m pytest
