# `make demo` and `make test` do all the set-up on a fresh machine.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test test-faults lint types check docs protos templates bench clean

demo: $(STAMP)
	$(BIN)/gossipctl demo --out build/demo

test: $(STAMP) lint types
	$(BIN)/python -m pytest

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
