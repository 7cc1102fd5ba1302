# make demo    the main job, end to end, in a few minutes
# make test    the tests
# make test-browser    those of the report in a real browser, which it installs, too
# make test-cluster    those on a real SLURM, which it installs (Debian, Ubuntu; as root)
# make bench   every benchmark, peers beside ours: bench/bench.json, bench/bench.png (QUICK=1: tiny)
# make lint    style, formatting and types
# make setup   the virtual environment .venv that all of these stand on
#
# PYTHON=python3.12 make setup     chooses the interpreter (3.10 to 3.13)
# TORCH="torch==2.11.0 torchvision==0.26.0" make setup     chooses the build of torch
PYTHON ?= python3
TORCH ?= torch==2.13.0 torchvision==0.28.0
# Both wait a part of the time: three at once keep two cores at work.
PROCESSES ?= 3
CLUSTERS ?= 3
BIN := .venv/bin
# Of all that is installed, most of it one cloud's client that streaming depends on, only a part is
# ever imported: that is compiled when it is, and not all by pip, which takes two minutes.
PIP_OPTIONS := -qq --no-compile

# Where this is set, as in many containers, every start would compile what it imports once more.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup demo bench test test-browser test-cluster lint format clean

setup: .venv/ready

# A machine whose own torch already drives its GPU keeps that build; otherwise pip installs TORCH.
.venv/ready: pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
	  { echo "elemdist needs Python 3.10 to 3.13; name one: make setup PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
	  { echo "this Python lacks venv; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	@if $(PYTHON) -c 'import torch; raise SystemExit(not torch.cuda.is_available())' 2>/dev/null; then \
	  echo "setup: using the torch of this machine, which drives its GPU"; \
	  $(PYTHON) -m venv --clear --system-site-packages .venv; \
	else \
	  $(PYTHON) -m venv .venv; \
	fi
	@# The pip that comes with Python 3.11 takes two minutes longer to choose among all versions.
	@$(BIN)/python -m pip install -qq --upgrade pip || \
	  echo "setup: going on with the pip that is here, which may be slower"
	@grep -q 'site-packages = true' .venv/pyvenv.cfg || $(BIN)/python -m pip install $(PIP_OPTIONS) $(TORCH)
	@$(BIN)/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' \
	  > .venv/torch.txt
	$(BIN)/python -m pip install $(PIP_OPTIONS) --constraint .venv/torch.txt --editable '.[dev]'
	@# In a folder with a space, pip gives plain scripts (deepspeed) a first line that cannot run.
	@for script in $$(grep -lsIE '^#!/.* .*/python' $(BIN)/*); do \
	  sed -i "1s|.*|#!/bin/sh\n'''exec' \"\$$(dirname \"\$$0\")/python\" \"\$$0\" \"\$$@\"\n' '''|" "$$script"; \
	done
	@# Compiles what the verbs import, so that the first one starts as fast as the second.
	@$(BIN)/python -c 'import elemdist.evaluation, data_prep.shard; \
	  from elemdist.deepspeed_import import import_deepspeed; import_deepspeed()'
	@touch $@

demo: setup
	$(BIN)/python -m elemdist.demo

bench: setup
	$(BIN)/python -m elemdist bench all $(if $(QUICK),--quick)

test: setup
	$(BIN)/python -m pytest --ignore tests/cluster --ignore tests/browser -n $(PROCESSES) \
	  --dist loadfile --no-loadscope-reorder

test-browser: setup
	tests/browser/install.sh
	ELEMDIST_NEED_BROWSER=1 $(BIN)/python -m pytest tests/browser

test-cluster: setup
	tests/cluster/install.sh
	ELEMDIST_NEED_SLURM=1 $(BIN)/python -m pytest tests/cluster -n $(CLUSTERS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build demo bench *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
