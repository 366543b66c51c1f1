# `make talk` and `make test` set up .venv themselves: Python 3.11 to 3.13 and a C compiler are all they need.
#   make talk SAMPLE=my-question.wav OUT=my-answer.wav
#   make talk PYTHON=python3.12

PYTHON ?= python3
# One exact torch, installed before anything that depends on it, so that every machine runs the same release.
# Without a GPU, PyTorch's own CPU wheel index in PIP_EXTRA_INDEX_URL makes the download smaller.
TORCH ?= 2.13.0
SAMPLE ?= serve/samples/question-1.wav
OUT ?= answer.wav

VENV := .venv
BIN := $(VENV)/bin
BASE := $(VENV)/.base-torch-$(TORCH)
FULL := $(VENV)/.full-torch-$(TORCH)

.PHONY: talk test lint audit soak gpu venv weights
.DELETE_ON_ERROR:

talk: $(BASE)
	$(BIN)/duplex talk $(SAMPLE) --out $(OUT)

# A module at a time on each of at most four cores.
test: $(FULL)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadscope

lint: $(FULL)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# That what is installed fits together; then, for the reader, what is publicly known against it (where the index can be asked).
audit: $(FULL)
	$(BIN)/python -m pip check
	-$(BIN)/python -m pip_audit --progress-spinner off

# README's promises at full length, about three hours on a quiet machine with a bank; figures are added to soak.jsonl.
soak: $(FULL)
	$(BIN)/python -m pytest tests/soak --soak soak.jsonl
	$(BIN)/python -m pytest -m slow tests/serve/test_protocols.py tests/serve/test_moshi.py -k "wild or sequences"
	$(BIN)/duplex eval long --minutes 60 --out soak-long
	$(BIN)/duplex bench live --callers 4 --minutes 30 --threads 1 --bank data/bank

# Everything that is promised of a GPU, in minutes: its tests, a frame beside two peers of the same size, calls with five minutes of context, training.
# `make gpu DEVICE=cpu SHAPE=random:test STEPS=3 CALLS=1,2` tries the commands without one.
DEVICE ?= cuda
SHAPE ?= random:base
STEPS ?= 2000
CALLS ?= 1,64,256,512,1000
BENCH := $(BIN)/duplex bench
ON := --preset $(SHAPE) --device $(DEVICE)
gpu: $(FULL)
	$(BIN)/python -m pytest -m gpu
	$(BENCH) step $(ON) --dtype bfloat16 --context 3750 --steps $(STEPS) --peer transformers --peer-steps $(STEPS)
	$(BENCH) step $(ON) --dtype bfloat16 --context 3750 --steps $(STEPS) --peer moshi --peer-steps $(STEPS)
	$(BENCH) sessions $(ON) --dtype bfloat16 --context 3750 --steps $(STEPS) --sessions $(CALLS) --plot sessions.png
	$(BENCH) train $(ON) --batch 8 --frames 750 --steps 20 --compile

venv: $(FULL)

# From nothing to a checkpoint: several hours on two CPU cores for `pocket`, a minute for PRESET=test.
# Needs the `synth` extra and what README says about data.
PRESET ?= pocket
RUNS := runs/$(PRESET)
WEIGHTS ?= $(RUNS)/weights
SYNTH := $(BIN)/duplex synth --config train/configs/$(PRESET)-synth.yaml
FIT := OMP_NUM_THREADS=1 $(BIN)/duplex train fit --config train/configs/$(PRESET)-
weights: $(FULL)
	$(SYNTH)
	$(FIT)codec.yaml
	$(BIN)/duplex export $(RUNS)/codec/last.ckpt $(RUNS)/codec/export --kind codec
	$(SYNTH) --codec $(RUNS)/codec/export
	$(FIT)speak.yaml
	$(FIT)encoder.yaml
	$(FIT)dialogue.yaml
	$(FIT)codec-gan.yaml
	$(BIN)/duplex export $(RUNS)/codec-gan/last.ckpt $(RUNS)/codec-gan/export --kind codec
	$(BIN)/duplex export $(RUNS)/dialogue/last.ckpt $(WEIGHTS) --codec $(RUNS)/codec-gan/export --tokenizer $(RUNS)/tokenizer.json

$(BASE): pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info; (3, 11) <= v < (3, 14) or sys.exit(f"error: Python {v[0]}.{v[1]} is not 3.11 to 3.13; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install torch==$(TORCH)
	$(BIN)/python -m pip install -e .
	touch $@

# Tests of the speech engines skip where the `synth` extra is not installed.
$(FULL): $(BASE)
	$(BIN)/python -m pip install -e '.[train,eval,mic,serve,dev]'
	$(BIN)/python -m serve.doctor --mend
	touch $@
