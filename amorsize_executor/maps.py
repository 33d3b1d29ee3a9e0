"""The caller's side of maps: planning them, running items inline, handing them to workers, taking their results.

`open` plans a map and, if workers are to run it, releases its items to the scheduler. Else it is *held*: only its
caller takes items, in `next_results`, and the I/O thread looks after it (`look_after`) so that the rest never waits for
an item in the caller, or for a caller who does not come.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from . import tiny
from .counters import Counters, MapStats
from .decisions import planner, sizes
from .decisions.plan import format_time
from .decisions.resources import NOTHING, Needs
from .decisions.terms import Terms
from .encoding import obvious_resources, own_nbytes
from .inline import InlineBatch, copy_items, copy_values
from .results import Failed, MapJob
from .switching import quick_switching
from .tiny import TinyMap
from .workers.copies import CallerCopies
from .workers.resources import NeedsWorker
from .workers.serialize import are_scalars

if TYPE_CHECKING:
    from .decisions.actions import Action
    from .decisions.cost_model import CostModel, FunctionCost
    from .decisions.plan import Plan
    from .decisions.planner import PoolState
    from .decisions.scheduler import Scheduler
    from .residency import Residency
    from .workers.functions import Function, FunctionTable

#: A map with a buffer reads on when about this part of its buffer was taken.
_BUFFER_PARTS = 4
#: Batches that the caller runs one after another are one span of the timeline, if no more is between them, in seconds.
_GAP_S = 1e-3
#: The kernel counts the CPU time of a thread that runs on another CPU so late, in seconds.
_TICK_S = 4e-3
#: A batch in the caller that lasts so long, in seconds, holds other items than were expected.
_LONG_BATCH_S = 2 * planner.INLINE_BATCH_S
#: A caller that should help with a map, and has not for so long, does not, in seconds.
_ABSENT_S = 0.03
#: A caller that waits beside workers that start or load sees at least so many seconds apart whether it should help.
_LOOK_AGAIN_S = 5e-3
#: Why items do not run in the caller.
_NEEDS_RESOURCE = "workers have the resource that it needs"
_SAMPLED_THERE = "nothing was known about it, and workers find out"
#: Sizes of more items than this are not looked at to find giants: it would take longer than it gains.
_MOST_SIZES = 100_000


class Engine(Protocol):
    """What maps need of the dispatcher."""

    #: Guards the scheduler, `Maps.jobs` and plans.
    lock: threading.Lock
    scheduler: Scheduler
    functions: FunctionTable
    cost_model: CostModel
    is_shut_down: bool
    residency: Residency
    counters: Counters
    #: Seconds after which the I/O thread looks after maps in their callers, without being woken; None: it does not.
    watch_s: float | None
    #: Seconds that a byte of a large item takes on its way to a worker, before that was measured.
    carry_s_a_byte: float
    #: Whether workers are those of a cluster: they are quick to start, but not beside a caller that computes. So a
    #: function that nothing is known about begins there, and the caller leaves long items to them.
    is_cluster: bool

    def register(self, fn: Callable[..., Any]) -> Function:
        """A function's entry, with what is known about it recalled."""

    def check_open(self) -> None:
        """Raise what a submit raises, if anything."""

    def new_id(self) -> int:
        """A number for a task or map; under the lock."""

    def pool_state(self, needs: Needs = NOTHING, key: Hashable = None) -> PoolState:
        """The pool as the planner sees it for items of a function with these needs; under the lock."""

    def ensure_thread(self) -> None:
        """Start the I/O thread if it does not run."""

    def run_in_worker(self, fn: Callable[..., Any], item: Any) -> Any:
        """Result of one call in a worker, which is measured."""

    def want_workers(self, n_workers: int) -> None:
        """Start workers ahead of work, up to so many in all."""

    def prepare_start(self) -> None:
        """Import what the start of a worker takes, in this thread."""

    def await_starts(self) -> None:
        """Wait until the processes that were asked for have been started (not until they are ready)."""

    def wake(self) -> None:
        """Make the I/O thread look around."""

    def watch(self) -> None:
        """Have it look after maps in their callers, from now on often."""

    def nudge(self) -> None:
        """The same without a lock."""

    def execute(self, actions: list[Action]) -> None:
        """Carry out actions; without the lock."""

    def execute_here(self, actions: list[Action]) -> None:
        """The same, and start processes in this thread."""


class Maps:
    """All maps of one executor that are not settled, and the plan of the latest."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.jobs: dict[int, MapJob] = {}
        self.tiny: set[TinyMap] = set()  # those that are not done; added under the lock
        self._last: Plan | TinyMap | None = None
        self._dropped: deque[MapJob] = deque()  # their iterators are gone; for the I/O thread
        self._missed_s = 0.0  # what maps in the caller would have gained had workers been there, in seconds

    @property
    def last_plan(self) -> Plan | None:
        """The plan of the latest map."""
        last = self._last
        if not isinstance(last, TinyMap):
            return last
        return last.plan(self._engine.cost_model.lookup(last.function.key), self._engine.pool_state())

    def open_tiny(self, fn: Callable[..., Any], iterables: tuple[Any, ...]) -> TinyMap | None:
        """Take in a map if it is so short that its caller is to run it without more ado; else None.

        Its results come from `run_tiny`, and what it could not do from `next_results` of its `rest`.
        """
        engine = self._engine
        engine.check_open()
        for iterable in iterables:
            if not hasattr(iterable, "__len__"):
                return None
        function = engine.functions.find(fn)
        if function is None or function.resources:
            return None
        mean_s = engine.cost_model.mean_s(function.key)
        if mean_s is None:
            return None
        n_items = min(map(len, iterables))
        if not 0 < n_items * mean_s < tiny.MOST_S:
            return None
        item_s = engine.cost_model.map_item_s(function.key)
        if item_s is None or n_items * item_s >= tiny.MOST_S:
            return None
        is_star = len(iterables) > 1
        items = list(zip(*iterables, strict=False)) if is_star else list(iterables[0])
        if not items or not are_scalars(items):
            return None
        engine.ensure_thread()
        found = TinyMap(function, items, is_star, item_s)
        with engine.lock:
            if engine.is_shut_down:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self.tiny.add(found)
        self._last = found
        if engine.watch_s is None:
            engine.watch()
        return found

    def run_tiny(self, found: TinyMap) -> list[Any]:
        """Run a tiny map in this thread; results of all items that are not in its `rest`."""
        try:
            values = found.run(self._engine.cost_model, self._engine.scheduler.n_busy)
        finally:
            self.tiny.discard(found)
        counters = self._engine.counters
        n_failed = int(bool(values) and type(values[-1]) is Failed)
        with self._engine.lock:
            counters.items_inline += len(values)
            counters.items_failed += n_failed
            counters.items_done += len(values) - n_failed
        return values

    def convert(self, found: TinyMap) -> None:
        """Make an ordinary map of what has not begun of a tiny one."""
        with found.lock:
            given = found.give_up()
            if given is None:
                return
            items, busy_since = given
            with self._engine.lock:
                job = MapJob(self._engine.new_id(), found.function, items, is_star=found.is_star)
                job.visited_at = busy_since
                self._add(job, is_closed=True, terms=Terms())
                last = self._last
                self._plan(job)
                self._last = last  # `found` tells of both, if it is the latest
            found.rest = job

    def open(
        self,
        fn: Callable[..., Any],
        items: list[Any],
        *,
        is_star: bool,
        source: Any,
        chunksize: int | None,
        is_ordered: bool,
        constraint: str,
        is_closed: bool = True,
        n_workers: int | None = None,
        sample_size: int | None = None,
        terms: Terms | None = None,
    ) -> MapJob:
        """Take in a map; `next_results` gives what comes out.

        Parameters
        ----------
        fn, items
            The function and the arguments read so far.
        is_star
            Whether each item is a tuple of arguments.
        source
            Iterator of further items, or None.
        chunksize
            Fixed by the caller, or None.
        is_ordered
            Whether results come in the order of the items.
        constraint
            Why the caller may not run items; empty if it may.
        is_closed
            Whether these are all items; if not, `feed` brings the others, before `next_results` is called.
        n_workers
            Fixed by the caller, or None.
        sample_size
            Items of an unknown function that the caller runs at most before it is decided; None: no bound but time.
        terms
            Priority, retries and time limit of its items; None: as the pool has them.
        """
        self._engine.check_open()
        function = self._engine.register(fn)
        needs = self._engine.residency.admit((*function.resources, *obvious_resources(items, is_star)))
        if needs and not constraint:
            constraint = _NEEDS_RESOURCE
        may_inline = not constraint
        self._engine.ensure_thread()
        with self._engine.lock:
            if self._engine.is_shut_down:
                raise RuntimeError("cannot schedule new futures after shutdown")
            job = MapJob(
                self._engine.new_id(),
                function,
                items,
                is_star=is_star,
                source=source,
                chunksize=chunksize,
                is_ordered=is_ordered,
                may_inline=may_inline,
                constraint=constraint,
            )
            job.n_workers, job.sample_size = n_workers, sample_size
            job.timeout_s = None if terms is None else terms.timeout_s
            self._add(job, is_closed=source is None and is_closed, terms=terms or Terms(), needs=needs)
            nbytes = own_nbytes(items, is_star)
            if nbytes:
                job.item_nbytes = nbytes
                self._engine.scheduler.set_item_nbytes(job.job_id, nbytes)
            plan = self._plan(job)
        if self._missed_s:
            pool = self._engine.pool_state(key=function.key)
            n_wanted = self._n_to_start(job, pool)
            if n_wanted:
                self._missed_s = 0.0
                self._engine.want_workers(n_wanted)
                self._engine.await_starts()
                if not plan.is_serial and plan.n_workers == pool.n_ready:  # others load the function
                    more = job.plan = plan._replace(n_workers=n_wanted)
                    if self._last is plan:
                        self._last = more
                    plan = more
        if not plan.is_serial:
            self.release(job, plan.n_workers)
            return job
        self._engine.watch()
        return job

    def _n_to_start(self, job: MapJob, pool: PoolState, *, is_idle: bool = False) -> int:
        """Workers that should be there for maps like this one, since those before have missed enough; 0: no more."""
        if pool.n_ready >= min(pool.max_workers, pool.n_cpus):
            self._missed_s = 0.0
        if not planner.start_pays(self._missed_s, pool, is_idle=is_idle):
            return 0
        cost = self._cost(job, in_map=False)
        if cost is None:
            return pool.n_ready + 1
        best = planner.best_ready(job.n_items, cost, pool)  # on CPUs that neither the caller nor another worker has
        return max(min(best.n_workers, pool.n_cpus - 1), pool.n_ready + 1)

    def _add(self, job: MapJob, *, is_closed: bool, terms: Terms, needs: Needs = NOTHING) -> None:
        """Put a map in the books, held; under the lock."""
        self.jobs[job.job_id] = job
        self._engine.scheduler.add_map(
            job.job_id,
            job.function.key,
            job.n_items,
            chunksize=job.chunksize,
            closed=is_closed,
            terms=terms,
            needs=needs,
        )

    def feed(self, job: MapJob, items: list[Any], *, is_closed: bool) -> None:
        """More items of a map that was opened before all were read.

        Raises
        ------
        RuntimeError
            After a shutdown.
        """
        self._engine.check_open()
        with self._engine.lock:
            n_items = job.extend(items)
            now = time.perf_counter()
            actions = self._engine.scheduler.extend_map(job.job_id, n_items, is_closed, now)
            is_larger = n_items >= 2 * job.planned_for[1] or is_closed
            plan = self._plan(job) if is_larger and self._engine.scheduler.n_waiting(job.job_id) else None
        self._engine.execute(actions)
        if plan is not None and not plan.is_serial:
            self.release(job, plan.n_workers)

    def _cost(self, job: MapJob, *, in_map: bool) -> FunctionCost | None:
        """What is known about a map's function, and about its items while none was sent."""
        cost = self._engine.cost_model.lookup(job.function.key, in_map=in_map)
        return self._with_carriage(cost, job.item_nbytes)

    def _with_carriage(self, cost: FunctionCost | None, item_nbytes: float) -> FunctionCost | None:
        """The same with what it takes to carry items of this size, while none was sent."""
        if cost is not None and not cost.nbytes and item_nbytes:
            cost = cost._replace(carry_s=max(cost.carry_s, item_nbytes * self._engine.carry_s_a_byte))
        return cost

    def _plan(self, job: MapJob, least: int = 0) -> Plan:
        """Plan what remains of a map, with no fewer workers than share it already; under the lock."""
        waiting = self._engine.scheduler.n_waiting(job.job_id)
        pool = self._engine.pool_state(self._engine.scheduler.needs(job.job_id), job.function.key)
        job.planned_for = (pool.n_ready, job.n_items)
        cost = self._cost(job, in_map=job.n_settled > 0)
        expected = waiting if job.plan is not None else job.n_items
        if job.source is not None:  # nobody knows how many will come: as many as have come is the best guess
            expected += job.n_out
        is_sampled_there = cost is None and self._engine.is_cluster and not job.n_inline
        plan = planner.plan_map(
            job.function.name,
            expected,
            cost,
            pool,
            inline=job.may_inline and not is_sampled_there,
            chunksize=job.chunksize,
            constraint=job.constraint or (_SAMPLED_THERE if is_sampled_there else ""),
            least=least,
        )
        if job.plan is not None and waiting < job.n_items and cost is not None and plan.item_s is not None:
            # The plan of the rest tells the whole: what was measured took so long, all else costs what is now known.
            done_s = time.perf_counter() - job.started_at
            n_measured, measured_s = job.measured(cost.scaling)
            plan = plan._replace(
                n_items=job.n_items,
                serial_s=measured_s + (job.n_items - n_measured) * plan.item_s,
                predicted_s=done_s + (plan.predicted_s or 0.0),
                terms=tuple(term._replace(compute_s=term.compute_s + done_s) for term in plan.terms),
            )
        if job.n_workers is not None:
            predicted_s = dict(plan.considered).get(job.n_workers, plan.predicted_s)
            plan = plan._replace(n_workers=job.n_workers, predicted_s=predicted_s)
        if job.plan is None or self._last is job.plan:  # else a later map has come
            self._last = plan
        job.plan = plan
        return plan

    def release(self, job: MapJob, n_workers: int) -> None:
        """Let workers take items of a map."""
        self._engine.ensure_thread()
        self._engine.prepare_start()
        giants = self._giants(job, n_workers) if not job.is_released else []
        with self._engine.lock:
            job.is_released = True
            is_new = self._engine.cost_model.load_s(job.function.key) is None
            if is_new and job.may_inline and job.n_workers is None and not self._engine.is_cluster:
                # Nobody knows what workers take to load it: beside the caller, one finds out first.
                job.n_staged, n_workers = n_workers, max(min(n_workers, self._engine.pool_state().n_cpus - 1), 1)
            is_trial = n_workers < job.n_staged
            if giants:
                self._engine.scheduler.pull_ahead(job.job_id, giants)
            actions = self._engine.scheduler.release_map(
                job.job_id,
                n_workers,
                time.perf_counter(),
                is_trial=is_trial,
                is_helped=job.plan is not None and job.plan.is_helped,
            )
        if job.may_inline:
            self._engine.execute_here(actions)
        else:
            self._engine.execute(actions)

    def load_known(self, job: MapJob, lone_s: float | None = None) -> None:
        """A worker has given its first result of a map's function: now others may start, if it still pays.

        Or the caller goes on alone: what it takes to carry results was not known before.

        Parameters
        ----------
        job
            The map.
        lone_s
            Time of that result's item, in seconds, if first calls are all that is known of the function. It may have
            loaded a model, as every worker must: one that takes a CPU from those who have it starts for sure knowledge
            only, which the next result brings.
        """
        with self._engine.lock:
            if not job.n_staged or job.plan is None or not self._engine.scheduler.n_waiting(job.job_id):
                return
            n_cpus = self._engine.pool_state().n_cpus
            n_has = max(min(job.n_staged, n_cpus - 1), 1)
            if lone_s is not None and lone_s >= planner.LEAST_LOAD_S and n_has + 1 >= n_cpus:
                job.lone_s = lone_s
                return
            job.n_staged = 0
            plan = self._plan(job)
            if 0 < plan.n_workers < n_has:
                plan = self._plan(job, n_has)
            actions: list[Action] = []
            if plan.is_serial:
                actions = self._engine.scheduler.hold_map(job.job_id)
                job.is_released = False
        if plan.is_serial:
            self._engine.execute(actions)
        else:
            self.release(job, plan.n_workers)

    def widen(self, before: int, n_workers: int) -> None:
        """The pool may have more workers than before: maps that have all of them get those, too."""
        with self._engine.lock:
            jobs = [job for job in self.jobs.values() if job.is_released and job.n_workers is None]
        for job in jobs:
            plan = job.plan
            if plan is None or not before <= plan.n_workers < n_workers:
                continue
            with self._engine.lock:
                job.plan = plan._replace(n_workers=n_workers, constraint=f"there is room for {n_workers} workers now")
                if self._last is plan:
                    self._last = job.plan
            self.release(job, n_workers)

    def foresee(self, fn: Callable[..., Any], items: list[Any], chunksize: int | None, constraint: str) -> Plan:
        """The plan that a map would have; of an unknown function, a sample is run where the map would begin."""
        function = self._engine.register(fn)
        needs = self._engine.residency.admit((*function.resources, *obvious_resources(items[:1] or [None], False)))
        if needs and not constraint:
            constraint = _NEEDS_RESOURCE
        cost_model = self._engine.cost_model
        if items and cost_model.lookup(function.key) is None:
            begun = time.perf_counter()
            n = 0
            while n < len(items) and not planner.is_sampled(n, time.perf_counter() - begun):
                if constraint or self._engine.is_cluster:
                    self._engine.run_in_worker(fn, items[n])
                else:
                    self._sample(function, items[n], n)
                n += 1
        with self._engine.lock:
            pool = self._engine.pool_state(needs, function.key)
        return planner.plan_map(
            function.name,
            len(items),
            self._with_carriage(cost_model.lookup(function.key), own_nbytes(items, False) if items else 0),
            pool,
            inline=not constraint,
            chunksize=chunksize,
            constraint=constraint,
        )

    def _sample(self, function: Function, item: Any, index: int) -> None:
        """Run one item here and measure it."""
        copied, error = copy_items([item], 1, index, function.name, CallerCopies(function.store, None))
        if isinstance(error, NeedsWorker):
            self._engine.run_in_worker(function.local(), item)
            return
        if error is not None:
            raise error
        batch = InlineBatch(index, copied, function.local(), False)
        problem = batch.run()
        if problem is not None:
            raise problem
        self._engine.cost_model.observe(function.key, 1, time.perf_counter() - batch.started_at)

    def learn_sizes(self, job: MapJob) -> None:
        """Items of some size were measured: as soon as that tells what the others take, none of the long comes last."""
        if job.line is None and job.is_released and job.plan is not None:
            giants = self._giants(job, job.plan.n_workers or 1)
            if giants:
                with self._engine.lock:
                    self._engine.scheduler.pull_ahead(job.job_id, giants)

    def _giants(self, job: MapJob, n_workers: int) -> list[tuple[int, float]]:
        """Items that will take longer than others, if their sizes tell that."""
        line = self._engine.cost_model.size_line(job.function.key)
        if line is None or job.chunksize is not None or job.source is not None:
            return []
        first, items = job.rest(_MOST_SIZES)
        found = sizes.item_sizes(items) if items else None
        if found is None:
            return []
        job.line = line
        return [(first + i, s) for i, s in sizes.giants(found, line, n_workers)]

    def next_results(self, job: MapJob, until: float | None) -> list[Any] | None:
        """More results of a map, in order; None when there will be none.

        Called by the thread that iterates. This is the only place where items run in the caller's thread.
        """
        while True:
            batch = self.ready_results(job)
            if batch is not None:
                return batch
            if job.is_finished():
                if job.cut is not None:
                    raise job.cut
                if job.plan is not None and job.plan.actual_s is None:  # its input ended behind its last result
                    self._finish(job)
                return None
            look_s = None
            if job.may_inline:
                if self._run_inline(job):
                    continue
                self.replace_caller(job, time.perf_counter())
                look_s = self._look_again_s(job)
            job.wait(until, look_s)

    def ready_results(self, job: MapJob) -> list[Any] | None:
        """Results of a map that are there now, in order; None when there are none. For the thread that iterates."""
        if job.source is None:
            batch = job.take()
            if batch is not None and job.n_out >= job.n_items and job.cut is None:
                self._finish(job)
            return batch
        # All results handed out so far were taken, and one of the next ones will be.
        n_free = job.n_out + 1 + job.buffersize - job.n_items
        batch = job.take(max(job.buffersize // _BUFFER_PARTS, 1))
        if batch is not None:
            self._read_more(job, n_free)
        return batch

    def _read_more(self, job: MapJob, most: int) -> None:
        """Read up to `most` items, so that the buffer stays full; in the caller's thread."""
        source = job.source
        if source is None:
            return  # closed by a shutdown in between
        new = list(islice(source, most))
        closed = len(new) < most
        with self._engine.lock:
            if self._engine.is_shut_down:
                return  # too late for these
            n_items = job.extend(new)
            if closed:
                job.source = None
            actions = self._engine.scheduler.extend_map(job.job_id, n_items, closed, time.perf_counter())
        self._engine.execute(actions)

    def _run_inline(self, job: MapJob) -> bool:
        """Run some items in this thread if that is best; whether it did."""
        if job.is_released:
            self._engine.await_starts()
        with self._engine.lock:
            taken = self._take_inline(job)
            actions: list[Action] = []
            if not taken and job.is_released and self._may_help(job):
                actions = self._engine.scheduler.take_for_caller(job.job_id, time.perf_counter())
        if actions:
            self._engine.execute(actions)
            with self._engine.lock:
                taken = self._take_inline(job)
        if isinstance(taken, int):
            self.release(job, taken)
            self._engine.await_starts()
            return True
        if not taken:
            return False
        name, function, began_at = job.function.name, job.function, time.perf_counter()
        seen = job.take_items(range(taken.start, taken.stop + 1))
        items, error = copy_items(seen, len(taken), taken.start, name, self._copies(job))
        if isinstance(error, NeedsWorker):
            self._leave_to_workers(job, taken)
            return True
        n_copied = len(items)
        visited_at = job.visited_at
        batch = job.batch = InlineBatch(taken.start, items, function.local(), job.is_star)
        cpu_began = None  # of this process: an item may use several CPUs
        if not job.is_released:
            cpu_began = time.process_time()
            if job.cpu_at is not None:  # with what came late for the items before
                cpu_began = max(job.cpu_at, cpu_began - _TICK_S)
        try:
            with quick_switching:
                problem = batch.run(_LONG_BATCH_S)
        finally:
            job.batch = None
            job.visited_at = time.perf_counter()
        values = batch.values.copy()  # the I/O thread may still look at the length of the other
        ran = len(values) + (problem is not None)
        if ran:
            elapsed = job.visited_at - batch.started_at
            job.inline_s += elapsed
            at_once = 1 + self._engine.scheduler.n_busy
            is_next = batch.started_at - visited_at < _GAP_S
            job.note(0, batch.started_at, job.visited_at, ran, elapsed, at_once, is_continued=is_next)
            size = job.size_of(range(taken.start, taken.start + ran), elapsed)
            cpu_s = None
            if cpu_began is not None:
                job.cpu_at = time.process_time()
                cpu_s = job.cpu_at - cpu_began
            self._engine.cost_model.observe(function.key, ran, elapsed, cpu_s, at_once=at_once, size=size)
        if problem is not None or ran < n_copied:
            error = problem
        error = copy_values(values, taken.start, name) or error
        if error is not None:
            values.append(Failed(error))
        n = len(values)
        with self._engine.lock:
            # Under the lock: else the I/O thread may be about to take back the same items.
            left_over = [*batch.left_over(n), *taken[n_copied:]] if error is None else []
            self._engine.scheduler.inline_done(job.job_id, n)
            counters = self._engine.counters
            counters.items_inline += n
            counters.items_failed += error is not None
            counters.items_done += n - (error is not None)
            actions = []
            if left_over or self._engine.is_shut_down:  # idle workers may take them, or leave
                self._engine.scheduler.return_inline(job.job_id, left_over)
                actions = self._engine.scheduler.tick(job.visited_at)
        self._engine.execute(actions)
        job.n_inline += n
        job.settle(range(taken.start, taken.start + n), values, failed=error is not None)
        if n:
            beyond_s = batch.started_at - began_at + time.perf_counter() - job.visited_at
            self._engine.cost_model.observe_inline(function.key, n, beyond_s)
        if not job.has_asked and job.inline_s >= self._engine.cost_model.worker_start_s:
            self._ask_for_worker(job)
        return True

    def _ask_for_worker(self, job: MapJob) -> None:
        """Have a worker start for a map that has taken as long in its caller as the start takes (ski rental).

        Items become slower more often than a plan can foresee. Once the worker is ready, the rest is planned anew.
        """
        key = job.function.key
        with self._engine.lock:
            n_waiting = self._engine.scheduler.n_waiting(job.job_id)
        rest_s = n_waiting * (self._engine.cost_model.mean_s(key) or 0.0)
        if not job.is_released and rest_s < self._engine.cost_model.worker_start_s:
            return  # it would come too late: the next map has it start, if at all
        with self._engine.lock:
            pool = self._engine.pool_state(key=key)
        if job.inline_s < pool.worker_start_s:
            return
        job.has_asked = True
        cost, plan = self._cost(job, in_map=True), job.plan
        if job.is_released:
            if plan is not None and plan.is_helped and job.n_workers is None and not job.n_staged and n_waiting:
                with self._engine.lock:
                    again = self._plan(job, plan.n_workers)
                if again.n_workers > plan.n_workers:
                    self.release(job, again.n_workers)
            return
        if pool.n_ready or pool.n_cpus < 2 or cost is None or plan is None or not n_waiting:
            return
        if planner.start_pays(planner.missed_s(plan._replace(n_items=n_waiting), cost, pool), pool):
            self._engine.want_workers(1)
            self._engine.await_starts()

    def _leave_to_workers(self, job: MapJob, taken: range) -> None:
        """Items that the caller was about to run need a resource, as others perhaps do."""
        with self._engine.lock:
            self._engine.scheduler.return_inline(job.job_id, taken)
            job.may_inline, job.constraint = False, _NEEDS_RESOURCE
            plan = self._plan(job)
        self.release(job, max(plan.n_workers, 1))

    def _copies(self, job: MapJob) -> CallerCopies:
        """What makes copies of items for the caller."""
        if job.copies is None:
            job.copies = CallerCopies(job.function.store, job.epoch if job.source is None else None)
        return job.copies

    def _take_inline(self, job: MapJob) -> range | int:
        """Items for the caller to run now, or the number of workers to hand the map to; under the lock."""
        scheduler = self._engine.scheduler
        waiting = scheduler.n_waiting(job.job_id)
        if not waiting:
            return range(0)
        item_s = self._engine.cost_model.mean_s(job.function.key)
        plan = job.plan
        assert plan is not None
        most, n_sharing = waiting, 0
        if not job.is_released:
            planned = plan.item_s
            sample_left = waiting if job.sample_size is None else job.sample_size - job.n_inline
            if item_s is None or (
                planned is None and not planner.is_sampled(job.n_inline, job.inline_s) and sample_left > 0
            ):
                most = min(waiting, max(sample_left, 1))  # more of a sample first
            elif (
                planned is None
                or (self._engine.pool_state(key=job.function.key).n_ready, job.n_items) != job.planned_for
                or not 0.8 * planned <= item_s <= 1.25 * planned
            ):
                plan = self._plan(job)
                if not plan.is_serial:
                    return plan.n_workers
        else:
            if plan.item_s is None and item_s is not None and job.n_workers is None:  # a guess had them released
                n_has, plan = plan.n_workers, self._plan(job, plan.n_workers)
                if plan.n_workers > n_has:
                    return plan.n_workers
            if not self._may_help(job):
                return range(0)
            n_sharing = max(scheduler.n_ready, 1)
            if job.line is not None and item_s is not None:
                item_s = job.expected_s(scheduler.next_item(job.job_id), item_s)
        is_known = plan.item_s is not None
        most = planner.inline_batch(most, item_s, job.n_inline, is_known, n_sharing=n_sharing)
        return scheduler.take_inline(job.job_id, most)

    def _may_help(self, job: MapJob) -> bool:
        """Whether the caller should run items of a map that workers share; under the lock or for a guess."""
        plan, scheduler = job.plan, self._engine.scheduler
        assert plan is not None
        cost = self._engine.cost_model.lookup(job.function.key, in_map=True)
        if cost is not None and job.line is not None:
            # Giants tell little of the others, and a tiny item little of those behind it.
            next_s = job.expected_s(scheduler.next_item(job.job_id), cost.mean_s)
            cost = cost._replace(mean_s=max(next_s, min(cost.mean_s, planner.INLINE_ITEM_S)))
        key, until_help_s = job.function.key, scheduler.until_help_s(job.job_id, time.perf_counter())
        if self._engine.is_cluster and scheduler.n_ready and cost is not None and cost.mean_s > planner.INLINE_ITEM_S:
            # All that workers are sent and send would wait for an item here that holds the interpreter lock.
            return cost.mean_s <= (until_help_s or 0.0)
        return planner.inline_pays(
            max(scheduler.n_waiting(job.job_id) + scheduler.n_unbegun(job.job_id), 1),
            cost,
            min(plan.n_workers or 1, scheduler.worker_limit),
            self._engine.pool_state()._replace(n_ready=scheduler.n_knowing(key)),
            until_help_s,
        )

    def _look_again_s(self, job: MapJob) -> float | None:
        """Seconds after which a waiting caller should see whether it pays to help by now; None if only results matter.

        While workers start or load, nobody tells it that they take longer than was expected.
        """
        scheduler = self._engine.scheduler
        with self._engine.lock:
            if not scheduler.n_waiting(job.job_id) and not scheduler.n_unbegun(job.job_id):
                return None
            until_help_s = scheduler.until_help_s(job.job_id, time.perf_counter())
        if until_help_s is None:
            return None
        return max(self._engine.cost_model.mean_s(job.function.key) or 0.0, _LOOK_AGAIN_S)

    def abandon(self, job: MapJob) -> None:
        """Nobody will ask for more results of a map.

        The garbage collector may call this at any point of any thread, so it takes no lock: the I/O thread does the
        rest.
        """
        self._dropped.append(job)
        self._engine.nudge()

    def forget_dropped(self) -> None:
        """Give up maps whose iterators are gone; any thread."""
        while self._dropped:
            try:
                job = self._dropped.popleft()
            except IndexError:  # another thread has done it
                return
            with self._engine.lock:
                self.jobs.pop(job.job_id, None)
                actions = self._engine.scheduler.cancel_map(job.job_id)
                if self._engine.is_shut_down:
                    actions += self._engine.scheduler.tick(time.perf_counter())
            self._engine.execute(actions)

    def forget_if_settled(self, job: MapJob) -> None:
        """Once all results are there, only the iterator keeps them: it may have been dropped before its first step."""
        if job.source is None and job.n_settled >= job.n_items and not self._engine.scheduler.has_map(job.job_id):
            with self._engine.lock:
                self.jobs.pop(job.job_id, None)

    def _finish(self, job: MapJob) -> None:
        """All results of a map were handed out: its plan now tells what was real."""
        if job.levels:
            self._engine.cost_model.observe_map(job.function.key, job.levels, job.most_alone_s)
        plan = job.plan
        assert plan is not None
        cost = None
        has_helped = (plan.is_serial or plan.is_helped) and job.inline_s > planner.MIN_GAIN_S
        if plan.item_s is None or has_helped:
            cost = self._cost(job, in_map=False)
        n_wanted = 0
        with self._engine.lock:
            self.jobs.pop(job.job_id, None)
            plan = job.plan  # the I/O thread may have made another
            assert plan is not None
            if (plan.is_serial or plan.is_helped) and cost is not None:
                pool = self._engine.pool_state(key=job.function.key)
                if pool.n_ready < min(pool.max_workers, pool.n_cpus) and pool.n_cpus > 1:
                    self._missed_s += planner.missed_s(plan._replace(n_items=job.n_items), cost, pool)
                    n_wanted = self._n_to_start(job, pool, is_idle=True)
            # What was planned for the items that had been read holds for all of them.
            factor = job.n_items / max(plan.n_items, 1)
            job.plan = plan._replace(
                n_items=job.n_items,
                serial_s=None if plan.serial_s is None else factor * plan.serial_s,
                predicted_s=None if plan.predicted_s is None else factor * plan.predicted_s,
                actual_s=time.perf_counter() - job.started_at,
                n_inline=job.n_inline,
                n_chunks=job.n_chunks,
                timeline=tuple(job.spans),
            )
            if plan.item_s is None and cost is not None:  # was unknown
                job.plan = job.plan._replace(
                    item_s=cost.mean_s, item_std_s=cost.std_s, serial_s=job.n_items * cost.mean_s
                )
            if self._last is plan:
                self._last = job.plan
            told = job.plan
            assert told.actual_s is not None
            name, took_s = job.function.name, told.actual_s
            self._engine.counters.add_map(MapStats(name, job.n_items, job.n_inline, told.predicted_s, took_s))
            if n_wanted:
                self._engine.scheduler.want_workers_at(n_wanted, time.perf_counter() + planner.START_AHEAD_S)
        if n_wanted:
            self._engine.wake()

    def replace_caller(self, job: MapJob, now: float) -> None:
        """Have a worker more for a map whose caller was to help, and does not."""
        plan = job.plan
        if plan is None or not plan.is_helped or job.batch is not None:
            return
        mean_s = self._engine.cost_model.mean_s(job.function.key)
        is_long, is_absent = (mean_s or 0.0) > planner.INLINE_ITEM_S, now - job.visited_at >= _ABSENT_S
        if not (is_long or is_absent):
            return
        with self._engine.lock:
            pool = self._engine.pool_state(key=job.function.key)
            waiting = self._engine.scheduler.n_waiting(job.job_id)
            # Long items are left to another worker where one is at hand, short ones only if the caller does not come.
            is_long = is_long and min(pool.n_ready, pool.max_workers) > plan.n_workers
            if not waiting or job.plan is not plan or not (is_long or is_absent):
                return
            n_workers = min(plan.n_workers + 1, pool.max_workers)
            if is_long:
                why = f"an item takes {format_time(mean_s or 0.0)}, and a worker more is at hand"
            else:
                why = f"the caller, who was to help, was away for {format_time(now - job.visited_at)}"
            job.plan = plan._replace(n_workers=n_workers, is_helped=False, constraint=why)
            if self._last is plan:
                self._last = job.plan
        self.release(job, n_workers)

    def _start_others(self, job: MapJob, waiting: int, item_s: float, pool_state: PoolState) -> None:
        """Give a map of which nothing is known more workers, as its first item takes longer and longer."""
        n_workers = planner.first_starts(waiting, item_s, pool_state)
        with self._engine.lock:
            plan = job.plan
            if plan is None or not job.is_guess or n_workers <= plan.n_workers:
                return
            why = f"an item in the caller took {format_time(item_s)}"
            job.plan = plan._replace(n_workers=n_workers, constraint=why)
            if self._last is plan:
                self._last = job.plan
        self.release(job, n_workers)

    def look_after(self, job: MapJob, now: float) -> None:
        """Hand a map to workers if its caller is stuck in an item, or does not come for results."""
        with self._engine.lock:
            pool_state = self._engine.pool_state(key=job.function.key)
            waiting = self._engine.scheduler.n_waiting(job.job_id)
        batch = job.batch
        if batch is not None:
            item_s = job.time_in_item(batch, now)
            waiting += batch.n_unstarted
        else:
            item_s = now - job.visited_at
            if pool_state.n_ready == 0 and item_s < pool_state.worker_start_s:
                return
        if job.is_released:
            self._start_others(job, waiting, item_s, pool_state)
            return
        cost = self._engine.cost_model.lookup(job.function.key, in_map=True)
        mean_s, cpu_share = (None, 1.0) if cost is None else (cost.mean_s, cost.cpu_share)
        if not planner.hand_over_pays(waiting, item_s, mean_s, pool_state, cpu_share):
            if batch is not None and now - batch.started_at > _LONG_BATCH_S:
                with self._engine.lock:  # the caller ends its item, and decides again
                    self._engine.scheduler.return_inline(job.job_id, batch.take_back())
            return
        is_cold = pool_state.n_ready == 0
        n_workers = max(min(pool_state.max_workers, waiting), 1)
        if is_cold:
            n_workers = planner.first_starts(waiting, item_s, pool_state)
        elif pool_state.load_s:  # others would have to load the function
            n_workers = min(n_workers, pool_state.n_ready)
        with self._engine.lock:
            if batch is not None:
                self._engine.scheduler.return_inline(job.job_id, batch.take_back())
            plan = job.plan
            if plan is not None and plan.is_serial:
                where = "an item in the caller took" if batch is not None else "the caller was away for"
                why = f"{where} {format_time(item_s)}"
                is_helped = is_cold or n_workers < min(pool_state.max_workers, waiting)
                job.plan = plan._replace(n_workers=n_workers, constraint=why, is_helped=is_helped)
                if self._last is plan:
                    self._last = job.plan
        self.release(job, n_workers)
