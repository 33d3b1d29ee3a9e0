"""How much slower items get when several run at once: memory bandwidth, shared caches, clock rates, locks.

The universal scalability law (Gunther 1993) gives the throughput of n workers as n / (1 + s (n - 1) + k n (n - 1))
times that of one; so an item takes 1 + s (n - 1) + k n (n - 1) times as long. s (contention) and k (coherency) are
fitted by weighted least squares to what maps of a function took at each number of workers, neither below zero.
"""

from __future__ import annotations

#: What a map leaves of the weight of the maps before it at the same level.
_KEPT = 0.5
#: What it leaves of the weight of every other level; below `_LEAST_WEIGHT` a level is forgotten, so that what was once
#: found slow is tried again after about this many maps: log(0.2) / log(0.97) = 53.
_KEPT_ELSEWHERE = 0.97
_LEAST_WEIGHT = 0.2
#: No level is believed to be slower than this many times its number of workers: that is another kind of items.
_MOST = 2.0


class Scaling:
    """Times of one function's items by how many ran at once. Owned by the cost model."""

    def __init__(self) -> None:
        self._levels: dict[int, list[float]] = {}  # number at once: [mean seconds of an item, weight]
        self._fit = (0.0, 0.0)

    def observe(self, at_once: int, item_s: float) -> None:
        """Take in a map whose items ran so many at once, nearly all of them, in a mean time of `item_s` seconds."""
        for level, entry in list(self._levels.items()):
            if level != at_once:
                entry[1] *= _KEPT_ELSEWHERE
                if entry[1] < _LEAST_WEIGHT:
                    del self._levels[level]
        entry = self._levels.setdefault(at_once, [item_s, 0.0])
        entry[1] = _KEPT * entry[1] + 1.0
        entry[0] += (item_s - entry[0]) / entry[1]
        self._fit = self._fitted()

    def item_s(self, at_once: int) -> float | None:
        """Measured mean time of an item at exactly this level, in seconds; None if there is none."""
        entry = self._levels.get(at_once)
        return entry[0] if entry is not None else None

    def levels(self) -> dict[int, float]:
        """Mean time of an item in seconds by how many ran at once, as far as it was measured."""
        return {level: entry[0] for level, entry in self._levels.items()}

    def slowdown(self, at_once: float) -> float:
        """How many times as long an item takes when so many run at once as when it runs alone."""
        if at_once <= 1:
            return 1.0
        contention, coherency = self._fit
        found = 1 + contention * (at_once - 1) + coherency * at_once * (at_once - 1)
        return min(max(found, 1.0), _MOST * at_once)

    def _fitted(self) -> tuple[float, float]:
        alone = self._levels.get(1)
        if alone is None or alone[0] <= 0:
            return 0.0, 0.0
        points = [(n, entry[0] / alone[0] - 1, entry[1]) for n, entry in self._levels.items() if n > 1]
        return fit_usl(points)


def fit_usl(points: list[tuple[int, float, float]]) -> tuple[float, float]:
    """Contention and coherency from points (n, excess time of an item over one that runs alone, weight).

    >>> [round(x, 6) for x in fit_usl([(2, 0.12, 1.0), (3, 0.26, 1.0)])]
    [0.1, 0.01]
    """
    aa = ab = bb = ay = by = 0.0
    for n, excess, weight in points:
        a, b = n - 1.0, n * (n - 1.0)
        aa += weight * a * a
        ab += weight * a * b
        bb += weight * b * b
        ay += weight * a * excess
        by += weight * b * excess
    if not aa:
        return 0.0, 0.0
    determinant = aa * bb - ab * ab
    if determinant > 1e-9 * aa * bb:
        contention, coherency = (ay * bb - by * ab) / determinant, (by * aa - ay * ab) / determinant
        if contention >= 0 and coherency >= -1e-12:
            return contention, max(coherency, 0.0)
        if contention < 0:
            return 0.0, max(by / bb, 0.0)
    return max(ay / aa, 0.0), 0.0
