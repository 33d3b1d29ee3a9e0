"""Coroutines: `asubmit`, `amap`, and the loop's own `run_in_executor`."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from amorsize_executor import AmorsizeExecutor, CostModel, QueueFull, TaskTimeout, WorkerDied

from . import tasks
from .tools import LIMIT_S, Signal, run_script

SHORT_S = 0.3


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(coroutine, LIMIT_S)

    return asyncio.run(bounded())


@pytest.fixture
def one() -> Iterator[AmorsizeExecutor]:
    with AmorsizeExecutor(1, cost_model=CostModel()) as executor:
        executor.warm_up()
        yield executor


class Held:
    """Keeps the worker of an executor busy until told."""

    def __init__(self, executor: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> None:
        started, self._go = make_signal(), make_signal()
        self.future = executor.submit(tasks.pause, started, self._go)
        started.take()

    def end(self) -> None:
        self._go.give()


async def settle() -> None:
    """Let other coroutines come to where they wait."""
    for _ in range(5):
        await asyncio.sleep(0)


# ---------------------------------------------------------------------- asubmit


def test_result_is_awaited(executor: AmorsizeExecutor) -> None:
    assert run(executor.asubmit(tasks.add, 2, y=3)) == 5


def test_error_is_raised_with_the_workers_traceback(executor: AmorsizeExecutor) -> None:
    with pytest.raises(ValueError, match="bad") as caught:
        run(executor.asubmit(tasks.raise_error, "bad"))
    assert "raise_error" in str(caught.value.__cause__)


def test_a_stop_iteration_is_raised_and_not_waited_for(executor: AmorsizeExecutor) -> None:
    async def ask() -> None:
        with pytest.raises(RuntimeError, match="raised StopIteration"):
            await asyncio.wait_for(executor.asubmit(tasks.stop_at_17, 17), LIMIT_S)

    run(ask())


def test_death_is_raised(executor: AmorsizeExecutor) -> None:
    with pytest.raises(WorkerDied):
        run(executor.asubmit(tasks.end_process, 3))


def test_many_coroutines_wait_at_once(executor: AmorsizeExecutor) -> None:
    async def ask() -> list[int]:
        return await asyncio.gather(*[executor.asubmit(tasks.square, i) for i in range(300)])

    assert run(ask()) == [i * i for i in range(300)]


def test_loop_goes_on_while_a_task_runs(executor: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> None:
    started, go = make_signal(), make_signal()

    async def ask() -> str:
        task = asyncio.create_task(executor.asubmit(tasks.pause, started, go, "done"))
        await settle()
        started.take()
        go.give()
        result: str = await task
        return result

    assert run(ask()) == "done"


def test_cancelled_coroutine_takes_a_waiting_task_out_of_the_queue(
    one: AmorsizeExecutor, make_signal: Callable[[], Signal]
) -> None:
    held, ran = Held(one, make_signal), make_signal()

    async def ask() -> None:
        asked = [asyncio.create_task(one.asubmit(tasks.give, ran, i)) for i in range(3)]
        await settle()
        assert one.stats().tasks_queued == 3
        asked[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked[1]
        assert one.stats().tasks_queued == 2
        assert one.stats().tasks_cancelled == 1
        held.end()
        assert [await asked[0], await asked[2]] == [0, 2]

    run(ask())
    assert ran.count() == 2


def test_cancelled_tasks_with_options_and_resources_leave_the_queue_too(
    one: AmorsizeExecutor, make_signal: Callable[[], Signal]
) -> None:
    held = Held(one, make_signal)
    view = one.options(timeout=LIMIT_S, priority=2)

    async def ask() -> None:
        with one.resource(dict, a=1) as resource:
            asked = [
                asyncio.create_task(view.asubmit(tasks.square, 1)),
                asyncio.create_task(view.asubmit(len, resource)),
                asyncio.create_task(one.asubmit(len, resource)),
                asyncio.create_task(one.asubmit(len, resource)),
            ]
            await settle()
            assert one.stats().tasks_queued == 4
            for task in asked[:3]:
                task.cancel()
            await asyncio.wait(asked[:3])
            assert one.stats().tasks_queued == 1
            held.end()
            assert await asked[3] == 1

    run(ask())
    assert one.submit(tasks.square, 3).result(LIMIT_S) == 9
    assert one.stats().tasks_cancelled == 3


def test_running_task_of_a_cancelled_coroutine_goes_on_and_its_result_is_dropped(
    one: AmorsizeExecutor, make_signal: Callable[[], Signal]
) -> None:
    started, go = make_signal(), make_signal()

    async def ask() -> None:
        task = asyncio.create_task(one.asubmit(tasks.pause, started, go))
        await settle()
        started.take()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.give()

    run(ask())
    assert one.submit(tasks.square, 3).result(LIMIT_S) == 9
    assert one.stats().tasks_done == 2


def test_wait_for_gives_up_a_waiting_task(one: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> None:
    held, ran = Held(one, make_signal), make_signal()

    async def ask() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(one.asubmit(tasks.give, ran), 0.05)

    run(ask())
    held.end()
    assert one.submit(tasks.square, 3).result(LIMIT_S) == 9
    assert ran.count() == 0


def test_task_over_its_time_fails(one: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> None:
    held = Held(one, make_signal)
    with pytest.raises(TaskTimeout):
        run(one.options(timeout=SHORT_S).asubmit(tasks.square, 3))
    held.end()


def test_shutdown_of_a_view_waits_for_its_tasks(one: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> None:
    held = Held(one, make_signal)

    async def ask() -> int:
        view = one.options()
        task = asyncio.create_task(view.asubmit(tasks.square, 3))
        await settle()
        held.end()
        await asyncio.to_thread(view.shutdown)
        with pytest.raises(RuntimeError, match="view"):
            await view.asubmit(tasks.square, 3)
        result: int = await task
        return result

    assert run(ask()) == 9


def test_no_task_after_shutdown() -> None:
    executor = AmorsizeExecutor(1)
    executor.shutdown()
    with pytest.raises(RuntimeError, match="shutdown"):
        run(executor.asubmit(tasks.square, 3))


# ---------------------------------------------------------------------- a full queue


def test_full_queue_raises(one: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> None:
    held = Held(one, make_signal)
    view = one.options(max_pending=1, when_full="raise")

    async def ask() -> int:
        task = asyncio.create_task(view.asubmit(tasks.square, 3))
        await settle()
        with pytest.raises(QueueFull):
            await view.asubmit(tasks.square, 4)
        held.end()
        result: int = await task
        return result

    assert run(ask()) == 9


def test_full_queue_lets_coroutines_wait_in_order_and_the_loop_go_on(
    one: AmorsizeExecutor, make_signal: Callable[[], Signal], tmp_path: Path
) -> None:
    held = Held(one, make_signal)
    view = one.options(max_pending=2)
    done: list[int] = []

    async def ask_for(i: int) -> None:
        done.append(await view.asubmit(tasks.identity, i))

    async def ask() -> None:
        asked = [asyncio.create_task(ask_for(i)) for i in range(10)]
        await settle()
        assert one.stats().tasks_queued == 2
        asked[0].cancel()  # in the queue
        asked[5].cancel()  # waits for room
        held.end()
        await asyncio.wait(asked)

    run(ask())
    assert done == [1, 2, 3, 4, 6, 7, 8, 9]


def test_room_that_a_cancelled_coroutine_was_given_goes_to_the_next(
    one: AmorsizeExecutor, make_signal: Callable[[], Signal]
) -> None:
    held = Held(one, make_signal)
    view = one.options(max_pending=1)

    async def ask() -> None:
        first = asyncio.create_task(view.asubmit(tasks.square, 0))
        await settle()
        others = [asyncio.create_task(view.asubmit(tasks.square, i)) for i in range(1, 4)]
        await settle()
        first.cancel()  # makes room for the next one, ...
        others[0].cancel()  # ... which does not want it any more
        held.end()
        assert [await other for other in others[1:]] == [4, 9]

    run(ask())


def test_wait_for_room_ends_in_time(one: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> None:
    held = Held(one, make_signal)
    one.submit(tasks.square, 1)
    with pytest.raises(TaskTimeout, match="square"):
        run(one.options(max_pending=1, timeout=SHORT_S).asubmit(tasks.square, 3))
    held.end()


def test_wait_for_room_ends_with_the_executor(make_signal: Callable[[], Signal]) -> None:
    executor = AmorsizeExecutor(1)
    held = Held(executor, make_signal)
    queued = executor.submit(tasks.square, 1)

    async def ask() -> None:
        task = asyncio.create_task(executor.options(max_pending=1).asubmit(tasks.square, 3))
        await settle()
        executor.shutdown(wait=False)
        with pytest.raises(RuntimeError, match="shutdown"):
            await task

    run(ask())
    held.end()
    assert queued.result(LIMIT_S) == 1
    executor.shutdown()


# ---------------------------------------------------------------------- amap


async def listed(results: Any) -> list[Any]:
    return [result async for result in results]


def test_map_is_iterated_in_order(executor: AmorsizeExecutor) -> None:
    async def ask() -> list[int]:
        return await listed(executor.amap(tasks.square, range(2000)))

    assert run(ask()) == [i * i for i in range(2000)]


def test_map_takes_several_iterables_and_generators(executor: AmorsizeExecutor) -> None:
    async def ask() -> list[int]:
        return await listed(executor.amap(tasks.add, (i for i in range(100)), range(50)))

    assert run(ask()) == [2 * i for i in range(50)]


def test_empty_map(executor: AmorsizeExecutor) -> None:
    async def ask() -> list[int]:
        return await listed(executor.amap(tasks.square, []))

    assert run(ask()) == []


@pytest.mark.parametrize("chunksize", [None, 1, 7])
def test_unordered_map_gives_all(executor: AmorsizeExecutor, chunksize: int | None) -> None:
    async def ask() -> list[int]:
        return await listed(executor.amap(tasks.square, range(500), ordered=False, chunksize=chunksize))

    assert sorted(run(ask())) == [i * i for i in range(500)]


def test_unordered_map_gives_what_is_ready_first(executor: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> None:
    go = make_signal()

    def wait_at_zero(i: int) -> int:
        return tasks.take_at_zero(go, i)

    async def ask() -> list[int]:
        found = []
        async for i in executor.amap(wait_at_zero, range(4), ordered=False, chunksize=1):
            found.append(i)
            if len(found) == 3:
                go.give()
        return found

    assert run(ask())[-1] == 0


def test_buffered_map_reads_as_results_are_taken(executor: AmorsizeExecutor) -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for i in range(1000):
            read.append(i)
            yield i

    async def ask() -> None:
        results = executor.amap(tasks.square, items(), buffersize=8)
        assert len(read) == 8
        taken = 0
        async for result in results:
            assert result == taken * taken
            taken += 1
            assert len(read) <= taken + 8
        assert taken == 1000

    run(ask())


def test_items_run_in_workers_even_if_they_are_tiny(automatic: AmorsizeExecutor) -> None:
    import os

    async def ask() -> list[int]:
        return await listed(automatic.amap(tasks.pid, range(10)))

    assert os.getpid() not in run(ask())


def test_loop_goes_on_while_a_map_runs(executor: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> None:
    go = make_signal()

    def wait_at_zero(i: int) -> int:
        return tasks.take_at_zero(go, i)

    async def ask() -> list[int]:
        task = asyncio.create_task(listed(executor.amap(wait_at_zero, range(3))))
        await settle()
        go.give()
        result: list[int] = await task
        return result

    assert run(ask()) == [0, 1, 2]


def test_error_of_an_item_ends_the_iteration(executor: AmorsizeExecutor) -> None:
    async def ask() -> list[int]:
        found = []
        results = executor.amap(tasks.fail_on, [3] * 6, range(6), chunksize=1)
        for _ in range(3):
            found.append(await results.__anext__())
        with pytest.raises(ValueError, match="3 is bad"):
            await results.__anext__()
        assert await listed(results) == []
        return found

    assert run(ask()) == [0, 1, 2]


def test_map_of_a_cancelled_coroutine_is_given_up(one: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> None:
    started, go, ran = make_signal(), make_signal(), make_signal()

    def work(i: int) -> None:
        ran.give()
        tasks.pause(started, go)

    async def ask() -> None:
        task = asyncio.create_task(listed(one.amap(work, range(100), chunksize=1)))
        await settle()
        await asyncio.to_thread(started.take)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while one.stats().items_waiting:
            await asyncio.sleep(1e-3)
        go.give(2)

    run(ask())
    assert one.submit(tasks.square, 2).result(LIMIT_S) == 4
    assert ran.count() <= 2


def test_map_that_is_left_early_is_given_up(one: AmorsizeExecutor) -> None:
    async def ask() -> None:
        results = one.amap(tasks.square, range(100_000), chunksize=10)
        async for _ in results:
            break
        await results.aclose()
        until = time.monotonic() + LIMIT_S
        while one.stats().items_waiting:
            assert time.monotonic() < until
            await asyncio.sleep(1e-3)

    run(ask())


def test_map_of_a_broken_executor_fails(make_signal: Callable[[], Signal]) -> None:
    executor = AmorsizeExecutor(1)
    started, go = make_signal(), make_signal()

    async def ask() -> None:
        task = asyncio.create_task(listed(executor.amap(tasks.pause, [started] * 3, [go] * 3)))
        await settle()
        await asyncio.to_thread(started.take)
        executor.kill_workers()
        with pytest.raises(BrokenProcessPool):
            await task

    run(ask())
    executor.shutdown()


def test_map_with_the_options_of_a_view(one: AmorsizeExecutor) -> None:
    async def ask() -> None:
        with pytest.raises(TaskTimeout):
            await listed(one.options(timeout=SHORT_S).amap(time.sleep, [0, LIMIT_S], chunksize=1))

    run(ask())


def test_map_tells_its_progress_and_its_plan(executor: AmorsizeExecutor) -> None:
    seen: list[tuple[int, int]] = []

    async def ask() -> None:
        await listed(executor.amap(tasks.square, range(5), progress=lambda done, total: seen.append((done, total))))

    run(ask())
    assert seen[-1] == (5, 5)
    assert executor.last_plan is not None
    assert "event loop" in str(executor.last_plan)


@pytest.mark.parametrize("how", [{"chunksize": 0}, {"buffersize": 0}])
def test_wrong_parameters_are_refused_at_once(executor: AmorsizeExecutor, how: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(how))):
        executor.amap(tasks.square, [1], **how)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="iterable"):
        executor.amap(tasks.square)


# ---------------------------------------------------------------------- the loop's own way


def test_run_in_executor_works(executor: AmorsizeExecutor) -> None:
    async def ask() -> list[int]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*[loop.run_in_executor(executor, tasks.square, i) for i in range(20)])

    assert run(ask()) == [i * i for i in range(20)]


def test_run_in_executor_works_on_views(executor: AmorsizeExecutor) -> None:
    async def ask() -> int:
        view = executor.options(timeout=LIMIT_S, priority=1)
        return await asyncio.get_running_loop().run_in_executor(view, tasks.square, 5)

    assert run(ask()) == 25


def test_coroutines_that_the_loop_leaves_behind_harm_nobody(tmp_path: Path) -> None:
    source = """
        import asyncio, time
        from amorsize_executor import AmorsizeExecutor
        with AmorsizeExecutor(1) as ex:
            async def main():
                view = ex.options(max_pending=1)
                tasks = [asyncio.ensure_future(view.asubmit(time.sleep, 0.1)) for _ in range(4)]
                await asyncio.sleep(0.05)
            asyncio.run(main())
            print(ex.submit(pow, 2, 3).result())
    """
    assert run_script(tmp_path, source) == "8\n"


def test_place_that_is_kept_for_a_coroutine_of_a_closed_loop_is_given_away(
    one: AmorsizeExecutor, make_signal: Callable[[], Signal]
) -> None:
    held = Held(one, make_signal)
    queued = one.submit(tasks.square, 2)
    view = one.options(max_pending=1)
    loop = asyncio.new_event_loop()
    task = loop.create_task(view.asubmit(tasks.square, 3))
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.run_until_complete(settle())
    held.end()
    assert queued.result(LIMIT_S) == 4  # the place is the coroutine's now
    loop.close()
    del task, loop
    gc.collect()
    assert view.submit(tasks.square, 4).result(LIMIT_S) == 16
    assert run(view.asubmit(tasks.square, 5)) == 25
