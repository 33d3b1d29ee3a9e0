"""From measurements to a choice, and back into what is known: what `optimize` and `optimize_streaming` share."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .. import machine
from ..decisions import planner
from ..decisions.plan import Plan, format_time
from ..executor import AmorsizeExecutor
from ..workers.functions import cost_key
from ..workers.serialize import name_of
from . import workload
from .arguments import Bounds
from .results import Profile, format_nbytes
from .sampling import Sample, stand_in
from .workload import Workload

#: Share of the memory limit that may be planned with.
_MEMORY_SHARE = 0.95
#: A standard deviation of more than this many means is worth a warning.
_WIDE = 2.0
#: So is carriage of more than this share of an item's time.
_HEAVY_CARRIAGE = 0.2
#: So is a function that uses this many CPUs.
_SEVERAL_CPUS = 1.5
#: And one that uses less than this part of one, if its items take longer than this, in seconds.
_MOSTLY_WAITING, _WORTH_A_WORD_S = 0.25, 1e-3


class Choice(NamedTuple):
    """What was chosen from measurements."""

    plan: Plan
    n_jobs: int
    speedup: float
    time_s: float
    reason: str
    warnings: tuple[str, ...]

    def known_as(self, cache_key: str | None) -> Choice:
        """The same, from what was kept under a name."""
        return self._replace(reason=f"{self.reason}, from what is kept as {cache_key!r}")


def choose(
    load: Workload, n_items: int, executor: AmorsizeExecutor, bounds: Bounds, func: Callable[..., Any]
) -> Choice:
    """How to run a workload with what the executor has now.

    Parameters
    ----------
    load
        What was measured.
    n_items
        All items.
    executor
        Its pool, and what it has learned about starting workers, count.
    bounds
        Of the call.
    func
        The function. What the executor has learned about it in maps counts, too: how items slow each other down, and
        which workers have loaded it.
    """
    key = cost_key(func)
    pool = executor.pool_state(func)
    if load.warm_up_s and executor.cost_model.load_s(key) is None:  # no worker has
        start_s = 0.0 if pool.n_ready else pool.worker_start_s
        pool = pool._replace(n_ready=0, worker_start_s=start_s + load.warm_up_s)
    warnings = list(_warnings(load))
    n_fitting = _n_fitting(load, bounds.memory_limit)
    if n_fitting < min(pool.max_workers, n_items):
        text = f"a worker takes {format_nbytes(load.peak_nbytes)}"
        warnings.append(
            f"{text}: memory allows {n_fitting} of {pool.max_workers}"
            if n_fitting
            else f"{text}, more than the memory limit leaves: a worker may be ended for it"
        )
        pool = pool._replace(max_workers=max(int(n_fitting), 1))
    cost = load.cost()
    known = executor.cost_model.lookup(key)
    if known is not None:
        cost = cost._replace(scaling=known.scaling)
    plan = planner.plan_map(load.function, n_items, cost, pool, inline=True)
    n_jobs = min(plan.n_workers + plan.is_helped, pool.max_workers)  # processes that compute, this one included
    serial_s = n_items * load.item_s
    if n_jobs <= 1:  # one worker computes no faster than this process does
        plan = plan._replace(n_workers=0, predicted_s=serial_s, is_helped=False)
    time_s = plan.predicted_s if plan.predicted_s is not None else serial_s
    speedup = serial_s / time_s if time_s > 0 else 1.0
    return Choice(plan, max(n_jobs, 1), speedup, time_s, plan.reason, tuple(warnings))


def _n_fitting(load: Workload, memory_limit: float | None) -> float:
    """Workers that fit into memory beside this process, by their peak."""
    if not load.peak_nbytes:
        return math.inf
    limit = min(memory_limit or math.inf, machine.memory_limit())
    return int(max(limit * _MEMORY_SHARE - (machine.resident_nbytes(os.getpid()) or 0), 0) // load.peak_nbytes)


def _warnings(load: Workload) -> Iterator[str]:
    if load.n_measured == 1:
        yield "only one item was measured, and a first call may take longer than later ones"
    if load.item_std_s > _WIDE * load.item_s:
        yield "the items' times vary widely, so predictions are rough"
    if load.warm_up_s:
        yield (
            f"the first call in a process took {format_time(load.first_s)}, later ones {format_time(load.item_s)}: "
            "each worker pays that once"
        )
    if load.carry_s > _HEAVY_CARRIAGE * load.item_s and load.item_s * load.n_measured > 1e-3:
        yield (
            f"to carry an item takes {format_time(load.carry_s)} for {format_time(load.item_s)} of work: "
            "send less (a path or an index), or do more with each item"
        )
    if load.cpu_share < _MOSTLY_WAITING and load.item_s > _WORTH_A_WORD_S:
        yield (
            f"the function waits most of its time (CPU {100 * load.cpu_share:.0f} %): more workers than CPUs "
            "(max_workers), or threads, gain more"
        )
    if load.cpu_share > _SEVERAL_CPUS:
        yield f"the function keeps {load.cpu_share:.1f} CPUs busy by itself, so more processes gain less"


def learn(executor: AmorsizeExecutor, func: Callable[..., Any], sample: Sample, cache_key: str | None) -> Workload:
    """Take in a sample: for the executor's next maps and, under a name, for later processes."""
    load = sample.workload()
    load.teach(executor.cost_model, cost_key(func))
    executor.loads_like(func, stand_in(func), load.warm_up_s)
    if cache_key is not None:
        workload.remember(cache_key, func, load)
    return load


def seed(executor: AmorsizeExecutor, func: Callable[..., Any], cache_key: str) -> None:
    """Begin with what is kept under a name, where nothing is known yet."""
    key = cost_key(func)
    if executor.cost_model.mean_s(key) is None:
        load = workload.recall(cache_key, func)
        if load is not None:
            load.teach(executor.cost_model, key)


def keep(executor: AmorsizeExecutor, func: Callable[..., Any], cache_key: str) -> None:
    """Keep what is known now under a name."""
    cost = executor.cost_model.lookup(cost_key(func))
    if cost is not None:
        workload.remember(
            cache_key,
            func,
            Workload(
                function=name_of(func),
                n_measured=cost.n_items,
                item_s=cost.mean_s,
                item_std_s=cost.std_s,
                cpu_share=cost.cpu_share,
                carry_s=cost.carry_s,
                nbytes_in=cost.nbytes,
            ),
        )


def profile_of(load: Workload, executor: AmorsizeExecutor, report: str) -> Profile:
    """The measurements as users see them."""
    return Profile(
        function=load.function,
        n_measured=int(load.n_measured),
        avg_execution_time=load.item_s,
        std_execution_time=load.item_std_s,
        first_execution_time=load.first_s,
        avg_pickle_time=load.pickle_s,
        avg_nbytes_in=load.nbytes_in,
        avg_nbytes_out=load.nbytes_out,
        cpu_share=load.cpu_share,
        peak_worker_memory=int(load.peak_nbytes),
        worker_start_time=executor.cost_model.worker_start_s,
        dispatch_overhead=load.round_trip_s,
        report=report,
    )
