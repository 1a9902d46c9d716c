# make lab opens the course, make test checks everything; both first do make setup, which is safe to repeat.
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
# Tests wait for kernels, pages and workers, so there is a process more than cores.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(4, os.cpu_count() + 1))')
# Extra words for the installer, for example a mirror: make lab INSTALL_FLAGS="--index-url https://…"
INSTALL_FLAGS ?=

.PHONY: setup lab test check bench course book links lint clean

setup: $(VENV)/.installed
	@$(BIN)/lorahub-edu fetch

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, $$($(PYTHON) --version) was found: try make setup PYTHON=python3.11"; exit 1; }
	@if command -v uv >/dev/null; then \
	  test -x $(BIN)/python || uv venv --seed --python $(PYTHON) $(VENV); \
	  uv pip install --python $(BIN)/python $(INSTALL_FLAGS) -c constraints.txt -e ".[dev]"; \
	else \
	  test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV); \
	  $(BIN)/pip install -q --disable-pip-version-check $(INSTALL_FLAGS) -c constraints.txt -e ".[dev]"; \
	fi
	@touch $@

lab: setup
	$(BIN)/lorahub-edu lab

test: setup
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

# What a change touches: make check FILES="lorahub_edu/hub/compose.py"; without FILES, what git says has changed.
check: $(VENV)/.installed
	$(BIN)/python tools/check.py $(FILES)

# make bench NAME=train_step; QUICK=1 gives the ratio within three minutes, SAVE=1 writes it to results/.
bench: setup
	@$(BIN)/python -c 'import datasets, lorahub' 2>/dev/null || \
	  $(BIN)/python -m pip install -q --disable-pip-version-check $(INSTALL_FLAGS) -c constraints.txt -e ".[bench]"
	$(BIN)/python benchmarks/$(NAME).py $(if $(QUICK),--quick) $(if $(SAVE),--save)

course: setup
	$(BIN)/lorahub-edu run --all

# The course as a website, in build/book/html; npm fetches its scripts once.
book: $(VENV)/.installed
	$(BIN)/python tools/build_book.py

# Are the book's outside addresses still there? Needs the internet.
links: $(VENV)/.installed
	$(BIN)/python tools/build_book.py --links

lint: $(VENV)/.installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check lorahub_edu lorahub_checks lorahub_grader lorahub_studies tests benchmarks tools book

clean:
	rm -rf $(VENV) build *.egg-info
