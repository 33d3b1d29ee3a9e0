"""Items of a map that its caller runs itself, in its own thread, inside ``next()``.

While the caller is in an item, the I/O thread may find that it takes too long and give the unstarted items of the batch
to workers. Neither waits for the other and no lock is taken per item: the caller iterates over a list, and the I/O
thread cuts the list's end off, which a list iterator allows at any time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice, starmap
from typing import Any

from .workers import serialize
from .workers.copies import CallerCopies, is_nobody_elses
from .workers.process import not_picklable

#: A batch looks at the clock so many times.
_PARTS = 32


class InlineBatch:
    """One batch: `run` is the caller's, `take_back` another thread's.

    Attributes
    ----------
    first
        Index of the first item.
    started_at
        When the caller began (of ``time.perf_counter``).
    values
        Results so far; its length tells which item runs now.
    """

    def __init__(self, first: int, items: list[Any], call: Callable[..., Any], is_star: bool) -> None:
        self.first = first
        self.values: list[Any] = []
        self.started_at = time.perf_counter()
        self._items = items
        self._call = call
        self._is_star = is_star
        self._stop = first + len(items)

    def run(self, most_s: float | None = None) -> Exception | None:
        """Run the items until the end, or until one raises; returns what it raised.

        With `most_s`, it may also end early, after so many seconds: what is left is among `left_over`.
        """
        apply: Callable[..., Any] = starmap if self._is_star else map
        n_items = len(self._items)
        items = iter(self._items)
        step = n_items if most_s is None else -(-n_items // _PARTS)
        try:
            while True:
                n_before = len(self.values)
                # Extends the list item by item, at the speed of C.
                self.values.extend(apply(self._call, islice(items, step)))
                if most_s is None or len(self.values) < n_before + step or len(self.values) == n_items:
                    break
                if time.perf_counter() - self.started_at > most_s:
                    return None
        except Exception as error:  # Ctrl-C and exits belong to the caller at once
            return error
        # map() passes a StopIteration of the function on, for its own end. (If the list is cut just now, the item is
        # found again among what is left over.)
        return StopIteration() if len(self.values) < len(self._items) else None

    def take_back(self) -> range:
        """Indices of items that were not started; the caller will not run them.

        The caller may go on between any two steps here. Once the list is cut it fetches no item from `keep` on; it may
        have fetched one more before, which is then the item after its results. So items from the later of both on are
        certainly not started.
        """
        keep = len(self.values) + 1
        del self._items[keep:]
        start = self.first + max(keep, len(self.values) + 1)
        taken = range(start, self._stop)
        if taken:
            self._stop = start
        return taken

    @property
    def n_unstarted(self) -> int:
        """Items behind the one that runs now, about."""
        return max(len(self._items) - len(self.values) - 1, 0)

    def left_over(self, n_settled: int) -> range:
        """Indices that were neither run nor taken back (the list was cut before they were reached)."""
        return range(self.first + n_settled, self._stop)


def copy_items(
    items: list[Any], n_items: int, first: int, name: str, copies: CallerCopies
) -> tuple[list[Any], Exception | None]:
    """What a worker would have got for the first `n_items` items: copies; and the error of one that cannot be copied.

    Parameters
    ----------
    items
        These, and the one behind them if there is one: it tells what of the last will be met again.
    n_items
        How many to copy.
    first
        Index of the first.
    name
        Of the map's function.
    copies
        Makes the copies.
    """
    if serialize.are_scalars(items):
        return items[:n_items], None
    copied: list[Any] = []
    for i, (item, following) in enumerate(zip(items[:n_items], [*items[1:], None], strict=False)):
        try:
            copied.append(copies.copy(item, following))
        except Exception as problem:
            what = f"item {first + i} of map({name}), a {type(item).__qualname__!r} object,"
            return copied, not_picklable(what, problem)
    return copied, None


def copy_values(values: list[Any], first: int, name: str) -> Exception | None:
    """Replace results by what a worker would have sent; cut at the first that cannot be copied and return its error."""
    if serialize.are_scalars(values):
        return None
    for i in range(len(values)):
        if is_nobody_elses(values, i):
            continue
        value = values[i]
        try:
            values[i] = serialize.copy(value)
        except Exception as problem:
            del values[i:]
            return not_picklable(
                f"the result of {name} for item {first + i}, a {type(value).__qualname__!r} object,", problem
            )
    return None
