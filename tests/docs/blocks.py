"""A page's blocks: what stands between fences, with the language that the fence says.

A page may have a hidden part, ``hidden/docs/transforms.py`` of ``docs/transforms.md``: cells, each with a
line that says which block it belongs to, by words that no other block of the page has:

    # %% after: class Requantised:            is run after it: what is done with it
    # %% prints: OwnershipError: in function  is run before it, and prints it
"""

import itertools
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
HIDDEN = Path(__file__).resolve().parent / "hidden"


def pages():
    """What a user reads: the front page, the pages, the notes on examples."""
    found = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]
    return sorted(str(page.relative_to(ROOT)) for page in found)


class Block(NamedTuple):
    """``kind`` is the fence's language or the cell's word, ``line`` that of the first line."""

    page: str
    line: int
    kind: str
    text: str


FENCE = re.compile(r"^(?P<indent> *)```(?P<kind>\S*)[^\n]*\n(?P<text>.*?)^ *```$", re.M | re.S)
CELL = re.compile(r"^# %% (after|prints): (.*)\n", re.M)


def blocks(page):
    """The blocks of a page in their order, each with the hidden cells that belong to it."""
    text = (ROOT / page).read_text()
    found = []
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("text")) + 1
        code = re.sub(f"^{match['indent']}", "", match["text"], flags=re.M)
        found.append(Block(page, line, match["kind"], code))
    cells = _cells(found, (HIDDEN / page).with_suffix(".py"))
    result = []
    for block in found:
        mine = cells.get(block.line, [])
        result += [cell for cell in mine if cell.kind != "after"]
        result += [block, *(cell for cell in mine if cell.kind == "after")]
    return result


def unfenced(page):
    """Lines of blocks that are indented, and say no language."""
    text = FENCE.sub(lambda m: "\n" * m[0].count("\n"), (ROOT / page).read_text())
    lines = ["", *text.splitlines()]
    return [
        number
        for number, line in enumerate(lines)
        if line.startswith("    ") and not lines[number - 1].strip()
    ]


def only(found, words):
    """The block of a page that has these words."""
    having = [block for block in found if words in block.text]
    assert len(having) == 1, f"{len(having)} blocks with {words!r}, expected one"
    return having[0]


def _cells(found, file):
    cells = {}
    if file.exists():
        text = file.read_text()
        starts = [*CELL.finditer(text), None]
        for start, end in itertools.pairwise(starts):
            code = text[start.end() : end.start() if end else None]
            line = text.count("\n", 0, start.end()) + 1
            cell = Block(f"hidden/{file.relative_to(HIDDEN)}", line, start[1], code)
            cells.setdefault(only(found, start[2]).line, []).append(cell)
    return cells
