"""The scheduler, the cost model and the planner in virtual time, with as many workers as one likes.

What decides in the executor runs here unchanged; only the workers and the clock are imagined, so a thousand workers
and a million items take seconds on a laptop. For each distribution of task times the same function is mapped twice:
when nothing is known about it, and again with what the first map taught. All workers are ready when a map begins, and
the caller runs no items.

``ideal`` is the larger of the total over the number of workers and the longest item: no schedule is shorter. Items
come in an order, and nobody knows how long one takes before it has run, so ``one by one`` is what can be
hoped for: each item goes to the next free worker, and neither messages nor chunks cost anything (Graham 1969).

    python -m benchmarks.simulate --workers 1000 --items 1000000
"""

from __future__ import annotations

import argparse
import heapq
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from amorsize_executor.decisions import planner
from amorsize_executor.decisions.actions import Action, KillWorker, RetireWorker, SendChunk, StartWorker, TakeBack
from amorsize_executor.decisions.cost_model import CostModel
from amorsize_executor.decisions.planner import PoolState
from amorsize_executor.decisions.scheduler import Scheduler
from amorsize_executor.decisions.work import Chunk
from benchmarks._report import Table, machine, seconds

R = TypeVar("R")

Times = npt.NDArray[np.float64]
"""Seconds of each item, in the order of the items."""

BIMODAL_LONG_SHARE = 0.1
BIMODAL_LONG_TIMES = 10.0
DRIFT_TIMES = 10.0
PARETO_ALPHA = 1.8
"""The mean exists, the variance does not: a few items are as long as thousands of others."""
GIANT_SHARE = 0.1
"""The giant takes this share of the time that all others need on all workers."""

HEADER = (
    "distribution", "one by one", "first map", "again", "predicted", "chunks", "µs a chunk", "ns an item",
    "saturates at",
)  # fmt: skip


@dataclass(frozen=True)
class World:
    """What is imagined.

    Attributes
    ----------
    n_workers
        Workers, each with a CPU of its own.
    chunk_overhead_s
        What a chunk costs its worker beyond its items, in seconds.
    round_trip_s
        From the decision to send until the worker has it, and from its end until the parent knows: both, in seconds.
    """

    n_workers: int = 1000
    chunk_overhead_s: float = 40e-6
    round_trip_s: float = 200e-6


@dataclass(frozen=True)
class Outcome:
    """One simulated map.

    Attributes
    ----------
    makespan_s
        Virtual time from the call to the last result, in seconds.
    ideal_s
        No schedule is shorter, in seconds.
    predicted_s
        What the planner promised when the map began, in seconds; 0 for an unknown function.
    n_chunks
        Chunks sent.
    runs
        How often each item ran.
    decisions_s
        Real time that scheduler, cost model and planner took, in seconds.
    """

    makespan_s: float
    ideal_s: float
    predicted_s: float
    n_chunks: int
    runs: npt.NDArray[np.int32]
    decisions_s: float

    @property
    def over_ideal(self) -> float:
        """Makespan over ideal; 1 cannot be beaten."""
        return self.makespan_s / self.ideal_s


class _Given:
    """A chunk that a worker has.

    Attributes
    ----------
    chunk
        What the scheduler knows.
    arrives_s
        When the worker has received it.
    starts_s
        When each item starts, counted from the first, and when all are done; in seconds.
    begins_s
        When its first item starts; None until those before it are done.
    version
        Raised when it was cut: its end is another one now.
    """

    __slots__ = ("arrives_s", "begins_s", "chunk", "starts_s", "version")

    def __init__(self, chunk: Chunk, arrives_s: float, starts_s: Times) -> None:
        self.chunk = chunk
        self.arrives_s = arrives_s
        self.starts_s = starts_s
        self.begins_s: float | None = None
        self.version = 0

    @property
    def elapsed_s(self) -> float:
        """What its items take, without those that were taken back."""
        return float(self.starts_s[len(self.chunk.items)])


class Simulation:
    """A pool whose workers exist only as queues of chunks and the times at which they end.

    Parameters
    ----------
    world
        Number of workers and what messages cost.
    cost_model
        Kept from map to map: what the next one knows.
    """

    def __init__(self, world: World, cost_model: CostModel | None = None) -> None:
        self.world = world
        self.cost_model = cost_model or CostModel()
        self.now_s = 0.0
        self._scheduler = Scheduler(self.cost_model, max_workers=world.n_workers, idle_timeout_s=None)
        self._given: dict[int, deque[_Given]] = {}
        self._free_at: dict[int, float] = {}
        self._events: list[tuple[float, int, _Given, int]] = []  # (known at, order, what ends, its version)
        self._n_events = 0
        self._n_sent = 0
        self._n_maps = 0
        self._decisions_s = 0.0
        self._times: Times = np.zeros(0)
        self._until: Times = np.zeros(1)  # _until[i]: seconds of all items before i
        self._carry_out(self._scheduler.want_workers(world.n_workers, self.now_s))

    def map(self, times: Times, key: str = "f") -> Outcome:
        """Run one map to its end."""
        self._times = times
        self._until = np.concatenate(([0.0], np.cumsum(times)))
        runs = np.zeros(len(times), dtype=np.int32)
        begun_s, sent_before, decisions_before = self.now_s, self._n_sent, self._decisions_s
        self._n_maps += 1
        plan = self._decide(
            planner.plan_map, key, len(times), self.cost_model.lookup(key), self._pool_state(), inline=False
        )
        self._decide(self._scheduler.add_map, self._n_maps, key, len(times))
        self._carry_out(self._decide(self._scheduler.release_map, self._n_maps, plan.n_workers, self.now_s))
        while self._events:
            known_s, _, given, version = heapq.heappop(self._events)
            if version != given.version:
                continue  # it was cut, and ended earlier
            self.now_s = known_s
            chunk = given.chunk
            runs[_indices(chunk.items)] += 1
            self._free(given)
            # As in the executor: first the worker's next chunk, then what this one taught.
            if chunk.items:
                self._carry_out(self._decide(self._scheduler.items_done, *_name(chunk), len(chunk.items), self.now_s))
            if chunk.awaits_cut:
                self._carry_out(self._decide(self._scheduler.chunk_cut, *_name(chunk), self.now_s))
            if chunk.items:
                self._decide(self.cost_model.observe, key, len(chunk.items), given.elapsed_s)
        self._decide(self.cost_model.observe_map, key, {self.world.n_workers: (len(times), float(self._until[-1]))})
        return Outcome(
            makespan_s=self.now_s - begun_s,
            ideal_s=max(float(self._until[-1]) / self.world.n_workers, float(times.max())),
            predicted_s=plan.predicted_s or 0.0,
            n_chunks=self._n_sent - sent_before,
            runs=runs,
            decisions_s=self._decisions_s - decisions_before,
        )

    def shutdown(self) -> bool:
        """End the workers; whether nothing is left."""
        self._carry_out(self._scheduler.shutdown(self.now_s))
        return self._scheduler.is_drained

    def _pool_state(self) -> PoolState:
        n = self.world.n_workers
        return PoolState(self._scheduler.n_ready, n, n, self.cost_model.worker_start_s)

    def _decide(self, decision: Callable[..., R], *args: Any, **kwargs: Any) -> R:
        begun = perf_counter()
        try:
            return decision(*args, **kwargs)
        finally:
            self._decisions_s += perf_counter() - begun

    def _carry_out(self, actions: list[Action]) -> None:
        left = deque(actions)
        while left:
            left.extendleft(reversed(self._do(left.popleft())))

    def _do(self, action: Action) -> list[Action]:
        """Carry out one action; returns what is decided then."""
        match action:
            case SendChunk(worker_id, chunk):
                self._send(worker_id, chunk)
            case TakeBack(worker_id, chunk):
                return self._take_back(worker_id, chunk)
            case StartWorker(worker_id):
                self._given[worker_id] = deque()
                self._free_at[worker_id] = self.now_s
                return self._scheduler.worker_ready(worker_id, self.now_s)
            case RetireWorker(worker_id) | KillWorker(worker_id):
                del self._given[worker_id]
                return self._scheduler.worker_died(worker_id, None, self.now_s)
            case _:
                raise AssertionError(f"nothing dies here, yet {action}")
        return []

    def _send(self, worker_id: int, chunk: Chunk) -> None:
        items = chunk.items
        if isinstance(items, range):
            starts_s = self._until[items.start : items.stop + 1] - self._until[items.start]
        else:
            starts_s = np.concatenate(([0.0], np.cumsum(self._times[list(items)])))
        given = self._given[worker_id]
        given.append(_Given(chunk, self.now_s + self.world.round_trip_s / 2, starts_s))
        self._n_sent += 1
        if len(given) == 1:
            self._begin(worker_id)

    def _begin(self, worker_id: int) -> None:
        """Tell now when the worker's next chunk will be done."""
        given = self._given[worker_id][0]
        given.begins_s = max(given.arrives_s, self._free_at[worker_id]) + self.world.chunk_overhead_s
        self._push(given, given.begins_s + given.elapsed_s)

    def _push(self, given: _Given, ends_s: float) -> None:
        self._n_events += 1
        heapq.heappush(self._events, (ends_s + self.world.round_trip_s / 2, self._n_events, given, given.version))

    def _free(self, given: _Given) -> None:
        """A chunk is done: its worker begins the next."""
        worker_id = given.chunk.worker_id
        assert given.begins_s is not None
        self._free_at[worker_id] = given.begins_s + given.elapsed_s
        queue = self._given[worker_id]
        assert queue.popleft() is given, "a worker runs its chunks in order"
        if queue:
            self._begin(worker_id)

    def _take_back(self, worker_id: int, chunk: Chunk) -> list[Action]:
        """Claim the items that have not started."""
        given = next(g for g in self._given[worker_id] if g.chunk is chunk)
        n_started = 0
        if given.begins_s is not None:
            n_started = int(np.searchsorted(given.starts_s[:-1], self.now_s - given.begins_s, side="right"))
        n_items = max(len(chunk.items) - n_started, 0)
        actions = self._decide(self._scheduler.taken_back, *_name(chunk), n_items, self.now_s)
        if n_items and given.begins_s is not None:
            given.version += 1
            self._push(given, max(given.begins_s + given.elapsed_s, self.now_s))
        return actions


def _name(chunk: Chunk) -> tuple[int, int]:
    return chunk.worker_id, chunk.chunk_id


def _indices(items: Sequence[int]) -> slice | list[int]:
    return slice(items.start, items.stop) if isinstance(items, range) else list(items)


def one_by_one(times: Times, n_workers: int) -> float:
    """Makespan in seconds when each item goes to the next free worker and nothing else costs anything."""
    free_at = [0.0] * n_workers
    for elapsed_s in times.tolist():
        heapq.heapreplace(free_at, free_at[0] + elapsed_s)
    return max(free_at)


def distributions(n_items: int, mean_s: float, n_workers: int, seed: int = 0) -> Mapping[str, Times]:
    """Task times by name, in seconds; `mean_s` is the mean, but for the drift and the giant."""
    rng = np.random.default_rng(seed)
    lognormal = rng.lognormal(-0.5, 1.0, n_items) * mean_s
    constant = np.full(n_items, mean_s)
    drifting = constant.copy()
    drifting[n_items // 2 :] *= DRIFT_TIMES
    giant = constant.copy()
    giant[-1] = GIANT_SHARE * n_items * mean_s / n_workers
    short_s = mean_s / (1 + BIMODAL_LONG_SHARE * (BIMODAL_LONG_TIMES - 1))
    is_long = rng.random(n_items) < BIMODAL_LONG_SHARE
    return {
        "constant": constant,
        "lognormal, sigma 1": lognormal,
        "exponential": rng.exponential(mean_s, n_items),
        f"Pareto, alpha {PARETO_ALPHA}": (1 + rng.pareto(PARETO_ALPHA, n_items)) * mean_s * (1 - 1 / PARETO_ALPHA),
        f"bimodal, {BIMODAL_LONG_SHARE:.0%} are {BIMODAL_LONG_TIMES:.0f}x": np.where(
            is_long, short_s * BIMODAL_LONG_TIMES, short_s
        ),
        f"{DRIFT_TIMES:.0f}x slower half-way": drifting,
        "one giant at the end": giant,
        "lognormal, shortest first": np.sort(lognormal),
        "lognormal, longest first": np.sort(lognormal)[::-1].copy(),
    }


def simulate(world: World, n_items: int, mean_s: float) -> Table:
    """Run every distribution, twice each, and make a table of it."""
    rows = []
    for name, times in distributions(n_items, mean_s, world.n_workers).items():
        simulation = Simulation(world)
        outcomes = [simulation.map(times), simulation.map(times)]
        for outcome in outcomes:
            assert (outcome.runs == 1).all(), f"{name}: items were lost or repeated"
        assert simulation.shutdown(), f"{name}: something is left after the shutdown"
        first, again = outcomes
        rows.append(
            (
                name,
                f"{one_by_one(times, world.n_workers) / first.ideal_s:.3f}",
                f"{first.over_ideal:.3f}",
                f"{again.over_ideal:.3f}",
                f"{again.predicted_s / again.makespan_s:.2f}",
                f"{first.n_chunks:,}",
                f"{first.decisions_s / first.n_chunks * 1e6:.1f}",
                f"{first.decisions_s / n_items * 1e9:.0f}",
                f"{world.n_workers * first.makespan_s / first.decisions_s:,.0f}",
            )
        )
    return Table(
        f"{world.n_workers:,} workers, {n_items:,} items of {seconds(mean_s)} on average",
        HEADER,
        rows,
        "The first three numbers are makespans over the ideal one; the fourth is what the planner predicted for the "
        "second map over what it took. Chunks, and the real time that decisions took, are the first map's. With "
        "as many workers as the last column says, decisions alone would take a CPU; pickling and sending come on top.",
    )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", type=int, default=World.n_workers)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--mean-ms", type=float, default=1.0, help="mean time of an item, in milliseconds")
    parser.add_argument("--chunk-overhead-us", type=float, default=World.chunk_overhead_s * 1e6)
    parser.add_argument("--round-trip-us", type=float, default=World.round_trip_s * 1e6)
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table there")
    options = parser.parse_args()
    world = World(options.workers, options.chunk_overhead_us * 1e-6, options.round_trip_us * 1e-6)
    table = simulate(world, options.items, options.mean_ms * 1e-3)
    print(f"{machine()}\n\n{table.text()}")
    if options.markdown is not None:
        title, _, introduction = (__doc__ or "").partition("    python")[0].strip().partition(".")
        parts = [f"# {title}", introduction.strip(), f"Measured on: {machine()}.", table.markdown()]
        options.markdown.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
