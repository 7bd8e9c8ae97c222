"""WorkersReport: what a conversion took, worker by worker and in all."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from ...byte_units import in_units, speed_in_units
from ..convert.held import HeldWeight
from ..memory_sampler import Sample
from ..report import Report

__all__ = ["WorkersReport", "report_of"]


@dataclasses.dataclass(frozen=True)
class WorkersReport:
    """What a conversion took on each worker.

    Attributes
    ----------
    workers : list of Report
        By rank. Memory is that of the worker's process; of its samples over time, some are kept.
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
    def held(self) -> dict[int, list[HeldWeight]]:
        """The weights whose originals stayed alive, of each rank that has any."""
        return {rank: one.held for rank, one in enumerate(self.workers) if one.held}

    def __str__(self) -> str:
        """A line for all, then those of each worker."""
        lines = [
            f"{len(self.workers)} workers: {in_units(self.converted)} converted in "
            f"{self.seconds:.2f} s, {speed_in_units(self.converted, self.seconds)}"
        ]
        for rank, one in enumerate(self.workers):
            first, *others = str(one).splitlines()
            lines += [f"worker {rank}: {first}", *(f"  {line}" for line in others)]
        return "\n".join(lines)

    def to_json(self) -> str:
        """All of it."""
        workers = [json.loads(one.to_json()) for one in self.workers]
        whole = {"seconds": self.seconds, "converted": self.converted, "workers": workers}
        return json.dumps(whole, indent=1)


def report_of(workers: Sequence[dict[str, Any] | None]) -> WorkersReport | None:
    """The report, of what the workers say of theirs; None if there was no conversion."""
    reports = [_report(**fields) for fields in workers if fields is not None]
    return WorkersReport(reports) if len(reports) == len(workers) else None


def _report(samples: Any, peak_sample: Any, held: Any, **fields: Any) -> Report:
    return Report(
        **fields,
        samples=[Sample(**one) for one in samples],
        peak_sample=Sample(**peak_sample),
        held=[HeldWeight(**one) for one in held],
    )
