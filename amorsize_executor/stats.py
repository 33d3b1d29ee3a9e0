"""What an executor has done and what it looks like now, in numbers, gathered when somebody asks."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol

from . import machine
from .counters import BOUNDS_S, Counters, Histogram, MapStats
from .decisions.plan import format_time

if TYPE_CHECKING:
    import threading

    from .decisions.scheduler import Scheduler
    from .health import HealthWatch
    from .residency import Residency
    from .workers.ledger import BlockLedger
    from .workers.pools import Pool


@dataclass(frozen=True)
class TimeSummary:
    """A distribution of times.

    Attributes
    ----------
    count
        How many times were taken.
    total_s
        Their sum, in seconds.
    bounds_s
        Upper bounds of the buckets, in seconds, ascending.
    counts
        Times in each bucket; the last one, which has no bound, holds those above all bounds.
    """

    count: int
    total_s: float
    bounds_s: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, histogram: Histogram) -> TimeSummary:
        """A snapshot of what was counted."""
        counts = tuple(histogram.counts)
        return cls(sum(counts), histogram.total_s, BOUNDS_S, counts)

    @property
    def mean_s(self) -> float:
        """Their mean in seconds; 0 when there are none."""
        return self.total_s / self.count if self.count else 0.0

    def quantile(self, q: float) -> float:
        """About the time that a share `q` of all is below, in seconds.

        Parameters
        ----------
        q
            From 0 to 1; 0.5 is the median.

        Returns
        -------
        float
            Interpolated within a bucket, as Prometheus does; the largest bound, if it is above that; 0 when there are
            no times.

        Raises
        ------
        ValueError
            If `q` is not between 0 and 1.

        Examples
        --------
        >>> TimeSummary(4, 7.0, (1.0, 2.0), (2, 2, 0)).quantile(0.75)
        1.5
        """
        if not 0 <= q <= 1:
            raise ValueError(f"q must be between 0 and 1, got {q!r}")
        rank = q * self.count
        below = 0
        lower_s = 0.0
        for upper_s, n in zip(self.bounds_s, self.counts, strict=False):
            if n and below + n >= rank:
                return lower_s + (upper_s - lower_s) * (rank - below) / n
            below, lower_s = below + n, upper_s
        return self.bounds_s[-1] if self.count else 0.0

    def cumulative(self) -> tuple[int, ...]:
        """For each bound, how many times are at most as long; then how many there are in all.

        Returns
        -------
        tuple of int
            One more than there are bounds, as metrics libraries want it.

        Examples
        --------
        >>> TimeSummary(4, 7.0, (1.0, 2.0), (2, 1, 1)).cumulative()
        (2, 3, 4)
        """
        return tuple(accumulate(self.counts))


@dataclass(frozen=True)
class WorkerStats:
    """A worker.

    Attributes
    ----------
    worker_id
        Its number; they are used once.
    pid
        Its process; None until it was started.
    state
        "starting", "spare" (it takes the place of one that leaves soon), "loading" (it builds resources ahead of
        tasks), "idle", "busy" or "leaving"; and instead of these "stopped" (by SIGSTOP or a debugger), or "stuck": its
        start, or what it runs, takes 20 times as long as such things did, and more than 30 or 60 s; or the first task
        of a function has waited for 60 s without using a CPU.
    state_s
        For how long it has been so, in seconds; a busy one: since when it is at the task, item, or group of short
        items; a stopped one: since that was first seen.
    runs
        Name of the function that it runs, or will next; None if it has no work.
    leaves_because
        Why it gets no more tasks: "max_tasks_per_child", or "its memory grows" and by how much; else None.
    n_tasks
        Tasks and items that it was given.
    resources
        Names of the factories of the resources that it has.
    resources_nbytes
        By how much its memory grew as it built them, in bytes.
    peak_nbytes
        Its largest resident memory so far, in bytes, as it has told; None before it has.
    memory_nbytes
        Its resident memory now, in bytes; None unless it was asked for, or if the worker is gone.
    """

    worker_id: int
    pid: int | None
    state: str
    state_s: float
    runs: str | None
    leaves_because: str | None
    n_tasks: int
    resources: tuple[str, ...]
    resources_nbytes: int
    peak_nbytes: int | None
    memory_nbytes: int | None


@dataclass(frozen=True)
class ExecutorStats:
    """A snapshot of an executor; see `AmorsizeExecutor.stats`.

    Attributes
    ----------
    max_workers
        The upper bound on workers; `worker_limit` is what memory leaves of it.
    worker_limit
        Workers that are allowed now.
    workers
        Those that exist.
    workers_started, workers_left, workers_died
        Workers that were started, that ended because they were told to, and that ended otherwise (each was replaced, if
        there was work for another), since the executor was made.
    workers_leaked
        Workers that were replaced because their memory grew with each task.
    tasks_submitted
        Calls of `submit`. Each is in one of the next five numbers.
    tasks_queued
        Those that wait.
    tasks_running
        Those that are with a worker, which runs them or will do so next.
    tasks_done, tasks_failed, tasks_cancelled
        Those that have a result, that have an exception, and that were cancelled.
    items_waiting
        Items of maps that wait.
    items_done, items_failed
        Items of maps that have a result, and that have an exception.
    items_inline
        Those of them that ran in the thread that iterates.
    wait
        Of submitted tasks: how long each took beside running, from `submit` to its result. It waited, what it needed
        was loaded, and it was sent to and fro.
    run
        How long tasks and items ran in workers. Where short ones run in groups, their mean counts for each.
    blocks_nbytes
        Shared memory for arguments, in bytes.
    maps
        Those that have ended, the latest last; not those that were too short to be planned.
    maps_ended
        How many there were in all.
    maps_predicted_s, maps_actual_s
        What all maps together of which something was known beforehand were predicted to take, and have taken, in
        seconds.
    is_open
        Whether it takes work.
    is_broken
        Whether it takes none because workers cannot be started, or were ended.
    """

    max_workers: int
    worker_limit: int
    workers: tuple[WorkerStats, ...]
    workers_started: int
    workers_left: int
    workers_died: int
    workers_leaked: int
    tasks_submitted: int
    tasks_queued: int
    tasks_running: int
    tasks_done: int
    tasks_failed: int
    tasks_cancelled: int
    items_waiting: int
    items_done: int
    items_failed: int
    items_inline: int
    wait: TimeSummary
    run: TimeSummary
    blocks_nbytes: int
    maps: tuple[MapStats, ...]
    maps_ended: int
    maps_predicted_s: float
    maps_actual_s: float
    is_open: bool
    is_broken: bool

    def n_workers(self, state: str) -> int:
        """How many workers are in a state.

        Parameters
        ----------
        state
            As named in `WorkerStats`, such as "idle".

        Returns
        -------
        int
            Their number; 0 for a state that none is in.
        """
        return sum(worker.state == state for worker in self.workers)

    @property
    def memory_nbytes(self) -> int | None:
        """Resident memory of all workers together, in bytes; None unless it was asked for."""
        known = [worker.memory_nbytes for worker in self.workers if worker.memory_nbytes is not None]
        return sum(known) if known else None

    def __str__(self) -> str:
        states = Counter(worker.state for worker in self.workers)
        told = ", ".join(f"{n} {state}" for state, n in states.items()) or "none"
        lines = [
            f"workers   {told}; at most {self.worker_limit}; "
            f"{self.workers_started} started, {self.workers_left} left, {self.workers_died} died",
            f"tasks     {self.tasks_queued} queued, {self.tasks_running} running, {self.tasks_done} done, "
            f"{self.tasks_failed} failed, {self.tasks_cancelled} cancelled",
            f"items     {self.items_waiting} waiting, {self.items_done} done ({self.items_inline} in the caller), "
            f"{self.items_failed} failed",
            f"wait      {_told_times(self.wait)}",
            f"run       {_told_times(self.run)}",
            f"memory    {_told_nbytes(self.blocks_nbytes)} in shared blocks"
            + ("" if self.memory_nbytes is None else f", {_told_nbytes(self.memory_nbytes)} in workers"),
        ]
        for worker in self.workers:
            if worker.state in ("stopped", "stuck"):
                doing = f" with {worker.runs}" if worker.runs else ""
                lines.append(
                    f"worker {worker.worker_id}  (process {worker.pid}) is {worker.state} for "
                    f"{format_time(worker.state_s)}{doing}"
                )
            if worker.resources:
                size = _told_nbytes(worker.resources_nbytes)
                lines.append(f"worker {worker.worker_id}  has {', '.join(worker.resources)} ({size})")
        if self.maps:
            latest = self.maps[-1]
            predicted = "unknown" if latest.predicted_s is None else format_time(latest.predicted_s)
            lines.append(
                f"last map  {latest.name} over {latest.n_items} items: {predicted} predicted, "
                f"{format_time(latest.actual_s)} real"
            )
        return "\n".join(lines)


def _told_times(summary: TimeSummary) -> str:
    if not summary.count:
        return "nothing yet"
    quantiles = ", ".join(f"{100 * q:g} % below {format_time(summary.quantile(q))}" for q in (0.5, 0.99))
    return f"{format_time(summary.mean_s)} on average, {quantiles}"


def _told_nbytes(nbytes: int) -> str:
    power = min(int(math.log(nbytes, 1024)), 3) if nbytes else 0
    return f"{nbytes / 1024**power:.3g} {('bytes', 'KiB', 'MiB', 'GiB')[power]}"


class Engine(Protocol):
    """What is asked of the dispatcher."""

    lock: threading.Lock
    scheduler: Scheduler
    residency: Residency
    ledger: BlockLedger
    pool: Pool | None
    counters: Counters
    health: HealthWatch
    #: Largest resident memory of workers, in bytes; the I/O thread's, read in single look-ups.
    peak_nbytes: dict[int, int]

    def function_name(self, job_id: int | None, item: int) -> str | None:
        """Name of the function of a task, or of a map's item; None if it is settled."""

    @property
    def n_tasks(self) -> int:
        """Submitted tasks that are not settled; under the lock."""

    @property
    def is_open(self) -> bool:
        """Whether it takes work."""

    @property
    def is_broken(self) -> bool:
        """Whether it takes none because workers cannot be started, or were ended."""


def take_stats(engine: Engine, *, memory: bool) -> ExecutorStats:
    """A snapshot; `memory`: with that of each worker, which takes a look at its files in /proc."""
    counters = engine.counters
    with engine.lock:
        scheduler = engine.scheduler
        views, n_leaks = scheduler.worker_views(), scheduler.n_leaks
        n_tasks, n_queued = engine.n_tasks, scheduler.n_queued
        n_waiting = sum(map(scheduler.n_waiting, scheduler.job_ids()))
        max_workers, worker_limit = scheduler.max_workers, scheduler.worker_limit
        submitted, cancelled = counters.submitted, counters.cancelled
        failed = counters.failed + counters.raised
        done = submitted - cancelled - failed - n_tasks
        maps = tuple(counters.maps)
        maps_ended, predicted_s, actual_s = counters.n_maps, counters.predicted_s, counters.actual_s
    pids = engine.pool.pids() if engine.pool is not None else {}
    now = time.perf_counter()
    workers = []
    for view in views:
        pid = pids.get(view.worker_id)
        state, state_s = engine.health.state_of(view, pid, now)
        workers.append(
            WorkerStats(
                worker_id=view.worker_id,
                pid=pid,
                state=state,
                state_s=state_s,
                runs=engine.function_name(*view.item) if view.item is not None else None,
                leaves_because=view.leaves_because,
                n_tasks=view.n_given,
                resources=tuple([engine.residency.name_of(i) for i in view.held]),
                resources_nbytes=sum(view.held.values()),
                peak_nbytes=engine.peak_nbytes.get(view.worker_id),
                memory_nbytes=machine.resident_nbytes(pid) if memory and pid is not None else None,
            )
        )
    return ExecutorStats(
        max_workers=max_workers,
        worker_limit=worker_limit,
        workers=tuple(workers),
        workers_started=counters.workers_started,
        workers_left=counters.workers_left,
        workers_died=counters.workers_died,
        workers_leaked=n_leaks,
        tasks_submitted=submitted,
        tasks_queued=n_queued,
        tasks_running=n_tasks - n_queued,
        tasks_done=done,
        tasks_failed=failed,
        tasks_cancelled=cancelled,
        items_waiting=n_waiting,
        items_done=counters.items_done,
        items_failed=counters.items_failed,
        items_inline=counters.items_inline,
        wait=TimeSummary.of(counters.wait),
        run=TimeSummary.of(counters.run),
        blocks_nbytes=engine.ledger.store.nbytes,
        maps=maps,
        maps_ended=maps_ended,
        maps_predicted_s=predicted_s,
        maps_actual_s=actual_s,
        is_open=engine.is_open,
        is_broken=engine.is_broken,
    )
