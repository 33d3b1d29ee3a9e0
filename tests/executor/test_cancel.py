"""`AmorsizeExecutor.cancel`: tasks that nobody wants any more, whether they run or not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from typing import Any

import pytest

from amorsize_executor import AmorsizeExecutor, CostModel

from .tasks import pause, pid, square
from .tools import LIMIT_S, Signal


@pytest.fixture
def one() -> Iterator[AmorsizeExecutor]:
    with AmorsizeExecutor(1, inline="never", cost_model=CostModel()) as executor:
        executor.submit(pid).result(LIMIT_S)
        yield executor


def test_running_task_is_ended_and_its_worker_replaced(
    one: AmorsizeExecutor, make_signal: Callable[[], Signal]
) -> None:
    before = one.submit(pid).result(LIMIT_S)
    started = make_signal()
    held = one.submit(pause, started, make_signal())
    started.take()
    other = one.submit(pid)
    one.cancel([held])
    with pytest.raises(CancelledError):
        held.result(LIMIT_S)
    assert other.result(LIMIT_S) != before
    assert one.stats().tasks_cancelled == 1


def test_tasks_that_wait_are_cancelled_and_cost_no_worker(
    one: AmorsizeExecutor, make_signal: Callable[[], Signal]
) -> None:
    before = one.submit(pid).result(LIMIT_S)
    started, go = make_signal(), make_signal()
    held = one.submit(pause, started, go, 7)
    waiting = [one.submit(square, x) for x in range(50)]
    started.take()
    one.cancel(waiting)
    assert all(isinstance(future.exception(LIMIT_S), CancelledError) for future in waiting if not future.cancelled())
    go.give()
    assert held.result(LIMIT_S) == 7
    assert one.submit(pid).result(LIMIT_S) == before
    assert one.stats().tasks_cancelled == 50


def test_tasks_that_are_done_stay_as_they_are(one: AmorsizeExecutor) -> None:
    done = one.submit(square, 3)
    assert done.result(LIMIT_S) == 9
    one.cancel([done])
    one.cancel([])
    assert done.result() == 9
    assert one.submit(square, 4).result(LIMIT_S) == 16


def test_futures_of_others_are_only_cancelled(one: AmorsizeExecutor) -> None:
    future: Future[Any] = Future()
    one.cancel([future])
    assert future.cancelled()
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(square, 3)
        assert other.result(LIMIT_S) == 9
        one.cancel([other])
        assert other.result() == 9


@pytest.mark.parametrize("n_ended", [1, 10, 40])
def test_every_task_is_settled_whatever_is_cancelled_meanwhile(n_ended: int) -> None:
    with AmorsizeExecutor(2, inline="never") as executor:
        for _ in range(10):
            futures = [executor.submit(square, x) for x in range(40)]
            executor.cancel(futures[:n_ended])
            assert not wait(futures, LIMIT_S).not_done
            for x, future in enumerate(futures):
                if future.cancelled() or isinstance(future.exception(LIMIT_S), CancelledError):
                    assert x < n_ended
                else:
                    assert future.result() == x * x


def test_with_options_too(one: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> None:
    view = one.options(timeout=LIMIT_S, retries=3)
    started = make_signal()
    held = view.submit(pause, started, make_signal())
    started.take()
    view.cancel([held])
    with pytest.raises(CancelledError):
        held.result(LIMIT_S)
    assert started.count() == 0, "it does not run again"
    assert one.submit(os.getpid).result(LIMIT_S) > 0
