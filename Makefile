# make demo    installs Earthshine into .venv and asks the shipped model for a command
# make test    what .ci/run runs: lint, types, tests
# make test CPU=avx2         the tests as on a processor whose best set this is; also portable, avx512, avx512_bf16, amx
# make test CPU=amx_emulated the tests with AMX computed in C++, in an environment of its own beside .venv
# make lint    ruff, mypy and clang-format alone
# make wheel   dist/earthshine-*.whl for this machine; make wheel-test installs it without a compiler and asks it
# make lock    requirements/tests.txt anew, by uv
# make bench   the short form of the benchmarks, llama.cpp beside; builds that once, which takes minutes
# make clean   removes .venv and everything built or cached

PYTHON ?= python3
LOCK := requirements/tests.txt
# What TORCH names is installed by pip as it is; without it, the locked version without CUDA.
TORCH ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
TESTED := $(BIN)/python
EMULATED := build/amx_emulated
WHEEL_TEST := build/wheel-test
BUILD_INPUTS := pyproject.toml CMakeLists.txt $(shell find native -type f)

.PHONY: demo test lint wheel wheel-test lock bench clean FORCE
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/earthshine chat -p "extract a gzipped tar archive" </dev/null

ifeq ($(CPU),amx_emulated)
test: $(EMULATED)/.installed
test: export EARTHSHINE_CPU := amx
TESTED := $(EMULATED)/bin/python
else ifdef CPU
test: export EARTHSHINE_CPU := $(CPU)
endif

test: lint
	$(TESTED) -m pytest -q --durations=5

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(shell find native -name '*.h' -o -name '*.cc')

wheel: $(VENV)/.created
	rm -rf dist
	$(PIP) wheel --no-deps --wheel-dir dist .

# No compiler is named, and a package that would have to be built is refused.
wheel-test: wheel $(VENV)/.constraints
	$(BIN)/python -m venv --clear $(WHEEL_TEST)
	$(if $(TORCH),$(WHEEL_TEST)/bin/python -m pip -q install "$(TORCH)",\
	  $(WHEEL_TEST)/bin/python tools/install_torch.py "$$(grep '^torch==' $(LOCK))")
	CC=/nonexistent CXX=/nonexistent $(WHEEL_TEST)/bin/python -m pip --disable-pip-version-check -q install \
	  --only-binary :all: -c $(VENV)/.constraints dist/earthshine-*.whl
	cd $(WHEEL_TEST) && PATH="$(CURDIR)/$(WHEEL_TEST)/bin:$$PATH" bash $(CURDIR)/.ci/smoke

# What only a GPU build of torch or another system needs is left out, with torch's own version kept.
lock:
	torch=$$(grep '^torch==' $(LOCK)) && heading=$$(grep '^#' $(LOCK)) && \
	  echo "$$torch" | uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --strip-extras \
	    --upgrade --no-annotate --no-header --quiet --constraint - > $(LOCK).new && \
	  { echo "$$heading"; grep -vE '^(nvidia-|cuda-|triton=)|win32|emscripten' $(LOCK).new; } > $(LOCK) && rm $(LOCK).new

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/run.py --short
	$(BIN)/python benchmarks/versus_llama_cpp.py --short

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks tools -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: what is missing on the machine is said first, and a repeated call installs nothing unless something
# that the installation reads has changed.
$(VENV)/.installed: $(VENV)/.torch $(VENV)/.constraints $(VENV)/.modules $(BUILD_INPUTS)
	@echo "Installing Earthshine and what else it needs (70 MB to download at most, and a minute of compiling)."
	$(PIP) install -c $(VENV)/.constraints -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install -c $(VENV)/.constraints -e ".[dev]"
	@touch $@

# Only Earthshine is installed again; what it needs is found in .venv.
$(EMULATED)/.installed: $(VENV)/.installed-dev
	$(BIN)/python -m venv --clear --without-pip $(EMULATED)
	$(BIN)/python -c 'import site; print(*site.getsitepackages(), sep="\n")' > \
	  "$$($(EMULATED)/bin/python -c 'import site; print(site.getsitepackages()[0])')/needed.pth"
	CMAKE_ARGS=-DEARTHSHINE_EMULATE_AMX=ON $(PIP) --python $(EMULATED)/bin/python install --no-deps -e .
	@touch $@

# The editable installation maps modules to files, so it is renewed when a file comes, goes or moves.
$(VENV)/.modules: $(VENV)/.created FORCE
	@find src -name '*.py' | sort | cmp -s - $@ || find src -name '*.py' | sort > $@

# The locked versions, without torch's: TORCH chooses that.
$(VENV)/.constraints: $(LOCK) $(VENV)/.created
	@grep -v '^torch==' $(LOCK) > $@

$(VENV)/.torch: $(VENV)/.created
	$(if $(TORCH),$(PIP) install "$(TORCH)",$(BIN)/python tools/install_torch.py "$$(grep '^torch==' $(LOCK))")
	@touch $@

$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || { echo "Earthshine needs Python 3.11 or later, and $(PYTHON) was not found;" \
	  "install it, or name another one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) tools/preflight.py
	$(PYTHON) -m venv $(VENV)
	@touch $@

FORCE:
