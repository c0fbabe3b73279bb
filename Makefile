# make demo    pictures, answers and measured recall from nothing, in minutes
# make test    lint, types, tests
# make install the set-up alone; PIP_ARGS passes more to pip, EXTRA picks FAISS: cpu or gpu

PYTHON ?= python3
EXTRA ?= cpu
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(EXTRA)

.PHONY: demo test install lint types pytest clean

demo: install
	$(BIN)/chiasm demo

test: lint types pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/pyrefly check

pytest: install
	$(BIN)/python -m pytest -q

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "chiasm: expected Python 3.11 or newer, found $$($(PYTHON) --version); set PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS) -e '.[$(EXTRA),dev]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info demo
