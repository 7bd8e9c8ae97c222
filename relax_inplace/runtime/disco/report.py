"""WorkersReport: what a conversion took, worker by worker and in all."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from ..convert.held import HeldWeight
from ..memory_sampler import Sample
from ..report import Report

__all__ = ["WorkersReport", "report_of"]


@dataclasses.dataclass(frozen=True)
class WorkersReport:
    """What a conversion took on each worker.

    Memory is that of the worker's process; worker threads share one.

    Attributes
    ----------
    workers : list of Report
        By rank. Of the samples of memory over time, some dozens are kept.
    """

    workers: list[Report]

    @property
    def seconds(self) -> float:
        """Of the slowest one: they work at the same time."""
        return max(one.seconds for one in self.workers)

    @property
    def converted(self) -> int:
        """Bytes of the weights that were put in place."""
        return sum(one.converted for one in self.workers)

    @property
    def weights_before(self) -> int:
        """Bytes of the weights that were resident."""
        return sum(one.weights_before for one in self.workers)

    @property
    def weights_after(self) -> int:
        """Bytes of the weights that are."""
        return sum(one.weights_after for one in self.workers)

    @property
    def held(self) -> dict[int, list[HeldWeight]]:
        """The weights whose originals stayed alive, of each rank that has any."""
        return {rank: one.held for rank, one in enumerate(self.workers) if one.held}

    @property
    def gigabytes_per_second(self) -> float:
        """Converted bytes by time, in 10^9."""
        return self.converted / self.seconds / 1e9 if self.seconds else 0.0

    def __str__(self) -> str:
        """A line for all, then those of each worker."""
        lines = [
            f"{len(self.workers)} workers: {self.converted / 1e6:,.1f} MB converted in "
            f"{self.seconds:.2f} s, {self.gigabytes_per_second:.2f} GB/s"
        ]
        for rank, one in enumerate(self.workers):
            first, *others = str(one).splitlines()
            lines += [f"worker {rank}: {first}", *(f"  {line}" for line in others)]
        return "\n".join(lines)

    def to_json(self) -> str:
        """All of it."""
        fields = {
            "seconds": self.seconds,
            "converted": self.converted,
            "weights_before": self.weights_before,
            "weights_after": self.weights_after,
            "gigabytes_per_second": self.gigabytes_per_second,
            "workers": [json.loads(one.to_json()) for one in self.workers],
        }
        return json.dumps(fields, indent=1)


def report_of(workers: Sequence[dict[str, Any] | None]) -> WorkersReport | None:
    """The report, of what the workers say of theirs; None if there was no conversion."""
    reports = [_report(fields) for fields in workers if fields is not None]
    return WorkersReport(reports) if len(reports) == len(workers) else None


def _report(fields: dict[str, Any]) -> Report:
    return Report(
        **{
            **fields,
            "samples": [Sample(**one) for one in fields["samples"]],
            "peak_sample": Sample(**fields["peak_sample"]),
            "held": [HeldWeight(**one) for one in fields["held"]],
        }
    )
