"""What concurrent.futures promises of submit and of futures."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    CancelledError,
    Future,
    as_completed,
    wait,
)
from concurrent.futures import TimeoutError as FuturesTimeout
from typing import Literal

import pytest

from amorsize_executor import AmorsizeExecutor, CostModel

from . import tasks
from .tools import LIMIT_S, Signal


def test_result_of_a_call(executor: AmorsizeExecutor) -> None:
    assert executor.submit(pow, 2, 10).result() == 1024


def test_keyword_arguments_reach_the_task(executor: AmorsizeExecutor) -> None:
    assert executor.submit(int, "ff", base=16).result() == 255


def test_keywords_named_like_the_parameters_of_submit_are_the_tasks(executor: AmorsizeExecutor) -> None:
    assert executor.submit(dict, fn=1, self=2).result() == {"fn": 1, "self": 2}


def test_submit_always_runs_in_a_worker(automatic: AmorsizeExecutor) -> None:
    assert automatic.submit(tasks.pid).result() != os.getpid()


def test_a_future_is_running_while_its_task_runs(executor: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> None:
    started, go = make_signal(), make_signal()
    future = executor.submit(tasks.pause, started, go, 7)
    started.take()
    assert future.running()
    assert not future.done()
    assert not future.cancel()
    go.give()
    assert future.result(LIMIT_S) == 7
    assert future.done()


def test_result_raises_a_timeout_while_the_task_runs(
    executor: AmorsizeExecutor, make_signal: Callable[[], Signal]
) -> None:
    started, go = make_signal(), make_signal()
    future = executor.submit(tasks.pause, started, go)
    started.take()
    with pytest.raises(FuturesTimeout):
        future.result(timeout=0)
    with pytest.raises(FuturesTimeout):
        future.exception(timeout=0)
    go.give()
    assert future.exception(LIMIT_S) is None


def test_a_waiting_future_can_be_cancelled_and_never_runs(make_signal: Callable[[], Signal]) -> None:
    started, go, ran = make_signal(), make_signal(), make_signal()
    with AmorsizeExecutor(max_workers=1, cost_model=CostModel()) as executor:  # nothing waits behind an unknown task
        blocker = executor.submit(tasks.pause, started, go)
        started.take()
        waiting = [executor.submit(tasks.give, ran) for _ in range(5)]
        cancelled = [future.cancel() for future in waiting]
        assert all(cancelled)
        assert all(future.cancelled() for future in waiting)
        with pytest.raises(CancelledError):
            waiting[0].result()
        go.give()
        assert blocker.result(LIMIT_S) is None
        assert executor.submit(tasks.square, 3).result(LIMIT_S) == 9
    assert ran.count() == 0


def test_cancelled_futures_among_others_lose_nothing(make_signal: Callable[[], Signal]) -> None:
    started, go = make_signal(), make_signal()
    with AmorsizeExecutor(max_workers=1, cost_model=CostModel()) as executor:
        executor.submit(tasks.pause, started, go)
        executor.submit(tasks.square, 0)  # soon known to be short: then sent in groups
        started.take()
        futures = [executor.submit(tasks.square, i) for i in range(1000)]
        for future in futures[::3]:
            future.cancel()
        go.give()
        done, _ = wait(futures, LIMIT_S)
        assert len(done) == 1000
        for i, future in enumerate(futures):
            assert future.cancelled() or future.result() == i * i
        assert not any(future.cancelled() for i, future in enumerate(futures) if i % 3)


def test_an_exception_arrives_with_the_remote_traceback(executor: AmorsizeExecutor) -> None:
    future = executor.submit(tasks.raise_error, "out of cheese")
    with pytest.raises(ValueError, match="out of cheese") as caught:
        future.result()
    cause = caught.value.__cause__
    assert cause is not None
    assert type(cause).__name__ == "RemoteTraceback"
    assert "raise_error" in str(cause)
    assert "tasks.py" in str(cause)
    assert future.exception() is caught.value


def test_an_exit_of_a_task_is_its_exception_and_the_worker_goes_on(executor: AmorsizeExecutor) -> None:
    with pytest.raises(SystemExit) as caught:
        executor.submit(tasks.leave, 3).result()
    assert caught.value.code == 3
    assert executor.submit(tasks.square, 2).result() == 4


# ---------------------------------------------------------------------- callbacks


def test_callbacks_are_called_with_the_future_once(executor: AmorsizeExecutor) -> None:
    called: list[Future[int]] = []
    done = threading.Event()
    future = executor.submit(tasks.square, 3)
    future.add_done_callback(called.append)
    future.add_done_callback(lambda _: done.set())
    assert done.wait(LIMIT_S)
    assert called == [future]


def test_a_callback_of_a_done_future_is_called_at_once(executor: AmorsizeExecutor) -> None:
    future = executor.submit(tasks.square, 3)
    future.result()
    called: list[Future[int]] = []
    wait([future])
    future.add_done_callback(called.append)
    assert called == [future]


def test_an_exception_in_a_callback_harms_nobody(executor: AmorsizeExecutor, caplog: pytest.LogCaptureFixture) -> None:
    after = threading.Event()

    def fail(_: Future[int]) -> None:
        raise RuntimeError("callback trouble")

    future = executor.submit(tasks.square, 3)
    future.add_done_callback(fail)
    future.add_done_callback(lambda _: after.set())
    assert after.wait(LIMIT_S)
    assert future.result() == 9
    assert "callback trouble" in caplog.text
    assert executor.submit(tasks.square, 4).result() == 16


def test_a_callback_may_submit(executor: AmorsizeExecutor) -> None:
    results: list[int] = []
    end = threading.Event()

    def go_on(future: Future[int]) -> None:
        results.append(future.result())
        if len(results) < 50:
            executor.submit(tasks.add, future.result(), 1).add_done_callback(go_on)
        else:
            end.set()

    executor.submit(tasks.add, 0, 1).add_done_callback(go_on)
    assert end.wait(LIMIT_S)
    assert results == list(range(1, 51))


def test_a_callback_may_map_and_shut_down() -> None:
    results: list[int] = []
    end = threading.Event()
    executor = AmorsizeExecutor(max_workers=1)

    def finish(_: Future[int]) -> None:
        results.extend(executor.map(tasks.square, range(3)))
        executor.shutdown()
        end.set()

    executor.submit(tasks.square, 3).add_done_callback(finish)
    try:
        assert end.wait(LIMIT_S)
        assert results == [0, 1, 4]
    finally:
        executor.shutdown()


# ---------------------------------------------------------------------- wait, as_completed


def test_wait_tells_done_from_not_done(executor: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> None:
    go = make_signal()
    quick, slow = executor.submit(tasks.square, 2), executor.submit(tasks.take_then, go, 5)
    done, not_done = wait([quick, slow], LIMIT_S, return_when=FIRST_COMPLETED)
    assert (done, not_done) == ({quick}, {slow})
    go.give()
    done, not_done = wait([quick, slow], LIMIT_S, return_when=ALL_COMPLETED)
    assert (done, not_done) == ({quick, slow}, set())


def test_wait_returns_at_the_first_exception(executor: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> None:
    go = make_signal()
    slow, failing = executor.submit(tasks.take_then, go, 5), executor.submit(tasks.raise_error, "x")
    done, not_done = wait([slow, failing], LIMIT_S, return_when=FIRST_EXCEPTION)
    assert (done, not_done) == ({failing}, {slow})
    go.give()
    assert slow.result(LIMIT_S) == 5


def test_as_completed_gives_futures_as_they_end(executor: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> None:
    go = make_signal()
    slow = executor.submit(tasks.take_then, go, "slow")
    quick = executor.submit(tasks.identity, "quick")
    order = []
    for future in as_completed([slow, quick], LIMIT_S):
        order.append(future.result())
        go.give()
    assert order == ["quick", "slow"]


def test_twenty_thousand_futures_at_once(executor: AmorsizeExecutor) -> None:
    futures = [executor.submit(tasks.square, i) for i in range(20_000)]
    assert sum(1 for _ in as_completed(futures, LIMIT_S)) == 20_000
    assert [future.result() for future in futures] == [i * i for i in range(20_000)]


# ---------------------------------------------------------------------- asyncio


def test_a_future_can_be_awaited(executor: AmorsizeExecutor) -> None:
    async def main() -> int:
        return await asyncio.wait_for(asyncio.wrap_future(executor.submit(tasks.square, 5)), LIMIT_S)

    assert asyncio.run(main()) == 25


def test_an_event_loop_can_run_calls_in_it(executor: AmorsizeExecutor) -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(executor, tasks.square, i) for i in range(200)]
        return await asyncio.wait_for(asyncio.gather(*calls), LIMIT_S)

    assert asyncio.run(main()) == [i * i for i in range(200)]


def test_an_event_loop_gets_exceptions(executor: AmorsizeExecutor) -> None:
    async def main() -> None:
        await asyncio.get_running_loop().run_in_executor(executor, tasks.raise_error, "in the loop")

    with pytest.raises(ValueError, match="in the loop"):
        asyncio.run(main())


def test_cancelling_an_awaited_call_cancels_what_waits(make_signal: Callable[[], Signal]) -> None:
    started, go, ran = make_signal(), make_signal(), make_signal()
    with AmorsizeExecutor(max_workers=1, cost_model=CostModel()) as executor:
        executor.submit(tasks.pause, started, go)
        started.take()

        async def main() -> None:
            call = asyncio.get_running_loop().run_in_executor(executor, tasks.give, ran)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

        asyncio.run(main())
        go.give()
    assert ran.count() == 0


# ---------------------------------------------------------------------- many threads


def test_submits_of_sixteen_threads_lose_and_repeat_nothing(executor: AmorsizeExecutor) -> None:
    results: list[list[int]] = [[] for _ in range(16)]

    def run(number: int) -> None:
        futures = [executor.submit(tasks.add, number * 1000, i) for i in range(500)]
        results[number] = [future.result(LIMIT_S) for future in futures]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert results == [[number * 1000 + i for i in range(500)] for number in range(16)]


def test_each_submitted_task_runs_once(executor: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> None:
    ran = make_signal()
    threads = [
        threading.Thread(target=lambda: wait([executor.submit(tasks.give, ran) for _ in range(50)], LIMIT_S))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert ran.count() == 800


def test_the_first_submits_may_come_from_many_threads() -> None:
    barrier = threading.Barrier(8)
    results: list[int] = []
    with AmorsizeExecutor(max_workers=2) as executor:

        def run() -> None:
            barrier.wait(LIMIT_S)
            results.append(executor.submit(tasks.square, 3).result(LIMIT_S))

        threads = [threading.Thread(target=run) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
    assert results == [9] * 8


@pytest.mark.timeout(20)
def test_no_task_waits_behind_a_blocked_one_while_another_worker_may_start(make_signal: Callable[[], Signal]) -> None:
    model, go = CostModel(), make_signal()
    with AmorsizeExecutor(max_workers=2, cost_model=model) as executor:
        go.give()
        executor.submit(tasks.take_then, go, 0).result()  # known to be short from now on, and so is the next one
        executor.submit(tasks.square, 2).result()
        blocked = executor.submit(tasks.take_then, go, 1)
        other = executor.submit(tasks.square, 3)
        try:
            assert other.result(timeout=5) == 9
        finally:
            go.give()
        assert blocked.result(LIMIT_S) == 1


def test_each_submit_of_a_callable_with_state_gets_it_as_it_was(executor: AmorsizeExecutor) -> None:
    counter = tasks.StepCounter()
    assert [executor.submit(counter.step).result(LIMIT_S) for _ in range(3)] == [1, 1, 1]
    assert {future.result(LIMIT_S) for future in [executor.submit(counter.step) for _ in range(300)]} == {1}
    assert counter.n == 0


@pytest.mark.parametrize("inline", ["auto", "never"])
def test_each_map_of_a_callable_with_state_gets_it_as_it_was(inline: Literal["auto", "never"]) -> None:
    counter = tasks.StepCounter()
    with AmorsizeExecutor(1, inline=inline, cost_model=CostModel()) as executor:
        for _ in range(2):
            assert list(executor.map(counter.step, range(4), chunksize=4)) == [1, 2, 3, 4]
    assert counter.n == 0
