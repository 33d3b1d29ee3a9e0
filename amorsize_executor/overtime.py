"""Ends a worker for the item that it runs, and for nothing else.

Between a look at what a worker runs and its end it might come to the next item, which would then be lost. So it is
stopped first, and looked at when it stands still; if it runs the item, it is killed with all processes that descend
from it, else it goes on.

Owned by the I/O thread.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from .workers import trees

if TYPE_CHECKING:
    from .workers.pools import Pool


class Overtime:
    """Workers that are stopped, to see what they run."""

    def __init__(self) -> None:
        self._stopped: dict[int, tuple[int, int]] = {}  # by worker: the chunk and offset that it is to be ended for

    @property
    def is_busy(self) -> bool:
        """Whether `go_on` is to be called soon."""
        return bool(self._stopped)

    def end(self, pool: Pool, worker_id: int, chunk_id: int, offset: int) -> None:
        """End a worker if it runs this item; what `go_on` has to do for that."""
        if worker_id not in self._stopped:
            self._stopped[worker_id] = (chunk_id, offset)
            pool.kill(worker_id, signal.SIGSTOP)
            self.go_on(pool)

    def go_on(self, pool: Pool) -> None:
        """Look at the workers that have come to a stop by now."""
        for worker_id, (chunk_id, offset) in list(self._stopped.items()):
            pid = pool.pid(worker_id)
            if pid is None:
                del self._stopped[worker_id]  # it has ended by itself
            elif trees.is_stopped(pid):
                del self._stopped[worker_id]
                running = pool.running(worker_id)
                if running is not None and running == (chunk_id, offset, 1):
                    descendants = trees.stop_descendants(pid)
                    pool.kill(worker_id)
                    trees.kill(descendants)
                else:
                    pool.kill(worker_id, signal.SIGCONT)
