"""What `AmorsizeExecutor.options` sets, and the bound on tasks that wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from .decisions.terms import Terms


class TaskOptions(NamedTuple):
    """Options of one view, checked by the executor.

    Attributes
    ----------
    terms
        What the scheduler must know of each task.
    max_pending
        Tasks that may wait; None: any number.
    blocks
        Whether a submit waits while there are so many; else it raises.
    """

    terms: Terms
    max_pending: int | None
    blocks: bool


class Gate:
    """Lets callers wait until fewer tasks do. Any thread, under the dispatcher's lock.

    Parameters
    ----------
    lock
        The dispatcher's lock, released while a caller waits.
    n_pending
        Tells how many tasks wait.
    is_closed
        Tells whether none is taken in any more.
    """

    def __init__(self, lock: threading.Lock, n_pending: Callable[[], int], is_closed: Callable[[], bool]) -> None:
        self._changed = threading.Condition(lock)
        self._n_pending = n_pending
        self._is_closed = is_closed
        self.n_blocked = 0

    def is_full(self, options: TaskOptions) -> bool:
        """Whether a task has to wait to be taken in."""
        return options.max_pending is not None and self._n_pending() >= options.max_pending

    def wait(self, options: TaskOptions, until: float | None) -> bool:
        """Wait for room, or for the end of the executor; False if `until` (of `time.perf_counter`) came first."""
        self.n_blocked += 1
        try:
            while self.is_full(options) and not self._is_closed():
                left_s = None if until is None else until - time.perf_counter()
                if left_s is not None and left_s <= 0:
                    return False
                self._changed.wait(None if left_s is None else min(left_s, threading.TIMEOUT_MAX))
        finally:
            self.n_blocked -= 1
        return True

    def open(self) -> None:
        """Fewer tasks wait, or none is taken in any more."""
        self._changed.notify_all()
