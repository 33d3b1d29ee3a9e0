"""Tasks and items that may not take for ever: when to look at them, and who is to be ended.

A submitted task has a deadline (`terms.Deadlines`). When it is over and a worker has the task, it is `late`: its worker
is ended when it runs it. An item of a map may run for so long, from when it is first seen to run.

Pure: the scheduler owns all of this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .actions import Action, KillRunning
from .terms import Deadlines
from .work import Chunk, MapWork
from .worker import Worker

#: Whether a worker has come to a task whose time is over is looked at this often, in seconds.
_LATE_LOOK_S = 0.02
#: Items of a map with a time limit are looked at so many times within it, but not more often than this, in seconds.
_LOOKS = 10
_LEAST_LOOK_S = 5e-3


class TimeLimits:
    """Deadlines of tasks, and limits of maps' items.

    Parameters
    ----------
    workers
        Those that exist, kept up to date by the scheduler.

    Attributes
    ----------
    deadlines
        Of submitted tasks that are not settled.
    late
        Tasks whose time is over, or that nobody wants any more, with workers: (worker, chunk, offset).
    timed
        Maps whose items may not take for ever: how long, in seconds.
    """

    def __init__(self, workers: Mapping[int, Worker]) -> None:
        self._workers = workers
        self.deadlines = Deadlines()
        self.late: dict[int, tuple[int, int, int]] = {}
        self.timed: dict[int, float] = {}
        self._seen: dict[int, tuple[int, int, float]] = {}  # workers of timed maps: chunk, offset, since when
        self._looked_at = 0.0  # when late tasks or timed maps were last looked at

    def forget_worker(self, worker_id: int) -> None:
        """A worker has ended."""
        self._seen.pop(worker_id, None)

    def clear(self) -> None:
        """All work is forgotten."""
        self.deadlines = Deadlines()
        self.late.clear()
        self.timed.clear()
        self._seen.clear()

    def timed_workers(self) -> list[int]:
        """Workers that have items which may not take for ever."""
        if not self.timed:
            return []
        return [
            worker_id
            for worker_id, worker in self._workers.items()
            if any(chunk.job_id in self.timed for chunk in worker.chunks.values())
        ]

    def look(
        self, running: Mapping[int, tuple[int, int, int] | None], jobs: Mapping[int, MapWork], now: float
    ) -> Iterable[Action]:
        """What the workers of `timed_workers` run: (chunk id, offset, number of items), or None."""
        self._looked_at = now
        for worker_id, mark in running.items():
            chunk = self._chunk(worker_id, mark[0]) if mark is not None and mark[2] else None
            limit_s = self.timed.get(chunk.job_id) if chunk is not None and chunk.job_id is not None else None
            is_over = chunk is None or mark is None or not chunk.n_done <= mark[1] < len(chunk.items)
            if mark is None or chunk is None or limit_s is None or is_over or chunk.loads:
                self._seen.pop(worker_id, None)
                continue
            seen = self._seen.get(worker_id)
            if seen is None or seen[:2] != mark[:2]:
                self._seen[worker_id] = (mark[0], mark[1], now)
            elif now - seen[2] >= limit_s:
                assert chunk.job_id is not None
                jobs[chunk.job_id].late.add(chunk.items[mark[1]])
                yield KillRunning(worker_id, mark[0], mark[1])

    def end_late(self, now: float) -> Iterable[Action]:
        """Have workers ended that run late tasks, or come to them."""
        if not self.late:
            return
        self._looked_at = now
        for task_id, (worker_id, chunk_id, offset) in list(self.late.items()):
            chunk = self._chunk(worker_id, chunk_id)
            if chunk is None or not chunk.n_done <= offset < len(chunk.items):
                del self.late[task_id]  # it ended, its worker did, or it was taken back
            else:
                yield KillRunning(worker_id, chunk_id, offset)

    def next(self) -> float | None:
        """When something must be looked at, in seconds; None when there are no limits."""
        times = [self.deadlines.next()] if self.deadlines else []
        if not (times or self.late or self.timed):
            return None  # as nearly always: it is asked for after each message
        if self.late:
            times.append(self._looked_at + _LATE_LOOK_S)
        if self.timed:
            limits = [
                self.timed[chunk.job_id]
                for worker_id in self.timed_workers()
                for chunk in self._workers[worker_id].chunks.values()
                if chunk.job_id in self.timed
            ]
            if limits:
                times.append(self._looked_at + max(min(limits) / _LOOKS, _LEAST_LOOK_S))
        return min([at for at in times if at is not None], default=None)

    def _chunk(self, worker_id: int, chunk_id: int) -> Chunk | None:
        worker = self._workers.get(worker_id)
        return worker.chunks.get(chunk_id) if worker is not None else None
