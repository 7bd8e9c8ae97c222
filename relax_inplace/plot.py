"""Pictures: the memory that a conversion needs by its plan, and that one needed as measured.

It needs matplotlib: ``pip install 'relax_inplace[plot]'``. No state of pyplot is touched. The same
plan gives the same bytes: no date, no settings of the user, and in SVG the letters are outlines.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .analysis import MemoryPlan
    from .runtime.report import Report

__all__ = ["plot_plan", "plot_report"]


def plot_plan(plan: MemoryPlan, file: str | os.PathLike[str]) -> None:
    """Draw the live bytes at each step of a plan, against those of a conversion out of place.

    Parameters
    ----------
    plan : MemoryPlan
    file : path
        Its ending says the format: ``.svg``, ``.png`` or ``.pdf``.

    Raises
    ------
    ValueError
        The plan has symbolic sizes, or the file another ending.
    ImportError
        There is no matplotlib.
    """
    from .inplace.out_of_place import out_of_place_bytes

    before, peak, out_of_place, *weights = _numbers(
        plan,
        [plan.before, plan.peak, out_of_place_bytes(plan)]
        + [weight.size for weight in plan.weights],
    )
    originals = sum(weights)
    levels = _numbers(plan, [step.worst for step in plan.steps]) or [before]
    with _axes(file, max(out_of_place, peak)) as (axes, unit):
        # Step i, counted from 1, is drawn from i - 1 to i.
        heights = [level / unit.bytes for level in [*levels, levels[-1]]]
        _fill(axes, [float(i) for i in range(len(heights))], heights, step="post")
        axes.set_xlim(0, len(levels))
        axes.set_xlabel(f"step (of {len(plan.steps)})" if plan.steps else "no steps")
        if len(plan.steps) <= 12:
            numbers = range(1, len(plan.steps) + 1)
            axes.set_xticks([i - 0.5 for i in numbers], [str(i) for i in numbers])
            axes.tick_params(axis="x", length=0)
        _level(axes, out_of_place / unit.bytes, f"out of place {unit.of(out_of_place)}", _GREY)
        is_under = peak > originals
        _level(axes, originals / unit.bytes, f"weights {unit.of(originals)}", _BLACK, is_under)
        where = levels.index(max(levels)) + 0.5
        _peak(axes, where, peak / unit.bytes, f"in place {unit.of(peak)}")


def plot_report(report: Report, file: str | os.PathLike[str]) -> None:
    """Draw the memory of a conversion over time, against what it would take out of place.

    Parameters
    ----------
    report : Report
    file : path
        Its ending says the format: ``.svg``, ``.png`` or ``.pdf``.

    Raises
    ------
    ValueError
        The file has another ending.
    ImportError
        There is no matplotlib.
    """
    samples = list(report.samples)
    devices = [one.device for one in samples if one.device is not None]
    most = max([report.peak, report.out_of_place, *devices])
    with _axes(file, most) as (axes, unit):
        seconds = [one.seconds for one in samples]
        host = [one.host / unit.bytes for one in samples]
        _fill(axes, seconds, host)
        points = [
            (one.seconds, one.device / unit.bytes) for one in samples if one.device is not None
        ]
        if points:
            axes.plot(*zip(*points, strict=True), color=_ORANGE, linewidth=1.2)
            low, high = (end(y for _, y in points) for end in (min, max))
            text = f"on the device, at most {unit.of(high * unit.bytes)}"
            _beside(axes, low, high, text, _ORANGE)
        axes.set_xlim(min(seconds), max(*seconds, min(seconds) + 1e-3))
        axes.set_xlabel(f"seconds, {report.transform}")
        _level(
            axes,
            report.out_of_place / unit.bytes,
            f"out of place {unit.of(report.out_of_place)}",
            _GREY,
        )
        has_room = report.before / unit.bytes > 0.15 * axes.get_ylim()[1]
        before = f"before {unit.of(report.before)}"
        _level(axes, report.before / unit.bytes, before, _BLACK, has_room)
        at = max(range(len(host)), key=host.__getitem__)
        _peak(axes, seconds[at], report.peak / unit.bytes, f"peak {unit.of(report.peak)}")


# -- the parts of a picture -------------------------------------------------------------------

_BLUE, _ORANGE, _GREY, _BLACK = "#2166ac", "#c2570c", "#767676", "#333333"
_FORMATS = {".svg": {"Date": None}, ".png": {"Software": None}, ".pdf": {"CreationDate": None}}
_SIZE = (7.0, 3.4)  # inches: 700 pixels wide at 100 to the inch
_SETTINGS: dict[str, Any] = {
    "font.size": 9.0,
    "svg.fonttype": "path",  # as everywhere, whatever fonts are there
    "svg.hashsalt": "relax_inplace",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _GREY,
    "xtick.color": _BLACK,
    "ytick.color": _BLACK,
    "axes.labelcolor": _BLACK,
}


class _Unit:
    """MB of 10**6 bytes, as in a report, or what fits the largest size."""

    def __init__(self, most: float):
        self.bytes, self.name = next(
            (size, name)
            for size, name in ((10**9, "GB"), (10**6, "MB"), (1000, "kB"), (1, "bytes"))
            if most >= 10 * size or size == 1
        )

    def of(self, size: Any) -> str:
        """A size, in three digits or more."""
        value = size / self.bytes
        digits = 0 if value >= 100 or self.bytes == 1 else 1 if value >= 10 else 2
        return f"{value:,.{digits}f} {self.name}"


@contextmanager
def _axes(file: str | os.PathLike[str], most: float) -> Iterator[tuple[Any, _Unit]]:
    """Axes for sizes up to the largest one; the file is written after."""
    ending = os.path.splitext(os.fspath(file))[1].lower()
    if ending not in _FORMATS:
        raise ValueError(f"{os.fspath(file)}: expected a file that ends in .svg, .png or .pdf")
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ImportError(
            "pictures need matplotlib: pip install 'relax_inplace[plot]'", name=error.name
        ) from None
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        figure = Figure(figsize=_SIZE, layout="constrained")
        FigureCanvasAgg(figure)
        axes, unit = figure.add_subplot(), _Unit(most)
        axes.set_ylim(0, max(most / unit.bytes, 1e-9) * 1.12)
        axes.set_ylabel(unit.name)
        axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
        yield axes, unit
        figure.savefig(file, dpi=200, metadata=_FORMATS[ending])


def _numbers(plan: MemoryPlan, sizes: Sequence[Any]) -> list[int]:
    symbolic = [size for size in sizes if not isinstance(size, int)]
    if symbolic:
        raise ValueError(
            f"the bytes of `{plan.function}` are symbolic, {symbolic[0]}: to draw them, plan with "
            "the largest value of each dimension, as tir_var_upper_bound={'n': 4096}"
        )
    return list(sizes)


def _fill(axes: Any, x: list[float], y: list[float], step: str | None = None) -> None:
    axes.fill_between(x, y, step=step, color=_BLUE, alpha=0.15, linewidth=0)
    axes.plot(x, y, color=_BLUE, linewidth=1.2, drawstyle=f"steps-{step}" if step else "default")


def _level(axes: Any, y: float, text: str, color: str, below: bool = False) -> None:
    axes.axhline(y, color=color, linewidth=0.8, linestyle=(0, (5, 3)), zorder=1)
    axes.annotate(
        text,
        (0, y),
        (5, -4 if below else 4),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="top" if below else "bottom",
        color=color,
    )


def _beside(axes: Any, low: float, high: float, text: str, color: str) -> None:
    """A label under a curve, or over it where there is no room under it, at the right."""
    under = low > 0.15 * axes.get_ylim()[1]
    axes.annotate(
        text,
        (1, low if under else high),
        (-5, -4 if under else 4),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        va="top" if under else "bottom",
        color=color,
    )


def _peak(axes: Any, x: float, y: float, text: str) -> None:
    """A dot and a label above it, inside the picture."""
    left, right = axes.get_xlim()
    where = (x - left) / (right - left)
    axes.plot(x, y, "o", color=_BLUE, markersize=4, clip_on=False)
    axes.annotate(
        text,
        (x, y),
        (0, 6),
        textcoords="offset points",
        ha="left" if where < 0.2 else "right" if where > 0.8 else "center",
        color=_BLUE,
        weight="bold",
    )
