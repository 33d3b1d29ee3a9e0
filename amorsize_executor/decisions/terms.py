"""What a task or a map was submitted with beyond its function, and the clock of those that may not take for ever."""

from __future__ import annotations

import heapq
from typing import NamedTuple

#: Stale entries of the heap are thrown out when they are more than the others and this many.
_STALE = 64


class Terms(NamedTuple):
    """How a task, or the items of a map, are to be treated.

    Attributes
    ----------
    priority
        What has more goes first; first in, first out among equals.
    retries
        Times that it runs again after its worker died while running it. None: what the pool says.
    timeout_s
        A submitted task: seconds from its submission to its end. An item of a map: from its beginning to its end.
    """

    priority: int = 0
    retries: int | None = None
    timeout_s: float | None = None


class Deadlines:
    """By when tasks must be done, in seconds. Owned by the scheduler."""

    def __init__(self) -> None:
        self._until: dict[int, float] = {}
        self._heap: list[tuple[float, int]] = []  # with entries that are no task's deadline any more

    def __len__(self) -> int:
        return len(self._until)

    def __contains__(self, task_id: int) -> bool:
        return task_id in self._until

    def add(self, task_id: int, until: float) -> bool:
        """A task must be done by then; returns whether no other must be sooner."""
        self._until[task_id] = until
        heapq.heappush(self._heap, (until, task_id))
        return self._heap[0][1] == task_id

    def discard(self, task_id: int) -> None:
        """A task is done."""
        if self._until.pop(task_id, None) is not None and len(self._heap) > 2 * len(self._until) + _STALE:
            self._heap = [(until, task_id) for task_id, until in self._until.items()]
            heapq.heapify(self._heap)

    def next(self) -> float | None:
        """The first deadline; None when there is none."""
        heap = self._heap
        while heap and self._until.get(heap[0][1]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def take_due(self, now: float) -> list[int]:
        """Tasks whose time is over, the first to be done first; they are forgotten here."""
        due = []
        while (until := self.next()) is not None and until <= now:
            _, task_id = heapq.heappop(self._heap)
            del self._until[task_id]
            due.append(task_id)
        return due
