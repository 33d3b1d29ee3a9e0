"""Views on an executor: the same pool, with options for what is submitted through them."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

from .executor import AmorsizeExecutor

if TYPE_CHECKING:
    from types import TracebackType
    from typing import ParamSpec

    from .batching import Batcher
    from .dispatcher import Dispatcher
    from .options import TaskOptions

    P = ParamSpec("P")
T = TypeVar("T")


class ExecutorView(AmorsizeExecutor):
    """What `AmorsizeExecutor.options` returns.

    It has no workers of its own: whatever is not said here is said of the executor that it is a view on.
    """

    def __init__(self, base: AmorsizeExecutor, options: TaskOptions | None = None) -> None:  # None: those of `base`
        # Nothing of an executor is made anew.
        self._base = base
        self._options = base._options if options is None else options
        self._is_closed = False
        self._futures: set[Future[Any]] = set()  # not done; each is added and discarded at once
        self._fronts: WeakSet[Batcher[Any, Any]] = WeakSet()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_base"], name)

    def _own(self) -> Dispatcher:
        if self._is_closed:
            raise RuntimeError("cannot schedule new futures after shutdown of this view on the executor")
        return self._base._own()

    @property
    def is_open(self) -> bool:
        """Whether it takes work: neither it nor its executor was shut down, nor is that broken."""
        return not self._is_closed and self._base.is_open

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run ``fn(*args, **kwargs)`` in a worker, with the options of this view.

        Returns
        -------
        Future
            Of the call; its exception is `TaskTimeout` if it was not done in time.

        Raises
        ------
        QueueFull
            If as many tasks as `max_pending` wait, and the view is not to wait for room.
        BrokenProcessPool
            If workers cannot be started.
        RuntimeError
            After a `shutdown` of the view or of the executor.
        """
        future = super().submit(fn, *args, **kwargs)
        self._watch(future)
        return future

    def _watch(self, future: Future[Any]) -> None:
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)

    def batch(
        self,
        fn: Callable[[list[Any]], Iterable[T]],
        *,
        max_batch_size: int | None = None,
        max_delay: float | None = None,
        target_latency: float | None = None,
    ) -> Batcher[Any, T]:
        """Put single calls together, as `AmorsizeExecutor.batch` does, with the options of this view."""
        front = super().batch(fn, max_batch_size=max_batch_size, max_delay=max_delay, target_latency=target_latency)
        self._fronts.add(front)
        return front

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work through this view; the executor and its workers stay.

        Parameters
        ----------
        wait
            Whether to return only when all that was submitted through this view is done.
        cancel_futures
            Whether to cancel what was submitted through this view and has not started.
        """
        self._is_closed = True
        futures = list(self._futures)
        if cancel_futures:
            for future in futures:
                future.cancel()
        for front in list(self._fronts):
            front.close(wait, cancel_futures=cancel_futures)
        if wait:
            concurrent.futures.wait(futures)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if exc_type is not None and issubclass(exc_type, KeyboardInterrupt):
            self.shutdown(wait=False, cancel_futures=True)  # the executor's own block ends its workers
        else:
            self.shutdown(wait=True)
        return None
