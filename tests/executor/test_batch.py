"""`batch`: single calls that run together."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amorsize_executor import (
    AmorsizeExecutor,
    Batcher,
    CostModel,
    QueueFull,
    SerializationError,
    TaskTimeout,
    WorkerDied,
)

from ..faults.tasks import die, happens_first, note
from . import tasks
from .tools import LIMIT_S, Signal, run_script

SHORT_S = 0.3


def squares(items: list[int]) -> list[int]:
    return [item * item for item in items]


def sizes(items: list[Any]) -> list[int]:
    """For each item, how many there were."""
    return [len(items)] * len(items)


def squares_but(bad: tuple[int, ...], items: list[int]) -> list[int]:
    for item in items:
        if item in bad:
            raise ValueError(f"{item} is bad")
    return squares(items)


def noted_squares(path: str, items: list[int]) -> list[int]:
    note(path, len(items))
    return squares(items)


def gated(started: Signal, go: Signal, items: list[Any]) -> list[Any]:
    """Wait at the item None, which comes alone; tell how many there were of others."""
    if items == [None]:
        started.give()
        go.take()
    return [len(items)] * len(items)


def deadly(marker: str, items: list[int]) -> list[int]:
    """Kill the process at negative items: -1 always, others once."""
    for item in items:
        if item < 0 and (item == -1 or happens_first(f"{marker}{item}")):
            die("SIGKILL")
    return squares(items)


def hang(items: list[Any]) -> list[Any]:
    threading.Event().wait()
    return items


def plus(model: dict[str, int], items: list[int]) -> list[int]:
    return [item + model["add"] for item in items]


def make_model(add: int) -> dict[str, int]:
    return {"add": add, "pid": os.getpid()}


def returns(what: str, items: list[int]) -> Any:
    return {
        "few": items[:-1],
        "many": [*items, 0],
        "none": None,
        "dict": dict.fromkeys(items),
        "text": "x" * len(items),
        "number": 3,
        "scalar": np.array(3),
        "generator": (2 * item for item in items),
        "array": np.array(items) * 2,
        "rows": np.array([items, items]).T,
    }[what]


@pytest.fixture
def one() -> Iterator[AmorsizeExecutor]:
    with AmorsizeExecutor(1, cost_model=CostModel()) as executor:
        executor.warm_up()
        yield executor


class Gate:
    """A front on one worker that is busy until told, so that calls gather."""

    def __init__(self, executor: AmorsizeExecutor, make_signal: Callable[[], Signal], **how: Any) -> None:
        started, self._go = make_signal(), make_signal()
        self.front: Batcher[Any, Any] = executor.batch(functools.partial(gated, started, self._go), **how)
        self.first = self.front.submit(None)
        started.take()

    def open(self) -> None:
        self._go.give()


@pytest.fixture
def gate(one: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> Gate:
    return Gate(one, make_signal)


# ---------------------------------------------------------------------- together


def test_call_gives_its_own_result(executor: AmorsizeExecutor) -> None:
    with executor.batch(squares) as square:
        assert square(3) == 9
        futures = [square.submit(i) for i in range(100)]
        assert [future.result(LIMIT_S) for future in futures] == [i * i for i in range(100)]


def test_calls_that_come_while_the_worker_is_busy_run_together(gate: Gate) -> None:
    futures = [gate.front.submit(i) for i in range(10)]
    gate.open()
    assert [future.result(LIMIT_S) for future in futures] == [10] * 10
    stats = gate.front.stats()
    assert (stats.calls, stats.batches, stats.sizes) == (11, 2, {1: 1, 16: 1})
    assert stats.waiting == stats.running == 0
    assert stats.fixed_s >= 0


def test_batches_are_no_larger_than_told(one: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> None:
    gate = Gate(one, make_signal, max_batch_size=4)
    futures = [gate.front.submit(i) for i in range(10)]
    gate.open()
    assert [future.result(LIMIT_S) for future in futures] == [4] * 8 + [2] * 2


def test_threads_share_batches(executor: AmorsizeExecutor) -> None:
    with executor.batch(squares) as square, ThreadPoolExecutor(16) as threads:
        assert list(threads.map(square, range(500))) == [i * i for i in range(500)]
        assert square.stats().batches <= 500


def test_coroutines_share_batches(executor: AmorsizeExecutor) -> None:
    async def ask() -> list[int]:
        return await asyncio.gather(*[square.asubmit(i) for i in range(200)])

    with executor.batch(squares) as square:
        assert asyncio.run(ask()) == [i * i for i in range(200)]


def test_calls_go_to_all_workers(executor: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> None:
    started, go = make_signal(), make_signal()
    with executor.batch(functools.partial(gated, started, go), max_batch_size=1) as front:
        futures = [front.submit(None), front.submit(None)]
        started.take(2)
        go.give(2)
        assert [future.result(LIMIT_S) for future in futures] == [1, 1]


def test_resource_in_a_partial_is_built_once(one: AmorsizeExecutor) -> None:
    with one.resource(make_model, 5) as model, one.batch(functools.partial(plus, model)) as front:
        assert [front(i) for i in range(5)] == [5, 6, 7, 8, 9]
        assert sum(len(worker.resources) for worker in one.stats().workers) == 1


def test_large_items_and_results_arrive_whole(executor: AmorsizeExecutor) -> None:
    arrays = [np.full(100_000, i, dtype=float) for i in range(8)]

    def doubled(items: list[np.ndarray]) -> np.ndarray:
        return np.stack(items) * 2

    with executor.batch(doubled) as front:
        for i, future in enumerate([front.submit(array) for array in arrays]):
            assert (future.result(LIMIT_S) == 2 * i).all()


def test_function_of_a_script_works(tmp_path: Path) -> None:
    source = """
        from amorsize_executor import AmorsizeExecutor
        FACTOR = 3
        def scaled(items):
            return [FACTOR * item for item in items]
        with AmorsizeExecutor(1) as ex, ex.batch(scaled) as front:
            print(front(14), front.submit(1).result())
    """
    assert run_script(tmp_path, source) == "42 3\n"


@pytest.mark.parametrize(("what", "expected"), [("generator", [4, 6]), ("array", [4, 6]), ("rows", [[2, 2], [3, 3]])])
def test_results_may_be_any_sequence(gate: Gate, one: AmorsizeExecutor, what: str, expected: list[Any]) -> None:
    with one.batch(functools.partial(returns, what)) as front:
        futures = [front.submit(2), front.submit(3)]
        gate.open()
        assert np.array([future.result(LIMIT_S) for future in futures]).tolist() == expected


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("few", "returned 2 results for a batch of 3 items"),
        ("many", "returned 4 results for a batch of 3 items"),
        ("none", "returned NoneType"),
        ("dict", "returned dict"),
        ("text", "returned str"),
        ("number", "returned int"),
        ("scalar", "returned ndarray"),
    ],
)
def test_wrong_number_of_results_is_an_error_that_says_so(
    one: AmorsizeExecutor, make_signal: Callable[[], Signal], what: str, words: str
) -> None:
    gate = Gate(one, make_signal)
    front = one.batch(functools.partial(returns, what))
    first = front.submit(0)  # behind the other front's batch
    futures = [front.submit(i) for i in range(3)]
    gate.open()
    for future in (first, *futures):
        error = future.exception(LIMIT_S)
        assert isinstance(error, ValueError)
        assert "returns" in str(error)
    assert words in str(futures[0].exception())
    assert futures[0].exception() is not futures[1].exception()


# ---------------------------------------------------------------------- alone


@pytest.mark.parametrize("bad", [(0,), (13,), (31,), (3, 4, 20)])
def test_bad_item_fails_alone(one: AmorsizeExecutor, gate: Gate, bad: tuple[int, ...]) -> None:
    with one.batch(functools.partial(squares_but, bad)) as front:
        futures = [front.submit(i) for i in range(32)]
        gate.open()
        for i, future in enumerate(futures):
            if i in bad:
                error = future.exception(LIMIT_S)
                assert isinstance(error, ValueError)
                assert str(error) == f"{i} is bad"
                assert "squares_but" in str(error.__cause__)
            else:
                assert future.result(LIMIT_S) == i * i


def test_batch_is_split_in_halves(one: AmorsizeExecutor, gate: Gate, tmp_path: Path) -> None:
    path = str(tmp_path / "notes")

    def fail_at_five(items: list[int]) -> list[int]:
        note(path, len(items))
        return squares_but((5,), items)

    with one.batch(fail_at_five) as front:
        futures = [front.submit(i) for i in range(9)]
        gate.open()
        wait(futures, LIMIT_S)
    seen = [int(line) for line in Path(path).read_text().split()]
    assert sorted(seen[1:]) == sorted([8, 4, 4, 2, 2, 1, 1])  # the first call went alone


@pytest.mark.parametrize("n_ahead", [0, 1])
def test_item_that_cannot_be_pickled_fails_alone(one: AmorsizeExecutor, gate: Gate, n_ahead: int) -> None:
    with one.batch(sizes) as front:
        ahead = [front.submit(0) for _ in range(n_ahead)]
        futures = [front.submit(item) for item in (1, threading.Lock(), 3)]
        gate.open()
        assert isinstance(futures[1].exception(LIMIT_S), SerializationError)
        assert all(future.result(LIMIT_S) >= 1 for future in (*ahead, futures[0], futures[2]))


def test_many_items_that_cannot_be_pickled_fail_one_by_one(one: AmorsizeExecutor, gate: Gate) -> None:
    with one.batch(sizes, max_batch_size=1) as front:
        futures = [front.submit(threading.Lock()) for _ in range(2000)]
        gate.open()
        assert all(isinstance(future.exception(LIMIT_S), SerializationError) for future in futures)


def test_result_that_cannot_be_pickled_fails_alone(one: AmorsizeExecutor, gate: Gate) -> None:
    def locks(items: list[int]) -> list[Any]:
        return [threading.Lock() if item == 2 else item for item in items]

    with one.batch(locks) as front:
        futures = [front.submit(i) for i in range(5)]
        gate.open()
        assert [future.exception(LIMIT_S) is None for future in futures] == [True, True, False, True, True]


def test_cancelled_call_leaves_its_batch(gate: Gate) -> None:
    futures = [gate.front.submit(i) for i in range(5)]
    assert futures[2].cancel()
    assert gate.front.stats().waiting == 4
    gate.open()
    assert [future.result(LIMIT_S) for future in futures if future is not futures[2]] == [4] * 4
    with pytest.raises(CancelledError):
        futures[2].result(LIMIT_S)


def test_running_call_cannot_be_cancelled(gate: Gate) -> None:
    assert not gate.first.cancel()
    gate.open()
    assert gate.first.result(LIMIT_S) == 1


def test_cancelled_coroutine_takes_its_call_out(gate: Gate) -> None:
    async def ask() -> None:
        asked = [asyncio.create_task(gate.front.asubmit(i)) for i in range(3)]
        await asyncio.sleep(0)
        asked[0].cancel()
        await asyncio.wait(asked[:1])
        assert gate.front.stats().waiting == 2
        gate.open()
        assert await asyncio.gather(*asked[1:]) == [2, 2]

    asyncio.run(ask())


# ---------------------------------------------------------------------- deaths


@pytest.mark.parametrize("retries", [0, 1, 2])
def test_death_of_a_worker_fails_its_batch_unless_it_may_run_again(
    one: AmorsizeExecutor, make_signal: Callable[[], Signal], tmp_path: Path, retries: int
) -> None:
    gate = Gate(one, make_signal)
    with one.options(retries=retries).batch(functools.partial(deadly, str(tmp_path / "died"))) as front:
        futures = [front.submit(i) for i in (0, 1, -2, 3)]
        gate.open()
        wait(futures, LIMIT_S)
        assert futures[0].result() == 0  # went alone
        if retries:
            assert [future.result() for future in futures] == [0, 1, 4, 9]
        else:
            assert all(isinstance(future.exception(), WorkerDied) for future in futures[1:])
        assert front(5) == 25


@pytest.mark.parametrize("retries", [1, 2])
def test_item_that_ends_workers_fails_alone_with_retries(
    one: AmorsizeExecutor, make_signal: Callable[[], Signal], tmp_path: Path, retries: int
) -> None:
    gate = Gate(one, make_signal)
    with one.options(retries=retries).batch(functools.partial(deadly, str(tmp_path / "died"))) as front:
        futures = [front.submit(i) for i in (0, 1, -1, 3)]
        gate.open()
        assert isinstance(futures[2].exception(LIMIT_S), WorkerDied)
        assert [futures[i].result(LIMIT_S) for i in (0, 1, 3)] == [0, 1, 9]


# ---------------------------------------------------------------------- views


def test_full_front_raises(one: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> None:
    gate = Gate(one.options(max_pending=2, when_full="raise"), make_signal)
    futures = [gate.front.submit(i) for i in range(2)]
    with pytest.raises(QueueFull, match="max_pending=2"):
        gate.front.submit(2)
    futures[0].cancel()
    futures.append(gate.front.submit(3))
    gate.open()
    assert [future.result(LIMIT_S) for future in futures[1:]] == [2, 2]


def test_full_front_lets_callers_wait_in_order(one: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> None:
    gate = Gate(one.options(max_pending=2), make_signal)
    results: list[int] = []
    ahead = [gate.front.submit(i) for i in range(2)]
    threads = [threading.Thread(target=lambda: results.append(gate.front(0))) for _ in range(3)]
    for thread in threads:
        thread.start()
    while gate.front.stats().waiting < 5:
        time.sleep(1e-3)
    gate.open()
    for thread in threads:
        thread.join(LIMIT_S)
    assert [future.result(LIMIT_S) for future in ahead] == [2, 2]
    assert len(results) == 3


def test_full_front_does_not_hold_up_a_loop(one: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> None:
    gate = Gate(one.options(max_pending=1), make_signal)

    async def ask() -> None:
        asked = [asyncio.create_task(gate.front.asubmit(i)) for i in range(6)]
        await asyncio.sleep(0)
        assert gate.front.stats().waiting == 6
        asked[4].cancel()
        gate.open()
        assert [await one for one in asked[:4]] == [1] * 4
        assert await asked[5] == 1

    asyncio.run(ask())


def test_call_that_waits_too_long_is_given_up(one: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> None:
    gate = Gate(one, make_signal)
    front = one.options(timeout=SHORT_S).batch(squares)
    sent, waiting = front.submit(1), front.submit(2)
    for future in (sent, waiting):
        assert isinstance(future.exception(LIMIT_S), TaskTimeout)
    assert "squares" in str(waiting.exception())
    assert f"{SHORT_S:g} s" in str(waiting.exception())
    gate.open()
    front.close()
    assert gate.first.result(LIMIT_S) == 1


def test_batch_that_hangs_is_ended(one: AmorsizeExecutor) -> None:
    pid = one.submit(tasks.pid).result(LIMIT_S)
    with one.options(timeout=SHORT_S).batch(hang) as front:
        assert isinstance(front.submit(1).exception(LIMIT_S), TaskTimeout)
    assert one.submit(tasks.pid).result(LIMIT_S) != pid


def test_blocked_caller_is_given_up_in_time(one: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> None:
    gate = Gate(one, make_signal)
    front = one.options(timeout=SHORT_S, max_pending=1).batch(squares)
    futures = [front.submit(i) for i in range(3)]
    assert all(isinstance(future.exception(LIMIT_S), TaskTimeout) for future in futures)
    gate.open()
    front.close()


def test_higher_priority_goes_first(one: AmorsizeExecutor, make_signal: Callable[[], Signal], tmp_path: Path) -> None:
    gate = Gate(one, make_signal)
    path = str(tmp_path / "notes")
    low = one.batch(lambda items: [note(path, 1) for _ in items])
    high = one.options(priority=1).batch(lambda items: [note(path, 2) for _ in items])
    futures = [low.submit(0), high.submit(0)]
    gate.open()
    wait(futures, LIMIT_S)
    assert Path(path).read_text() == "2\n1\n"


def test_shutdown_of_a_view_waits_for_its_fronts(one: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> None:
    gate = Gate(one, make_signal)
    with one.options() as view:
        front = view.batch(squares)
        futures = [front.submit(i) for i in range(4)]
        gate.open()
    assert [future.result(0) for future in futures] == [0, 1, 4, 9]
    with pytest.raises(RuntimeError):
        front.submit(1)
    assert one.submit(tasks.square, 2).result(LIMIT_S) == 4


# ---------------------------------------------------------------------- ends


def test_close_waits_for_what_came_and_takes_no_more(gate: Gate) -> None:
    futures = [gate.front.submit(i) for i in range(4)]
    threading.Timer(0.05, gate.open).start()
    gate.front.close()
    assert all(future.done() for future in futures)
    with pytest.raises(RuntimeError, match="close"):
        gate.front.submit(1)
    gate.front.close()


def test_close_may_cancel_what_waits(gate: Gate) -> None:
    gate.front.submit(0)
    futures = [gate.front.submit(i) for i in range(4)]
    gate.front.close(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in futures)
    gate.open()
    gate.front.close()
    assert gate.first.result(0) == 1


def test_shutdown_lets_calls_end(make_signal: Callable[[], Signal]) -> None:
    executor = AmorsizeExecutor(1)
    gate = Gate(executor, make_signal)
    futures = [gate.front.submit(i) for i in range(4)]
    executor.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="shutdown"):
        gate.front.submit(5)
    gate.open()
    executor.shutdown()
    assert all(future.result(0) for future in futures)


def test_shutdown_lets_a_batch_be_split(make_signal: Callable[[], Signal]) -> None:
    executor = AmorsizeExecutor(1)
    gate = Gate(executor, make_signal)
    front = executor.batch(functools.partial(squares_but, (5,)))
    futures = [front.submit(i) for i in range(9)]
    gate.open()
    executor.shutdown()
    assert [future.done() for future in futures] == [True] * 9
    assert [future.exception(0) is None for future in futures] == [i != 5 for i in range(9)]


def test_shutdown_may_cancel_calls(make_signal: Callable[[], Signal]) -> None:
    executor = AmorsizeExecutor(1)
    gate = Gate(executor, make_signal)
    futures = [gate.front.submit(i) for i in range(4)]
    executor.shutdown(wait=False, cancel_futures=True)
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(LIMIT_S)
    gate.open()
    executor.shutdown()
    assert gate.first.result(0) == 1


def test_shutdown_may_cancel_a_batch_that_waits_for_a_worker(make_signal: Callable[[], Signal]) -> None:
    executor = AmorsizeExecutor(1)
    gate = Gate(executor, make_signal)
    future = executor.batch(squares).submit(1)
    executor.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(CancelledError):
        future.result(LIMIT_S)
    gate.open()
    executor.shutdown()


@pytest.mark.parametrize("n_waiting", [0, 5])
def test_killed_workers_fail_all_calls(make_signal: Callable[[], Signal], n_waiting: int) -> None:
    executor = AmorsizeExecutor(1)
    gate = Gate(executor, make_signal)
    futures = [gate.front.submit(i) for i in range(n_waiting)]
    executor.kill_workers()
    for future in (gate.first, *futures):
        assert isinstance(future.exception(LIMIT_S), BrokenProcessPool)
    with pytest.raises(BrokenProcessPool):
        gate.front.submit(1)
    executor.shutdown()


def test_executor_that_cannot_start_workers_fails_all_calls() -> None:
    with AmorsizeExecutor(1, initializer=tasks.fail_to_initialize, initargs=("no",)) as executor:
        front = executor.batch(squares)
        for future in _submitted(front, 10):
            assert isinstance(future.exception(LIMIT_S), BrokenProcessPool)


def _submitted(front: Batcher[int, int], n: int) -> Iterator[Future[int]]:
    for i in range(n):
        try:
            yield front.submit(i)
        except BrokenProcessPool:
            return


def test_calls_end_when_the_interpreter_does(tmp_path: Path) -> None:
    source = """
        import time
        from amorsize_executor import AmorsizeExecutor
        def slow(items):
            time.sleep(0.1)
            return items
        front = AmorsizeExecutor(1).batch(slow)
        for i in range(5):
            front.submit(i).add_done_callback(lambda future: print(future.result(), flush=True))
    """
    assert sorted(run_script(tmp_path, source).split()) == list("01234")


def test_front_keeps_its_executor() -> None:
    front = AmorsizeExecutor(1).batch(squares)
    gc.collect()
    assert front(3) == 9
    front.close()


def test_front_works_in_the_child_of_a_fork(tmp_path: Path) -> None:
    source = """
        import os, warnings
        from amorsize_executor import AmorsizeExecutor
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads
        def doubled(items):
            return [2 * item for item in items]
        ex = AmorsizeExecutor(1)
        front = ex.batch(doubled)
        print(front(1), flush=True)
        pid = os.fork()
        print(front(2), flush=True)
        ex.shutdown()
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)
    """
    assert sorted(run_script(tmp_path, source).split()) == ["2", "4", "4"]


def test_callback_may_call_the_front(executor: AmorsizeExecutor) -> None:
    followed: Future[int] = Future()
    with executor.batch(squares) as front:
        front.submit(2).add_done_callback(
            lambda future: front.submit(future.result()).add_done_callback(
                lambda next: followed.set_result(next.result())
            )
        )
        assert followed.result(LIMIT_S) == 16


def test_executor_without_calls_has_no_front(one: AmorsizeExecutor) -> None:
    front = one.batch(squares)
    front(1)
    front.close()
    assert front.stats().running == 0
    del front
    gc.collect()
    assert not [found for found in gc.get_objects() if type(found) is Batcher]


# ---------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ({"max_batch_size": 0}, ValueError),
        ({"max_batch_size": 1.5}, TypeError),
        ({"max_delay": -1}, ValueError),
        ({"max_delay": "1"}, TypeError),
        ({"target_latency": -0.1}, ValueError),
    ],
)
def test_wrong_parameters_are_refused(executor: AmorsizeExecutor, how: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(how))):
        executor.batch(squares, **how)


def test_function_must_be_callable(executor: AmorsizeExecutor) -> None:
    with pytest.raises(TypeError, match="fn"):
        executor.batch(3)  # type: ignore[arg-type]


def test_no_front_after_shutdown() -> None:
    executor = AmorsizeExecutor(1)
    executor.shutdown()
    with pytest.raises(RuntimeError, match="shutdown"):
        executor.batch(squares)


def test_all_parameters_together(executor: AmorsizeExecutor) -> None:
    with executor.batch(squares, max_batch_size=8, max_delay=1e-3, target_latency=20e-3) as front:
        futures = [front.submit(i) for i in range(200)]
        assert [future.result(LIMIT_S) for future in futures] == [i * i for i in range(200)]
        assert max(front.stats().sizes) <= 8
