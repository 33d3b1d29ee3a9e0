"""Which workers are replaced though nothing is wrong with them yet, and when the next one starts.

A worker leaves when it has had its share of tasks (`max_tasks_per_child`), or when its memory grows and grows. It gets
no more work then; the one that takes its place starts so early that it should be ready when the other is done, and
works when it has gone. So no more workers run tasks than are allowed, and there is at most one process more for that.

A leak is told from what a worker uses between tasks, without its resources. Its life so far is cut into four parts of
equally many tasks, and the least that it used in each is taken: what tasks take and give back does not count. Memory
leaks if these four rise by what is allowed in all, and each step is at least half of the average one. So a cache that
was filled once, or a module that was imported late, is none: the last steps are too small, or the first.

A cache that is still being filled looks the same. That mistake is kept cheap:

* A worker must have lived fifty times as long as it takes to start another and build its resources: replacing costs at
  most 2 % of the time.
* What is allowed is an eighth of a worker's part of the memory, and twice as much after each worker that was replaced
  for it, up to a half: a cache smaller than that costs at most two replacements.

Pure: the scheduler owns all of this.
"""

from __future__ import annotations

import itertools

#: Reasons for leaving, as users see them.
TASKS, GROWTH = "max_tasks_per_child", "its memory grows"
#: A worker has lived so many times as long as a new one takes to be as ready.
LIVES = 50
#: Shares of a worker's part of the memory that it may grow by, at first and at most; and at least this, in bytes.
_FIRST_SHARE, _MOST_SHARE = 1 / 8, 1 / 2
LEAST_GROWTH_NBYTES = 64 << 20
#: Tasks that a worker has run at least, and times it was measured at least.
_LEAST_TASKS, _LEAST_SAMPLES = 16, 6
#: Measurements that are kept; of more, every second one.
_MOST_SAMPLES = 64
_PARTS = 4
#: The next worker starts so many start times before its place is free: starts take longer beside work.
_START_EARLY = 2.0


class Growth:
    """What a worker used between tasks, by how many it had run."""

    __slots__ = ("_first", "_last", "_samples", "_stride")

    def __init__(self) -> None:
        self._samples: list[tuple[int, int, int]] = []  # tasks run // stride, least and latest bytes
        self._stride = 1  # tasks that share a sample
        self._first: int | None = None  # tasks that it had run when it was first, and last, looked at
        self._last = 0

    def see(self, n_tasks: int, nbytes: int) -> None:
        """It has run so many tasks and uses so many bytes."""
        self._first = n_tasks if self._first is None else self._first
        self._last = n_tasks
        self._add(n_tasks // self._stride, nbytes, nbytes)
        if len(self._samples) > _MOST_SAMPLES:
            self._stride *= 2
            samples, self._samples = self._samples, []
            for at, least, latest in samples:
                self._add(at // 2, least, latest)

    def _add(self, at: int, least: int, latest: int) -> None:
        if self._samples and self._samples[-1][0] >= at:
            at, least_before, _ = self._samples.pop()
            least = min(least, least_before)
        self._samples.append((at, least, latest))

    def leaked_nbytes(self) -> int:
        """By how many bytes it has grown, if it does so all the time; else 0."""
        first = self._first or 0
        if self._last - first < _LEAST_TASKS or len(self._samples) < _LEAST_SAMPLES:
            return 0
        floors = self._floors(first)
        steps = [after - before for before, after in itertools.pairwise(floors)]
        total = floors[-1] - floors[0]
        return total if total > 0 and min(steps) * 2 * len(steps) >= total else 0

    def _floors(self, first: int) -> list[int]:
        """The least that it used in each part of its tasks.

        A worker tells only changes: until the next one it uses what it told last.
        """
        floors: list[int] = []
        before = self._samples[0][2]
        samples = iter(self._samples)
        sample = next(samples, None)
        for part in range(1, _PARTS + 1):
            end = first + (self._last - first) * part / _PARTS
            floor = before
            while sample is not None and sample[0] * self._stride <= end:
                floor, before = min(floor, sample[1]), sample[2]
                sample = next(samples, None)
            floors.append(floor)
        return floors


class Leaks:
    """Watches the memory of workers.

    Attributes
    ----------
    n_found
        Workers that were found to leak so far.
    """

    def __init__(self) -> None:
        self.n_found = 0
        self._growth: dict[int, Growth] = {}

    def told(
        self, worker_id: int, n_tasks: int, nbytes: int, *, age_s: float, replace_s: float, part_nbytes: float
    ) -> int:
        """A worker uses so much between tasks; by how many bytes it leaked if it should be replaced, else 0.

        Parameters
        ----------
        worker_id
            The worker.
        n_tasks, nbytes
            Tasks that it has run, and bytes that it uses without its resources.
        age_s, replace_s
            How old it is, and how long another one takes to be as ready, in seconds.
        part_nbytes
            A worker's part of the memory, in bytes.
        """
        growth = self._growth.get(worker_id)
        if growth is None:
            growth = self._growth[worker_id] = Growth()
        growth.see(n_tasks, nbytes)
        if age_s < LIVES * replace_s:
            return 0
        leaked = growth.leaked_nbytes()
        if leaked < allowed_nbytes(part_nbytes, self.n_found):
            return 0
        self.n_found += 1
        return leaked

    def forget_worker(self, worker_id: int) -> None:
        """A worker has ended."""
        self._growth.pop(worker_id, None)


def allowed_nbytes(part_nbytes: float, n_found: int) -> float:
    """By how much a worker may grow, in bytes, after so many were replaced for that.

    Examples
    --------
    >>> [allowed_nbytes(8 << 30, n) / 2**30 for n in range(4)]
    [1.0, 2.0, 4.0, 4.0]
    """
    share = min(_FIRST_SHARE * 2.0 ** min(n_found, 10), _MOST_SHARE)
    return max(share * part_nbytes, LEAST_GROWTH_NBYTES)


def starts_ahead_at(began_at: float, rest_s: float | None, start_s: float) -> float:
    """When the next worker starts that takes the place of one with so much left to do, in seconds.

    Parameters
    ----------
    began_at
        Since when it is at that, in seconds.
    rest_s
        How long that takes, in seconds; None: nobody knows, so it may end at any time.
    start_s
        How long a worker takes to start, in seconds.

    Examples
    --------
    >>> starts_ahead_at(10.0, 5.0, 0.5)
    14.0
    """
    return began_at if rest_s is None else began_at + max(rest_s - _START_EARLY * start_s, 0.0)
