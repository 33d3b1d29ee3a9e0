"""Everything in the caller's thread, one task after the other: ``inline="always"``, for debuggers and coverage.

What a task gets and gives is what it would be with workers: arguments, results and functions with state are copies, as
pickling makes them, and what cannot be pickled fails as it would there. Resources are built in this process, once; the
initializer runs in it, once. A task of `submit` has run when `submit` returns; an item of `map` runs when its result is
asked for, and what nobody has asked for by then is run by `shutdown`.

There are no workers, so limits of time and memory, retries and priorities have nothing to act on. No cost is learned:
who steps through a task tells nothing about it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from itertools import islice
from typing import TYPE_CHECKING, Any

from .counters import MapStats
from .decisions.plan import Plan
from .decisions.terms import Terms
from .dispatcher import Dispatcher, Settings, TaskFuture
from .failures import culprit
from .maps import Maps
from .residency import Residency
from .results import Failed, MapJob
from .workers import bulk, resources, serialize
from .workers.copies import copied
from .workers.process import not_picklable
from .workers.residents import Residents
from .workers.resources import Resource

if TYPE_CHECKING:
    from .options import TaskOptions
    from .workers.functions import Function

#: Why nothing runs in workers.
REASON = "inline='always'"


class SerialDispatcher(Dispatcher):
    """Runs what it is given at once."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.residents = Residents(lambda message: None)
        self.maps = self._maps = SerialMaps(self)
        self.residency = SerialResidency(self)
        # Held while the initializer runs or a resource is built, each of which must happen once; by one thread, as
        # often as it needs.
        self.building = threading.RLock()
        self._is_initialized = settings.initializer is None

    def submit(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions | None = None,
    ) -> TaskFuture:
        """Run a call; its future is done."""
        if options is not None and options.is_owed:
            self.check_usable()
        else:
            self.check_open()
        self.begin()
        future = TaskFuture()
        future.set_running_or_notify_cancel()
        with self.lock:
            self.counters.submitted += 1
        try:
            function = self.register(fn)
            value = self.call(function, args, kwargs, lambda: f"an argument of {function.name}")
        except Exception as error:  # the function cannot be pickled
            value = Failed(error)
        except KeyboardInterrupt:
            with self.lock:
                self.counters.failed += 1
            raise
        if type(value) is Failed:
            with self.lock:
                self.counters.failed += 1
            future.set_exception(value.error)
        else:
            future.set_result(value)
        return future

    def call(self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any], what: Callable[[], str]) -> Any:
        """Result of a call as a worker would give it, or `Failed`; `what` names the arguments in an error."""
        begun = time.perf_counter()
        try:
            _ = function.fn_id  # pickles it
            try:
                args, kwargs = self.copy((args, kwargs), has_bulk=bulk.is_among((*args, *kwargs.values())))
            except _NotPicklable as error:
                raise not_picklable(f"{what()} ({culprit(args, kwargs)})", error.problem) from error.problem.__cause__
            with self.building, resources.resolving_with(self.residents):
                call = function.local()
            started = time.perf_counter()
            value = call(*args, **kwargs)
            stopped = time.perf_counter()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # as a worker does
            return Failed(error)
        with self.lock:
            self.counters.run.observe(stopped - started)
            self.counters.wait.observe(started - begun)
        try:
            return serialize.copy(value)
        except Exception as error:
            told = f"the result of {function.name}, a {type(value).__qualname__!r} object,"
            return Failed(not_picklable(told, error))

    def copy(self, obj: Any, *, has_bulk: bool = False) -> Any:
        """What a worker would get for an object; resources are built."""
        if serialize.is_immutable(obj):
            return obj
        try:
            entry = serialize.encode(obj, _COPIER, has_bulk=has_bulk)
        except Exception as problem:
            raise _NotPicklable(problem) from None
        with self.building, resources.resolving_with(self.residents):
            return serialize.decode(entry, _no_lease)

    def begin(self) -> None:
        """Run the initializer, if that was not done.

        Raises
        ------
        BrokenProcessPool
            If it raises, now and whenever the executor is used again.
        """
        if self._is_initialized:
            return
        with self.building:
            if self._is_initialized:
                return
            initializer, initargs = self.settings.initializer, self.settings.initargs
            assert initializer is not None
            self._is_initialized = True
            try:
                try:
                    initargs = self.copy(initargs)
                except _NotPicklable as error:
                    what = f"the initializer {serialize.name_of(initializer)} or one of its arguments"
                    raise not_picklable(what, error.problem) from error.problem.__cause__
                initializer(*initargs)
            except Exception as error:
                self._break(error, "the initializer failed")
        self.check_usable()

    def run_in_worker(self, fn: Callable[..., Any], item: Any) -> Any:
        """Result of one call, which is measured."""
        begun = time.perf_counter()
        value = super().run_in_worker(fn, item)
        self.cost_model.observe(self.register(fn).key, 1, time.perf_counter() - begun)
        return value

    def want_workers(self, n_workers: int) -> None:
        """There are none."""

    def shutdown(self, *, wait: bool, cancel_futures: bool) -> None:
        """No more work; runs or cancels what nobody has asked for yet, and closes resources."""
        with self.lock:
            is_first = not self.is_shut_down
            self.is_shut_down = True
            jobs, self.maps.jobs = list(self.maps.jobs.values()), {}
        for job in jobs:
            job.close_source(RuntimeError("cannot schedule new futures after shutdown"))
            if cancel_futures:
                job.fail(CancelledError())
            else:
                self._maps.run_all(job)
        super().shutdown(wait=wait, cancel_futures=cancel_futures)
        if is_first:
            with self.building:
                self.residents.close_all()
            self.ledger.close()


class SerialMaps(Maps):
    """Maps whose items run when their results are asked for."""

    def __init__(self, engine: SerialDispatcher) -> None:
        super().__init__(engine)
        self._serial = engine

    def open_tiny(self, fn: Callable[..., Any], iterables: tuple[Any, ...]) -> None:
        """None is special here."""

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
        """Take in a map."""
        engine = self._serial
        engine.begin()
        function = engine.register(fn)
        with engine.lock:
            job_id = engine.new_id()
        job = MapJob(job_id, function, items, is_star=is_star, source=source, is_ordered=is_ordered)
        job.constraint = REASON
        job.plan = self._last = Plan(function.name, len(items), 0, 1, constraint=REASON)
        self.jobs[job_id] = job
        return job

    def feed(self, job: MapJob, items: list[Any], *, is_closed: bool) -> None:
        """More items of a map that was opened before all were read."""
        self._serial.check_open()
        job.extend(items)

    def next_results(self, job: MapJob, until: float | None) -> list[Any] | None:
        """The next result of a map; None when there will be none."""
        batch = self.ready_results(job)
        if batch is None:
            problem = job.error or job.cut
            if problem is not None:
                raise problem
        return batch

    def ready_results(self, job: MapJob) -> list[Any] | None:
        """The next result of a map, run now; None when there will be none."""
        if job.n_settled == job.n_out and not self._run_next(job):
            return None
        batch = job.take(1)
        self._read_more(job, 1)
        if job.is_finished() and job.cut is None:
            self._finish(job)
        return batch

    def _run_next(self, job: MapJob) -> bool:
        """Run the first item that has not run; False if there is none, or it is not to run."""
        index = job.n_settled
        if job.error is not None or index >= job.n_items:
            return False
        (item,) = job.take_items([index])
        args = item if job.is_star else (item,)
        begun = time.perf_counter()
        value = self._serial.call(job.function, args, {}, lambda: f"item {index} of map({job.function.name})")
        ended = time.perf_counter()
        is_failed = type(value) is Failed
        job.inline_s += ended - begun
        job.n_inline += 1
        job.note(0, begun, ended, 1, ended - begun, 1, is_continued=index > 0)
        job.settle(range(index, index + 1), [value], failed=is_failed)
        counters = self._serial.counters
        with self._serial.lock:
            counters.items_inline += 1
            counters.items_failed += is_failed
            counters.items_done += not is_failed
        return True

    def run_all(self, job: MapJob) -> None:
        """Run what is left of a map."""
        while self._run_next(job):
            pass

    def _read_more(self, job: MapJob, most: int) -> None:
        if job.source is not None:
            new = list(islice(job.source, most))
            job.extend(new)
            if len(new) < most:
                job.source = None

    def abandon(self, job: MapJob) -> None:
        """Nobody will ask for more results of a map."""
        self.jobs.pop(job.job_id, None)

    def foresee(self, fn: Callable[..., Any], items: list[Any], chunksize: int | None, constraint: str) -> Plan:
        """The plan that a map would have; of an unknown function, a sample is run."""
        self._serial.begin()
        plan = super().foresee(fn, items, chunksize, REASON)
        return plan._replace(n_workers=0, chunksize=1, predicted_s=plan.serial_s, terms=plan.terms[:1], is_helped=False)

    def _finish(self, job: MapJob) -> None:
        plan = job.plan
        self.jobs.pop(job.job_id, None)
        assert plan is not None
        n_items, took_s = job.n_items, time.perf_counter() - job.started_at
        job.plan = plan._replace(
            n_items=n_items,
            item_s=job.inline_s / n_items,
            serial_s=job.inline_s,
            actual_s=took_s,
            n_inline=n_items,
            timeline=tuple(job.spans),
        )
        if self._last is plan:
            self._last = job.plan
        with self._serial.lock:
            self._serial.counters.add_map(MapStats(job.function.name, n_items, n_items, None, took_s))


class SerialResidency(Residency):
    """Resources that are built in this process."""

    def __init__(self, engine: SerialDispatcher) -> None:
        super().__init__(engine)
        self._serial = engine

    def close_resource(self, resource_id: int) -> None:
        """A handle was closed."""
        super().close_resource(resource_id)
        with self._serial.building:
            self._serial.residents.close([resource_id])

    def warm_resource(self, resource: Resource[Any]) -> None:
        """Build a resource ahead of tasks."""
        self.warm_up(1, [resource])

    def warm_up(self, n_workers: int, handles: Sequence[Resource[Any]] | None) -> Future[None]:
        """Run the initializer and build resources; the future is done."""
        self._serial.begin()
        if handles is None:
            handles = [handle for handle in list(self._handles.values()) if not handle.is_closed]
        self.admit(handles)
        future: Future[None] = Future()
        try:
            for handle in handles:
                self._serial.copy(handle)
            future.set_result(None)
        except Exception as error:
            future.set_exception(error)
        return future


class _NotPicklable(Exception):
    """Something cannot be pickled."""

    def __init__(self, problem: Exception) -> None:
        super().__init__(problem)
        self.problem = problem


class _Copier:
    """Copies buffers: what is pickled stays in this process."""

    def store(self, buffer: memoryview) -> Any:
        """A copy of the buffer."""
        return copied(buffer)

    def serial(self, part: object) -> int:
        """None."""
        return 0

    def refer(self, block: object) -> None:
        """Blocks of handles are at hand."""

    def need(self, resource: object) -> None:
        """It is built where it is unpickled: here."""


_COPIER = _Copier()


def _no_lease(block_id: int, start: int, stop: int) -> tuple[memoryview, int]:
    raise AssertionError("nothing was put in a block")
