.PHONY: check test benchmark

check: ## format, lint, types, quick tests
	ruff format --check .
	ruff check .
	mypy
	python -m pytest -q -m "not heavy and not benchmark"

test: ## everything but the timing bounds
	python -m pytest

benchmark: ## timing bounds; alone, on a quiet machine
	python -m pytest -m benchmark
