"""Looks at the memory of this process and its workers, for the scheduler to decide (`decisions.memory`).

Owned by the I/O thread, but for `is_asleep`.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping

from . import cgroups, machine
from .decisions.memory import Room, Sample, reserve_nbytes

#: A look takes at most this share of the time from one to the next.
_COST_SHARE = 0.05
#: The limit is read at most this often, in seconds.
_LIMIT_PERIOD_S = 5.0


class MemoryWatch:
    """What there is, and what is in use.

    Parameters
    ----------
    limit_nbytes
        What the user allows for this process and all workers; None: what the machine or container does.
    blocks_nbytes
        Tells how much shared memory there is for arguments, in bytes.

    Attributes
    ----------
    is_asleep
        Nobody looks until a worker has work: who gives it some must wake the I/O thread. Under the dispatcher's lock.
    looked_at
        When it was last looked, in seconds.
    cost_s
        What a look takes, in seconds.
    """

    def __init__(self, limit_nbytes: int | None, blocks_nbytes: Callable[[], int]) -> None:
        self._user_limit = limit_nbytes
        self._blocks_nbytes = blocks_nbytes
        self._limit = 0
        self._limit_read_at = 0.0
        self._has_groups = True
        self._n_kills: int | None = None
        self.is_asleep = True
        self.looked_at = 0.0
        self.cost_s = 0.0

    def limit_nbytes(self) -> int:
        """Memory for this process and all workers, in bytes."""
        now = time.perf_counter()
        if not self._limit or now - self._limit_read_at > _LIMIT_PERIOD_S:
            limits = cgroups.memory_limits()
            self._has_groups = bool(limits)
            found = min([machine.host_memory(), *limits])
            self._limit = found if self._user_limit is None else min(found, self._user_limit)
            self._limit_read_at = now
        return self._limit

    def samples(self, pids: Mapping[int, int], *, in_detail: bool) -> dict[int, Sample]:
        """What workers use, by their processes; `in_detail`: and how long they have waited for a CPU."""
        found = {}
        for worker_id, pid in pids.items():
            nbytes = machine.private_nbytes(pid)
            if nbytes is not None:
                found[worker_id] = Sample(nbytes, machine.waited_s(pid) if in_detail else 0.0)
        return found

    def room(self, uses: Mapping[int, Sample]) -> Room:
        """What there is beside workers that use so much."""
        limit = self.limit_nbytes()
        left = machine.free_memory(has_groups=self._has_groups)
        if self._user_limit is not None:
            own = limit - sum([sample.nbytes for sample in uses.values()]) - self._own_nbytes()
            left = min(left[0], own), min(left[1], own)
        return Room(limit, *left)

    def room_for_workers(self) -> float:
        """Bytes for all workers together."""
        limit = self.limit_nbytes()
        return limit - reserve_nbytes(limit) - self._own_nbytes()

    def _own_nbytes(self) -> int:
        return (machine.private_nbytes(os.getpid()) or 0) + self._blocks_nbytes()

    def due_at(self, period_s: float) -> float:
        """When to look again, where the scheduler wants that after so long."""
        return self.looked_at + max(period_s, self.cost_s / _COST_SHARE)

    def note_kills(self) -> None:
        """Remember whom the kernel has killed so far: whoever starts a worker wants to know if it is the next."""
        if self._n_kills is None:
            self._n_kills = cgroups.oom_kills()

    def is_oom(self, exitcode: int | None) -> bool:
        """Whether the kernel has killed a process that ended with this status, which nobody here has killed."""
        if exitcode != -signal.SIGKILL or self._n_kills is None:
            return False
        n_before, self._n_kills = self._n_kills, cgroups.oom_kills()
        return self._n_kills > n_before
