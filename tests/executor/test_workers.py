"""Worker processes: how they start, what they find, how many there are, when they are replaced."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
from loky.backend import get_context

from amorsize_executor import AmorsizeExecutor, CostModel, WorkerDied

from . import tasks
from .tools import LIMIT_S, Signal, run_script, wait_for_end


@pytest.mark.parametrize(
    "context",
    [
        "loky",
        "spawn",
        "forkserver",
        "fork",
        get_context("loky"),
        multiprocessing.get_context("spawn"),
        multiprocessing.get_context("forkserver"),
        multiprocessing.get_context("fork"),
    ],
    ids=lambda c: c if isinstance(c, str) else f"{c.get_start_method()} object",
)
def test_every_start_method(context: Any) -> None:
    with AmorsizeExecutor(2, context, tasks.set_state, ("name", 5), inline="never") as executor:
        assert executor.submit(tasks.get_state, "name").result(LIMIT_S) == 5
        assert list(executor.map(tasks.square, range(100))) == [i * i for i in range(100)]
        assert executor.submit(lambda x: x + 1, 1).result(LIMIT_S) == 2
        with pytest.raises(WorkerDied):
            executor.submit(tasks.end_process, 3).result(LIMIT_S)
        assert executor.submit(tasks.square, 3).result(LIMIT_S) == 9
        assert os.getpid() != executor.submit(tasks.pid).result(LIMIT_S)


def test_workers_are_not_copies_of_a_parent_with_threads() -> None:
    tasks.set_state("only here", 1)
    with AmorsizeExecutor(max_workers=1) as executor:
        assert executor.submit(tasks.get_state, "only here").result() is None


def test_an_initializer_runs_once_in_each_worker_before_its_tasks(make_signal: Callable[[], Signal]) -> None:
    ran, started, go = make_signal(), make_signal(), make_signal()
    with AmorsizeExecutor(2, initializer=tasks.give, initargs=(ran,), cost_model=CostModel()) as executor:
        futures = [executor.submit(tasks.pause, started, go) for _ in range(2)]
        started.take(2)
        go.give(2)
        wait(futures, LIMIT_S)
        for i in range(50):
            assert executor.submit(tasks.square, i).result() == i * i
    assert ran.count() == 2


def test_an_initializer_may_be_a_closure_with_large_arguments() -> None:
    data = b"x" * 1_000_000

    def remember(value: bytes) -> None:
        tasks.set_state("size", len(value) + len(data))

    with AmorsizeExecutor(1, initializer=remember, initargs=(data,)) as executor:
        assert executor.submit(tasks.get_state, "size").result() == 2_000_000


def test_an_initializer_that_raises_breaks_the_pool_and_is_the_cause() -> None:
    executor = AmorsizeExecutor(1, initializer=tasks.fail_to_initialize, initargs=("no model",))
    future = executor.submit(tasks.square, 2)
    with pytest.raises(BrokenProcessPool, match="no model") as caught:
        future.result(LIMIT_S)
    assert isinstance(caught.value.__cause__, ValueError)
    assert "fail_to_initialize" in str(caught.value.__cause__.__cause__)
    with pytest.raises(BrokenProcessPool, match="no model"):
        executor.submit(tasks.square, 2)
    with pytest.raises(BrokenProcessPool, match="no model"):
        executor.map(tasks.square, [2])
    executor.shutdown()


def test_a_map_of_a_pool_whose_initializer_raises_fails() -> None:
    with AmorsizeExecutor(2, initializer=tasks.fail_to_initialize, initargs=("no model",)) as executor:
        results = executor.map(tasks.square, range(10))
        with pytest.raises(BrokenProcessPool, match="no model"):
            next(results)


def test_an_initializer_that_ends_its_process_breaks_the_pool() -> None:
    with AmorsizeExecutor(1, initializer=tasks.end_process, initargs=(5,)) as executor:
        error = executor.submit(tasks.square, 2).exception(LIMIT_S)
        assert isinstance(error, BrokenProcessPool)
        assert "exit status 5" in str(error)


def test_an_initializer_that_cannot_be_sent_is_named() -> None:
    with AmorsizeExecutor(1, initializer=tasks.identity, initargs=(threading.Lock(),)) as executor:
        with pytest.raises(TypeError, match="initializer"):
            executor.submit(tasks.square, 2)
        with pytest.raises(TypeError, match="initializer"):
            executor.map(tasks.square, [2])


@pytest.mark.parametrize("most", [1, 3])
def test_workers_are_replaced_after_max_tasks_per_child(most: int) -> None:
    with AmorsizeExecutor(1, max_tasks_per_child=most) as executor:
        pids = [future.result(LIMIT_S) for future in [executor.submit(tasks.pid) for _ in range(7)]]
    assert max(Counter(pids).values()) == most
    assert len(set(pids)) == -(-7 // most)


def test_items_of_maps_count_for_max_tasks_per_child() -> None:
    with AmorsizeExecutor(2, max_tasks_per_child=5, inline="never") as executor:
        pids = Counter(executor.map(tasks.pid, range(30)))
    assert max(pids.values()) <= 5
    assert sum(pids.values()) == 30


def test_chunks_do_not_exceed_max_tasks_per_child() -> None:
    with AmorsizeExecutor(1, max_tasks_per_child=4, inline="never") as executor:
        pids = Counter(executor.map(tasks.pid, range(10), chunksize=100))
    assert sorted(pids.values()) == [2, 4, 4]


def test_no_worker_is_started_before_it_is_needed_nor_more_than_allowed(make_signal: Callable[[], Signal]) -> None:
    started, go = make_signal(), make_signal()
    with AmorsizeExecutor(max_workers=2, cost_model=CostModel()) as executor:
        futures = [executor.submit(_pause_and_pid, started, go) for _ in range(6)]
        started.take(2)
        go.give(6)
        assert len({future.result(LIMIT_S) for future in futures}) == 2


def _pause_and_pid(started: Signal, go: Signal) -> int:
    tasks.pause(started, go)
    return os.getpid()


def test_idle_workers_leave_after_the_timeout_and_new_ones_come() -> None:
    with AmorsizeExecutor(max_workers=1, idle_timeout=0.01) as executor:
        first = executor.submit(tasks.pid).result()
        wait_for_end(first)
        assert executor.submit(tasks.pid).result(LIMIT_S) != first


def test_a_worker_that_is_busy_longer_than_the_idle_timeout_stays(make_signal: Callable[[], Signal]) -> None:
    started, go = make_signal(), make_signal()
    with AmorsizeExecutor(max_workers=2, idle_timeout=0.01, cost_model=CostModel()) as executor:
        busy = executor.submit(tasks.pause, started, go, 7)
        started.take()
        wait_for_end(executor.submit(tasks.pid).result(LIMIT_S))
        go.give()
        assert busy.result(LIMIT_S) == 7


def test_min_workers_stay(make_signal: Callable[[], Signal]) -> None:
    started, go = make_signal(), make_signal()
    with AmorsizeExecutor(max_workers=2, min_workers=1, idle_timeout=0.01, cost_model=CostModel()) as executor:
        futures = [executor.submit(_pause_and_pid, started, go) for _ in range(2)]
        started.take(2)
        go.give(2)
        pids = {future.result(LIMIT_S) for future in futures}
        assert len(pids) == 2
        left = _first_to_end(pids)
        (kept,) = pids - {left}
        assert executor.submit(tasks.pid).result(LIMIT_S) == kept


def _first_to_end(pids: set[int]) -> int:
    import select

    fds: dict[int, int] = {}
    try:
        for pid in pids:
            try:
                fds[os.pidfd_open(pid)] = pid
            except ProcessLookupError:  # it has ended already
                return pid
        ended, _, _ = select.select(list(fds), [], [], LIMIT_S)
        return fds[ended[0]]
    finally:
        for fd in fds:
            os.close(fd)


def test_a_pool_can_grow_while_it_works(make_signal: Callable[[], Signal]) -> None:
    started, go = make_signal(), make_signal()
    with AmorsizeExecutor(max_workers=1, cost_model=CostModel()) as executor:
        futures = [executor.submit(tasks.pause, started, go) for _ in range(3)]
        started.take()
        executor.resize(3)
        started.take(2)  # beside the first
        go.give(3)
        assert len(wait(futures, LIMIT_S).done) == 3


def test_a_pool_can_shrink_while_it_works(make_signal: Callable[[], Signal]) -> None:
    started, go = make_signal(), make_signal()
    with AmorsizeExecutor(max_workers=3, cost_model=CostModel()) as executor:
        futures = [executor.submit(_pause_and_pid, started, go) for _ in range(3)]
        started.take(3)
        executor.resize(1)
        go.give(3)
        pids = {future.result(LIMIT_S) for future in futures}
        assert len(pids) == 3
        _first_to_end(pids)
        assert len({future.result(LIMIT_S) for future in [executor.submit(tasks.pid) for _ in range(20)]}) == 1


def test_a_pool_can_be_resized_before_its_first_task() -> None:
    with AmorsizeExecutor(max_workers=1) as executor:
        executor.resize(2)
        assert executor.submit(tasks.square, 2).result(LIMIT_S) == 4


@pytest.mark.parametrize("threads", [None, 1, 3])
def test_workers_limit_the_threads_of_numerical_libraries(threads: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with AmorsizeExecutor(max_workers=1000, threads_per_worker=threads) as executor:
        expected = "1" if threads is None else str(threads)
        assert executor.submit(tasks.environment, "OMP_NUM_THREADS").result() == expected
        assert executor.submit(tasks.environment, "OPENBLAS_NUM_THREADS").result() == expected


def test_limits_that_the_user_has_set_are_kept_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    with AmorsizeExecutor(max_workers=1) as executor:
        assert executor.submit(tasks.environment, "OMP_NUM_THREADS").result() == "5"
    with AmorsizeExecutor(max_workers=1, threads_per_worker=2) as executor:
        assert executor.submit(tasks.environment, "OMP_NUM_THREADS").result() == "2"
    assert os.environ["OMP_NUM_THREADS"] == "5"


# ---------------------------------------------------------------------- deaths


def test_a_task_whose_worker_died_runs_again_if_allowed(tmp_path: Path) -> None:
    with AmorsizeExecutor(max_workers=1, retries=1, inline="never") as executor:
        assert executor.submit(tasks.end_process_once, str(tmp_path / "submit")).result(LIMIT_S) == "alive"
        assert list(executor.map(tasks.end_process_once, [str(tmp_path / "map")])) == ["alive"]


def test_a_worker_that_leaves_runs_what_tasks_want_at_exit(tmp_path: Path) -> None:
    with AmorsizeExecutor(max_workers=1, inline="never") as executor:
        executor.submit(_want_at_exit, tmp_path).result()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["atexit", "finalizer", "pool"]


def test_what_a_worker_has_printed_and_logged_is_not_lost_when_it_leaves(tmp_path: Path) -> None:
    script = """
        import sys
        from amorsize_executor import AmorsizeExecutor

        def say(path):
            import logging, logging.handlers
            target = logging.FileHandler(path)
            logging.getLogger().addHandler(logging.handlers.MemoryHandler(100, target=target))
            logging.getLogger().warning("logged")
            sys.stdout.write("printed")

        with AmorsizeExecutor(max_workers=1, inline="never") as executor:
            executor.submit(say, sys.argv[1]).result()
    """
    log = tmp_path / "log"
    assert run_script(tmp_path, script, log) == "printed"
    assert log.read_text() == "logged\n"


def _want_at_exit(folder: Path) -> None:
    kept = _Kept()
    atexit.register((folder / "atexit").touch)
    weakref.finalize(kept, (folder / "finalizer").touch)
    _Kept.latest = kept
    _Kept.pool = ThreadPoolExecutor(1)  # never shut down: its thread is joined at exit
    _Kept.pool.submit((folder / "pool").touch)


class _Kept:
    latest: _Kept
    pool: ThreadPoolExecutor


def test_a_task_that_always_ends_its_worker_fails_after_its_retries() -> None:
    with AmorsizeExecutor(max_workers=1, retries=2) as executor:
        error = executor.submit(tasks.end_process, 7).exception(LIMIT_S)
        assert isinstance(error, WorkerDied)
        assert error.exitcode == 7
        assert executor.submit(tasks.square, 2).result(LIMIT_S) == 4


def test_without_retries_a_task_runs_once(tmp_path: Path) -> None:
    with AmorsizeExecutor(max_workers=1) as executor:
        error = executor.submit(tasks.end_process_once, str(tmp_path / "marker")).exception(LIMIT_S)
    assert isinstance(error, BrokenProcessPool)


def test_only_the_culprit_of_a_group_fails() -> None:
    with AmorsizeExecutor(max_workers=1) as executor:
        for _ in range(3):
            executor.submit(tasks.square, 1).result(LIMIT_S)
        futures = [executor.submit(tasks.square, i) for i in range(200)]
        culprit = executor.submit(tasks.end_process, 1)
        futures += [executor.submit(tasks.square, i) for i in range(200, 400)]
        assert isinstance(culprit.exception(LIMIT_S), WorkerDied)
        assert [future.result(LIMIT_S) for future in futures] == [i * i for i in range(400)]


def test_only_the_culprit_of_a_map_fails() -> None:
    with AmorsizeExecutor(max_workers=1, inline="never") as executor:
        results = executor.map(_end_at_7, range(20), chunksize=20)
        assert [next(results) for _ in range(7)] == list(range(7))
        with pytest.raises(WorkerDied):
            next(results)
        assert list(executor.map(tasks.square, range(5))) == [i * i for i in range(5)]


def _end_at_7(i: int) -> int:
    if i == 7:
        os._exit(1)
    return i


def test_an_argument_that_ends_the_process_that_loads_it_fails_alone() -> None:
    with AmorsizeExecutor(max_workers=1) as executor:
        error = executor.submit(tasks.identity, tasks.Deaf()).exception(LIMIT_S)
        assert isinstance(error, WorkerDied)
        assert executor.submit(tasks.square, 2).result(LIMIT_S) == 4


# ---------------------------------------------------------------------- nesting, forks


def test_a_task_may_use_an_executor_of_its_own(executor: AmorsizeExecutor) -> None:
    assert executor.submit(tasks.use_an_executor, 5).result(LIMIT_S) == [0, 1, 4, 9, 16]
    assert list(executor.map(tasks.use_an_executor, [1, 2])) == [[0], [0, 1]]


def test_a_task_may_fork(executor: AmorsizeExecutor) -> None:
    assert executor.submit(_fork_and_wait).result(LIMIT_S) == 0
    assert executor.submit(tasks.square, 3).result(LIMIT_S) == 9


def _fork_and_wait() -> int:
    child = os.fork()
    if not child:
        os._exit(0)
    return os.waitpid(child, 0)[1]
