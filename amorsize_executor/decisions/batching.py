"""When single calls become a batch, and how many: what `AmorsizeExecutor.batch` decides.

Pure: times are arguments, in seconds of any one clock. Who asks owns it and calls it under a lock.

**The cost of a batch** is taken to be t(n) = a + b n: a fixed part that a batch pays once (a call through layers of a
library, one pass over the weights of a model), and one for each item. Both come from least squares over measured
batches, in which each batch weighs a little less than the one after it; d is their mean deviation, and o what a batch
takes beyond its run (pickling, channels, a queue before it).

**When.** Batches follow free workers: while all are busy calls gather, and a worker that becomes free takes them at
once. With a light load each call goes alone and nothing is held up; with a heavy one batches become as large as it
takes, n = a L / (1 - b L) for L calls a second and worker (Bailey 1954, On queueing processes with bulk service).

Only when calls come faster than workers could run them one by one, so that a worker's time is worth as much as a
caller's, when the last free worker would be taken, and the next call is worth waiting for, a batch is held up: the
callers of an earlier batch come back one after the other, and the first should not go alone. That is the problem of
delayed acknowledgements: each batch costs a, each call its waiting time. To send when the calls have waited
a together costs at most twice what somebody who knows the future would pay (Dooly, Goldman and Scott 1998, TCP dynamic
acknowledgment delay); not to wait at all where the next call is not expected before that is what the rate of arrivals
adds.

**How many.** As many as wait, but

* no more than a fair share of the calls that wait or run, when other workers will be there for the others;
* no more than make a batch efficient: beyond n = 9 a / b, where the fixed part is a tenth, nothing is gained;
* with a target: at most so many that a call that comes at the wrong moment, waits for a worker (t / workers on
  average) and runs itself is done in time: (1 + 1 / workers) t(n) + o + 2 d <= target. The allowance for deviations is
  that of TCP's retransmission timer, with half its weight (Jacobson 1988). If this size cannot carry the load, the
  target is out of reach, and what waits is better served by the size that can: then the target gives way.
"""

from __future__ import annotations

import math
from typing import NamedTuple

#: Weight of what was measured before, for each batch after it: about the latest 30 batches count.
_KEPT = 0.97
#: Deviations from the mean size, in squared items, that count as none: the slope of a line through one size is unknown.
_MIN_VARIANCE = 0.05
#: A batch that took more times what was expected (a page fault, a busy machine) counts as this many times.
_OUTLIER = 4.0
#: Weight of the latest gap between arrivals, in what is expected next and in the rate.
_GAP_WEIGHT = 1 / 8
_RATE_WEIGHT = 1 / 64
#: Part of their time that workers may need for calls that go alone before calls are held up for others.
_BUSY_SHARE = 0.9
#: Share of the fixed part in the time of a batch below which larger ones gain nothing.
_FIXED_SHARE = 0.1
#: Calls in a batch at most.
_MOST_CALLS = 10_000_000
#: Allowance for deviations, in mean deviations.
_N_DEVIATIONS = 2.0


class Decision(NamedTuple):
    """What to do with the calls that wait.

    Attributes
    ----------
    size
        How many of them to send as one batch now; 0: none.
    until
        When to ask again if nothing happens before; None: when something happens.
    """

    size: int
    until: float | None = None


class BatchCost:
    """t(n) = a + b n, from batches as they are measured."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._n = self._t = self._nn = self._nt = 0.0  # weighted means of n, t, n n, n t
        self._deviation_s = self._overhead_s = 0.0

    @property
    def is_known(self) -> bool:
        """Whether any batch was measured."""
        return self._weight > 0

    @property
    def fixed_s(self) -> float:
        """What a batch takes however small it is, in seconds."""
        return self.line()[0]

    @property
    def item_s(self) -> float:
        """What an item adds, in seconds."""
        return self.line()[1]

    @property
    def slack_s(self) -> float:
        """What a batch may take beyond its expected run, in seconds."""
        return self._overhead_s + _N_DEVIATIONS * self._deviation_s

    def line(self) -> tuple[float, float]:
        """Both parts; neither is negative."""
        variance = self._nn - self._n * self._n
        slope = max((self._nt - self._n * self._t) / (variance + _MIN_VARIANCE), 0.0)
        fixed = self._t - slope * self._n
        if fixed < 0:  # through the origin
            return 0.0, self._nt / self._nn
        return fixed, slope

    def run_s(self, n: float) -> float:
        """What a batch is expected to take in its worker, in seconds."""
        fixed, slope = self.line()
        return fixed + slope * n

    def observe(self, n: int, run_s: float, turnaround_s: float) -> None:
        """A batch took `run_s` in its worker and `turnaround_s` from its submission to its results, in seconds."""
        if self.is_known:
            expected = self.run_s(n)
            run_s = min(run_s, _OUTLIER * expected) if expected > 0 else run_s
            share = 1 / min(self._weight + 1, 8)
            self._deviation_s += share * (abs(run_s - expected) - self._deviation_s)
            # Waiting for the start of a worker is rare, and no news of how batches travel.
            overhead = min(max(turnaround_s - run_s, 0.0), self._overhead_s + run_s)
            self._overhead_s += share * (overhead - self._overhead_s)
        self._weight = _KEPT * self._weight + 1
        share = 1 / self._weight
        self._n += share * (n - self._n)
        self._t += share * (run_s - self._t)
        self._nn += share * (n * n - self._nn)
        self._nt += share * (n * run_s - self._nt)


class BatchPolicy:
    """Decides when calls are sent as a batch, and how many.

    Parameters
    ----------
    max_size
        Calls in a batch at most; None: as many as pays.
    max_delay_s
        How long a call may wait for others while a worker is free, in seconds; None: as long as it pays.
    target_s
        What a call should take from its arrival to its result, in seconds; None: nothing in particular.
    """

    def __init__(self, max_size: int | None, max_delay_s: float | None, target_s: float | None) -> None:
        self._max_size = max_size
        self._max_delay_s = max_delay_s
        self._target_s = target_s
        self.cost = BatchCost()
        self._gap_s: float | None = None  # between the latest arrivals
        self._mean_gap_s = 0.0  # over more of them
        self._arrived_at: float | None = None
        self._idle_since: float | None = None  # when calls began to wait although a worker was free
        self._spent_s = 0.0  # what they have waited since, in all
        self._asked_at = 0.0  # when it was last decided to wait, and how many waited then
        self._n_asked = 0

    @property
    def rate(self) -> float:
        """Calls a second, lately; 0 while that is unknown."""
        return 1 / self._mean_gap_s if self._mean_gap_s else 0.0

    def arrived(self, now: float) -> None:
        """A call has come."""
        if self._arrived_at is not None:
            gap = now - self._arrived_at
            if self._gap_s is None:
                self._gap_s = self._mean_gap_s = gap
            else:
                self._gap_s += _GAP_WEIGHT * (gap - self._gap_s)
                self._mean_gap_s += _RATE_WEIGHT * (gap - self._mean_gap_s)
        self._arrived_at = now

    def done(self, n: int, run_s: float, turnaround_s: float) -> None:
        """A batch was run; see `BatchCost.observe`."""
        self.cost.observe(n, run_s, turnaround_s)

    def decide(
        self, n_waiting: int, waits_since: float, n_busy: int, n_running: int, n_workers: int, now: float
    ) -> Decision:
        """What to do now.

        Parameters
        ----------
        n_waiting, waits_since
            Calls that wait, and when the first of them came, in seconds.
        n_busy, n_running
            Batches that are with a worker, and the calls in them.
        n_workers
            How many batches can run at once.
        now
            Time in seconds.
        """
        if not n_waiting or n_busy >= n_workers:
            self._idle_since = None
            return Decision(0)
        size = self.size(n_waiting, n_running, n_workers)
        is_full = size < n_waiting or size == self._max_size
        is_crowded = self.rate * self.cost.run_s(1) > _BUSY_SHARE * n_workers if self.cost.is_known else False
        if not is_full and is_crowded and n_busy == n_workers - 1:
            until = self._holds_until(n_waiting, waits_since, now)
            if until is not None:
                return Decision(0, until)
        self._idle_since = None
        return Decision(size)

    def size(self, n_waiting: int, n_running: int, n_workers: int) -> int:
        """How many of the calls that wait make the next batch."""
        size = n_waiting
        if n_workers > 1:
            size = min(size, math.ceil((n_waiting + n_running) / n_workers))
        if self.cost.is_known:
            size = min(size, self._efficient(), self._in_time(n_waiting, n_workers))
        if self._max_size is not None:
            size = min(size, self._max_size)
        return max(size, 1)

    def _efficient(self) -> int:
        fixed, slope = self.cost.line()
        most, each = fixed * (1 - _FIXED_SHARE), slope * _FIXED_SHARE
        return math.ceil(most / each) if most < each * _MOST_CALLS else _MOST_CALLS

    def _in_time(self, n_waiting: int, n_workers: int) -> int:
        """The largest size that keeps the target, or the one that carries the load if that is larger."""
        if self._target_s is None:
            return n_waiting
        fixed, slope = self.cost.line()
        run_s = (self._target_s - self.cost.slack_s) / (1 + 1 / n_workers)
        if self.cost.run_s(n_waiting) <= run_s:
            return n_waiting
        most = int((run_s - fixed) / slope) if run_s > fixed and slope > 0 else 1
        rate = self.rate / n_workers
        if rate * slope >= 1:
            return n_waiting
        return max(most, math.ceil(rate * fixed / (1 - rate * slope)))

    def _holds_until(self, n_waiting: int, waits_since: float, now: float) -> float | None:
        """When calls are sent although no other has come; None: now."""
        if self._idle_since is None:
            self._idle_since = now
            self._spent_s = 0.0
        else:
            self._spent_s += self._n_asked * (now - self._asked_at)
        self._asked_at, self._n_asked = now, n_waiting
        if not self.cost.is_known or self._gap_s is None:
            return None
        left_s = (self.cost.fixed_s - self._spent_s) / n_waiting
        if self._gap_s >= left_s:
            return None
        until = now + left_s
        if self._max_delay_s is not None:
            until = min(until, self._idle_since + self._max_delay_s)
        if self._target_s is not None:
            until = min(until, waits_since + self._target_s - self.cost.run_s(n_waiting) - self.cost.slack_s)
        return until if until > now else None
