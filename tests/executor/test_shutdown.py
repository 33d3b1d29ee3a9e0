"""Ends of an executor: shutdown, with blocks, collection, terminated workers."""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool

import pytest

from amorsize_executor import AmorsizeExecutor, CostModel

from . import tasks
from .tools import LIMIT_S, Signal, remaining_children, wait_for_end


def test_it_is_an_executor() -> None:
    with AmorsizeExecutor() as executor:
        assert isinstance(executor, Executor)


def test_a_with_block_gives_the_executor_and_waits_for_its_work(make_signal: Callable[[], Signal]) -> None:
    ran = make_signal()
    made = AmorsizeExecutor(max_workers=2)
    with made as executor:
        assert executor is made
        futures = [executor.submit(tasks.give, ran) for _ in range(50)]
    assert all(future.done() for future in futures)
    assert ran.count() == 50


def test_after_shutdown_the_workers_and_threads_are_gone() -> None:
    threads = set(threading.enumerate())
    with AmorsizeExecutor(max_workers=2) as executor:
        pids = {future.result() for future in [executor.submit(tasks.pid) for _ in range(10)]}
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    left = {thread.name for thread in set(threading.enumerate()) - threads}
    assert left <= {"amorsize-exit-watch"}  # one for the whole process


@pytest.mark.parametrize("is_used", [True, False])
def test_submit_and_map_after_shutdown_raise(is_used: bool) -> None:
    executor = AmorsizeExecutor(max_workers=1)
    if is_used:
        executor.submit(tasks.square, 1).result()
    executor.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(tasks.square, 1)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.map(tasks.square, [1])
    executor.shutdown()
    executor.shutdown(wait=False, cancel_futures=True)


def test_an_exception_in_a_with_block_passes_and_the_work_is_done(make_signal: Callable[[], Signal]) -> None:
    ran = make_signal()
    futures = []

    def use() -> None:
        with AmorsizeExecutor(max_workers=1) as executor:
            futures.append(executor.submit(tasks.give, ran, 5))
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        use()
    assert futures[0].result(0) == 5
    assert ran.count() == 1


def test_shutdown_without_wait_returns_and_the_work_goes_on(make_signal: Callable[[], Signal]) -> None:
    started, go = make_signal(), make_signal()
    executor = AmorsizeExecutor(max_workers=1, cost_model=CostModel())
    running = executor.submit(tasks.pause, started, go, 1)
    waiting = [executor.submit(tasks.square, i) for i in range(10)]
    started.take()
    executor.shutdown(wait=False)
    assert not running.done()
    go.give()
    assert running.result(LIMIT_S) == 1
    assert [future.result(LIMIT_S) for future in waiting] == [i * i for i in range(10)]
    executor.shutdown()


def test_shutdown_may_cancel_what_waits_and_finishes_what_runs(make_signal: Callable[[], Signal]) -> None:
    started, go, ran = make_signal(), make_signal(), make_signal()
    executor = AmorsizeExecutor(max_workers=1, cost_model=CostModel())
    running = executor.submit(tasks.pause, started, go, 1)
    started.take()
    waiting = [executor.submit(tasks.give, ran) for _ in range(100)]
    executor.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in waiting)
    assert len(wait(waiting, LIMIT_S).done) == 100
    go.give()
    assert running.result(LIMIT_S) == 1
    executor.shutdown()
    assert ran.count() == 0


def test_shutdown_waits_for_callbacks_of_its_futures() -> None:
    called: list[Future[int]] = []
    with AmorsizeExecutor(max_workers=1) as executor:
        executor.submit(tasks.square, 3).add_done_callback(called.append)
    assert len(called) == 1


def test_shutdown_from_several_threads_at_once(make_signal: Callable[[], Signal]) -> None:
    started, go = make_signal(), make_signal()
    executor = AmorsizeExecutor(max_workers=1, cost_model=CostModel())
    future = executor.submit(tasks.pause, started, go, 1)
    started.take()
    threads = [threading.Thread(target=executor.shutdown) for _ in range(4)]
    for thread in threads:
        thread.start()
    go.give()
    for thread in threads:
        thread.join(LIMIT_S)
        assert not thread.is_alive()
    assert future.result(0) == 1


def test_submits_beside_a_shutdown_are_done_or_refused() -> None:
    for _ in range(5):
        executor = AmorsizeExecutor(max_workers=1)
        futures: list[Future[int]] = []
        begun = threading.Event()

        def flood(executor: AmorsizeExecutor = executor, futures: list[Future[int]] = futures) -> None:
            while True:
                try:
                    futures.append(executor.submit(tasks.square, 3))
                except RuntimeError:
                    return
                begun.set()  # noqa: B023

        thread = threading.Thread(target=flood)
        thread.start()
        assert begun.wait(LIMIT_S)
        executor.shutdown()
        thread.join(LIMIT_S)
        assert len(wait(futures, LIMIT_S).not_done) == 0
        assert {future.result() for future in futures} == {9}


def test_an_unused_executor_costs_nothing_and_ends() -> None:
    threads = threading.active_count()
    executor = AmorsizeExecutor(max_workers=2)
    assert threading.active_count() == threads
    executor.shutdown()


# ---------------------------------------------------------------------- collection


def test_a_collected_executor_finishes_its_work_and_ends(make_signal: Callable[[], Signal]) -> None:
    started, go, ran = make_signal(), make_signal(), make_signal()
    executor = AmorsizeExecutor(max_workers=1, cost_model=CostModel())
    pid = executor.submit(tasks.pid).result()
    running = executor.submit(tasks.pause, started, go, 1)
    waiting = [executor.submit(tasks.give, ran) for _ in range(20)]
    gone = weakref.ref(executor)
    started.take()
    del executor
    gc.collect()
    assert gone() is None
    go.give()
    assert running.result(LIMIT_S) == 1
    assert len(wait(waiting, LIMIT_S).done) == 20
    ran.take(20)
    wait_for_end(pid)


def test_a_collected_executor_finishes_a_map_that_nobody_iterates(make_signal: Callable[[], Signal]) -> None:
    ran = make_signal()
    AmorsizeExecutor(max_workers=1).map(tasks.give, [ran] * 20)
    gc.collect()
    ran.take(20)


def test_an_iterator_goes_on_when_its_executor_is_collected() -> None:
    results = AmorsizeExecutor(max_workers=1, inline="never").map(tasks.square, range(100))
    gc.collect()
    assert list(results) == [i * i for i in range(100)]


def test_an_iterator_with_a_buffer_keeps_its_executor() -> None:
    results = AmorsizeExecutor(max_workers=1, inline="never").map(tasks.square, range(100), buffersize=3)
    gc.collect()
    assert list(results) == [i * i for i in range(100)]


def test_a_collected_idle_executor_ends_its_workers() -> None:
    executor = AmorsizeExecutor(max_workers=1)
    pid = executor.submit(tasks.pid).result()
    del executor
    gc.collect()
    wait_for_end(pid)


# ---------------------------------------------------------------------- terminate, kill


@pytest.mark.parametrize("method", ["terminate_workers", "kill_workers"])
def test_workers_can_be_ended_at_once(method: str, make_signal: Callable[[], Signal]) -> None:
    started, go = make_signal(), make_signal()
    executor = AmorsizeExecutor(max_workers=2, cost_model=CostModel())
    running = [executor.submit(tasks.pause, started, go) for _ in range(2)]
    started.take(2)
    waiting = executor.submit(tasks.square, 2)
    results = executor.map(tasks.take_then, [go] * 5, range(5), timeout=LIMIT_S)
    getattr(executor, method)()
    for future in (*running, waiting):
        with pytest.raises(BrokenProcessPool, match=method):
            future.result(LIMIT_S)
    with pytest.raises(BrokenProcessPool, match=method):
        next(results)
    with pytest.raises(RuntimeError):
        executor.submit(tasks.square, 1)
    executor.shutdown()
    assert remaining_children_of_this_test() == []


def remaining_children_of_this_test() -> list[object]:
    return [child for child in remaining_children() if not child.is_running()]


@pytest.mark.parametrize("method", ["terminate_workers", "kill_workers"])
def test_ending_the_workers_of_an_unused_executor_shuts_it_down(method: str) -> None:
    executor = AmorsizeExecutor(max_workers=1)
    getattr(executor, method)()
    with pytest.raises(RuntimeError):
        executor.submit(tasks.square, 1)
    executor.shutdown()


@pytest.mark.parametrize("method", ["terminate_workers", "kill_workers"])
def test_ending_workers_leaves_results_that_had_come(method: str) -> None:
    executor = AmorsizeExecutor(max_workers=1)
    future = executor.submit(tasks.square, 3)
    assert future.result(LIMIT_S) == 9
    getattr(executor, method)()
    assert future.result() == 9
    getattr(executor, method)()
    executor.shutdown()


def test_killing_workers_while_they_start() -> None:
    executor = AmorsizeExecutor(max_workers=2)
    futures = [executor.submit(tasks.square, i) for i in range(10)]
    executor.kill_workers()
    for future in futures:
        assert future.exception(LIMIT_S) is None or isinstance(future.exception(), BrokenProcessPool)
    executor.shutdown()


def test_cancelling_shutdown_after_a_worker_died_leaves_no_future_open(make_signal: Callable[[], Signal]) -> None:
    started, go = make_signal(), make_signal()
    executor = AmorsizeExecutor(max_workers=1, cost_model=CostModel())
    executor.submit(tasks.square, 1).result()
    dying = executor.submit(tasks.end_process, 3)
    futures = [executor.submit(tasks.square, i) for i in range(20)]
    blocked = executor.submit(tasks.pause, started, go)
    assert isinstance(dying.exception(LIMIT_S), BrokenProcessPool)
    executor.shutdown(wait=False, cancel_futures=True)
    go.give()
    assert len(wait([*futures, blocked], LIMIT_S).not_done) == 0
    for future in futures:
        assert future.cancelled() or isinstance(future.exception(), (CancelledError, type(None)))
    executor.shutdown()


def test_terminated_workers_may_clean_up(make_signal: Callable[[], Signal]) -> None:
    started, cleaned = make_signal(), make_signal()
    executor = AmorsizeExecutor(max_workers=1)
    future = executor.submit(tasks.clean_up_when_terminated, started, cleaned)
    started.take()
    executor.terminate_workers()
    with pytest.raises(BrokenProcessPool):
        future.result(LIMIT_S)
    cleaned.take()
    executor.shutdown()


# ---------------------------------------------------------------------- processes with an executor of their own


def test_a_worker_with_an_executor_of_its_own_leaves_at_once() -> None:
    with AmorsizeExecutor(1, inline="never") as executor:
        assert executor.submit(tasks.keep_an_executor, 3).result(LIMIT_S) == [0, 1, 4]
        begun = time.monotonic()
    assert time.monotonic() - begun < 15, "it is killed after 30 s"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_process_of_multiprocessing_ends_with_its_executor(method: str) -> None:
    process = multiprocessing.get_context(method).Process(target=tasks.keep_an_executor, args=(3,))
    process.start()
    process.join(LIMIT_S)
    assert process.exitcode == 0
