"""Views on an executor: time limits, retries, priorities and a bound on what waits."""

from __future__ import annotations

import concurrent.futures
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from pathlib import Path
from typing import Any

import pytest

from amorsize_executor import AmorsizeExecutor, CostModel, QueueFull, TaskTimeout, WorkerDied

from ..faults.tasks import Deadly, count_notes, hang_with_child, note_and_hang_at, noted, pid, square, tell_and_wait
from .tools import LIMIT_S, Signal, wait_for_end

#: Long enough for a worker to start and begin a task, and short for a test, in seconds.
SHORT_S = 0.3


@pytest.fixture
def one() -> Iterator[AmorsizeExecutor]:
    """An executor with one worker, which is ready, and that knows no function of other tests."""
    with AmorsizeExecutor(1, inline="never", cost_model=CostModel()) as executor:
        executor.submit(pid).result(LIMIT_S)
        yield executor


@pytest.fixture
def notes(tmp_path: Path) -> str:
    return str(tmp_path / "notes")


class Held:
    """Keeps the worker of an executor busy until told."""

    def __init__(self, executor: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> None:
        started, self._go = make_signal(), make_signal()
        self.future: Future[Any] = executor.submit(tell_and_wait, started, self._go)
        started.take()

    def end(self) -> None:
        self._go.give()


# ---------------------------------------------------------------------- timeout


def test_task_in_time_gives_its_result(one: AmorsizeExecutor) -> None:
    assert one.options(timeout=LIMIT_S).submit(square, 3).result(LIMIT_S) == 9


def test_running_task_over_its_time_is_killed_with_its_children_and_its_worker_replaced(
    one: AmorsizeExecutor, notes: str
) -> None:
    worker = one.submit(pid).result(LIMIT_S)
    future = one.options(timeout=SHORT_S).submit(hang_with_child, notes)
    error = future.exception(LIMIT_S)
    assert isinstance(error, TaskTimeout)
    assert isinstance(error, TimeoutError)
    assert isinstance(error, concurrent.futures.TimeoutError)
    assert "hang_with_child" in str(error)
    assert f"{SHORT_S:g} s" in str(error)
    assert str(worker) in str(error)
    assert one.submit(pid).result(LIMIT_S) != worker
    wait_for_end(worker)
    (child,) = count_notes(notes)
    wait_for_end(child)


def test_waiting_task_over_its_time_leaves_the_queue_and_harms_nobody(
    one: AmorsizeExecutor, make_signal: Callable[[], Signal], notes: str
) -> None:
    held = Held(one, make_signal)
    late = one.options(timeout=SHORT_S).submit(noted, notes, 1)
    after = one.submit(noted, notes, 2)
    error = late.exception(LIMIT_S)
    assert isinstance(error, TaskTimeout)
    assert "waiting" in str(error)
    held.end()
    assert held.future.result(LIMIT_S) is None
    assert after.result(LIMIT_S) == 4
    assert count_notes(notes) == {2: 1}


def test_tasks_behind_a_late_one_run_once_elsewhere(one: AmorsizeExecutor, notes: str) -> None:
    for _ in range(20):
        one.submit(noted, notes, -1).result(LIMIT_S)  # is known to be short, so that others join its chunk
    late = one.options(timeout=SHORT_S).submit(note_and_hang_at, notes, 100, 100)
    others = [one.submit(noted, notes, x) for x in range(50)]
    assert isinstance(late.exception(LIMIT_S), TaskTimeout)
    assert [future.result(LIMIT_S) for future in others] == [x * x for x in range(50)]
    assert count_notes(notes) == {-1: 20, 100: 1} | dict.fromkeys(range(50), 1)


def test_many_late_tasks_cost_none_of_the_others(notes: str) -> None:
    with AmorsizeExecutor(2, inline="never") as executor:
        executor.submit(pid).result(LIMIT_S)
        limited = executor.options(timeout=SHORT_S)
        late = [limited.submit(note_and_hang_at, notes, 1000 + i, 1000 + i) for i in range(4)]
        futures = [executor.submit(noted, notes, x) for x in range(200)]
        assert all(isinstance(future.exception(LIMIT_S), TaskTimeout) for future in late)
        assert [future.result(LIMIT_S) for future in futures] == [x * x for x in range(200)]
        executed = count_notes(notes)
        assert all(executed[x] == 1 for x in range(200))


def test_late_task_does_not_run_again_however_many_retries(one: AmorsizeExecutor, notes: str) -> None:
    future = one.options(timeout=SHORT_S, retries=3).submit(note_and_hang_at, notes, 1, 1)
    assert isinstance(future.exception(LIMIT_S), TaskTimeout)
    assert one.submit(square, 2).result(LIMIT_S) == 4
    assert count_notes(notes) == {1: 1}


def test_item_of_a_map_over_its_time_fails_in_its_place(one: AmorsizeExecutor, notes: str) -> None:
    results = one.options(timeout=SHORT_S).map(note_and_hang_at, [notes] * 20, range(20), [7] * 20)
    got = []
    with pytest.raises(TaskTimeout, match="item 7 "):
        got.extend(results)  # keeps what came before the error
    assert got == [x * x for x in range(7)]
    assert list(one.map(square, range(20))) == [x * x for x in range(20)]


def test_other_items_of_that_map_run_once(one: AmorsizeExecutor, notes: str) -> None:
    view = one.options(timeout=SHORT_S)
    results = view.map(note_and_hang_at, [notes] * 20, range(20), [7] * 20, ordered=False)
    values = []
    for _ in range(20):
        try:
            values.append(next(results))
        except TaskTimeout:
            break
    one.submit(pid).result(LIMIT_S)
    executed = count_notes(notes)
    assert executed[7] == 1
    assert max(executed.values()) == 1
    assert set(values) <= {x * x for x in range(20) if x != 7}


def test_map_with_a_time_limit_runs_in_workers() -> None:
    with AmorsizeExecutor(1) as executor:
        assert set(executor.options(timeout=LIMIT_S).map(pid, range(3))).isdisjoint({os.getpid()})


def test_time_of_a_map_is_counted_for_each_item(one: AmorsizeExecutor) -> None:
    n_items, item_s = 6, SHORT_S / 2
    assert list(one.options(timeout=2 * SHORT_S).map(time.sleep, [item_s] * n_items, chunksize=n_items)) == [None] * 6


# ---------------------------------------------------------------------- retries


def test_retries_of_a_view_are_its_own(one: AmorsizeExecutor, tmp_path: Path, notes: str) -> None:
    dies_once = Deadly(notes, {5}, once=str(tmp_path / "once"))
    assert one.options(retries=1).submit(dies_once, 5).result(LIMIT_S) == 25
    assert isinstance(one.submit(Deadly(notes, {6}, once=str(tmp_path / "once")), 6).exception(LIMIT_S), WorkerDied)
    with pytest.raises(WorkerDied):
        list(one.options(retries=0).map(Deadly(notes, {7}, once=str(tmp_path / "once")), [7]))
    dies_once = Deadly(notes, {8}, once=str(tmp_path / "once"))
    assert list(one.options(retries=1).map(dies_once, [8])) == [64]


# ---------------------------------------------------------------------- priority


def test_higher_priority_goes_first_and_equals_in_order(
    one: AmorsizeExecutor, make_signal: Callable[[], Signal], tmp_path: Path
) -> None:
    path = tmp_path / "order"
    held = Held(one, make_signal)
    low, high = one.options(priority=-1), one.options(priority=5)
    futures = [
        view.submit(append, str(path), x) for x, view in enumerate([low, one, high, one, low, high, one.options()])
    ]
    held.end()
    wait(futures, LIMIT_S)
    assert path.read_text().split() == ["2", "5", "1", "3", "6", "0", "4"]


def test_map_of_a_higher_priority_goes_before_what_was_submitted(
    one: AmorsizeExecutor, make_signal: Callable[[], Signal], tmp_path: Path
) -> None:
    path = str(tmp_path / "order")
    held = Held(one, make_signal)
    future = one.submit(append, path, 100)
    results = one.options(priority=1).map(append, [path] * 3, range(3), chunksize=1)
    held.end()
    assert list(results) == [None] * 3
    future.result(LIMIT_S)
    assert Path(path).read_text().split() == ["0", "1", "2", "100"]


def append(path: str, x: int) -> None:
    with open(path, "a") as file:
        file.write(f"{x} ")


# ---------------------------------------------------------------------- max_pending


def test_full_queue_raises_at_once_and_takes_work_again_later(
    one: AmorsizeExecutor, make_signal: Callable[[], Signal]
) -> None:
    held = Held(one, make_signal)
    bounded = one.options(max_pending=2, when_full="raise")
    accepted = [bounded.submit(square, x) for x in range(2)]
    with pytest.raises(QueueFull, match="max_pending=2") as caught:
        bounded.submit(square, 2)
    assert isinstance(caught.value, queue.Full)
    assert one.submit(square, 4) is not None  # others have other bounds
    held.end()
    assert [future.result(LIMIT_S) for future in accepted] == [0, 1]
    assert bounded.submit(square, 3).result(LIMIT_S) == 9


def test_full_queue_blocks_until_there_is_room(one: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> None:
    held = Held(one, make_signal)
    bounded = one.options(max_pending=3)
    futures: queue.SimpleQueue[Future[int]] = queue.SimpleQueue()
    producers = [
        threading.Thread(target=lambda x=x: [futures.put(bounded.submit(square, x)) for _ in range(10)])
        for x in range(4)
    ]
    for producer in producers:
        producer.start()
    got = [futures.get(timeout=LIMIT_S) for _ in range(3)]
    assert futures.empty()
    held.end()
    got += [futures.get(timeout=LIMIT_S) for _ in range(37)]
    for producer in producers:
        producer.join()
    assert sorted(future.result(LIMIT_S) for future in got) == sorted([0, 1, 4, 9] * 10)


def test_time_in_front_of_a_full_queue_counts(one: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> None:
    held = Held(one, make_signal)
    first = one.submit(square, 1)
    late = one.options(max_pending=1, timeout=SHORT_S).submit(square, 2)
    assert isinstance(late.exception(0), TaskTimeout)
    held.end()
    assert first.result(LIMIT_S) == 1


def test_shutdown_releases_who_waits_for_room(make_signal: Callable[[], Signal]) -> None:
    executor = AmorsizeExecutor(1)
    held = Held(executor, make_signal)
    executor.submit(square, 1)
    refused: queue.SimpleQueue[BaseException] = queue.SimpleQueue()

    def submit() -> None:
        try:
            executor.options(max_pending=1).submit(square, 2)
        except RuntimeError as error:
            refused.put(error)

    thread = threading.Thread(target=submit)
    thread.start()
    executor.shutdown(wait=False)
    assert "shutdown" in str(refused.get(timeout=LIMIT_S))
    held.end()
    thread.join()
    executor.shutdown()


def test_callback_may_submit_to_a_full_queue(one: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> None:
    """It runs in the thread that makes room: to wait there would be for ever."""
    held = Held(one, make_signal)
    bounded = one.options(max_pending=1)
    waiting = bounded.submit(square, 1)
    later: queue.SimpleQueue[Future[int]] = queue.SimpleQueue()
    held.future.add_done_callback(lambda _: [one.submit(square, 5), later.put(bounded.submit(square, 2))])
    held.end()
    assert waiting.result(LIMIT_S) == 1
    assert later.get(timeout=LIMIT_S).result(LIMIT_S) == 4


# ---------------------------------------------------------------------- views


def test_view_is_an_executor_over_the_same_workers(one: AmorsizeExecutor) -> None:
    view = one.options(priority=1)
    assert isinstance(view, concurrent.futures.Executor)
    assert view.submit(pid).result(LIMIT_S) == one.submit(pid).result(LIMIT_S)
    assert view.max_workers == 1
    assert view.cost_model is one.cost_model
    assert list(view.map(square, range(3))) == [0, 1, 4]
    assert view.last_plan is one.last_plan
    assert view.is_open


def test_shutdown_of_a_view_waits_for_its_own_and_leaves_the_executor(
    one: AmorsizeExecutor, make_signal: Callable[[], Signal]
) -> None:
    held = Held(one, make_signal)
    view = one.options(priority=1)
    cancelled = view.submit(square, 2)
    view.shutdown(wait=False, cancel_futures=True)
    assert not view.is_open
    with pytest.raises(CancelledError):
        cancelled.result(0)
    with pytest.raises(RuntimeError, match="view"):
        view.submit(square, 2)
    with pytest.raises(RuntimeError, match="view"):
        view.map(square, [2])
    held.end()
    with one.options() as other:
        future = other.submit(square, 3)
    assert future.done()
    assert one.submit(square, 4).result(LIMIT_S) == 16


def test_view_keeps_its_executor_alive() -> None:
    view = AmorsizeExecutor(1).options()
    with view:
        assert view.submit(square, 3).result(LIMIT_S) == 9


def test_view_of_an_executor_that_was_shut_down_takes_nothing() -> None:
    with AmorsizeExecutor(1) as executor:
        view = executor.options()
    with pytest.raises(RuntimeError, match="shutdown"):
        view.submit(square, 3)
    assert not view.is_open


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (TypeError, {"timeout": "1"}),
        (ValueError, {"timeout": -1}),
        (ValueError, {"timeout": float("nan")}),
        (ValueError, {"retries": -1}),
        (TypeError, {"priority": 0.5}),
        (TypeError, {"priority": None}),
        (ValueError, {"max_pending": 0}),
        (TypeError, {"max_pending": 2.0}),
        (ValueError, {"when_full": "drop"}),
    ],
)
def test_wrong_options_are_told(one: AmorsizeExecutor, error: type[Exception], options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(error, match=name):
        one.options(**options)
