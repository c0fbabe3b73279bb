# make demo    pictures, answers and measured recall from nothing, in minutes
# make test    lint, types, tests
# make bench   speed and memory against the limits of this machine, an hour or so
# make install the set-up alone; PIP_ARGS passes more to pip, EXTRA picks FAISS: cpu or gpu
# make wheel-check PYTHON=python3.12   the wheel in an environment of that Python, without the repository

PYTHON ?= python3
EXTRA ?= cpu
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
READY := $(VENV)/.ready-$(EXTRA)
# Both install the package `faiss`, so only one of them may be there.
OTHER_FAISS := $(if $(filter gpu,$(EXTRA)),faiss-cpu,faiss-gpu-cuvs)
# The extra `openclip` without torchvision: oc: does without, and one that is made for another torch
# breaks transformers (docs/operations.md, "Models").
OPEN_CLIP := open_clip_torch timm ftfy wcwidth

.PHONY: demo test bench install lint types pytest wheel-check clean

demo: install
	$(BIN)/chiasm demo

# Types beside the tests: they take 20 s of one core, and tests that start Ray wait at times.
test: lint
	@$(MAKE) --no-print-directory -j2 types pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/pyrefly check

# Tests start hundreds of processes: what they import is compiled once, in whatever environment.
pytest: export PYTHONDONTWRITEBYTECODE :=
pytest: install
	$(BIN)/python -m pytest -q

bench: install
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.parquet_reading
	$(BIN)/python -m benchmarks.object_store

wheel-check:
	$(PYTHON) -m benchmarks.wheel_check --python $(PYTHON) --pip-args "$(PIP_ARGS)"

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "chiasm: expected Python 3.11 or newer, found $$($(PYTHON) --version); set PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV) \
	  || { echo "chiasm: expected Python's venv; on Debian: apt-get install python3-venv"; exit 1; }
	@$(BIN)/pip uninstall --quiet --yes $(OTHER_FAISS) 2>/dev/null || true
	$(PIP) $(PIP_ARGS) -e '.[$(EXTRA),dev]'
	$(PIP) $(PIP_ARGS) --no-deps $(OPEN_CLIP)
	@rm -f $(VENV)/.ready-*
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info demo
