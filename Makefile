PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test bench docs clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED)  ## samplesplit demo; pass options with ARGS='...'
	$(BIN)/samplesplit demo $(ARGS)

test: $(INSTALLED)  ## everything CI checks: notebooks in sync, notebook tests, site, pytest
	PATH="$(CURDIR)/$(BIN):$$PATH" bash tools/check.sh

bench: $(INSTALLED)  ## time the objective and the curvature against plain autograd (six minutes, quiet machine)
	$(BIN)/python tools/bench.py --out results/objectives/bench.json
	$(BIN)/python tools/bench_curvature.py --out results/splitting/bench.json

docs: $(INSTALLED)  ## the site: into _docs with Quarto where it is installed, else into _site with smalldocs
	@export PATH="$(CURDIR)/$(BIN):$$PATH"; \
	if command -v quarto >/dev/null; then nbdev_docs && python tools/offline.py _docs && echo "site: _docs/index.html"; \
	else python tools/site.py && echo "site: _site/index.html"; fi

clean:  ## remove what the tools make, but not .venv and not runs/
	rm -rf _proc _docs _site _site_src _shots .katex build .pytest_cache .hypothesis nbs/nbdev.yml nbs/sidebar.yml
	find samplesplit_nb tests tools nbs -name __pycache__ -prune -exec rm -rf {} +

$(INSTALLED): settings.ini constraints.txt setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "samplesplit_nb needs Python >= 3.11; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@
