"""What concurrent.futures promises of map, and what this executor adds."""

from __future__ import annotations

import gc
import io
import itertools
import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FuturesTimeout
from functools import partial
from typing import Any

import pytest

from amorsize_executor import AmorsizeExecutor, CostModel

from . import tasks
from .tools import LIMIT_S, Signal


@pytest.fixture(params=["auto", "never"])
def either(request: pytest.FixtureRequest, executor: AmorsizeExecutor, automatic: AmorsizeExecutor) -> AmorsizeExecutor:
    """The executor that may run items in the caller, and the one that may not."""
    return automatic if request.param == "auto" else executor


def test_results_come_in_the_order_of_the_items(either: AmorsizeExecutor) -> None:
    assert list(either.map(tasks.square, range(1000))) == [i * i for i in range(1000)]


def test_several_iterables_end_with_the_shortest(either: AmorsizeExecutor) -> None:
    assert list(either.map(tasks.add, range(10), itertools.count(100))) == [100 + 2 * i for i in range(10)]


def test_three_iterables(either: AmorsizeExecutor) -> None:
    assert list(either.map(pow, [2, 3, 4], [10, 4, 2], [1000, 1000, 1000])) == [24, 81, 16]


def test_items_that_are_tuples_stay_one_argument(either: AmorsizeExecutor) -> None:
    assert list(either.map(tasks.identity, [(1, 2), (), (3,)])) == [(1, 2), (), (3,)]


def test_no_items_give_no_results(either: AmorsizeExecutor) -> None:
    assert list(either.map(tasks.square, [])) == []
    assert list(either.map(tasks.add, [], [1])) == []


def test_the_result_is_an_iterator(either: AmorsizeExecutor) -> None:
    results = either.map(tasks.square, [3, 4])
    assert iter(results) is results
    assert next(results) == 9
    assert next(results) == 16
    with pytest.raises(StopIteration):
        next(results)


def test_iterables_are_read_at_once_in_the_calling_thread(either: AmorsizeExecutor) -> None:
    readers = set()

    def items() -> Iterator[int]:
        for i in range(10):
            readers.add(threading.current_thread())
            yield i

    results = either.map(tasks.square, items())
    assert readers == {threading.current_thread()}
    assert list(results) == [i * i for i in range(10)]


def test_an_exception_of_the_input_is_the_callers(either: AmorsizeExecutor) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("the input is broken")

    with pytest.raises(KeyError, match="the input is broken"):
        either.map(tasks.square, items())
    assert list(either.map(tasks.square, [2])) == [4]


def test_an_exception_comes_in_the_place_of_its_result(either: AmorsizeExecutor) -> None:
    results = either.map(partial(tasks.fail_on, 3), range(6))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="3 is bad"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


@pytest.mark.parametrize("chunksize", [None, 1, 20])
def test_a_stop_iteration_of_the_function_does_not_end_the_results(
    either: AmorsizeExecutor, chunksize: int | None
) -> None:
    """As from a `next` that finds nothing; a generator makes a RuntimeError of it, as the standard pool's map does."""
    for _ in range(3):  # unknown, then known, then known to be short
        results = either.map(tasks.stop_at_17, range(20), chunksize=chunksize)
        assert [next(results) for _ in range(17)] == list(range(17))
        with pytest.raises(RuntimeError, match="raised StopIteration"):
            next(results)
        assert list(either.map(tasks.stop_at_17, range(17), chunksize=chunksize)) == list(range(17))


def test_a_stop_iteration_of_the_function_ends_no_group_that_is_claimed_bit_by_bit() -> None:
    with AmorsizeExecutor(2, inline="never", cost_model=CostModel()) as executor:
        for n_items in (10, 100, 1_000, 10_000):
            with pytest.raises(RuntimeError, match="raised StopIteration"):
                list(executor.map(tasks.stop_at_last, [(i, n_items - 1) for i in range(n_items)]))


def test_an_exception_in_a_worker_carries_the_remote_traceback(executor: AmorsizeExecutor) -> None:
    with pytest.raises(ValueError) as caught:
        list(executor.map(partial(tasks.fail_on, 3), range(6)))
    assert "fail_on" in str(caught.value.__cause__)


def test_unordered_results_are_the_same_in_any_order(either: AmorsizeExecutor) -> None:
    assert Counter(either.map(tasks.square, range(500), ordered=False)) == Counter(i * i for i in range(500))


def test_unordered_results_do_not_wait_for_a_slow_first_item(
    executor: AmorsizeExecutor, make_signal: Callable[[], Signal]
) -> None:
    go = make_signal()
    results = executor.map(_first_waits, [(go, 0), (None, 1), (None, 2)], chunksize=1, ordered=False)
    assert {next(results), next(results)} == {1, 2}
    go.give()
    assert next(results) == 0


def _first_waits(item: tuple[Signal | None, int]) -> int:
    signal, value = item
    if signal is not None:
        signal.take()
    return value


# ---------------------------------------------------------------------- chunks


def test_a_given_chunksize_is_kept_exactly(executor: AmorsizeExecutor) -> None:
    calls = list(executor.map(tasks.pid_and_call_number, range(50), chunksize=7))
    for start in range(0, 50, 7):
        chunk = calls[start : start + 7]
        assert len({pid for pid, _ in chunk}) == 1
        first = chunk[0][1]
        assert [number for _, number in chunk] == list(range(first, first + len(chunk)))
    plan = executor.last_plan
    assert plan is not None
    assert (plan.chunksize, plan.n_chunks) == (7, 8)


def test_a_chunksize_of_one_sends_single_items(executor: AmorsizeExecutor) -> None:
    assert list(executor.map(tasks.square, range(30), chunksize=1)) == [i * i for i in range(30)]
    assert executor.last_plan is not None
    assert executor.last_plan.n_chunks == 30


def test_a_chunksize_above_the_number_of_items_sends_one_chunk(executor: AmorsizeExecutor) -> None:
    calls = list(executor.map(tasks.pid_and_call_number, range(20), chunksize=1000))
    assert len({pid for pid, _ in calls}) == 1
    assert executor.last_plan is not None
    assert executor.last_plan.n_chunks == 1


def test_short_items_are_sent_in_chunks_unasked(executor: AmorsizeExecutor) -> None:
    assert len(list(executor.map(tasks.square, range(20_000)))) == 20_000
    assert executor.last_plan is not None
    assert executor.last_plan.n_chunks < 2_000


# ---------------------------------------------------------------------- timeouts


def test_a_timeout_is_raised_for_a_result_that_is_late(
    executor: AmorsizeExecutor, make_signal: Callable[[], Signal]
) -> None:
    go = make_signal()
    results = executor.map(partial(tasks.take_then, go), range(2), timeout=0.05)
    with pytest.raises(FuturesTimeout):
        next(results)
    go.give(2)


def test_a_timeout_counts_from_the_call_and_not_from_next(executor: AmorsizeExecutor) -> None:
    results = executor.map(tasks.square, range(3), timeout=LIMIT_S)
    assert list(results) == [0, 1, 4]


def test_with_a_timeout_nothing_runs_in_the_caller(automatic: AmorsizeExecutor) -> None:
    assert os.getpid() not in set(automatic.map(tasks.pid, range(20), timeout=LIMIT_S))


@pytest.mark.parametrize("timeout", [float("inf"), 1e300, 10**12])
def test_an_endless_timeout_is_no_timeout(executor: AmorsizeExecutor, timeout: float) -> None:
    assert list(executor.map(tasks.square, range(3), timeout=timeout)) == [0, 1, 4]


# ---------------------------------------------------------------------- buffersize


class _Counted:
    """An endless input that knows how far it was read."""

    def __init__(self, stop: int | None = None) -> None:
        self.n_read = 0
        self.stop = stop

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        if self.n_read == self.stop:
            raise StopIteration
        self.n_read += 1
        return self.n_read - 1


@pytest.mark.parametrize("buffersize", [1, 2, 7, 100])
def test_no_more_than_the_buffer_is_read_ahead(either: AmorsizeExecutor, buffersize: int) -> None:
    items = _Counted()
    results = either.map(tasks.square, items, buffersize=buffersize)
    assert items.n_read <= buffersize
    for taken in range(1, 300):
        assert next(results) == (taken - 1) ** 2
        assert items.n_read <= taken + buffersize
    results.close()  # type: ignore[attr-defined]


def test_an_endless_input_can_be_mapped(either: AmorsizeExecutor) -> None:
    results = either.map(tasks.square, itertools.count(), buffersize=10)
    assert list(itertools.islice(results, 1000)) == [i * i for i in range(1000)]
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("n_items", [0, 1, 9, 10, 11, 57])
def test_a_finite_input_is_mapped_whole_with_a_buffer(either: AmorsizeExecutor, n_items: int) -> None:
    assert list(either.map(tasks.square, _Counted(n_items), buffersize=10)) == [i * i for i in range(n_items)]


def test_a_buffer_works_with_several_iterables(either: AmorsizeExecutor) -> None:
    assert list(either.map(tasks.add, itertools.count(), range(40), buffersize=3)) == [2 * i for i in range(40)]


def test_a_buffer_works_unordered_and_with_a_chunksize(executor: AmorsizeExecutor) -> None:
    results = executor.map(tasks.square, range(100), buffersize=20, chunksize=4, ordered=False)
    assert sorted(results) == [i * i for i in range(100)]


@pytest.mark.parametrize("ordered", [True, False])
def test_a_buffered_map_keeps_no_item_that_is_done(either: AmorsizeExecutor, ordered: bool) -> None:
    alive: weakref.WeakSet[_Item] = weakref.WeakSet()

    def items() -> Iterator[_Item]:
        while True:
            item = _Item()
            alive.add(item)
            yield item

    results = either.map(_nothing, items(), buffersize=8, ordered=ordered)
    for _ in range(500):
        next(results)
    gc.collect()
    assert len(alive) <= 16
    results.close()  # type: ignore[attr-defined]


class _Item:
    """Something that can be referred to weakly."""


def _nothing(_: object) -> None:
    pass


def test_the_input_is_read_in_the_thread_that_takes_results(either: AmorsizeExecutor) -> None:
    readers = set()

    def items() -> Iterator[int]:
        for i in range(50):
            readers.add(threading.current_thread())
            yield i

    assert len(list(either.map(tasks.square, items(), buffersize=4))) == 50
    assert readers == {threading.current_thread()}


def test_an_input_that_fails_later_raises_where_results_are_taken(either: AmorsizeExecutor) -> None:
    def items() -> Iterator[int]:
        yield from range(20)
        raise KeyError("the input is broken")

    results = either.map(tasks.square, items(), buffersize=5)
    with pytest.raises(KeyError, match="the input is broken"):
        list(results)
    assert list(either.map(tasks.square, [2])) == [4]


def test_shutdown_does_not_wait_for_the_unread_rest_of_an_endless_input() -> None:
    with AmorsizeExecutor(max_workers=1) as executor:
        results = executor.map(tasks.square, itertools.count(), buffersize=5)
        assert [next(results) for _ in range(3)] == [0, 1, 4]
    rest = []
    with pytest.raises(RuntimeError, match="after shutdown"):
        rest.extend(itertools.islice(results, 100))


def test_shutdown_runs_what_an_untouched_map_with_a_buffer_has_read(make_signal: Callable[[], Signal]) -> None:
    ran = make_signal()
    with AmorsizeExecutor(max_workers=1) as executor:
        executor.map(partial(tasks.give, ran), itertools.count(), buffersize=5)
    assert ran.count() == 5


# ---------------------------------------------------------------------- iterators that are not used up


def test_a_map_that_is_not_iterated_runs_in_the_background(
    either: AmorsizeExecutor, make_signal: Callable[[], Signal]
) -> None:
    ran = make_signal()
    results = either.map(partial(tasks.give, ran), range(20))
    ran.take(20)
    assert list(results) == list(range(20))


def test_an_iterator_that_is_closed_half_way_cancels_the_rest(make_signal: Callable[[], Signal]) -> None:
    ran, go = make_signal(), make_signal()
    with AmorsizeExecutor(max_workers=1, inline="never") as executor:
        results = executor.map(_give_and_wait, [(ran, None if i == 0 else go) for i in range(100)], chunksize=1)
        assert next(results) is None
        ran.take(2)
        results.close()  # type: ignore[attr-defined]
        go.give()
        assert executor.submit(tasks.square, 2).result(LIMIT_S) == 4
        go.give(100)
    assert ran.count() < 5  # what was with the worker, at most


def _give_and_wait(item: tuple[Signal, Signal | None]) -> None:
    ran, go = item
    ran.give()
    if go is not None:
        go.take()


def test_an_iterator_that_is_dropped_half_way_cancels_the_rest(make_signal: Callable[[], Signal]) -> None:
    ran, go = make_signal(), make_signal()
    with AmorsizeExecutor(max_workers=1, inline="never") as executor:
        for _ in executor.map(_give_and_wait, [(ran, None if i == 0 else go) for i in range(100)], chunksize=1):
            break
        gc.collect()
        go.give(100)
    assert ran.count() < 5


def test_a_map_that_is_never_iterated_is_still_run_before_shutdown_returns(make_signal: Callable[[], Signal]) -> None:
    ran = make_signal()
    with AmorsizeExecutor(max_workers=2) as executor:
        executor.map(partial(tasks.give, ran), range(30))
        unused = executor.map(partial(tasks.give, ran), range(30))
    assert ran.count() == 60
    assert list(unused) == list(range(30))


def test_results_can_be_taken_after_shutdown(either: AmorsizeExecutor) -> None:
    with AmorsizeExecutor(max_workers=1) as executor:
        results = executor.map(tasks.square, range(100))
    assert list(results) == [i * i for i in range(100)]


def test_cancelling_shutdown_ends_a_map_with_cancelled_error(make_signal: Callable[[], Signal]) -> None:
    started, go = make_signal(), make_signal()
    executor = AmorsizeExecutor(max_workers=1, inline="never")
    results = executor.map(partial(tasks.pause, started, go), range(50), chunksize=1)
    started.take()
    executor.shutdown(wait=False, cancel_futures=True)
    go.give(50)
    taken: list[Any] = []
    with pytest.raises(CancelledError):
        taken.extend(results)
    executor.shutdown()


def test_results_that_nobody_will_take_are_not_kept(
    executor: AmorsizeExecutor, make_signal: Callable[[], Signal]
) -> None:
    ran = make_signal()
    executor.map(partial(_traced, ran), [0])
    ran.take()
    for _ in range(20):  # until the result has come
        executor.submit(tasks.square, 2).result(LIMIT_S)
    gc.collect()
    assert not [o for o in gc.get_objects() if type(o) is _Traced]


class _Traced:
    pass


def _traced(ran: Signal, _: int) -> _Traced:
    ran.give()
    return _Traced()


# ---------------------------------------------------------------------- maps side by side


def test_maps_in_several_threads_at_once(either: AmorsizeExecutor) -> None:
    results: dict[int, list[int]] = {}

    def run(number: int) -> None:
        results[number] = list(either.map(tasks.add, range(2000), itertools.repeat(number)))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert results == {number: [i + number for i in range(2000)] for number in range(8)}


def test_maps_can_be_taken_in_turn(either: AmorsizeExecutor) -> None:
    first, second = either.map(tasks.square, range(500)), either.map(tasks.add, range(500), range(500))
    assert list(zip(first, second, strict=True)) == [(i * i, 2 * i) for i in range(500)]


def test_a_map_may_be_iterated_in_another_thread_than_it_was_made(either: AmorsizeExecutor) -> None:
    results = either.map(tasks.square, range(300))
    taken: list[int] = []
    thread = threading.Thread(target=lambda: taken.extend(results))
    thread.start()
    thread.join(LIMIT_S)
    assert taken == [i * i for i in range(300)]


def test_submits_go_on_beside_a_long_map(executor: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> None:
    go = make_signal()
    results = executor.map(partial(tasks.take_then, go), range(20), chunksize=1)
    future = executor.submit(tasks.square, 3)
    go.give(19)
    assert future.result(LIMIT_S) == 9
    go.give(1)
    assert list(results) == list(range(20))


# ---------------------------------------------------------------------- progress


@pytest.mark.parametrize("ordered", [True, False])
def test_a_progress_callable_hears_how_far_the_map_is(either: AmorsizeExecutor, ordered: bool) -> None:
    heard: list[tuple[int, int]] = []
    results = either.map(
        tasks.square, range(100), ordered=ordered, progress=lambda done, total: heard.append((done, total))
    )
    assert len(list(results)) == 100
    assert heard[-1] == (100, 100)
    assert {total for _, total in heard} == {100}
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)


def test_progress_of_an_input_without_known_length_has_no_total(executor: AmorsizeExecutor) -> None:
    heard: list[tuple[int, int]] = []
    items = executor.map(
        tasks.square, range(50), buffersize=5, progress=lambda done, total: heard.append((done, total))
    )
    assert len(list(items)) == 50
    assert heard[-1] == (50, -1)


def test_the_executors_progress_is_the_default_of_its_maps() -> None:
    heard: list[tuple[int, int]] = []
    with AmorsizeExecutor(max_workers=1, progress=lambda done, total: heard.append((done, total))) as executor:
        assert list(executor.map(tasks.square, range(10))) == [i * i for i in range(10)]
        assert heard[-1] == (10, 10)
        heard.clear()
        assert list(executor.map(tasks.square, range(10), progress=False)) == [i * i for i in range(10)]
    assert heard == []


def test_progress_tells_where_a_failed_map_stopped(executor: AmorsizeExecutor) -> None:
    heard: list[tuple[int, int]] = []
    with pytest.raises(ValueError, match="3 is bad"):
        list(
            executor.map(partial(tasks.fail_on, 3), range(6), progress=lambda done, total: heard.append((done, total)))
        )
    assert heard[-1] == (3, 6)


def test_an_exception_of_a_progress_callable_is_the_callers(executor: AmorsizeExecutor) -> None:
    def fail(done: int, total: int) -> None:
        raise KeyError("progress trouble")

    with pytest.raises(KeyError, match="progress trouble"):
        list(executor.map(tasks.square, range(10), progress=fail))
    assert list(executor.map(tasks.square, [3])) == [9]


def test_a_bar_writes_nothing_on_stdout(
    executor: AmorsizeExecutor, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert list(executor.map(tasks.square, range(10), progress=True)) == [i * i for i in range(10)]
    assert capsys.readouterr().out == ""


# ---------------------------------------------------------------------- the plan


def test_the_plan_of_items_that_are_read_lazily_tells_of_all_of_them(either: AmorsizeExecutor) -> None:
    list(either.map(tasks.square, range(1_000)))
    assert len(list(either.map(tasks.square, range(3_000), buffersize=10))) == 3_000
    plan = either.last_plan
    assert plan is not None
    assert plan.item_s is not None
    assert plan.predicted_s is not None
    assert plan.n_items == 3_000
    assert plan.serial_s == pytest.approx(3_000 * plan.item_s, rel=0.5)  # 1,000 would be a third
    assert plan.predicted_s >= plan.serial_s / 2


def test_the_last_plan_tells_what_a_map_did(executor: AmorsizeExecutor) -> None:
    assert list(executor.map(tasks.square, range(100))) == [i * i for i in range(100)]
    plan = executor.last_plan
    assert plan is not None
    assert plan.function == "square"
    assert plan.n_items == 100
    assert plan.n_workers in (1, 2)
    assert not plan.is_serial
    assert plan.chunksize >= 1
    assert plan.n_inline == 0
    assert plan.n_chunks >= 1
    assert plan.actual_s is not None
    assert plan.actual_s > 0
    assert plan.constraint == "inline='never'"
    assert "square" in str(plan)
    assert plan.reason in str(plan)


def test_the_plan_of_a_tiny_map_is_serial() -> None:
    with AmorsizeExecutor(max_workers=2) as executor:
        assert executor.last_plan is None
        assert list(executor.map(_tiny, range(100))) == list(range(100))
        plan = executor.last_plan
    assert plan is not None
    assert plan.is_serial
    assert (plan.n_items, plan.n_inline, plan.n_chunks, plan.n_workers) == (100, 100, 0, 0)
    assert plan.item_s is not None
    assert plan.serial_s is not None
    assert plan.constraint == ""
    assert "serial" in plan.reason


def _tiny(x: int) -> int:
    return x


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("n_items", [1, 4, 5, 20])
def test_a_map_that_is_read_lazily_is_over_when_its_input_is(
    either: AmorsizeExecutor, n_items: int, ordered: bool
) -> None:
    results = either.map(tasks.square, range(n_items), buffersize=4, ordered=ordered)
    assert sorted(results) == [x * x for x in range(n_items)]
    plan = either.last_plan
    assert plan is not None
    assert plan.n_items == n_items
    assert plan.actual_s is not None, "it counts as running, and is remembered"
    assert not either._dispatcher.maps.jobs


def test_a_known_function_has_a_prediction_before_it_runs(executor: AmorsizeExecutor) -> None:
    list(executor.map(tasks.square, range(100)))
    results = executor.map(tasks.square, range(100))
    plan = executor.last_plan
    assert plan is not None
    assert plan.item_s is not None
    assert plan.predicted_s is not None
    assert plan.actual_s is None
    assert len(plan.considered) == 2
    list(results)


def test_the_reason_names_what_kept_items_out_of_the_caller(automatic: AmorsizeExecutor) -> None:
    list(automatic.map(tasks.square, range(10), timeout=LIMIT_S))
    plan = automatic.last_plan
    assert plan is not None
    assert plan.constraint == "a timeout is set"
    assert "a timeout is set" in plan.reason


def test_items_behind_a_blocked_one_go_to_another_worker(make_signal: Callable[[], Signal]) -> None:
    go = make_signal()
    with AmorsizeExecutor(max_workers=2, inline="never", cost_model=CostModel()) as executor:
        go.give()
        assert list(executor.map(tasks.take_at_zero, [go] * 200, range(200))) == list(range(200))  # known from now on
        results = executor.map(tasks.take_at_zero, [go] * 2000, range(2000), ordered=False)
        before = set(itertools.islice(results, 1500))  # all but perhaps those that were claimed with the blocked one
        assert 0 not in before
        go.give()
        assert before | set(results) == set(range(2000))


def test_a_chunk_of_a_fixed_size_stays_together_behind_a_blocked_item(make_signal: Callable[[], Signal]) -> None:
    go = make_signal()
    with AmorsizeExecutor(max_workers=2, inline="never") as executor:
        results = executor.map(tasks.take_at_zero, [go] * 200, range(200), ordered=False, chunksize=50)
        assert sorted(itertools.islice(results, 150)) == list(range(50, 200))
        go.give()
        assert sorted(results) == list(range(50))


def test_a_chunk_of_a_fixed_size_does_not_wait_behind_a_blocked_one(make_signal: Callable[[], Signal]) -> None:
    go = make_signal()
    with AmorsizeExecutor(max_workers=2, inline="never", cost_model=CostModel()) as executor:
        for _ in range(3):  # known to be short, so each worker gets two chunks
            executor.submit(tasks.take_at_zero, go, 1).result(LIMIT_S)
        for _ in range(3):
            results = executor.map(tasks.take_at_zero, [go] * 200, range(200), ordered=False, chunksize=50)
            assert sorted(itertools.islice(results, 150)) == list(range(50, 200))
            go.give()
            assert sorted(results) == list(range(50))


def test_tasks_in_a_group_behind_a_blocked_one_get_a_worker(make_signal: Callable[[], Signal]) -> None:
    go = make_signal()
    with AmorsizeExecutor(max_workers=2, cost_model=CostModel()) as executor:
        go.give()
        executor.submit(tasks.take_at_zero, go, 0).result(LIMIT_S)  # known to be short from now on
        for _ in range(2):  # with one worker, then with two
            futures = [executor.submit(tasks.take_at_zero, go, x) for x in range(300)]
            assert [future.result(LIMIT_S) for future in futures[1:]] == list(range(1, 300))
            assert not futures[0].done()
            go.give()
            assert futures[0].result(LIMIT_S) == 0


def test_workers_begin_while_a_generator_still_makes_items(make_signal: Callable[[], Signal]) -> None:
    ran = make_signal()

    def items() -> Iterator[tuple[Signal, int]]:
        for x in range(200):
            if x == 100:
                ran.take(1)  # what was made before runs meanwhile
            yield ran, x

    with AmorsizeExecutor(max_workers=2, inline="never") as executor:
        assert list(executor.map(tasks.call, itertools.repeat(give_and_return), items())) == list(range(200))


def give_and_return(item: tuple[Signal, int]) -> int:
    item[0].give()
    return item[1]


def test_a_generator_that_raises_raises_from_map(either: AmorsizeExecutor) -> None:
    def items() -> Iterator[int]:
        for x in range(10_000):
            if x == 5_000:
                raise ValueError("no more")
            yield x

    with pytest.raises(ValueError, match="no more"):
        either.map(tasks.square, items())
    assert list(either.map(tasks.square, iter(range(3)))) == [0, 1, 4]
