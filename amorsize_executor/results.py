"""One running map: its items, its results as they come, and the caller who waits for them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .decisions.plan import Span
from .decisions.sizes import item_sizes
from .workers.warm import Epoch

if TYPE_CHECKING:
    from .decisions.plan import Plan
    from .decisions.scaling import Scaling
    from .inline import InlineBatch
    from .workers.copies import CallerCopies
    from .workers.functions import Function

#: Consumed places at the front of the lists are given back when this many have gathered.
_TRIM = 1024
#: Spans of the timeline that are kept.
_MOST_SPANS = 10_000
#: Sizes are looked at for items that take at least this long on average, in seconds, and in all: looking takes a tenth.
_SIZED_ABOVE_S = 2e-6
_SIZED_ABOVE_IN_ALL_S = 0.5e-3


class Failed:
    """Stands among results for an item that raised."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class MapJob:
    """Items and results of one map.

    Any thread under ``condition``'s lock, except the attributes marked as the caller's (the thread that iterates).

    Attributes
    ----------
    items
        Arguments by index, from `base` on; one value, or a tuple of arguments if `is_star`.
    frontier
        In an ordered map, and one that reads its items as results are taken: every item below it is settled.
    n_out
        Results handed to the caller.
    """

    def __init__(
        self,
        job_id: int,
        function: Function,
        items: list[Any],
        *,
        is_star: bool,
        source: Iterator[Any] | None = None,
        chunksize: int | None = None,
        is_ordered: bool = True,
        may_inline: bool = True,
        constraint: str = "",
    ) -> None:
        self.job_id = job_id
        self.function = function
        self.items = items
        self.base = 0
        self.is_star = is_star
        self.is_lazy = source is not None  # its items may be large, and many: those that are done are let go
        self.source = source  # the caller's: more items, read lazily; None when all are in `items`
        self.chunksize = chunksize
        self.is_ordered = is_ordered
        self.may_inline = may_inline
        self.constraint = constraint
        self.n_workers: int | None = None  # fixed by the caller
        self.sample_size: int | None = None  # items of an unknown function that its caller runs at most, to begin with
        self.timeout_s: float | None = None  # that an item may take
        self.n_items = len(items)
        self.buffersize = len(items)  # with `source`: items read ahead of results, at most
        self.started_at = time.perf_counter()
        # Guards items, base and everything about results; held for list operations only.
        self.condition = threading.Condition(threading.Lock())
        self.is_waiting = False
        self.on_ready: Callable[[], object] | None = None  # who waits without a thread; called under `condition`
        self.slots: list[Any] = [None] * len(items) if is_ordered else []
        self.segments: dict[int, int] = {}  # settled runs beyond the frontier: start -> stop
        self.frontier = 0
        self.unordered: deque[list[Any]] = deque()
        self.has_failed = False  # some result is a `Failed`
        self.error: BaseException | None = None  # the executor broke
        self.cut: BaseException | None = None  # why `source` was not read to its end
        self.n_out = 0
        self.n_settled = 0
        self.plan: Plan | None = None
        self.is_released = False
        self.has_asked = False
        self.n_staged = 0  # workers that are wanted once it is known what they take to load the function
        self.lone_s: float | None = None  # time of the item in a worker behind which the next one decides about these
        self.n_inline = 0
        self.inline_s = 0.0  # the caller's: time of the items it ran
        self.cpu_at: float | None = None  # the caller's: CPU time of this process behind the latest
        self.n_chunks = 0
        self.item_nbytes = 0  # what an item obviously has for itself
        self.planned_for = (0, 0)  # workers that were ready, and items, when the plan was made
        # What was measured: items and seconds by how many ran at once, and who ran what and when.
        self.levels: dict[int, tuple[int, float]] = {}
        self.most_alone_s = 0.0  # of items that ran alone, the largest mean of some in a row, behind the first
        self.spans: list[Span] = []
        self._numbers: dict[int, int] = {0: 0}  # by worker: its number in the timeline
        self._last_spans: dict[int, int] = {}  # by worker: index of its latest
        self._has_sizes = True
        self.line: tuple[float, float] | None = None  # of an item's time over its size, where that was used
        # For the watch: what the caller runs itself, when it last came, and the latest (items begun, time first seen).
        self.batch: InlineBatch | None = None
        self.visited_at = self.started_at
        self._watch_seen = (-1, 0.0)
        self.stored: set[int] = set()  # items whose large buffers were stored: some are sent twice
        self.copies: CallerCopies | None = None  # the caller's
        self.epoch = Epoch()  # in which an array that has not moved is the same
        self.local_errors: dict[int, BaseException] = {}  # items whose arguments could not be pickled

    @property
    def is_guess(self) -> bool:
        """Whether workers share it, and the caller is in an item of which nothing was known."""
        plan = self.plan
        return self.is_released and self.batch is not None and plan is not None and plan.item_s is None

    def take_items(self, indices: Sequence[int]) -> list[Any]:
        """Arguments of these items."""
        with self.condition:
            base = self.base
            if isinstance(indices, range):
                return self.items[indices.start - base : indices.stop - base]
            return [self.items[i - base] for i in indices]

    def rest(self, most: int) -> tuple[int, list[Any]]:
        """Index and argument of each item from the first that has not been handed out on; none if over `most`."""
        with self.condition:
            first = self.n_out if self.is_ordered else self.base
            if self.n_items - first > most:
                return first, []
            items = self.items[first - self.base :]
        return first, [item[0] for item in items] if self.is_star else items

    def expected_s(self, index: int | None, otherwise_s: float) -> float:
        """What an item is expected to take by its size, in seconds."""
        if index is None or self.line is None:
            return otherwise_s
        (item,) = self.take_items([index])
        found = item_sizes([item[0] if self.is_star else item])
        return max(self.line[0] + self.line[1] * found[0], 1e-9) if found else otherwise_s

    def size_of(self, indices: Sequence[int], elapsed_s: float) -> float | None:
        """Sizes of items in all, if they have any and took long enough for that to matter."""
        if not self._has_sizes or elapsed_s < max(_SIZED_ABOVE_S * len(indices), _SIZED_ABOVE_IN_ALL_S):
            return None
        items = self.take_items(indices)
        found = item_sizes([item[0] for item in items] if self.is_star else items)
        if found is None:
            self._has_sizes = False
            return None
        return float(sum(found))

    def note(
        self,
        worker: int,
        start: float,
        stop: float,
        n_items: int,
        elapsed_s: float,
        at_once: int,
        *,
        is_continued: bool,
    ) -> None:
        """Take down who ran how many items between two times of `time.perf_counter`.

        `worker` is 0 for the caller; `is_continued`: in one span with what it ran before.
        """
        with self.condition:
            n, s = self.levels.get(at_once, (0, 0.0))
            self.levels[at_once] = (n + n_items, s + elapsed_s)
            if n and at_once == 1:
                self.most_alone_s = max(self.most_alone_s, elapsed_s / n_items)
            start_s, stop_s = start - self.started_at, stop - self.started_at
            last = self._last_spans.get(worker)
            if last is not None and is_continued:
                span = self.spans[last]
                self.spans[last] = span._replace(stop_s=stop_s, n_items=span.n_items + n_items)
            elif len(self.spans) < _MOST_SPANS:
                number = self._numbers.setdefault(worker, len(self._numbers))
                self._last_spans[worker] = len(self.spans)
                self.spans.append(Span(number, start_s, stop_s, n_items))

    def measured(self, scaling: Scaling) -> tuple[int, float]:
        """How many items were measured, and how long they would have taken one after another, in seconds."""
        with self.condition:
            n_items = sum([n for n, _ in self.levels.values()])
            return n_items, sum([s / scaling.slowdown(at_once) for at_once, (_, s) in self.levels.items()])

    def extend(self, new: list[Any]) -> int:
        """More items have been read; returns how many there are in all."""
        with self.condition:
            self.items.extend(new)
            if self.is_ordered:
                self.slots.extend([None] * len(new))
            self.n_items += len(new)
            return self.n_items

    def settle(self, indices: Sequence[int], values: list[Any], *, failed: bool = False) -> None:
        """Results of items have come (`failed`: some are `Failed`)."""
        with self.condition:
            self.has_failed = self.has_failed or failed
            self.n_settled += len(values)
            if not self.is_ordered:
                self.unordered.append(values)
            if isinstance(indices, range):
                self._place(indices.start, values)
            else:
                for i, value in zip(indices, values, strict=False):
                    self._place(i, [value])
            if self.is_waiting and (not self.is_ordered or self.frontier > self.n_out):
                self._tell()

    def _place(self, start: int, values: list[Any]) -> None:
        at = start - self.base
        stop = start + len(values)
        if self.is_ordered:
            self.slots[at : at + len(values)] = values
        elif self.is_lazy:
            self.items[at : at + len(values)] = [None] * len(values)
        else:
            return
        if start != self.frontier:
            self.segments[start] = stop
            return
        if self.segments:
            while stop in self.segments:
                stop = self.segments.pop(stop)
        self.frontier = stop
        if not self.is_ordered:
            self._trim(stop - self.base)

    def take(self, most: int | None = None) -> list[Any] | None:
        """Results that are ready, up to `most`; None when there are none."""
        with self.condition:
            return self._take(most)

    def _take(self, most: int | None) -> list[Any] | None:
        if not self.is_ordered:
            if not self.unordered:
                return None
            batch = self.unordered.popleft()
            if most is not None and len(batch) > most:
                self.unordered.appendleft(batch[most:])
                batch = batch[:most]
            self.n_out += len(batch)
            return batch
        if self.frontier == self.n_out:
            return None
        start, stop = self.n_out - self.base, self.frontier - self.base
        if most is not None:
            stop = min(stop, start + most)
        batch = self.slots[start:stop]
        self.slots[start:stop] = [None] * len(batch)
        if self.is_lazy:
            self.items[start:stop] = [None] * len(batch)
        self.n_out += len(batch)
        self._trim(stop)
        return batch

    def _trim(self, n_done: int) -> None:
        """Give places at the front back, if that is worth while."""
        if n_done >= _TRIM and n_done >= len(self.items) // 4:
            del self.slots[:n_done]
            del self.items[:n_done]
            self.base += n_done

    def wait(self, until: float | None, look_s: float | None = None) -> None:
        """Wait for results until a time (of `time.monotonic`), but at most `look_s` seconds.

        Raises
        ------
        TimeoutError
            When the time has come and no result has.
        """
        with self.condition:
            self.is_waiting = True
            try:
                while not self.unordered and self.frontier <= self.n_out:
                    if self.error is not None:
                        raise self.error
                    left = None if until is None else until - time.monotonic()
                    if left is not None and left <= 0:
                        from concurrent.futures import TimeoutError as FuturesTimeout

                        raise FuturesTimeout(f"map of {self.function.name}: no result for item {self.n_out} in time")
                    if look_s is not None and (left is None or look_s < left):
                        self.condition.wait(look_s)
                        return
                    self.condition.wait(None if left is None else min(left, threading.TIMEOUT_MAX))
            finally:
                self.is_waiting = False

    def time_in_item(self, batch: InlineBatch, now: float) -> float:
        """Seconds that the items of the caller's batch seem to take, or that the present one has taken so far."""
        n = len(batch.values)
        seen_n, seen_at = self._watch_seen
        if seen_n != self.n_inline + n:
            self._watch_seen = (self.n_inline + n, now)
            seen_at = now
        return max((now - batch.started_at) / (n + 1), now - seen_at)

    def fail(self, error: BaseException) -> None:
        """Whatever has not come yet never will."""
        with self.condition:
            self.error = error
            self._tell()

    def _tell(self) -> None:
        self.condition.notify_all()
        if self.on_ready is not None:
            self.on_ready()

    def call_when_ready(self, on_ready: Callable[[], object]) -> bool:
        """Have this called, once or more, when there are results or there will be none; False if that is so already.

        Raises
        ------
        BaseException
            If the executor broke, and no result is there.
        """
        with self.condition:
            if self.unordered or self.frontier > self.n_out:
                return False
            if self.error is not None:
                raise self.error
            self.on_ready, self.is_waiting = on_ready, True
            return True

    def close_source(self, cut: BaseException) -> None:
        """Read no more items; `cut` is raised behind the results of those that were read."""
        if self.source is not None:
            self.source = None
            self.cut = cut

    def is_finished(self) -> bool:
        """Whether all results were handed out and none will come."""
        return self.source is None and self.n_out >= self.n_items
