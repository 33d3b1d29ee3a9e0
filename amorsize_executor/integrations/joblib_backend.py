"""joblib's loops, and with them all of scikit-learn's `n_jobs`, on an `AmorsizeExecutor`.

joblib makes batches of calls and asks a backend to run them. This one submits them to an executor that lives as long as
the process, one for each number of jobs and threads, so workers stay warm from one loop to the next. Large arrays are
shared as in any other task: joblib's own dumping of arrays to files is not used, so tasks may write into theirs, and
`max_nbytes`, `mmap_mode` and `temp_folder` have nothing to act on.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing import current_process
from typing import Any, NamedTuple

try:
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

from .. import machine
from ..executor import AmorsizeExecutor

NAME = "amorsize"
#: Executors kept, by what they were asked for; of those that no loop uses, the least recently used goes first.
_MOST_EXECUTORS = 4
#: What `joblib.Parallel` tells each backend, and what this one has no use for: arrays travel as `share` has it.
_FOR_OTHERS = {"max_nbytes", "mmap_mode", "temp_folder", "prefer", "require", "verbose", "context", "context_id"}

_Initializer = Callable[..., object]


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
        idle = [key for key, shared in _executors.items() if not shared.n_loops]
        surplus = [_executors.pop(key) for key in idle[: max(len(_executors) - _MOST_EXECUTORS, 0)]]
    for shared in surplus:
        shared.executor.shutdown(wait=False)
    return found


def _run(batch: Callable[[], Any]) -> Any:
    """Run a batch of joblib's in a worker; as an argument it shares its arrays."""
    return batch()


class AmorsizeBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # joblib has no types
    """What `joblib.parallel_config(backend="amorsize")` uses.

    joblib has one for all loops under a `parallel_config`, though one may run while the results of another are still
    taken. So each loop gets one of its own (`configure`).
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True

    _is_of_one_loop = False
    _shared: _Shared | None = None

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
        self._futures: set[Future[Any]] = set()
        self._n_jobs = n_jobs
        self._shared = _lend(n_jobs, self.inner_max_num_threads, *self._options)
        return n_jobs

    def submit(self, func: Callable[[], Any], callback: Callable[[Future[Any]], object] | None = None) -> Future[Any]:
        """Run a batch in a worker."""
        assert self._shared is not None, "joblib configures a backend before it uses it"
        future = self._shared.executor.submit(_run, func)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """Results of a batch, or its exception."""
        return out.result()

    def terminate(self) -> None:
        """The loop is over; its workers stay for the next."""
        self._give_back()
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """A call has raised, or took too long: end what still runs, with its workers if no other loop uses them."""
        if self._shared is not None:
            with _lock:
                is_shared = self._shared.n_loops > 1
            if is_shared:
                for future in list(self._futures):
                    future.cancel()
            else:
                self._shared.executor.kill_workers()
            self._give_back()
        if ensure_ready:
            self._shared = _lend(self._n_jobs, self.inner_max_num_threads, *self._options)

    def _give_back(self) -> None:
        shared, self._shared = self._shared, None
        if shared is not None:
            with _lock:
                shared.n_loops -= 1


register_parallel_backend(NAME, AmorsizeBackend)  # in workers, too, which import this: a loop in a task may name it


def register_joblib_backend() -> None:
    """Make ``joblib.parallel_config(backend="amorsize")`` possible.

    Loops of joblib, and all that scikit-learn does with `n_jobs`, then run on executors that live as long as the
    process. A loop that fails ends its workers; if another loop with as many jobs uses them at that time, what runs
    goes on to its end, and only what waits is cancelled.

    Examples
    --------
    >>> import joblib
    >>> register_joblib_backend()
    >>> with joblib.parallel_config(backend="amorsize", n_jobs=2):
    ...     joblib.Parallel()(joblib.delayed(pow)(x, 2) for x in range(4))
    [0, 1, 4, 9]
    """
    register_parallel_backend(NAME, AmorsizeBackend)  # again, should somebody have given the name to another
