.PHONY: check test losses benchmark faults

check: ## format, lint, types, quick tests
	ruff format --check .
	ruff check .
	mypy
	python -m pytest -q -m "not heavy and not benchmark and not faults"

test: ## everything but the timing bounds and the long matrix
	python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

losses: ## every loss of a set of small runs; BASE=main: are they the same on that commit?
	python -m tests.losses $(if $(BASE),--base $(BASE))

benchmark: ## timing bounds; alone, on a quiet machine
	python -m pytest -m benchmark

faults: ## the long matrix of kills, signals and damage, and its table; an hour
	python -m pytest -m "faults or matrix"
