# make demo    install into .venv and convert a decoder's weights in place
# make test    install with the test extra, run the tests
# make lint    ruff, mypy, clang-format
# make format  let ruff and clang-format rewrite
# make fuzz    the random properties, 5,000 examples each; 200 graphs against brute force
# make bench   time to compile and to lift; memory and time of TVM's ways

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint format fuzz bench clean

demo: .venv/pyvenv.cfg
	$(BIN)/pip install --quiet .
	$(BIN)/relax-inplace demo

test: .venv/pyvenv.cfg
	$(BIN)/pip install --quiet '.[test]'
	$(BIN)/pytest $(PYTEST_ARGS)

lint: .venv/pyvenv.cfg
	$(BIN)/pip install --quiet '.[lint]'
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror cpp/*.cc cpp/*.h

format: .venv/pyvenv.cfg
	$(BIN)/pip install --quiet '.[lint]'
	$(BIN)/ruff check --fix --exit-zero .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i cpp/*.cc cpp/*.h

fuzz: .venv/pyvenv.cfg
	$(BIN)/pip install --quiet '.[test]'
	LEAST_PEAK_GRAPHS=200 $(BIN)/pytest --hypothesis-profile=fuzz \
	    -k "any_transform or any_model or program_is or no_order_has"

bench: .venv/pyvenv.cfg
	$(BIN)/pip install --quiet .
	$(BIN)/python benchmarks/tvm_ways.py
	$(BIN)/python benchmarks/compile_time.py
	$(BIN)/python benchmarks/lift_time.py

.venv/pyvenv.cfg:
	$(PYTHON) -m venv .venv

clean:
	rm -rf .venv build dist
