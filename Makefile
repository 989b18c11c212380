# Everything runs through the environment that `make setup` builds; each target sets it up first
# where it is missing, which takes about a second when there is nothing to do.

STACK ?= onedl
PYTHON ?=
TORCH_INDEX ?=
OPS ?=
MMCV_WHEEL ?=
VENV := $(if $(filter openmmlab,$(STACK)),.venv-openmmlab,.venv)
# Any Python 3.8 or newer can run the set-up script; the environment's own is looked for by it.
BOOT := $(shell for p in "$(PYTHON)" python3 python3.11 python3.10 python3.12; do \
	test -n "$$p" && "$$p" -c "import sys; sys.exit(sys.version_info < (3, 8))" 2>/dev/null && command -v "$$p" && break; done)
IN_VENV := PATH="$(CURDIR)/$(VENV)/bin:$$PATH" VIRTUAL_ENV="$(CURDIR)/$(VENV)"

.DEFAULT_GOAL := help
.PHONY: help setup lint test test-all audit benchmark demo demo-all clean

help: ## list the targets
	@echo 'Usage: make TARGET [STACK=onedl|openmmlab] [PYTHON=python3.11] [TORCH_INDEX=URL]'
	@echo '                   [OPS=torchvision|mmcv] [MMCV_WHEEL=FILE]'
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | while IFS='|' read -r t d; do \
		printf '%-12s %s\n' "$$t" "$$d"; done
	@echo
	@echo 'STACK=onedl builds .venv (maintained fork), STACK=openmmlab .venv-openmmlab (original).'
	@echo 'OPS=mmcv compiles the operations of mmcv, 8-12 minutes; MMCV_WHEEL: a compiled mmcv instead.'
	@echo 'TORCH_INDEX: where torch comes from, for instance an index of CPU wheels; default: pip'"'"'s.'

setup: ## build the environment: a few minutes, resumable
	@test -n "$(BOOT)" || { echo 'setup: no Python that runs (PYTHON="$(PYTHON)"): install Python' \
		'3.11 (Debian/Ubuntu: apt install python3.11 python3.11-venv python3.11-dev).' >&2; exit 1; }
	@PYTHONPATH=tools "$(BOOT)" -m setup_env --stack "$(STACK)" --python "$(PYTHON)" \
		--torch-index "$(TORCH_INDEX)" --ops "$(OPS)" --mmcv-wheel "$(MMCV_WHEEL)"

lint: setup ## ruff check, ruff format --check, codespell
	$(IN_VENV) ruff check .
	$(IN_VENV) ruff format --check .
	$(IN_VENV) codespell

# The default stack is linted as well; formatting does not depend on the stack.
LINT := $(if $(filter onedl,$(STACK)),lint)
# A process per core. Neighbours in a file stay together until a process has nothing left to do, so
# that what a file builds once is built once or twice.
PYTEST := $(IN_VENV) python -m pytest -q -n auto --dist worksteal

test: setup $(LINT) ## lint, then the tests that are not marked slow
	$(PYTEST) -m 'not slow'

test-all: setup $(LINT) ## lint, then all tests
	$(PYTEST)

# In an environment of its own, for both stacks. `--strict`: what cannot be asked about is an error;
# otherwise a service that knows no package at all ends as "No known vulnerabilities found".
AUDIT := .venv-audit/bin/pip-audit --strict --no-deps --disable-pip
LOCKS = $(patsubst %,-r %,$(wildcard requirements/$(1)*.txt) requirements/dev.txt requirements/audit.txt)

audit: setup ## ask for known vulnerabilities of all that is pinned, for both stacks
	$(VENV)/bin/python -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet --no-deps -r requirements/audit.txt
	@$(AUDIT) $(call LOCKS,onedl); one=$$?; $(AUDIT) $(call LOCKS,openmmlab); exit $$((one | $$?))

benchmark: setup ## time ConT-M, ResNet-50, Swin-T and ConvNeXt-T at 224x224; eager, a few minutes
	$(IN_VENV) python tools/benchmark.py --sizes 4x224x224 --modes eager --rounds 5

demo: setup ## train, test and show the demo on data made on the spot
	$(IN_VENV) bash tools/demo.sh

demo-all: setup ## the same for every family: detectors, PSPNet, classification
	$(IN_VENV) bash tools/demo.sh all

clean: ## remove work_dirs, demo data and build leftovers, but no environment
	rm -rf work_dirs data/demo build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -path './.venv*' -prune -o -path ./.git -prune -o -name __pycache__ -type d \
		-exec rm -rf {} +
