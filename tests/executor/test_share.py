"""`share`: one copy for all tasks, until it is closed."""

from __future__ import annotations

import functools
import gc
import os
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from amorsize_executor import AmorsizeExecutor, SerializationError, Shared

from . import tasks
from .tools import LIMIT_S, Signal

N = 50_000


@pytest.fixture
def array() -> Any:
    return np.arange(float(N))


@pytest.fixture
def shared(executor: AmorsizeExecutor, array: Any) -> Iterator[Shared[Any]]:
    with executor.share(array) as handle:
        yield handle


def _sum_of_all(*args: Any, **kwargs: Any) -> float:
    """Sum of all arrays, wherever they stand."""
    total = 0.0
    for value in (*args, *kwargs.values()):
        if isinstance(value, dict):
            total += _sum_of_all(**value)
        elif isinstance(value, (list, tuple)):
            total += _sum_of_all(*value)
        else:
            assert type(value) is np.ndarray
            total += float(value.sum())
    return total


def test_it_may_stand_anywhere_in_the_arguments(executor: AmorsizeExecutor, shared: Any, array: Any) -> None:
    total = float(array.sum())
    assert executor.submit(_sum_of_all, shared).result(LIMIT_S) == total
    assert executor.submit(_sum_of_all, (shared, [shared]), key={"x": shared}).result(LIMIT_S) == 3 * total
    assert executor.submit(functools.partial(_sum_of_all, shared), key=shared).result(LIMIT_S) == 2 * total
    assert executor.submit(lambda: _sum_of_all(shared)).result(LIMIT_S) == total
    assert list(executor.map(_sum_of_all, [shared] * 4, [array] * 4)) == [2 * total] * 4
    assert list(executor.map(lambda i: _sum_of_all(shared) + i, range(4))) == [total + i for i in range(4)]


def test_it_may_stand_anywhere_in_items_that_the_caller_runs(shared: Any, array: Any) -> None:
    total = float(array.sum())
    with AmorsizeExecutor(2) as automatic:
        assert list(automatic.map(_sum_of_all, [(shared, [shared])] * 2)) == [2 * total] * 2
        assert list(automatic.map(functools.partial(_sum_of_all, shared), [shared] * 2)) == [2 * total] * 2
        assert list(automatic.map(lambda i: _sum_of_all(shared) + i, range(2))) == [total, total + 1]
        assert set(automatic.map(_overwritten, [shared] * 5)) == {0.0}


def _overwritten(array: Any) -> float:
    found = float(array[0])
    array[:] = 5
    return found


def test_later_changes_of_the_object_are_not_seen(executor: AmorsizeExecutor, array: Any) -> None:
    with executor.share(array) as shared:
        array[:] = -1
        assert executor.submit(tasks.total, shared).result(LIMIT_S) == N * (N - 1) / 2
        assert shared.get().sum() == N * (N - 1) / 2


@pytest.mark.parametrize(
    "obj",
    [5, None, "text", b"x" * 200_000, [1] * 100_000, {"a": np.ones(N), "b": bytearray(100_000)}, np.ones(3)],
    ids=lambda obj: type(obj).__name__,
)
def test_any_object_can_be_shared(executor: AmorsizeExecutor, obj: Any) -> None:
    with executor.share(obj) as shared:
        for _ in range(2):
            assert executor.submit(_described, shared).result(LIMIT_S) == _described(obj)
            assert _described(shared.get()) == _described(obj)


def _described(obj: Any) -> str:
    return repr(obj)[:1000]


def test_a_handle_inside_a_shared_object(executor: AmorsizeExecutor, shared: Any, array: Any) -> None:
    with executor.share({"inner": shared, "own": array}) as outer:
        assert executor.submit(_sum_of_all, outer).result(LIMIT_S) == 2 * array.sum()
        assert _sum_of_all(outer.get()) == 2 * array.sum()


def test_several_executors_take_it(shared: Any, array: Any) -> None:
    with AmorsizeExecutor(1) as first, AmorsizeExecutor(1, mp_context="spawn") as second:
        futures = [executor.submit(tasks.total, shared) for executor in (first, second, first)]
        assert {future.result(LIMIT_S) for future in futures} == {array.sum()}


def test_a_closed_handle_says_so(executor: AmorsizeExecutor, array: Any) -> None:
    shared = executor.share(array)
    assert not shared.is_closed
    assert "open" not in repr(shared)
    shared.close()
    shared.close()
    assert shared.is_closed
    name = r"<Shared ndarray, 400,\d+ bytes, closed> was closed"
    for fails in (
        lambda: executor.submit(tasks.total, shared).result(LIMIT_S),
        lambda: executor.submit(lambda: shared).result(LIMIT_S),
        lambda: list(executor.map(tasks.total, [shared])),
        shared.get,
        shared.__enter__,
    ):
        with pytest.raises(ValueError, match=name):
            fails()
    with AmorsizeExecutor(1) as automatic, pytest.raises(ValueError, match=name):
        list(automatic.map(tasks.total, [shared]))
    assert executor.submit(tasks.square, 3).result(LIMIT_S) == 9


def test_tasks_that_were_submitted_have_it_though_it_is_closed(make_signal: Any, array: Any) -> None:
    started, go = make_signal(), make_signal()
    with AmorsizeExecutor(1) as executor:
        running = executor.submit(_total_later, started, go, executor.share(array))
        started.take()
        shared = executor.share(array)
        waiting = executor.submit(tasks.total, shared)
        shared.close()
        gc.collect()
        go.give()
        assert running.result(LIMIT_S) == waiting.result(LIMIT_S) == array.sum()


def _total_later(started: Signal, go: Signal, array: Any) -> float:
    started.give()
    go.take()
    return float(array.sum())


def test_it_goes_nowhere_else(shared: Any) -> None:
    with pytest.raises(SerializationError, match=r"Shared ndarray.* cannot be pickled here"):
        pickle.dumps(shared)


def test_it_is_no_result(executor: AmorsizeExecutor, array: Any) -> None:
    future = executor.submit(_share_there, 3)
    with pytest.raises(SerializationError, match="cannot be pickled here"):
        future.result(LIMIT_S)


def _share_there(obj: Any) -> Any:
    return Shared(obj)


def test_what_cannot_be_pickled_cannot_be_shared(executor: AmorsizeExecutor) -> None:
    with pytest.raises(SerializationError, match="the object to share, a 'generator' object"):
        executor.share(i for i in range(3))


def test_an_executor_that_was_shut_down_shares_nothing(array: Any) -> None:
    executor = AmorsizeExecutor(1)
    executor.shutdown()
    with pytest.raises(RuntimeError, match="shutdown"):
        executor.share(array)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors by /proc")
def test_a_handle_that_is_dropped_gives_up_its_memory(executor: AmorsizeExecutor, array: Any) -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        executor.share(array)
        with executor.share([array]):
            pass
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


def _add_to_small(shared: Any, i: int) -> float:
    shared["small"][:] += 1
    return float(shared["small"].sum())


@pytest.mark.parametrize("inline", ["auto", "never"])
def test_small_arrays_are_each_tasks_own_too(inline: Any) -> None:
    with AmorsizeExecutor(2, inline=inline) as executor, executor.share({"small": np.zeros(10)}) as shared:
        assert list(executor.map(_add_to_small, [shared] * 8, range(8))) == [10.0] * 8
        shared.get()["small"][:] = 5
        assert shared.get()["small"].sum() == 0


@pytest.mark.parametrize("n", [10, 5_000, 100_000])
def test_what_is_shared_counts_once(n: int) -> None:
    with Shared(list(range(n))) as shared:
        assert shared.get() == list(range(n))
        assert shared.nbytes == pytest.approx(len(pickle.dumps(list(range(n)), 5)), abs=100)
