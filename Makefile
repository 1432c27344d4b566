# Each target sets up .venv first if it is not there yet; a second call does not do so again.
PYTHON ?= python3
BIN := .venv/bin
NOTEBOOKS := $(sort $(wildcard nbs/*.ipynb)) $(sort $(wildcard nbs/guides/*.ipynb))
# Two workers with one thread each get through the tests faster than one worker with two threads.
WORKERS ?= 2

.PHONY: setup demo test lab check export clean lint types execute weights docs docs-serve
.NOTPARALLEL:

setup: .venv/ready

# torch and torchvision in one command: taken from two places, torchvision does not import beside torch.
.venv/ready: settings.ini setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv torch torchvision
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	@$(BIN)/python -m cfvae demo

test: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --timeout=900 -q tests

lab: setup
	$(BIN)/jupyter lab nbs

# The notebooks are the source: write cfvae/*.py from them. Both are formatted, so that doing it again changes nothing.
export: setup
	$(BIN)/ruff format --quiet nbs
	$(BIN)/nbdev_export
	$(BIN)/ruff format --quiet cfvae

# Drop what would differ from one run to the next.
clean: setup
	$(BIN)/nbdev_clean

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

# Run every notebook, or those named in NOTEBOOKS=..., and keep the outputs.
execute: setup
	OMP_NUM_THREADS=2 $(BIN)/python tests/execute.py $(NOTEBOOKS)
	$(BIN)/nbdev_clean

# Build the site into site/, from the committed notebooks with their outputs. Needs npm, which comes with Node.js.
docs: setup
	@$(BIN)/python docs/build.py

# Show the site to browsers on this machine, and to no other machine.
docs-serve: setup
	@test -f site/index.html || $(MAKE) docs
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory site $(or $(PORT),8000)

# Train the shipped weights again, from their recipes and seeds: about three hours on two CPU cores. cfvae/weights/README.md says what they are.
weights: setup
	$(BIN)/python -m cfvae train-features --out cfvae/weights/shapes-classifier
	$(BIN)/python -m cfvae.runs.pixel_models
	$(BIN)/python -m cfvae train --preset shapes --out runs/shapes --resume
	$(BIN)/python -c "import torch; from cfvae.runs.folder import load_model; load_model('runs/shapes').save_pretrained('cfvae/weights/shapes', dtype=torch.float16)"
	rm -f cfvae/weights/*/README.md cfvae/weights/*/*/README.md

# What has to hold before a change lands: everything passes, and nothing in the tree changes by it.
TREE = { git status --porcelain; git diff HEAD; } | git hash-object --stdin
check: setup
	@before="$$($(TREE))"; $(MAKE) export clean lint types test && \
	  if [ "$$before" = "$$($(TREE))" ]; then echo "check: fine"; else echo "check: the tree changed:"; git status --short; exit 1; fi
