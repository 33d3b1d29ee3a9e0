"""When a worker has grown so far that a fresh one should take its place: what it runs leaks memory.

A worker that has loaded a model or filled a cache is large, too, but does not go on growing; so growth counts only
where it comes in many steps, and where the least of the latest readings has grown: what one task takes for a while and
gives back is no growth. It counts from the worker's first tasks on, without the resources that are known, and must be
much of what there is: until then it hurts nobody. To be wrong costs the start of a worker, ahead of the end of the old
one, and that only once in so many times as long.

Pure; owned by the scheduler.
"""

from __future__ import annotations

from collections import deque

#: The least of so many readings stands for what a worker has kept.
_N_READINGS = 8
#: A leak shows in so many steps, at least.
_LEAST_STEPS = 16
#: Growth that is worth a new worker: this part of what each worker could have, in bytes within these bounds.
_SHARE = 0.25
_LEAST_NBYTES, _MOST_NBYTES = 128 << 20, 1 << 30
#: A start may take this part of the time for which the worker has lived.
_START_SHARE = 0.05


class Growth:
    """Private memory that a worker has kept after tasks, as far as it has told.

    Attributes
    ----------
    nbytes
        By how much it has grown since its first tasks, in bytes.

    Examples
    --------
    >>> growth = Growth()
    >>> for n in range(40):
    ...     growth.see(n * 10_000_000)
    >>> growth.nbytes
    320000000
    """

    __slots__ = ("_base", "_n_steps", "_readings", "nbytes")

    def __init__(self) -> None:
        self._readings: deque[int] = deque(maxlen=_N_READINGS)
        self._base: int | None = None
        self._n_steps = 0
        self.nbytes = 0

    def see(self, nbytes: int) -> None:
        """A task has ended, and the worker uses so much, without its resources."""
        self._readings.append(nbytes)
        if len(self._readings) < _N_READINGS:
            return
        least = min(self._readings)
        if self._base is None:
            self._base = least
        self._n_steps += least - self._base > self.nbytes
        self.nbytes = max(least - self._base, 0)

    def is_leak(self, limit_nbytes: int, max_workers: int, lived_s: float, start_s: float) -> bool:
        """Whether a fresh worker should take the place of this one.

        Parameters
        ----------
        limit_nbytes
            Memory for this process and all workers, in bytes.
        max_workers
            How many share it.
        lived_s
            For how long the worker has been there, in seconds.
        start_s
            What it takes to start one, in seconds.
        """
        enough = min(max(_SHARE * limit_nbytes / max_workers, _LEAST_NBYTES), _MOST_NBYTES)
        return self.nbytes >= enough and self._n_steps >= _LEAST_STEPS and start_s <= _START_SHARE * lived_s
