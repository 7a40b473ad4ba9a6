# make demo    train SimMIM and KAMIM on bundled photographs, analyse both, write figures and report to out/demo
# make test    the whole test suite, notebooks included
# make lint    ruff and mypy
# make bench   ratios of speed and memory
# make bench-gpu      what one NVIDIA GPU reaches, in nine minutes; GPU_PYTHON names its Python, nothing is installed
# make gpu-packages   puts what that Python may lack into build/gpu-packages
# make table   docs/RECORDER.md: what the recorder sees of every timm family; docs/API.md: the public names
# make test-oldest    the suite against the oldest versions that are supported, in .venv-oldest
# Each makes .venv and installs into it first, where that is not yet done.
PYTHON ?= python3
GPU_PYTHON ?= python3
EXTRA ?= cpu
BIN := .venv/bin
INSTALLED := .venv/installed-$(EXTRA)

.PHONY: demo test test-oldest lint bench bench-gpu gpu-packages table clean

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRA),dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/kamim demo --out out/demo

test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal
	$(BIN)/python -m pytest --nbmake notebooks -p no:cacheprovider

test-oldest: .venv-oldest/installed
	.venv-oldest/bin/python -m pytest --numprocesses 2 --dist worksteal

.venv-oldest/installed: pyproject.toml tests/constraints/oldest.txt
	$(PYTHON) -m venv --clear .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --upgrade pip
	.venv-oldest/bin/python -m pip install --quiet --constraint tests/constraints/oldest.txt --editable '.[cpu,dev]'
	touch $@

# mypy cannot follow the mapped folders in the tree, where it would check a third of the files and report success:
# it is given the unpacked wheel, built from nothing: what an earlier build left in build/lib would come along
lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build && mkdir -p build/wheel
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	cd build/wheel && unzip -q *.whl && MYPYPATH=. ../../$(BIN)/mypy --config-file ../../pyproject.toml -p kamim_analysis
	cd build && PYTHONPATH="$(CURDIR)/build/wheel" ../$(BIN)/mypy --strict --config-file= ../tests/coverage/every_public_name.py

bench: $(INSTALLED)
	cd tests/benchmarks && for script in loading analyses memory opening features knn fast_probe objectives checkpoints; do ../../$(BIN)/python $$script.py || exit 1; done

bench-gpu:
	$(GPU_PYTHON) tests/benchmarks/gpu.py

gpu-packages:
	$(PYTHON) -m pip install --quiet --no-deps --upgrade --target build/gpu-packages jsonargparse

table: $(INSTALLED)
	$(BIN)/python tests/coverage/recorder_table.py
	$(BIN)/python tests/coverage/api_table.py

clean:
	rm -rf .venv .venv-oldest build out
