"""The process-wide executors behind `execute` and `optimize`.

One executor with default settings, which `default_executor` gives away, and a few more for calls that ask for other
bounds: one for each distinct (max_workers, memory_limit), so that the next call with the same bounds finds warm
workers. All share what they learn. Workers that are idle leave as those of any executor; at the interpreter's end all
end; the child of a fork has workers of its own. An executor that was shut down or broke is replaced at the next use.

Any thread may call everything here.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from ..executor import AmorsizeExecutor

#: Executors with bounds of their own that are kept; of those that nobody uses now, the least recently used goes first.
_MOST_BOUNDED = 4

_Bounds = tuple[int | None, float | None]


class _Bounded:
    """An executor with bounds and how many calls use it now."""

    def __init__(self, executor: AmorsizeExecutor) -> None:
        self.executor = executor
        self.n_users = 0


# Guards the two below, and the start of executors; those start no process by themselves.
_lock = threading.Lock()
_default: AmorsizeExecutor | None = None
_bounded: OrderedDict[_Bounds, _Bounded] = OrderedDict()


def default_executor() -> AmorsizeExecutor:
    """The executor that `execute` and `optimize` use, with default settings; made at its first use.

    Returns
    -------
    AmorsizeExecutor
        The same one at each call, until it is shut down or broken: then a new one. It needs no shutdown; the end of the
        interpreter ends it, and so does ``default_executor().shutdown()`` before that.

    Examples
    --------
    >>> default_executor() is default_executor()
    True
    """
    with _lock:
        return _get_default()


def _get_default() -> AmorsizeExecutor:
    global _default
    if _default is None or not _default.is_open:
        _default = AmorsizeExecutor()
    return _default


@contextmanager
def executor_for(max_workers: int | None, memory_limit: float | None) -> Iterator[AmorsizeExecutor]:
    """An executor with these bounds, for the time of a ``with`` block; the default one where it has the same.

    Parameters
    ----------
    max_workers
        Upper bound on workers. None: the CPUs that this process may use.
    memory_limit
        Bytes for this process and its workers. None: what the container or host allows.
    """
    bounded: _Bounded | None = None
    with _lock:
        executor = _get_default()
        if memory_limit is not None or max_workers not in (None, executor.max_workers):
            bounded = _get_bounded((max_workers, memory_limit))
            bounded.n_users += 1
            executor = bounded.executor
    try:
        yield executor
    finally:
        if bounded is not None:
            with _lock:
                bounded.n_users -= 1
                surplus = _take_surplus()
            for one in surplus:
                one.shutdown(wait=False)


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
