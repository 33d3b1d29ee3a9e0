"""joblib's loops, and with them all of scikit-learn's `n_jobs`, on an `AmorsizeExecutor`.

joblib makes batches of calls and asks a backend to run them. This one submits them to an executor that lives as long as
the process, one for each number of jobs and threads, so workers stay warm from one loop to the next. Large arrays are
shared as in any other task: joblib's own dumping of arrays to files is not used, so tasks may write into theirs, and
`max_nbytes`, `mmap_mode` and `temp_folder` have nothing to act on.

What joblib does when a batch is done takes the next calls from the user's iterator, which may be slow, wait for other
tasks, or have loops of its own, and must not hold up the executor or another loop. The caller does it while it waits
for a list: it then sleeps until a batch is done, where joblib looks a hundred times a second whether one is. For a
generator, whose user may be elsewhere, and under a time limit, which joblib watches, it runs in a thread of the loop.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from multiprocessing import current_process
from queue import SimpleQueue
from typing import Any, NamedTuple

try:
    import joblib
    from joblib.parallel import (
        AutoBatchingMixin,
        FallbackToBackend,
        ParallelBackendBase,
        SequentialBackend,
        register_parallel_backend,
    )
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "the joblib backend needs joblib, which is not installed: pip install 'amorsize_executor[ml]'", name="joblib"
    ) from error
if not hasattr(ParallelBackendBase, "submit"):
    raise ImportError(
        f"the joblib backend needs joblib 1.5 or newer, and {joblib.__version__} is installed: "
        "pip install -U 'amorsize_executor[ml]'",
        name="joblib",
    )

from .. import machine
from ..executor import AmorsizeExecutor

NAME = "amorsize"
#: Executors kept, by what they were asked for; of those that no loop uses, the least recently used goes first.
_MOST_EXECUTORS = 4
#: What `joblib.Parallel` tells each backend, and what this one has no use for: arrays travel as `share` has it.
_FOR_OTHERS = {"max_nbytes", "mmap_mode", "temp_folder", "prefer", "require", "verbose", "context", "context_id"}

_Initializer = Callable[..., object]
_Callback = Callable[[Future[Any]], object]


class _Asked(NamedTuple):
    """What tells executors from one another. Arguments of an initializer are the same if they are the same objects."""

    n_jobs: int
    n_threads: int | None
    idle_timeout: float
    initializer: _Initializer | None
    initarg_ids: tuple[int, ...]


class _Shared:
    """An executor, and how many loops use it now."""

    def __init__(self, executor: AmorsizeExecutor, initargs: tuple[Any, ...]) -> None:
        self.executor = executor
        self.initargs = initargs  # kept, since they are told by their ids
        self.n_loops = 0


_executors: OrderedDict[_Asked, _Shared] = OrderedDict()
_lock = threading.Lock()  # guards `_executors`, and the numbers of loops


def _renew_lock() -> None:
    """In the child of a fork: a thread that it has not may have held the lock, and has the loops."""
    global _lock
    _lock = threading.Lock()
    for shared in _executors.values():
        shared.n_loops = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def _lend(
    n_jobs: int,
    n_threads: int | None,
    idle_timeout: float = 60.0,
    initializer: _Initializer | None = None,
    initargs: tuple[Any, ...] = (),
) -> _Shared:
    """The process's executor for so many workers with so many threads each, for one more loop."""
    asked = _Asked(n_jobs, n_threads, idle_timeout, initializer, tuple(map(id, initargs)))
    with _lock:
        found = _executors.pop(asked, None)
        if found is None or not found.executor.is_open:
            executor = AmorsizeExecutor(
                n_jobs,
                initializer=initializer,
                initargs=initargs,
                inline="never",
                threads_per_worker=n_threads,
                idle_timeout=idle_timeout,
            )
            found = _Shared(executor, initargs)
        found.n_loops += 1
        _executors[asked] = found
        idle = [key for key, shared in _executors.items() if shared.n_loops <= 0]
        surplus = [_executors.pop(key) for key in idle[: max(len(_executors) - _MOST_EXECUTORS, 0)]]
    for shared in surplus:
        shared.executor.shutdown(wait=False)
    return found


def shutdown_executors(wait: bool = True) -> None:
    """End the workers that are kept for the next loop, which then gets new ones. What a loop uses now stays.

    Parameters
    ----------
    wait
        Whether to return only when they are gone.

    Examples
    --------
    >>> shutdown_executors()
    """
    with _lock:
        unused = [_executors.pop(asked) for asked, shared in list(_executors.items()) if shared.n_loops <= 0]
    for shared in unused:
        shared.executor.shutdown(wait=wait)


def _run(batch: Callable[[], Any]) -> Any:
    """Run a batch of joblib's in a worker; as an argument it shares its arrays."""
    return batch()


def _failed(error: BaseException) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


class _Loop:
    """What one loop has: an executor on loan, tasks, and who runs its callbacks one after the other.

    That is the caller, if it only waits, or a thread. This is a daemon: if the loop is given up, it may be in the
    user's iterator, for which nobody should wait.

    Parameters
    ----------
    shared
        The executor, for which this loop was counted.
    parallel
        The `joblib.Parallel`.
    """

    def __init__(self, shared: _Shared, parallel: Any) -> None:
        self._shared = shared
        self._parallel = parallel
        self._is_callers = not parallel.return_generator and parallel.timeout is None
        self._n_waiting = 0  # tasks whose callbacks have not been run, where the caller runs them
        self._futures: set[Future[Any]] = set()  # not done; each is added and discarded at once
        self._waiting: SimpleQueue[tuple[_Callback, Future[Any]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None  # that joblib's own doing, or the user's iterator, has raised
        self._is_over = False

    def submit(self, func: Callable[[], Any], callback: _Callback | None) -> Future[Any]:
        """Run a batch in a worker. What goes wrong comes from the future: joblib also submits where nobody waits."""
        try:
            future = _failed(self._error) if self._error is not None else self._shared.executor.submit(_run, func)
        except Exception as error:
            future = _failed(error)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        if callback is not None:
            if self._is_callers:
                self._n_waiting += 1
            elif self._thread is None or not self._thread.is_alive():  # as in the child of a fork
                self._thread = threading.Thread(target=self._run_callbacks, name="amorsize-joblib", daemon=True)
                self._thread.start()
            future.add_done_callback(lambda done: self._waiting.put((callback, done)))
        if self._is_over:  # it was given up while joblib still got tasks from the iterator
            self._shared.executor.cancel([future])
        return future

    def _run_callbacks(self) -> None:
        while (task := self._waiting.get()) is not None:
            callback, future = task
            try:
                callback(future)
            except BaseException as error:
                self._error = error
                # Nobody waits for a callback. So joblib gets a batch that fails with this before it runs.
                self._parallel.dispatch_one_batch(iter([(_run, (), {})]))
            del task, callback, future  # no result is kept until the next one comes

    def wait(self) -> None:
        """Run callbacks until all is done or has failed, in the caller; what they raise is the caller's."""
        while self._is_callers and self._n_waiting and not self._parallel._aborting:
            task = self._waiting.get()
            if task is None:  # the loop was given up
                return
            callback, future = task
            self._n_waiting -= 1
            callback(future)
            del task, callback, future

    def end(self) -> None:
        """All is done."""
        self._waiting.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._give_back()

    def abort(self) -> None:
        """End what still runs."""
        self._is_over = True
        self._waiting.put(None)
        self._shared.executor.cancel(list(self._futures))
        self._give_back()

    def _give_back(self) -> None:
        with _lock:
            self._shared.n_loops -= 1


class AmorsizeBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # joblib has no types
    """What `joblib.parallel_config(backend="amorsize")` uses.

    joblib has one for all loops under a `parallel_config`, though one may run while the results of another are still
    taken. So each loop gets one of its own (`configure`).
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True

    _is_of_one_loop = False
    _loop: _Loop | None = None

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Workers for a value of `n_jobs`: None is 1, -1 all CPUs that this process may use, -2 one less."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning: give a positive number, or -1 for all CPUs")
        if n_jobs is None or n_jobs == 1:
            return 1
        if current_process().daemon:
            warnings.warn(
                "this process is daemonic, as those of multiprocessing.Pool are, and may not have workers of its own: "
                "the loop runs with n_jobs=1",
                stacklevel=3,
            )
            return 1
        return n_jobs if n_jobs > 0 else max(machine.cpu_count() + 1 + n_jobs, 1)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **options: Any) -> int:
        """Get ready for a loop; returns the number of workers. One worker is a plain loop in the caller.

        Options are `initializer`, `initargs` and `idle_worker_timeout`, as of joblib's own backend.
        """
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        options = {**getattr(self, "backend_kwargs", {}), **options}
        if not self._is_of_one_loop:
            own = type(self)(nesting_level=self.nesting_level, inner_max_num_threads=self.inner_max_num_threads)
            own.backend_kwargs = getattr(self, "backend_kwargs", {})
            own._is_of_one_loop = True
            raise FallbackToBackend(own)
        self.parallel = parallel
        initializer, initargs = options.pop("initializer", None), tuple(options.pop("initargs", ()))
        idle_timeout = options.pop("idle_worker_timeout", None)
        unknown = options.keys() - _FOR_OTHERS
        if unknown:
            raise TypeError(
                f"the backend {NAME!r} has no option {', '.join(sorted(unknown))}; it has initializer, initargs and "
                "idle_worker_timeout"
            )
        self._options = (60.0 if idle_timeout is None else idle_timeout, initializer, initargs)
        self._n_jobs = n_jobs
        self._begin()
        return n_jobs

    def _begin(self) -> None:
        self._loop = _Loop(_lend(self._n_jobs, self.inner_max_num_threads, *self._options), self.parallel)

    def submit(self, func: Callable[[], Any], callback: _Callback | None = None) -> Future[Any]:
        """Run a batch in a worker."""
        loop = self._loop
        if loop is None:  # it was given up while joblib still got tasks from the iterator
            future: Future[Any] = Future()
            future.cancel()
            return future
        return loop.submit(func, callback)

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """Results of a batch, or its exception."""
        return out.result()

    @contextmanager
    def retrieval_context(self) -> Iterator[None]:
        """What joblib enters, in the caller, when it has dispatched the first calls and waits for results."""
        if self._loop is not None:
            self._loop.wait()
        yield

    def terminate(self) -> None:
        """The loop is over; its workers stay for the next."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.end()
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """A call has raised, or took too long: end what still runs of this loop."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.abort()
        if ensure_ready:
            self._begin()


register_parallel_backend(NAME, AmorsizeBackend)  # in workers, too, which import this: a loop in a task may name it


def register_joblib_backend() -> None:
    """Make ``joblib.parallel_config(backend="amorsize")`` possible.

    Loops of joblib, and all that scikit-learn does with `n_jobs`, then run on executors that live as long as the
    process. A loop that fails ends what it runs, with those workers; what other loops run goes on.

    Examples
    --------
    >>> import joblib
    >>> register_joblib_backend()
    >>> with joblib.parallel_config(backend="amorsize", n_jobs=2):
    ...     joblib.Parallel()(joblib.delayed(pow)(x, 2) for x in range(4))
    [0, 1, 4, 9]
    """
    register_parallel_backend(NAME, AmorsizeBackend)  # again, should somebody have given the name to another
