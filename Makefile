# make train   a virtual environment, everything installed, and the main job
# make test    the same, and the tests of units, settings, numbers and runs
# make test-all  every test
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

# One thread per process: small models get many times slower when threads compete.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= true

.PHONY: install train test test-all test-lowest lint docs bench faults data base_model clean

install: $(STAMP)

# torch first and alone, so that its exact version decides what the others see; DeepSpeed builds against it.
$(STAMP): pyproject.toml constraints.txt
	@echo "installing into $(VENV): packages of about 2 GB, some minutes without a line; then '. $(VENV)/bin/activate'"
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip setuptools wheel
	$(RUN) -m pip install --quiet --constraint constraints.txt torch numpy
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	DS_BUILD_OPS=0 $(RUN) -m pip install --quiet --constraint constraints.txt --no-build-isolation deepspeed
	touch $(STAMP)

train: install
	$(RUN) -m prefopt.train +experiment=dpo_brand_voice

# Two files at a time. `slow` tests are whole runs, runs of several ranks, faults, Slurm, and public data files.
PYTEST := $(RUN) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
test: install
	$(PYTEST) -m "not slow"

test-all: install
	$(PYTEST)

# Numbers, and what names fields of other libraries, on the oldest transformers and PEFT that pyproject.toml admits.
LOWEST := transformers==5.17.0 peft==0.21.0 huggingface_hub==1.33.0
OF_LIBRARIES := tests/numerics $(foreach name,algorithms arguments collate fingerprint fit flash_kernels pair_layout plain_chats preemption scaling \
	shared_prefix_obstacles steps token_cache tokenize tracking trl_contract versions word_ids,tests/unit/test_$(name).py)
test-lowest: install
	test -e $(VENV)/lowest/.installed || { $(RUN) -m pip install --quiet --no-deps --upgrade --target $(VENV)/lowest $(LOWEST) \
		&& touch $(VENV)/lowest/.installed; }
	PYTHONPATH=$(VENV)/lowest PREFOPT_TEST_VERSIONS="$(LOWEST)" $(PYTEST) $(OF_LIBRARIES)

lint: install
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports --no-logo

# The pages that are written from the code.
docs: install
	$(RUN) -m prefopt.config.setting_docs > docs/settings.md
	$(RUN) -m prefopt.config.provider_docs docs/formats.md

bench: install
	$(RUN) -m benchmarks.tokenize
	$(RUN) -m benchmarks.data_scale
	$(RUN) -m benchmarks.planted
	$(RUN) -m benchmarks.dpo_step
	$(RUN) -m benchmarks.sweep
	$(RUN) -m benchmarks.zero_memory
	$(RUN) -m benchmarks.checkpoints
	$(RUN) -m benchmarks.submit
	$(RUN) -m benchmarks.compare
	$(RUN) -m benchmarks.status
	$(RUN) -m benchmarks.endpoint

# Kills, stops and damages runs at random moments: a hundred faults in about ten minutes.
faults: install
	$(RUN) -m tests.faults.campaign --points 25 --write

data: install
	$(RUN) experiments/brand_voice/build_data.py

base_model: data
	OMP_NUM_THREADS=2 $(RUN) experiments/base_model/build.py

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache
