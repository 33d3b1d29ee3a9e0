"""Which worker gets what, when workers start and leave, and what a death costs.

The scheduler is a state machine without process, thread, clock or file. Each method is an event that has happened
(time is an argument, in seconds from any origin) and returns the actions to carry out, in order. The same object
runs behind a real pool and in a simulation with thousands of workers in virtual time.

A worker's life::

    (StartWorker) -> STARTING -> worker_ready -> READY -> (RetireWorker) -> RETIRING -> worker_died -> gone
                        |                          |
                        +------- worker_died ------+--> gone; its running items fail or are retried,
                                                        the others of its chunks go to other workers

One that is started to take the place of another (`recycling`) is a SPARE until that has left: then it is STARTING, or
READY if it has answered meanwhile.

A chunk's life::

    cut --(SendChunk)--> with its worker: items_done, items_done, ... --> over
                              |
                              +--(TakeBack)--> taken_back: the items that its worker had not begun wait again
                                                   |
                                                   +--> items_done ... and chunk_cut --> over

Work comes from sources: one queue of submitted tasks, and one per map. Those of the highest priority are served; among
equals sources take turns, so a long map does not starve submits or a second map. Within a source the order is first in,
first out, but for items known to be giants, which go first.

Time can be limited. A submitted task has a deadline: then it fails, wherever it is; if it runs, its worker is ended.
An item of a map may run for so long: who carries out tells what workers run (`look`), and the worker of an item that is
seen for too long is ended; the item fails with its worker. That a worker really runs what it is to be ended for is
checked when that is done (`KillRunning`), so nothing else is hit.

Tasks that need resources (`resources`) wait in a queue for each combination of them, and go to workers that have them,
or to others where that pays.

Invariants
----------
* Every item is in exactly one place: waiting in its source, in one chunk of one worker, or settled (done, failed,
  cancelled, taken by the caller).
* A worker has at most `_DEPTH` chunks, and executes items of a chunk in order.
* While items wait and may be given out, no ready worker is idle, save one that lacks the resources of all that wait and
  for which loading them does not pay. While none waits, an idle worker takes from one that
  has more than it is running, if that is worth a message.

Owned by whoever holds the executor's lock; no method blocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from . import planner, recycling, resources
from .actions import (
    Action,
    BreakPool,
    CloseResources,
    ExpireTask,
    FailItems,
    KillRunning,
    KillWorker,
    LoadResources,
    RetireWorker,
    SendChunk,
    StartWorker,
    TakeBack,
)
from .cost_model import CostModel
from .limits import TimeLimits
from .memory import MemoryGate, Room, Running, Sample
from .recycling import Leaks
from .resources import NOTHING, Needs, Resource
from .terms import Terms
from .work import OVERDUE_S, Chunk, MapWork, TaskQueue
from .worker import State, Worker, WorkerView, ends_soon, rest

if TYPE_CHECKING:
    from typing import TypeAlias

#: Where work comes from: the queue of submitted tasks, that of those with certain needs, or a map.
_Source: TypeAlias = "int | Needs | None"

#: Chunks with a worker at most: one runs, one waits.
_DEPTH = 2
#: A worker that loads the function of a map is not stuck before this, in seconds: large libraries take that long.
_LOADING_S = 10.0
#: Functions that a worker is remembered to know, at most.
_MOST_KNOWN = 256
#: Items are taken back for an idle worker if they take at least this long by prediction, in seconds: the frames and
#: wake-ups of both chunks cost about a third of it.
_STEAL_ABOVE_S = 4 * CostModel.CHUNK_OVERHEAD_S
#: Chunks that are compared, at least, before the one with the most to do is taken from: with hundreds of workers, to
#: look at all of them each time is most of what decisions cost at the end of a map.
_CANDIDATES = 64
#: What needs resources stays at least so long, in seconds, where it was just sent to: who chooses a worker looks at all
#: that waits, and who takes back at one chunk, so they may disagree, and would pass it back and forth without end.
_MOVE_AFTER_S = 1e-3
#: No worker starts faster than this, in seconds.
_LEAST_START_S = 1e-3
#: Workers that may die in a row before one became ready, until the pool is declared broken.
_FAILED_STARTS = 3
#: If others run or start, it is not; then the next start is tried after this long, in seconds, doubled up to 64 s.
_START_AGAIN_S = 1.0
_START_AGAIN_DOUBLINGS = 6
#: Whoever is ended for what it takes is gone after this, in seconds; if not, another one is.
_VICTIM_S = 1.0
_NO_TERMS = Terms()


class _Victim(NamedTuple):
    """A worker that dies for want of memory: the item that it runs, what it uses, and what all may."""

    chunk_id: int
    offset: int
    used_nbytes: int
    limit_nbytes: int
    is_alone: bool
    since: float


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
        self.memory = MemoryGate(cost_model)
        self._memory_cap: int | None = None  # workers that fit into memory
        self._is_held = False  # something waits for memory
        self._victims: dict[int, _Victim] = {}  # workers that are ended for what they take
        self._careful: set[tuple[int | None, int]] = set()  # items whose worker died for want of memory
        self._min_workers = min_workers
        self._idle_timeout_s = idle_timeout_s
        self._max_tasks_per_child = max_tasks_per_child
        self._retries = retries
        self._workers: dict[int, Worker] = {}
        self._idle: dict[int, None] = {}  # READY without chunks, in the order they became idle; the last is used first
        self._partial: dict[int, None] = {}  # READY, with a chunk that ends soon and room for another
        self._n_starting = 0
        self._n_retiring = 0
        self._spare: int | None = None  # the worker that waits for the place of another
        self._due: dict[int, None] = {}  # READY, with their last chunks: they leave after these
        self._leaks = Leaks()
        self._laden: dict[int, None] = {}  # READY, with items that they have not begun and that may be taken back
        self._jobs: dict[int, MapWork] = {}
        self._queue = TaskQueue()
        self._lanes: dict[Needs, TaskQueue] = {}  # queues of tasks that need resources
        self._lane_of: dict[int, TaskQueue] = {}  # by task that is not settled, where it is not `_queue`
        self._turn: deque[_Source] = deque([None])  # sources in turn
        self._resources: dict[int, Resource] = {}
        self.resource_budget_nbytes: int | None = None  # for each worker, set by whoever measures memory
        self._wanted_at: tuple[int, float] | None = None  # workers to start ahead of work, up to so many, and when
        self.n_wanted = 0  # workers that are started and kept whether there is work or not, set by who warms up
        self._attempts: dict[tuple[int | None, int], int] = {}
        self._limits = TimeLimits(self._workers)
        #: Whether the latest submit has brought `next_tick` nearer.
        self.asks_clock = False
        self._ticked_at = float("-inf")  # when `tick` was called last
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
        return len(self._workers) - self._n_starting - self._n_retiring - (self._spare is not None)

    @property
    def spare(self) -> int | None:
        """The worker that waits for the place of one which leaves; None if there is none."""
        return self._spare

    @property
    def n_leaks(self) -> int:
        """Workers that were replaced because their memory grew."""
        return self._leaks.n_found

    @property
    def n_idle(self) -> int:
        """Ready workers without work."""
        return len(self._idle)

    @property
    def n_starting(self) -> int:
        """Workers that start."""
        return self._n_starting

    @property
    def n_busy(self) -> int:
        """Workers that have work."""
        return max(self.n_ready - len(self._idle), 0)

    @property
    def is_starting(self) -> bool:
        """Whether some worker starts, if only to take the place of another."""
        return self._n_starting > 0 or (self._spare is not None and not self._workers[self._spare].has_answered)

    @property
    def n_queued(self) -> int:
        """Submitted tasks that wait for a worker."""
        return sum([len(queue) for queue in self._queues()])

    def _queues(self) -> Iterator[TaskQueue]:
        yield self._queue
        yield from self._lanes.values()

    @property
    def _has_tasks(self) -> bool:
        """Whether a submitted task waits."""
        return bool(self._queue.levels) or any(lane.levels for lane in self._lanes.values())

    @property
    def has_timed_maps(self) -> bool:
        """Whether a map's items may not take for ever: then `next_tick` is nearer after each chunk."""
        return bool(self._limits.timed)

    @property
    def may_start(self) -> bool:
        """Whether more workers than those that exist are allowed."""
        return self._n_starting + self.n_ready < self.worker_limit

    @property
    def _least(self) -> int:
        """Workers that are kept."""
        return max(self._min_workers, min(self.n_wanted, self.worker_limit)) if self.n_wanted else self._min_workers

    @property
    def worker_limit(self) -> int:
        """Upper bound on workers now: `max_workers`, and what fits into memory."""
        if self._memory_cap is None:
            return self.max_workers
        return max(min(self.max_workers, self._memory_cap), 1)

    @property
    def holds_back(self) -> bool:
        """Whether something waits for memory."""
        return self._is_held

    @property
    def is_drained(self) -> bool:
        """Whether `shutdown` was called, no work is left and no worker exists."""
        return self._stopping and not self._workers and not self._has_tasks and not self._jobs

    def n_waiting(self, job_id: int) -> int:
        """Items of a map that were not given out yet."""
        job = self._jobs.get(job_id)
        return job.n_waiting if job is not None else 0

    def next_item(self, job_id: int) -> int | None:
        """The item that the caller would get next; None when there is none."""
        job = self._jobs.get(job_id)
        if job is None:
            return None
        if job.returned:
            return job.returned[0]
        if job.next < job.n_items:
            return job.next
        return job.giants[0][0] if job.giants else None

    def waiting_items(self, job_id: int) -> list[int]:
        """Items of a map that were not given out yet."""
        job = self._jobs.get(job_id)
        return job.waiting_items() if job is not None else []

    def needs(self, job_id: int) -> Needs:
        """The resources that items of a map need, as far as that is known."""
        job = self._jobs.get(job_id)
        return job.needs if job is not None else NOTHING

    def chunk(self, worker_id: int, chunk_id: int) -> Chunk | None:
        """A chunk that is with a worker; None when it is not."""
        worker = self._workers.get(worker_id)
        return worker.chunks.get(chunk_id) if worker is not None else None

    def oldest_item(self, worker_id: int) -> tuple[int, int, int] | None:
        """The item that a worker runs if it runs any: (chunk id, offset, 1)."""
        worker = self._workers.get(worker_id)
        chunks = worker.chunks.values() if worker is not None else ()
        return next(((chunk.chunk_id, chunk.n_done, 1) for chunk in chunks if chunk.n_left), None)

    # ------------------------------------------------------------------ work arrives

    def submit(
        self,
        task_id: int,
        key: Hashable,
        now: float,
        *,
        is_alone: bool = False,
        terms: Terms | None = None,
        until: float | None = None,
        needs: Needs = NOTHING,
    ) -> list[Action]:
        """A task was submitted.

        Parameters
        ----------
        task_id, key
            The task, unique, and its function.
        now
            Time in seconds.
        is_alone
            It is large and shares its chunk with no other.
        terms
            What it was submitted with; None: nothing.
        until
            When its time is over, in seconds; None: never.
        needs
            The resources that it needs.
        """
        queue = self._lane(needs) if needs else self._queue
        self.asks_clock = False
        if is_alone:
            queue.alone.add(task_id)
        if terms is not None:
            queue.terms[task_id] = terms
            if until is not None:
                self.asks_clock = self._limits.deadlines.add(task_id, until)
        if needs:
            return self._submit_to_lane(task_id, key, now, queue, 0 if terms is None else terms.priority)
        if (
            self._idle and not queue.levels and not (self.memory.is_tight or self._careful)
        ):  # the common case in a calm: straight to an idle worker
            worker_id, _ = self._idle.popitem()
            worker = self._workers[worker_id]
            self._ids += 1
            queue.give(task_id, key)
            chunk = Chunk(self._ids, None, [task_id], worker_id, self._cost_model.mean_s(key))
            if key not in worker.known:
                chunk.first_of = key
            chunk.given_at = chunk.progress_at = now
            worker.chunks[self._ids] = chunk
            worker.n_given += 1
            if self._max_tasks_per_child is None and not worker.is_leaving:
                if self._ends_soon(worker):
                    self._partial[worker_id] = None
                return [SendChunk(worker_id, chunk)]
            self._place(worker_id, worker, now)
            self.asks_clock = worker_id in self._due
            return [SendChunk(worker_id, chunk), *self._start_ahead(now)]
        is_first = not queue.levels
        if is_first:
            queue.since = now
        queue.append(task_id, key, 0 if terms is None else terms.priority)
        if not self._idle and not self._partial and len(self._workers) - self._n_retiring >= self.worker_limit:
            return []  # every worker is full: the common case in a flood
        actions = self._act(now)
        if is_first and queue.levels and self.may_start:
            self.asks_clock = True  # if it waits for long, it gets another worker
        return actions

    def _submit_to_lane(self, task_id: int, key: Hashable, now: float, lane: TaskQueue, priority: int) -> list[Action]:
        self._lane_of[task_id] = lane
        is_first = not lane.levels
        if is_first:
            lane.since = lane.head_since = now
        lane.append(task_id, key, priority)
        actions = self._act(now)
        self.asks_clock = self.asks_clock or (is_first and bool(lane.levels))
        return actions

    def add_map(
        self,
        job_id: int,
        key: Hashable,
        n_items: int,
        *,
        chunksize: int | None = None,
        closed: bool = True,
        terms: Terms = _NO_TERMS,
        needs: Needs = NOTHING,
    ) -> None:
        """A map has come. It is held (its items may only be taken by the caller) until `release_map`."""
        self._wanted_at = None  # who opens the map decides
        job = self._jobs[job_id] = MapWork(job_id, key, n_items, chunksize, closed, terms, needs)
        if terms.timeout_s is not None:
            self._limits.timed[job_id] = terms.timeout_s
        self._settle(job, 0)

    def release_map(
        self, job_id: int, n_workers: int, now: float, *, is_trial: bool = False, is_helped: bool = False
    ) -> list[Action]:
        """Workers may take items of this map: about `n_workers`, beside its caller if it helps; no more for a trial."""
        job = self._jobs.get(job_id)
        if job is None:
            return []
        job.n_workers, job.is_trial, job.is_helped = n_workers, is_trial, is_helped
        if job.held:
            job.held = False
            job.head_since = now
            self._turn.append(job_id)
        return self._act(now)

    def hold_map(self, job_id: int) -> list[Action]:
        """Workers give back what they have not begun of this map, and take no more until it is released again."""
        job = self._jobs.get(job_id)
        if job is None or job.held:
            return []
        job.held = True
        self._turn.remove(job_id)
        return self._withdraw(job_id)

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
            return job.take_returned(most)
        taken = job.take_next(most)
        if not taken and job.giants:
            first, _ = job.giants.popleft()
            return range(first, first + 1)
        return taken

    def take_for_caller(self, job_id: int, now: float) -> list[Action]:
        """The caller has nothing to do: take back what it may run of a map, if some worker has much of it."""
        job = self._jobs.get(job_id)
        if job is None or not self._laden or job.n_waiting or self._has_taker(job, now):
            return []
        return list(self._rebalance(now, most=1, job_id=job_id))

    def n_unbegun(self, job_id: int) -> int:
        """Items of a map that workers have and have not begun, as far as that is known."""
        given = [rest(self._workers[worker_id]) for worker_id in self._laden]
        return sum([n for pairs in given for chunk, n in pairs if chunk.job_id == job_id])

    def until_help_s(self, job_id: int, now: float) -> float | None:
        """Seconds until one more worker begins with items of a map, as far as one can tell.

        Of one that starts, or loads the function, what that is expected to take yet; when it takes longer, or nobody
        knows, as long as it has taken beyond that and an item. None if no worker starts or loads.
        """
        job = self._jobs.get(job_id)
        if job is None:
            return None
        load_s, start_s = self._cost_model.load_s(job.key) or 0.0, self._cost_model.worker_start_s
        found: list[float] = []
        for worker in self._workers.values():
            if worker.state is State.STARTING:
                found.append(abs(start_s - (now - worker.asked_at)) + load_s)
            elif worker.state is State.READY and worker.chunks and job.key not in worker.known:
                chunk = next(iter(worker.chunks.values()))
                if chunk.first_of is not None:
                    over_s = now - chunk.given_at - (self._cost_model.load_s(chunk.first_of) or 0.0)
                    item_s = self._cost_model.mean_s(chunk.first_of) or 0.0
                    found.append(-over_s if over_s < 0 else max(over_s - item_s, 0.0))
        return min(found, default=None)

    def know_alike(self, key: Hashable, other: Hashable) -> None:
        """Workers that have given results of one function know the other as well."""
        for worker in self._workers.values():
            if other in worker.known:
                worker.known.add(key)

    def loading_s(self, key: Hashable, now: float) -> float:
        """How long some worker has been loading a function by now, in seconds; 0 if none is."""
        return now - min(self._loading_since(key), default=now)

    def load_left_s(self, key: Hashable, now: float) -> float | None:
        """Seconds until some worker has loaded a function, by what that took others; None if nobody loads, or knows.

        When it takes longer, as long as it has taken beyond that.
        """
        load_s, since = self._cost_model.load_s(key), self._loading_since(key)
        return min([abs(load_s - (now - at)) for at in since], default=None) if load_s is not None else None

    def _loading_since(self, key: Hashable) -> list[float]:
        """When workers that load a function have begun to, in seconds."""
        return [
            chunk.given_at
            for worker in self._workers.values()
            for chunk in worker.chunks.values()
            if chunk.first_of is not None and chunk.first_of == key and not chunk.needs
        ]

    def n_knowing(self, key: Hashable) -> int:
        """Workers that have given results of a function."""
        return sum([worker.state is State.READY and key in worker.known for worker in self._workers.values()])

    def pull_ahead(self, job_id: int, giants: Sequence[tuple[int, float]]) -> None:
        """These items of a map (index, expected seconds) take so long that they must not come last."""
        job = self._jobs.get(job_id)
        if job is not None:
            job.pull_ahead(giants)

    def return_inline(self, job_id: int, items: Sequence[int]) -> None:
        """Items that the caller had taken come back: it has no time for them."""
        job = self._jobs.get(job_id)
        if job is not None:
            job.put_back(items)

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
        waiting = job.drop_waiting()
        job.closed = True
        self._settle(job, len(waiting))
        return waiting, self._act(now)

    def cancel_map(self, job_id: int) -> list[Action]:
        """Nobody wants more results of this map: what has not begun is dropped, the rest ends unheard."""
        if job_id not in self._jobs:
            return []
        actions = self._withdraw(job_id)
        del self._jobs[job_id]
        self._limits.timed.pop(job_id, None)
        self._forget_attempts(job_id)
        return actions

    # ------------------------------------------------------------------ workers answer

    def worker_ready(self, worker_id: int, now: float) -> list[Action]:
        """A worker that was asked for has answered."""
        worker = self._workers.get(worker_id)
        if worker is None or worker.has_answered or worker.state is State.RETIRING:
            return []
        worker.has_answered = True
        worker.idle_since = now
        self._failed_starts = 0
        self._cost_model.observe_worker_start(now - worker.asked_at)
        actions = self._welcome(worker_id, worker, now) if worker.state is State.STARTING else []
        return actions + self._act(now)

    def _welcome(self, worker_id: int, worker: Worker, now: float) -> list[Action]:
        """A worker that has answered may work."""
        worker.state = State.READY
        self._n_starting -= 1
        warm = [resource_id for resource_id, resource in self._resources.items() if resource.is_warm]
        actions = self._load_ahead(worker_id, worker, warm) if warm and not self._stopping else []
        self._place(worker_id, worker, now)
        if not worker.ahead and self._should_leave(worker):  # fewer are allowed than when it was asked for
            actions.append(self._retire(worker_id, worker))
        return actions

    def items_done(self, worker_id: int, chunk_id: int, n_items: int, now: float) -> list[Action]:
        """The next `n_items` items of a chunk are settled, in order."""
        worker = self._workers.get(worker_id)
        chunk = worker.chunks.get(chunk_id) if worker is not None else None
        if worker is None or chunk is None:
            return []
        chunk.n_done += n_items
        chunk.progress_at = now
        worker.has_run = True
        if chunk.first_of is not None:
            self._note_known(worker, chunk)
        if chunk.job_id is not None:
            job = self._jobs.get(chunk.job_id)
            if job is not None:
                job.growth = max(job.growth, chunk.n_done)
                self._settle(job, n_items)
        if not chunk.is_over:
            if worker_id in self._laden and not rest(worker):
                del self._laden[worker_id]
            if len(worker.chunks) < _DEPTH and worker_id not in self._partial and self._ends_soon(worker):
                self._place(worker_id, worker, now)
                return self._act(now) if worker_id in self._partial else []
            return []
        return self._close(worker_id, worker, chunk, now)

    def taken_back(self, worker_id: int, chunk_id: int, n_items: int, now: float) -> list[Action]:
        """The last `n_items` items of a chunk were claimed by us: its worker will not run them."""
        worker = self._workers.get(worker_id)
        chunk = worker.chunks.get(chunk_id) if worker is not None else None
        if worker is None or chunk is None:
            return []
        chunk.is_exhausted = True
        if n_items:
            chunk.awaits_cut = True
            worker.n_given -= n_items
            items = chunk.cut(n_items)
            if chunk.job_id is None:
                self._put_back(self._queue_of(chunk), items)
            elif (job := self._jobs.get(chunk.job_id)) is not None:
                job.put_back(items)
        self._place(worker_id, worker, now)
        return self._act(now)

    def not_taken(self, worker_id: int, chunk_id: int) -> None:
        """Nothing can be taken back of a chunk that is about to be sent: once it is overdue, it is tried again."""
        worker = self._workers.get(worker_id)
        chunk = worker.chunks.get(chunk_id) if worker is not None else None
        if worker is None or chunk is None:
            return
        chunk.is_exhausted = False
        if worker.state is State.READY and rest(worker):
            self._laden[worker_id] = None

    def chunk_cut(self, worker_id: int, chunk_id: int, now: float) -> list[Action]:
        """A worker has come to the point from which on a chunk's items were taken back."""
        worker = self._workers.get(worker_id)
        chunk = worker.chunks.get(chunk_id) if worker is not None else None
        if worker is None or chunk is None:
            return []
        chunk.awaits_cut = False
        if chunk.first_of is not None:
            self._note_known(worker, chunk)
        return self._close(worker_id, worker, chunk, now) if chunk.is_over else []

    @staticmethod
    def _note_known(worker: Worker, chunk: Chunk) -> None:
        if len(worker.known) >= _MOST_KNOWN:  # a server that makes functions without end
            worker.known.clear()
        worker.known.add(chunk.first_of)
        for other in worker.chunks.values():
            if other.first_of == chunk.first_of:
                other.first_of = None
        chunk.first_of = None

    def chunk_resent(self, worker_id: int, chunk_id: int) -> Chunk | None:
        """A chunk is to be sent again, as it is now: its worker has claimed nothing of it yet."""
        chunk = self.chunk(worker_id, chunk_id)
        if chunk is not None:
            chunk.awaits_cut = False
        return chunk

    def _close(self, worker_id: int, worker: Worker, chunk: Chunk, now: float) -> list[Action]:
        """A worker is done with a chunk."""
        del worker.chunks[chunk.chunk_id]
        for other in worker.chunks.values():
            other.given_at = other.progress_at = now  # it begins
        if worker.unloaded and chunk.needs & worker.unloaded:
            self._not_loaded(worker, chunk.needs & worker.unloaded)
        if chunk.job_id is None:
            queue = self._queue_of(chunk)
            for task_id in chunk.items:
                self._forget_task(queue, task_id)
        self._place(worker_id, worker, now)
        actions: list[Action] = []
        is_free = worker.state is State.READY and not worker.chunks
        if is_free and worker_id not in self._idle and self._should_leave(worker):
            actions.append(self._retire(worker_id, worker))
        return actions + self._act(now)

    def worker_died(
        self, worker_id: int, running: tuple[int, int, int] | None, now: float, *, is_oom: bool = False
    ) -> list[Action]:
        """A worker's process has ended.

        Parameters
        ----------
        worker_id
            The worker.
        running
            (chunk id, offset of the first item, number of items) that it was running; None when it ran nothing.
        now
            Time in seconds.
        is_oom
            The kernel has killed it for want of memory.
        """
        worker = self._workers.pop(worker_id, None)
        if worker is None:
            return []
        victim = self._victims.pop(worker_id, None)
        if victim is None and is_oom:
            limit_nbytes = self.memory.room.limit_nbytes if self.memory.room is not None else 0
            victim = _Victim(0, 0, self.memory.used_nbytes(worker_id), limit_nbytes, False, now)
        elif victim is not None and running is not None and running[:2] != victim[:2]:
            victim = None  # it has died of something else
        if victim is not None and running is not None:
            self._note_victim(worker, worker_id, running[0])
        self.memory.forget_worker(worker_id)
        self._leaks.forget_worker(worker_id)
        self._unfile(worker_id)
        self._limits.forget_worker(worker_id)
        actions: list[Action] = []
        self._n_starting -= worker.state is State.STARTING
        if worker.state is State.SPARE:
            self._spare = None
        if not worker.has_answered and worker.state is not State.RETIRING:
            self._failed_starts += 1
            if self._failed_starts >= _FAILED_STARTS:
                if not self.n_ready and not self._n_starting:
                    self._is_over = True
                    return [BreakPool()]
                # Those that run or start carry on for a while: descriptors or memory may be short just now.
                doublings = min(self._failed_starts - _FAILED_STARTS, _START_AGAIN_DOUBLINGS)
                self._start_again_at = now + _START_AGAIN_S * 2**doublings
        elif worker.state is State.RETIRING:
            self._n_retiring -= 1
        for chunk in reversed(worker.chunks.values()):
            actions.extend(self._recover(chunk, running, worker_id, victim))
        n_before = self._n_starting
        actions += self._act(now)
        if worker.state is State.READY and self._n_starting == n_before and not self._stopping:
            actions += self._start(1, now)  # whoever comes next should not have to wait for it
        return actions

    def _recover(
        self, chunk: Chunk, running: tuple[int, int, int] | None, worker_id: int, victim: _Victim | None
    ) -> list[Action]:
        """Sort a lost chunk's items into those that fail and those that others may run."""
        queue = self._queue_of(chunk)
        if chunk.job_id is None:
            for item in chunk.items[: chunk.n_done]:
                self._forget_task(queue, item)
        if self._is_over or (chunk.job_id is not None and chunk.job_id not in self._jobs):
            return []
        first = last = chunk.n_done
        if running is not None and running[0] == chunk.chunk_id:
            first, last = max(running[1], chunk.n_done), max(running[1] + running[2], chunk.n_done)
        failed, late, too_large, again = [], [], [], list(chunk.items[chunk.n_done : first])
        late_items = queue.late if chunk.job_id is None else self._jobs[chunk.job_id].late
        for item in chunk.items[first:last]:
            attempt = self._attempts.get((chunk.job_id, item), 0)
            if item in late_items:
                late.append(item)
            elif victim is not None:
                if victim.is_alone or (chunk.job_id, item) in self._careful:
                    too_large.append(item)
                else:
                    self._careful.add((chunk.job_id, item))
                    again.append(item)
            elif attempt < self._retries_of(chunk.job_id, item):
                self._attempts[chunk.job_id, item] = attempt + 1
                again.append(item)
            else:
                failed.append(item)
        again.extend(chunk.items[last:])
        actions: list[Action] = [FailItems(chunk.job_id, tuple(failed), worker_id)] if failed else []
        if too_large and victim is not None:
            excess = (victim.used_nbytes, victim.limit_nbytes)
            actions.append(FailItems(chunk.job_id, tuple(too_large), worker_id, excess=excess))
            failed += too_large
        if chunk.job_id is None:
            self._put_back(queue, again)
            for item in (*failed, *late):  # the latter were told when their time was over
                self._forget_task(queue, item)
        else:
            job = self._jobs[chunk.job_id]
            job.put_back(again)
            self._settle(job, len(failed) + len(late))
            if late:
                actions.append(FailItems(chunk.job_id, tuple(late), worker_id, is_late=True))
        return actions

    def _retries_of(self, job_id: int | None, item: int) -> int:
        terms = self._queue_with(item).terms.get(item) if job_id is None else self._jobs[job_id].terms
        return self._retries if terms is None or terms.retries is None else terms.retries

    # ------------------------------------------------------------------ time is over

    def timed_workers(self) -> list[int]:
        """Workers that have items which may not take for ever: `look` wants to know what they run."""
        return self._limits.timed_workers()

    def look(self, running: dict[int, tuple[int, int, int] | None], now: float) -> list[Action]:
        """What the workers of `timed_workers` run: (chunk id, offset, number of items), or None."""
        return list(self._limits.look(running, self._jobs, now))

    def next_limit(self) -> float | None:
        """When `tick` or `look` must be called for the sake of time limits; None when there are none."""
        return self._limits.next()

    def _end_late(self, now: float) -> list[Action]:
        """Fail tasks whose time is over; have workers ended that run them, or come to them."""
        actions: list[Action] = []
        for task_id in self._limits.deadlines.take_due(now):
            actions += self._expire(task_id)
        actions += self._limits.end_late(now)
        return actions

    def _expire(self, task_id: int) -> list[Action]:
        queue = self._queue_with(task_id)
        if queue.drop(task_id):
            self._forget_task(queue, task_id)
            return [ExpireTask(task_id, None)]
        for worker_id, worker in self._workers.items():
            for chunk in worker.chunks.values():
                if chunk.job_id is not None or task_id not in chunk.items:
                    continue
                offset = chunk.items.index(task_id)
                if offset < chunk.n_done:
                    return []  # it was in time
                queue.late.add(task_id)
                self._limits.late[task_id] = (worker_id, chunk.chunk_id, offset)
                actions: list[Action] = [ExpireTask(task_id, worker_id)]
                if chunk.slot is not None and not chunk.is_exhausted:  # perhaps it has not begun
                    actions.append(self._take_back(worker_id, worker, chunk))
                return actions
        return []

    # ------------------------------------------------------------------ memory

    def memory_told(
        self, worker_id: int, chunk_id: int, offset: int, growth: int, used: int, now: float
    ) -> list[Action]:
        """A worker has measured by how many bytes it grew while it ran items up to this one, and what it uses now."""
        chunk = self.chunk(worker_id, chunk_id)
        if chunk is not None and offset < len(chunk.items):
            self.memory.told(worker_id, self._key_of(chunk, offset), growth, used, now)
        worker = self._workers.get(worker_id)
        if worker is None or worker.state is not State.READY or worker.is_leaving:
            return []
        held = self.held_by(worker_id)
        n_run = worker.n_given - sum([chunk.n_left for chunk in worker.chunks.values()])
        worker.leaked_nbytes = self._leaks.told(
            worker_id,
            n_run,
            used - sum(held.values()),
            age_s=now - worker.asked_at,
            replace_s=self._start_s() + (self.load_s(held) or 0.0),
            part_nbytes=(self.memory.room.limit_nbytes if self.memory.room is not None else 0) / self.max_workers,
        )
        if not worker.leaked_nbytes:
            return []
        worker.is_leaving = True
        self._place(worker_id, worker, now)
        is_done = not worker.chunks and not worker.ahead
        return [*([self._retire(worker_id, worker)] if is_done else []), *self._act(now)]

    def look_at_memory(
        self, room: Room, uses: dict[int, Sample], running: dict[int, tuple[int, int, int] | None], now: float
    ) -> list[Action]:
        """What there is, what workers use, and what they run: (chunk id, offset, number of items), or None."""
        resting = [worker_id for worker_id, worker in self._workers.items() if not worker.chunks]
        self.memory.measured(room, uses, resting, self.max_workers, now)
        busy = self._running()
        n_more = self.memory.n_more_workers(busy, self._n_starting)
        lacks_memory = self._is_held or (n_more is not None and n_more < 0)
        live = self._n_starting + self.n_ready
        self._memory_cap = None if n_more is None else max(live + max(n_more, -len(self._idle) - self._n_starting), 1)
        actions: list[Action] = []
        if self._spare is not None and lacks_memory:
            actions.append(self._kill(self._spare, self._workers[self._spare]))
        if self._is_held:
            actions += self._make_room()
        self._is_held = False  # what still has to wait will say so
        self._victims = {i: victim for i, victim in self._victims.items() if now - victim.since < _VICTIM_S}
        excess = self.memory.excess(busy, self._idle.keys()) if not self._victims else None
        if excess is not None:
            worker_id, worker, mark = excess.worker_id, self._workers[excess.worker_id], running.get(excess.worker_id)
            if excess.how == "idle":
                actions.append(self._kill(worker_id, worker))
            elif mark is not None and mark[2]:
                is_alone = excess.how == "alone"
                self._victims[worker_id] = _Victim(*mark[:2], excess.used_nbytes, excess.limit_nbytes, is_alone, now)
                actions.append(KillRunning(worker_id, mark[0], mark[1]))
        return actions + self._act(now)

    def next_memory_look_s(self, n_busy: int) -> float:
        """Seconds from one look at memory to the next, while so many workers have work."""
        return self.memory.next_look_s(n_busy, is_held=self._is_held)

    def _note_victim(self, worker: Worker, worker_id: int, chunk_id: int) -> None:
        """What has let a worker die for want of memory needs at least what it had."""
        chunk = worker.chunks.get(chunk_id)
        if chunk is not None and chunk.n_left:
            self.memory.needed(self._key_of(chunk, chunk.n_done), self.memory.grown_nbytes(worker_id))

    def _make_room(self) -> list[Action]:
        """Let a worker leave that has kept much, where something waits for memory."""
        worker_id = self.memory.fattest(self._idle)
        if worker_id is not None:
            return [self._retire(worker_id, self._workers[worker_id])]
        if not any(worker.is_leaving for worker in self._workers.values()):
            worker_id = self.memory.fattest(i for i, worker in self._workers.items() if worker.state is State.READY)
            if worker_id is not None:
                self._workers[worker_id].is_leaving = True
        return []

    def _running(self, but: int | None = None) -> list[Running]:
        found = []
        for worker_id, worker in self._workers.items():
            chunk = _at_work(worker) if worker_id != but else None
            if chunk is not None:
                found.append(Running(worker_id, self._key_of(chunk, chunk.n_done), chunk.progress_at))
        return found

    def _key_of(self, chunk: Chunk, offset: int) -> Hashable:
        """The function of an item of a chunk."""
        if chunk.job_id is not None:
            job = self._jobs.get(chunk.job_id)
            return job.key if job is not None else None
        return self._queue_of(chunk).key_of(chunk.items[offset])

    def _head(self, source: _Source) -> tuple[Hashable, int | None]:
        """The function of what comes next from a source, and the item if it is one that came back."""
        if isinstance(source, int):
            job = self._jobs[source]
            return job.key, job.returned[0] if job.returned else None
        task_id, key = (self._lanes[source] if source else self._queue).head
        return key, task_id

    def _admits(self, source: _Source, worker_id: int, now: float) -> bool:
        """Whether memory allows a worker the next chunk of a source."""
        key, item = self._head(source)
        if self._workers[worker_id].chunks:
            return self.memory.is_small(key)  # behind another one: it is as well off in front
        others = self._running(but=worker_id)
        if self._careful:
            is_careful = self._is_careful(source, item)
            if is_careful or any(self._runs_careful(each.worker_id) for each in others):
                keys = [each.key for each in others] if is_careful else [key]
                return all(self.memory.is_small(key) for key in keys)
        return self.memory.admits(key, worker_id, others, now)

    def _is_careful(self, source: _Source, item: int | None) -> bool:
        return item is not None and (source if isinstance(source, int) else None, item) in self._careful

    def _runs_careful(self, worker_id: int) -> bool:
        chunk = _at_work(self._workers[worker_id])
        return chunk is not None and (chunk.job_id, chunk.items[chunk.n_done]) in self._careful

    # ------------------------------------------------------------------ the pool itself

    def tick(self, now: float) -> list[Action]:
        """Time has passed: tasks may be late, idle workers may leave, what waits or is stuck may get another worker."""
        self._ticked_at = now
        actions = self._end_late(now) if self._limits.deadlines or self._limits.late else []
        if self._idle_timeout_s is not None:
            for worker_id in list(self._idle):  # the longest idle first
                worker = self._workers[worker_id]
                if self._n_starting + self.n_ready <= self._least:
                    break
                if now < worker.idle_since + self._idle_timeout_s:
                    break  # and so it is for those behind it
                if now >= self._leaves_at(worker):
                    actions.append(self._retire(worker_id, worker))
        if self._wanted_at is not None and now >= self._wanted_at[1]:
            n_workers, self._wanted_at = self._wanted_at[0], None
            actions += self.want_workers(n_workers, now)
        actions += self._act(now)
        if not self._idle and not self._n_starting and any(until <= now for until in self._overdue_times()):
            actions += self._start(1, now)  # what is stuck behind something else gets a worker of its own
        return actions

    def next_tick(self, now: float) -> float | None:
        """Seconds until `tick` should be called; None when no time matters."""
        times = []
        n_ready = self.n_ready
        if self._idle_timeout_s is not None and self._idle and n_ready > self._least:
            times.append(min(map(self._leaves_at, self._oldest_idle())) - now)
        may_start = not self._n_starting and n_ready < self.worker_limit
        if self._failed_starts >= _FAILED_STARTS and may_start and n_ready < self._least:
            times.append(self._start_again_at - now)
        limit = self._limits.next()
        if limit is not None:
            times.append(limit - now)
        if self._wanted_at is not None:
            times.append(self._wanted_at[1] - now)
        if self._due and self._spare is None and not self._idle:
            # Where the time had come at a tick, something else is against it.
            times.extend(at - now for at in self._ahead_times(now).values() if at > self._ticked_at)
        if self._queue.levels and may_start:
            at = max(self._queue.since + self._start_s(), self._start_again_at)
            if at > self._ticked_at:  # else there is no memory for one more
                times.append(at - now)
        if self._resources:
            times.extend(self._times_of_needs(now, may_start))
        if self._idle and self._jobs:
            times.extend(self._times_of_loading(now))
        if self._laden and (self._idle or may_start):
            # Those that were past their time at a tick were seen to: nothing more can be done for them.
            times.extend(until - now for until in self._overdue_times() if until > self._ticked_at)
        return max(min(times), 0.0) if times else None

    def resize(self, max_workers: int, now: float) -> list[Action]:
        """The upper bound on workers has changed; surplus workers leave as they become idle."""
        self.max_workers = max_workers
        return self._act(now)

    def want_workers(self, n_workers: int, now: float) -> list[Action]:
        """Start workers ahead of work, up to `n_workers` in all."""
        return self._start(n_workers - self._n_starting - self.n_ready, now)

    def want_workers_at(self, n_workers: int, at: float) -> None:
        """The same at a time in seconds, unless a map or the end comes before."""
        if not self._stopping:  # the last map of a pool that was shut down may end now
            self._wanted_at = n_workers, at

    def shutdown(self, now: float) -> list[Action]:
        """No more work will come; workers leave when all that came is done."""
        self._stopping = True
        self._wanted_at = None
        return self._act(now)

    def give_up(self) -> list[Action]:
        """The pool is broken or was ended: all work is forgotten, every worker ends, and none starts any more."""
        self._stopping = self._is_over = True
        self._wanted_at = None
        for queue in self._queues():
            queue.clear()
        self._lanes.clear()
        self._jobs.clear()
        self._attempts.clear()
        self._careful.clear()
        self._limits.clear()
        self._lane_of.clear()
        return [self._kill(worker_id, worker) for worker_id, worker in self._workers.items()]

    def withdraw(self, task_id: int, *, is_timed: bool) -> bool:
        """Forget a submitted task that waits (`is_timed`: has a time limit); False if it does not."""
        if is_timed and task_id not in self._limits.deadlines:
            return False  # its time is over: it has been forgotten
        queue = self._queue_with(task_id)
        if not queue.drop(task_id):
            return False
        self._forget_task(queue, task_id)
        return True

    def end_tasks(self, task_ids: Sequence[int], now: float) -> list[Action]:
        """Nobody wants these submitted tasks any more, also if a worker runs them: as if their time were over.

        There is an `ExpireTask` for each of them that was not settled.
        """
        actions: list[Action] = []
        for task_id in task_ids:
            queue = self._queue_with(task_id)
            if task_id in queue.late or (queue.key_of(task_id) is None and task_id not in queue.waiting()):
                continue
            self._limits.deadlines.discard(task_id)
            actions += self._expire(task_id)
        return [*actions, *self._limits.end_late(now)]

    def drop_queue(self) -> list[int]:
        """Forget the submitted tasks that wait, and return their ids."""
        dropped: list[int] = []
        for queue in self._queues():
            for task_id in queue.drop_waiting():
                self._forget_task(queue, task_id)
                dropped.append(task_id)
        return dropped

    def job_ids(self) -> tuple[int, ...]:
        """Maps that are not settled."""
        return tuple(self._jobs)

    def has_map(self, job_id: int) -> bool:
        """Whether a map is known: not all of it is settled, or more may come."""
        return job_id in self._jobs

    def held_jobs(self) -> tuple[int, ...]:
        """Maps whose items no worker may take yet."""
        return tuple(job_id for job_id, job in self._jobs.items() if job.held)

    def set_item_nbytes(self, job_id: int, nbytes: float) -> None:
        """How large one item of a map is, in bytes; chunks are kept small enough for it."""
        job = self._jobs.get(job_id)
        if job is not None:
            job.nbytes = nbytes

    def has_worker(self, worker_id: int) -> bool:
        """Whether a worker exists, or is about to."""
        return worker_id in self._workers

    def worker_ids(self) -> tuple[int, ...]:
        """Workers that exist."""
        return tuple(self._workers)

    def worker_views(self) -> list[WorkerView]:
        """What all workers look like."""
        return [self._view(worker_id, worker) for worker_id, worker in self._workers.items()]

    def _view(self, worker_id: int, worker: Worker) -> WorkerView:
        chunk = _at_work(worker)
        item, expected_s = None, None
        since = worker.idle_since if worker.has_answered else worker.asked_at
        if chunk is not None:
            item, since = (chunk.job_id, chunk.items[chunk.n_done]), chunk.progress_at
            key = self._key_of(chunk, chunk.n_done)
            expected_s = None if key is None else self._cost_model.mean_s(key)
        elif not worker.has_answered:
            expected_s = self._start_s()
        because = None
        if worker.leaked_nbytes:
            because = f"{recycling.GROWTH} ({worker.leaked_nbytes >> 20} MiB)"
        elif self._max_tasks_per_child is not None and worker.n_given >= self._max_tasks_per_child:
            because = recycling.TASKS
        return WorkerView(
            worker_id=worker_id,
            state=self._told_state(worker),
            n_given=worker.n_given,
            held=self.held_by(worker_id),
            since=since,
            item=item,
            expected_s=expected_s,
            leaves_because=because,
        )

    def _told_state(self, worker: Worker) -> str:
        if worker.state is State.STARTING:
            return "starting"
        if worker.state is State.RETIRING:
            return "leaving"
        if worker.state is State.SPARE:
            return "spare" if worker.has_answered else "starting"
        if worker.chunks:
            return "busy"
        return "loading" if worker.ahead else "idle"

    # ------------------------------------------------------------------ resources

    def add_resource(self, resource_id: int) -> None:
        """Tasks may need a resource."""
        self._resources.setdefault(resource_id, Resource())

    def has_resource(self, resource_id: int) -> bool:
        """Whether a resource is known."""
        return resource_id in self._resources

    def load_s(self, needs: Iterable[int]) -> float | None:
        """Seconds that a worker takes to build these resources; None if one was never built."""
        return resources.load_s(self._resources, needs)

    def n_holders(self, needs: Needs) -> int:
        """Ready workers that have all these resources, or will."""
        return sum(needs <= w.held.keys() for w in self._workers.values() if w.state is State.READY)

    def held_by(self, worker_id: int) -> dict[int, int]:
        """Bytes of the resources that a worker has."""
        worker = self._workers.get(worker_id)
        if worker is None:
            return {}
        return {i: nbytes for i, nbytes in worker.held.items() if i not in worker.unloaded}

    def set_needs(self, job_id: int, chunk: Chunk, needs: Needs) -> None:
        """Items of a map were found to need resources when this chunk was encoded."""
        job, worker = self._jobs.get(job_id), self._workers.get(chunk.worker_id)
        if job is None or worker is None:
            return
        job.needs |= needs
        chunk.needs |= needs
        for resource_id in needs - worker.held.keys():
            self._expect(worker, resource_id)
            chunk.loads = True

    def load(self, resource_id: int, now: float) -> list[Action]:
        """Build a resource in all ready workers that lack it, and in each that starts later."""
        self._resources[resource_id].is_warm = True
        actions: list[Action] = []
        for worker_id, worker in self._workers.items():
            if worker.state is State.READY:
                actions += self._load_ahead(worker_id, worker, [resource_id])
                self._place(worker_id, worker, now)
        return actions

    def resource_loaded(self, worker_id: int, resource_id: int, load_s: float, nbytes: int, now: float) -> list[Action]:
        """A worker has built a resource."""
        worker = self._workers.get(worker_id)
        resource = self._resources.get(resource_id)
        if resource is not None:
            resource.observe(load_s, nbytes)
        if worker is None:
            return []
        worker.held.pop(resource_id, None)
        worker.held[resource_id] = nbytes
        worker.unloaded.discard(resource_id)
        for chunk in worker.chunks.values():
            chunk.loads = bool(chunk.needs & worker.unloaded)
        if worker.chunks:
            first = next(iter(worker.chunks.values()))
            first.given_at = first.progress_at = now  # it begins only now
        if resource is None:  # closed in between
            del worker.held[resource_id]
            return [CloseResources(worker_id, (resource_id,))]
        return self._evict(worker_id, worker, {resource_id}, 0)

    def load_done(self, worker_id: int, resource_id: int, is_loaded: bool, now: float) -> list[Action]:
        """A worker has built a resource ahead of tasks, or could not."""
        worker = self._workers.get(worker_id)
        if worker is None or resource_id not in worker.ahead:
            return []
        worker.ahead.discard(resource_id)
        if not is_loaded and resource_id in worker.unloaded:
            self._not_loaded(worker, {resource_id})
        self._place(worker_id, worker, now)
        actions: list[Action] = []
        if worker.state is State.READY and not worker.chunks and not worker.ahead and self._should_leave(worker):
            actions.append(self._retire(worker_id, worker))
        return actions + self._act(now)

    def close_resource(self, resource_id: int, now: float) -> list[Action]:
        """Nobody will name a resource any more: it goes when the tasks that have come need it no more."""
        resource = self._resources.get(resource_id)
        if resource is None:
            return []
        resource.is_closing, resource.is_warm = True, False
        return self._act(now)

    def n_loaded(self, needs: Needs) -> int:
        """Ready workers that have built all these resources and may get tasks."""
        return sum(
            needs <= worker.held.keys() and not needs & worker.unloaded and not worker.ahead
            for worker in self._workers.values()
            if worker.state is State.READY
        )

    def _load_ahead(self, worker_id: int, worker: Worker, resource_ids: Sequence[int]) -> list[Action]:
        lacking = [i for i in resource_ids if i not in worker.held]
        if not lacking:
            return []
        actions = self._evict(worker_id, worker, set(resource_ids), self._nbytes(lacking))
        for resource_id in lacking:
            self._expect(worker, resource_id)
        worker.ahead.update(lacking)
        return [*actions, LoadResources(worker_id, tuple(lacking))]

    def _expect(self, worker: Worker, resource_id: int) -> None:
        worker.held[resource_id] = self._nbytes((resource_id,))
        worker.unloaded.add(resource_id)

    def _nbytes(self, resource_ids: Iterable[int]) -> int:
        known = [self._resources[i] for i in resource_ids if i in self._resources]
        # One that was never built may be as large as any.
        largest = max([each.nbytes for each in self._resources.values()], default=0)
        return sum([each.nbytes if each.load_s is not None else largest for each in known])

    def _not_loaded(self, worker: Worker, resource_ids: Iterable[int]) -> None:
        """A worker has not built what it was expected to."""
        for resource_id in list(resource_ids):
            if resource_id not in worker.ahead and not any(resource_id in c.needs for c in worker.chunks.values()):
                worker.unloaded.discard(resource_id)
                worker.held.pop(resource_id, None)

    def _use(self, worker_id: int, worker: Worker, chunk: Chunk) -> list[Action]:
        """A chunk that needs resources goes to a worker; returns what must be done before."""
        lacking = chunk.needs - worker.held.keys()
        chunk.loads = bool(lacking or chunk.needs & worker.unloaded)
        for resource_id in chunk.needs & worker.held.keys():  # used last
            worker.held[resource_id] = worker.held.pop(resource_id)
        actions: list[Action] = []
        if lacking:
            actions = self._evict(worker_id, worker, chunk.needs, self._nbytes(lacking))
            for resource_id in lacking:
                self._expect(worker, resource_id)
        return actions

    def _evict(self, worker_id: int, worker: Worker, needed: Iterable[int], nbytes: int) -> list[Action]:
        """Let a worker close what it has no room for any more."""
        stay = {*needed, *worker.ahead, *(i for chunk in worker.chunks.values() for i in chunk.needs)}
        gone = resources.evictions(worker.held, stay, nbytes, self.resource_budget_nbytes)
        for resource_id in gone:
            del worker.held[resource_id]
            worker.unloaded.discard(resource_id)
        return [CloseResources(worker_id, tuple(gone))] if gone else []

    def _close_unneeded(self) -> Iterator[Action]:
        """Close resources that nobody can name, as soon as no task that has come needs them."""
        closing = {i for i, resource in self._resources.items() if resource.is_closing}
        if not closing:
            return
        needed = {i for needs, lane in self._lanes.items() if lane.levels for i in needs}
        needed.update(i for job in self._jobs.values() for i in job.needs)
        for worker in self._workers.values():
            needed.update(i for chunk in worker.chunks.values() for i in chunk.needs)
        closing -= needed
        for worker_id, worker in self._workers.items():
            gone = tuple([i for i in worker.held if i in closing])
            for resource_id in gone:
                del worker.held[resource_id]
                worker.unloaded.discard(resource_id)
            if gone and worker.state is State.READY:
                yield CloseResources(worker_id, gone)
        for resource_id in closing:
            del self._resources[resource_id]

    def _leaves_at(self, worker: Worker) -> float:
        """When an idle worker leaves, in seconds."""
        assert self._idle_timeout_s is not None
        limit_s = self._idle_timeout_s
        if worker.held:
            loading_s = self.load_s([i for i in worker.held if i in self._resources]) or 0.0
            limit_s = resources.idle_limit_s(limit_s, self._start_s(), loading_s)
        return worker.idle_since + limit_s

    def _oldest_idle(self) -> Iterator[Worker]:
        """The idle worker that leaves first, among a few that may."""
        for worker_id in self._idle:
            worker = self._workers[worker_id]
            yield worker
            if not worker.held:
                return

    def _times_of_needs(self, now: float, may_start: bool) -> Iterator[float]:
        """Seconds until those that wait for a worker with their resources should have one without, or another one.

        Those whose time had come at a tick wait for something else, such as memory.
        """
        for needs, lane in self._lanes.items():
            if lane.levels:
                loading_s = self.load_s(needs) or 0.0
                if self._idle:
                    if lane.head_since + loading_s > self._ticked_at:
                        yield lane.head_since + loading_s - now
                elif may_start:
                    at = max(lane.since + self._start_s() + loading_s, self._start_again_at)
                    if at > self._ticked_at:
                        yield at - now
        if self._idle:
            for job in self._jobs.values():
                if job.needs and job.n_waiting and not job.held:
                    at = job.head_since + (self.load_s(job.needs) or 0.0)
                    if at > self._ticked_at:
                        yield at - now

    def _times_of_loading(self, now: float) -> Iterator[float]:
        """Seconds until an idle worker loads the function of a map, though others have it (`_may_load`)."""
        for job in self._jobs.values():
            if job.n_waiting and not (job.held or job.needs or job.is_trial or self._is_light(job)):
                at = job.head_since + (self._cost_model.load_s(job.key) or 0.0)
                if at > self._ticked_at:
                    yield at - now

    # ------------------------------------------------------------------ inside

    def _act(self, now: float) -> list[Action]:
        """Give out what may be given out, then see whether the number of workers is right."""
        actions: list[Action] = []
        if self._spare is not None:
            actions.extend(self._promote(now))
        live = self._n_starting + self.n_ready
        if self._resources:
            actions.extend(self._close_unneeded())
        is_calm = not self._queue.levels and len(self._turn) == 1 and not self._stopping and not self._laden
        if is_calm and self._least <= live <= self.worker_limit:
            if self._due:
                actions.extend(self._start_ahead(now))
            return actions  # nothing waits and nobody is too many
        self._assign(actions, now)
        if self._stopping and not self._has_tasks and not self._jobs:
            for worker_id, worker in list(self._workers.items()):
                is_new = not worker.has_run and not any(chunk.n_left for chunk in worker.chunks.values())
                has_loads = worker.chunks or worker.ahead
                is_idle = worker.state is State.READY and not worker.chunks
                if worker.state is State.RETIRING:
                    continue
                if not worker.has_answered or (worker.state is State.READY and has_loads and is_new):
                    actions.append(self._kill(worker_id, worker))  # it still imports what nobody wants of it any more
                elif is_idle or worker.state is State.SPARE:
                    actions.append(self._retire(worker_id, worker))
            return actions
        surplus = self._n_starting + self.n_ready - self.worker_limit
        if surplus > 0 and self._spare is not None:
            actions.append(self._kill(self._spare, self._workers[self._spare]))
        if surplus > 0 and self._n_starting:  # those that have loaded nothing yet go first
            starting = [pair for pair in self._workers.items() if pair[1].state is State.STARTING]
            actions.extend(self._kill(*pair) for pair in starting[-surplus:])
            surplus = self._n_starting + self.n_ready - self.worker_limit
        while surplus > 0 and self._idle:
            worker_id = next(iter(self._idle))
            actions.append(self._retire(worker_id, self._workers[worker_id]))
            surplus -= 1
        if self._idle and self._laden:
            actions.extend(self._rebalance(now, most=len(self._idle)))
        wanted = max(self._demand(now), self._least - self._n_starting - self.n_ready)
        if wanted > 0:
            actions.extend(self._start(wanted, now))
        if self._due:
            actions.extend(self._start_ahead(now))
        return actions

    def _start_ahead(self, now: float) -> list[Action]:
        """Start the worker that takes the place of one which leaves soon."""
        if self._spare is not None or self._idle or self._failed_starts or self._is_over or self._is_held:
            return []
        if self._stopping and not self._has_tasks and not any(job.n_waiting for job in self._jobs.values()):
            return []
        n_more = self.memory.n_more_workers(self._running(), self._n_starting)
        if n_more is not None and n_more < 1:
            return []  # the old one leaves first
        due = next((worker_id for worker_id, at in self._ahead_times(now).items() if at <= now), None)
        if due is None:
            return []
        has_place = self._n_starting + self.n_ready < self.worker_limit
        if not has_place and len(self._workers) > self.worker_limit:
            return []  # one that leaves is still there
        self._workers[due].has_successor = True
        if has_place:
            return self._start(1, now)
        self._ids += 1
        self._workers[self._ids] = Worker(now)
        self._workers[self._ids].state = State.SPARE
        self._spare = self._ids
        return [StartWorker(self._ids)]

    def _ahead_times(self, now: float) -> dict[int, float]:
        """When the successors start of those that leave soon and have none yet, in seconds."""
        times = {}
        for worker_id in self._due:
            worker = self._workers[worker_id]
            if not worker.has_successor:
                began = next(iter(worker.chunks.values())).progress_at
                times[worker_id] = recycling.starts_ahead_at(began, self._rest_s(worker, now), self._start_s())
        return times

    def _promote(self, now: float) -> list[Action]:
        """Let the worker that waits for a place have it, if there is one."""
        if self._spare is None or self._n_starting + self.n_ready >= self.worker_limit:
            return []
        worker_id, self._spare = self._spare, None
        worker = self._workers[worker_id]
        worker.state = State.STARTING
        self._n_starting += 1
        return self._welcome(worker_id, worker, now) if worker.has_answered else []

    def _assign(self, actions: list[Action], now: float) -> None:
        refused: set[_Source] = set()
        while self._idle or self._partial:
            found = self._choose(now, refused)
            if found is None:
                return
            worker_id, source = found
            worker = self._workers[worker_id]
            is_calm = not worker.chunks
            if (self.memory.is_tight or self._careful) and not self._admits(source, worker_id, now):
                refused.add(source)
                self._is_held = True
                continue
            chunk = self._cut(source, worker_id, worker, is_calm, now)
            if chunk is None:
                if not self._resources:
                    return
                refused.add(source)  # others may go to other workers
                continue
            chunk.given_at = chunk.progress_at = now
            if chunk.needs:
                actions.extend(self._use(worker_id, worker, chunk))
            chunk.is_whole = isinstance(source, int) and self._jobs[source].chunksize is not None
            key = self._key_of(chunk, 0)
            if key not in worker.known:
                chunk.first_of = key
            is_loading = chunk.first_of is not None and isinstance(source, int)
            if not is_calm or ((len(chunk.items) > 1 or is_loading) and not chunk.is_whole):
                used = {other.slot for other in worker.chunks.values()}
                chunk.slot = next(slot for slot in range(_DEPTH) if slot not in used)
            worker.chunks[chunk.chunk_id] = chunk
            worker.n_given += len(chunk.items)
            self._place(worker_id, worker, now)
            actions.append(SendChunk(worker_id, chunk))

    def _choose(self, now: float, refused: set[_Source]) -> tuple[int, _Source] | None:
        """A worker and the source of its next chunk; None if nothing is to be given out."""
        for source, needs in self._waiting_sources():
            if source in refused:
                continue
            job = self._jobs[source] if isinstance(source, int) else None
            worker_id = self._worker_with(source, needs, now) if needs else self._next_worker(job, now)
            if worker_id is not None:
                if self._turn[-1] != source:
                    self._turn.remove(source)
                    self._turn.append(source)
                return worker_id, source
            if not needs and not self._idle:
                return None
        return None

    def _waiting_sources(self) -> list[tuple[_Source, Needs]]:
        """Sources of which something waits, and what that needs: by priority, and then by whose turn it is."""
        if len(self._turn) == 1:
            return [(None, NOTHING)] if self._queue.levels else []
        found: list[tuple[int, _Source, Needs]] = []
        for source in tuple(self._turn):
            if isinstance(source, int):
                job = self._jobs.get(source)
                if job is None:
                    self._turn.remove(source)
                elif job.n_waiting:
                    found.append((job.terms.priority, source, job.needs))
                continue
            queue = self._lanes.get(source) if source is not None else self._queue
            if queue is None or (source is not None and queue.is_unused):
                self._lanes.pop(source or NOTHING, None)
                self._turn.remove(source)
            elif queue.levels:
                found.append((queue.priority, source, queue.needs))
        found.sort(key=lambda each: -each[0])  # stable: equals stay in turn
        return [(source, needs) for _, source, needs in found]

    def _next_worker(self, job: MapWork | None, now: float) -> int | None:
        """The worker that gets the next chunk, of a map if one is given; None if all have enough."""
        if self._idle:
            last = next(reversed(self._idle))
            if job is None or job.key in self._workers[last].known or self._is_light(job):
                return last
            for worker_id in reversed(self._idle):
                if job.key in self._workers[worker_id].known:
                    return worker_id
            if self._may_load(job, now):
                return last
        return self._next_partial(now, NOTHING)

    def _is_light(self, job: MapWork) -> bool:
        """Whether it does not matter that a worker must load the function of a map."""
        return not job.is_trial and (self._cost_model.load_s(job.key) or 0.0) < planner.LEAST_LOAD_S

    def _may_load(self, job: MapWork, now: float) -> bool:
        """Whether an idle worker should load the function of a map: that takes no time, or the map wants so many.

        Also if no item was given out for as long as it takes: those who have loaded it may be stuck.
        """
        if job.n_workers >= self.n_ready or self._is_light(job):
            return True
        if not job.is_trial and now - job.head_since >= (self._cost_model.load_s(job.key) or 0.0):
            return True
        n_at_it = 0
        for worker in self._workers.values():
            if worker.state is State.READY:
                has_some = any(chunk.job_id == job.job_id for chunk in worker.chunks.values())
                n_at_it += has_some or (job.key in worker.known and not worker.chunks)
        return n_at_it < job.n_workers

    def _has_taker(self, job: MapWork, now: float) -> bool:
        """Whether some idle worker would take items of a map."""
        if not self._idle or job.held:
            return False
        return any(job.key in self._workers[i].known for i in self._idle) or self._may_load(job, now)

    def _next_partial(self, now: float, needs: Needs) -> int | None:
        """A worker with these resources that has something, but ends soon."""
        for worker_id in list(self._partial):
            worker = self._workers[worker_id]
            if next(iter(worker.chunks.values())).is_overdue(now):
                del self._partial[worker_id]  # nobody knows when it ends
            elif needs <= worker.held.keys():
                return worker_id
        return None

    def _worker_with(self, source: _Source, needs: Needs, now: float) -> int | None:
        """The worker for a chunk that needs resources; None if it should wait for one that has them."""
        for worker_id in reversed(self._idle):
            if needs <= self._workers[worker_id].held.keys():
                return worker_id
        holder = self._next_partial(now, needs)
        if self._idle:
            least = min(reversed(self._idle), key=lambda i: len(needs - self._workers[i].held.keys()))
            if not needs & self._workers[least].held.keys():  # all are as good: one with few others
                least = min(reversed(self._idle), key=lambda i: len(self._workers[i].held))
            loading_s = self.load_s(needs - self._workers[least].held.keys())
            wait_s, head_since = self._wait_s(source, needs, now)
            if resources.pays_to_load(loading_s, wait_s, now - head_since + 1e-6):
                return least
        return holder

    def _wait_s(self, source: _Source, needs: Needs, now: float) -> tuple[float | None, float]:
        """How long those that wait will wait for a worker with their resources (None: nobody knows); and since when."""
        total_s, n_holders = 0.0, 0
        for worker in self._workers.values():
            if worker.state is State.READY and needs <= worker.held.keys() and not self._should_leave(worker):
                rest_s = self._rest_s(worker, now)
                if rest_s is not None:
                    total_s += rest_s
                    n_holders += 1
        if isinstance(source, int):
            job = self._jobs[source]
            mean_s = self._cost_model.mean_s(job.key)
            backlog_s, since = None if mean_s is None else mean_s * job.n_waiting, job.head_since
        else:
            lane = self._lanes[source or NOTHING]
            backlog_s, since = (
                lane.backlog_s(self._cost_model, self.load_s(needs) or 0.0, float("inf")),
                lane.head_since,
            )
        if not n_holders or backlog_s is None:
            return None, since
        return (total_s + backlog_s) / n_holders, since

    def _rest_s(self, worker: Worker, now: float) -> float | None:
        """Seconds until a worker has done what it has; None if nobody knows."""
        total_s = 0.0
        for chunk in worker.chunks.values():
            rest_s = chunk.rest_s
            if rest_s is None or chunk.is_overdue(now):
                return None
            total_s += rest_s
        if worker.unloaded:
            loading_s = self.load_s(worker.unloaded)
            if loading_s is None:
                return None
            begun = next(iter(worker.chunks.values())).given_at if worker.chunks else now
            total_s += max(loading_s - (now - begun), 0.0)
        return total_s

    def _cut(self, source: _Source, worker_id: int, worker: Worker, is_calm: bool, now: float) -> Chunk | None:
        """The next chunk of a source for a worker; None if it should not wait behind what the worker has."""
        most = None
        if self._max_tasks_per_child is not None:
            most = self._max_tasks_per_child - worker.n_given
        if self._careful and self._is_careful(source, self._head(source)[1]):
            most = 1
        items: Sequence[int]
        needs = NOTHING
        if not isinstance(source, int):
            if not is_calm and source is None and self._n_starting + self.n_ready < self.worker_limit:
                return None  # should what it has block, another worker may start at once
            queue = self._lanes[source] if source else self._queue
            needs = queue.needs
            items, expected_s = queue.cut(self._cost_model, self.n_holders(needs) if needs else self.n_ready, most)
            if not is_calm and expected_s is None:
                queue.put_back(items)
                return None
            queue.head_since = now
        else:
            n_workers = max(min(self.n_ready + self._n_starting, self.worker_limit), 1)
            items, expected_s = self._jobs[source].cut(self._cost_model, n_workers, most, is_calm=is_calm)
            if not items:
                return None
            self._jobs[source].head_since = now
            needs = self._jobs[source].needs
        self._ids += 1
        return Chunk(self._ids, source if isinstance(source, int) else None, items, worker_id, expected_s, needs)

    def _rebalance(self, now: float, *, most: int, job_id: int | None = None) -> Iterator[TakeBack]:
        """Take work back from those that have the most, at most so many chunks, of one map if it is given."""
        found: list[tuple[float, Chunk]] = []
        takers: dict[int, bool] = {}  # whether an idle worker would take items, by map
        for worker_id in self._laden:
            if len(found) >= max(_CANDIDATES, 4 * most):
                break
            worker = self._workers[worker_id]
            is_stuck = next(iter(worker.chunks.values())).is_overdue(now)
            for chunk, n_items in rest(worker):
                if job_id is not None and chunk.job_id != job_id:
                    continue
                job = self._jobs.get(chunk.job_id) if chunk.job_id is not None and job_id is None else None
                if job is not None:
                    if job.job_id not in takers:
                        # What waits was refused, and so would be what is taken back.
                        takers[job.job_id] = not job.n_waiting and self._has_taker(job, now)
                    if not takers[job.job_id]:
                        continue
                    is_only = n_items == len(chunk.items) == 1 and chunk.first_of is not None
                    if is_only and not any(job.key in self._workers[i].known for i in self._idle):
                        continue  # that would have to load the function, too
                if chunk.needs and not self._may_move(chunk, now):
                    continue
                if is_stuck or chunk.expected_s is None:
                    found.append((float("inf"), chunk))
                else:
                    rest_s = chunk.expected_s * n_items / len(chunk.items)
                    if rest_s >= _STEAL_ABOVE_S:  # by results, of which the latest may be on their way
                        found.append((rest_s - (now - chunk.progress_at), chunk))
        found.sort(key=lambda pair: -pair[0])
        for _, chunk in found[:most]:
            yield self._take_back(chunk.worker_id, self._workers[chunk.worker_id], chunk)

    def _withdraw(self, job_id: int) -> list[Action]:
        """Take back all that workers have not begun of a map."""
        found = [chunk for worker_id in self._laden for chunk, _ in rest(self._workers[worker_id])]
        mine = [chunk for chunk in found if chunk.job_id == job_id]
        return [self._take_back(chunk.worker_id, self._workers[chunk.worker_id], chunk) for chunk in mine]

    def _take_back(self, worker_id: int, worker: Worker, chunk: Chunk) -> TakeBack:
        chunk.is_exhausted = True
        if not rest(worker):
            self._laden.pop(worker_id, None)
        return TakeBack(worker_id, chunk)

    def _may_move(self, chunk: Chunk, now: float) -> bool:
        """Whether what is left of a chunk that needs resources is better off with an idle worker, or in its queue."""
        if any(chunk.needs <= self._workers[worker_id].held.keys() for worker_id in self._idle):
            return True
        waited_s = now - chunk.given_at
        if chunk.loads or waited_s < _MOVE_AFTER_S:
            return False
        return resources.pays_to_load(self.load_s(chunk.needs), chunk.rest_s, waited_s)

    def _overdue_times(self) -> Iterator[float]:
        """When those that have more than they are running should have come to it, in seconds."""
        for worker_id in self._laden:
            chunk = next(iter(self._workers[worker_id].chunks.values()))
            if chunk.loads:
                continue
            loading_s = 0.0
            if chunk.first_of is not None and chunk.job_id is not None:  # of a map, whose caller need not wait for it
                loading_s = max(3 * (self._cost_model.load_s(chunk.first_of) or 0.0), _LOADING_S)
            yield chunk.given_at + 3 * (chunk.expected_s or 0.0) + loading_s + OVERDUE_S + 1e-6

    def _place(self, worker_id: int, worker: Worker, now: float) -> None:
        """File a worker under idle, partial, laden and due, or none of them, after its chunks changed."""
        self._unfile(worker_id)
        if worker.state is not State.READY:
            return
        if not worker.chunks:
            worker.idle_since = now
        else:
            if rest(worker):
                self._laden[worker_id] = None
            if self._is_spent(worker):
                self._due[worker_id] = None
        if self._should_leave(worker) or worker.ahead:
            return
        if not worker.chunks:
            self._idle[worker_id] = None
        elif len(worker.chunks) < _DEPTH and self._ends_soon(worker):
            self._partial[worker_id] = None

    def _ends_soon(self, worker: Worker) -> bool:
        """Whether another chunk may wait behind the one that a worker runs."""
        return ends_soon(next(iter(worker.chunks.values())), self._cost_model.chunk_overhead_s)

    def _unfile(self, worker_id: int) -> None:
        self._idle.pop(worker_id, None)
        self._partial.pop(worker_id, None)
        self._laden.pop(worker_id, None)
        if self._due:
            self._due.pop(worker_id, None)

    def _should_leave(self, worker: Worker) -> bool:
        """Whether a worker gets no more work: it has had its share, or there are more workers than allowed."""
        return self._is_spent(worker) or self.n_ready > self.worker_limit

    def _is_spent(self, worker: Worker) -> bool:
        """Whether another worker should take its place."""
        return worker.is_leaving or (
            self._max_tasks_per_child is not None and worker.n_given >= self._max_tasks_per_child
        )

    def _retire(self, worker_id: int, worker: Worker) -> RetireWorker:
        self._end(worker_id, worker)
        return RetireWorker(worker_id)

    def _kill(self, worker_id: int, worker: Worker) -> KillWorker:
        self._end(worker_id, worker)
        return KillWorker(worker_id)

    def _end(self, worker_id: int, worker: Worker) -> None:
        self._n_starting -= worker.state is State.STARTING
        self._n_retiring += worker.state is not State.RETIRING
        if worker.state is State.SPARE:
            self._spare = None
        worker.state = State.RETIRING
        self._unfile(worker_id)

    def _demand(self, now: float) -> int:
        """Workers to start for what waits, beyond those that are starting."""
        if self._idle:
            return 0
        live = self._n_starting + self.n_ready
        for_maps = 0
        for source in self._turn:
            job = self._jobs.get(source) if isinstance(source, int) else None
            if job is not None and job.n_waiting:
                wanted = max(min(job.n_workers, job.n_waiting + self.n_ready), 1)
                for_maps += min(wanted, self.memory.at_once(job.key) or wanted)
        for_queues = sum([self._queue_demand(queue, now) for queue in self._queues() if queue.levels])
        return max(for_maps - live, for_queues - self._n_starting, 0)

    def _queue_demand(self, queue: TaskQueue, now: float) -> int:
        """Workers that the submitted tasks deserve: one each if unknown or long, else one a start time of work."""
        start_s = self._start_s()
        if queue.needs:
            start_s += self.load_s(queue.needs) or 0.0
        backlog_s = queue.backlog_s(self._cost_model, start_s, (self.worker_limit - self.n_ready) * start_s)
        enough = int(backlog_s / start_s + 1e-9)
        if not enough and (not self.n_ready or now - queue.since >= start_s):
            enough = 1
        enough = min(enough, len(queue))
        if not self.memory.is_tight:
            return enough
        at_once = self.memory.at_once(queue.head[1])
        return enough if at_once is None else max(min(enough, at_once - self.n_busy), 0 if self.n_ready else 1)

    def _start_s(self) -> float:
        return max(self._cost_model.worker_start_s, _LEAST_START_S)

    def _start(self, n_workers: int, now: float) -> list[Action]:
        actions: list[Action] = []
        room = self.worker_limit - self._n_starting - self.n_ready if not self._is_over else 0
        if self._failed_starts >= _FAILED_STARTS:
            if (self.n_ready or self._n_starting) and now < self._start_again_at:
                return actions
            room = min(room, 1 - self._n_starting)  # one tells as much as many
        for _ in range(min(n_workers, room)):
            self._ids += 1
            self._workers[self._ids] = Worker(now)
            self._n_starting += 1
            actions.append(StartWorker(self._ids))
        return actions

    def _settle(self, job: MapWork, n_items: int) -> None:
        job.n_settled += n_items
        if job.closed and job.n_settled >= job.n_items:
            del self._jobs[job.job_id]
            self._limits.timed.pop(job.job_id, None)
            self._forget_attempts(job.job_id)

    def _queue_of(self, chunk: Chunk) -> TaskQueue:
        """Where tasks of a chunk came from."""
        return self._lane(chunk.needs) if chunk.needs and chunk.job_id is None else self._queue

    def _lane(self, needs: Needs) -> TaskQueue:
        """The queue of tasks with these needs."""
        lane = self._lanes.get(needs)
        if lane is None:
            lane = self._lanes[needs] = TaskQueue(needs)
            self._turn.append(needs)
        return lane

    def _queue_with(self, task_id: int) -> TaskQueue:
        """Where a task waits, or has waited."""
        return self._lane_of.get(task_id, self._queue) if self._lane_of else self._queue

    def _put_back(self, queue: TaskQueue, task_ids: Sequence[int]) -> None:
        """Tasks that were with a worker wait again, but for those whose time is over."""
        if queue.late:
            late = [task_id for task_id in task_ids if task_id in queue.late]
            task_ids = [task_id for task_id in task_ids if task_id not in queue.late]
            for task_id in late:
                self._forget_task(queue, task_id)
        queue.put_back(task_ids)

    def _forget_task(self, queue: TaskQueue, task_id: int) -> None:
        if self._limits.deadlines:
            self._limits.deadlines.discard(task_id)
        if self._lane_of:
            self._lane_of.pop(task_id, None)
        queue.forget(task_id)
        if self._careful:
            self._careful.discard((None, task_id))
        if self._attempts:
            self._attempts.pop((None, task_id), None)

    def _forget_attempts(self, job_id: int) -> None:
        if self._careful:
            self._careful = {item for item in self._careful if item[0] != job_id}
        if self._attempts:
            for key in [key for key in self._attempts if key[0] == job_id]:
                del self._attempts[key]


def _at_work(worker: Worker) -> Chunk | None:
    """The chunk of which a worker runs an item; None if it has none, or the rest of all was taken back."""
    return next((chunk for chunk in worker.chunks.values() if chunk.n_left), None)
