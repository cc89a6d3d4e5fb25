# `make demo` and `make test` do all the set-up on a fresh machine.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Test processes side by side; `make test JOBS=0` runs all in one, where a debugger and print() work.
JOBS   ?= 2
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

.PHONY: demo test test-all test-faults lint types check docs protos templates bench clean

demo: $(STAMP)
	$(BIN)/gossipctl demo --out build/demo

# What answers in minutes: all but the tests that are marked slow, e2e, netns or faults, and one end-to-end run.
test: $(STAMP) lint types
	$(PYTEST)

# What `make test` leaves out.
test-all: $(STAMP)
	$(PYTEST) -m '(slow or e2e or netns) and not faults'

# The long tests of faults and attacks; docs/evidence/faults.md says what each shows.
test-faults: $(STAMP)
	$(BIN)/python -m pytest -m faults --durations=0

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

bench: $(STAMP)
	for b in tests/bench/bench_*.py; do $(BIN)/python $$b || exit 1; done

# The pages of docs/ as a site, in build/site.
docs: $(STAMP)
	$(BIN)/pip install -q -c constraints.txt -e '.[docs]'
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build

protos: $(STAMP)
	$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=. --pyi_out=. --grpc_python_out=. protos/gossipseg/wire/*.proto

# The copies that a wheel carries; a test compares them.
templates:
	cp peers.yaml systemd/gossipsegd.service docs/admin/monitoring/alerts.yaml gossipseg/templates/

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf build $(VENV)
