"""Memory: what may begin, how many run at once, and who goes, in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple

import pytest

from amorsize_executor.decisions.actions import Action, KillWorker
from amorsize_executor.decisions.cost_model import CostModel
from amorsize_executor.decisions.memory import PLENTY_NBYTES, MemoryGate, Room, Running, Sample

from .fake_pool import FakePool, Item, left

MIB = 1 << 20
GIB = 1 << 30
BARE = 12 * MIB
#: What a worker needs to touch memory, in bytes a second.
FILL_RATE = 1e9


class Load(NamedTuple):
    """What one task does: wait, then grow, then go on with what it has."""

    need_nbytes: int
    run_s: float = 0.5
    calm_s: float = 0.0
    kept_nbytes: int = 0  # stays in the worker when the task has ended

    def grown(self, age_s: float) -> int:
        return int(min(self.need_nbytes, max(age_s - self.calm_s, 0.0) * FILL_RATE))


class Machine(FakePool):
    """A pool on a machine that kills who has most when there is too little."""

    def __init__(self, max_workers: int, limit_nbytes: int, load_of: Callable[[Item], Load]) -> None:
        super().__init__(max_workers)
        self.limit = limit_nbytes
        self.load_of = load_of
        self.key_of: Callable[[Item], Hashable] = lambda item: "f"
        self.base: dict[int, int] = {}
        self.begun: dict[int, tuple[Item, float]] = {}
        self.most_used = 0
        self.most_busy = 0
        self.n_kills = 0
        self.looked_at = 0.0
        self.start_s = 0.07
        self.look_at_memory()

    def used(self, worker_id: int) -> int:
        base = self.base.get(worker_id, BARE)
        if worker_id not in self.begun:
            return base
        item, at = self.begun[worker_id]
        return base + self.load_of(item).grown(self.now - at)

    def uses(self) -> dict[int, int]:
        return {worker_id: self.used(worker_id) for worker_id in self.chunks}

    def samples(self) -> dict[int, Sample]:
        return {worker_id: Sample(nbytes) for worker_id, nbytes in self.uses().items()}

    def look_at_memory(self) -> None:
        self.looked_at = self.now
        uses = self.uses()
        free = self.limit - sum(uses.values())
        marks = {i: (chunks[0].chunk_id, chunks[0].n_done, 1) if chunks else None for i, chunks in self.chunks.items()}
        self.do(self.scheduler.look_at_memory(Room(self.limit, free, free), self.samples(), marks, self.now))

    def die(self, worker_id: int, running: tuple[int, int, int] | None = None, *, is_oom: bool = False) -> None:
        self.begun.pop(worker_id, None)
        self.base.pop(worker_id, None)
        super().die(worker_id, running, is_oom=is_oom)

    def become_ready(self, worker_id: int) -> None:
        self.look_at_memory()
        super().become_ready(worker_id)

    def step(self, dt: float) -> None:
        self.now += dt
        self.leave()
        for worker_id in list(self.starting):
            if worker_id in self.starting and self.now >= self.asked[worker_id] + self.start_s:
                self.become_ready(worker_id)
        for worker_id in list(self.ready):
            if self.chunks.get(worker_id):
                self.advance(worker_id)
        uses = self.uses()
        self.most_used = max(self.most_used, sum(uses.values()))
        self.most_busy = max(self.most_busy, len(self.busy()))
        if sum(uses.values()) > self.limit:
            self.n_kills += 1
            self.die_running(max(uses, key=lambda i: uses[i]), is_oom=True)
        if self.busy() and self.now >= self.looked_at + self.scheduler.next_memory_look_s(self.scheduler.n_busy):
            self.look_at_memory()
        self.do(self.scheduler.tick(self.now))

    def advance(self, worker_id: int) -> None:
        chunk = self.chunks[worker_id][0]
        item = (chunk.job_id, left(chunk)[0])
        if worker_id not in self.begun or self.begun[worker_id][0] != item:
            self.begun[worker_id] = (item, self.now)
        load = self.load_of(item)
        if self.now - self.begun[worker_id][1] >= load.run_s:
            del self.begun[worker_id]
            base = self.base[worker_id] = self.base.get(worker_id, BARE) + load.kept_nbytes
            args = (worker_id, chunk.chunk_id, chunk.n_done, load.need_nbytes, base, self.now)
            self.scheduler.memory_told(*args)
            self.cost_model.observe(self.key_of(item), 1, load.run_s)
            self.finish(worker_id, 1)

    def _do(self, action: Action) -> None:
        super()._do(action)
        for worker_id in self.starting:
            self.asked.setdefault(worker_id, self.now)

    @property
    def asked(self) -> dict[int, float]:
        return self.__dict__.setdefault("_asked", {})

    def run(self, n_items: int, *, dt: float = 1e-3, most_s: float = 60.0) -> float:
        """Until so many items have run or failed; returns when that was."""
        until = self.now + most_s
        while len(self.runs) + len(self.failed) + len(self.too_large) < n_items:
            self.step(dt)
            assert self.now < until, "it never comes to its end"
        return self.now


def run_map(machine: Machine, n_items: int, n_workers: int | None = None, job_id: int = 1) -> float:
    begun = machine.now
    machine.map(job_id, n_items, n_workers=n_workers or machine.scheduler.max_workers)
    return machine.run(n_items) - begun


# ---------------------------------------------------------------------- the limit holds


@pytest.mark.parametrize("n_workers", [2, 4, 8, 32])
@pytest.mark.parametrize("how", ["map", "submit"])
def test_heavy_tasks_of_an_unknown_function_never_exceed_the_limit(n_workers: int, how: str) -> None:
    machine = Machine(n_workers, 2 * GIB, lambda item: Load(300 * MIB))
    if how == "map":
        run_map(machine, 40)
    else:
        machine.submit(*range(40))
        machine.run(40)
    assert machine.n_kills == 0
    assert not machine.failed
    assert not machine.too_large
    assert set(machine.runs.values()) == {1}


def test_a_task_is_not_ended_for_what_its_worker_took_to_start() -> None:
    machine = Machine(1, GIB, lambda item: Load(0))
    machine.submit(1)
    (worker_id,) = machine.starting
    machine.base[worker_id] = BARE // 4  # has imported nothing yet
    machine.look_at_memory()
    machine.base[worker_id] = BARE + 8 * MIB
    machine.limit = 0  # this process alone takes more than there is
    machine.become_ready(worker_id)
    machine.look_at_memory()
    machine.limit = GIB
    machine.run(1)
    assert machine.runs == {(None, 1): 1}
    assert not machine.too_large


def test_nobody_is_ended_where_that_would_not_help() -> None:
    machine = Machine(1, GIB, lambda item: Load(20 * MIB, run_s=10.0))
    machine.submit(1)
    machine.become_ready(machine.starting[0])
    for _ in range(100):
        machine.step(1e-3)
    uses = sum(machine.uses().values())
    machine.do(machine.scheduler.look_at_memory(Room(GIB, -GIB, -GIB), machine.samples(), {}, machine.now))
    assert sum(machine.uses().values()) == uses
    assert not machine.too_large


def test_as_many_run_at_once_as_fit() -> None:
    machine = Machine(8, 2 * GIB, lambda item: Load(300 * MIB))
    elapsed = run_map(machine, 60)
    assert machine.most_busy == 5  # 5 x 330 MiB and eight workers
    assert elapsed < 60 / 5 * 0.5 * 1.25


def test_tasks_that_grow_late_lose_at_most_what_has_just_begun() -> None:
    machine = Machine(8, GIB, lambda item: Load(300 * MIB, run_s=1.0, calm_s=0.5))
    run_map(machine, 24)
    assert machine.n_kills == 0  # it was seen in time
    assert not machine.failed
    assert not machine.too_large


def test_what_the_first_task_in_a_worker_needs_more_is_no_reason_to_hold_others_back() -> None:
    seen: set[int] = set()

    class Importing(Machine):
        def advance(self, worker_id: int) -> None:
            chunk = self.chunks[worker_id][0]
            if worker_id not in seen:
                seen.add(worker_id)
                self.cold = (chunk.job_id, left(chunk)[0])
                cold.add(self.cold)
            super().advance(worker_id)

    cold: set[Item] = set()
    machine = Importing(4, GIB, lambda item: Load(180 * MIB if item in cold else MIB, 0.1, 0.0, 0))
    run_map(machine, 100)
    assert machine.n_kills == 0
    begun = machine.now
    run_map(machine, 100, job_id=2)
    assert machine.now - begun < 100 * 0.1 / 4 * 1.3


# ---------------------------------------------------------------------- nothing is lost where memory does not matter


@pytest.mark.parametrize("n_workers", [2, 16, 64])
def test_where_there_is_plenty_all_begin_at_once(n_workers: int) -> None:
    machine = Machine(n_workers, (n_workers + 1) * PLENTY_NBYTES + n_workers * BARE, lambda item: Load(300 * MIB, 1.0))
    elapsed = run_map(machine, n_workers)
    assert elapsed < machine.start_s + 1.0 + 0.01


def test_cheap_long_tasks_of_an_unknown_function_begin_within_a_moment() -> None:
    machine = Machine(16, GIB, lambda item: Load(2 * MIB, 1.0))
    elapsed = run_map(machine, 16)
    assert elapsed < machine.start_s + 1.0 + 0.25


def test_what_waits_for_memory_does_not_ask_for_the_clock() -> None:
    machine = Machine(2, GIB, lambda item: Load(0))
    machine.start(2)
    machine.limit = 26 * MIB
    machine.look_at_memory()
    machine.scheduler.add_resource(1)
    machine.do(machine.scheduler.submit(1, "never seen", machine.now, needs=frozenset({1})))
    machine.do(machine.scheduler.submit(2, "never seen", machine.now, needs=frozenset({1})))
    machine.do(machine.scheduler.tick(machine.now))
    assert (machine.scheduler.n_idle, machine.scheduler.n_queued) == (1, 1), "it waits for memory"
    in_s = machine.scheduler.next_tick(machine.now)
    assert in_s is None or in_s > 0


def test_short_tasks_are_never_held_back() -> None:
    machine = Machine(16, GIB, lambda item: Load(MIB, 2e-3))
    elapsed = run_map(machine, 1000)
    assert elapsed < machine.start_s + 2 * 1000 * 2e-3 / 16 + 0.1


def test_cheap_tasks_run_beside_heavy_ones() -> None:
    machine = Machine(4, GIB, lambda item: Load(800 * MIB, 1.0) if item[0] == 1 else Load(MIB, 0.02))
    machine.key_of = lambda item: "heavy" if item[0] == 1 else "cheap"
    machine.map(1, 5, n_workers=4, key="heavy")
    machine.map(2, 200, n_workers=4, key="cheap")
    elapsed = machine.run(205)
    assert machine.n_kills == 0
    assert elapsed < 5 * 1.0 + 1.0


def test_gate_asks_nothing_before_anybody_has_looked() -> None:
    gate = MemoryGate(CostModel())
    assert not gate.is_tight
    assert gate.at_once("f") is None


# ---------------------------------------------------------------------- more than there is


def test_a_task_that_alone_takes_more_than_there_is_fails_and_the_others_go_on() -> None:
    machine = Machine(4, GIB, lambda item: Load(2 * GIB if item[1] == 5 else 100 * MIB, run_s=3.0))
    run_map(machine, 20)
    assert machine.too_large == [(1, 5)]
    assert machine.n_kills == 0
    assert not machine.failed
    assert len(machine.runs) == 19


def test_a_submitted_task_that_takes_more_than_there_is_fails_alone() -> None:
    machine = Machine(4, GIB, lambda item: Load(2 * GIB if item[1] == 5 else 100 * MIB, run_s=3.0))
    machine.submit(*range(20))
    machine.run(20)
    assert machine.too_large == [(None, 5)]
    assert len(machine.runs) == 19
    machine.submit(100, key="other")
    machine.run(21)


def test_what_the_kernel_has_killed_runs_again_with_nobody_beside_it() -> None:
    machine = Machine(4, 100 * GIB, lambda item: Load(100 * MIB, run_s=1.0))
    machine.submit(*range(8))
    for _ in range(300):
        machine.step(1e-3)
    victim = machine.busy()[0]
    item = machine.items(victim)[0][0]
    machine.die_running(victim, is_oom=True)
    machine.run(8)
    assert not machine.failed
    assert machine.runs[None, item] == 1
    assert set(machine.runs.values()) == {1}


def test_what_the_kernel_kills_twice_has_failed() -> None:
    machine = Machine(2, 100 * GIB, lambda item: Load(100 * MIB, run_s=1.0))
    machine.submit(1)
    for _ in range(2):
        for _ in range(300):
            machine.step(1e-3)
        machine.die_running(machine.busy()[0], is_oom=True)
    assert machine.too_large == [(None, 1)]


def test_another_death_of_a_worker_is_no_matter_of_memory() -> None:
    machine = Machine(2, 100 * GIB, lambda item: Load(100 * MIB, run_s=1.0))
    machine.submit(1)
    for _ in range(300):
        machine.step(1e-3)
    machine.die_running(machine.busy()[0])
    assert machine.failed == [(None, 1)]


# ---------------------------------------------------------------------- workers


def test_idle_workers_that_have_kept_much_make_room() -> None:
    loads: Mapping[int | None, Load] = {1: Load(250 * MIB, 0.2, 0.0, 240 * MIB), 2: Load(500 * MIB, 0.2)}
    machine = Machine(3, GIB, lambda item: loads[item[0]])
    machine.key_of = lambda item: item[0]
    machine.map(1, 3, n_workers=3, key=1)
    machine.run(3)
    machine.map(2, 4, n_workers=3, key=2)
    machine.run(7)
    assert machine.n_kills == 0
    assert not machine.too_large


def test_idle_worker_is_killed_before_any_task() -> None:
    machine = Machine(2, GIB, lambda item: Load(100 * MIB, 1.0))
    machine.start(2)
    machine.submit(1)
    machine.step(1e-3)
    (idle,) = machine.idle()
    machine.base[idle] = 600 * MIB
    machine.look_at_memory()
    samples = machine.samples()
    actions = machine.scheduler.look_at_memory(Room(GIB, MIB, MIB), samples, dict.fromkeys(samples), machine.now)
    assert KillWorker(idle) in actions


def test_workers_are_added_only_as_far_as_memory_allows() -> None:
    machine = Machine(64, 300 * MIB, lambda item: Load(MIB, 0.02))
    machine.submit(1)
    machine.run(1)
    machine.map(1, 5000, n_workers=64)
    machine.run(5001)
    assert len(machine.chunks) * BARE < 300 * MIB


def test_one_worker_is_allowed_however_little_memory_there_is() -> None:
    machine = Machine(8, 20 * MIB, lambda item: Load(4 * MIB, 0.02))
    run_map(machine, 20)
    assert len(machine.chunks) == 1


# ---------------------------------------------------------------------- the arithmetic


def gate_with(free_nbytes: int, needs: Mapping[str, int], n_most: int = 8) -> MemoryGate:
    gate = MemoryGate(CostModel())
    gate.measured(
        Room(GIB, free_nbytes, free_nbytes), dict.fromkeys(range(9), Sample(BARE)), set(range(9)), n_most, 0.0
    )
    for key, nbytes in needs.items():
        gate.told(8, key, nbytes, BARE, 0.0)
    return gate


def test_what_running_tasks_will_still_take_is_not_free() -> None:
    gate = gate_with(GIB, {"f": 300 * MIB})
    others = [Running(1, "f", 0.0)]
    assert gate.admits("f", 0, others, 1.0)
    assert not gate.admits("f", 0, [*others, Running(2, "f", 0.0)], 1.0)


def test_what_running_tasks_have_taken_is_counted_once() -> None:
    gate = gate_with(GIB, {"f": 300 * MIB})
    grown = {i: Sample(BARE + (300 * MIB if i in (1, 2) else 0)) for i in range(9)}
    gate.measured(Room(GIB, GIB - 600 * MIB, 0), grown, {0, *range(3, 9)}, 8, 0.1)
    assert gate.admits("f", 0, [Running(1, "f", 0.0)], 1.0)


def test_time_without_a_cpu_is_no_sign_that_a_task_has_what_it_needs() -> None:
    gate = gate_with(300 * MIB, {})
    for now, waited_s, may_begin in [(0.1, 0.01, False), (0.5, 0.4, False), (1.0, 0.4, True)]:
        used = {1: Sample(BARE + 20 * MIB, waited_s)}
        gate.measured(Room(GIB, 300 * MIB, 300 * MIB), used, set(), 8, now)
        assert gate.admits("f", 0, [Running(1, "f", 0.0)], now) == may_begin


def test_whatever_it_needs_a_task_begins_when_no_other_needs_memory() -> None:
    gate = gate_with(0, {"f": 10 * GIB, "small": MIB})
    assert gate.admits("f", 0, [Running(1, "small", 0.0)], 1.0)
    assert gate.admits("unknown", 0, [], 1.0)


def test_looks_are_rare_where_there_is_plenty_and_frequent_where_there_is_not() -> None:
    periods = []
    for free in (100 * GIB, 2 * GIB, 200 * MIB, 10 * MIB):
        gate = MemoryGate(CostModel())
        gate.measured(Room(128 * GIB, free, free), {}, set(), 4, 0.0)
        periods.append(gate.next_look_s(4, is_held=False))
    assert periods == sorted(periods, reverse=True)
    assert periods[0] == 0.25
    assert periods[-1] < 0.01
