"""Measurements that need an interpreter of their own.

``python -m benchmarks._probes NAME '{"argument": value}'`` runs one and prints what it found as
JSON. Each starts from an interpreter in which no pool has lived, and imports only what it measures.
All times are in seconds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import ExitStack
from statistics import median
from time import perf_counter, process_time
from typing import Any

from benchmarks._measure import (
    CONTENDERS,
    OCCUPY_S,
    OURS,
    STANDARD,
    in_turn,
    load,
    loops_for,
    make_executor,
    medians,
    serial,
    start_workers,
    timed,
)
from benchmarks._tasks import identity, spin

Found = dict[str, Any]

WARMING_CALLS = 200
"""Calls before anything is timed: the interpreter specialises code that runs often."""


def latency(workers: int, calls: int, rounds: int) -> Found:
    """Median time from `submit` to its result, one call at a time, on warm pools."""

    def one_round(executor: Executor) -> float:
        return median(timed(lambda: executor.submit(identity, 1).result()) for _ in range(calls))

    return _on_warm_pools(one_round, workers, rounds)


def flood(workers: int, calls: int, rounds: int) -> Found:
    """Time from the first of many submits to the last result, on warm pools."""

    def one_round(executor: Executor) -> float:
        started = perf_counter()
        futures = [executor.submit(identity, number) for number in range(calls)]
        results = [future.result() for future in futures]
        elapsed = perf_counter() - started
        assert results == list(range(calls))
        return elapsed

    return _on_warm_pools(one_round, workers, rounds)


def parent_cpu(workers: int, items: int, rounds: int) -> Found:
    """CPU time of this process, all its threads, in warm maps of tiny items that all go to workers."""
    data = list(range(items))
    chunksize = -(-items // (4 * workers))

    def one_round(executor: Executor) -> float:
        options = {} if isinstance(executor, load(OURS).AmorsizeExecutor) else {"chunksize": chunksize}
        started = process_time()
        results = list(executor.map(identity, data, **options))
        taken_s = process_time() - started
        assert results == data
        return taken_s

    return _on_warm_pools(one_round, workers, rounds, inline="never")


def caller_cpu(items: int, rounds: int) -> Found:
    """CPU time of this process in warm maps of tiny items, where our executor decides, less that of a loop."""
    data = list(range(items))
    samples: list[float] = []
    with make_executor(OURS) as executor:
        for number in range(rounds + 1):
            started = process_time()
            results = list(executor.map(identity, data))
            mapped = process_time()
            looped = [identity(item) for item in data]
            ended = process_time()
            assert results == looped
            if number:  # the first one was not warm
                samples.append(2 * mapped - started - ended)
    return {"seconds": median(samples)}


def _on_warm_pools(one_round: Callable[[Executor], float], workers: int, rounds: int, **ours: Any) -> Found:
    """Measure all contenders in turn; each has its workers running before the first round.

    The standard pool starts first: it forks, and must not fork another contender's threads. `ours` are options of ours.
    """
    loops = loops_for(OCCUPY_S)
    samples: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with ExitStack() as stack:
        pools, started = {}, {}
        for name in sorted(CONTENDERS, key=lambda name: name != STANDARD):
            pools[name] = stack.enter_context(make_executor(name, workers, **(ours if name == OURS else {})))
            started[name] = start_workers(pools[name], workers, loops)
        for name in CONTENDERS:
            one_round(pools[name])
        for number in range(rounds):
            for name in in_turn(CONTENDERS, number):
                samples[name].append(one_round(pools[name]))
    return {"seconds": medians(samples), "workers": started}


def small_map(items: int, task_s: float, rounds: int) -> Found:
    """Excess of a fresh executor's block around a small map over the serial loop, all imported."""
    work = [loops_for(task_s)] * items
    samples: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for name in CONTENDERS:
        _block(name, work)
    for number in range(rounds):
        for name in in_turn(CONTENDERS, number):
            samples[name].append(_excess(name, work, serial_first=number % 2 == 0))
    return {"seconds": medians(samples)}


def first_small_map(contender: str, loops: int, items: int, serial_first: bool) -> Found:
    """Measure the same excess, for the first map of an interpreter."""
    load(contender)
    _warm_up()
    return {"seconds": _excess(contender, [loops] * items, serial_first)}


def _excess(contender: str, work: list[int], serial_first: bool) -> float:
    if serial_first:
        serial_s = timed(lambda: serial(work))
        return timed(lambda: _block(contender, work)) - serial_s
    block_s = timed(lambda: _block(contender, work))
    return block_s - timed(lambda: serial(work))


def _block(contender: str, work: list[int]) -> None:
    with make_executor(contender) as executor:
        assert list(executor.map(spin, work)) == work


def cold_start(contender: str, workers: int) -> Found:
    """Time from the constructor to the first result of a submit."""
    load(contender)
    started = perf_counter()
    with make_executor(contender, workers) as executor:
        assert executor.submit(identity, 1).result() == 1
        elapsed = perf_counter() - started
    return {"seconds": elapsed}


def cold_cell(loops: int, items: int, serial_first: bool) -> Found:
    """One map in an interpreter where nothing is known yet, and the serial loop beside it."""
    ours = load(OURS)
    _warm_up()
    work = [loops] * items
    serial_s = timed(lambda: serial(work)) if serial_first else 0.0
    started = perf_counter()
    with ours.AmorsizeExecutor(cost_model=ours.CostModel()) as executor:
        results = list(executor.map(spin, work))
        mapped = perf_counter()
    finished = perf_counter()
    assert results == work
    if not serial_first:
        serial_s = timed(lambda: serial(work))
    return {"serial": [serial_s], "map": [mapped - started], "block": [finished - started]}


def warm_cell(loops: int, items: int, workers: int, rounds: int) -> Found:
    """Second and later maps of one executor whose workers run, and the serial loop in turn."""
    ours = load(OURS)
    work = [loops] * items
    samples: dict[str, list[float]] = {"serial": [], "map": []}
    occupying = loops_for(OCCUPY_S)
    with ours.AmorsizeExecutor(cost_model=ours.CostModel()) as executor:
        started = start_workers(executor, workers, occupying)
        assert list(executor.map(spin, work)) == work
        actions: dict[str, Callable[[], object]] = {
            "serial": lambda: serial(work),
            "map": lambda: list(executor.map(spin, work)),
        }
        for number in range(rounds):
            for name in in_turn(("serial", "map"), number):
                samples[name].append(timed(actions[name]))
    return {**samples, "workers": started}


def _warm_up() -> None:
    serial([100] * WARMING_CALLS)


_PROBES = (latency, flood, parent_cpu, caller_cpu, small_map, first_small_map, cold_start, cold_cell, warm_cell)
PROBES: dict[str, Callable[..., Found]] = {function.__name__: function for function in _PROBES}


if __name__ == "__main__":
    print(json.dumps(PROBES[sys.argv[1]](**json.loads(sys.argv[2]))))
