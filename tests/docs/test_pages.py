"""What the pages show, runs, and prints what they say.

Every page is run: in a fresh process, an empty folder that has the examples, block by block, as a
reader would (`run_page.py`). A block of `python` or `sh` is run. A block of `text` is what the block
before it printed, or what a hidden cell prints (`blocks.py`), word by word. Everything else is listed
here, with the reason; a reason that has become none is an error.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from blocks import ROOT, blocks, only, pages, unfenced

HERE = Path(__file__).resolve().parent

# Languages that are shown only.
SHOWN = {
    "cmake": "tests/deploy builds examples/cpp_host",
    "cpp": "tests/deploy builds examples/cpp_host",
    "{toctree}": "Sphinx reads it",
}

DECODER = "takes minutes; tests/test_examples.py runs it with a smaller decoder"
TESTED_IR = "shortened; tests/inplace compares whole functions"

# Blocks that are not run, or not compared: page, words that the block has, reason.
NOT_RUN = [
    ("README.md", "make demo", "make test is this; tests/test_examples.py runs the demonstration"),
    ("README.md", "293 weights, 496 MB", DECODER),
    ("docs/command-line.md", "--target cuda", "needs nvcc; tests/cli runs each option"),
    ("docs/command-line.md", "_RELAX_INPLACE_COMPLETE", "needs bash; tests/cli/test_ends.py"),
    ("docs/deploy.md", "Cannot find ffi::Function", "tests/deploy/test_missing_builtins.py"),
    ("docs/deploy.md", "arm/librelax_inplace.a", "needs another machine's libraries and compiler"),
    ("docs/deploy.md", "cmake -S . -B build", "tests/deploy/test_cpp_host.py"),
    ("docs/deploy.md", "cpp_host model.so", "tests/deploy/test_cpp_host.py"),
    ("docs/deploy.md", "tvm.exec.rpc_server", "tests/deploy/test_rpc.py"),
    ("docs/deploy.md", "rpc.connect(host, port", "tests/deploy/test_rpc.py"),
    ("docs/disco.md", "relax_inplace.runtime.disco.node HOST", "tests/runtime/test_disco.py"),
    ("docs/figures.md", "make gpu-check", "needs nvcc, and a GPU"),
    ("docs/gpu.md", "load_stub()", "needs nvcc"),
    ("examples/cpp_host/README.md", "make cpp-host", "tests/deploy/test_cpp_host.py"),
    ("examples/cpp_host/README.md", "step 30 of 30", "tests/deploy/test_cpp_host.py"),
    ("docs/how-it-works.md", "w0 = R.permute_dims(params[0])\np0", TESTED_IR),
    ("docs/how-it-works.md", "w0_given = get_weight(0)", TESTED_IR),
    (
        "docs/layouts.md",
        'quantize["group-quant"]',
        "needs MLC-LLM; tests/layout/test_stored_layout.py has a layer that looks like its",
    ),
    ("docs/mlc-llm.md", "model.export_tvm", "a line of MLC-LLM's compiler"),
    ("examples/mlc_llm/README.md", "git clone", "needs a checkout of MLC-LLM"),
    ("docs/runtime.md", '"layout": "9f0c..."', "a form, with names for values"),
    (
        "docs/quick-start.md",
        "step 3 of 5 (`t2`)",
        "tests/runtime/test_failures.py: test_the_message",
    ),
    ("examples/one_format_many_machines.md", "--layout kn\n", DECODER),
    ("examples/one_format_many_machines.md", "--layout tiles\n", DECODER),
    ("examples/one_format_many_machines.md", "--layout ft\n", DECODER),
]

# Pages that go on from the README's quick start: its blocks are run first.
AFTER_THE_README = {"docs/command-line.md", "docs/deploy.md", "docs/disco.md", "docs/runtime.md"}

# Programs of a page that need what the tests do not install: page, words of the block, module. Each is
# run by itself, where the module is there.
NEEDS = [
    ("docs/frontends.md", "torch.export.export(", "torch"),
    ("docs/frontends.md", "from_onnx(", "onnx"),
]

# Blocks that have seconds and resident memory, which differ: compared without their numbers.
MEASURED = [
    ("README.md", "inplace_transform_params: 83.9 MB converted"),
]


def words(text, is_measured):
    if is_measured:  # seconds may be ms, and a busy machine's GB/s may be MB/s
        text = re.sub(r"[\d.,]*\d (?:[kMG]?(B)|m?(s))\b", r"# \1\2", text)
        text = re.sub(r"[\d.,]*\d", "#", text)
    return text.split()


def run(to_run, folder):
    """What each of the blocks prints, run one after the other."""
    files = [folder / "blocks.json", folder / "printed.json"]
    files[0].write_text(json.dumps([block._asdict() for block in to_run]))
    (folder / "here").mkdir()
    shutil.copytree(ROOT / "examples", folder / "here" / "examples")
    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, HERE / "run_page.py", *files],
        cwd=folder / "here",
        env={**os.environ, "PATH": commands},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(files[1].read_text())


def check(page, found, folder):
    """Run some blocks of a page, and compare what they print with what the page says."""
    measured = [only(found, text) for where, text in MEASURED if where == page]
    to_run = [block for block in found if block.kind != "text"]
    if page in AFTER_THE_README:
        to_run = [block for block in run_by_test("README.md") if block.kind != "text"] + to_run
    unknown = {block.kind for block in to_run} - {"python", "sh", "after", "prints"}
    assert not unknown, "languages that are neither run nor listed"
    printed = dict(zip(to_run, run(to_run, folder) if to_run else [], strict=True))
    for before, block in zip([None, *found], found, strict=False):
        if block.kind == "text":
            assert before in printed, (
                f"{page}:{block.line}: nothing prints this, and it is not listed"
            )
            shown = words(block.text, block in measured)
            # Of several commands the last.
            assert words(printed[before], block in measured)[-len(shown) :] == shown


def program(found, text):
    """A block, with the commands before it and the hidden cells that belong to it."""
    index = found.index(only(found, text))
    start, end = index, index + 1
    while start and found[start - 1].kind in ("prints", "sh"):
        start -= 1
    while found[end:] and found[end].kind == "after":
        end += 1
    return found[start:end]


def run_by_test(page):
    """The blocks of a page that are run together, and what they print."""
    found = blocks(page)
    apart = [only(found, text) for where, text, _ in NOT_RUN if where == page]
    for where, text, _ in NEEDS:
        if where == page:
            apart += program(found, text)
    return [one for one in found if one not in apart and one.kind not in SHOWN]


@pytest.mark.parametrize("page", pages())
def test_page(page, tmp_path):
    check(page, run_by_test(page), tmp_path)


@pytest.mark.parametrize(("page", "text", "module"), NEEDS)
def test_program_that_needs_more(page, text, module, tmp_path):
    pytest.importorskip(module, reason=f"{module} is not installed; `make zoo` has it")
    check(page, program(blocks(page), text), tmp_path)


@pytest.mark.parametrize("page", pages())
def test_blocks_say_their_language(page):
    assert not unfenced(page), "write ```python, ```sh or ```text: an indented block says nothing"


def test_what_is_listed_is_there():
    assert {page for page, *_ in NOT_RUN + NEEDS + MEASURED} | AFTER_THE_README <= set(pages())
