"""A picture of what conversions cost: time against a warm copy, and the memory beside it.

It needs matplotlib. The same rows give the same bytes, as in relax_inplace/plot.py.

    python benchmarks/conversion_plot.py rows.json picture.svg
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from typing import Any

__all__ = ["plot_rows"]

_GREY, _BLACK = "#767676", "#333333"
_COLORS = {
    "TVM out of place": "#bdbdbd",
    "TVM consume_params": "#8a8a8a",
    "numpy": "#e3c27a",
    "torch": "#e08a5b",
    "jax": "#b5739d",
    "in place": "#2166ac",
}
_LABELLED = "in place"  # whose numbers are written out
_FORMATS = {".svg": {"Date": None}, ".png": {"Software": None}, ".pdf": {"CreationDate": None}}
_SETTINGS: dict[str, Any] = {
    "font.size": 9.0,
    "svg.fonttype": "path",  # as everywhere, whatever fonts are there
    "svg.hashsalt": "relax_inplace",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": _GREY,
    "xtick.color": _BLACK,
    "ytick.color": _BLACK,
    "axes.labelcolor": _BLACK,
}
_LEAST = 0.02  # of a bar's length: what needs nothing is seen to have been measured


def plot_rows(rows: list[dict[str, Any]], file: str | os.PathLike[str]) -> None:
    """Draw the rows of conversion_time.py.

    Parameters
    ----------
    rows : list of dict
        Of each workload and way. Ways that are missing are left out.
    file : path
        Its ending says the format: ``.svg``, ``.png`` or ``.pdf``.

    Raises
    ------
    ValueError
        The file has another ending, or there is nothing to draw.
    """
    ending = os.path.splitext(os.fspath(file))[1].lower()
    if ending not in _FORMATS:
        raise ValueError(f"{os.fspath(file)}: expected a file that ends in .svg, .png or .pdf")
    drawn = [row for row in rows if row["way"] in _COLORS and not row["missing"]]
    if not any(row["ratio"] for row in drawn):
        raise ValueError("there is no ratio to draw: measure `warm copy` and at least one way")
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        names = _in_order(row["workload"] for row in drawn)
        ways = [way for way in _COLORS if any(row["way"] == way for row in drawn)]
        height = 1.1 + 0.09 * (len(ways) + 2) * len(names)  # inches
        figure = Figure(figsize=(8.3, height), layout="constrained")
        FigureCanvasAgg(figure)
        time, memory = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        # A logarithmic axis has no zero: each bar starts at the left edge, below the least.
        left = 0.7 * min(0.9, *(row["ratio"] or 1 for row in drawn))
        _bars(time, drawn, names, ways, "ratio", left)
        _bars(memory, drawn, names, ways, "extra_in_largest", 0)
        time.set_xscale("log")
        time.set_xlim(left=left)
        time.axvline(1, color=_BLACK, linewidth=0.8)
        time.set_xlabel("seconds over those of a warm copy of the same bytes\n(logarithmic)")
        memory.set_xscale("symlog", linthresh=1, linscale=1)
        memory.set_xlim(left=0)
        memory.set_xlabel("extra memory, in largest tensors\n(linear to 1, then logarithmic)")
        for axes, below in ((time, [0.01, 0.1, 0.5]), (memory, [0, 0.5])):
            low, high = axes.get_xlim()
            digits = (1, 2, 5) if high < 100 else (1, 5)  # labels of more would touch
            ticks = below + [digit * 10**power for power in range(5) for digit in digits]
            axes.set_xticks([tick for tick in ticks if low <= tick <= high])
            axes.set_xticks([], minor=True)
            axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
            axes.grid(axis="x", color="#e6e6e6", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.tick_params(axis="y", length=0)
        time.set_yticks(range(len(names)), names)
        time.set_ylim(len(names) - 0.45, -0.55)
        handles, labels = time.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
        figure.savefig(file, dpi=200, metadata=_FORMATS[ending])


def _bars(
    axes: Any,
    rows: list[dict[str, Any]],
    names: list[str],
    ways: list[str],
    key: str,
    start: float,
) -> None:
    """For each workload a group of bars, one for each way, the first on top.

    What returns views has converted nothing: it has no bar, but says so.
    """
    thickness = 0.84 / len(ways)
    least = start + _LEAST if start == 0 else start
    views = {(row["workload"], row["way"]) for row in rows if row.get("is_view")}
    for place, way in enumerate(ways):
        values = {row["workload"]: row[key] for row in rows if row["way"] == way}
        above = (place - (len(ways) - 1) / 2) * thickness
        known = []
        for i, name in enumerate(names):
            if (name, way) in views:
                _say(axes, "a view", start, i + above, way)
            elif values.get(name) is not None:
                known.append((i, values[name]))
        at = [i + above for i, _ in known]
        if way == _LABELLED:
            for y, (_, value) in zip(at, known, strict=True):
                _say(axes, f"{value:.2f}", max(value, least), y, way)
        axes.barh(
            at,
            [max(value, least) - start for _, value in known],
            left=start,
            height=0.86 * thickness,
            color=_COLORS[way],
            label=way,
        )


def _say(axes: Any, text: str, x: float, y: float, way: str) -> None:
    axes.annotate(
        text,
        (x, y),
        (3, 0),
        textcoords="offset points",
        va="center_baseline",
        size=7.5,
        color=_COLORS[way],
        bbox={"facecolor": "white", "linewidth": 0, "pad": 0.5},  # over the line of a copy
    )


def _in_order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


if __name__ == "__main__":
    with open(sys.argv[1]) as source:
        plot_rows(json.load(source)["rows"], sys.argv[2])
