"""Looks once a second whether workers that should do something stand still, and says so once for each.

Nothing is looked at while no worker starts or has work. Owned by the I/O thread, but for `state_of`, which any thread
may ask.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from . import machine
from .decisions.health import is_stuck
from .workers import trees

if TYPE_CHECKING:
    from .decisions.worker import WorkerView
    from .workers.pools import Pool

#: From one look to the next, in seconds.
PERIOD_S = 1.0


class HealthWatch:
    """Workers that are stopped or stuck.

    Parameters
    ----------
    warn
        Takes a warning for people.
    name_of
        Tells the name of the function of an item: a map, or None, and the item or task.
    """

    def __init__(self, warn: Callable[[str], None], name_of: Callable[[int | None, int], str | None]) -> None:
        self._warn = warn
        self._name_of = name_of
        self.looked_at = time.perf_counter()
        self._stuck: dict[int, float] = {}  # since when, in seconds
        self._stopped: dict[int, float] = {}  # since when they were seen so, in seconds
        self._cpu: dict[int, tuple[float, float]] = {}  # CPU time in seconds, and since when it is that
        self._told: set[int] = set()  # workers of which it was told that they are stopped

    def look(self, pool: Pool, views: list[WorkerView], now: float) -> None:
        """See what those do that start or have work."""
        self.looked_at = now
        pids = pool.pids()
        for view in views:
            pid = pids.get(view.worker_id)
            if pid is None or view.state not in ("starting", "busy"):
                self._stuck.pop(view.worker_id, None)
                continue
            if self._is_stopped(view.worker_id, pid, now):
                if view.worker_id not in self._told:
                    self._told.add(view.worker_id)
                    self._warn(
                        f"worker process {pid} is stopped (SIGSTOP, or a debugger){self._told_work(view)}: it goes on "
                        "after SIGCONT. It is not replaced unless its task has a timeout"
                    )
                continue
            self._told.discard(view.worker_id)
            if self._is_stuck(view, pid, now):
                if self._stuck.get(view.worker_id) != view.since:
                    self._stuck[view.worker_id] = view.since
                    what = " and is not ready" if view.state == "starting" else self._told_work(view)
                    self._warn(
                        f"worker process {pid} has made no progress for {now - view.since:.0f} s{what}: it may be "
                        "stuck, in an import, a lock or a system call. `py-spy dump --pid` shows where; it is not "
                        "replaced unless its task has a timeout"
                    )
            else:
                self._stuck.pop(view.worker_id, None)

    def forget_worker(self, worker_id: int) -> None:
        """A worker has ended."""
        self._stuck.pop(worker_id, None)
        self._stopped.pop(worker_id, None)
        self._told.discard(worker_id)
        self._cpu.pop(worker_id, None)

    def state_of(self, view: WorkerView, pid: int | None, now: float) -> tuple[str, float]:
        """A worker's state and for how long it has been so, in seconds."""
        if pid is not None and view.state != "leaving" and self._is_stopped(view.worker_id, pid, now):
            return "stopped", now - self._stopped.get(view.worker_id, now)
        is_stuck_still = self._stuck.get(view.worker_id) == view.since
        return "stuck" if is_stuck_still else view.state, max(now - view.since, 0.0)

    def _is_stopped(self, worker_id: int, pid: int, now: float) -> bool:
        if not trees.is_stopped(pid) or trees.is_gone(pid):
            self._stopped.pop(worker_id, None)
            return False
        self._stopped.setdefault(worker_id, now)
        return True

    def _is_stuck(self, view: WorkerView, pid: int, now: float) -> bool:
        waited_s = self._waited_s(view.worker_id, pid, now) if view.expected_s is None else 0.0
        phase: Literal["start", "task"] = "start" if view.state == "starting" else "task"
        return is_stuck(phase, now - view.since, view.expected_s, min(waited_s, now - view.since))

    def _waited_s(self, worker_id: int, pid: int, now: float) -> float:
        """How long a process has been seen to use no CPU and to have no child, in seconds."""
        used_s = machine.cpu_s(pid)
        before_s, since = self._cpu.get(worker_id, (-1.0, now))
        if used_s > before_s or trees.children(pid):
            since = now
        self._cpu[worker_id] = used_s, since
        return now - since

    def _told_work(self, view: WorkerView) -> str:
        name = self._name_of(*view.item) if view.item is not None else None
        return "" if name is None else f" with {name}"
