"""Runs a page: its blocks, in order, in this process, as one reader would; says what each printed.

Usage: python run_page.py BLOCKS.json PRINTED.json, in the folder where the page is to be run. Python's
blocks share one namespace; those of the shell are bash's, whose first error ends them.
"""

import contextlib
import io
import json
import subprocess
import sys
import types
from pathlib import Path

page = types.ModuleType("page")
sys.modules["page"] = page
sys.path.insert(0, "")  # as in `python -i`


def run_python(block):
    # A file of its own, with the page's line numbers: TVMScript and tracebacks read it.
    file = Path(f"{Path(block['page']).name}.{block['line']}.py").resolve()
    text = "\n" * (block["line"] - 1) + block["text"]
    file.write_text(text)
    page.__file__ = str(file)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(text, str(file), "exec"), page.__dict__)
    return printed.getvalue()


def run_shell(block):
    command = ["bash", "-e", "-o", "pipefail", "-c", block["text"]]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


blocks, printed = (Path(argument) for argument in sys.argv[1:])
results = []
for block in json.loads(blocks.read_text()):
    print(f"{block['page']}:{block['line']}", file=sys.stderr)  # the last one is where it ends
    results.append((run_shell if block["kind"] == "sh" else run_python)(block))
printed.write_text(json.dumps(results))
