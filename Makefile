# make demo | test | install | ext | check | bench | gpu | docs | wheel | clean
#
# PYTHON  interpreter that the environment is made from      (python3; 3.10 to 3.13)
# TORCH   what pip installs as torch, with options if needed (torch==2.13.0)
# MGRPO_BUILD=auto|cpu|cuda|none, CXX, MGRPO_CXXFLAGS        how the native extension is built, see setup.py
# DEMO_ARGS, PYTEST_ARGS                                     options for `mgrpo demo` and pytest
# OP, BENCH_ARGS, GPU_ARGS                                   what `make bench` measures; options for it and for tools/gpu

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv

.PHONY: install ext demo test check bench gpu docs wheel clean

# Makes .venv and installs this tree into it; returns at once where nothing that matters changed.
install:
	@PYTHON='$(PYTHON)' TORCH='$(TORCH)' tools/install

# The native extension alone, with the compiler's output: fails where `make install` would go on without it.
ext: export MGRPO_BUILD ?= cpu
ext:
	@test -x $(VENV)/bin/python || $(MAKE) --no-print-directory install
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/python setup.py build_ext --inplace

demo: install
	@$(VENV)/bin/mgrpo demo $(DEMO_ARGS)

test:
	@PYTHON='$(PYTHON)' TORCH='$(TORCH)' tools/install test
	@$(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(PYTEST_ARGS)

check: install
	@$(VENV)/bin/python -m ruff --version >/dev/null 2>&1 || \
	  $(VENV)/bin/python -m pip install -q "$$(sed -n 's/.*"\(ruff==[^"]*\)".*/\1/p' pyproject.toml)"
	@$(VENV)/bin/python -m ruff check .
	@$(VENV)/bin/python -m ruff format --check .

# Measures on this CPU and redraws what is shown of it. The packages it compares with may be missing.
bench: install
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" MGRPO_BUILD=none $(VENV)/bin/python -m pip install -q --no-build-isolation \
	  -e '.[bench]' || echo 'mgrpo: the packages to compare with cannot all be installed; going on with those there are'
	@$(VENV)/bin/python -m benchmarks.run --gate $(if $(OP),--op '$(OP)') $(BENCH_ARGS)
	@$(VENV)/bin/python -m benchmarks.plot
	@$(VENV)/bin/python -m benchmarks.readme

# For a machine that has torch with CUDA and nvcc: no environment is made, nothing is fetched.
gpu:
	@PYTHON='$(PYTHON)' tools/gpu $(GPU_ARGS)

# The documentation site, without network where its packages are there.
docs: install
	@$(VENV)/bin/python -c "import mkdocs, material, mkdocstrings" 2>/dev/null || \
	  PATH="$(CURDIR)/$(VENV)/bin:$$PATH" MGRPO_BUILD=none $(VENV)/bin/python -m pip install -q --no-build-isolation -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict --quiet
	@echo build/site/index.html

# build/ keeps files that were deleted from the tree, which would slip into the wheel.
wheel: install
	@rm -rf build/lib* build/bdist*
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/python -m pip wheel -q --no-build-isolation --no-deps -w dist .
	@ls dist/*.whl

clean:
	rm -rf build dist *.egg-info kernels/_C*.so kernels/_cuda*.so $(VENV)/.mgrpo-installed
