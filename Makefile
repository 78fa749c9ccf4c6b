# make demo    installs Earthshine into .venv and asks the shipped model for a command
# make test    what .ci/run runs: lint, types, tests
# make lint    ruff and mypy alone
# make bench   the short form of the benchmarks, llama.cpp beside; builds that once, which takes minutes
# make clean   removes .venv and everything built or cached

PYTHON ?= python3
TORCH ?= torch==2.13.0

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
BUILD_INPUTS := pyproject.toml CMakeLists.txt $(shell find native -type f)

.PHONY: demo test lint bench clean FORCE
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/earthshine chat -p "extract a gzipped tar archive" </dev/null

test: lint
	$(BIN)/python -m pytest -q --durations=5

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/run.py --short
	$(BIN)/python benchmarks/versus_llama_cpp.py --short

clean:
	rm -rf $(VENV) build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks tools -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: what is missing on the machine is said first, and a repeated call installs nothing unless something
# that the installation reads has changed.
$(VENV)/.installed: $(VENV)/.torch $(VENV)/.modules $(BUILD_INPUTS)
	$(PIP) install -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install -e ".[dev]"
	@touch $@

# The editable installation maps modules to files, so it is renewed when a file comes, goes or moves.
$(VENV)/.modules: $(VENV)/.created FORCE
	@find src -name '*.py' | sort | cmp -s - $@ || find src -name '*.py' | sort > $@

$(VENV)/.torch: $(VENV)/.created
	$(PIP) install "$(TORCH)"
	@touch $@

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Earthshine needs Python 3.11 or later, and $(PYTHON) is not; name one, such as: make PYTHON=python3.12" >&2; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || { \
	  echo "Earthshine builds a small native library, and no C++ compiler was found; install g++ or clang." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

FORCE:
