"""Which worker gets what, when workers start and leave, and what a death costs.

The scheduler is a state machine without process, thread, clock or file. Each method is an event that has happened
(time is an argument, in seconds from any origin) and returns the actions to carry out, in order. The same object
runs behind a real pool and in a simulation with thousands of workers in virtual time.

A worker's life::

    (StartWorker) -> STARTING -> worker_ready -> READY -> (RetireWorker) -> RETIRING -> worker_died -> gone
                        |                          |
                        +------- worker_died ------+--> gone; its running items fail or are retried,
                                                        the others of its chunks go to other workers

Work comes from sources: one queue of submitted tasks, and one per map. Sources take turns, so a long map does not
starve submits or a second map. Within a source the order is first in, first out.

Invariants
----------
* Every item is in exactly one place: waiting in its source, in one chunk of one worker, or settled (done, failed,
  cancelled, taken by the caller).
* A worker has at most `_DEPTH` chunks, and executes items of a chunk in order.
* While items wait and may be given out, no ready worker is idle.

Owned by whoever holds the executor's lock; no method blocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from enum import Enum
from typing import NamedTuple, Union

from . import planner
from .cost_model import CostModel

#: Chunks with a worker at most: one runs, one waits.
_DEPTH = 2
#: A chunk waits behind another one only if that lasts at most this long by prediction, in seconds: beyond, the
#: round trip it hides is under 1 % and the item would wait for nothing if another worker came free.
_PREFETCH_BELOW_S = 0.01
#: ... nor behind one that takes three times as long as expected, and this much more, in seconds.
_OVERDUE_S = 5e-3
#: Submitted tasks are grouped up to this much predicted work, in seconds, and this many tasks.
_GROUP_S = 1e-3
_GROUP_TASKS = 256
#: No worker starts faster than this, in seconds.
_LEAST_START_S = 1e-3
#: Workers that may die in a row before one became ready, until the pool is declared broken.
_FAILED_STARTS = 3
#: If other workers run, it is not; then the next start is tried after this long, in seconds, doubled up to 64 s.
_START_AGAIN_S = 1.0
_START_AGAIN_DOUBLINGS = 6


class StartWorker(NamedTuple):
    """Start a process and call `worker_ready` when it answers."""

    worker_id: int


class SendChunk(NamedTuple):
    """Send a chunk to a worker."""

    worker_id: int
    chunk: Chunk


class RetireWorker(NamedTuple):
    """Let a worker end after what it has; `worker_died` follows."""

    worker_id: int


class KillWorker(NamedTuple):
    """End a worker at once; `worker_died` follows."""

    worker_id: int


class FailItems(NamedTuple):
    """These items were running when their worker died, and may not run again."""

    job_id: int | None
    items: tuple[int, ...]
    worker_id: int


class BreakPool(NamedTuple):
    """No worker can be started: everything that waits fails."""


Action = Union[StartWorker, SendChunk, RetireWorker, KillWorker, FailItems, BreakPool]  # noqa: UP007 (3.10 at run time)


class Chunk:
    """Items that go to a worker together.

    Attributes
    ----------
    chunk_id
        Unique in this scheduler.
    job_id
        The map they belong to; None for submitted tasks.
    items
        Indices within the map, or task ids.
    n_done
        How many of them, from the first, have been settled.
    given_at
        When the worker got them, in seconds.
    """

    __slots__ = ("chunk_id", "expected_s", "given_at", "items", "job_id", "n_done", "worker_id")

    def __init__(
        self, chunk_id: int, job_id: int | None, items: Sequence[int], worker_id: int, expected_s: float | None
    ) -> None:
        self.chunk_id = chunk_id
        self.job_id = job_id
        self.items = items
        self.worker_id = worker_id
        self.expected_s = expected_s
        self.given_at = 0.0
        self.n_done = 0

    def is_overdue(self, now: float) -> bool:
        """Whether it takes much longer than expected, so that nothing should wait behind it."""
        return self.expected_s is None or now - self.given_at > 3 * self.expected_s + _OVERDUE_S


class _State(Enum):
    STARTING = "starting"
    READY = "ready"
    RETIRING = "retiring"


class _Worker:
    __slots__ = ("asked_at", "chunks", "idle_since", "n_given", "state")

    def __init__(self, now: float) -> None:
        self.state = _State.STARTING
        self.asked_at = now
        self.chunks: dict[int, Chunk] = {}  # by chunk id, in the order given; at most _DEPTH
        self.n_given = 0  # items in its life, for max_tasks_per_child
        self.idle_since = now


class _Job:
    """One map. Items below `next` were given out, save those in `returned`."""

    __slots__ = (
        "chunksize", "closed", "growth", "held", "job_id", "key", "n_items", "n_settled", "n_workers",
        "nbytes", "next", "returned", "started_at",
    )  # fmt: skip

    def __init__(self, job_id: int, key: Hashable, n_items: int, chunksize: int | None, closed: bool) -> None:
        self.job_id = job_id
        self.key = key
        self.n_items = n_items
        self.chunksize = chunksize
        self.closed = closed
        self.held = True
        self.n_workers = 0
        self.next = 0
        self.returned: deque[int] = deque()
        self.n_settled = 0
        self.growth = 0  # largest run of items that gave results in this map; bounds the next chunk
        self.nbytes = 0.0
        self.started_at: float | None = None  # when workers were first asked to help

    @property
    def n_waiting(self) -> int:
        return self.n_items - self.next + len(self.returned)


class Scheduler:
    """Events in, actions out.

    Parameters
    ----------
    cost_model
        Tells what items are expected to take.
    max_workers, min_workers
        Bounds on the number of workers.
    idle_timeout_s
        A worker above `min_workers` that was idle this long retires; None: never.
    max_tasks_per_child
        Items after which a worker is replaced; None: no limit.
    retries
        Times that an item runs again after its worker died while running it.
    """

    def __init__(
        self,
        cost_model: CostModel,
        *,
        max_workers: int,
        min_workers: int = 0,
        idle_timeout_s: float | None = 60.0,
        max_tasks_per_child: int | None = None,
        retries: int = 0,
    ) -> None:
        self._cost_model = cost_model
        self.max_workers = max_workers
        self.memory_cap: int | None = None  # workers that fit into memory, set by whoever measures it
        self._min_workers = min_workers
        self._idle_timeout_s = idle_timeout_s
        self._max_tasks_per_child = max_tasks_per_child
        self._retries = retries
        self._workers: dict[int, _Worker] = {}
        self._idle: dict[int, None] = {}  # READY without chunks, in the order they became idle; the last is used first
        self._partial: dict[int, None] = {}  # READY, with a chunk that ends soon and room for another
        self._n_starting = 0
        self._n_retiring = 0
        self._jobs: dict[int, _Job] = {}
        self._queue: deque[tuple[int, Hashable]] = deque()  # submitted tasks that wait
        self._task_keys: dict[int, Hashable] = {}  # of submitted tasks that are with a worker
        self._alone: set[int] = set()  # waiting or running tasks that share a chunk with no other
        self._queue_since = 0.0
        self._turn: deque[int | None] = deque([None])  # sources in turn; None is the queue of submits
        self._attempts: dict[tuple[int | None, int], int] = {}
        self._ids = 0
        self._failed_starts = 0
        self._start_again_at = 0.0  # after starts that failed beside running workers: no other start before this
        self._stopping = False
        self._is_over = False  # the pool was given up: nothing comes back, nobody starts

    # ------------------------------------------------------------------ what it looks like

    @property
    def n_workers(self) -> int:
        """Workers that exist: starting, ready and retiring."""
        return len(self._workers)

    @property
    def n_ready(self) -> int:
        """Workers that have answered and are not retiring."""
        return len(self._workers) - self._n_starting - self._n_retiring

    @property
    def n_idle(self) -> int:
        """Ready workers without work."""
        return len(self._idle)

    @property
    def n_queued(self) -> int:
        """Submitted tasks that wait for a worker."""
        return len(self._queue)

    @property
    def has_new_wait(self) -> bool:
        """Whether a task has begun to wait that another worker could have: then `next_tick` is nearer than before."""
        return len(self._queue) == 1 and len(self._workers) - self._n_retiring < self.worker_limit

    @property
    def worker_limit(self) -> int:
        """Upper bound on workers now: `max_workers`, and what fits into memory."""
        if self.memory_cap is None:
            return self.max_workers
        return max(min(self.max_workers, self.memory_cap), 1)

    @property
    def is_drained(self) -> bool:
        """Whether `shutdown` was called, no work is left and no worker exists."""
        return self._stopping and not self._workers and not self._queue and not self._jobs

    def n_waiting(self, job_id: int) -> int:
        """Items of a map that were not given out yet."""
        job = self._jobs.get(job_id)
        return job.n_waiting if job is not None else 0

    def waiting_items(self, job_id: int) -> list[int]:
        """Items of a map that were not given out yet."""
        job = self._jobs.get(job_id)
        return [*job.returned, *range(job.next, job.n_items)] if job is not None else []

    def chunk(self, worker_id: int, chunk_id: int) -> Chunk | None:
        """A chunk that is with a worker; None when it is not."""
        worker = self._workers.get(worker_id)
        return worker.chunks.get(chunk_id) if worker is not None else None

    # ------------------------------------------------------------------ work arrives

    def submit(self, task_id: int, key: Hashable, now: float, *, is_alone: bool = False) -> list[Action]:
        """A task was submitted; `is_alone`: it is large and shares its chunk with no other."""
        if self._idle and not self._queue:  # the common case in a calm: straight to an idle worker
            worker_id, _ = self._idle.popitem()
            worker = self._workers[worker_id]
            self._ids += 1
            self._task_keys[task_id] = key
            chunk = Chunk(self._ids, None, [task_id], worker_id, self._cost_model.mean_s(key))
            chunk.given_at = now
            worker.chunks[self._ids] = chunk
            worker.n_given += 1
            if is_alone:
                self._alone.add(task_id)
            if _ends_soon(chunk) and not self._should_leave(worker):
                self._partial[worker_id] = None
            return [SendChunk(worker_id, chunk)]
        if not self._queue:
            self._queue_since = now
        self._queue.append((task_id, key))
        if is_alone:
            self._alone.add(task_id)
        if not self._idle and not self._partial and len(self._workers) - self._n_retiring >= self.worker_limit:
            return []  # every worker is full: the common case in a flood
        return self._act(now)

    def add_map(
        self,
        job_id: int,
        key: Hashable,
        n_items: int,
        *,
        chunksize: int | None = None,
        closed: bool = True,
    ) -> None:
        """A map has come. It is held (its items may only be taken by the caller) until `release_map`."""
        job = self._jobs[job_id] = _Job(job_id, key, n_items, chunksize, closed)
        self._settle(job, 0)

    def release_map(self, job_id: int, n_workers: int, now: float) -> list[Action]:
        """Workers may take items of this map; about `n_workers` of them are wanted."""
        job = self._jobs.get(job_id)
        if job is None:
            return []
        job.n_workers = n_workers
        if job.held:
            job.held = False
            job.started_at = now
            self._turn.append(job_id)
        return self._act(now)

    def extend_map(self, job_id: int, n_items: int, closed: bool, now: float) -> list[Action]:
        """A map that reads its input lazily has `n_items` items by now; `closed`: and no more will come."""
        job = self._jobs.get(job_id)
        if job is None:
            return []
        job.n_items, job.closed = n_items, closed
        self._settle(job, 0)
        return self._act(now) if not job.held else []

    def take_inline(self, job_id: int, most: int) -> range:
        """The caller takes up to `most` items, to be settled by `inline_done`."""
        job = self._jobs.get(job_id)
        if job is None:
            return range(0)
        if job.returned:
            first = job.returned.popleft()
            return range(first, first + 1)
        taken = range(job.next, min(job.next + most, job.n_items))
        job.next = taken.stop if taken else job.next
        return taken

    def return_inline(self, job_id: int, items: Sequence[int]) -> None:
        """Items that the caller had taken come back: it has no time for them."""
        job = self._jobs.get(job_id)
        if job is not None:
            job.returned.extendleft(reversed(items))

    def inline_done(self, job_id: int, n_items: int) -> None:
        """Items that the caller had taken are settled."""
        job = self._jobs.get(job_id)
        if job is not None:
            job.growth = max(job.growth, n_items)
            self._settle(job, n_items)

    def drop_map(self, job_id: int, now: float) -> tuple[list[int], list[Action]]:
        """Give out no more items of a map; returns those that waited. What workers and the caller have goes on."""
        job = self._jobs.get(job_id)
        if job is None:
            return [], []
        waiting = self.waiting_items(job_id)
        job.next, job.closed = job.n_items, True
        job.returned.clear()
        self._settle(job, len(waiting))
        return waiting, self._act(now)

    def cancel_map(self, job_id: int) -> None:
        """Nobody wants more results of this map: items that wait are dropped, those with workers end unheard."""
        job = self._jobs.pop(job_id, None)
        if job is not None:
            self._forget_attempts(job_id)

    # ------------------------------------------------------------------ workers answer

    def worker_ready(self, worker_id: int, now: float) -> list[Action]:
        """A worker that was asked for has answered."""
        worker = self._workers.get(worker_id)
        if worker is None or worker.state is not _State.STARTING:
            return []
        worker.state = _State.READY
        worker.idle_since = now
        self._n_starting -= 1
        self._failed_starts = 0
        self._cost_model.observe_worker_start(now - worker.asked_at)
        self._idle[worker_id] = None
        return self._act(now)

    def items_done(self, worker_id: int, chunk_id: int, n_items: int, now: float) -> list[Action]:
        """The next `n_items` items of a chunk are settled, in order."""
        worker = self._workers.get(worker_id)
        chunk = worker.chunks.get(chunk_id) if worker is not None else None
        if worker is None or chunk is None:
            return []
        chunk.n_done += n_items
        if chunk.job_id is not None:
            job = self._jobs.get(chunk.job_id)
            if job is not None:
                job.growth = max(job.growth, chunk.n_done)
                self._settle(job, n_items)
        if chunk.n_done < len(chunk.items):
            return []
        del worker.chunks[chunk_id]
        if chunk.job_id is None:
            for task_id in chunk.items:
                self._forget_task(task_id)
        self._place(worker_id, worker, now)
        actions: list[Action] = []
        if worker.state is _State.READY and not worker.chunks and self._should_leave(worker):
            actions.append(self._retire(worker_id, worker))
        return actions + self._act(now)

    def worker_died(self, worker_id: int, running: tuple[int, int, int] | None, now: float) -> list[Action]:
        """A worker's process has ended.

        Parameters
        ----------
        worker_id
            The worker.
        running
            (chunk id, offset of the first item, number of items) that it was running; None when it ran nothing.
        now
            Time in seconds.
        """
        worker = self._workers.pop(worker_id, None)
        if worker is None:
            return []
        self._idle.pop(worker_id, None)
        self._partial.pop(worker_id, None)
        actions: list[Action] = []
        if worker.state is _State.STARTING:
            self._n_starting -= 1
            self._failed_starts += 1
            if self._failed_starts >= _FAILED_STARTS:
                if not self.n_ready:
                    self._is_over = True
                    return [BreakPool()]
                # Those that run carry on for a while: descriptors or memory may be short just now.
                doublings = min(self._failed_starts - _FAILED_STARTS, _START_AGAIN_DOUBLINGS)
                self._start_again_at = now + _START_AGAIN_S * 2**doublings
        elif worker.state is _State.RETIRING:
            self._n_retiring -= 1
        for chunk in reversed(worker.chunks.values()):
            actions.extend(self._recover(chunk, running, worker_id))
        return actions + self._act(now)

    def _recover(self, chunk: Chunk, running: tuple[int, int, int] | None, worker_id: int) -> list[Action]:
        """Sort a lost chunk's items into those that fail and those that others may run."""
        if chunk.job_id is None:
            for item in chunk.items[: chunk.n_done]:
                self._forget_task(item)
        if self._is_over or (chunk.job_id is not None and chunk.job_id not in self._jobs):
            return []
        first = last = chunk.n_done
        if running is not None and running[0] == chunk.chunk_id:
            first, last = max(running[1], chunk.n_done), max(running[1] + running[2], chunk.n_done)
        failed, again = [], list(chunk.items[chunk.n_done : first])
        for item in chunk.items[first:last]:
            attempt = self._attempts.get((chunk.job_id, item), 0)
            if attempt < self._retries:
                self._attempts[chunk.job_id, item] = attempt + 1
                again.append(item)
            else:
                failed.append(item)
        again.extend(chunk.items[last:])
        if chunk.job_id is None:
            keys = self._task_keys
            self._queue.extendleft((item, keys.pop(item)) for item in reversed(again))
            for item in failed:
                self._forget_task(item)
        else:
            job = self._jobs[chunk.job_id]
            job.returned.extendleft(reversed(again))
            self._settle(job, len(failed))
        return [FailItems(chunk.job_id, tuple(failed), worker_id)] if failed else []

    # ------------------------------------------------------------------ the pool itself

    def tick(self, now: float) -> list[Action]:
        """Time has passed: idle workers may leave, waiting tasks may get another worker."""
        actions: list[Action] = []
        if self._idle_timeout_s is not None:
            for worker_id in list(self._idle):  # the longest idle first
                worker = self._workers[worker_id]
                surplus = self._n_starting + self.n_ready > self._min_workers
                if not surplus or now - worker.idle_since < self._idle_timeout_s:
                    break
                actions.append(self._retire(worker_id, worker))
        return actions + self._act(now)

    def next_tick(self, now: float) -> float | None:
        """Seconds until `tick` should be called; None when no time matters."""
        times = []
        if self._idle_timeout_s is not None and self._idle and self.n_ready > self._min_workers:
            oldest = self._workers[next(iter(self._idle))]
            times.append(oldest.idle_since + self._idle_timeout_s - now)
        if self._queue and not self._n_starting and self.n_ready < self.worker_limit:
            times.append(max(self._queue_since + self._start_s(), self._start_again_at) - now)
        return max(min(times), 0.0) if times else None

    def resize(self, max_workers: int, now: float) -> list[Action]:
        """The upper bound on workers has changed; surplus workers leave as they become idle."""
        self.max_workers = max_workers
        return self._act(now)

    def want_workers(self, n_workers: int, now: float) -> list[Action]:
        """Start workers ahead of work, up to `n_workers` in all."""
        return self._start(n_workers - self._n_starting - self.n_ready, now)

    def shutdown(self, now: float) -> list[Action]:
        """No more work will come; workers leave when all that came is done."""
        self._stopping = True
        return self._act(now)

    def give_up(self) -> list[Action]:
        """The pool is broken or was ended: all work is forgotten, every worker ends, and none starts any more."""
        self._stopping = self._is_over = True
        self._queue.clear()
        self._jobs.clear()
        self._task_keys.clear()
        self._alone.clear()
        self._attempts.clear()
        return [self._kill(worker_id, worker) for worker_id, worker in self._workers.items()]

    def drop_queue(self) -> list[int]:
        """Forget the submitted tasks that wait, and return their ids."""
        dropped = [task_id for task_id, _ in self._queue]
        self._queue.clear()
        self._alone.difference_update(dropped)
        return dropped

    def job_ids(self) -> tuple[int, ...]:
        """Maps that are not settled."""
        return tuple(self._jobs)

    def held_jobs(self) -> tuple[int, ...]:
        """Maps whose items no worker may take yet."""
        return tuple(job_id for job_id, job in self._jobs.items() if job.held)

    def asked_at(self, job_id: int) -> float | None:
        """When workers were first asked to help with a map; None while it is held."""
        job = self._jobs.get(job_id)
        return job.started_at if job is not None else None

    def set_item_nbytes(self, job_id: int, nbytes: float) -> None:
        """How large one item of a map is, in bytes; chunks are kept small enough for it."""
        job = self._jobs.get(job_id)
        if job is not None:
            job.nbytes = nbytes

    def worker_ids(self) -> tuple[int, ...]:
        """Workers that exist."""
        return tuple(self._workers)

    # ------------------------------------------------------------------ inside

    def _act(self, now: float) -> list[Action]:
        """Give out what may be given out, then see whether the number of workers is right."""
        actions: list[Action] = []
        live = self._n_starting + self.n_ready
        is_calm = not self._queue and len(self._turn) == 1 and not self._stopping
        if is_calm and self._min_workers <= live <= self.worker_limit:
            return actions  # nothing waits and nobody is too many
        self._assign(actions, now)
        if self._stopping and not self._queue and not self._jobs:
            for worker_id, worker in list(self._workers.items()):
                if worker.state is _State.STARTING:
                    actions.append(self._kill(worker_id, worker))
                elif worker.state is _State.READY and not worker.chunks:
                    actions.append(self._retire(worker_id, worker))
            return actions
        surplus = self._n_starting + self.n_ready - self.worker_limit
        if surplus > 0 and self._n_starting:  # those that have loaded nothing yet go first
            starting = [pair for pair in self._workers.items() if pair[1].state is _State.STARTING]
            actions.extend(self._kill(*pair) for pair in starting[-surplus:])
            surplus = self._n_starting + self.n_ready - self.worker_limit
        while surplus > 0 and self._idle:
            worker_id = next(iter(self._idle))
            actions.append(self._retire(worker_id, self._workers[worker_id]))
            surplus -= 1
        wanted = max(self._demand(now), self._min_workers - self._n_starting - self.n_ready)
        if wanted > 0:
            actions.extend(self._start(wanted, now))
        return actions

    def _assign(self, actions: list[Action], now: float) -> None:
        while self._idle or self._partial:
            waits = not self._idle
            worker_id = next(iter(self._partial)) if waits else next(reversed(self._idle))
            worker = self._workers[worker_id]
            if waits and next(iter(worker.chunks.values())).is_overdue(now):
                del self._partial[worker_id]  # nobody knows when it ends
                continue
            source = self._next_source()
            if source is False:
                return
            chunk = self._cut(source, worker_id, worker, waits)
            if chunk is None:
                return
            chunk.given_at = now
            worker.chunks[chunk.chunk_id] = chunk
            worker.n_given += len(chunk.items)
            self._place(worker_id, worker, now)
            actions.append(SendChunk(worker_id, chunk))

    def _next_source(self) -> int | bool | None:
        """The source whose turn it is (None: the queue); False when nothing waits."""
        for _ in range(len(self._turn)):
            source = self._turn[0]
            if source is None:
                if self._queue:
                    self._turn.rotate(-1)
                    return None
            else:
                job = self._jobs.get(source)
                if job is None:
                    self._turn.popleft()
                    continue
                if job.n_waiting:
                    self._turn.rotate(-1)
                    return source
            self._turn.rotate(-1)
        return False

    def _cut(self, source: int | None, worker_id: int, worker: _Worker, waits: bool) -> Chunk | None:
        """The next chunk of a source for a worker; None if it should not wait behind what the worker has."""
        most = None
        if self._max_tasks_per_child is not None:
            most = self._max_tasks_per_child - worker.n_given
        if source is None:
            if waits and self._n_starting + self.n_ready < self.worker_limit:
                return None  # should what it has block, another worker must be free to start
            items, expected_s = self._cut_tasks(most)
            if waits and expected_s is None:
                self._queue.extendleft((item, self._task_keys.pop(item)) for item in reversed(items))
                return None
            self._ids += 1
            return Chunk(self._ids, None, items, worker_id, expected_s)
        return self._cut_map(self._jobs[source], worker_id, most, waits)

    def _cut_tasks(self, most: int | None) -> tuple[list[int], float | None]:
        """Take a group of submitted tasks: one, or as many short ones as make a group worth a message."""
        share = -(-len(self._queue) // max(self.n_ready, 1))
        limit = min(_GROUP_TASKS, share, most if most is not None else _GROUP_TASKS)
        items: list[int] = []
        total = 0.0
        mean_s = self._cost_model.mean_s
        last_key: Hashable = None
        t: float | None = None
        while self._queue and len(items) < max(limit, 1):
            task_id, key = self._queue[0]
            if not items or key != last_key:
                t, last_key = mean_s(key), key
            if items and (t is None or total + t > _GROUP_S or task_id in self._alone):
                break
            self._queue.popleft()
            self._task_keys[task_id] = key
            items.append(task_id)
            if t is None:
                return items, None
            total += t
            if task_id in self._alone:
                break
        return items, total

    def _cut_map(self, job: _Job, worker_id: int, most: int | None, waits: bool) -> Chunk | None:
        model = self._cost_model
        t = model.mean_s(job.key) if job.growth else model.cautious_mean_s(job.key)
        n = max(min(self.n_ready + self._n_starting, self.worker_limit), 1)
        remaining = job.n_waiting
        if waits and (t is None or remaining <= n):
            return None  # the tail: whoever is free first takes it
        if job.chunksize is not None:
            size = job.chunksize
        else:
            limit = max(job.growth, 1) * planner.CHUNK_GROWTH if job.growth else None
            size = planner.chunk_size(remaining, n, t, known=job.growth > 0, nbytes=job.nbytes, limit=limit)
        if most is not None:
            size = min(size, most)
        items: Sequence[int]
        if job.returned:
            items = [job.returned.popleft() for _ in range(min(size, len(job.returned)))]
        else:
            items = range(job.next, min(job.next + size, job.n_items))
            job.next = items.stop
        self._ids += 1
        return Chunk(self._ids, job.job_id, items, worker_id, None if t is None else t * len(items))

    def _place(self, worker_id: int, worker: _Worker, now: float) -> None:
        """File a worker under idle, partial, or neither, after its chunks changed."""
        self._idle.pop(worker_id, None)
        self._partial.pop(worker_id, None)
        if worker.state is not _State.READY or self._should_leave(worker):
            return
        if not worker.chunks:
            worker.idle_since = now
            self._idle[worker_id] = None
        elif len(worker.chunks) < _DEPTH and _ends_soon(next(iter(worker.chunks.values()))):
            self._partial[worker_id] = None

    def _should_leave(self, worker: _Worker) -> bool:
        """Whether a worker gets no more work: it has had its share, or there are more workers than allowed."""
        if self._max_tasks_per_child is not None and worker.n_given >= self._max_tasks_per_child:
            return True
        return self.n_ready > self.worker_limit

    def _retire(self, worker_id: int, worker: _Worker) -> RetireWorker:
        worker.state = _State.RETIRING
        self._n_retiring += 1
        self._idle.pop(worker_id, None)
        self._partial.pop(worker_id, None)
        return RetireWorker(worker_id)

    def _kill(self, worker_id: int, worker: _Worker) -> KillWorker:
        if worker.state is not _State.RETIRING:
            self._n_starting -= worker.state is _State.STARTING
            self._n_retiring += 1
            worker.state = _State.RETIRING
        self._idle.pop(worker_id, None)
        self._partial.pop(worker_id, None)
        return KillWorker(worker_id)

    def _demand(self, now: float) -> int:
        """Workers to start for what waits, beyond those that are starting."""
        if self._idle:
            return 0
        live = self._n_starting + self.n_ready
        for_maps = 0
        for job_id in self._turn:
            job = self._jobs.get(job_id) if job_id is not None else None
            if job is not None and job.n_waiting:
                for_maps += max(min(job.n_workers, job.n_waiting + self.n_ready), 1)
        for_queue = self._queue_demand(now) - self._n_starting if self._queue else 0
        return max(for_maps - live, for_queue, 0)

    def _queue_demand(self, now: float) -> int:
        """Workers that the submitted tasks deserve: one each if unknown or long, else one a start time of work."""
        start_s = self._start_s()
        room = self.worker_limit - self.n_ready
        backlog_s = 0.0
        for seen, (_, key) in enumerate(self._queue, 1):
            t = self._cost_model.mean_s(key)
            backlog_s += t if t is not None else start_s
            if seen > 2 * room or backlog_s >= room * start_s:
                backlog_s *= len(self._queue) / seen
                break
        enough = int(backlog_s / start_s + 1e-9)
        if not enough and (not self.n_ready or now - self._queue_since >= start_s):
            enough = 1
        return min(enough, len(self._queue))

    def _start_s(self) -> float:
        return max(self._cost_model.worker_start_s, _LEAST_START_S)

    def _start(self, n_workers: int, now: float) -> list[Action]:
        actions: list[Action] = []
        room = self.worker_limit - self._n_starting - self.n_ready if not self._is_over else 0
        if self._failed_starts >= _FAILED_STARTS:
            if self.n_ready and now < self._start_again_at:
                return actions
            room = min(room, 1 - self._n_starting)  # one tells as much as many
        for _ in range(min(n_workers, room)):
            self._ids += 1
            self._workers[self._ids] = _Worker(now)
            self._n_starting += 1
            actions.append(StartWorker(self._ids))
        return actions

    def _settle(self, job: _Job, n_items: int) -> None:
        job.n_settled += n_items
        if job.closed and job.n_settled >= job.n_items:
            del self._jobs[job.job_id]
            self._forget_attempts(job.job_id)

    def _forget_task(self, task_id: int) -> None:
        self._task_keys.pop(task_id, None)
        self._alone.discard(task_id)
        if self._attempts:
            self._attempts.pop((None, task_id), None)

    def _forget_attempts(self, job_id: int) -> None:
        if self._attempts:
            for key in [key for key in self._attempts if key[0] == job_id]:
                del self._attempts[key]


def _ends_soon(chunk: Chunk) -> bool:
    """Whether another chunk may wait behind this one."""
    return chunk.expected_s is not None and chunk.expected_s <= _PREFETCH_BELOW_S
