"""Whether parallelism pays for a map, with how many workers, and in which chunks.

Every function here is pure arithmetic over what the cost model knows and what the pool looks like now. The planner
is asked again whenever more is known, so a wrong first guess costs one small batch of items, not the map.

The time of a map of N items that take t seconds each alone is, for the serial loop and for n workers::

    T(0) = N (t + i)                i seconds an item in the caller, beyond its own time
    T(n) = start + dispatch + pickling + compute + tail

    compute    N t(e) / e, where e tasks make progress at once (n, and the caller where it helps, but no more than CPUs
               over CPU share) and t(e) = t (1 + s (e - 1) + k e (e - 1)) by the universal scalability law
    start      the wait for workers that have to start, less the work that the caller and the others do meanwhile
    pickling   N (q + r) / e: q seconds an item in the parent, r in the worker (at least q until it was measured)
    dispatch   a chunk's overhead, for the chunks of one worker and the first of all
    tail       the last round is not full, and items differ

Chunks follow factoring (Flynn Hummel, Schonberg and Flynn 1992), bounded below by the overhead of a chunk and above by
how long a wrong estimate may go unnoticed; what a chunk's worker has not begun can be taken back from it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from .cost_model import SEVERAL_CPUS, CostModel, FunctionCost
from .plan import Cost, Plan

#: Overhead of a chunk may be this share of its time: below 2 % nobody sees it.
OVERHEAD_SHARE = 0.02
#: The last chunks of a map, which cannot be so long, take at least so many times their overhead.
LAST_OVERHEADS = 2
#: A chunk is at most one part in so many of what is left for each worker.
LEAST_FACTOR = 1.5
#: No chunk is planned longer than this, in seconds, so that drift is followed and results flow ...
MAX_CHUNK_S = 0.1
#: ... but where chunks cost much (on a cluster), until the overhead of one is this share of its time.
_LEAST_OVERHEAD_SHARE = 0.01
#: Chunks of a function in a map that gave no result yet are at most this long by prediction, in seconds ...
FIRST_CHUNK_S = 0.01
#: ... and grow at most by this factor from one result to the next.
CHUNK_GROWTH = 4
#: Items with more bytes than this travel in chunks of few.
MAX_CHUNK_NBYTES = 32 << 20
#: The caller computes inline at most this long between two looks at the state of things, in seconds.
INLINE_BATCH_S = 4e-3
#: ... and of the end of a map that workers share, when less is left than two of them, at least for so long.
LEAST_INLINE_S = 0.2e-3
#: A function that was unknown when its map began is sampled inline for this long before the planner believes the
#: sample, in seconds ...
SAMPLE_S = 0.5e-3
#: ... and for so many items, unless they take longer than this in all, in seconds: a first call is often ten times
#: slower than the next (cold caches, imports).
SAMPLE_ITEMS = 3
LONG_SAMPLE_S = 30e-3
#: A caller who helps does this share of a worker's work: between items it also reads results and hands out chunks ...
CALLER_SHARE = 0.85
#: ... of long items this share ...
_CALLER_SHARE_LONG = 0.95
#: ... and in between what this much an item leaves, in seconds.
_CALLER_GIVES_S = 0.2e-3
#: The caller helps only while carrying items takes it less than this share of its time.
_BUSY_CARRYING = 0.15
#: With a worker at hand, an item predicted longer than this does not run in the caller, in seconds.
INLINE_ITEM_S = 4e-3
#: What a worker takes to load a function counts from here on, in seconds: less is not told from a busy parent.
LEAST_LOAD_S = 20e-3
#: Parallelism must promise at least this share of the serial time as a gain, to pay for what was not modelled.
MIN_GAIN = 0.08
#: ... and at least this much, in seconds: threads and workers that sleep take their time to wake (maps of 0.5 to
#: 1 ms were 1.5 times slower than a loop without this; benchmarks/dispatch.py, warm grid).
MIN_GAIN_S = 0.5e-3
#: ... and this share, and this much, where workers must start first: how long that takes varies by half.
MIN_GAIN_COLD = 0.10
MIN_GAIN_COLD_S = 7e-3
#: ... and this share where items have several CPUs for themselves: how many is known to a tenth or so, and beside each
#: other they win no more than what they leave (a BLAS that shares its CPUs took twice as long).
MIN_GAIN_CROWDED = 0.25
#: What the start of a worker takes of the caller's time, over the time until it is ready.
START_PRICE = 0.1
#: ... and where the caller and the workers that are there leave it no CPU.
CROWDED_START_PRICE = 0.5
#: A worker that maps have missed starts so long after the end of one, in seconds, if the next has not come before: a
#: program that has mapped all it wanted has shut the pool down by then.
START_AHEAD_S = 2e-3
#: Share of its speed that the caller keeps while workers start beside it.
_CALLER_SHARE_WHILE_STARTING = 0.9
#: Seconds that a byte of a large item takes its sender before that was measured: 1 GB/s, to copy and to map it.
CARRY_S_A_BYTE = 1e-9
#: Of a map of which nothing is known, half of the workers start first, and all if its first item has taken so many
#: times what a start takes.
_ALL_START_AFTER = 4
#: What is expected of an unknown function's other items, over what its first one has taken.
FIRST_CALL_SHARE = 0.1


class PoolState(NamedTuple):
    """What the planner needs to know about the pool.

    Attributes
    ----------
    n_ready
        Workers that could take a task now or soon (idle or busy). For a function that takes long to load: those that
        have loaded it.
    max_workers
        Upper bound on workers, memory considered.
    n_cpus
        CPUs that this process may use.
    worker_start_s
        Expected seconds until there is another one.
    chunk_overhead_s
        What a chunk costs beyond its items, in seconds.
    load_s
        What of `worker_start_s` it takes to load the function.
    """

    n_ready: int
    max_workers: int
    n_cpus: int
    worker_start_s: float
    chunk_overhead_s: float = CostModel.CHUNK_OVERHEAD_S
    load_s: float = 0.0


def serial_cost(n_items: int, cost: FunctionCost) -> Cost:
    """Expected cost of a map whose items all run in the caller: a loop, and what it takes to copy and hand out."""
    return Cost(0, 0.0, 0.0, n_items * cost.inline_s, n_items * cost.mean_s, 0.0)


def parallel_cost(n_items: int, cost: FunctionCost, n_workers: int, pool: PoolState, *, inline: bool) -> Cost:
    """Expected cost of a map with workers.

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
    inline
        Whether the caller may run items.
    """
    t = cost.mean_s
    most_at_once = pool.n_cpus / max(cost.cpu_share, 1e-2)
    helped = inline and caller_helps(cost, n_workers, pool)
    share = min(max(CALLER_SHARE, 1 - _CALLER_GIVES_S / t if t else 0.0), _CALLER_SHARE_LONG)
    at_once = max(min(n_workers + share * helped, most_at_once), min(n_workers, 1.0))
    t_at_once = t * cost.scaling.slowdown(at_once)
    missing = max(n_workers - pool.n_ready, 0)
    start_s, left = 0.0, float(n_items)
    if missing:
        # Workers that start at once share the CPUs with the caller.
        wait_s = pool.worker_start_s * max(1.0, (missing + inline) / pool.n_cpus)
        n_ready = n_workers - missing
        speed = min(n_ready + _CALLER_SHARE_WHILE_STARTING * inline, most_at_once) / t if t > 0 else 0.0
        meanwhile = min(speed * wait_s, n_items)
        left -= meanwhile
        price = CROWDED_START_PRICE if n_ready and n_workers >= pool.n_cpus else START_PRICE
        price_s = price * pool.worker_start_s
        start_s = price_s + wait_s - meanwhile * t_at_once / at_once
        if not left:  # they come too late
            start_s = price_s + n_items / speed - n_items * t_at_once / at_once
    compute_s = n_items * t_at_once / at_once
    there_s = max(cost.carry_s, CostModel.PRIOR_RETURN_S) if cost.return_s is None else cost.return_s
    pickling_s = max(left * (cost.carry_s + there_s) / at_once, left * cost.carry_s - left * t_at_once / at_once)
    chunk = chunk_size(max(int(left), 1), n_workers, t, known=True, overhead_s=pool.chunk_overhead_s)
    chunks = max(left / chunk, 1.0) if left else 0.0
    dispatch_s = (chunks / n_workers + 1) * pool.chunk_overhead_s if left else 0.0
    spread = min(cost.std_s / t, 2.0) if t > 0 else 0.0
    # Few items are computed in rounds, in which the caller does as much as a worker if they are long.
    lanes = at_once if t <= INLINE_ITEM_S else max(min(n_workers + helped, most_at_once), 1.0)
    in_rounds = math.ceil(left / lanes - 1e-9) - left / at_once if left < 8 * at_once else 0.0
    tail_s = t_at_once * max(in_rounds, 0.5 * spread) if left else 0.0
    return Cost(n_workers, start_s, dispatch_s, pickling_s, compute_s, tail_s, helped)


def caller_helps(cost: FunctionCost, n_workers: int, pool: PoolState) -> bool:
    """Whether the caller runs items beside so many workers: it has a CPU, and the items are short.

    Long ones, too, if no further worker is at hand, which could run them while the caller hands out results.
    """
    if n_workers >= pool.n_cpus or (cost.mean_s > INLINE_ITEM_S and n_workers < pool.n_ready):
        return False
    return n_workers * cost.carry_s < _BUSY_CARRYING * cost.mean_s


def plan_map(
    function: str,
    n_items: int,
    cost: FunctionCost | None,
    pool: PoolState,
    *,
    inline: bool,
    chunksize: int | None = None,
    constraint: str = "",
    least: int = 0,
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
    least
        Workers that share the map already: with fewer, or none, nothing would be won.

    Returns
    -------
    Plan
        Without `actual_s`. An unknown function gets a serial plan where inline work is allowed: its first item
        tells, and the planner is asked again.
    """
    most = max(min(pool.max_workers, n_items), 1)
    if not n_items:
        return Plan(function, 0, 0, chunksize or 1, serial_s=0.0, predicted_s=0.0, constraint="there are no items")
    if cost is None:
        return Plan(function, n_items, 0 if inline else most, chunksize or 1, constraint=constraint)
    serial = serial_cost(n_items, cost)
    considered = [serial] if inline else []
    if not inline or least or serial.total_s >= MIN_GAIN_S:  # else there is not so much to gain
        counts = [n for n in _worker_counts(most) if n > least]
        counts = [least, *counts] if least else counts
        considered += [parallel_cost(n_items, cost, n, pool, inline=inline) for n in counts]
    if least:
        gainful = [c for c in considered if c.n_workers]
    else:
        gainful = [c for c in considered if not inline or _is_gainful(c, serial, cost, pool)]
    # Of those within a hundredth of the best: with the fewest workers to start, then with no need of the caller.
    least_s = min(c.total_s for c in gainful)
    close = [c for c in gainful if c.total_s <= least_s + 0.01 * abs(least_s)]
    best = min(close, key=lambda c: (max(c.n_workers - pool.n_ready, 0), c.helped, c.n_workers))
    alone_s = cost.try_alone_s if inline and not least else None
    if best.n_workers and alone_s is not None and n_items * alone_s < 0.95 * best.total_s:
        constraint = "items of an earlier map were so fast in the caller that this is tried once"
        best = serial
    first = chunksize or chunk_size(
        n_items,
        max(best.n_workers, 1),
        cost.mean_s,
        known=False,
        nbytes=cost.nbytes,
        overhead_s=pool.chunk_overhead_s,
    )
    return Plan(
        function,
        n_items,
        best.n_workers,
        first,
        item_s=cost.mean_s,
        item_std_s=cost.std_s,
        serial_s=serial.compute_s,
        predicted_s=best.total_s,
        terms=tuple(considered),
        constraint=constraint,
        is_helped=best.helped,
    )


def _is_gainful(candidate: Cost, serial: Cost, cost: FunctionCost, pool: PoolState) -> bool:
    """Whether workers promise enough over a serial loop, for what is not modelled; the loop itself does."""
    if not candidate.n_workers:
        return True
    is_cold = candidate.n_workers > pool.n_ready
    share, least_s = (MIN_GAIN_COLD, MIN_GAIN_COLD_S) if is_cold else (MIN_GAIN, MIN_GAIN_S)
    return serial.total_s - candidate.total_s >= max(max(share, _least_gain(cost)) * serial.total_s, least_s)


def best_ready(n_items: int, cost: FunctionCost, pool: PoolState) -> Cost:
    """Expected cost of a map with the best number of workers, were all ready: the fewest within a hundredth."""
    ready = pool._replace(n_ready=pool.max_workers)
    most = max(min(pool.max_workers, n_items), 1)
    found = [parallel_cost(n_items, cost, n, ready, inline=True) for n in _worker_counts(most)]
    least_s = min(c.total_s for c in found)
    return next(c for c in found if c.total_s <= 1.01 * least_s)


def missed_s(plan: Plan, cost: FunctionCost, pool: PoolState) -> float:
    """Seconds that a map would have gained had all workers been ready.

    Over those that are ready now, the caller's help counted, where another must load the function. One that must only
    start is there for other functions, too, and leaves long items out of the caller: over what was planned.
    """
    n_items, t = plan.n_items, cost.mean_s
    if n_items * t <= 2 * MIN_GAIN_S:  # with two CPUs; with more, nearly
        return 0.0
    most = max(min(pool.max_workers, n_items), 1)
    ready = pool._replace(n_ready=pool.max_workers)
    best_s = best_ready(n_items, cost, pool).total_s
    if pool.load_s:
        there = [parallel_cost(n_items, cost, n, pool, inline=True) for n in _worker_counts(min(pool.n_ready, most))]
        had_s = min(c.total_s for c in [serial_cost(n_items, cost), *there])
    elif plan.is_serial:
        had_s = serial_cost(n_items, cost).total_s
    else:
        had_s = parallel_cost(n_items, cost, plan.n_workers, ready, inline=True).total_s
    gain_s = had_s - best_s
    return gain_s if gain_s >= max(MIN_GAIN_S, _least_gain(cost) * had_s) else 0.0


def _least_gain(cost: FunctionCost) -> float:
    """Share of the serial time that parallelism must promise, for how well the CPUs that items take are known."""
    return MIN_GAIN_CROWDED if cost.cpu_share > SEVERAL_CPUS else 0.0


def start_pays(missed_in_all_s: float, pool: PoolState, *, is_idle: bool = False) -> bool:
    """Whether a worker should start for the maps to come: those before have missed what it costs (ski rental).

    `is_idle`: whether it starts between maps.
    """
    has_cpu = is_idle or pool.n_ready + 1 < pool.n_cpus  # beside the caller and the other workers
    return missed_in_all_s >= (START_PRICE if has_cpu else CROWDED_START_PRICE) * pool.worker_start_s


def _worker_counts(most: int) -> list[int]:
    """Worker counts worth comparing: all up to 8, then steps of a quarter."""
    counts, n = [], 1
    while n < most:
        counts.append(n)
        n = n + 1 if n < 8 else n + n // 4
    return [*counts, most] if most else []


def longest_chunk_s(overhead_s: float) -> float:
    """How long a chunk of short items may take, in seconds, if it costs `overhead_s` seconds beyond its items."""
    return max(MAX_CHUNK_S, overhead_s / _LEAST_OVERHEAD_SHARE)


def chunk_size(
    remaining: int,
    n_workers: int,
    item_s: float | None,
    *,
    known: bool,
    variation: float = 1.0,
    nbytes: float = 0.0,
    limit: int | None = None,
    overhead_s: float = CostModel.CHUNK_OVERHEAD_S,
    in_batch: int = 0,
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
    overhead_s
        What a chunk costs beyond its items, in seconds.
    in_batch
        Items that were not given out when the latest batch of chunks began, of one for each worker: the last ones of a
        map are equally long.

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
    least = math.ceil(overhead_s / OVERHEAD_SHARE / item_s)
    b = 0.5 * n_workers * variation / math.sqrt(remaining)
    factor = max(1 + b * b + b * math.sqrt(b * b + 2), LEAST_FACTOR)
    share = math.ceil(remaining / (factor * n_workers))
    last = math.ceil(LAST_OVERHEADS * overhead_s / item_s)
    size = max(share, min(least, max(-(-max(remaining, in_batch) // n_workers), last)))
    longest_s = longest_chunk_s(overhead_s) if known else FIRST_CHUNK_S
    size = min(size, max(int(longest_s / item_s), 1))
    if nbytes >= 1:
        size = min(size, max(int(MAX_CHUNK_NBYTES / nbytes), 1))
    if limit is not None:
        size = min(size, limit)
    return max(min(size, remaining), 1)


def is_sampled(n_items: int, elapsed_s: float) -> bool:
    """Whether so many items that took so many seconds in all are enough to judge an unknown function by."""
    return elapsed_s >= LONG_SAMPLE_S or (elapsed_s >= SAMPLE_S and n_items >= SAMPLE_ITEMS)


def inline_batch(remaining: int, item_s: float | None, done_inline: int, is_known: bool, *, n_sharing: int = 0) -> int:
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
    n_sharing
        Workers that share what remains: of the end, the caller takes no more than its part.
    """
    if item_s is None or (done_inline == 0 and not is_known):
        return 1
    by_time = int(INLINE_BATCH_S / item_s) if item_s > 0 else remaining
    share = -(-remaining // (2 * n_sharing)) if n_sharing else remaining
    if item_s > 0:
        share = max(share, min(int(LEAST_INLINE_S / item_s), remaining))
    return max(min(share, by_time, remaining if is_known else 2 * done_inline), 1)


def inline_pays(
    remaining: int,
    cost: FunctionCost | None,
    n_workers: int,
    pool: PoolState,
    until_help_s: float | None,
) -> bool:
    """Whether the caller should run the next item of a map that workers share, instead of waiting.

    Until one more of the workers that are wanted begins, if it has ended the item by then. With all workers at hand,
    where it helps. Without any, if the caller has ended the item before the workers, which still start, could have done
    all that remains.

    Parameters
    ----------
    remaining
        Items not given out yet.
    cost
        What is known about the function.
    n_workers
        Workers that the plan wants.
    pool
        The pool's state.
    until_help_s
        Seconds until one more worker begins, which starts or loads the function; None if none does.
    """
    if remaining <= 0 or cost is None:
        return False
    t, until_ready_s = cost.mean_s, until_help_s or 0.0
    if pool.n_ready < n_workers and t <= until_ready_s:
        return True
    if pool.n_ready > 0:
        return caller_helps(cost, min(pool.n_ready, n_workers), pool)
    with_it, without_it = (remaining - 1) / n_workers, remaining / n_workers
    if remaining <= 4 * n_workers:  # whole items only
        with_it, without_it = math.ceil(with_it), math.ceil(without_it)
    return max(t, until_ready_s + with_it * t) < until_ready_s + without_it * t


def hand_over_pays(
    remaining: int, item_elapsed_s: float, mean_s: float | None, pool: PoolState, cpu_share: float = 1.0
) -> bool:
    """Whether workers should get what remains while the caller is stuck in an item.

    With a worker at hand that is reason enough after a few milliseconds. Without one, starting workers must promise to
    win more than it takes: they run the others in parallel, and while the caller is stuck, which is expected to last
    once more as long as it has. When that was as long as a start takes, they start in any case (the ski-rental rule).

    Parameters
    ----------
    remaining
        Items not given out yet.
    item_elapsed_s
        Seconds that the item in the caller has been running, or that the caller has not come for results.
    mean_s
        Expected seconds of the others; None when none has been measured: then a tenth of what this one has taken, as a
        first call often takes ten times as long as the next.
    pool
        The pool's state.
    cpu_share
        CPUs that an item keeps busy: where one has them all, others beside it win nothing.
    """
    if remaining <= 0 or item_elapsed_s < INLINE_ITEM_S:
        return False
    if pool.n_ready > 0 or item_elapsed_s >= pool.worker_start_s:
        return True
    n = min(pool.max_workers, remaining)
    rest_s = remaining * (FIRST_CALL_SHARE * item_elapsed_s if mean_s is None else mean_s)
    at_once = min(n + 1, max(pool.n_cpus / max(cpu_share, 1e-2), 1.0))
    return min(rest_s, item_elapsed_s) * min(at_once - 1, 1.0) + rest_s * (1 - 1 / at_once) > pool.worker_start_s


def first_starts(remaining: int, item_elapsed_s: float, pool: PoolState) -> int:
    """Workers to start where little is known: half of the CPUs, and all but the caller's if an item takes very long."""
    n_cpus = pool.n_cpus // 2 if item_elapsed_s < _ALL_START_AFTER * pool.worker_start_s else pool.n_cpus - 1
    return max(min(remaining, pool.max_workers, n_cpus), 1)
