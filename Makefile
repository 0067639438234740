# make train: a fresh machine to a trained classifier.  make test: lint, types, tests.
# make prove: kills, other numbers of processes and damage end with the same bits, in a minute.
# make gpu: all that only a GPU can show (docs/gpu.md).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test slow prove gpu bench clean

train: .venv/installed
	$(BIN)/accelerate launch launch/train.py --config configs/digits.yaml

test: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow"

slow: .venv/dev
	$(BIN)/pytest -n 2 --dist worksteal -m slow

prove: .venv/installed
	$(BIN)/python benchmarks/prove.py

gpu: .venv/dev
	$(BIN)/python benchmarks/gpu.py

bench: .venv-bench/installed
	.venv-bench/bin/python benchmarks/startup.py --data-root $(or $(SEQCLF_DATA),data)
	.venv-bench/bin/python benchmarks/data.py --data-root $(or $(SEQCLF_DATA),data)
	.venv-bench/bin/python benchmarks/loop.py --data-root $(or $(SEQCLF_DATA),data)
	.venv-bench/bin/python benchmarks/linear.py
	.venv-bench/bin/python benchmarks/scaling.py
	.venv-bench/bin/python benchmarks/peers.py --data-root $(or $(SEQCLF_DATA),data)
	.venv-bench/bin/python benchmarks/archive.py
	.venv-bench/bin/python benchmarks/sweep.py --data-root $(or $(SEQCLF_DATA),data)
	.venv-bench/bin/python benchmarks/streaming.py --folder /tmp/seqclf-streams

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/dev: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@ .venv/installed

.venv-bench/installed: pyproject.toml  # apart: rivals hold back packages that they share with us
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --editable '.[bench]'
	touch $@

clean:
	rm -rf .venv .venv-bench
