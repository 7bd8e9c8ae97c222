"""The minimum cut of a small flow network.

Shortest augmenting paths (J. Edmonds, R. M. Karp, "Theoretical improvements in algorithmic
efficiency for network flow problems", 1972). Capacities are integers, so the cut is exact.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Mapping

__all__ = ["source_side"]


def source_side(
    edges: Mapping[tuple[Hashable, Hashable], int], source: Hashable, sink: Hashable
) -> set[Hashable]:
    """The nodes on the source's side of a minimum cut: of all minimum cuts, the fewest.

    Parameters
    ----------
    edges : mapping of pairs of nodes to int
        Capacities.
    source, sink : hashable
        Nodes that no path of unlimited capacities joins.
    """
    residual: dict[Hashable, dict[Hashable, int]] = {source: {}, sink: {}}
    for (tail, head), capacity in edges.items():
        residual.setdefault(tail, {})[head] = residual.get(tail, {}).get(head, 0) + capacity
        residual.setdefault(head, {}).setdefault(tail, 0)
    while True:
        reached_from = _search(residual, source, sink)
        if sink not in reached_from:
            return set(reached_from)
        path = [sink]
        while path[-1] != source:
            path.append(reached_from[path[-1]])
        steps = list(zip(path[1:], path, strict=False))
        flow = min(residual[tail][head] for tail, head in steps)
        for tail, head in steps:
            residual[tail][head] -= flow
            residual[head][tail] += flow


def _search(
    residual: Mapping[Hashable, Mapping[Hashable, int]], source: Hashable, sink: Hashable
) -> dict[Hashable, Hashable]:
    """For each node that can be reached, the one before it on a shortest path."""
    reached_from: dict[Hashable, Hashable] = {source: source}
    pending = deque([source])
    while pending and sink not in reached_from:
        tail = pending.popleft()
        for head, capacity in residual[tail].items():
            if capacity > 0 and head not in reached_from:
                reached_from[head] = tail
                pending.append(head)
    return reached_from
