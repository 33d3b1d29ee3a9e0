"""Work that waits: submitted tasks, the items of maps, and the chunks cut from both.

Invariant: every item is in exactly one place: waiting here, in one chunk of one worker, or settled (done, failed,
cancelled, taken by the caller). Owned by the scheduler.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from itertools import chain, islice

from . import planner
from .cost_model import CostModel
from .resources import NOTHING, Needs
from .terms import Terms

#: Submitted tasks are grouped up to this much predicted work, in seconds, and this many tasks.
_GROUP_S = 1e-3
_GROUP_TASKS = 256
#: A chunk is overdue when it takes three times as long as expected, and this much more, in seconds.
OVERDUE_S = 5e-3
#: A giant begins when each worker, and the caller if it helps, has this many times its length to do.
_GIANT_LEAD = 2.0
#: Items of a chunk at most; a claim file has no more tickets.
_MOST_ITEMS = 1 << 20


class Chunk:
    """Items that go to a worker together.

    Attributes
    ----------
    chunk_id
        Unique in this scheduler.
    job_id
        The map they belong to; None for submitted tasks.
    items
        Indices within the map, or task ids; those that were taken back are cut off.
    worker_id
        The worker that has it.
    expected_s
        What the items are expected to take in all, in seconds; None when that is unknown.
    slot
        Which of the worker's claims is for this chunk; None if nothing of it can be taken back: for a worker that has
        nothing else, and no function to load, a single item, or a chunk whose size the caller fixed.
    is_whole
        The caller fixed its size: it is taken back whole, before its worker has begun, or not at all.
    n_done
        How many of the items, from the first, have been settled.
    given_at, progress_at
        When the worker got it, and when it last gave a result (at first: when it came to this chunk), in seconds.
    is_exhausted
        Nothing is left to take back: everything was claimed by its worker, or by us.
    awaits_cut
        Something was taken back, and the worker has not come to that point yet.
    needs
        The resources that its items need, as far as that is known.
    loads
        Whether its worker has to build some of them first, and has not done so yet.
    first_of
        The function of its items, if the worker has given no result of that before; until it does.
    is_sent
        Whether it is on its way. Set by who sends it: Ctrl-C may come between a decision and that.
    """

    __slots__ = (
        "awaits_cut", "chunk_id", "expected_s", "first_of", "given_at", "is_exhausted", "is_sent", "is_whole", "items",
        "job_id", "loads", "n_done", "needs", "progress_at", "slot", "worker_id",
    )  # fmt: skip

    def __init__(
        self,
        chunk_id: int,
        job_id: int | None,
        items: Sequence[int],
        worker_id: int,
        expected_s: float | None,
        needs: Needs = NOTHING,
    ) -> None:
        self.chunk_id = chunk_id
        self.job_id = job_id
        self.items = items
        self.worker_id = worker_id
        self.expected_s = expected_s
        self.slot: int | None = None
        self.is_whole = False
        self.given_at = self.progress_at = 0.0
        self.n_done = 0
        self.is_exhausted = False
        self.awaits_cut = False
        self.needs = needs
        self.loads = False
        self.first_of: Hashable = None
        self.is_sent = False

    @property
    def n_left(self) -> int:
        """Items that are not settled."""
        return len(self.items) - self.n_done

    @property
    def rest_s(self) -> float | None:
        """What the items that are not settled are expected to take in all, in seconds; None when that is unknown."""
        if self.expected_s is None or not self.items:  # all may have been taken back
            return self.expected_s
        n_items = len(self.items)
        return self.expected_s * (n_items - self.n_done) / n_items

    @property
    def is_over(self) -> bool:
        """Whether its worker is done with it."""
        return self.n_done >= len(self.items) and not self.awaits_cut

    def is_overdue(self, now: float) -> bool:
        """Whether it takes much longer than expected, so that nothing should wait behind it."""
        if self.loads:  # which is no task time
            return False
        return self.expected_s is None or now - self.given_at > 3 * self.expected_s + OVERDUE_S

    def cut(self, n_items: int) -> Sequence[int]:
        """Take the last items off."""
        keep = len(self.items) - n_items
        taken = self.items[keep:]
        self.items = self.items[:keep]
        if self.expected_s is not None:
            self.expected_s *= keep / (keep + n_items)
        return taken


class MapWork:
    """The items of one map.

    Items below `next` were given out, save those in `returned`; giants at and above it wait in `giants`.

    Attributes
    ----------
    held
        No worker may take items yet.
    n_workers
        How many workers are wanted.
    is_trial
        Whether no more are to load its function, since nobody knows what that takes.
    is_helped
        Whether its caller runs items beside them.
    batch
        (items that were left when the latest batch of chunks began, chunks of it that are to come).
    growth
        Largest run of items that gave results in this map; it bounds the next chunk.
    nbytes
        Size of one item, in bytes.
    needs
        The resources that items need, as far as that is known.
    head_since
        When items were last given to a worker, in seconds.
    late
        Items with workers that were running when their time was over.
    """

    __slots__ = (
        "batch", "chunksize", "closed", "giants", "growth", "head_since", "held", "is_helped", "is_trial", "job_id",
        "key", "late", "n_items", "n_settled", "n_workers", "nbytes", "needs", "next", "passed", "returned", "terms",
    )  # fmt: skip

    def __init__(
        self,
        job_id: int,
        key: Hashable,
        n_items: int,
        chunksize: int | None,
        closed: bool,
        terms: Terms,
        needs: Needs = NOTHING,
    ) -> None:
        self.job_id = job_id
        self.key = key
        self.n_items = n_items
        self.chunksize = chunksize
        self.closed = closed
        self.held = True
        self.n_workers = 0
        self.is_trial = False
        self.is_helped = False
        self.next = 0
        self.returned: deque[int] = deque()
        self.giants: deque[tuple[int, float]] = deque()  # (index, expected seconds), the longest first
        self.passed: deque[int] = deque()  # indices at and above `next` that are or were giants, ascending
        self.n_settled = 0
        self.batch = (0, 0)
        self.growth = 0
        self.nbytes = 0.0
        self.needs = needs
        self.head_since = 0.0
        self.terms = terms
        self.late: set[int] = set()

    @property
    def n_waiting(self) -> int:
        """Items that were not given out."""
        return self.n_items - self.next + len(self.returned) + len(self.giants) - len(self.passed)

    def waiting_items(self) -> list[int]:
        """Items that were not given out, in the order in which they will be."""
        passed = set(self.passed)
        rest = [i for i in range(self.next, self.n_items) if i not in passed]
        return [*(i for i, _ in self.giants), *self.returned, *rest]

    def pull_ahead(self, giants: Sequence[tuple[int, float]]) -> None:
        """Give these items (index, expected seconds) out in time, one by one; those given out already stay so."""
        if self.giants or self.passed:
            return  # once is enough
        kept = [pair for pair in giants if self.next <= pair[0] < self.n_items]
        self.giants.extend(sorted(kept, key=lambda pair: -pair[1]))
        self.passed.extend(sorted(i for i, _ in kept))
        self._step_over()

    def _is_giant_due(self, mean_s: float | None, n_at_it: int) -> bool:
        """Whether the longest giant must begin, lest the others be done long before it, by so many.

        Longest first makes the last to end early (Graham, "Bounds on multiprocessing timing anomalies", 1969); not
        before it has to, since results are handed out in order.
        """
        if not self.giants:
            return False
        others = self.n_waiting - len(self.giants)
        if not others:
            return True
        waiting_s = sum([s for _, s in self.giants]) + others * (mean_s or 0.0)
        return waiting_s <= _GIANT_LEAD * n_at_it * self.giants[0][1]

    def _step_over(self) -> None:
        while self.passed and self.passed[0] == self.next:
            self.passed.popleft()
            self.next += 1

    def take_next(self, most: int) -> range:
        """Items in their order, without a giant."""
        stop = min(self.next + most, self.n_items)
        if self.passed:
            stop = min(stop, self.passed[0])
        taken = range(self.next, stop)
        if taken:
            self.next = stop
            self._step_over()
        return taken

    def take_returned(self, most: int) -> range:
        """Items in a row among those that came back."""
        returned = self.returned
        start, n = returned[0], min(most, len(returned))
        if n > 1 and list(islice(returned, n)) != list(range(start, start + n)):
            n = next(i for i, item in enumerate(returned) if item != start + i)
        for _ in range(n):
            returned.popleft()
        return range(start, start + n)

    def put_back(self, items: Sequence[int]) -> None:
        """Items that were given out come back, to be the next."""
        if not items:
            return  # an empty range may stop anywhere
        self.batch = (0, 0)
        if isinstance(items, range) and items.stop == self.next and items.step == 1 and not self.passed:
            self.next = items.start
        else:
            self.returned.extendleft(reversed(items))

    def drop_waiting(self) -> list[int]:
        """Take all items that wait."""
        waiting = self.waiting_items()
        self.next = self.n_items
        for place in (self.returned, self.giants, self.passed):
            place.clear()
        return waiting

    def cut(
        self, model: CostModel, n_workers: int, most: int | None, *, is_calm: bool
    ) -> tuple[Sequence[int], float | None]:
        """Take the items of the next chunk, and what they are expected to take in seconds.

        Parameters
        ----------
        model
            Tells how long an item takes.
        n_workers
            Workers that share what is left.
        most
            Items at most, or None.
        is_calm
            Whether the worker has nothing to do; else the chunk waits behind another one.
        """
        mean_s, variation = model.next_items(self.key, is_confirmed=self.growth > 0)
        if self._is_giant_due(mean_s, n_workers + self.is_helped) and (is_calm or self.n_waiting > n_workers):
            index, expected_s = self.giants.popleft()
            return [index], expected_s
        if not is_calm and (mean_s is None or self.n_waiting <= n_workers):
            return (), None  # the tail: whoever is free first takes it
        if self.chunksize is not None:
            size = self.chunksize
        else:
            n_left, n_chunks = self.batch
            if not n_chunks:
                n_left, n_chunks = self.n_waiting, n_workers
            self.batch = n_left, n_chunks - 1
            size = planner.chunk_size(
                self.n_waiting,
                n_workers,
                mean_s,
                known=self.growth > 0,
                variation=variation,
                nbytes=self.nbytes,
                limit=max(self.growth, 1) * planner.CHUNK_GROWTH if self.growth else None,
                overhead_s=model.chunk_overhead_s,
                in_batch=n_left,
            )
        size = min(size, self.n_waiting, _MOST_ITEMS, _MOST_ITEMS if most is None else most)
        items: Sequence[int]
        if self.returned:
            items = [self.returned.popleft() for _ in range(min(size, len(self.returned)))]
        else:
            items = self.take_next(size)
        return items, None if mean_s is None else mean_s * len(items)


class TaskQueue:
    """Submitted tasks that wait, by priority and then first in, first out, and what is known of those with workers.

    Attributes
    ----------
    needs
        The resources that all of them need.
    levels
        (task id, function's key) of those that wait, by priority, the highest first. No level is empty, and none begins
        with a task that was dropped: so it is empty when nothing waits.
    alone
        Waiting or running tasks that share a chunk with no other.
    terms
        Of waiting or running tasks that have some of their own.
    late
        Tasks with workers whose time is over, or that nobody wants any more: settled, though a worker may still run
        them.
    since
        When the queue was last empty, in seconds.
    head_since
        When a task was last given to a worker, or the queue was last empty, in seconds.
    """

    def __init__(self, needs: Needs = NOTHING) -> None:
        self.needs = needs
        self.levels: dict[int, deque[tuple[int, Hashable]]] = {}
        self.alone: set[int] = set()
        self.terms: dict[int, Terms] = {}
        self.late: set[int] = set()
        self.since = 0.0
        self.head_since = 0.0
        self._keys: dict[int, Hashable] = {}  # of tasks that are with a worker
        self._dropped: set[int] = set()  # dropped, and still in their level

    def __len__(self) -> int:
        return sum([len(level) for level in self.levels.values()]) - len(self._dropped)

    @property
    def priority(self) -> int:
        """Of the first task that waits."""
        return next(iter(self.levels))

    @property
    def head(self) -> tuple[int, Hashable]:
        """The first task that waits, and its function."""
        return next(iter(self.levels.values()))[0]

    def key_of(self, task_id: int) -> Hashable:
        """The function of a task that is with a worker; None of one that is settled."""
        return self._keys.get(task_id)

    def waiting(self) -> set[int]:
        """All tasks that wait."""
        return {task_id for level in self.levels.values() for task_id, _ in level} - self._dropped

    def append(self, task_id: int, key: Hashable, priority: int = 0) -> None:
        """A task waits behind all others of its priority."""
        level = self.levels.get(priority)
        if level is None:
            level = self._add_level(priority)
        level.append((task_id, key))

    def _add_level(self, priority: int) -> deque[tuple[int, Hashable]]:
        level = self.levels[priority] = deque()
        if len(self.levels) > 1:
            self.levels = dict(sorted(self.levels.items(), reverse=True))
        return level

    @property
    def is_unused(self) -> bool:
        """Whether no task waits or is with a worker."""
        return not self.levels and not self._keys

    def give(self, task_id: int, key: Hashable) -> None:
        """A task goes to a worker without waiting."""
        self._keys[task_id] = key

    def put_back(self, task_ids: Sequence[int]) -> None:
        """Tasks that were with a worker wait again, before all others of their priority."""
        for task_id in reversed(task_ids):
            key = self._keys.pop(task_id)
            terms = self.terms.get(task_id)
            priority = 0 if terms is None else terms.priority
            level = self.levels.get(priority)
            if level is None:
                level = self._add_level(priority)
            level.appendleft((task_id, key))

    def drop(self, task_id: int) -> bool:
        """Forget a task that waits; False if it does not."""
        if task_id in self._keys:
            return False
        terms = self.terms.get(task_id)
        self._dropped.add(task_id)
        self.forget(task_id)
        self._trim(0 if terms is None else terms.priority)
        return True

    def _trim(self, priority: int) -> None:
        """Let a level begin with a task that is wanted."""
        level = self.levels[priority]
        while level and level[0][0] in self._dropped:
            self._dropped.remove(level.popleft()[0])
        if not level:
            del self.levels[priority]

    def forget(self, task_id: int) -> None:
        """A task is settled."""
        self._keys.pop(task_id, None)
        self.alone.discard(task_id)
        if self.terms:
            self.terms.pop(task_id, None)
        if self.late:
            self.late.discard(task_id)

    def drop_waiting(self) -> list[int]:
        """Take all tasks that wait."""
        dropped = [task_id for level in self.levels.values() for task_id, _ in level if task_id not in self._dropped]
        for task_id in dropped:
            self.forget(task_id)
        self.levels.clear()
        self._dropped.clear()
        return dropped

    def clear(self) -> None:
        """Forget everything."""
        for place in (self.levels, self.alone, self.terms, self.late, self._keys, self._dropped):
            place.clear()

    def cut(self, model: CostModel, n_workers: int, most: int | None) -> tuple[list[int], float | None]:
        """Take a group of tasks of one priority: one, or as many short ones as make a group worth a message."""
        share = -(-len(self) // max(n_workers, 1))
        limit = max(min(_GROUP_TASKS, share, _GROUP_TASKS if most is None else most), 1)
        items: list[int] = []
        total_s: float | None = 0.0
        last_key: Hashable = None
        t: float | None = None
        priority, level = next(iter(self.levels.items()))
        while level and len(items) < limit:
            task_id, key = level[0]
            if self._dropped and task_id in self._dropped:
                self._dropped.remove(task_id)
                level.popleft()
                continue
            if not items or key != last_key:
                t, last_key = model.mean_s(key), key
            if items and (t is None or total_s is None or total_s + t > _GROUP_S or task_id in self.alone):
                break
            level.popleft()
            self._keys[task_id] = key
            items.append(task_id)
            if t is None:
                total_s = None
                break
            assert total_s is not None
            total_s += t
            if task_id in self.alone:
                break
        self._trim(priority)
        return items, total_s

    def backlog_s(self, model: CostModel, unknown_s: float, enough_s: float) -> float:
        """Predicted seconds of all that waits, from the first tasks; an unknown one counts as `unknown_s`."""
        total_s = 0.0
        for seen, (_, key) in enumerate(chain.from_iterable(self.levels.values()), 1):
            t = model.mean_s(key)
            total_s += t if t is not None else unknown_s
            if seen > 64 or total_s >= enough_s:
                return total_s * len(self) / seen
        return total_s
