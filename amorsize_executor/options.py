"""What `AmorsizeExecutor.options` sets, and the bound on tasks that wait."""

from __future__ import annotations

import threading
import time
from collections import deque
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
    is_owed
        It is for calls that were taken in before: a shutdown does not keep it out.
    """

    terms: Terms
    max_pending: int | None
    blocks: bool
    is_owed: bool = False


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
        # Of those that wait without a thread, and of those that were woken and have not taken their place.
        self._wakes: deque[tuple[TaskOptions, Callable[[], bool]]] = deque()
        self._woken: set[Callable[[], bool]] = set()
        self.abandoned: deque[Callable[[], bool]] = (
            deque()
        )  # of coroutines that were collected; appended without a lock
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

    def add(self, options: TaskOptions, wake: Callable[[], bool]) -> bool:
        """Have `wake` called once when there is room, first in, first out; False if there is.

        Who is woken tries again, and is then the first. At the end it calls `discard`: its place was kept until then.
        `wake` tells whether anybody was woken.
        """
        if not self.is_full(options):
            return False
        if wake in self._woken:
            self._woken.remove(wake)
            self._wakes.appendleft((options, wake))
        else:
            self._wakes.append((options, wake))
        self.n_blocked += 1
        return True

    def discard(self, wake: Callable[[], bool]) -> None:
        """Who was or would have been woken has taken its place, or does not want it any more."""
        if wake in self._woken:
            self._woken.remove(wake)
        else:
            for waiting in self._wakes:
                if waiting[1] == wake:
                    self._wakes.remove(waiting)
                    self.n_blocked -= 1
                    break
        self._wake()

    def discard_abandoned(self) -> None:
        """The same for those in `abandoned`."""
        while self.abandoned:
            self.discard(self.abandoned.popleft())

    def open(self) -> None:
        """Fewer tasks wait."""
        self._changed.notify_all()
        self._wake()

    def _wake(self) -> None:
        """Wake as many as there is room for."""
        while self._wakes:
            options, wake = self._wakes[0]
            most = options.max_pending
            if not self._is_closed() and most is not None and self._n_pending() + len(self._woken) >= most:
                return
            self._wakes.popleft()
            self.n_blocked -= 1
            if wake():
                self._woken.add(wake)
