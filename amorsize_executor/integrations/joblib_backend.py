"""joblib's loops, and with them all of scikit-learn's `n_jobs`, on an `AmorsizeExecutor`.

joblib makes batches of calls and asks a backend to run them. This one submits them to an executor that lives as long as
the process, one for each number of jobs and threads, so workers stay warm from one loop to the next. Large arrays are
shared as in any other task: joblib's own dumping of arrays to files is not used, so tasks may write into theirs, and
`max_nbytes`, `mmap_mode` and `temp_folder` have nothing to act on.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

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
#: Executors kept, by number of jobs and threads; the least recently used goes first.
_MOST_EXECUTORS = 4

_executors: OrderedDict[tuple[int, int | None], AmorsizeExecutor] = OrderedDict()
_lock = threading.Lock()  # guards `_executors`


def _executor(n_jobs: int, n_threads: int | None) -> AmorsizeExecutor:
    """The process's executor for so many workers with so many threads each."""
    key = (n_jobs, n_threads)
    surplus = None
    with _lock:
        found = _executors.pop(key, None)
        if found is None or not found.is_open:
            found = AmorsizeExecutor(n_jobs, inline="never", threads_per_worker=n_threads)
        _executors[key] = found
        if len(_executors) > _MOST_EXECUTORS:
            _, surplus = _executors.popitem(last=False)
    if surplus is not None:
        surplus.shutdown(wait=False)
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
    _pool: AmorsizeExecutor | None = None

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Workers for a value of `n_jobs`: None is 1, -1 all CPUs that this process may use, -2 one less."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 has no meaning; give a positive number, or -1 for all CPUs")
        if n_jobs is None:
            return 1
        return n_jobs if n_jobs > 0 else max(machine.cpu_count() + 1 + n_jobs, 1)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **_: Any) -> int:
        """Get ready for a loop; returns the number of workers. One worker is a plain loop in the caller."""
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        if not self._is_of_one_loop:
            own = type(self)(nesting_level=self.nesting_level, inner_max_num_threads=self.inner_max_num_threads)
            own._is_of_one_loop = True
            raise FallbackToBackend(own)
        self.parallel = parallel
        self._pool = _executor(n_jobs, self.inner_max_num_threads)
        return n_jobs

    def submit(self, func: Callable[[], Any], callback: Callable[[Future[Any]], object] | None = None) -> Future[Any]:
        """Run a batch in a worker."""
        assert self._pool is not None, "joblib configures a backend before it uses it"
        future = self._pool.submit(_run, func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """Results of a batch, or its exception."""
        return out.result()

    def terminate(self) -> None:
        """The loop is over; its workers stay for the next."""
        self._pool = None
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """A call has raised, or took too long: end what still runs, with its workers."""
        if self._pool is not None:
            self._pool.kill_workers()
            self._pool = None
        if ensure_ready:
            self.configure(n_jobs=self.parallel.n_jobs, parallel=self.parallel)


def register_joblib_backend() -> None:
    """Make ``joblib.parallel_config(backend="amorsize")`` possible.

    Loops of joblib, and all that scikit-learn does with `n_jobs`, then run on executors that live as long as the
    process. As with joblib's own backend, a loop that fails ends the workers, for other loops with as many jobs, too.

    Examples
    --------
    >>> import joblib
    >>> register_joblib_backend()
    >>> with joblib.parallel_config(backend="amorsize", n_jobs=2):
    ...     joblib.Parallel()(joblib.delayed(pow)(x, 2) for x in range(4))
    [0, 1, 4, 9]
    """
    register_parallel_backend(NAME, AmorsizeBackend)
