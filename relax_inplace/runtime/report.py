"""Report: the time and the memory of a conversion."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

from ..byte_units import in_units, speed_in_units
from .convert.held import HeldWeight
from .memory_sampler import Sample

__all__ = ["Report"]


@dataclasses.dataclass(frozen=True)
class Report:
    """The time and the memory of a conversion.

    Attributes
    ----------
    transform : str
        The function's name.
    seconds : float
    converted : int
        Bytes of the new weights that the transform put into their slots.
    originals : int
        Bytes of the original weights. Streamed ones count, too, although they were not resident.
    weights_before, weights_after : int
        Bytes of the weights that were resident before the conversion, and after it.
    predicted_peak : int or None
        The plan's peak, in bytes: weights and temporaries. None if it is not known.
    samples : list of Sample
        Memory over time.
    peak_sample : Sample
        The highest figures of the conversion.
    held : list of HeldWeight
        The weights whose originals were not freed, because something else refers to them.
    verified : bool
        Whether every field was compared with an out-of-place conversion.
    read_from : str or None
        The folder with the result of an earlier conversion, if the weights were read from there.
        Then nothing was converted.
    reused : int
        The number of new tensors, temporaries included, in the storage of an earlier tensor. 0 if
        the module was compiled without donation.
    allocated : dict of str to int
        The number of new tensors in storage of their own, by the reason.
    """

    transform: str
    seconds: float
    converted: int
    originals: int
    weights_before: int
    weights_after: int
    predicted_peak: int | None
    samples: list[Sample]
    peak_sample: Sample
    held: list[HeldWeight] = dataclasses.field(default_factory=list)
    verified: bool = False
    read_from: str | None = None
    reused: int = 0
    allocated: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def before(self) -> int:
        """Bytes resident before, on the host."""
        return self.samples[0].host

    @property
    def peak(self) -> int:
        """The most bytes resident, on the host."""
        return self.peak_sample.host

    @property
    def after(self) -> int:
        """Bytes resident after, on the host."""
        return self.samples[-1].host

    @property
    def grown(self) -> int:
        """Bytes by which the weights have grown."""
        return max(0, self.weights_after - self.weights_before)

    @property
    def extra(self) -> int:
        """Bytes at the peak, less those before, less those by which the weights have grown."""
        peak = self.peak_sample.device if self.on_device else self.peak_sample.host
        return max(0, (peak or 0) - self._first - self.grown)

    @property
    def predicted_extra(self) -> int | None:
        """The same by the plan."""
        if self.predicted_peak is None:
            return None
        return max(0, self.predicted_peak - max(self.weights_before, self.weights_after))

    @property
    def on_device(self) -> bool:
        """Whether a device's memory was measured."""
        return self.peak_sample.device is not None

    @property
    def out_of_place(self) -> int:
        """Bytes that would be resident with all new weights beside all old ones."""
        return self._first + self.originals - self.weights_before + self.weights_after

    @property
    def _first(self) -> int:
        """Bytes before, where the weights are."""
        first = self.samples[0]
        return first.host if first.device is None else first.device

    @property
    def gigabytes_per_second(self) -> float:
        """Converted bytes by time, in 10^9."""
        return self.converted / self.seconds / 1e9 if self.seconds else 0.0

    def __str__(self) -> str:
        """A few lines for a person."""
        lines = []
        if self.read_from is not None:
            lines.append(
                f"{self.transform}: nothing to convert, {in_units(self.weights_after)} of "
                f"converted weights were read from {self.read_from} in {_time(self.seconds)}"
            )
        else:
            lines.append(
                f"{self.transform}: {in_units(self.converted)} converted in {_time(self.seconds)}, "
                f"{speed_in_units(self.converted, self.seconds)}"
            )
        lines.append(
            f"resident: {in_units(self.before)} before, {in_units(self.peak)} at the peak, "
            f"{in_units(self.after)} after"
        )
        if self.on_device:
            devices = [one.device for one in self.samples if one.device is not None]
            lines.append(
                f"on the device: {in_units(devices[0])} before, "
                f"{in_units(self.peak_sample.device or 0)} at the peak, "
                f"{in_units(devices[-1])} after"
            )
        if self.read_from is None:
            planned = self.predicted_extra
            lines.append(
                f"above the weights: {in_units(self.extra)} measured"
                + ("" if planned is None else f", {in_units(planned)} planned")
                + f"; out of place: {in_units(self.out_of_place - self._first - self.grown)}"
            )
        if self.reused or self.allocated:
            made = self.reused + sum(self.allocated.values())
            why = "".join(
                f"; {count} allocated ({reason})" for reason, count in self.allocated.items()
            )
            lines.append(f"storage reused: {self.reused} of {made} new tensors{why}")
        if self.verified:
            lines.append("every field is bitwise that of an out-of-place conversion")
        lines += [f"not freed: {one}" for one in self.held[:8]]
        if len(self.held) > 8:
            lines.append(f"not freed: {len(self.held) - 8} more")
        return "\n".join(lines)

    def to_json(self) -> str:
        """All fields, as JSON."""
        fields: dict[str, Any] = dataclasses.asdict(self)
        del fields["peak_sample"]
        for name in ("before", "peak", "after", "extra", "predicted_extra", "out_of_place"):
            fields[name] = getattr(self, name)
        fields["peak_device"] = self.peak_sample.device
        fields["gigabytes_per_second"] = self.gigabytes_per_second
        return json.dumps(fields, indent=1)

    def plot(self, file: str | os.PathLike) -> None:
        """Draw memory over time, with the line of an out-of-place conversion.

        Parameters
        ----------
        file : str or path
            An SVG or a PNG, by its ending.

        Raises
        ------
        ImportError
            There is no matplotlib: ``pip install 'relax_inplace[plot]'``.
        """
        from ..plot import plot_report

        plot_report(self, file)


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.01 else f"{seconds:.5f} s"
