"""Workers that stand still or leak, told in the log once: stopped by a signal, stuck in their start, or grown.

Nothing is ended for standing still: a stopped process may be in a debugger, and an initializer may load for minutes.
Owned by the I/O thread, which looks every few seconds while a worker starts or has work.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from .decisions.worker import WorkerView
from .workers import trees

_logger = logging.getLogger("amorsize_executor")

#: Seconds from one look to the next.
PERIOD_S = 5.0
#: A start that takes so long is told, in seconds.
_LONG_START_S = 60.0


class WorkerWatch:
    """What was seen of workers, and told."""

    def __init__(self) -> None:
        self.look_at: float | None = None  # when to look next, in seconds
        self._stopped: set[int] = set()  # at the latest look
        self._told: set[tuple[int, str]] = set()
        self._n_leaks = 0

    def look(self, views: Sequence[WorkerView], pids: Mapping[int, int], now: float) -> None:
        """Look at all workers.

        Parameters
        ----------
        views
            What they look like.
        pids
            Their processes.
        now
            Time in seconds.
        """
        before, self._stopped = self._stopped, set()
        self._told = {each for each in self._told if each[0] in pids}
        for view in views:
            pid = pids.get(view.worker_id)
            if pid is None:
                continue
            if trees.is_stopped(pid):
                self._stopped.add(view.worker_id)
                if view.worker_id in before:  # not for a moment
                    self._tell(
                        view.worker_id,
                        "stopped",
                        f"worker process {pid} is stopped, by a signal or a debugger, and so is what it runs: "
                        f"it goes on after `kill -CONT {pid}`",
                    )
            elif view.state == "starting" and now - view.since > _LONG_START_S:
                self._tell(
                    view.worker_id,
                    "start",
                    f"worker process {pid} was started {now - view.since:.0f} s ago and is not ready yet: an import or "
                    f"the initializer takes long or is stuck (`py-spy dump --pid {pid}` shows where)",
                )

    def _tell(self, worker_id: int, what: str, message: str) -> None:
        if (worker_id, what) not in self._told:
            self._told.add((worker_id, what))
            _logger.warning(message)

    def tell_leak(self, pid: int | None, nbytes: int) -> None:
        """A worker is replaced since it has grown; told once loud, and then not so loud."""
        self._n_leaks += 1
        level = logging.WARNING if self._n_leaks == 1 else logging.INFO
        _logger.log(
            level,
            "worker process %s has grown by %.0f MB over its tasks, step by step: it leaks, and another takes its "
            "place",
            pid,
            nbytes / 1e6,
        )
