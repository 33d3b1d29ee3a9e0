"""From when on a worker is told to be stuck."""

from __future__ import annotations

from amorsize_executor.decisions.health import START_S, TASK_S, is_stuck

from .fake_pool import FakePool


def test_a_task_is_stuck_after_twenty_times_what_its_function_takes() -> None:
    assert not is_stuck("task", 1990.0, 100.0, 0.0)
    assert is_stuck("task", 2010.0, 100.0, 0.0)


def test_a_short_task_is_not_stuck_before_people_would_look() -> None:
    assert not is_stuck("task", TASK_S - 1, 1e-6, 0.0)
    assert is_stuck("task", TASK_S + 1, 1e-6, 0.0)


def test_a_task_of_an_unknown_function_is_stuck_when_it_waits_for_long() -> None:
    assert not is_stuck("task", 1e9, None, 0.0)
    assert not is_stuck("task", 1e9, None, TASK_S - 1)
    assert is_stuck("task", 1e9, None, TASK_S + 1)


def test_starts_that_do_not_end_are_stuck() -> None:
    assert not is_stuck("start", START_S - 1, 0.05, 0.0)
    assert is_stuck("start", START_S + 1, 0.05, 0.0)


def test_slow_starts_are_no_stuck_ones_where_all_are_slow() -> None:
    assert not is_stuck("start", 100.0, 20.0, 0.0)


def test_views_tell_what_workers_do_and_since_when() -> None:
    pool = FakePool(1, max_tasks_per_child=2)
    pool.now = 5.0
    pool.submit(1)
    (view,) = pool.scheduler.worker_views()
    assert (view.state, view.since, view.item) == ("starting", 5.0, None)
    pool.now = 6.0
    pool.answer()
    (view,) = pool.scheduler.worker_views()
    assert (view.state, view.since, view.item, view.expected_s) == ("busy", 6.0, (None, 1), None)
    pool.now = 7.0
    pool.finish(view.worker_id, item_s=1.0)
    (view,) = pool.scheduler.worker_views()
    assert (view.state, view.since, view.item, view.leaves_because) == ("idle", 7.0, None, None)
    pool.submit(2)
    view = pool.scheduler.worker_views()[0]
    assert (view.state, view.expected_s, view.leaves_because) == ("busy", 1.0, "max_tasks_per_child")
