"""The notebook's cells run, one after the other, and print what they show: no kernel is needed."""

import json
import re
import subprocess
import sys
from pathlib import Path

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "convert.ipynb"
MARK = "-- the next cell --"


def words(text):
    return re.sub(r"[\d.,]+( [kMG]?B| bytes)?", "#", text).split()


def test_it_prints_what_it_shows(tmp_path):
    cells = [one for one in json.loads(NOTEBOOK.read_text())["cells"] if one["cell_type"] == "code"]
    assert [one["execution_count"] for one in cells] == list(range(1, len(cells) + 1))
    (tmp_path / "cells.py").write_text(
        "\n".join(f"{''.join(one['source'])}\nprint({MARK!r})" for one in cells)
    )
    done = subprocess.run(
        [sys.executable, tmp_path / "cells.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.split(f"{MARK}\n")[:-1]
    shown = ["".join("".join(one["text"]) for one in cell["outputs"]) for cell in cells]
    assert list(map(words, printed)) == list(map(words, shown))
