from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from amorsize_executor.decisions.actions import KillWorker, RetireWorker, SendChunk, TakeBack
from amorsize_executor.decisions.cost_model import CostModel
from amorsize_executor.decisions.memory import Room, Sample
from amorsize_executor.decisions.terms import Terms

from .fake_pool import FakePool, left


def known(item_s: float, key: str = "f") -> CostModel:
    """A model that knows one function."""
    model = CostModel()
    model.observe(key, 100, 100 * item_s)
    model.observe_worker_start(0.1)
    return model


# submitted tasks


def test_first_submit_starts_a_worker_and_goes_to_it() -> None:
    pool = FakePool()
    pool.submit(1)
    (worker,) = pool.starting
    pool.answer()
    assert pool.items(worker) == [[1]]


def test_submit_goes_straight_to_an_idle_worker() -> None:
    pool = FakePool()
    pool.start(1)
    (action,) = pool.scheduler.submit(1, "f", 0.0)
    assert isinstance(action, SendChunk)


def test_idle_workers_are_used_last_in_first_out() -> None:
    pool = FakePool(3)
    pool.start(3)
    first, second, third = pool.ready
    pool.submit(1, 2, 3)
    for worker in (second, third, first):
        pool.finish(worker)
    pool.submit(4)
    assert pool.busy() == [first]
    pool.submit(5)
    assert pool.idle() == [second]


def test_map_too_uses_the_last_idle_worker_first() -> None:
    pool = FakePool(3)
    pool.start(3)
    pool.map(1, 1, n_workers=1)
    assert pool.busy() == [pool.ready[-1]]


def test_submits_are_served_in_order() -> None:
    pool = FakePool(1)
    pool.submit(*range(10))
    pool.run_until_quiet()
    assert [item for action in pool.sent for item in action.chunk.items] == list(range(10))


def test_unknown_tasks_get_a_worker_each() -> None:
    pool = FakePool(8)
    pool.submit(1, 2, 3)
    assert len(pool.starting) == 3


def test_short_tasks_do_not_start_a_worker_each() -> None:
    pool = FakePool(8, cost_model=known(1e-4))
    pool.submit(*range(20))
    assert len(pool.starting) == 1


def test_tasks_that_wait_longer_than_a_worker_takes_to_start_get_another_worker() -> None:
    pool = FakePool(4, cost_model=known(1e-3))
    pool.start(1)
    pool.submit(*range(50))
    assert not pool.starting
    in_s = pool.scheduler.next_tick(pool.now)
    assert in_s is not None
    pool.wait(in_s)
    assert len(pool.starting) == 1


def test_nobody_watches_the_clock_while_a_worker_starts() -> None:
    pool = FakePool(4, cost_model=known(1e-3))
    pool.start(1)
    pool.submit(*range(50))
    pool.wait(10.0)
    assert pool.starting
    assert pool.scheduler.next_tick(pool.now) is None or pool.scheduler.next_tick(pool.now) > 0  # type: ignore[operator]


def test_short_tasks_travel_in_groups_under_a_backlog() -> None:
    pool = FakePool(1, cost_model=known(1e-5))
    pool.submit(*range(300))
    pool.answer()
    (worker,) = pool.ready
    assert sum(map(len, pool.items(worker))) > 50


def test_long_tasks_are_never_grouped() -> None:
    pool = FakePool(1, cost_model=known(1.0))
    pool.submit(*range(10))
    pool.answer()
    (worker,) = pool.ready
    assert pool.items(worker) == [[0]]


def test_task_with_a_block_travels_alone() -> None:
    pool = FakePool(1, cost_model=known(1e-5))
    for task_id in range(6):
        pool.do(pool.scheduler.submit(task_id, "f", 0.0, is_alone=task_id == 3))
    pool.run_until_quiet()
    assert [3] in [list(action.chunk.items) for action in pool.sent]


def test_one_chunk_waits_behind_a_short_one() -> None:
    pool = FakePool(1, cost_model=known(5e-3))
    pool.submit(*range(10))
    pool.answer()
    (worker,) = pool.ready
    assert pool.items(worker) == [[0], [1]]


@pytest.mark.parametrize(("item_s", "depth"), [(0.55, 2), (0.65, 1)])
def test_more_waits_behind_a_chunk_where_chunks_cost_more(item_s: float, depth: int) -> None:
    model = CostModel(chunk_overhead_s=5e-3)  # as on a cluster
    model.observe("f", 100, 100 * item_s)
    pool = FakePool(1, cost_model=model)
    pool.start(1)
    pool.submit(*range(10))
    (worker,) = pool.ready
    assert len(pool.chunks[worker]) == depth


def test_the_next_chunk_comes_when_little_is_left_of_a_long_one() -> None:
    pool = FakePool(1, cost_model=known(0.1))
    pool.map(1, 12, n_workers=1, chunksize=4)
    pool.answer()
    (worker,) = pool.ready
    depths = []
    for _ in range(4):
        depths.append(len(pool.chunks[worker]))
        pool.finish(worker, 1)
    assert depths == [1, 1, 1, 2]


def test_worker_with_a_long_task_does_not_keep_others_from_having_a_chunk_in_reserve() -> None:
    model = known(5e-3)
    model.observe("long", 1, 100.0)
    pool = FakePool(2, cost_model=model)
    pool.start(2)
    pool.submit(1000, key="long")
    (slow,) = pool.busy()
    pool.submit(*range(10))
    (quick,) = [worker for worker in pool.ready if worker != slow]
    assert len(pool.chunks[slow]) == 1
    assert len(pool.chunks[quick]) == 2


def test_dropped_tasks_never_run() -> None:
    pool = FakePool(1)
    pool.submit(1, 2, 3)
    pool.answer()
    assert pool.scheduler.drop_queue() == [2, 3]
    pool.run_until_quiet()
    assert set(pool.runs) == {(None, 1)}


def test_nobody_looks_again_and_again_for_a_worker_that_memory_does_not_allow() -> None:
    pool = FakePool(4, cost_model=known(1.0), idle_timeout_s=1.0)
    pool.submit(1, 2, 3, 4)
    pool.become_ready(1)
    pool.scheduler.memory_told(1, pool.chunks[1][0].chunk_id, 0, 100 << 20, 10 << 20, pool.now)
    pool.become_ready(2)
    pool.do(
        pool.scheduler.look_at_memory(Room(1000 << 20, -100 << 20, -100 << 20), {1: Sample(1), 2: Sample(1)}, {}, 0.0)
    )
    for worker_id in (1, 2):
        pool.finish(worker_id, 1)
    pool.wait(1.0)
    in_s = pool.scheduler.next_tick(pool.now)
    assert in_s is None or in_s > 0


def test_nothing_is_taken_back_for_an_idle_worker_that_memory_does_not_allow_to_run_it() -> None:
    pool = FakePool(4, cost_model=known(0.01))
    pool.n_claimed = 0
    pool.submit(1, 2, 3, key="long")
    pool.submit(4)
    pool.become_ready(1)
    pool.become_ready(2)
    room = Room(1000 << 20, -100 << 20, -100 << 20)
    pool.do(pool.scheduler.look_at_memory(room, {1: Sample(1), 2: Sample(1)}, {}, 0.0))
    pool.finish(2, 1)
    pool.scheduler.memory_told(1, pool.chunks[1][0].chunk_id, 0, 100 << 20, 10 << 20, pool.now)
    pool.map(1, 9, n_workers=1)
    pool.shutdown()
    for _ in range(20):
        pool.run_until_quiet()
        pool.wait(1.0)
    assert sum(pool.runs.values()) == 13


# maps


def test_workers_leave_a_held_map_to_its_caller() -> None:
    pool = FakePool(2)
    pool.start(2)
    pool.scheduler.add_map(1, "f", 10)
    pool.wait(1.0)
    assert not pool.sent
    assert list(pool.scheduler.take_inline(1, 4)) == [0, 1, 2, 3]


def test_caller_and_workers_share_a_map_without_overlap() -> None:
    pool = FakePool(1)
    pool.start(1)
    pool.map(1, 10, n_workers=1)
    taken = pool.scheduler.take_inline(1, 5)
    pool.scheduler.inline_done(1, len(taken))
    pool.run_until_quiet()
    assert sorted([*taken, *(i for _, i in pool.runs)]) == list(range(10))


def test_items_that_the_caller_returns_go_to_workers_first() -> None:
    pool = FakePool(1)
    pool.scheduler.add_map(1, "f", 10)
    taken = pool.scheduler.take_inline(1, 5)
    pool.scheduler.return_inline(1, taken[2:])
    pool.scheduler.inline_done(1, 2)
    pool.do(pool.scheduler.release_map(1, 1, pool.now))
    pool.answer()
    assert pool.sent[0].chunk.items[0] == 2


def test_items_that_the_caller_gives_back_are_cut_like_those_never_taken() -> None:
    pool = FakePool(1, cost_model=known(1e-3))
    pool.scheduler.add_map(1, "f", 100)
    taken = pool.scheduler.take_inline(1, 90)
    pool.scheduler.return_inline(1, taken[2:])
    assert pool.scheduler.n_waiting(1) == 98
    assert pool.scheduler.take_inline(1, 50) == range(2, 52)


def test_caller_takes_items_that_workers_gave_back_in_a_row() -> None:
    pool = FakePool(1, cost_model=known(1e-3))
    pool.start(1)
    pool.map(1, 100, n_workers=1)
    begun = {i for _, i in pool.held()} - set(pool.scheduler.waiting_items(1))
    while pool.scheduler.n_waiting(1):
        pool.scheduler.inline_done(1, len(pool.scheduler.take_inline(1, 100)))
    pool.do(pool.scheduler.take_for_caller(1, pool.now))
    n_waiting = pool.scheduler.n_waiting(1)
    taken = pool.scheduler.take_inline(1, 3)
    assert 3 < n_waiting < len(begun)
    assert len(taken) == 3
    assert set(taken) < begun
    assert len(pool.scheduler.take_inline(1, 100)) == n_waiting - 3


def test_items_of_a_map_that_is_held_again_are_its_callers() -> None:
    pool = FakePool(2, cost_model=known(1e-3))
    pool.start(2)
    pool.map(1, 100, n_workers=2)
    pool.do(pool.scheduler.hold_map(1))
    assert pool.scheduler.hold_map(1) == []
    assert pool.scheduler.held_jobs() == (1,)
    pool.run_until_quiet()
    ran = [i for _, i in pool.runs]
    assert len(ran) <= 2, "those that had begun"
    assert sorted([*ran, *pool.scheduler.waiting_items(1)]) == list(range(100))
    pool.do(pool.scheduler.release_map(1, 2, pool.now))
    pool.run_until_quiet()
    assert sorted(i for _, i in pool.runs) == list(range(100))


def test_map_starts_the_workers_that_its_plan_wants() -> None:
    pool = FakePool(8)
    pool.map(1, 100, n_workers=3)
    assert len(pool.starting) == 3


def test_long_map_does_not_starve_submits() -> None:
    pool = FakePool(1, cost_model=known(0.05))
    pool.start(1)
    pool.map(1, 10_000, n_workers=1)
    pool.submit(77)
    for _ in range(2):
        pool.finish(pool.ready[0])
    assert (None, 77) in pool.held() + list(pool.runs)


def test_two_maps_take_turns() -> None:
    pool = FakePool(1, cost_model=known(0.05))
    pool.start(1)
    pool.map(1, 100, n_workers=1)
    pool.map(2, 100, n_workers=1)
    for _ in range(10):
        pool.finish(pool.ready[0])
    sources = [action.chunk.job_id for action in pool.sent[2:]]  # the first had the worker for itself
    assert sources in ([1, 2] * 5, [2, 1] * 5)


def test_unknown_function_gives_a_worker_one_item_first_and_then_more() -> None:
    pool = FakePool(1)
    pool.start(1)
    pool.map(1, 10_000, n_workers=1)
    for _ in range(12):
        pool.finish(pool.ready[0], item_s=1e-5)
    sizes = [len(action.chunk.items) for action in pool.sent]
    assert sizes[0] == 1
    assert all(after <= 4 * max(sizes[: i + 1]) for i, after in enumerate(sizes[1:]))
    assert max(sizes) > 100


def test_chunks_of_a_map_begin_small_where_the_function_has_been_slow_before() -> None:
    model = known(0.01)
    for _ in range(50):
        model.observe("f", 1, 1e-6)
    pool = FakePool(1, cost_model=model)
    pool.start(1)
    pool.map(1, 10_000, n_workers=1)
    assert len(pool.sent[0].chunk.items) < 10


def test_a_short_map_is_one_chunk_for_each_worker() -> None:
    pool = FakePool(3, cost_model=known(1e-6))
    pool.start(3)
    pool.map(1, 3000, 3)
    assert sorted(len(chunk) for worker_id in pool.ready for chunk in pool.items(worker_id)) == [1000] * 3


def test_what_could_not_be_taken_back_as_it_was_not_sent_yet_is_tried_again() -> None:
    pool = FakePool(2, cost_model=known(1e-5))
    pool.start(1)
    (first,) = pool.ready
    pool.map(1, 1000, 2)
    pool.do(pool.scheduler.want_workers(2, pool.now))
    (second,) = pool.starting
    asked = [a for a in pool.scheduler.worker_ready(second, pool.now) if isinstance(a, TakeBack)]
    assert [action.worker_id for action in asked] == [first]
    assert not [a for a in pool.scheduler.tick(pool.now + 1.0) if isinstance(a, TakeBack) and a.chunk is asked[0].chunk]
    pool.scheduler.not_taken(first, asked[0].chunk.chunk_id)
    pool.scheduler.not_taken(first, 12345)  # which is over
    again = [a for a in pool.scheduler.tick(pool.now + 2.0) if isinstance(a, TakeBack)]
    assert asked[0].chunk in [action.chunk for action in again]


def test_fixed_chunksize_is_kept() -> None:
    pool = FakePool(2, cost_model=known(1e-6))
    pool.map(1, 100, n_workers=2, chunksize=7)
    pool.run_until_quiet()
    assert [len(action.chunk.items) for action in pool.sent] == [7] * 14 + [2]


def test_chunks_of_large_items_are_small() -> None:
    pool = FakePool(1, cost_model=known(1e-6))
    pool.start(1)
    pool.scheduler.add_map(1, "f", 10_000)
    pool.scheduler.set_item_nbytes(1, 16 << 20)
    pool.do(pool.scheduler.release_map(1, 1, pool.now))
    assert all(len(action.chunk.items) <= 2 for action in pool.sent)


def test_last_items_wait_for_the_first_worker_that_is_free() -> None:
    pool = FakePool(2, cost_model=known(5e-3))
    pool.start(2)
    pool.map(1, 4, n_workers=2, chunksize=1)
    assert sorted(len(chunks) for chunks in pool.chunks.values()) == [1, 1]


def test_map_that_grows_is_served_as_it_grows() -> None:
    pool = FakePool(1)
    pool.map(1, 2, n_workers=1, closed=False)
    pool.run_until_quiet()
    assert pool.scheduler.job_ids() == (1,)
    pool.do(pool.scheduler.extend_map(1, 5, True, pool.now))
    pool.run_until_quiet()
    assert sorted(pool.runs) == [(1, i) for i in range(5)]
    assert pool.scheduler.job_ids() == ()


def test_cancelled_map_sends_nothing_more() -> None:
    pool = FakePool(1)
    pool.map(1, 100, n_workers=1)
    pool.answer()
    pool.do(pool.scheduler.cancel_map(1))
    pool.run_until_quiet()
    assert len(pool.runs) == 1


def test_cancelled_map_is_withdrawn_from_workers() -> None:
    pool = FakePool(1, cost_model=known(10e-6))
    pool.start(1)
    pool.map(1, 100, n_workers=1, chunksize=1)
    assert len(pool.held()) == 2
    pool.do(pool.scheduler.cancel_map(1))
    assert len(pool.held()) == 1
    pool.run_until_quiet()
    assert len(pool.runs) == 1


def test_dropped_map_ends_what_it_has_begun_and_no_more() -> None:
    pool = FakePool(1)
    pool.start(1)
    pool.map(1, 100, n_workers=1)
    waiting, actions = pool.scheduler.drop_map(1, pool.now)
    pool.do(actions)
    assert waiting == list(range(1, 100))
    pool.run_until_quiet()
    assert set(pool.runs) == {(1, 0)}
    assert pool.scheduler.job_ids() == ()


# deaths


def test_culprit_alone_fails_when_a_worker_dies() -> None:
    pool = FakePool(1, cost_model=known(1e-5))
    pool.submit(*range(100))
    pool.answer()
    (worker,) = pool.ready
    pool.finish(worker, 10)
    culprit = pool.items(worker)[0][0]
    pool.die_running(worker)
    assert pool.failed == [(None, culprit)]
    pool.run_until_quiet()
    assert {i for _, i in pool.runs} == set(range(100)) - {culprit}
    assert max(pool.runs.values()) == 1


def test_worker_that_dies_between_two_tasks_costs_none() -> None:
    pool = FakePool(1)
    pool.submit(1)
    pool.answer()
    pool.die(pool.ready[0])
    pool.run_until_quiet()
    assert not pool.failed
    assert set(pool.runs) == {(None, 1)}


def test_mark_left_by_a_settled_item_repeats_nothing() -> None:
    pool = FakePool(1, cost_model=known(1e-5))
    pool.submit(*range(40))
    pool.answer()
    (worker,) = pool.ready
    chunk = pool.chunks[worker][0]
    pool.finish(worker, 3)
    pool.die(worker, (chunk.chunk_id, 0, 1))
    pool.run_until_quiet()
    assert not pool.failed
    assert set(pool.runs.values()) == {1}


def test_items_of_a_dead_worker_go_first() -> None:
    pool = FakePool(2, cost_model=known(0.05))
    pool.start(2)
    pool.map(1, 1000, n_workers=2)
    pool.finish(pool.ready[0], 1)  # chunks of several items from here on
    victim = pool.ready[1]
    lost = pool.items(victim)[0]
    pool.die_running(victim)
    pool.finish(pool.ready[0])
    assert pool.scheduler.waiting_items(1)[0] > lost[0]


def test_retried_item_runs_once_more_and_then_fails() -> None:
    pool = FakePool(1, retries=1)
    pool.submit(1)
    pool.answer()
    pool.die_running(pool.ready[0])
    assert not pool.failed
    pool.answer()
    pool.die_running(pool.ready[0])
    assert pool.failed == [(None, 1)]


def test_failed_item_of_a_map_counts_as_settled() -> None:
    pool = FakePool(1)
    pool.map(1, 1, n_workers=1)
    pool.answer()
    pool.die_running(pool.ready[0])
    assert pool.failed == [(1, 0)]
    assert pool.scheduler.job_ids() == ()


def test_dead_worker_is_replaced_if_there_is_work() -> None:
    pool = FakePool(1)
    pool.submit(1, 2)
    pool.answer()
    pool.die_running(pool.ready[0])
    assert len(pool.starting) == 1


def test_three_failed_starts_in_a_row_break_the_pool() -> None:
    pool = FakePool(1)
    pool.submit(1)
    for _ in range(2):
        pool.die(pool.starting[0])
        assert not pool.is_broken
    pool.die(pool.starting[0])
    assert pool.is_broken


def fail_beside_a_slow_start(pool: FakePool) -> int:
    """One worker starts for long, others beside it fail until no more of them are tried."""
    pool.map(1, 100, 2)
    slow, other = pool.starting
    n_failed = 0
    while other != slow:
        pool.die(other)
        n_failed += 1
        other = pool.starting[-1]
    assert n_failed == 3
    return slow


def test_failed_starts_do_not_break_a_pool_while_another_worker_starts() -> None:
    pool = FakePool(2)
    slow = fail_beside_a_slow_start(pool)
    assert not pool.is_broken
    pool.answer()
    assert slow in pool.busy()


def test_last_worker_that_starts_breaks_a_pool_with_failed_starts() -> None:
    pool = FakePool(2)
    pool.die(fail_beside_a_slow_start(pool))
    assert pool.is_broken


def test_worker_that_starts_clears_the_failures_before_it() -> None:
    pool = FakePool(1)
    for task_id in range(5):
        pool.submit(task_id)
        pool.die(pool.starting[0])
        pool.answer()
        pool.die_running(pool.ready[0])
    assert not pool.is_broken


def test_nobody_looks_again_and_again_while_a_worker_starts_after_failures() -> None:
    pool = FakePool(4)
    pool.start(1)
    pool.scheduler.n_wanted = 4
    pool.do(pool.scheduler.want_workers(4, pool.now))
    while pool.starting:
        pool.die(pool.starting[0])
    start_again_s = pool.scheduler.next_tick(pool.now)
    assert start_again_s
    pool.wait(start_again_s)
    assert len(pool.starting) == 1
    assert pool.scheduler.next_tick(pool.now) is None


def test_workers_that_are_wanted_later_start_at_their_time() -> None:
    pool = FakePool(4)
    pool.start(1)
    pool.scheduler.want_workers_at(3, pool.now + 2.0)
    assert pool.scheduler.next_tick(pool.now) == 2.0
    pool.wait(1.0)
    assert not pool.starting
    pool.wait(1.0)
    assert len(pool.starting) == 2
    pool.wait(10.0)
    assert len(pool.starting) == 2


def test_workers_that_are_wanted_later_do_not_start_if_a_map_or_the_end_comes_before() -> None:
    for comes in (
        lambda pool: pool.scheduler.add_map(1, "f", 10),
        lambda pool: pool.do(pool.scheduler.shutdown(pool.now)),
        lambda pool: pool.do(pool.scheduler.give_up()),
    ):
        pool = FakePool(4)
        pool.scheduler.want_workers_at(3, pool.now + 2.0)
        comes(pool)
        assert pool.scheduler.next_tick(pool.now) is None
        pool.wait(10.0)
        assert not pool.starting


def test_the_last_map_of_a_pool_that_was_shut_down_starts_nobody_for_others() -> None:
    pool = FakePool(4)
    pool.do(pool.scheduler.shutdown(pool.now))
    pool.scheduler.want_workers_at(3, pool.now)
    assert pool.scheduler.next_tick(pool.now) is None
    pool.wait(1.0)
    assert not pool.starting


def test_pool_that_was_given_up_starts_nothing_for_the_tasks_of_its_dead_workers() -> None:
    pool = FakePool(2, cost_model=known(1e-5))
    pool.start(2)
    pool.submit(*range(100))
    actions = pool.scheduler.give_up()
    assert {action.worker_id for action in actions if isinstance(action, KillWorker)} == set(pool.ready)
    pool.do(actions)
    pool.leave()
    pool.do(pool.scheduler.want_workers(2, pool.now))
    assert not pool.starting
    assert pool.scheduler.is_drained


# the number of workers


def test_worker_is_replaced_after_max_tasks_per_child() -> None:
    pool = FakePool(1, max_tasks_per_child=2)
    pool.submit(*range(5))
    pool.run_until_quiet()
    assert sorted(pool.n_given.values()) == [1, 2, 2]


def test_group_of_tasks_stays_within_max_tasks_per_child() -> None:
    pool = FakePool(1, max_tasks_per_child=7, cost_model=known(1e-6))
    pool.submit(*range(100))
    pool.run_until_quiet()
    assert max(pool.n_given.values()) == 7


def test_surplus_workers_leave_after_resize() -> None:
    pool = FakePool(4)
    pool.start(4)
    pool.resize(1)
    assert len(pool.leaving) == 3
    assert len(pool.ready) == 1


def test_busy_surplus_workers_finish_what_they_have_and_leave() -> None:
    pool = FakePool(4)
    pool.submit(1, 2, 3, 4)
    pool.answer()
    pool.resize(1)
    assert not pool.leaving
    while len(pool.busy()) > 1:
        pool.finish(pool.busy()[0])
    assert len(pool.leaving) == 3


def test_resize_takes_effect_under_a_backlog() -> None:
    pool = FakePool(4, cost_model=known(5e-3))
    pool.start(4)
    pool.map(1, 10_000, n_workers=4)
    pool.resize(1)
    for _ in range(20):
        pool.finish(pool.busy()[0])
    assert len(pool.ready) == 1


def test_resize_ends_workers_that_start_before_those_that_are_warm() -> None:
    pool = FakePool(3)
    pool.start(1)
    pool.do(pool.scheduler.want_workers(3, pool.now))
    pool.resize(1)
    assert len(pool.ready) == 1
    assert not pool.starting


def test_resize_up_starts_workers_for_what_waits() -> None:
    pool = FakePool(1)
    pool.submit(1, 2, 3)
    pool.answer()
    pool.resize(3)
    assert len(pool.starting) == 2


def test_a_worker_that_is_one_too_many_when_it_answers_leaves() -> None:
    pool = FakePool(2)
    pool.start(1)
    pool.do(pool.scheduler.want_workers(2, pool.now))
    pool.scheduler.max_workers = 1
    pool.answer()
    assert len(pool.leaving) == 1
    pool.submit(1)
    assert len(pool.busy()) == 1


def test_idle_worker_leaves_after_its_timeout_the_longest_idle_first() -> None:
    pool = FakePool(2, idle_timeout_s=10.0)
    pool.start(2)
    first, second = pool.ready
    pool.submit(1)  # to the second, the last that became idle
    pool.now = 5.0
    pool.finish(second)
    assert pool.scheduler.next_tick(pool.now) == 5.0
    pool.wait(5.0)
    assert pool.leaving == [first]


def test_time_that_a_worker_takes_to_start_is_not_idle_time() -> None:
    pool = FakePool(1, idle_timeout_s=10.0)
    pool.do(pool.scheduler.want_workers(1, pool.now))
    pool.now = 30.0
    pool.answer()
    pool.wait(1.0)
    assert pool.ready


def test_min_workers_stay_and_are_replaced() -> None:
    pool = FakePool(4, min_workers=2, idle_timeout_s=1.0)
    pool.start(4)
    pool.wait(100.0)
    assert len(pool.ready) == 2
    pool.die(pool.ready[0])
    assert len(pool.starting) == 1


@pytest.mark.parametrize("idle_timeout_s", [None, 60.0])
def test_idle_pool_needs_no_clock_but_for_its_timeout(idle_timeout_s: float | None) -> None:
    pool = FakePool(1, idle_timeout_s=idle_timeout_s)
    pool.start(1)
    assert pool.scheduler.next_tick(pool.now) == idle_timeout_s


# the end


def test_shutdown_of_an_idle_pool_ends_it_at_once() -> None:
    pool = FakePool(2)
    pool.start(2)
    actions = pool.scheduler.shutdown(0.0)
    assert [type(action) for action in actions] == [RetireWorker] * 2
    pool.do(actions)
    pool.leave()
    assert pool.scheduler.is_drained


def test_shutdown_lets_what_was_submitted_run() -> None:
    pool = FakePool(1)
    pool.submit(1, 2, 3)
    pool.map(9, 20, n_workers=1)
    pool.shutdown()
    assert not pool.scheduler.is_drained
    pool.run_until_quiet()
    assert len(pool.runs) == 23
    assert pool.scheduler.is_drained


def test_shutdown_does_not_wait_for_workers_that_nobody_needs_any_more() -> None:
    pool = FakePool(2)
    pool.do(pool.scheduler.want_workers(2, pool.now))
    pool.shutdown()
    assert len(pool.leaving) == 2


def test_events_of_workers_that_are_gone_change_nothing() -> None:
    pool = FakePool(1)
    pool.submit(1)
    pool.answer()
    (worker,) = pool.ready
    chunk = pool.chunks[worker][0]
    pool.die_running(worker)
    assert pool.scheduler.items_done(worker, chunk.chunk_id, 1, pool.now) == []
    assert pool.scheduler.worker_ready(worker, pool.now) == []
    assert pool.scheduler.worker_died(worker, None, pool.now) == []
    assert pool.scheduler.chunk(worker, chunk.chunk_id) is None
    assert left(chunk) == [1]


# ---------------------------------------------------------------------- what is taken back


def test_an_idle_worker_takes_what_another_has_not_begun() -> None:
    pool = FakePool(2, cost_model=known(1e-3))
    pool.start(1)
    pool.map(1, 12, n_workers=1)
    (worker,) = pool.ready
    n_before = len(pool.items(worker)[0])
    assert n_before > 1
    pool.do(pool.scheduler.want_workers(2, pool.now))
    pool.answer()
    other = next(w for w in pool.ready if w != worker)
    assert len(pool.items(worker)[0]) < n_before or len(pool.items(worker)) == 1
    assert pool.items(other)
    pool.run_until_quiet()
    assert pool.runs == Counter({(1, i): 1 for i in range(12)})


def test_little_work_is_not_worth_taking_back_until_it_is_overdue() -> None:
    pool = FakePool(2, cost_model=known(1e-6))
    pool.start(2)
    first, second = pool.ready
    pool.map(1, 100, n_workers=1)
    while pool.busy() == [first, second] or pool.busy() == [second, first]:
        pool.finish(second)
    (busy,) = pool.busy()
    (idle,) = pool.idle()
    n_items = sum(map(len, pool.items(busy)))
    assert n_items > 1
    in_s = pool.scheduler.next_tick(pool.now)
    assert in_s is not None
    pool.wait(in_s)
    assert set(pool.busy()) == {busy, idle}
    assert sum(map(len, pool.items(idle))) + sum(map(len, pool.items(busy))) + pool.scheduler.n_waiting(1) == n_items


def test_what_waits_behind_a_stuck_task_is_taken_back_however_little_it_is() -> None:
    model = known(1e-6)
    model.observe("g", 100, 100 * 0.2e-3)
    pool = FakePool(2, cost_model=model)
    pool.start(2)
    pool.submit(1)
    (stuck,) = pool.busy()
    pool.submit(2, key="g")  # the other worker's
    (other,) = set(pool.busy()) - {stuck}
    pool.submit(3, key="g")
    assert pool.items(stuck) == [[1], [3]]
    pool.finish(other)
    in_s = pool.scheduler.next_tick(pool.now)
    assert in_s is not None
    pool.wait(in_s)
    assert pool.items(stuck) == [[1], []]
    assert pool.items(other) == [[3]]


def test_who_asks_too_late_when_to_look_is_told_to_look_at_once() -> None:
    pool = FakePool(2, cost_model=known(1e-6))
    pool.start(1)
    pool.map(1, 4, n_workers=1, chunksize=2)
    (stuck,) = pool.busy()
    assert pool.items(stuck) == [[0, 1], [2, 3]]
    pool.now += 60.0  # the I/O thread did not get the interpreter lock for a while
    assert pool.scheduler.next_tick(pool.now) == 0.0
    pool.wait(0.0)
    pool.answer()
    (other,) = set(pool.busy()) - {stuck}
    assert pool.items(other) == [[2, 3]]


def test_a_chunk_whose_rest_was_taken_ends_when_its_worker_comes_to_that_point() -> None:
    pool = FakePool(2, cost_model=known(1e-3))
    pool.start(1)
    pool.map(1, 12, n_workers=1)
    (worker,) = pool.ready
    pool.do(pool.scheduler.want_workers(2, pool.now))
    pool.answer()
    (chunk,) = [chunk for chunk in pool.chunks[worker] if chunk.awaits_cut]
    while pool.chunks[worker] and chunk in pool.chunks[worker]:
        pool.finish(worker)
    assert chunk.is_over


def test_the_caller_takes_back_from_a_worker_that_has_much() -> None:
    pool = FakePool(1, cost_model=known(0.01))
    pool.start(1)
    pool.map(1, 4, n_workers=1)
    (worker,) = pool.ready
    while pool.scheduler.n_waiting(1):
        pool.scheduler.inline_done(1, len(pool.scheduler.take_inline(1, 1)))
    n_before = sum(map(len, pool.items(worker)))
    pool.do(pool.scheduler.take_for_caller(1, pool.now))
    n_waiting = pool.scheduler.n_waiting(1)
    # What comes back may go to the worker as its next chunk: then the caller asks again when that is done.
    assert n_waiting + sum(map(len, pool.items(worker))) == n_before


def test_chunks_of_a_fixed_size_are_not_taken_apart() -> None:
    pool = FakePool(2, cost_model=known(0.01))
    pool.start(1)
    pool.map(1, 8, n_workers=1, chunksize=8)
    (worker,) = pool.ready
    pool.do(pool.scheduler.want_workers(2, pool.now))
    pool.answer()
    pool.wait(100.0)
    assert pool.items(worker) == [list(range(8))]


def test_giants_go_first_and_alone() -> None:
    pool = FakePool(2, cost_model=known(1e-3))
    pool.start(2)
    pool.scheduler.add_map(1, "f", 100)
    pool.scheduler.pull_ahead(1, [(99, 0.5), (50, 0.9)])
    pool.do(pool.scheduler.release_map(1, 2, pool.now))
    assert [list(action.chunk.items) for action in pool.sent[:2]] == [[50], [99]]
    pool.run_until_quiet()
    assert pool.runs == Counter({(1, i): 1 for i in range(100)})


@pytest.mark.parametrize(("is_helped", "begins_with_giant"), [(False, False), (True, True)])
def test_a_giant_begins_sooner_where_the_caller_helps_with_the_others(is_helped: bool, begins_with_giant: bool) -> None:
    pool = FakePool(1, cost_model=known(1e-3))
    pool.start(1)
    pool.scheduler.add_map(1, "f", 30)
    pool.scheduler.pull_ahead(1, [(29, 10e-3)])  # the others take 29 ms
    pool.do(pool.scheduler.release_map(1, 1, pool.now, is_helped=is_helped))
    assert (list(pool.sent[0].chunk.items) == [29]) == begins_with_giant


def test_long_items_wait_until_they_have_to_begin() -> None:
    pool = FakePool(2, cost_model=known(0.1))
    pool.start(2)
    pool.scheduler.add_map(1, "f", 100)
    pool.scheduler.pull_ahead(1, [(98, 0.9), (99, 1.0)])
    pool.do(pool.scheduler.release_map(1, 2, pool.now))
    pool.run_until_quiet()
    order = [i for action in pool.sent for i in action.chunk.items]
    assert order[0] == 0
    assert order.index(99) < order.index(98) < order.index(97)
    # Each worker had twice as long to do as the longest takes, or a chunk more.
    assert order.index(99) >= 40
    assert pool.runs == Counter({(1, i): 1 for i in range(100)})


def test_the_caller_takes_long_items_when_no_others_are_left() -> None:
    pool = FakePool(1, cost_model=known(0.1))
    pool.scheduler.add_map(1, "f", 6)
    pool.scheduler.pull_ahead(1, [(1, 0.9), (5, 1.0)])
    taken = []
    while pool.scheduler.n_waiting(1):
        following = pool.scheduler.next_item(1)
        items = pool.scheduler.take_inline(1, 2)
        assert items[0] == following
        taken += items
        pool.scheduler.inline_done(1, len(items))
    assert taken == [0, 2, 3, 4, 5, 1]
    assert pool.scheduler.next_item(1) is None
    assert not pool.scheduler.has_map(1)


# ---------------------------------------------------------------------- terms


def submit_with(pool: FakePool, task_id: int, **terms: Any) -> None:
    found = Terms(**terms)
    until = None if found.timeout_s is None else pool.now + found.timeout_s
    pool.do(pool.scheduler.submit(task_id, "f", pool.now, terms=found, until=until))


def test_highest_priority_goes_first_and_equals_in_order() -> None:
    pool = FakePool(1)
    for task_id, priority in enumerate([0, 0, -1, 2, 0, 2]):
        submit_with(pool, task_id, priority=priority)
    pool.answer()
    pool.run_until_quiet()
    assert [send.chunk.items for send in pool.sent] == [[3], [5], [0], [1], [4], [2]]


def test_task_of_a_dead_worker_goes_first_among_its_equals() -> None:
    pool = FakePool(1)
    for task_id in (1, 2):
        submit_with(pool, task_id, priority=1)
    pool.answer()
    submit_with(pool, 3, priority=2)
    pool.die(pool.ready[0])
    pool.answer()
    pool.run_until_quiet()
    assert [send.chunk.items for send in pool.sent] == [[1], [3], [1], [2]]


def test_maps_of_one_priority_take_turns_before_what_is_less_urgent() -> None:
    pool = FakePool(1)
    pool.submit(1)
    pool.answer()
    pool.submit(2)
    pool.map(11, 2, n_workers=1, chunksize=1, terms=Terms(priority=1))
    pool.map(12, 2, n_workers=1, chunksize=1, terms=Terms(priority=1))
    pool.run_until_quiet()
    assert [send.chunk.job_id for send in pool.sent] == [None, 11, 12, 11, 12, None]


def test_task_that_waits_for_longer_than_it_may_leaves_the_queue() -> None:
    pool = FakePool(1)
    pool.start(1)
    pool.submit(1)
    submit_with(pool, 2, timeout_s=5.0)
    pool.submit(3)
    assert pool.scheduler.next_limit() == 5.0
    pool.wait(4.9)
    assert not pool.late
    pool.wait(0.1)
    assert pool.late == [(None, 2)]
    assert pool.scheduler.n_queued == 1
    assert pool.scheduler.next_limit() is None
    pool.run_until_quiet()
    assert set(pool.runs) == {(None, 1), (None, 3)}


def test_worker_of_a_running_task_that_is_late_is_ended_and_replaced() -> None:
    pool = FakePool(1, retries=5)
    pool.start(1)
    (worker_id,) = pool.ready
    submit_with(pool, 1, timeout_s=5.0)
    pool.wait(5.0)
    assert pool.late == [(None, 1)]
    assert worker_id not in pool.ready
    assert len(pool.starting) == 1
    pool.run_until_quiet()
    assert not pool.runs
    assert not pool.failed


def test_late_task_that_its_worker_has_not_begun_costs_no_worker() -> None:
    pool = FakePool(1, cost_model=known(1e-5))
    pool.start(1)
    pool.submit(1)
    submit_with(pool, 2, timeout_s=1.0)
    (worker_id,) = pool.ready
    assert pool.items(worker_id) == [[1], [2]]
    pool.wait(1.0)
    assert pool.late == [(None, 2)]
    assert pool.items(worker_id)[:1] == [[1]]
    pool.run_until_quiet()
    assert pool.ready == [worker_id]
    assert pool.runs == {(None, 1): 1}


def test_running_task_that_nobody_wants_is_ended_with_its_worker() -> None:
    pool = FakePool(1, retries=5)
    pool.start(1)
    (worker_id,) = pool.ready
    pool.submit(1, 2)
    pool.do(pool.scheduler.end_tasks([1], pool.now))
    assert pool.late == [(None, 1)]
    assert worker_id not in pool.ready
    pool.run_until_quiet()
    assert pool.runs == {(None, 2): 1}
    assert not pool.failed


def test_tasks_that_nobody_wants_and_that_have_not_begun_cost_no_worker() -> None:
    pool = FakePool(1, cost_model=known(1e-5))
    pool.start(1)
    pool.submit(1, 2, 3)
    (worker_id,) = pool.ready
    pool.do(pool.scheduler.end_tasks([2, 3], pool.now))
    pool.run_until_quiet()
    assert pool.ready == [worker_id]
    assert pool.runs == {(None, 1): 1}


def test_tasks_that_are_settled_need_no_end() -> None:
    pool = FakePool(1)
    pool.start(1)
    pool.submit(1)
    pool.finish(pool.ready[0])
    assert pool.scheduler.end_tasks([1], pool.now) == []


def test_task_that_ends_in_time_is_not_late() -> None:
    pool = FakePool(1)
    pool.start(1)
    submit_with(pool, 1, timeout_s=5.0)
    pool.finish(pool.ready[0])
    assert pool.scheduler.next_limit() is None
    pool.wait(10.0)
    assert not pool.late


def test_item_of_a_map_may_run_so_long_from_when_it_is_seen() -> None:
    pool = FakePool(1)
    pool.start(1)
    pool.map(1, 3, n_workers=1, chunksize=3, terms=Terms(timeout_s=1.0))
    (worker_id,) = pool.ready
    pool.wait(0.0)
    pool.wait(0.9)
    pool.finish(worker_id, 1)
    pool.wait(0.9)  # the second is seen
    pool.wait(0.9)
    assert not pool.late
    pool.wait(0.1)
    assert pool.late == [(1, 1)]
    pool.run_until_quiet()
    assert pool.runs == {(1, 0): 1, (1, 2): 1}
    assert not pool.scheduler.job_ids()


def test_worker_that_dies_at_work_is_replaced_though_nothing_waits() -> None:
    pool = FakePool(1)
    pool.start(1)
    pool.submit(1)
    pool.die_running(pool.ready[0])
    assert pool.failed == [(None, 1)]
    assert len(pool.starting) == 1


def test_a_caller_that_gives_nothing_back_leaves_all_items_to_come() -> None:
    pool = FakePool(1)
    pool.scheduler.add_map(1, "f", 3)
    assert pool.scheduler.take_inline(1, 1) == range(1)
    pool.scheduler.return_inline(1, range(2, 1))  # it had ended its batch just then
    assert pool.scheduler.take_inline(1, 3) == range(1, 3)


# ---------------------------------------------------------------------- what workers have to load


def loading(load_s: float, item_s: float = 0.01) -> CostModel:
    """A model of a function that workers take long to load."""
    model = known(item_s)
    model.observe_load("f", load_s)
    return model


def test_a_trial_lets_no_more_workers_load_a_function_than_it_says() -> None:
    pool = FakePool(2, cost_model=known(0.01))
    pool.start(2)
    pool.scheduler.add_map(1, "f", 20)
    pool.do(pool.scheduler.release_map(1, 1, pool.now, is_trial=True))
    (first,) = pool.busy()
    pool.wait(1.0)
    assert pool.busy() == [first]
    pool.finish(first, 1)
    pool.do(pool.scheduler.release_map(1, 2, pool.now))
    assert len(pool.busy()) == 2
    pool.run_until_quiet()
    assert pool.runs == Counter({(1, i): 1 for i in range(20)})


def test_who_has_loaded_a_function_gets_its_next_map() -> None:
    pool = FakePool(2, cost_model=loading(10.0))
    pool.start(2)
    pool.map(1, 1, n_workers=1)
    (knowing,) = pool.busy()
    pool.finish(knowing)
    (other,) = set(pool.ready) - {knowing}
    pool.submit(1, 2, key="g")
    pool.finish(knowing)
    pool.finish(other)  # it was idle last, and would be the first to get something
    pool.map(2, 20, n_workers=1)
    assert pool.busy() == [knowing]
    assert pool.scheduler.n_knowing("f") == 1


def test_another_worker_loads_a_function_when_those_that_have_give_nothing_for_as_long() -> None:
    pool = FakePool(2, cost_model=loading(10.0))
    pool.start(2)
    pool.map(1, 20, n_workers=1)
    (stuck,) = pool.busy()
    assert pool.scheduler.next_tick(pool.now) == pytest.approx(10.0, abs=0.1)
    pool.wait(10.1)
    assert len(pool.busy()) == 2
    other = next(w for w in pool.busy() if w != stuck)
    pool.finish(other)
    pool.run_until_quiet()
    assert pool.runs == Counter({(1, i): 1 for i in range(20)})


def test_when_the_next_worker_will_have_loaded_a_function() -> None:
    pool = FakePool(2, cost_model=loading(10.0))
    pool.start(2)
    assert pool.scheduler.load_left_s("f", pool.now) is None
    pool.map(1, 20, n_workers=1)
    assert pool.scheduler.load_left_s("f", pool.now + 4.0) == pytest.approx(6.0)
    assert pool.scheduler.load_left_s("f", pool.now + 13.0) == pytest.approx(3.0)  # late: as long again
    assert pool.scheduler.load_left_s("g", pool.now) is None


def test_the_caller_takes_what_a_worker_that_loads_has_not_begun() -> None:
    pool = FakePool(1, cost_model=loading(10.0))
    pool.n_claimed = 0
    pool.start(1)
    pool.map(1, 1, n_workers=1)
    (worker,) = pool.busy()
    assert pool.scheduler.until_help_s(1, pool.now + 4.0) == pytest.approx(6.0)
    assert pool.scheduler.until_help_s(1, pool.now + 10.005) == 0.0  # it runs its first item
    assert pool.scheduler.until_help_s(1, pool.now + 12.0) == pytest.approx(2.0 - 0.01)
    assert pool.scheduler.n_unbegun(1) == 1  # for all that is known
    (action,) = pool.scheduler.take_for_caller(1, pool.now)
    assert isinstance(action, TakeBack)
    assert pool.scheduler.n_unbegun(1) == 0
    chunk_id = action.chunk.chunk_id
    assert pool.scheduler.taken_back(worker, chunk_id, 1, pool.now) == []
    assert list(pool.scheduler.take_inline(1, 1)) == [0]
    pool.scheduler.inline_done(1, 1)
    assert not pool.scheduler.has_map(1)
    assert pool.scheduler.n_knowing("f") == 0
    pool.scheduler.chunk_cut(worker, chunk_id, pool.now)  # it has loaded the function, and found nothing to run
    assert pool.scheduler.n_knowing("f") == 1


def test_what_a_worker_that_loads_has_is_not_passed_on_to_one_that_must_load_as_well() -> None:
    pool = FakePool(2, cost_model=loading(10.0))
    pool.n_claimed = 0
    pool.start(2)
    pool.map(1, 1, n_workers=2)
    (worker,) = pool.busy()
    pool.wait(5.0)
    assert pool.busy() == [worker]
    assert not any(action for action in pool.sent[1:])


def test_a_worker_that_loads_a_large_library_is_not_taken_for_stuck() -> None:
    pool = FakePool(2, cost_model=known(0.01))
    pool.start(1)
    pool.scheduler.add_map(1, "f", 20)
    pool.do(pool.scheduler.release_map(1, 1, pool.now, is_trial=True))
    pool.wait(8.0)
    assert not pool.starting
    pool.wait(3.0)
    assert pool.starting


def test_what_was_loaded_for_one_function_is_there_for_another() -> None:
    pool = FakePool(1)
    pool.start(1)
    pool.submit(1, key="g")
    pool.finish(pool.ready[0])
    assert (pool.scheduler.n_knowing("g"), pool.scheduler.n_knowing("f")) == (1, 0)
    pool.scheduler.know_alike("f", "g")
    assert pool.scheduler.n_knowing("f") == 1
