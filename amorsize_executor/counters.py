"""What an executor counts all the time: a few additions for each result, in the thread that has it anyway.

Nothing here grows with the number of tasks. What the counts tell is `stats`' to say, which loads more to say it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from typing import NamedTuple

#: Upper bounds of the buckets of times, in seconds; one more holds what is longer.
BOUNDS_S = tuple([digit * 10.0**exponent for exponent in range(-5, 3) for digit in (1.0, 2.5, 5.0)])[:-2]
#: Maps that are remembered.
_LATEST_MAPS = 16


class Histogram:
    """Counts times. Written by one thread; read by any, which may miss the very latest."""

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.total_s = 0.0

    def observe(self, time_s: float, n: int = 1) -> None:
        """Take in `n` equal times, in seconds."""
        self.counts[bisect_left(BOUNDS_S, time_s)] += n
        self.total_s += n * time_s


class MapStats(NamedTuple):
    """A map that has ended.

    Attributes
    ----------
    name
        Of the function.
    n_items
        How many items it had.
    n_inline
        Those of them that the caller ran.
    predicted_s
        What the plan had expected it to take, in seconds; None where nothing was known.
    actual_s
        What it has taken until its last result was taken, in seconds.
    """

    name: str
    n_items: int
    n_inline: int
    predicted_s: float | None
    actual_s: float


class Counters:
    """What has happened so far."""

    def __init__(self) -> None:
        # Written under the executor's lock.
        self.submitted = 0
        self.cancelled = 0
        self.failed = 0  # but for those that raised in a worker
        self.items_done = 0
        self.items_failed = 0
        self.items_inline = 0
        self.maps: deque[MapStats] = deque(maxlen=_LATEST_MAPS)
        self.n_maps = 0
        self.predicted_s = 0.0  # of all maps for which something was predicted
        self.actual_s = 0.0  # what these have taken
        # Written by the I/O thread.
        self.raised = 0
        self.wait = Histogram()
        self.run = Histogram()
        self.workers_started = 0
        self.workers_left = 0
        self.workers_died = 0

    def add_map(self, found: MapStats) -> None:
        """A map has ended."""
        self.maps.append(found)
        self.n_maps += 1
        if found.predicted_s is not None:
            self.predicted_s += found.predicted_s
            self.actual_s += found.actual_s
