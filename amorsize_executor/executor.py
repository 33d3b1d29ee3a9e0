"""`AmorsizeExecutor`: an executor that finds out how to run things."""

from __future__ import annotations

import math
import os
import signal
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from . import machine
from .decisions.cost_model import CostModel
from .decisions.terms import Terms
from .dispatcher import Dispatcher, Settings
from .results import Failed, MapJob

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext
    from types import TracebackType
    from typing import ParamSpec

    from distributed import Client

    from .batching import Batcher
    from .decisions.plan import Plan
    from .decisions.planner import PoolState
    from .integrations.dask_engine.engine import DaskEngine
    from .integrations.progress import Progress
    from .learned import LearnedCosts
    from .maps import Maps
    from .options import TaskOptions
    from .stats import ExecutorStats
    from .tiny import TinyMap
    from .workers.resources import Resource
    from .workers.sharing import Shared

    P = ParamSpec("P")
T = TypeVar("T")

#: An idle worker leaves after this, in seconds; the very object tells that the caller has said nothing else.
_IDLE_TIMEOUT_S = 60.0
#: Results that come in larger batches than this are small, and handed out as fast as a list.
_LARGE_BATCH = 64
#: Items that are made while they are read are handed on this often, in seconds, and the first ones when there are as
#: many (then twice as many, and so on): the next may be long in coming.
_READ_S = 5e-3
_READ_ITEMS = 64
_START_METHODS = ("loky", "spawn", "forkserver", "fork")
#: In the environment: 1 lets everything run in the caller.
_INLINE_VARIABLE = "AMORSIZE_INLINE"
#: Read by BLAS, OpenMP and friends when they load.
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)

#: What this process has learned; shared by all executors that were given no other model.
_process_model = CostModel()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process_model.renew_lock)


class RunningMap(NamedTuple):
    """A map that was started, for callers that need more of it than its results.

    Attributes
    ----------
    results
        What `AmorsizeExecutor.map` returns.
    job
        The map itself; None when there are no items.
    """

    results: Iterator[Any]
    job: MapJob | None

    @property
    def plan(self) -> Plan | None:
        """What this map does and why; its `actual_s` is set when its last result was taken."""
        return None if self.job is None else self.job.plan


class AmorsizeExecutor(Executor):
    """A process pool that decides by measuring whether, how wide and in which chunks to run in parallel.

    It takes the place of `concurrent.futures.ProcessPoolExecutor`; the first four parameters are the same.

    Parameters
    ----------
    max_workers
        Upper bound on worker processes. None: the CPUs that this process may use; in a worker of another executor, its
        share of them.
    mp_context
        How workers start: "loky" (the default: no forked locks, no ``if __name__ == "__main__"`` needed), "spawn",
        "forkserver", "fork", or a multiprocessing context.
    initializer, initargs
        Called in each worker before its first task. If it raises, the executor is broken.
    max_tasks_per_child
        Tasks after which a worker is replaced. None: never, unless its memory grows with each task. The next one
        starts before the old one leaves, as one process more for a moment, and gets its tasks afterwards.
    min_workers
        Workers that are kept once they have started.
    idle_timeout
        Seconds after which an idle worker above `min_workers` ends. None: never.
    memory_limit
        Bytes for this process and its workers together: workers are added only while their measured peak fits. None:
        what the container or the host allows.
    inline
        "auto": `map` may run items in the calling thread, inside ``next()`` of its result iterator, where that is
        cheaper than sending them; with an `initializer`, or a `timeout` of `map`, it never does. "never": everything
        runs in workers. "always": everything runs in the caller, tasks of `submit` before it returns and items of `map`
        inside ``next()``, for debuggers and coverage; so it does for all executors with ``AMORSIZE_INLINE=1`` in the
        environment. Options for workers and limits of time have nothing to act on then.
    retries
        Times that a task runs again after its worker died while running it.
    threads_per_worker
        Threads for BLAS and OpenMP in each worker. None: CPUs // max_workers, unless the environment says otherwise.
    cost_model
        What is known about functions. None: shared by all executors of the process. A path: of an SQLite file in
        which it is kept for later processes; safe with many of them at once.
    progress
        Default for `map`: True shows a bar, a callable is called with (done, total).
    engine
        Where workers run. None: processes of this machine. A `distributed.Client`: in threads of a Dask cluster, which
        stays open; then `max_workers` None follows the number of its threads, `idle_timeout` is 0.25 s unless it is
        given, and `mp_context`, `max_tasks_per_child`, `memory_limit` and `threads_per_worker` are the cluster's to
        decide.

    Raises
    ------
    TypeError, ValueError
        For a parameter of the wrong type or out of range.
    ImportError
        For an engine whose library is not installed.

    Examples
    --------
    >>> with AmorsizeExecutor(max_workers=2) as executor:
    ...     list(executor.map(pow, [2, 3], [10, 4]))
    [1024, 81]
    """

    #: Of a view.
    _options: TaskOptions | None = None

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: BaseContext | str | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        min_workers: int = 0,
        idle_timeout: float | None = _IDLE_TIMEOUT_S,
        memory_limit: int | float | None = None,
        inline: Literal["auto", "never", "always"] = "auto",
        retries: int = 0,
        threads_per_worker: int | None = None,
        cost_model: CostModel | str | os.PathLike[str] | None = None,
        progress: bool | Callable[[int, int], object] = False,
        engine: Client | None = None,
    ) -> None:
        place: DaskEngine | None = None
        n_cpus = machine.cpu_share()
        follows_engine = engine is not None and max_workers is None
        if engine is not None:
            _check_engine_options(mp_context, max_tasks_per_child, memory_limit, threads_per_worker, cost_model)
            from .integrations.dask_engine import engine_of

            place = engine_of(engine)
            n_cpus = max(place.n_threads, 1)
            cost_model = place.make_cost_model() if cost_model is None else cost_model
            idle_timeout = place.idle_timeout_s if idle_timeout is _IDLE_TIMEOUT_S else idle_timeout
        if max_workers is None:
            max_workers = n_cpus
        _check_int("max_workers", max_workers, 1)
        _check_context(mp_context)
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be a callable, got {initializer!r}")
        if not isinstance(initargs, Iterable):
            raise TypeError(f"initargs must be a tuple, got {initargs!r}")
        initargs = tuple(initargs)
        if max_tasks_per_child is not None:
            _check_int("max_tasks_per_child", max_tasks_per_child, 1)
            if mp_context == "fork" or _method(mp_context) == "fork":
                raise ValueError(
                    "max_tasks_per_child is incompatible with the 'fork' start method; use mp_context='loky'"
                )
        _check_int("min_workers", min_workers, 0)
        if min_workers > max_workers:
            raise ValueError(f"min_workers must be at most max_workers ({max_workers}), got {min_workers}")
        _check_number("idle_timeout", idle_timeout, 0)
        _check_number("memory_limit", memory_limit, 1)
        if inline not in ("auto", "never", "always"):
            raise ValueError(f"inline must be 'auto', 'never' or 'always', got {inline!r}")
        if _is_told_inline():
            inline = "always"
        _check_int("retries", retries, 0)
        if threads_per_worker is not None:
            _check_int("threads_per_worker", threads_per_worker, 1)
        learned: LearnedCosts | None = None
        if cost_model is None:
            cost_model = _process_model if inline != "always" else CostModel()
        elif isinstance(cost_model, (str, os.PathLike)) and inline == "always":  # nothing is learned
            cost_model = CostModel()
        elif isinstance(cost_model, (str, os.PathLike)):
            from .learned import LearnedCosts

            path, cost_model = cost_model, CostModel()
            learned = LearnedCosts(path, cost_model)
            learned.begin()
        elif not isinstance(cost_model, CostModel):
            raise TypeError(f"cost_model must be a CostModel, the path of a file or None, got {cost_model!r}")
        _check_progress(progress)
        self._progress = progress
        n_cpus = max(n_cpus, min(max_workers, machine.cpu_count()))  # in a worker: who asks for more than its share
        share = {machine.CPU_SHARE: str(max(n_cpus // max_workers, 1))}
        self._settings = Settings(
            max_workers=max_workers,
            context=mp_context,
            initializer=initializer,
            initargs=initargs,
            max_tasks_per_child=max_tasks_per_child,
            min_workers=min_workers,
            idle_timeout_s=idle_timeout,
            memory_limit=int(memory_limit) if memory_limit is not None and memory_limit < math.inf else None,
            inline=inline,
            retries=retries,
            env={**_thread_limits(threads_per_worker, n_cpus, max_workers), **share},
            n_cpus=n_cpus,
            cost_model=cost_model,
            learned=learned,
            engine=place,
            follows_engine=follows_engine,
        )
        self._attach(_make_dispatcher(self._settings))

    def _attach(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        # The I/O thread holds the dispatcher, never the executor: so the executor can be collected.
        self._finalizer = weakref.finalize(self, dispatcher.abandon_all)
        self._finalizer.atexit = False

    def _own(self) -> Dispatcher:
        """The dispatcher; a new one in the child of a fork, where the parent's threads and workers are not ours."""
        if self._dispatcher.is_foreign:
            self._finalizer.detach()
            self._settings.cost_model.renew_lock()
            self._attach(_make_dispatcher(self._settings))
        return self._dispatcher

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run ``fn(*args, **kwargs)`` in a worker.

        Parameters
        ----------
        fn
            Any callable that can be pickled, also a lambda, closure or bound method.
        args, kwargs
            For `fn`, as they are at this moment. They may have handles that `share` and `resource` gave.

        Returns
        -------
        Future
            Of the call. If `fn`, an argument or the result cannot be pickled, the error comes from here.

        Raises
        ------
        BrokenProcessPool
            If workers cannot be started.
        RuntimeError
            After `shutdown`.

        Examples
        --------
        >>> with AmorsizeExecutor(2) as executor:
        ...     executor.submit(pow, 2, 10).result()
        1024
        """
        _check_callable(fn)
        return self._own().submit(fn, args, kwargs, self._options)

    async def asubmit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``fn(*args, **kwargs)`` in a worker, and wait for it in a coroutine.

        The loop is never held up: where a `submit` would wait for room in the queue, this waits beside it.

        If the coroutine is cancelled, a task that has not begun leaves the queue. One that runs goes on, and its result
        is dropped: ``ex.options(timeout=...)`` bounds how long that can be.

        Parameters
        ----------
        fn, args, kwargs
            As for `submit`.

        Returns
        -------
        T
            What `fn` returns; what it raises is raised.

        Raises
        ------
        QueueFull, TaskTimeout
            With the options of a view.
        WorkerDied
            If the worker ended while it ran the task.
        BrokenProcessPool
            If workers cannot be started.
        RuntimeError
            After `shutdown`.

        Examples
        --------
        >>> import asyncio
        >>> with AmorsizeExecutor(2) as executor:
        ...     asyncio.run(executor.asubmit(pow, 2, 10))
        1024
        """
        from .aio import submit

        _check_callable(fn)
        result: T = await submit(self._own(), fn, args, kwargs, self._options, self._watch)
        return result

    def _watch(self, future: Future[Any]) -> None:
        """A task was submitted; a view waits for its own."""

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        ordered: bool = True,
        progress: bool | Callable[[int, int], object] | None = None,
    ) -> Iterator[T]:
        """Apply `fn` to each item, like the built-in ``map``, where and in chunks as it pays.

        Parameters
        ----------
        fn
            Called with as many arguments as there are iterables.
        iterables
            Read at once, in the calling thread; with `buffersize` as results are taken.
        timeout
            Seconds from this call until a result that is asked for must be there.
        chunksize
            Items that go to a worker together, kept exactly. None: chosen and adapted.
        buffersize
            Items read ahead of the results that were taken, at most. None: all.
        ordered
            Whether results come in the order of the items, or as they are ready.
        progress
            True shows a bar on stderr, a callable is called with (done, total). None: the executor's default.

        Returns
        -------
        Iterator
            Of results. An exception of `fn` is raised in place of its result, and ends the iteration.

        Raises
        ------
        TimeoutError
            From ``next()``, if a result is not there in time.
        TypeError, ValueError
            For a parameter of the wrong type or out of range.
        RuntimeError
            After `shutdown`.

        Examples
        --------
        >>> with AmorsizeExecutor(2) as executor:
        ...     list(executor.map(abs, [-3, -2, -1]))
        [3, 2, 1]
        """
        if not iterables:
            raise TypeError("map() must have at least one iterable")
        if (
            timeout is None
            and chunksize is None
            and buffersize is None
            and ordered
            and not (self._progress if progress is None else progress)
            and not self._constraint
            and self._options is None
            and callable(fn)
        ):
            dispatcher = self._own()
            tiny = dispatcher.maps.open_tiny(fn, iterables)
            if tiny is not None:
                return MapResults.of(_tiny_batches(dispatcher, tiny), dispatcher.maps)
        return self.start_map(
            fn,
            *iterables,
            timeout=timeout,
            chunksize=chunksize,
            buffersize=buffersize,
            ordered=ordered,
            progress=progress,
        ).results

    def start_map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        ordered: bool = True,
        progress: bool | Callable[[int, int], object] | None = None,
        n_workers: int | None = None,
        sample_size: int | None = None,
    ) -> RunningMap:
        """Do what `map` does, for callers who decide more themselves or want the plan of this very map.

        Parameters
        ----------
        fn, iterables, timeout, chunksize, buffersize, ordered, progress
            As for `map`.
        n_workers
            Workers to use, decided elsewhere; nothing runs in the caller then. None: as it pays.
        sample_size
            Of a function that is not known yet, at most so many items run in the caller before it is decided how to
            go on. None: as many as fit into half a millisecond.

        Returns
        -------
        RunningMap
            Its `results` are what `map` returns, its `plan` is that of this map.

        Raises
        ------
        TypeError, ValueError
            For a parameter of the wrong type or out of range.
        RuntimeError
            After `shutdown`.

        Examples
        --------
        >>> with AmorsizeExecutor(2) as executor:
        ...     running = executor.start_map(abs, [-3, -2, -1], n_workers=1)
        ...     list(running.results), running.plan.n_workers
        ([3, 2, 1], 1)
        """
        _check_number("timeout", timeout)
        until = None if timeout is None else time.monotonic() + timeout
        job, shown = self._open_map(
            fn,
            *iterables,
            chunksize=chunksize,
            buffersize=buffersize,
            ordered=ordered,
            progress=progress,
            n_workers=n_workers,
            sample_size=sample_size,
            constraint="" if timeout is None else "a timeout is set",
        )
        if job is None:
            return RunningMap(iter(()), None)
        # Who has more to read must be able to submit it: then the iterator keeps the executor alive.
        kept = self if job.source is not None else None
        dispatcher = self._own()
        return RunningMap(MapResults.of(_batches(dispatcher, job, until, shown, kept), dispatcher.maps), job)

    def _open_map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        chunksize: int | None,
        buffersize: int | None,
        ordered: bool,
        progress: bool | Callable[[int, int], object] | None,
        n_workers: int | None = None,
        sample_size: int | None = None,
        constraint: str,
    ) -> tuple[MapJob | None, Progress | None]:
        """Check what `start_map` was given and take the map in; no map if there are no items."""
        _check_callable(fn)
        if chunksize is not None:
            _check_int("chunksize", chunksize, 1)
        if buffersize is not None:
            _check_int("buffersize", buffersize, 1)
        if progress is None:
            progress = self._progress
        else:
            _check_progress(progress)
        if n_workers is not None:
            _check_int("n_workers", n_workers, 1)
        if sample_size is not None:
            _check_int("sample_size", sample_size, 1)
        dispatcher = self._own()
        dispatcher.check_open()
        options = self._options
        is_star = len(iterables) > 1
        source: Iterator[Any] | None = None
        rest: Iterator[Any] | None = None
        if buffersize is not None:
            source = iter(zip(*iterables, strict=False)) if is_star else iter(iterables[0])
            items = list(islice(source, buffersize))
            if len(items) < buffersize:
                source = None
        elif all(hasattr(iterable, "__len__") for iterable in iterables):
            items = list(zip(*iterables, strict=False)) if is_star else list(iterables[0])
        else:  # workers may begin while more is read
            rest = iter(zip(*iterables, strict=False)) if is_star else iter(iterables[0])
            most = _READ_ITEMS
            items, is_all = _read(rest, most)
            rest = None if is_all else rest
        if not items:
            return None, None
        constraint = constraint or self._constraint
        if n_workers is not None:
            constraint = f"{n_workers} worker{'s were' if n_workers > 1 else ' was'} asked for"
        job = dispatcher.maps.open(
            fn,
            items,
            is_star=is_star,
            source=source,
            chunksize=chunksize,
            is_ordered=ordered,
            constraint=constraint,
            is_closed=rest is None,
            n_workers=n_workers,
            sample_size=sample_size,
            terms=None if options is None else options.terms,
        )
        if rest is not None:
            try:
                is_all = False
                while not is_all:
                    most *= 2
                    items, is_all = _read(rest, most)
                    dispatcher.maps.feed(job, items, is_closed=is_all)
            except BaseException:
                dispatcher.maps.abandon(job)
                raise
        return job, _make_progress(progress, job) if progress else None

    def amap(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        chunksize: int | None = None,
        buffersize: int | None = None,
        ordered: bool = True,
        progress: bool | Callable[[int, int], object] | None = None,
    ) -> AsyncGenerator[T, None]:
        """Apply `fn` to each item in workers; for ``async for``, which never holds up the loop.

        Parameters
        ----------
        fn
            As for `map`. No item runs in the calling thread.
        iterables
            Read in the loop's thread: all at once now, or with `buffersize` as results are taken.
        chunksize
            Items that go to a worker together, kept exactly. None: chosen and adapted.
        buffersize
            Items read ahead of the results that were taken, at most. None: all.
        ordered
            Whether results come in the order of the items, or as they are ready.
        progress
            As for `map`; called in the loop's thread.

        Returns
        -------
        AsyncGenerator
            Of results. An exception of `fn` is raised in place of its result, and ends the iteration. When the
            iteration ends early (``aclose()``, or the coroutine is cancelled while it waits here), items that have not
            begun are dropped.

        Raises
        ------
        TypeError, ValueError
            For a parameter of the wrong type or out of range.

        Examples
        --------
        >>> import asyncio
        >>> async def squares(executor):
        ...     return [square async for square in executor.amap(pow, [2, 3], [2, 2])]
        >>> with AmorsizeExecutor(2) as executor:
        ...     asyncio.run(squares(executor))
        [4, 9]
        """
        from .aio import map_results

        if not iterables:
            raise TypeError("amap() must have at least one iterable")
        job, shown = self._open_map(
            fn,
            *iterables,
            chunksize=chunksize,
            buffersize=buffersize,
            ordered=ordered,
            progress=progress,
            constraint="it is iterated over in an event loop",
        )
        # Who has more to read must be able to submit it: then the generator keeps the executor alive.
        kept = self if job is not None and job.source is not None else None
        return map_results(self._own().maps, job, shown, kept)

    def batch(
        self,
        fn: Callable[[list[Any]], Iterable[T]],
        *,
        max_batch_size: int | None = None,
        max_delay: float | None = None,
        target_latency: float | None = None,
    ) -> Batcher[Any, T]:
        """Put single calls from many threads and coroutines together into calls of ``fn(list)`` in workers.

        Parameters
        ----------
        fn
            Takes a list of items and returns one result for each, in the same order: a list, or an array whose rows
            they are. It must be safe to repeat: when it raises, both halves of its list are tried again, down to the
            item that it fails on, which alone gets the exception. Resources may stand in it, as in a
            ``functools.partial``.
        max_batch_size
            Items in a list at most. None: as many as pays.
        max_delay
            Seconds that an item may wait for others although a worker is free. None: as long as it pays, never longer
            than what a batch takes however small it is. While all workers are busy, items wait in any case.
        target_latency
            Seconds that a call should take from its arrival to its result: batches are kept small enough for that, as
            long as such batches can carry the load. A wish; ``options(timeout=...)`` is a bound.

        Returns
        -------
        Batcher
            Call it with an item, or use its `submit` or `asubmit`. A context manager; `close` waits for its calls. The
            conditions of a view hold for single calls (`max_pending`: those of this front that wait), except that
            `priority` and `retries` are those of whole batches; a batch that loses its worker for the last time that
            `retries` allows is run again one by one.

        Raises
        ------
        TypeError, ValueError
            For a parameter of the wrong type or out of range.
        RuntimeError
            After `shutdown`.

        Notes
        -----
        Batches follow free workers: with a light load each call goes alone at once, with a heavy one batches grow. What
        is measured, and the formulas that decide, are in `amorsize_executor.decisions.batching`.

        Examples
        --------
        >>> def double_all(items):
        ...     return [2 * item for item in items]
        >>> with AmorsizeExecutor(1) as executor, executor.batch(double_all) as double:
        ...     futures = [double.submit(i) for i in range(3)]
        ...     [future.result() for future in futures], double(21)
        ([0, 2, 4], 42)
        """
        from .batching import Batcher

        _check_callable(fn)
        if max_batch_size is not None:
            _check_int("max_batch_size", max_batch_size, 1)
        _check_number("max_delay", max_delay, 0)
        _check_number("target_latency", target_latency, 0)
        self._own().check_open()
        return Batcher(
            self._own,
            fn,
            self._options,
            max_batch_size=max_batch_size,
            max_delay_s=max_delay,
            target_s=target_latency,
        )

    @property
    def _constraint(self) -> str:
        """Why items may not run in the caller; empty if they may."""
        if self._options is not None and self._options.terms.timeout_s is not None:
            return "a timeout is set"
        if self._settings.inline == "never":
            return "inline='never'"
        return "an initializer is set" if self._settings.initializer is not None else ""

    def plan(self, fn: Callable[[Any], Any], items: Iterable[Any]) -> Plan:
        """What `map` would do with these items now, and why.

        Parameters
        ----------
        fn
            Called with one item. If nothing is known about it, a sample is run as `map` would begin: three items, more
            where they are short (half a millisecond's worth), fewer where they are long; nothing else runs.
        items
            The items; a generator is read to its end.

        Returns
        -------
        Plan
            With the cost of the serial loop and of each number of workers that was compared, term by term.

        Raises
        ------
        TypeError
            For a parameter of the wrong type.
        Exception
            Whatever `fn` raises for a sampled item.

        Examples
        --------
        >>> with AmorsizeExecutor() as executor:
        ...     plan = executor.plan(abs, range(1000))
        >>> plan.is_serial, plan.n_items
        (True, 1000)
        """
        _check_callable(fn)
        if not isinstance(items, Iterable):
            raise TypeError(f"items must be an iterable, got {items!r}")
        dispatcher = self._own()
        dispatcher.check_open()
        return dispatcher.maps.foresee(fn, list(items), None, self._constraint)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work and free the workers when what was submitted is done.

        Parameters
        ----------
        wait
            Whether to return only when all is done and the workers are gone.
        cancel_futures
            Whether to cancel what has not started.
        """
        if not self._dispatcher.is_foreign:
            self._dispatcher.shutdown(wait=wait, cancel_futures=cancel_futures)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if exc_type is not None and issubclass(exc_type, KeyboardInterrupt):
            self._dispatcher.end_workers(signal.SIGKILL, "Ctrl-C")  # who presses it does not want to wait
        self.shutdown(wait=True)
        return None

    def terminate_workers(self) -> None:
        """End the workers with SIGTERM, now; futures that are not done get `BrokenProcessPool`."""
        self._end(signal.SIGTERM, "terminate_workers()")

    def kill_workers(self) -> None:
        """End the workers with SIGKILL, now; futures that are not done get `BrokenProcessPool`."""
        self._end(signal.SIGKILL, "kill_workers()")

    def _end(self, signum: signal.Signals, what: str) -> None:
        if not self._dispatcher.is_foreign:
            self._dispatcher.end_workers(signum, what)

    def cancel(self, futures: Iterable[Future[Any]]) -> None:
        """Cancel tasks also if they run; their workers go on with other tasks, or are replaced. Does not wait.

        Parameters
        ----------
        futures
            That `submit` gave. A task that has not begun is cancelled as by ``future.cancel()``. For one that runs, its
            worker is killed with the processes that it has started, and its future raises `CancelledError`; with an
            engine, it goes on. One that is done stays as it is.

        Examples
        --------
        >>> import time
        >>> with AmorsizeExecutor(1) as executor:
        ...     future = executor.submit(time.sleep, 3600)
        ...     executor.cancel([future])
        """
        if not self._dispatcher.is_foreign:
            self._dispatcher.end_tasks(list(futures))

    def resize(self, max_workers: int) -> None:
        """Change the upper bound on workers, while work goes on.

        Parameters
        ----------
        max_workers
            New upper bound. Surplus workers end when they have finished what they have.

        Raises
        ------
        TypeError, ValueError
            If it is no integer, or less than 1.

        Examples
        --------
        >>> with AmorsizeExecutor(1) as executor:
        ...     executor.resize(4)
        ...     executor.max_workers
        4
        """
        _check_int("max_workers", max_workers, 1)
        self._own().resize(max_workers)

    def options(
        self,
        *,
        timeout: float | None = None,
        retries: int | None = None,
        priority: int = 0,
        max_pending: int | None = None,
        when_full: Literal["block", "raise"] = "block",
    ) -> AmorsizeExecutor:
        """A view on this executor: the same workers, other conditions for what is submitted through it.

        Parameters
        ----------
        timeout
            Seconds. A task of `submit` must be done so long after the call, the wait for a worker included: after that
            it leaves the queue or, if it runs, its worker is killed with the processes that it has started, and
            replaced. The other tasks of that worker go to others. Its future gets `TaskTimeout`. An item of `map` may
            run so long from its beginning; it is looked at ten times within, so it may be a tenth more. None: for ever.
        retries
            Times that a task runs again after its worker died while running it. None: as the executor was told. A task
            whose time is over does not run again.
        priority
            What has a higher one goes to workers first, and as long as it waits nothing lower does; first in, first out
            among equals, and maps take turns with them. A task that has begun is never interrupted for another.
        max_pending
            A `submit` is accepted only while fewer tasks than this, of all views together, wait for a worker. None:
            always. For `map` there is `buffersize`.
        when_full
            What `submit` does then: "block" waits for room (within `timeout`; not in a callback of a future, which
            would hold up those that make room), "raise" raises `QueueFull` at once.

        Returns
        -------
        AmorsizeExecutor
            The view. Its `shutdown`, and leaving a ``with`` block over it, waits for what was submitted through it and
            closes the view only; whatever else is called on it is done by this executor. The options of a view on a
            view are those of the latest call alone.

        Raises
        ------
        TypeError, ValueError
            For a parameter of the wrong type or out of range.

        Examples
        --------
        >>> with AmorsizeExecutor(2) as executor:
        ...     quick = executor.options(timeout=30, priority=1)
        ...     quick.submit(pow, 2, 10).result()
        1024
        """
        from .options import TaskOptions
        from .views import ExecutorView

        _check_number("timeout", timeout, 0)
        if timeout is not None and self._settings.engine is not None:
            raise ValueError(
                f"timeout must be None with an engine, got {timeout!r}: a task in a thread of a cluster cannot be "
                "ended; wait with future.result(timeout) or map(timeout=)"
            )
        if retries is not None:
            _check_int("retries", retries, 0)
        _check_int("priority", priority)
        if max_pending is not None:
            _check_int("max_pending", max_pending, 1)
        if when_full not in ("block", "raise"):
            raise ValueError(f"when_full must be 'block' or 'raise', got {when_full!r}")
        terms = Terms(priority, retries, None if timeout is None or timeout == math.inf else timeout)
        return ExecutorView(self, TaskOptions(terms, max_pending, when_full == "block"))

    def share(self, obj: T) -> Shared[T]:
        """Store an object once, for all tasks that need it, until it is closed.

        Large objects that stand in several items of a map, or in a function, are shared anyway. This is for those that
        many calls need: nothing is compared or stored again, and the caller may give up its own copy.

        Parameters
        ----------
        obj
            The object, stored as it is now.

        Returns
        -------
        Shared
            A handle, to be put in place of the object anywhere in arguments and functions, for any executor of this
            process. A context manager; `Shared.close` gives up the memory.

        Raises
        ------
        SerializationError
            If the object cannot be pickled.

        Examples
        --------
        >>> with AmorsizeExecutor(2) as executor, executor.share([3, 1, 2]) as numbers:
        ...     executor.submit(sorted, numbers).result()
        [1, 2, 3]
        """
        from .workers.sharing import Shared

        self._own().check_open()
        return Shared(obj)

    def resource(self, factory: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Resource[T]:
        """State of each worker: an object that it builds with ``factory(*args, **kwargs)`` when it is first needed.

        Parameters
        ----------
        factory
            Called in a worker, once, before the first task that needs the object. If it raises, that task fails with
            what it raised, and the next one tries again. The time that it takes counts as no task's.
        args, kwargs
            For `factory`; they may have other resources, and what `share` gives.

        Returns
        -------
        Resource
            A handle, to be put in place of the object anywhere in arguments and functions of `submit` and `map`. The
            task gets the object that its worker has, the same for all tasks. A context manager; `Resource.close` lets
            workers close their objects, `Resource.warm` has them built ahead of tasks.

        Raises
        ------
        SerializationError
            If the factory or an argument cannot be pickled.
        RuntimeError
            After `shutdown`.

        Notes
        -----
        A task goes to a worker that has what it needs, and waits for one rather than have another one load it, where
        that is sooner. Where memory is short, a worker closes what it has not used for longest.

        Examples
        --------
        >>> import collections
        >>> with AmorsizeExecutor(1) as executor, executor.resource(collections.Counter, "abca") as counts:
        ...     executor.submit(collections.Counter.most_common, counts, 1).result()
        [('a', 2)]
        """
        from .workers.resources import Resource

        _check_callable(factory, "factory")
        dispatcher = self._own()
        dispatcher.check_open()
        handle: Resource[T] = Resource(factory, args, kwargs)
        dispatcher.residency.admit([handle])
        return handle

    def warm_up(
        self,
        workers: int | None = None,
        *,
        resources: Iterable[Resource[Any]] | None = None,
        timeout: float | None = None,
    ) -> None:
        """Start workers and let them build resources, ahead of tasks; returns when they are ready.

        Workers above `min_workers` leave again when they have been idle for long.

        Parameters
        ----------
        workers
            How many. None: `max_workers`, or as many as fit into memory.
        resources
            Those that these workers are to have; workers that start later build them, too, before they get tasks. None:
            all that `resource` has given and that are not closed.
        timeout
            Seconds to wait. None: as long as it takes.

        Raises
        ------
        TimeoutError
            If they are not ready in time. They go on to start and to load.
        Exception
            What a factory or an initializer raised in a worker.
        BrokenProcessPool
            If workers cannot be started.
        RuntimeError
            After `shutdown`.
        TypeError, ValueError
            For a parameter of the wrong type or out of range.

        Examples
        --------
        >>> with AmorsizeExecutor(2) as executor:
        ...     executor.warm_up()
        ...     executor.pool_state().n_ready
        2
        """
        dispatcher = self._own()
        dispatcher.check_open()
        most = dispatcher.scheduler.worker_limit
        if workers is None:
            workers = most
        _check_int("workers", workers, 1)
        if workers > self.max_workers:
            raise ValueError(f"workers must be at most max_workers ({self.max_workers}), got {workers!r}")
        _check_number("timeout", timeout, 0)
        handles: list[Resource[Any]] | None = None
        if resources is not None:
            from .workers.resources import Resource

            handles = list(resources)
            for handle in handles:
                if not isinstance(handle, Resource):
                    raise TypeError(f"resources must be what resource() gave, got {handle!r}")
                handle.check_open()
        future = dispatcher.residency.warm_up(workers, handles)
        try:
            future.result(timeout)
        except FutureTimeoutError:
            if future.done():  # the factory's own
                raise
            raise TimeoutError(f"{workers} workers were not ready within {timeout} s") from None

    def stats(self, *, memory: bool = False) -> ExecutorStats:
        """What the executor has done so far, and what it looks like now.

        Parameters
        ----------
        memory
            Whether to look up how much memory each worker uses, which takes some 20 microseconds for each.

        Returns
        -------
        ExecutorStats
            A snapshot that nothing changes any more, readable as text.

        Examples
        --------
        >>> with AmorsizeExecutor(2) as executor:
        ...     future = executor.submit(pow, 2, 10)
        ...     stats = executor.stats() if future.result() else None
        >>> stats.tasks_submitted, stats.tasks_done, stats.n_workers("idle")
        (1, 1, 1)
        """
        from .stats import take_stats

        return take_stats(self._own(), memory=memory)

    @property
    def is_open(self) -> bool:
        """Whether it takes work: it was neither shut down nor broken by workers that cannot be started."""
        return self._own().is_open

    @property
    def max_workers(self) -> int:
        """The upper bound on workers, as given or as set by `resize`."""
        return self._own().scheduler.max_workers

    @property
    def cost_model(self) -> CostModel:
        """What it knows about functions; by default the model that all executors of the process share."""
        return self._settings.cost_model

    def loads_like(self, fn: Callable[..., Any], other: Callable[..., Any], extra_s: float) -> None:
        """What workers have loaded for one function, they have for another, which takes them as long.

        Parameters
        ----------
        fn, other
            A function, and one that has run in its place.
        extra_s
            What `fn` takes beyond that, in seconds.
        """
        from .workers.functions import cost_key

        dispatcher = self._own()
        load_s = self.cost_model.load_s(cost_key(other))
        if load_s is not None:
            self.cost_model.observe_load(cost_key(fn), load_s + extra_s)
            with dispatcher.lock:
                dispatcher.scheduler.know_alike(cost_key(fn), cost_key(other))

    def pool_state(self, fn: Callable[..., Any] | None = None) -> PoolState:
        """The pool as the planner sees it now.

        Parameters
        ----------
        fn
            For a map of this function: of workers that have to load it first, and take long for that, none is ready.

        Returns
        -------
        PoolState
            A snapshot: how many workers there are, how many there may be, and what it costs to start one.
        """
        dispatcher = self._own()
        if fn is None:
            with dispatcher.lock:
                return dispatcher.pool_state()
        from .workers.functions import cost_key

        with dispatcher.lock:
            return dispatcher.pool_state(key=cost_key(fn))

    @property
    def last_plan(self) -> Plan | None:
        """What the latest `map` did and why; its `actual_s` is set when its last result was taken."""
        return self._dispatcher.maps.last_plan


class MapResults(chain[Any]):
    """Results of a map as they are taken, at the speed of C. Dropped half-way, it cancels what has not started."""

    _batches: Generator[Iterable[Any], None, None]
    _maps: Maps

    @classmethod
    def of(cls, batches: Generator[Iterable[Any], None, None], maps: Maps) -> MapResults:
        """Over results that come in batches, of one of these maps."""
        results = cls.from_iterable(batches)
        assert isinstance(results, MapResults)
        results._batches, results._maps = batches, maps
        return results

    def close(self) -> None:
        """Give no more results, and cancel what has not started."""
        self._batches.close()
        self._maps.forget_dropped()  # here and now: else the I/O thread would, in a moment
        while True:  # what is left of the present batch
            try:
                for _ in self:
                    pass
                return
            except Exception:  # of an item whose result nobody wants any more
                continue


def _batches(
    dispatcher: Dispatcher, job: MapJob, until: float | None, shown: Progress | None, kept: AmorsizeExecutor | None
) -> Generator[Iterable[Any], None, None]:
    """Results of a map in batches, to be iterated over one after the other."""
    is_over = False

    def end() -> None:
        nonlocal is_over
        if not is_over:
            is_over = True
            dispatcher.maps.abandon(job)
            if shown is not None:
                shown.close()

    try:
        while not is_over and (batch := dispatcher.maps.next_results(job, until)) is not None:
            if shown is not None:
                yield _shown(_checked(batch, end), shown, end)
            elif job.has_failed:
                yield _checked(batch, end)
            elif len(batch) > _LARGE_BATCH:
                yield batch
            else:
                yield _given_away(batch)
        is_complete = not is_over
        is_over = True
        if is_complete and shown is not None:
            shown.close()
    finally:
        end()


def _tiny_batches(dispatcher: Dispatcher, tiny: TinyMap) -> Generator[Iterable[Any], None, None]:
    """Results of a tiny map in batches."""
    is_over = False

    def end() -> None:
        nonlocal is_over
        is_over = True
        if tiny.rest is not None:
            dispatcher.maps.abandon(tiny.rest)

    values: list[Any] | None = None
    try:
        values = dispatcher.maps.run_tiny(tiny)
    finally:
        if values is None:
            end()
    yield _checked(values, end) if values and type(values[-1]) is Failed else values
    if tiny.rest is not None and not is_over:
        yield from _batches(dispatcher, tiny.rest, None, None, None)


def _given_away(batch: list[Any]) -> Iterator[Any]:
    """Keep no result longer than its taker does: these may be large."""
    batch.reverse()
    while batch:
        yield batch.pop()


def _checked(batch: list[Any], end: Callable[[], None]) -> Iterator[Any]:
    for value in batch:
        if type(value) is Failed:
            end()
            raise value.error
        yield value


def _shown(values: Iterator[Any], shown: Progress, end: Callable[[], None]) -> Iterator[Any]:
    for value in values:
        try:
            shown.advance()
        except BaseException:  # of the user's callable, or Ctrl-C
            end()
            raise
        yield value


def _read(source: Iterator[Any], most: int) -> tuple[list[Any], bool]:
    """What an iterator gives within `_READ_S`, at most so many items, and whether that was all."""
    items = []
    until = time.perf_counter() + _READ_S
    for item in source:
        items.append(item)
        if len(items) >= most or time.perf_counter() >= until:
            return items, False
    return items, True


def _make_dispatcher(settings: Settings) -> Dispatcher:
    if settings.inline != "always":
        return Dispatcher(settings)
    from .serial import SerialDispatcher

    return SerialDispatcher(settings)


def _is_told_inline() -> bool:
    """Whether the environment wants everything to run in the caller.

    Raises
    ------
    ValueError
        If that cannot be told.
    """
    value = os.environ.get(_INLINE_VARIABLE, "")
    if value not in ("", "0", "1"):
        raise ValueError(f"the environment variable {_INLINE_VARIABLE} must be 1, 0 or empty, got {value!r}")
    return value == "1"


def _make_progress(progress: bool | Callable[[int, int], object], job: MapJob) -> Progress:
    from .integrations.progress import make_progress

    total = len(job.items) if job.source is None else None
    return make_progress(progress, total, job.function.name)


def _thread_limits(threads_per_worker: int | None, n_cpus: int, max_workers: int) -> dict[str, str]:
    if threads_per_worker is not None:
        return dict.fromkeys(_THREAD_VARIABLES, str(threads_per_worker))
    threads = max(n_cpus // max_workers, 1)
    return {name: str(threads) for name in _THREAD_VARIABLES if name not in os.environ}


def _check_int(name: str, value: object, least: int | None = None) -> None:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if least is not None and value.__index__() < least:
        bound = "greater than 0" if least == 1 else f"at least {least}"
        raise ValueError(f"{name} must be {bound}, got {value!r}")


def _check_callable(fn: object, name: str = "fn") -> None:
    if not callable(fn):
        raise TypeError(f"{name} must be a callable, got {fn!r}")


def _check_number(name: str, value: object, least: float = -math.inf) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number or None, got {value!r}")
    if not value >= least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")


def _check_progress(progress: object) -> None:
    if not isinstance(progress, bool) and not callable(progress):
        raise TypeError(f"progress must be a bool or a callable, got {progress!r}")


def _check_engine_options(
    mp_context: object,
    max_tasks_per_child: object,
    memory_limit: object,
    threads_per_worker: object,
    cost_model: object,
) -> None:
    """Refuse what only processes of this machine can do."""
    given = {
        "mp_context": mp_context,
        "max_tasks_per_child": max_tasks_per_child,
        "memory_limit": memory_limit,
        "threads_per_worker": threads_per_worker,
    }
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name} must be None with an engine, got {value!r}: say it to the cluster's own workers")
    if isinstance(cost_model, (str, os.PathLike)):
        raise ValueError(
            f"cost_model must be a CostModel or None with an engine, got {cost_model!r}: a file keeps what workers of "
            "this machine cost, which are others"
        )


def _method(context: object) -> str | None:
    get = getattr(context, "get_start_method", None)
    return get(allow_none=True) if get is not None else None


def _check_context(context: object) -> None:
    if context is None or hasattr(context, "Process"):
        return
    if not isinstance(context, str):
        raise TypeError(
            f"mp_context must be one of {_START_METHODS}, a multiprocessing context or None, got {context!r}"
        )
    if context not in _START_METHODS:
        raise ValueError(
            f"mp_context must be one of {_START_METHODS}, a multiprocessing context or None, got {context!r}"
        )
