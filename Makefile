# Each target sets itself up first, so any of them may be the first command in a fresh clone.
MINUTES ?= 10
PYTEST = .venv/bin/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help setup up down test check bench fuzz soak

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' Makefile

setup: ## make .venv with warren and its tools in it
	@.ci/setup

up: ## bring a hive up in the background, mount it, and say what to try
	@.ci/setup up
	@.venv/bin/warren up --detach

down: ## take down what `make up` brought up
	@[ ! -x .venv/bin/warren ] || .venv/bin/warren down

test: check ## check, then every fast test, real clients and guest kernels among them
	@.ci/setup test
	$(PYTEST) -n auto --maxprocesses 4 --dist loadfile -m 'not alone'
	$(PYTEST) -m alone

check: ## ruff and mypy --strict over the packages and the tests
	@.ci/setup check
	@status=0; set -x; .venv/bin/ruff check || status=1; .venv/bin/mypy || status=1; exit $$status

bench: ## measure beside diod, mounts beside mfusepy, durable messages beside Redis and JetStream
	@.ci/setup bench
	@status=0; set -x; for part in '' fuse work; do .venv/bin/python -m tests.bench $$part || status=1; done; exit $$status

fuzz: ## fuzz the decoder and the server session for MINUTES=10
	@.ci/setup fuzz
	.venv/bin/python -m tests.fuzz --minutes $(MINUTES)

soak: ## the long runs: many clients, many hours of virtual and real time
	@.ci/setup soak
	$(PYTEST) tests/soak
