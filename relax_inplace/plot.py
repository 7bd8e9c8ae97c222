"""Pictures: the memory that a conversion needs by its plan, and that one needed as measured.

It needs matplotlib: ``pip install 'relax_inplace[plot]'``. No state of pyplot is touched. The same
plan gives the same bytes: no date, no settings of the user, and in SVG the letters are outlines.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .byte_units import Unit

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
    x, levels = [0.0], [before]
    for i, step in enumerate(plan.steps):  # counted from 1, and drawn from i - 1 to i
        first, worst, last = _numbers(plan, [step.before, step.worst, step.after])
        if len(plan.steps) > _MANY:  # where a rise and a fall for each would be one black bar
            first = last = worst
        x += [i, i + _RISE, i + 1 - _RISE, i + 1]
        levels += [first, worst, worst, last]
    with _axes(file, max(out_of_place, peak), levels, originals, "the weights") as (
        axes,
        zoomed,
        unit,
    ):
        for one in filter(None, (axes, zoomed)):
            one.fill(x, levels)
            one.axes.set_xlim(0, max(len(plan.steps), 1))
        lowest = (zoomed or axes).axes
        lowest.set_xlabel(f"step (of {len(plan.steps)}), by the plan" if plan.steps else "no steps")
        if len(plan.steps) <= 12:
            numbers = range(1, len(plan.steps) + 1)
            lowest.set_xticks([i - 0.5 for i in numbers], [str(i) for i in numbers])
            lowest.tick_params(axis="x", length=0)
        axes.level(out_of_place, f"out of place {unit.of(out_of_place)}, computed", _GREY)
        axes.level(originals, f"weights {unit.of(originals)}", _BLACK, peak > originals)
        axes.peak(x[levels.index(max(levels))], peak, f"in place {unit.of(peak)}, computed")
        if zoomed is not None:
            zoomed.level(originals, "", _BLACK)
        elif plan.steps and len(set(levels)) == 1:
            axes.note("no step takes more memory than the weights")


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
    seconds = [one.seconds for one in samples]
    host = [one.host for one in samples]
    on_device = [(one.seconds, one.device) for one in samples if one.device is not None]
    most = max([report.peak, report.out_of_place, *(size for _, size in on_device)])
    # Where the weights are, the curve is looked at closely.
    levels, first = ([y for _, y in on_device], on_device[0][1]) if on_device else (host, host[0])
    with _axes(file, most, levels, first, "before") as (axes, zoomed, unit):
        axes.fill(seconds, host)
        if on_device:
            axes.axes.plot(
                *axes.scaled(*zip(*on_device, strict=True)), color=_ORANGE, linewidth=1.2
            )
            for where, sizes, color in (("device", levels, _ORANGE), ("host", host, _BLUE)):
                text = f"on the {where}, at most {unit.of(max(sizes))}"
                axes.beside(min(sizes), max(sizes), text, color)
        for one in filter(None, (axes, zoomed)):
            one.axes.set_xlim(min(seconds), max(*seconds, min(seconds) + 1e-3))
        (zoomed or axes).axes.set_xlabel(f"seconds, {report.transform}")
        out_of_place = f"out of place {unit.of(report.out_of_place)}, computed"
        axes.level(report.out_of_place, out_of_place, _GREY)
        if not on_device:
            has_room = report.before / unit.bytes > 0.15 * axes.axes.get_ylim()[1]
            before = f"before {unit.of(report.before)}"
            axes.level(report.before, before, _BLACK, has_room, is_computed=False)
            at = max(range(len(host)), key=host.__getitem__)
            axes.peak(seconds[at], report.peak, f"peak {unit.of(report.peak)}")
        if zoomed is not None:
            x = [time for time, _ in on_device] or seconds
            zoomed.fill(x, levels, _ORANGE if on_device else _BLUE)
            zoomed.level(first, "", _BLACK, is_computed=False)
            planned = report.predicted_extra
            if planned is not None:
                zoomed.plan(first + planned, f"planned {zoomed.unit.of(planned)}, computed")


# -- the parts of a picture -------------------------------------------------------------------

_BLUE, _ORANGE, _GREY, _BLACK = "#2166ac", "#c2570c", "#767676", "#333333"
_FORMATS = {".svg": {"Date": None}, ".png": {"Software": None}, ".pdf": {"CreationDate": None}}
_SIZE = (7.0, 3.4)  # inches: 700 pixels wide at 100 to the inch
_SIZE_OF_BOTH = (7.0, 4.6)
_FLAT = 0.2  # of the axis: a curve that moves by less is drawn once more, enlarged
_MANY = 100
_RISE = 0.15  # of a step: where its memory has risen, and from where on it falls
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


class _Axes:
    """Axes of sizes, in a unit, from a size on."""

    def __init__(self, axes: Any, unit: Unit, start: float = 0):
        self.axes = axes
        self.unit = unit
        self.start = start

    def scaled(self, x: Sequence[float], sizes: Sequence[float]) -> tuple[list[float], list[float]]:
        """Where sizes are drawn."""
        return list(x), [(size - self.start) / self.unit.bytes for size in sizes]

    def fill(self, x: Sequence[float], sizes: Sequence[float], color: str = _BLUE) -> None:
        """A curve, and what is under it."""
        x, y = self.scaled(x, sizes)
        self.axes.fill_between(x, y, color=color, alpha=0.15, linewidth=0)
        self.axes.plot(x, y, color=color, linewidth=1.2)

    def level(
        self, size: float, text: str, color: str, below: bool = False, is_computed: bool = True
    ) -> None:
        """A line across: dashed if it was computed, not measured."""
        y = (size - self.start) / self.unit.bytes
        style = (0, (5, 3)) if is_computed else "solid"
        self.axes.axhline(y, color=color, linewidth=0.8, linestyle=style, zorder=1)
        self.axes.annotate(
            text,
            (0, y),
            (5, -4 if below else 4),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="top" if below else "bottom",
            color=color,
        )

    def plan(self, size: float, text: str) -> None:
        """A level, if it is in the picture; or what it is, at the right."""
        if (size - self.start) / self.unit.bytes <= self.axes.get_ylim()[1]:
            self.level(size, text, _GREY)
        else:
            self.note(text)

    def note(self, text: str) -> None:
        """A text in the upper right."""
        self.axes.annotate(
            text,
            (1, 1),
            (-5, -4),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="right",
            va="top",
            color=_GREY,
        )

    def beside(self, low: float, high: float, text: str, color: str) -> None:
        """A label under a curve, or over it where there is no room under it, at the right."""
        under = low / self.unit.bytes > 0.15 * self.axes.get_ylim()[1]
        self.axes.annotate(
            text,
            (1, (low if under else high) / self.unit.bytes),
            (-5, -4 if under else 4),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            va="top" if under else "bottom",
            color=color,
        )

    def peak(self, x: float, size: float, text: str) -> None:
        """A dot and a label above it, inside the picture."""
        y = size / self.unit.bytes
        left, right = self.axes.get_xlim()
        where = (x - left) / (right - left)
        self.axes.plot(x, y, "o", color=_BLUE, markersize=4, clip_on=False)
        self.axes.annotate(
            text,
            (x, y),
            (0, 6),
            textcoords="offset points",
            ha="left" if where < 0.3 else "right" if where > 0.7 else "center",
            color=_BLUE,
            weight="bold",
        )


@contextmanager
def _axes(
    file: str | os.PathLike[str], most: float, levels: Sequence[float], start: float, above: str
) -> Iterator[tuple[_Axes, _Axes | None, Unit]]:
    """Axes for sizes up to the largest one; the file is written after.

    Where a curve would be nearly flat on those, second axes below them show it from a size on.
    """
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
    low, high = min(start, *levels), max(start, *levels)
    is_flat = 0 < high - low < _FLAT * most
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        figure = Figure(figsize=_SIZE_OF_BOTH if is_flat else _SIZE, layout="constrained")
        FigureCanvasAgg(figure)
        both = figure.subplots(2 if is_flat else 1, sharex=True, squeeze=False)[:, 0]
        for one in both:
            one.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5 if one is both[0] else 4))
            one.yaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,g}"))
        unit = Unit.for_size(most)
        both[0].set_ylim(0, max(most / unit.bytes, 1e-9) * 1.15)
        both[0].set_ylabel(unit.name)
        zoomed = None
        if is_flat:
            closer = Unit.for_size(high - low)
            zoomed = _Axes(both[1], closer, start)
            room = 0.2 * (high - low)
            ends = zoomed.scaled([], [low - room * (low < start), high + 2 * room])[1]
            both[1].set_ylim(*ends)
            both[1].set_ylabel(f"{closer.name} above\n{above}, enlarged")
        yield _Axes(both[0], unit), zoomed, unit
        figure.savefig(file, dpi=200, metadata=_FORMATS[ending])


def _numbers(plan: MemoryPlan, sizes: Sequence[Any]) -> list[int]:
    symbolic = [size for size in sizes if not isinstance(size, int)]
    if symbolic:
        raise ValueError(
            f"the bytes of `{plan.function}` are symbolic, {symbolic[0]}: to draw them, plan with "
            "the largest value of each dimension, as tir_var_upper_bound={'n': 4096}"
        )
    return list(sizes)
