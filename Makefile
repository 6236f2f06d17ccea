# `make` lists the targets. Needs Python >= 3.10, a C++ compiler and make; everything else goes into
# the virtual environment. Settings: `make test PYTHON=python3.12 VENV=/tmp/venv`.

PYTHON ?= python3
VENV ?= .venv
OLDEST ?= .venv-oldest
# What `make fuzz` tries: of each kind of argument and file; of bytes for each native kernel.
EXAMPLES ?= 20000
RUNS ?= 500000
CLANG ?= clang++
PHOTO ?= img/astronaut.jpg
OUT ?= inference_output
BENCHMARK ?= runs/benchmark_demo
# What `make published` fetches; empty: everything. FORCE=1 replaces files that are already there.
NAMES ?=
# Which torch to install, as pip understands it (`make build TORCH=torch==2.13.0`). Empty: on a machine
# without NVIDIA's driver the newest CPU build (a version ending in +cpu) that pip's configuration
# offers, because the ordinary Linux wheels bring several GB of CUDA packages; where pip's
# configuration offers no such build, or a driver is there, the ordinary torch. The package index
# everyone uses by default has no +cpu versions: to have one on Linux, add PyTorch's own CPU index
# to pip's configuration (PIP_EXTRA_INDEX_URL; the address is on PyTorch's "Get started" page).
TORCH ?=

PY := $(VENV)/bin/python
# A setting as one word for the shell, whatever a photo's name holds: quotes, $(shell ...)
# (which would run when make hands its settings on to the programs' environment). Only ~/ at its
# beginning stays outside the quotes: zsh, macOS's shell, hands PHOTO=~/me.jpg on as it is.
unexport PHOTO OUT BENCHMARK
quoted = $(subst '~/,~/','$(subst ','\'',$(value $(1)))')
NATIVE := Sim3DR FaceBoxes backbone_nets
SOURCES := pyproject.toml setup.py \
    $(wildcard $(foreach folder,$(NATIVE),$(folder)/*.pyx $(folder)/*.cpp $(folder)/*.h))
# The extensions are built beside their sources: build again when someone removed them or another
# Python built them, and when the repository was moved, which an editable install does not survive.
SUFFIX := $(shell $(PY) -c 'import sysconfig as s; print(s.get_config_var("EXT_SUFFIX"))' 2>/dev/null)
MISSING := $(foreach folder,$(NATIVE),$(if $(wildcard $(folder)/*$(or $(SUFFIX),.so)),,FORCE))
MOVED := $(if $(subst x$(shell cat '$(VENV)/.built' 2>/dev/null),,x$(CURDIR)),FORCE)

.DEFAULT_GOAL := help
.PHONY: help venv build demo train-demo benchmark-demo test fuzz test-oldest lint format published gui clean FORCE

help: ## Show this list
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

venv: $(VENV)/.torch-installed ## Create the virtual environment (.venv) with torch in it

build: $(VENV)/.built ## Install the project and its requirements, compile the native extensions

demo: build ## Landmarks, mesh overlay and head pose of a photo: PHOTO=img/astronaut.jpg
	$(PY) singleImage.py -f $(call quoted,PHOTO) -o $(call quoted,OUT)
	@echo
	@echo The pictures are in $(call quoted,OUT)"/: rendering_overlay/, landmarks/ and poses/"

train-demo: build ## Render faces, train on them for some two minutes, show what was learnt
	$(PY) -m tools.train_demo

benchmark-demo: build ## Render a small benchmark set, score the weights on it, make the report
	@test -d $(call quoted,BENCHMARK)/aflw2000_data || \
	    $(PY) -m tools.render_faces $(call quoted,BENCHMARK)/aflw2000_data --layout aflw2000 --count 120
	$(PY) benchmark.py --data $(call quoted,BENCHMARK)/aflw2000_data --out $(call quoted,BENCHMARK)/results \
	    --boxes jitter detector

test: build ## Run the tests
	$(PY) -m pytest

fuzz: build ## Try EXAMPLES random inputs at each door and file reader, RUNS at each native kernel
	@command -v $(CLANG) >/dev/null || { echo "libFuzzer comes with clang, which is not here:" \
	    "apt-get install clang libclang-rt-dev (or name it, CLANG=clang++-18)" >&2; exit 1; }
	$(call libfuzzer,sim3dr,Sim3DR,Sim3DR/mesh.cpp Sim3DR/rasterizer.cpp)
	$(call libfuzzer,fused_norm,backbone_nets,backbone_nets/fused_norm_kernel.cpp)
	FUZZ=$(EXAMPLES) $(PY) -m pytest -q -p no:cacheprovider tests/test_fuzz_python.py

# The inputs that it found useful stay in build/fuzz/NAME/corpus and are where the next run begins.
define libfuzzer
	@mkdir -p build/fuzz/$(1)/corpus
	$(CLANG) -std=c++17 -g -O2 -pthread -ffp-contract=off -fno-sanitize-recover=all \
	    -fsanitize=fuzzer,address,undefined,float-cast-overflow -I $(2) \
	    tests/native/fuzz_$(1).cpp $(3) -o build/fuzz/$(1)/fuzzer
	build/fuzz/$(1)/fuzzer -runs=$(RUNS) -max_len=1024 -len_control=0 -timeout=30 \
	    -print_final_stats=1 -artifact_prefix=build/fuzz/$(1)/ build/fuzz/$(1)/corpus
endef

# Wheels that old exist for Python 3.10 to 3.12: name one of these if python3 is newer.
test-oldest: ## Run the tests with the oldest supported versions of everything: PYTHON=python3.12
	@$(OLDEST)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install -r requirements-oldest.txt -e '.[test]'
	$(OLDEST)/bin/python -m pytest

lint: build ## Check style and formatting
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: build ## Put style and formatting right
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

published: build ## Fetch the published model, weights and data: NAMES="weights 3dmm_data"
	$(PY) -m pip install --quiet -e '.[published]'
	$(PY) -m tools.fetch_published $(if $(FORCE),--force) $(NAMES)

# The two OpenCV wheels own the same files, so only one may stay. pip still lists the headless one
# as a requirement: installing the project anew brings it back; run this again then.
gui: build ## Swap OpenCV's headless wheel for the one that opens windows
	$(PY) -m pip install --quiet -e '.[gui]'
	$(PY) -m pip uninstall --quiet --yes opencv-python-headless
	$(PY) -m pip install --quiet --force-reinstall --no-deps opencv-python

clean: ## Remove what the build and the tools left (keeps the environment and results)
	rm -rf build *.egg-info pretrained/.onnx_cache FaceBoxes/weights/.onnx_cache .hypothesis .pytest_cache .ruff_cache .coverage htmlcov .ci/tmp.*
	rm -f $(foreach folder,$(NATIVE),$(folder)/*.so $(folder)/*_cython.cpp) $(VENV)/.built
	find . -path './.*' -prune -o -name __pycache__ -type d -exec rm -rf {} +

# Holds the TORCH that it was made for: naming another one later installs that.
$(VENV)/.torch-installed: $(if $(filter-out $(file <$(VENV)/.torch-installed),$(TORCH)),FORCE)
	@command -v $(PYTHON) >/dev/null || { echo "No $(PYTHON) here: install Python 3.10 or newer," \
	    "or name it with \`make build PYTHON=python3.12\`" >&2; exit 1; }
	@$(PYTHON) tools/check_machine.py -q
	@$(PY) -m pip --version >/dev/null 2>&1 || \
	    { echo "Creating $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	@torch='$(TORCH)'; \
	if [ -z "$$torch" ] && ! command -v nvidia-smi >/dev/null; then \
	    cpu=$$($(PY) -m pip index versions torch 2>/dev/null \
	        | grep -o '[0-9][0-9.]*+cpu' | head -n 1); \
	    torch=$${cpu:+torch==$$cpu}; \
	    [ -n "$$torch" ] || echo "pip offers no CPU build of torch: installing the ordinary one" \
	        "(large; see TORCH in the Makefile)"; \
	fi; \
	echo "Installing $${torch:=torch}"; \
	$(PY) -m pip install "$$torch"
	@echo '$(TORCH)' >$@

$(VENV)/.built: $(VENV)/.torch-installed $(SOURCES) $(MISSING) $(MOVED)
	@$(PY) tools/check_machine.py -q
	@echo "Installing the requirements and compiling the extensions"
	@$(PY) -m pip install --quiet 'pip>=21.3'  # older ones can't install this way
	@$(PY) -m pip install -e '.[test]'
	@pwd -P >$@

FORCE:
