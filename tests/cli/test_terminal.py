"""At 60 columns nothing is cut within a word; a pipe gets lines as they are."""

import pytest
from commands import MODEL, output, run

from relax_inplace.cli.program import COMMANDS


@pytest.mark.parametrize("command", ["", *(one.name for one in COMMANDS if one.name != "demo")])
def test_help_fits(command, monkeypatch):
    wide = output(*filter(None, [command]), "--help")
    monkeypatch.setenv("COLUMNS", "60")
    narrow = output(*filter(None, [command]), "--help")
    assert max(map(len, narrow.splitlines())) <= 60
    assert narrow.split() == wide.split()


@pytest.mark.parametrize("arguments", [["plan", "-"], ["explain", "-", "--skip", "*"]])
def test_results_fit(arguments, monkeypatch):
    wide = output(*arguments, text=MODEL)
    monkeypatch.setenv("COLUMNS", "60")
    narrow = output(*arguments, text=MODEL)
    assert max(map(len, wide.splitlines())) > 60
    assert max(map(len, narrow.splitlines())) <= 60
    assert narrow.split() == wide.split()


def test_json_stays(monkeypatch):
    wide = run("plan", "-", "--json", text=MODEL)
    monkeypatch.setenv("COLUMNS", "60")
    assert run("plan", "-", "--json", text=MODEL) == wide
