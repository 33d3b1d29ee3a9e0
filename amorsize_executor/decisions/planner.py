"""Whether parallelism pays for a map, with how many workers, and in which chunks.

Every function here is pure arithmetic over what the cost model knows and what the pool looks like now. The planner
is asked again whenever more is known, so a wrong first guess costs one small batch of items, not the map.

The cost of a map of N items of t seconds, with q seconds of carriage an item::

    serial      T(0) = N t
    n workers   T(n) = s + rest / e + tail + chunks * o / n

where s is the wait for workers that still have to start (the caller works meanwhile, so `rest` is what it leaves),
e = min(n, CPUs / CPU share) is how many tasks make progress at once, carriage is paid in CPU time by everybody, and the
tail is the time in which the last workers finish alone. Chunks follow factoring (Flynn Hummel, Schonberg and
Flynn 1992): half of what remains is split evenly among the workers, bounded below by the overhead of a chunk and
above by how long a wrong estimate may go unnoticed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from .cost_model import CostModel, FunctionCost

#: Overhead of a chunk may be this share of its time: below 2 % nobody sees it.
OVERHEAD_SHARE = 0.02
#: A chunk is at most one part in so many of what is left for each worker.
LEAST_FACTOR = 1.5
#: No chunk is planned longer than this, in seconds, so that drift is followed and results flow.
MAX_CHUNK_S = 0.1
#: Chunks of a function in a map that gave no result yet are at most this long by prediction, in seconds ...
FIRST_CHUNK_S = 0.01
#: ... and grow at most by this factor from one result to the next.
CHUNK_GROWTH = 4
#: Items with more bytes than this travel in chunks of few.
MAX_CHUNK_NBYTES = 32 << 20
#: The caller computes inline at most this long between two looks at the state of things, in seconds.
INLINE_BATCH_S = 4e-3
#: A function that was unknown when its map began is sampled inline for this long before the planner believes the
#: sample, in seconds: a first call is often ten times slower than the next (cold caches, imports).
SAMPLE_S = 0.5e-3
#: With a worker at hand, an item predicted longer than this does not run in the caller, in seconds.
INLINE_ITEM_S = 4e-3
#: Parallelism must promise at least this share of the serial time as a gain, to pay for what was not modelled.
MIN_GAIN = 0.08
#: ... and at least this much, in seconds: threads and workers that sleep take their time to wake (maps of 0.5 to
#: 1 ms were 1.5 times slower than a loop without this; benchmarks/dispatch.py, warm grid).
MIN_GAIN_S = 0.5e-3
#: ... and this share where workers must start first: how long that takes varies by half.
MIN_GAIN_COLD = 0.2
#: Share of its speed that the caller keeps while workers start beside it (imports share the interpreter lock).
_CALLER_SHARE_WHILE_STARTING = 0.6


class PoolState(NamedTuple):
    """What the planner needs to know about the pool.

    Attributes
    ----------
    n_ready
        Workers that could take a task now or soon (idle or busy).
    max_workers
        Upper bound on workers, memory considered.
    n_cpus
        CPUs that this process may use.
    worker_start_s
        Expected seconds to start a worker.
    """

    n_ready: int
    max_workers: int
    n_cpus: int
    worker_start_s: float


class Plan(NamedTuple):
    """What a map does, and why.

    Attributes
    ----------
    function
        Name of the function.
    n_items
        Items of the map; those seen so far when the input is read lazily.
    n_workers
        Worker processes to use; 0 means that all items run in the caller (serial).
    chunksize
        Items in the first chunk; later ones follow the measured times unless the caller fixed the size.
    item_s
        Expected time of one item in seconds; None when nothing is known about the function yet.
    item_std_s
        Standard deviation of `item_s`, in seconds.
    serial_s, predicted_s
        Expected time of a serial loop and of this plan, in seconds; None when unknown.
    considered
        Pairs (workers, predicted seconds) that were compared; 0 workers is the serial loop.
    actual_s
        Time from the call of `map` until its last result was there, in seconds; None while it runs.
    n_inline
        Items that ran in the caller's thread.
    n_chunks
        Chunks that went to workers.
    constraint
        Why the choice was not free (for example "inline='never'"), or an empty string.
    """

    function: str
    n_items: int
    n_workers: int
    chunksize: int
    item_s: float | None = None
    item_std_s: float = 0.0
    serial_s: float | None = None
    predicted_s: float | None = None
    considered: tuple[tuple[int, float], ...] = ()
    actual_s: float | None = None
    n_inline: int = 0
    n_chunks: int = 0
    constraint: str = ""

    @property
    def is_serial(self) -> bool:
        """Whether all items run in the caller."""
        return self.n_workers == 0

    @property
    def estimated_speedup(self) -> float | None:
        """Predicted speed-up over a serial loop; None when nothing is known yet."""
        if self.serial_s is None or not self.predicted_s:
            return None
        return self.serial_s / self.predicted_s

    @property
    def reason(self) -> str:
        """Why, in one sentence."""
        if self.item_s is None:
            if self.constraint:
                unknown = f"nothing is known about {self.function} yet and {self.constraint}"
                return f"{unknown}: workers start with single items"
            return f"nothing is known about {self.function} yet: its first item tells"
        if self.constraint and not self.is_serial:
            return f"{self.constraint}: items run in workers"
        serial = format_time(self.serial_s or 0.0)
        if self.is_serial:
            others = [c for c in self.considered if c[0]]
            if not others or self.predicted_s is None:
                return f"serial: {serial} of work in all leaves nothing to gain"
            n, best = min(others, key=lambda c: c[1])
            return (
                f"serial: {serial} in the caller, against {format_time(best)} with {n} "
                f"worker{'s' if n > 1 else ''} (starting, carrying and waiting included)"
            )
        return (
            f"{self.n_workers} worker{'s' if self.n_workers > 1 else ''}: {format_time(self.predicted_s or 0.0)} "
            f"instead of {serial} in a serial loop"
        )

    def __str__(self) -> str:
        lines = [f"Plan for {self.function} over {self.n_items:,} item{'s' if self.n_items != 1 else ''}"]
        if self.item_s is not None:
            lines.append(f"  one item    {format_time(self.item_s)} (std {format_time(self.item_std_s)})")
        parallel = f"{self.n_workers} workers, first chunk {self.chunksize}"
        lines.append(f"  choice      {'serial, in the caller' if self.is_serial else parallel}")
        lines.append(f"  why         {self.reason}")
        if self.predicted_s is not None:
            gain = self.estimated_speedup
            lines.append(
                f"  predicted   {format_time(self.predicted_s)}"
                + (f", {gain:.2f} times a serial loop's speed" if gain else "")
            )
        if self.actual_s is not None:
            lines.append(
                f"  real        {format_time(self.actual_s)}, {self.n_inline:,} items in the caller, "
                f"{self.n_chunks:,} chunk{'s' if self.n_chunks != 1 else ''} to workers"
            )
        return "\n".join(lines)


def format_time(seconds: float) -> str:
    """Seconds with a unit that a person reads.

    >>> format_time(0.00125)
    '1.25 ms'
    """
    for limit, scale, unit in ((1e-6, 1e9, "ns"), (1e-3, 1e6, "us"), (1.0, 1e3, "ms")):
        if abs(seconds) < limit:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def predict_parallel(n_items: int, cost: FunctionCost, n_workers: int, pool: PoolState) -> float:
    """Expected seconds of a map with `n_workers` workers.

    Parameters
    ----------
    n_items
        Items still to do.
    cost
        What is known about the function.
    n_workers
        Workers to use, at least 1.
    pool
        What is running already.
    """
    t = cost.mean_s
    work = n_items * t
    missing = max(n_workers - pool.n_ready, 0)
    wait = 0.0
    if missing:
        # Workers that start at once share the CPUs with the caller.
        wait = pool.worker_start_s * max(1.0, (missing + 1) / pool.n_cpus / 1.5)
    by_caller = min(work, wait * _CALLER_SHARE_WHILE_STARTING)
    rest_items = (work - by_caller) / t if t > 0 else 0.0
    at_once = min(n_workers, pool.n_cpus / max(cost.cpu_share, 1e-2))
    # Carriage: once in the parent, about as much again in the worker.
    carriage = rest_items * cost.carry_s
    busy = (rest_items * t + 2 * carriage) / max(min(at_once, pool.n_cpus / max(cost.cpu_share, 1e-2)), 1e-9)
    rounds = math.ceil(rest_items / n_workers - 1e-9) * t  # whole items only
    chunk = chunk_size(max(int(rest_items), 1), n_workers, t, known=True)
    chunks = max(rest_items / chunk, 1.0)
    tail = min(t, work) * 0.5 * min(cost.std_s / t if t > 0 else 0.0, 2.0)
    return wait + max(busy, rounds, carriage) + tail + (chunks / n_workers + 1) * CostModel.CHUNK_OVERHEAD_S


def plan_map(
    function: str,
    n_items: int,
    cost: FunctionCost | None,
    pool: PoolState,
    *,
    inline: bool,
    chunksize: int | None = None,
    constraint: str = "",
) -> Plan:
    """Choose serial or a number of workers for what remains of a map.

    Parameters
    ----------
    function
        Name to show.
    n_items
        Items still to do.
    cost
        What is known about the function; None for nothing.
    pool
        The pool's state.
    inline
        Whether the caller may run items.
    chunksize
        Size of chunks if the caller fixed it.
    constraint
        Why the caller may not run items, for the plan's reason.

    Returns
    -------
    Plan
        Without `actual_s`. An unknown function gets a serial plan where inline work is allowed: its first item
        tells, and the planner is asked again.
    """
    most = max(min(pool.max_workers, n_items), 1)
    if cost is None:
        return Plan(function, n_items, 0 if inline else most, chunksize or 1, constraint=constraint)
    serial_s = n_items * cost.mean_s
    candidates = [(0, serial_s)] if inline else []
    if not (inline and serial_s < CostModel.CHUNK_OVERHEAD_S):
        for n in _worker_counts(most):
            candidates.append((n, predict_parallel(n_items, cost, n, pool)))
    best_n, best_s = min(candidates, key=lambda c: c[1])
    min_gain = MIN_GAIN if pool.n_ready else MIN_GAIN_COLD
    if inline and best_n and serial_s - best_s < max(min_gain * serial_s, MIN_GAIN_S):
        best_n, best_s = 0, serial_s
    first = chunksize or chunk_size(n_items, max(best_n, 1), cost.mean_s, known=False, nbytes=cost.nbytes)
    return Plan(
        function,
        n_items,
        best_n,
        first,
        item_s=cost.mean_s,
        item_std_s=cost.std_s,
        serial_s=serial_s,
        predicted_s=best_s,
        considered=tuple(candidates),
        constraint=constraint,
    )


def _worker_counts(most: int) -> list[int]:
    """Worker counts worth comparing: all up to 8, then steps of a quarter."""
    counts, n = [], 1
    while n < most:
        counts.append(n)
        n = n + 1 if n < 8 else n + n // 4
    counts.append(most)
    return counts


def chunk_size(
    remaining: int,
    n_workers: int,
    item_s: float | None,
    *,
    known: bool,
    variation: float = 1.0,
    nbytes: float = 0.0,
    limit: int | None = None,
) -> int:
    """Items for the next chunk of a map (factoring).

    Parameters
    ----------
    remaining
        Items not given out yet, at least 1.
    n_workers
        Workers that share them.
    item_s
        Expected seconds of one item; None when unknown: single items.
    known
        Whether this map itself has confirmed `item_s`; if not, the chunk is kept short.
    variation
        Standard deviation of the time of an item over its mean.
    nbytes
        Expected size of an item in bytes.
    limit
        Upper bound from what this map has seen so far (growth is bounded, so a cheap first item cannot pull
        thousands of expensive ones into one chunk).

    Notes
    -----
    Factoring (Flynn Hummel, Schonberg and Flynn 1992) gives each worker 1 / (x n) of the R items that remain, where
    ``b = n / (2 sqrt(R)) std / mean`` and ``x = 1 + b^2 + b sqrt(b^2 + 2)``: that part is probably done before the
    others are. x is at least `LEAST_FACTOR`, as mean and deviation are estimates.
    """
    if item_s is None:
        return 1
    if item_s <= 0:
        item_s = 1e-9
    least = math.ceil(CostModel.CHUNK_OVERHEAD_S / OVERHEAD_SHARE / item_s)
    b = 0.5 * n_workers * variation / math.sqrt(remaining)
    factor = max(1 + b * b + b * math.sqrt(b * b + 2), LEAST_FACTOR)
    share = math.ceil(remaining / (factor * n_workers))
    size = max(share, min(least, -(-remaining // n_workers)))
    size = min(size, max(int((MAX_CHUNK_S if known else FIRST_CHUNK_S) / item_s), 1))
    if nbytes >= 1:
        size = min(size, max(int(MAX_CHUNK_NBYTES / nbytes), 1))
    if limit is not None:
        size = min(size, limit)
    return max(min(size, remaining), 1)


def inline_batch(remaining: int, item_s: float | None, done_inline: int, is_known: bool) -> int:
    """Items that the caller runs before it looks around again: about `INLINE_BATCH_S` of work.

    Parameters
    ----------
    remaining
        Items not given out yet.
    item_s
        Expected seconds of one item; None when unknown.
    done_inline
        Items of this map that the caller has run.
    is_known
        Whether `item_s` was known when the map began; if not, batches double from a single item on.
    """
    if item_s is None or (done_inline == 0 and not is_known):
        return 1
    by_time = int(INLINE_BATCH_S / item_s) if item_s > 0 else remaining
    return max(min(remaining, by_time, remaining if is_known else 2 * done_inline), 1)


def inline_pays(
    remaining: int, item_s: float | None, n_ready: int, n_workers: int, waited_s: float, worker_start_s: float
) -> bool:
    """Whether the caller should run the next item of a map that workers share, instead of waiting.

    Only while fewer workers are ready than the plan wants: then a CPU is free for the caller. With a worker at hand an
    item longer than a few milliseconds is never taken; without one it is taken if the caller ends it before the
    workers could have done all that remains.

    Parameters
    ----------
    remaining
        Items not given out yet.
    item_s
        Expected seconds of one item; None when unknown.
    n_ready, n_workers
        Workers ready, and workers that the plan wants.
    waited_s
        Seconds since the start of workers was asked for.
    worker_start_s
        Expected seconds to start a worker.
    """
    if remaining <= 0 or n_ready >= n_workers or item_s is None:
        return False
    if n_ready > 0:
        return item_s <= INLINE_ITEM_S
    until_ready = max(worker_start_s - waited_s, 0.0)
    return item_s < until_ready + remaining * item_s / n_workers


def hand_over_pays(remaining: int, item_elapsed_s: float, pool: PoolState) -> bool:
    """Whether workers should get what remains while the caller is stuck in an item.

    An item that has run for e seconds is expected to be typical of those behind it (each at least e). With a worker
    at hand that is reason enough after a few milliseconds. Without one, starting workers must promise to win more
    than it costs: the ski-rental rule.

    Parameters
    ----------
    remaining
        Items not given out yet.
    item_elapsed_s
        Seconds that the item in the caller has been running, or that the caller has not come for results.
    pool
        The pool's state.
    """
    if remaining <= 0 or item_elapsed_s < INLINE_ITEM_S:
        return False
    if pool.n_ready > 0:
        return True
    n = min(pool.max_workers, remaining)
    gain = remaining * item_elapsed_s * (1 - 1 / (n + 1))
    return gain > pool.worker_start_s
