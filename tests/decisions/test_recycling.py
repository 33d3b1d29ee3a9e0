"""Workers that are replaced for what they have run or keep: who, when, and by how many at a time."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from amorsize_executor.decisions.actions import SendChunk, StartWorker
from amorsize_executor.decisions.cost_model import CostModel
from amorsize_executor.decisions.memory import Room, Sample
from amorsize_executor.decisions.recycling import Growth, Leaks, allowed_nbytes

from .fake_pool import FakePool

MIB = 1 << 20
GIB = 1 << 30


def grown(use_nbytes: Callable[[int], float], n_tasks: int = 400) -> int:
    """What a worker is found to leak that uses so much after each of its tasks, and tells changes of a MiB."""
    growth = Growth()
    told = -math.inf
    for n in range(1, n_tasks + 1):
        nbytes = use_nbytes(n)
        if abs(nbytes - told) >= MIB:
            growth.see(n, int(nbytes))
            told = nbytes
    growth.see(n_tasks, int(use_nbytes(n_tasks)))
    return growth.leaked_nbytes()


# ---------------------------------------------------------------------- the estimator


@pytest.mark.parametrize("n_tasks", [20, 50, 400, 5000])
def test_steady_growth_is_a_leak(n_tasks: int) -> None:
    leaked = grown(lambda n: 50 * MIB + n * 2 * MIB, n_tasks)
    assert 0.6 * 2 * MIB * n_tasks < leaked <= 2 * MIB * n_tasks


def test_steady_growth_is_seen_beneath_what_tasks_take_and_give_back() -> None:
    rng = random.Random(1)
    assert grown(lambda n: 50 * MIB + n * 2 * MIB + rng.uniform(0, 200 * MIB)) > 300 * MIB


def test_noise_is_no_leak() -> None:
    for seed in range(50):
        rng = random.Random(seed)
        assert grown(lambda n: 50 * MIB + rng.uniform(0, 200 * MIB)) < 64 * MIB  # noqa: B023


@pytest.mark.parametrize("full_after", [1, 10, 100, 200])
def test_a_cache_that_fills_once_is_no_leak(full_after: int) -> None:
    assert grown(lambda n: 50 * MIB + min(n, full_after) / full_after * GIB) == 0


def test_a_cache_whose_misses_become_rare_is_no_leak() -> None:
    assert grown(lambda n: GIB * (1 - math.exp(-n / 100))) == 0


@pytest.mark.parametrize("late", [100, 399, 400])
def test_one_step_is_no_leak(late: int) -> None:
    assert grown(lambda n: 50 * MIB + (GIB if n >= late else 0) + n % 2 * 2 * MIB) == 0


def test_few_tasks_tell_nothing() -> None:
    assert grown(lambda n: n * GIB, 10) == 0


def test_a_worker_is_not_replaced_before_its_life_is_worth_its_start() -> None:
    def found_at(replace_s: float) -> int:
        leaks = Leaks()
        return next(
            n
            for n in range(1, 10_000)
            if leaks.told(1, n, n * 10 * MIB, age_s=0.1 * n, replace_s=replace_s, part_nbytes=0)
        )

    assert found_at(0.01) < 20
    assert found_at(2.0) == 1000  # 100 s


def test_what_is_allowed_doubles_up_to_half_of_a_workers_part() -> None:
    assert [allowed_nbytes(8 * GIB, n) / GIB for n in range(5)] == [1, 2, 4, 4, 4]
    assert allowed_nbytes(0.0, 0) == 64 * MIB


def test_a_cache_below_half_of_a_workers_part_costs_two_replacements_at_most() -> None:
    leaks = Leaks()
    for worker_id in range(100):
        for n in range(1, 500):
            nbytes = int(min(n * 0.01, 0.49) * 8 * GIB)  # it is still being filled when it is judged
            if leaks.told(worker_id, n, nbytes, age_s=1e3, replace_s=0.05, part_nbytes=8 * GIB):
                break
        leaks.forget_worker(worker_id)
    assert leaks.n_found <= 2


# ---------------------------------------------------------------------- the next worker


def known(item_s: float, start_s: float = 0.05) -> CostModel:
    model = CostModel()
    model.observe("f", 1000, 1000 * item_s)
    model.observe_worker_start(start_s)
    return model


def test_the_next_worker_starts_while_the_last_task_runs_and_works_when_its_place_is_free() -> None:
    pool = FakePool(1, max_tasks_per_child=1)
    pool.submit(1, 2)
    pool.become_ready(pool.starting[0])
    (old,) = pool.busy()
    assert pool.starting == [pool.scheduler.spare]
    pool.answer()
    assert pool.busy() == [old], "one task at a time"
    pool.finish(old)
    assert len(pool.busy()) == 1
    assert pool.leaving == [old]
    pool.run_until_quiet()
    assert sorted(i for _, i in pool.runs) == [1, 2]


def test_the_next_worker_may_still_be_starting_when_its_place_is_free() -> None:
    pool = FakePool(1, max_tasks_per_child=1)
    pool.submit(1, 2)
    pool.become_ready(pool.starting[0])
    pool.finish(pool.busy()[0])
    assert pool.scheduler.spare is None
    assert len(pool.starting) == 1
    pool.answer()
    assert len(pool.busy()) == 1


def test_no_more_than_one_process_above_the_limit() -> None:
    pool = FakePool(4, max_tasks_per_child=1)
    pool.submit(*range(100))
    for _ in range(500):
        assert len(pool.starting) + len(pool.ready) + len(pool.leaving) <= 5
        assert len(pool.busy()) <= 4
        pool.answer()
        if pool.busy():
            pool.finish(pool.busy()[0])
        pool.leave()
    assert len(pool.runs) == 100


def test_a_long_last_task_does_not_keep_two_processes() -> None:
    pool = FakePool(1, cost_model=known(10.0), max_tasks_per_child=1)
    pool.start(1)
    pool.submit(1, 2)
    assert not pool.starting
    wait_s = pool.scheduler.next_tick(pool.now)
    assert wait_s is not None
    assert 9 < wait_s < 10
    pool.wait(wait_s)
    assert pool.scheduler.spare is not None


def test_the_old_worker_leaves_first_where_memory_is_tight() -> None:
    pool = FakePool(1, max_tasks_per_child=1)
    room = Room(GIB, 60 * MIB, 60 * MIB)
    pool.start(1)
    pool.do(pool.scheduler.look_at_memory(room, {1: Sample(40 * MIB)}, {}, 0.0))
    pool.submit(1, 2)
    assert pool.starting == []
    pool.finish(1)
    assert pool.leaving == [1]
    assert len(pool.starting) == 1


def test_a_worker_that_waits_for_a_place_makes_room_where_memory_becomes_short() -> None:
    pool = FakePool(1, max_tasks_per_child=1)
    pool.submit(1, 2)
    pool.answer()
    spare = pool.scheduler.spare
    assert spare is not None
    pool.do(pool.scheduler.look_at_memory(Room(GIB, MIB, MIB), {1: Sample(40 * MIB)}, {}, 0.0))
    assert pool.scheduler.spare is None
    assert spare in pool.leaving


def test_a_next_worker_that_dies_is_not_tried_again_before_the_old_one_has_left() -> None:
    pool = FakePool(1, max_tasks_per_child=1)
    pool.submit(1, 2)
    pool.become_ready(pool.starting[0])
    pool.die(pool.starting[0])
    assert pool.starting == []
    pool.finish(pool.busy()[0])
    pool.run_until_quiet()
    assert len(pool.runs) == 2
    assert not pool.is_broken


def test_nobody_is_replaced_when_no_work_is_left() -> None:
    pool = FakePool(1, max_tasks_per_child=1)
    pool.start(1)
    pool.shutdown()
    pool.run_until_quiet()
    pool = FakePool(1, max_tasks_per_child=2)
    pool.submit(1, 2)
    pool.shutdown()
    pool.answer()
    assert pool.starting == []


@pytest.mark.parametrize("kept_nbytes", [0, 100 * MIB])
def test_a_worker_that_leaks_is_replaced_after_what_it_has(kept_nbytes: int) -> None:
    pool = FakePool(1, cost_model=known(0.2))
    pool.start(1)
    pool.submit(*range(60))
    used = 40 * MIB
    for _ in range(40):
        if pool.busy() != [1]:
            break
        pool.now += 0.2
        used += kept_nbytes
        chunk = pool.chunks[1][0]
        pool.do(pool.scheduler.memory_told(1, chunk.chunk_id, chunk.n_done, kept_nbytes, used, pool.now))
        pool.finish(1, 1)
    assert pool.scheduler.n_leaks == bool(kept_nbytes)
    assert (1 in pool.leaving) == bool(kept_nbytes)
    pool.run_until_quiet()
    assert len(pool.runs) == 60


def test_what_a_resource_takes_is_no_leak() -> None:
    pool = FakePool(1, cost_model=known(0.2))
    pool.start(1)
    used = 40 * MIB
    for resource_id in range(1, 40):
        pool.scheduler.add_resource(resource_id)
        needs = frozenset({resource_id})
        pool.submit(resource_id, needs=needs)
        pool.now += 5
        used += 100 * MIB
        pool.load(1, resource_id, 0.01, 100 * MIB)
        chunk = pool.chunks[1][0]
        pool.do(pool.scheduler.memory_told(1, chunk.chunk_id, chunk.n_done, 0, used, pool.now))
        pool.finish(1)
    assert pool.scheduler.n_leaks == 0


def test_a_submit_to_an_idle_worker_starts_the_next_one() -> None:
    pool = FakePool(1, cost_model=known(0.01), max_tasks_per_child=1)
    pool.start(1)
    actions = pool.scheduler.submit(1, "f", pool.now)
    assert [type(action) for action in actions] == [SendChunk, StartWorker]
