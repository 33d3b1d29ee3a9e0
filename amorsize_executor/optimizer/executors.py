"""The process-wide executors behind `execute` and `optimize`.

One executor with default settings, which `default_executor` gives away, and a few more for calls that ask for other
bounds: one for each distinct (max_workers, memory_limit), so that the next call with the same bounds finds warm
workers. All share what they learn. Workers that are idle leave as those of any executor; at the interpreter's end all
end; the child of a fork has workers of its own. An executor that was shut down or broke is replaced at the next use.
Where multiprocessing allows no workers, in a daemonic process, one executor without any runs everything in the caller.

Any thread may call everything here.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections import OrderedDict
from typing import TYPE_CHECKING

from ..executor import AmorsizeExecutor

if TYPE_CHECKING:
    from types import TracebackType

#: Executors with bounds of their own that are kept; of those that nobody uses now, the least recently used goes first.
_MOST_BOUNDED = 4

_Bounds = tuple[int | None, float | None]


class _Bounded:
    """An executor with bounds and how many calls use it now."""

    def __init__(self, executor: AmorsizeExecutor) -> None:
        self.executor = executor
        self.n_users = 0


# Guards the three below, and the start of executors; those start no process by themselves.
_lock = threading.Lock()
_default: AmorsizeExecutor | None = None
_workerless: AmorsizeExecutor | None = None
_bounded: OrderedDict[_Bounds, _Bounded] = OrderedDict()


def default_executor() -> AmorsizeExecutor:
    """The executor that `execute` and `optimize` use, with default settings; made at its first use.

    Returns
    -------
    AmorsizeExecutor
        The same one at each call, until it is shut down or broken: then a new one. It needs no shutdown; the end of the
        interpreter ends it, and so does ``default_executor().shutdown()`` before that. In a daemonic process, which
        may have no children, it runs everything in the caller.

    Examples
    --------
    >>> default_executor() is default_executor()
    True
    """
    if not _may_have_workers():
        return _get_workerless()
    with _lock:
        return _get_default()


def _get_default() -> AmorsizeExecutor:
    global _default
    if _default is None or not _default.is_open:
        _default = AmorsizeExecutor()
    return _default


def _get_workerless() -> AmorsizeExecutor:
    """The executor of a process that may have no children, made at its first use, with a warning."""
    global _workerless
    with _lock:
        found = _workerless
        is_new = found is None or not found.is_open
        if found is None or is_new:
            found = _workerless = AmorsizeExecutor(1, inline="always")
    if is_new:
        warnings.warn(
            "this process is daemonic, as those of multiprocessing.Pool are, and may not have workers of its own: "
            "execute and optimize run everything in it, one item after the other",
            stacklevel=4,
        )
    return found


def _may_have_workers() -> bool:
    """Whether multiprocessing lets this process start others."""
    process = sys.modules.get("multiprocessing.process")
    return process is None or not process.current_process().daemon


def executor_for(max_workers: int | None, memory_limit: float | None) -> Loan:
    """An executor with these bounds, for the time of a ``with`` block; the default one where it has the same.

    Parameters
    ----------
    max_workers
        Upper bound on workers. None: the CPUs that this process may use.
    memory_limit
        Bytes for this process and its workers. None: what the container or host allows.
    """
    return Loan((max_workers, memory_limit))


class Loan:
    """An executor that is not given up while somebody uses it.

    No generator behind `contextlib.contextmanager`: that assigns to attributes of exceptions, which not all allow.
    """

    def __init__(self, bounds: _Bounds) -> None:
        self._bounds = bounds
        self._bounded: _Bounded | None = None

    def __enter__(self) -> AmorsizeExecutor:
        if not _may_have_workers():
            return _get_workerless()
        with _lock:
            executor = _get_default()
            max_workers, memory_limit = self._bounds
            if memory_limit is None and max_workers in (None, executor.max_workers):
                return executor
            self._bounded = _get_bounded(self._bounds)
            self._bounded.n_users += 1
            return self._bounded.executor

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bounded is None:
            return
        with _lock:
            self._bounded.n_users -= 1
            surplus = _take_surplus()
        for executor in surplus:
            executor.shutdown(wait=False)


def _get_bounded(bounds: _Bounds) -> _Bounded:
    found = _bounded.get(bounds)
    if found is None or not found.executor.is_open:
        found = _bounded[bounds] = _Bounded(AmorsizeExecutor(bounds[0], memory_limit=bounds[1]))
    _bounded.move_to_end(bounds)
    return found


def _take_surplus() -> list[AmorsizeExecutor]:
    """Executors beyond those that are kept, taken off the list."""
    idle = [bounds for bounds, one in _bounded.items() if one.n_users <= 0]
    return [_bounded.pop(bounds).executor for bounds in idle[: max(len(_bounded) - _MOST_BOUNDED, 0)]]


def _renew_lock() -> None:
    """In the child of a fork: a thread that it has not may have held the lock."""
    global _lock
    _lock = threading.Lock()
    for one in _bounded.values():
        one.n_users = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
