"""What can be told of an item's time from its size: its length, its bytes, or a number's value.

Times of chunks are regressed on the sizes of their items, weighted by their number, older ones less. Where that
explains most of the variance, items that will take long are known before they run, and do not come last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

#: What a chunk leaves of the weight of those before it.
_KEPT = 0.98
#: Chunks before the regression is believed, and the share of the variance that it must explain.
_LEAST_CHUNKS = 6
_LEAST_EXPLAINED = 0.6
#: Giants are longer than this many times the mean ...
_GIANT_TIMES = 1.25
#: ... and than this part of what each worker has to do in all: shorter ones even out by themselves.
_GIANT_SHARE = 1 / 40
#: So many giants at most.
_MOST_GIANTS = 256

_SIZED = (str, bytes, bytearray, list, tuple, dict, set, frozenset)


def item_sizes(items: Sequence[Any]) -> list[float] | None:
    """Sizes of items, in whatever unit they have; None where they have none.

    >>> item_sizes(["a", "abc"]), item_sizes([3, -4.0]), item_sizes([object()])
    ([1, 3], [3, 4.0], None)
    """
    kinds = set(map(type, items))
    if kinds <= {int, float}:
        return list(map(abs, items))
    if all(kind in _SIZED for kind in kinds):
        return list(map(len, items))
    try:
        return [float(item.nbytes) for item in items]
    except Exception:  # whatever an attribute of the user's object raises: it has no size
        return None


class SizeFit:
    """Regression of an item's time on its size. Owned by the cost model."""

    __slots__ = ("_n_chunks", "_t", "_tt", "_w", "_x", "_xt", "_xx")

    def __init__(self) -> None:
        self._n_chunks = 0
        self._w = self._x = self._xx = self._t = self._xt = self._tt = 0.0

    def observe(self, n_items: int, elapsed_s: float, size: float) -> None:
        """Take in that items of this size in all took so many seconds in all."""
        x, t = size / n_items, elapsed_s / n_items
        self._n_chunks += 1
        self._w = _KEPT * self._w + n_items
        self._x = _KEPT * self._x + n_items * x
        self._xx = _KEPT * self._xx + n_items * x * x
        self._t = _KEPT * self._t + n_items * t
        self._xt = _KEPT * self._xt + n_items * x * t
        self._tt = _KEPT * self._tt + n_items * t * t

    def line(self) -> tuple[float, float] | None:
        """(intercept, slope) in seconds and seconds a unit of size; None while size does not explain time."""
        if self._n_chunks < _LEAST_CHUNKS:
            return None
        sxx = self._xx - self._x * self._x / self._w
        stt = self._tt - self._t * self._t / self._w
        sxt = self._xt - self._x * self._t / self._w
        if sxx <= 1e-9 * self._xx or stt <= 1e-12 * self._tt or sxt <= 0:
            return None
        if sxt * sxt < _LEAST_EXPLAINED * sxx * stt:
            return None
        slope = sxt / sxx
        return (self._t - slope * self._x) / self._w, slope


def giants(sizes: Sequence[float], line: tuple[float, float], n_workers: int) -> list[tuple[int, float]]:
    """Items that must not come last: (index, expected seconds) of those longer than the others, the longest first.

    Parameters
    ----------
    sizes
        Of all items, in their order.
    line
        As from `SizeFit.line`.
    n_workers
        Workers that share the items, at least 1.
    """
    intercept, slope = line
    total_s = max(intercept * len(sizes) + slope * sum(sizes), 0.0)
    limit_s = max(_GIANT_TIMES * total_s / len(sizes), _GIANT_SHARE * total_s / n_workers)
    least = (limit_s - intercept) / slope
    found = [(i, intercept + slope * size) for i, size in enumerate(sizes) if size > least]
    found.sort(key=lambda pair: -pair[1])
    return found[:_MOST_GIANTS]
