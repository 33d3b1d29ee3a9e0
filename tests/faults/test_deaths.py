"""A worker dies: its running task fails, and nothing else does."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import psutil
import pytest

from amorsize_executor import AmorsizeExecutor, WorkerDied

from ..executor.tools import LIMIT_S, Signal, wait_for_end
from .tasks import (
    AlarmError,
    Deadly,
    DiesWhenPickled,
    DiesWhenUnpickled,
    close_all_descriptors,
    count_notes,
    die,
    fork_a_long_lived_child,
    fork_and_return,
    identity,
    large_and_deadly,
    make,
    no_more_alarms,
    note,
    noted,
    pid,
    square,
    tell_and_wait,
    tiny,
    tiny_changing,
    tiny_list,
    tiny_mixed,
    tiny_with_alarms,
    total,
)

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def executor() -> Iterator[AmorsizeExecutor]:
    with AmorsizeExecutor(2, inline="never") as shared:
        yield shared


@pytest.fixture(autouse=True)
def _no_process_is_left_behind() -> None:
    """Here the executor outlives a test."""


def assert_usable(executor: AmorsizeExecutor) -> None:
    futures = [executor.submit(square, x) for x in range(50)]
    assert [future.result(LIMIT_S) for future in futures] == [x * x for x in range(50)]
    assert list(executor.map(square, range(50))) == [x * x for x in range(50)]


# ---------------------------------------------------------------------- what the culprit is told


@pytest.mark.parametrize(
    ("how", "exitcode"),
    [("SIGKILL", -signal.SIGKILL), ("SIGTERM", -signal.SIGTERM), ("abort", -signal.SIGABRT), ("exit", 3)],
)
def test_death_is_told_with_pid_and_exit_status(executor: AmorsizeExecutor, how: str, exitcode: int) -> None:
    error = executor.submit(die, how).exception(LIMIT_S)
    assert isinstance(error, WorkerDied)
    assert isinstance(error, BrokenProcessPool)
    assert error.exitcode == exitcode
    assert isinstance(error.pid, int)
    assert str(error.pid) in str(error)
    assert not psutil.pid_exists(error.pid)
    assert_usable(executor)


def test_segfault_is_told_with_the_traceback_of_the_worker(executor: AmorsizeExecutor) -> None:
    error = executor.submit(die, "segfault").exception(LIMIT_S)
    assert isinstance(error, WorkerDied)
    assert error.exitcode == -signal.SIGSEGV
    assert "SIGSEGV" in str(error)
    assert "tasks.py" in str(error.__cause__)
    assert " in die" in str(error.__cause__)
    assert_usable(executor)


# ---------------------------------------------------------------------- single tasks


def test_other_tasks_of_other_workers_go_on(
    executor: AmorsizeExecutor, make_signal: Callable[[], Signal], notes: str
) -> None:
    started, go = make_signal(), make_signal()
    other = executor.submit(tell_and_wait, started, go, "fine")
    started.take()
    with pytest.raises(WorkerDied):
        executor.submit(die, "SIGKILL").result(LIMIT_S)
    after = executor.submit(noted, notes, 7)
    assert after.result(LIMIT_S) == 49
    go.give()
    assert other.result(LIMIT_S) == "fine"
    assert count_notes(notes) == {7: 1}


def test_idle_worker_may_be_killed(executor: AmorsizeExecutor) -> None:
    for _ in range(5):
        victim = executor.submit(pid).result(LIMIT_S)
        os.kill(victim, signal.SIGKILL)  # the next task may be on its way to it before its end is known
        assert executor.submit(square, 3).result(LIMIT_S) == 9
        wait_for_end(victim)


@pytest.mark.parametrize("n", [1, 3, 30, 400])
@pytest.mark.parametrize("seconds", [0.0, 0.001])
def test_only_the_culprits_among_many_submits_fail(
    executor: AmorsizeExecutor, notes: str, n: int, seconds: float
) -> None:
    deadly = {n // 2, n - 1}
    run = Deadly(notes, deadly, seconds)
    futures = [executor.submit(run, x) for x in range(n)]
    assert not wait(futures, LIMIT_S).not_done
    failed = {x for x, future in enumerate(futures) if isinstance(future.exception(), WorkerDied)}
    assert failed == deadly
    assert all(future.result() == x * x for x, future in enumerate(futures) if x not in deadly)
    assert count_notes(notes) == dict.fromkeys(range(n), 1)
    assert_usable(executor)


@pytest.mark.parametrize("function", [tiny, tiny_list, tiny_mixed, tiny_changing])
def test_tiny_tasks_that_run_in_groups_are_told_apart(
    executor: AmorsizeExecutor, function: Callable[[int], object]
) -> None:
    for _ in range(2):  # it must be known to be short
        assert not wait([executor.submit(function, x) for x in range(600)], LIMIT_S).not_done
    arguments = [-1 if x % 500 == 250 else x for x in range(1500)]
    futures = [executor.submit(function, x) for x in arguments]
    assert not wait(futures, LIMIT_S).not_done
    for x, future in zip(arguments, futures, strict=True):
        if x == -1:
            assert isinstance(future.exception(), WorkerDied)
        else:
            assert repr(future.result()) == repr(function(x))


@pytest.mark.parametrize("function", [tiny, tiny_list, tiny_mixed, tiny_changing])
def test_tiny_items_before_the_culprit_of_a_chunk_have_results(
    executor: AmorsizeExecutor, function: Callable[[int], object]
) -> None:
    list(executor.map(function, range(600)))
    for culprit in (1000, 1001, 1777, 1999):
        arguments = [-1 if x == culprit else x for x in range(3000)]
        coming = executor.map(function, arguments, chunksize=1000)
        results = [next(coming) for _ in range(culprit)]
        with pytest.raises(WorkerDied):
            next(coming)
        assert list(map(repr, results)) == [repr(function(x)) for x in range(culprit)]


def test_a_fork_in_a_group_of_tiny_tasks_runs_none_of_the_others(executor: AmorsizeExecutor) -> None:
    list(executor.map(tiny, range(600)))
    arguments = [-2 if x % 100 == 50 else x for x in range(1000)]
    assert list(executor.map(tiny, arguments, chunksize=500)) == arguments
    assert [f.result(LIMIT_S) for f in [executor.submit(tiny, x) for x in arguments]] == arguments


def test_a_signal_handler_that_raises_costs_the_task_that_it_interrupts_and_changes_no_other() -> None:
    with AmorsizeExecutor(1) as executor:
        futures = [executor.submit(tiny_with_alarms, x) for x in range(30_000)]
        for x, future in enumerate(futures):
            error = future.exception(LIMIT_S)
            assert isinstance(error, AlarmError) if error is not None else future.result() == x
        executor.submit(no_more_alarms).result(LIMIT_S)


def test_retries_run_the_culprit_again_and_nothing_else(notes: str, tmp_path: Path) -> None:
    n, deadly = 100, {0, 17, 63, 99}
    run = Deadly(notes, deadly, 1e-4, once=str(tmp_path / "died"))
    with AmorsizeExecutor(2, retries=1) as executor:
        futures = [executor.submit(run, x) for x in range(n)]
        assert [future.result(LIMIT_S) for future in futures] == [x * x for x in range(n)]
    assert count_notes(notes) == {x: 1 + (x in deadly) for x in range(n)}


def test_a_task_that_always_kills_its_worker_is_retried_as_often_as_allowed(notes: str) -> None:
    with AmorsizeExecutor(1, retries=2) as executor:
        error = executor.submit(Deadly(notes, {5}), 5).exception(LIMIT_S)
        assert isinstance(error, WorkerDied)
        assert count_notes(notes) == {5: 3}
        assert_usable(executor)


# ---------------------------------------------------------------------- chunks of maps


@pytest.mark.parametrize(
    ("n", "seconds", "chunksize"),
    [(200, 0.0, None), (200, 0.0, 50), (200, 0.001, None), (200, 0.001, 64), (16, 0.05, None), (16, 0.05, 4)],
)
def test_a_map_loses_and_repeats_nothing_but_the_culprit(
    notes: str, tmp_path: Path, n: int, seconds: float, chunksize: int | None
) -> None:
    deadly = {0, n // 3, n // 3 + 1, n - 1}
    run = Deadly(notes, deadly, seconds, once=str(tmp_path / "died"))
    with AmorsizeExecutor(2, retries=1, inline="never") as executor:
        assert list(executor.map(run, range(n), chunksize=chunksize)) == [x * x for x in range(n)]
        assert_usable(executor)
    assert count_notes(notes) == {x: 1 + (x in deadly) for x in range(n)}


@pytest.mark.parametrize("chunksize", [None, 16])
def test_a_map_gives_what_came_before_the_culprit(
    executor: AmorsizeExecutor, notes: str, chunksize: int | None
) -> None:
    results = executor.map(Deadly(notes, {20}), range(100), chunksize=chunksize)
    assert [next(results) for _ in range(20)] == [x * x for x in range(20)]
    with pytest.raises(WorkerDied):
        next(results)
    with pytest.raises(StopIteration):
        next(results)
    assert set(count_notes(notes).values()) == {1}
    assert_usable(executor)


def test_an_unordered_map_loses_only_the_culprit(notes: str, tmp_path: Path) -> None:
    run = Deadly(notes, {40}, 0.001, once=str(tmp_path / "died"))
    with AmorsizeExecutor(2, retries=1, inline="never") as executor:
        assert sorted(executor.map(run, range(200), ordered=False)) == [x * x for x in range(200)]
    assert count_notes(notes) == {x: 1 + (x == 40) for x in range(200)}


def test_a_map_that_is_read_lazily_survives_deaths(notes: str, tmp_path: Path) -> None:
    deadly = {3, 30, 31, 79}
    run = Deadly(notes, deadly, once=str(tmp_path / "died"))
    with AmorsizeExecutor(2, retries=1, inline="never") as executor:
        assert list(executor.map(run, iter(range(80)), buffersize=8)) == [x * x for x in range(80)]
    assert count_notes(notes) == {x: 1 + (x in deadly) for x in range(80)}


# ---------------------------------------------------------------------- on the way in and out


@pytest.mark.parametrize("how", ["SIGKILL", "exit", "segfault"])
def test_arguments_may_kill_while_they_are_unpickled(executor: AmorsizeExecutor, how: str) -> None:
    futures = [executor.submit(identity, x) for x in ([1], [2], DiesWhenUnpickled(how), [3], [4])]
    assert isinstance(futures[2].exception(LIMIT_S), WorkerDied)
    assert [futures[i].result(LIMIT_S) for i in (0, 1, 3, 4)] == [[1], [2], [3], [4]]


def test_a_function_may_kill_while_it_is_unpickled(executor: AmorsizeExecutor) -> None:
    deadly = DiesWhenUnpickled("SIGKILL")
    functions = [lambda x, y=[y]: (x, y) for y in ("fine", deadly, "fine too")]  # one code, three captured objects
    for _ in range(30):  # they are known to be short
        executor.submit(functions[0], 0).result(LIMIT_S)
    futures = [executor.submit(f, x) for x, f in enumerate(functions)]
    assert isinstance(futures[1].exception(LIMIT_S), WorkerDied)
    assert futures[0].result(LIMIT_S) == (0, ["fine"])
    assert futures[2].result(LIMIT_S) == (2, ["fine too"])


def test_a_result_may_kill_while_it_is_pickled(executor: AmorsizeExecutor) -> None:
    error = executor.submit(make, DiesWhenPickled).exception(LIMIT_S)
    assert isinstance(error, WorkerDied)
    assert error.exitcode == 4
    assert_usable(executor)


def test_a_worker_may_die_while_it_stores_a_large_result(executor: AmorsizeExecutor) -> None:
    futures = [executor.submit(large_and_deadly)] + [executor.submit(square, x) for x in range(20)]
    assert isinstance(futures[0].exception(LIMIT_S), WorkerDied)
    assert [future.result(LIMIT_S) for future in futures[1:]] == [x * x for x in range(20)]


def test_large_arguments_of_other_tasks_survive_a_death(executor: AmorsizeExecutor) -> None:
    futures = [executor.submit(total, np.full(100_000, float(i))) for i in range(10)]
    culprit = executor.submit(die, "SIGKILL")
    futures += [executor.submit(total, np.full(100_000, float(i))) for i in range(10)]
    assert isinstance(culprit.exception(LIMIT_S), WorkerDied)
    assert [future.result(LIMIT_S) for future in futures] == [1e5 * i for i in range(10)] * 2


# ---------------------------------------------------------------------- forks, descriptors


def test_death_is_noticed_though_a_forked_child_keeps_the_descriptors(executor: AmorsizeExecutor, notes: str) -> None:
    futures = [executor.submit(fork_a_long_lived_child, notes)] + [executor.submit(square, x) for x in range(20)]
    try:
        error = futures[0].exception(LIMIT_S)
        assert isinstance(error, WorkerDied)
        assert error.exitcode == -signal.SIGKILL
        assert [future.result(LIMIT_S) for future in futures[1:]] == [x * x for x in range(20)]
        child = psutil.Process(next(iter(count_notes(notes))))
        assert child.is_running()  # or the test tests nothing
        assert_usable(executor)
    finally:
        for child_pid in count_notes(notes):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child_pid, signal.SIGKILL)


@pytest.mark.parametrize("status", [None, 5])
def test_a_forked_child_that_comes_back_from_its_task_sends_no_result(
    executor: AmorsizeExecutor, notes: str, status: int | None
) -> None:
    for _ in range(3):
        assert executor.submit(fork_and_return, notes, status).result(LIMIT_S) > 0
    assert count_notes(notes) == {status or 0: 3}
    assert_usable(executor)


def test_a_task_that_closes_all_descriptors_hurts_at_most_itself(executor: AmorsizeExecutor) -> None:
    future = executor.submit(close_all_descriptors)
    assert future.exception(LIMIT_S) is None or isinstance(future.exception(), WorkerDied)
    assert_usable(executor)


# ---------------------------------------------------------------------- in a row


def test_many_deaths_in_a_row_do_not_break_the_pool(executor: AmorsizeExecutor, notes: str) -> None:
    futures = [executor.submit(die, "SIGKILL") for _ in range(8)] + [executor.submit(noted, notes, 1)]
    assert all(isinstance(future.exception(LIMIT_S), WorkerDied) for future in futures[:-1])
    assert futures[-1].result(LIMIT_S) == 1


def test_worker_killed_between_its_tasks_costs_nothing(notes: str) -> None:
    with AmorsizeExecutor(1) as executor:
        for x in range(30):
            assert executor.submit(noted, notes, x).result(LIMIT_S) == x * x
            if x % 10 == 0:
                os.kill(executor.submit(pid).result(LIMIT_S), signal.SIGKILL)
    assert count_notes(notes) == dict.fromkeys(range(30), 1)


def test_cancelled_tasks_stay_cancelled_when_their_worker_dies(make_signal: Callable[[], Signal], notes: str) -> None:
    started, go = make_signal(), make_signal()
    with AmorsizeExecutor(1) as executor:
        for _ in range(20):
            executor.submit(square, 1).result(LIMIT_S)
        blocker = executor.submit(tell_and_wait, started, go)
        started.take()
        waiting = [executor.submit(note, notes, x) for x in range(40)]
        culprit = executor.submit(die, "SIGKILL")
        assert all(future.cancel() for future in waiting[::2])
        go.give()
        assert isinstance(culprit.exception(LIMIT_S), WorkerDied)
        assert not wait(waiting, LIMIT_S).not_done
        assert blocker.result() is None
        assert all(future.cancelled() for future in waiting[::2])
        assert all(future.result() is None for future in waiting[1::2])
    assert count_notes(notes) == dict.fromkeys(range(1, 40, 2), 1)
