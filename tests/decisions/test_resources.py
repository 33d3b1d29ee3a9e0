"""Which worker gets a task that needs a resource, and which resources go."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from amorsize_executor.decisions import resources
from amorsize_executor.decisions.actions import TakeBack
from amorsize_executor.decisions.cost_model import CostModel

from .fake_pool import FakePool, left

MODEL, OTHER = 1, 2
NEEDS = frozenset({MODEL})
LOAD_S = 4.0
NBYTES = 100


def known(item_s: float) -> CostModel:
    model = CostModel()
    model.observe("f", 100, 100 * item_s)
    model.observe_worker_start(0.1)
    return model


def make_pool(n_workers: int = 2, item_s: float | None = 0.01, **settings: Any) -> FakePool:
    """Ready workers, none of which has a resource."""
    pool = FakePool(n_workers, cost_model=known(item_s) if item_s is not None else None, **settings)
    for resource_id in (MODEL, OTHER):
        pool.scheduler.add_resource(resource_id)
    pool.start(n_workers)
    return pool


def with_holder(n_workers: int = 2, item_s: float | None = 0.01, **settings: Any) -> tuple[FakePool, int]:
    """... but one, which has loaded it for a task."""
    pool = make_pool(n_workers, item_s, **settings)
    pool.submit(1000, needs=NEEDS)
    (holder,) = pool.busy()
    pool.load(holder, MODEL, LOAD_S, NBYTES)
    pool.finish(holder)
    return pool, holder


def test_a_task_goes_to_the_worker_that_has_its_resource() -> None:
    pool, holder = with_holder()
    for task in range(10):
        pool.submit(task, needs=NEEDS)
        assert pool.busy() == [holder]
        pool.finish(holder)


def test_a_task_waits_for_a_busy_holder_rather_than_load_elsewhere() -> None:
    pool, holder = with_holder()
    pool.submit(1, needs=NEEDS)
    pool.submit(2, needs=NEEDS)
    assert pool.busy() == [holder]
    pool.run_until_quiet()
    assert {action.worker_id for action in pool.sent} == {holder}


def test_other_tasks_do_not_wait_for_a_holder() -> None:
    pool, _ = with_holder(item_s=1.0)
    pool.submit(1, 2, needs=NEEDS)
    pool.submit(3)
    assert len(pool.busy()) == 2


def test_a_backlog_that_is_worth_a_loading_time_gets_another_worker() -> None:
    pool, _ = with_holder(item_s=1.0)
    pool.submit(1, needs=NEEDS)
    pool.submit(2, 3, needs=NEEDS)
    assert len(pool.busy()) == 1, "three seconds of work are less than the loading"
    pool.submit(4, 5, needs=NEEDS)
    assert len(pool.busy()) == 2


def test_a_task_waits_at_most_as_long_as_loading_takes() -> None:
    pool, holder = with_holder(item_s=0.2)
    pool.submit(1, needs=NEEDS)
    pool.submit(2, needs=NEEDS)
    assert pool.busy() == [holder]
    wait_s = pool.scheduler.next_tick(pool.now)
    assert wait_s is not None
    assert wait_s <= LOAD_S
    pool.wait(LOAD_S)
    assert len(pool.busy()) == 2, "the first task takes far longer than it should"


def test_nobody_waits_for_a_holder_of_whom_nobody_knows_when_it_ends() -> None:
    pool, _ = with_holder(item_s=None)
    pool.submit(1, 2, needs=NEEDS)
    assert len(pool.busy()) == 2


def test_nobody_waits_while_a_loading_time_is_unknown() -> None:
    pool = make_pool()
    pool.submit(1, 2, needs=NEEDS)
    assert len(pool.busy()) == 2


def test_a_second_resource_goes_to_a_worker_that_has_none() -> None:
    pool, holder = with_holder()
    pool.submit(1, needs=frozenset({OTHER}))
    assert pool.busy() != [holder]


def test_nothing_waits_behind_a_chunk_that_loads() -> None:
    pool = make_pool(1)
    pool.submit(1, needs=NEEDS)
    pool.submit(2)
    (worker,) = pool.busy()
    assert pool.items(worker) == [[1]]
    pool.load(worker, MODEL, LOAD_S, NBYTES)
    pool.run_until_quiet()
    assert pool.runs[None, 2] == 1


def test_loading_is_no_reason_to_take_work_back() -> None:
    pool, holder = with_holder(item_s=1e-4)
    pool.scheduler.close_resource(MODEL, pool.now)
    pool.scheduler.add_resource(MODEL)
    pool.submit(*range(20), needs=NEEDS)
    pool.wait(1.0)
    assert all(chunk.needs for chunks in pool.chunks.values() for chunk in chunks)
    assert holder in pool.ready


def test_a_factory_that_failed_is_not_taken_for_a_resource() -> None:
    pool = make_pool(2)
    pool.submit(1, needs=NEEDS)
    (worker,) = pool.busy()
    pool.finish(worker)  # without having loaded
    assert pool.scheduler.n_holders(NEEDS) == 0


def test_the_tasks_of_a_dead_worker_go_to_others() -> None:
    pool, holder = with_holder(retries=1)
    pool.submit(1, 2, 3, needs=NEEDS)
    pool.die_running(holder)
    pool.run_until_quiet()
    assert all(pool.runs[None, task] == 1 for task in (1, 2, 3))


def test_a_map_goes_to_the_worker_that_has_its_resource() -> None:
    pool, holder = with_holder()
    pool.map(7, 100, n_workers=1, needs=NEEDS)
    pool.run_until_quiet()
    assert {action.worker_id for action in pool.sent if action.chunk.job_id == 7} == {holder}


def test_a_long_map_has_others_load_what_it_needs() -> None:
    pool, _ = with_holder(item_s=1.0)
    pool.map(7, 100, n_workers=2, needs=NEEDS)
    assert len(pool.busy()) == 2


# memory


def test_what_was_used_least_recently_goes_first() -> None:
    pool, holder = with_holder(1)
    pool.scheduler.resource_budget_nbytes = 2 * NBYTES
    pool.submit(1, needs=frozenset({OTHER}))
    pool.load(holder, OTHER, LOAD_S, NBYTES)
    pool.finish(holder)
    pool.submit(2, needs=NEEDS)
    pool.finish(holder)
    pool.scheduler.add_resource(3)
    pool.submit(3, needs=frozenset({3}))
    pool.load(holder, 3, LOAD_S, NBYTES)
    assert pool.closed == [(holder, OTHER)]


def test_what_is_known_to_need_room_gets_it_before_it_is_loaded() -> None:
    pool, holder = with_holder(1)
    pool.scheduler.resource_budget_nbytes = NBYTES
    pool.submit(1, needs=frozenset({OTHER}))
    pool.load(holder, OTHER, LOAD_S, NBYTES)
    pool.finish(holder)
    assert pool.closed == [(holder, MODEL)]
    pool.submit(2, needs=NEEDS)
    assert pool.closed[1:] == [(holder, OTHER)], "its size is known"


def test_what_a_task_needs_stays_however_large_it_is() -> None:
    pool, holder = with_holder(1)
    pool.scheduler.resource_budget_nbytes = NBYTES // 2
    pool.submit(1, needs=NEEDS)
    assert pool.closed == []
    pool.finish(holder)
    assert pool.scheduler.held_by(holder) == {MODEL: NBYTES}


@pytest.mark.parametrize(
    ("held", "needed", "nbytes", "budget", "gone"),
    [
        ({1: 4, 2: 3}, [], 0, 7, []),
        ({1: 4, 2: 3}, [], 1, 7, [1]),
        ({1: 4, 2: 3}, [1], 1, 7, [2]),
        ({1: 4, 2: 3}, [1, 2], 100, 7, []),
        ({1: 0, 2: 3}, [], 5, 7, [2]),
        ({1: 4}, [], 100, None, []),
    ],
)
def test_evictions(held: dict[int, int], needed: list[int], nbytes: int, budget: int | None, gone: list[int]) -> None:
    assert resources.evictions(held, needed, nbytes, budget) == gone


def test_the_budget_is_what_a_workers_share_of_memory_leaves() -> None:
    assert resources.budget_nbytes(1000, 4, 50) == 200
    assert resources.budget_nbytes(100, 4, 50) == 0


# ahead of tasks, and the end


def test_resources_are_loaded_ahead_in_workers_that_start_later_too() -> None:
    pool = make_pool(2)
    first, second = pool.ready
    pool.do(pool.scheduler.load(MODEL, pool.now))
    assert pool.ahead == [(first, MODEL), (second, MODEL)]
    assert pool.scheduler.n_idle == 0, "they get no tasks meanwhile"
    pool.die(first)
    pool.submit(1)
    pool.wait(1.0)
    pool.answer()
    assert pool.ahead[-1][0] not in (first, second)


def test_a_worker_that_has_loaded_ahead_gets_tasks() -> None:
    pool = make_pool(1)
    (worker,) = pool.ready
    pool.do(pool.scheduler.load(MODEL, pool.now))
    pool.submit(1)
    assert pool.busy() == []
    pool.load(worker, MODEL, LOAD_S, NBYTES)
    pool.load_done(worker, MODEL)
    assert pool.busy() == [worker]
    assert pool.scheduler.n_loaded(NEEDS) == 1


def test_a_worker_that_could_not_load_ahead_gets_tasks_all_the_same() -> None:
    pool = make_pool(1)
    (worker,) = pool.ready
    pool.do(pool.scheduler.load(MODEL, pool.now))
    pool.submit(1, needs=NEEDS)
    pool.load_done(worker, MODEL, is_loaded=False)
    assert pool.busy() == [worker]


def test_a_closed_resource_goes_when_no_task_needs_it() -> None:
    pool, holder = with_holder(1)
    pool.submit(1, 2, needs=NEEDS)
    pool.do(pool.scheduler.close_resource(MODEL, pool.now))
    assert pool.closed == []
    pool.finish(holder)
    pool.run_until_quiet()
    assert pool.closed == [(holder, MODEL)]
    assert not pool.scheduler.has_resource(MODEL)


def test_a_resource_that_is_loaded_after_it_was_closed_goes_at_once() -> None:
    pool = make_pool(1)
    (worker,) = pool.ready
    pool.do(pool.scheduler.load(MODEL, pool.now))
    pool.do(pool.scheduler.close_resource(MODEL, pool.now))
    pool.load(worker, MODEL, LOAD_S, NBYTES)
    assert (worker, MODEL) in pool.closed


def test_an_idle_worker_is_kept_longer_for_what_it_has_loaded() -> None:
    pool, holder = with_holder(2, idle_timeout_s=1.0)
    pool.submit(1, needs=NEEDS)
    pool.finish(holder)
    pool.wait(2.0)
    assert pool.leaving == [worker for worker in pool.chunks if worker != holder]
    wait_s = pool.scheduler.next_tick(pool.now)
    assert wait_s is not None
    pool.wait(wait_s + 1e-3)
    assert holder in pool.leaving


def test_workers_that_are_wanted_start_and_stay() -> None:
    pool = FakePool(3, idle_timeout_s=1.0)
    pool.scheduler.n_wanted = 2
    pool.wait(0.0)
    assert len(pool.starting) == 2
    pool.answer()
    pool.wait(10.0)
    assert not pool.leaving
    pool.scheduler.n_wanted = 0
    pool.wait(10.0)
    assert len(pool.leaving) == 2


def test_a_chunk_of_which_everything_was_taken_back_takes_no_time() -> None:
    pool, holder = with_holder(2, 1e-4)
    pool.submit(1, 2, needs=NEEDS)
    _, second = pool.chunks[holder]
    pool.do([TakeBack(holder, second)])
    assert not left(second)
    pool.submit(3, needs=NEEDS)  # is it better off with the idle worker?
    pool.run_until_quiet()
    assert pool.runs == Counter([(None, task) for task in (1000, 1, 2, 3)])


def test_a_task_is_not_passed_back_and_forth_between_its_queue_and_a_holder() -> None:
    pool = make_pool(4, 1e-3)
    pool.cost_model.observe("long", 1, 1.0)
    *holders, other = pool.ready
    pool.do(pool.scheduler.load(MODEL, pool.now))
    for worker in pool.ready:
        if worker != other:
            pool.load(worker, MODEL, 0.5, NBYTES)
        pool.load_done(worker, MODEL, is_loaded=worker != other)
    pool.submit(1, 2, 3, needs=NEEDS)  # one for each holder
    assert sorted(pool.busy()) == sorted(holders)
    pool.submit(4, key="long", needs=NEEDS)  # alone it would pay to load, but not for a third of it
    assert len(pool.sent) < 10
    pool.run_until_quiet()
    assert pool.runs == Counter([(None, task) for task in (1, 2, 3, 4)])
