# make demo    environment, dependencies, then the main job on the embedded data
# make demo-3d    the same on volumes: a 3D U-Net segments the embedded ones, in under 5 minutes
# make test    environment, dependencies, then lint and tests
# make bench   environment, dependencies, then the benchmarks of a processor, in under 10 minutes
# make flower  environment, dependencies, then Flower: --engine flower, docs/DEPLOY.md
# make test-flower    the same, then the tests that need it, real processes on loopback among them
#
# An environment that exists already: make demo PYTHON=/path/to/python VENV=

PYTHON ?= python3
VENV ?= .venv

ifeq ($(strip $(VENV)),)
RUN := $(PYTHON)
INSTALLED :=
INSTALLED_3D :=
INSTALLED_DEV :=
INSTALLED_FLOWER :=
else
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
INSTALLED_3D := $(VENV)/.installed-3d
INSTALLED_DEV := $(VENV)/.installed-dev
INSTALLED_FLOWER := $(VENV)/.installed-flower
endif

# A file of tests is one process's: its fixtures are made once. Each process takes 2 GB.
SIDE_BY_SIDE := --numprocesses auto --maxprocesses 4 --dist loadfile

.PHONY: demo demo-3d test lint bench flower test-flower clean

demo: $(INSTALLED)
	$(RUN) train_main.py --preset demo

demo-3d: $(INSTALLED_3D)
	$(RUN) train_main.py --preset demo-3d

test: lint
	$(RUN) -m pytest $(SIDE_BY_SIDE)

flower: $(INSTALLED_FLOWER)

test-flower: $(INSTALLED_FLOWER)
	$(RUN) -m pytest tests/flower

lint: $(INSTALLED_DEV)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

bench: $(INSTALLED)
	$(RUN) -m benchmarks.round
	$(RUN) -m benchmarks.scale sizes --image_sizes 64
	$(RUN) -m benchmarks.scale clients --clients 10 100 --images 400
	$(RUN) -m benchmarks.scale average
	$(RUN) -m benchmarks.scale start --images 2500 --image_sizes 64

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python requirements.txt constraints.txt
	$(RUN) -m pip install --quiet --requirement requirements.txt --constraint constraints.txt
	touch $@

$(VENV)/.installed-3d: $(VENV)/.installed requirements-3d.txt
	$(RUN) -m pip install --quiet --requirement requirements-3d.txt --constraint constraints.txt
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt requirements-3d.txt
	$(RUN) -m pip install --quiet --requirement requirements-dev.txt --constraint constraints.txt
	touch $@

$(VENV)/.installed-flower: $(VENV)/.installed-dev requirements-flower.txt
	$(RUN) -m pip install --quiet --requirement requirements-flower.txt --constraint constraints.txt
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
