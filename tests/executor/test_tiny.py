"""Maps of known, short items: run by their caller at once, unless it does not come, or an item turns out long."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any

import pytest

from amorsize_executor import AmorsizeExecutor, CostModel
from amorsize_executor.dispatcher import _MOST_WATCH_S, _WATCH_S

from . import tasks
from .tools import LIMIT_S, Signal

_SHORT = -1


@pytest.fixture
def known() -> Iterator[AmorsizeExecutor]:
    """An executor that knows `_by_number` to be short; its one worker has loaded it."""
    with AmorsizeExecutor(max_workers=1, min_workers=1, cost_model=CostModel()) as executor:
        executor.submit(_by_number, _SHORT).result(LIMIT_S)
        _learn(executor, _by_number, _SHORT)
        yield executor


def _learn(executor: AmorsizeExecutor, fn: Callable[[Any], Any], item: object) -> None:
    for _ in range(2):
        assert len(list(executor.map(fn, [item] * 50))) == 50


_signals: dict[int, Signal] = {}


def _by_number(i: int) -> int:
    """Short, but for what the test has set here; workers have nothing set."""
    if i == 0 and os.getpid() == _owner and i in _signals:
        _signals[i].take()
    return os.getpid()


_owner = os.getpid()


def test_a_tiny_map_runs_in_the_calling_thread_and_tells_its_plan(known: AmorsizeExecutor) -> None:
    results = known.map(_by_number, range(20))
    plan = known.last_plan
    assert plan is not None
    assert plan.is_serial
    assert plan.n_items == 20
    assert plan.actual_s is None
    assert set(results) == {os.getpid()}
    plan = known.last_plan
    assert plan is not None
    assert plan.n_inline == 20
    assert plan.actual_s is not None
    assert [span.n_items for span in plan.timeline] == [20]


def test_tiny_maps_with_several_arguments_stop_with_the_shortest() -> None:
    with AmorsizeExecutor(max_workers=1, cost_model=CostModel()) as executor:
        for _ in range(3):
            assert list(executor.map(tasks.add, [1, 2, 3], (10, 20))) == [11, 22]


def test_an_error_in_a_tiny_map_comes_in_its_place_and_ends_it() -> None:
    with AmorsizeExecutor(max_workers=1, cost_model=CostModel()) as executor:
        _learn(executor, partial(tasks.fail_on, -1), 0)
        fails = partial(tasks.fail_on, 2)
        for _ in range(3):
            results = executor.map(fails, range(5))
            assert [next(results), next(results)] == [0, 1]
            with pytest.raises(ValueError, match="2 is bad"):
                next(results)
            assert list(results) == []


def test_results_of_a_tiny_map_may_be_closed(known: AmorsizeExecutor) -> None:
    results = known.map(_by_number, range(20))
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert list(results) == []


def test_items_behind_a_long_one_go_to_a_worker(known: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> None:
    _signals[0] = make_signal()
    items = [0, *range(1, 10)]
    found: list[int] = []
    try:
        thread = threading.Thread(target=lambda: found.extend(known.map(_by_number, items)))
        thread.start()
        while not _is_handed_over(known):
            pass
        _signals[0].give()
        thread.join(LIMIT_S)
    finally:
        del _signals[0]
    assert found[0] == os.getpid()
    assert set(found[1:]) - {os.getpid()}
    assert len(found) == 10
    plan = known.last_plan
    assert plan is not None
    assert plan.n_items == 10


def _is_handed_over(executor: AmorsizeExecutor) -> bool:
    plan = executor.last_plan
    return plan is not None and not plan.is_serial


def test_a_tiny_map_whose_caller_does_not_come_runs_in_a_worker(
    known: AmorsizeExecutor, make_signal: Callable[[], Signal]
) -> None:
    ran = make_signal()
    give = partial(tasks.give, ran)
    _learn(known, give, 1)
    ran.count()
    results = known.map(give, range(10))
    ran.take(10)
    assert list(results) == list(range(10))


def test_a_shutdown_runs_tiny_maps_that_nobody_has_begun(make_signal: Callable[[], Signal]) -> None:
    ran = make_signal()
    with AmorsizeExecutor(max_workers=1, cost_model=CostModel()) as executor:
        give = partial(tasks.give, ran)
        _learn(executor, give, 1)
        ran.count()
        results = executor.map(give, range(10))
    assert ran.count() == 10
    assert list(results) == list(range(10))
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.map(give, range(10))


def test_a_shutdown_that_cancels_cancels_tiny_maps(known: AmorsizeExecutor) -> None:
    results = known.map(_by_number, range(10))
    known.shutdown(cancel_futures=True)
    with pytest.raises(CancelledError):
        list(results)


def test_killed_workers_break_tiny_maps_like_others(known: AmorsizeExecutor) -> None:
    results = known.map(_by_number, range(10))
    known.kill_workers()
    with pytest.raises(BrokenProcessPool):
        list(results)


def test_a_function_with_state_is_pickled_once_for_each_map(known: AmorsizeExecutor) -> None:
    fn = _Stateful()
    for _ in range(3):
        before = _Stateful.n_pickled
        assert list(known.map(fn, range(10))) == list(range(10))
        assert _Stateful.n_pickled - before == 1


class _Stateful:
    n_pickled = 0

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, x: int) -> int:
        return x

    def __getstate__(self) -> dict[str, Any]:
        type(self).n_pickled += 1
        return self.__dict__


def test_many_threads_may_run_tiny_maps(known: AmorsizeExecutor) -> None:
    counts: list[int] = []

    def run() -> None:
        counts.append(sum(len(list(known.map(_by_number, range(20)))) for _ in range(50)))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert counts == [1000] * 8


def test_tiny_maps_are_looked_after_less_and_less_often_and_others_often_at_once(known: AmorsizeExecutor) -> None:
    engine = known._dispatcher
    while engine.watch_s != _MOST_WATCH_S:
        list(known.map(_by_number, [_SHORT] * 5))
    held = known.map(_by_number, map(int, [_SHORT] * 5))  # a generator: no tiny map
    assert engine.watch_s == _WATCH_S
    assert len(list(held)) == 5
    while engine.watch_s is not None:  # until there was nobody to look after, some times
        threading.Event().wait(1e-3)
