"""Functions, arguments and results of many kinds travel; what cannot travel harms only itself."""

from __future__ import annotations

import functools
import operator
import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from amorsize_executor import AmorsizeExecutor, SerializationError

from . import tasks
from .tools import LIMIT_S


def test_lambdas(executor: AmorsizeExecutor) -> None:
    assert executor.submit(lambda x: x + 1, 1).result() == 2
    assert list(executor.map(lambda x, y: x * y, range(5), range(5))) == [0, 1, 4, 9, 16]


def test_closures(executor: AmorsizeExecutor) -> None:
    factor, table = 3, {"a": 1}

    def scale(x: int) -> int:
        return x * factor + table["a"]

    assert executor.submit(scale, 5).result() == 16
    factor = 4
    assert executor.submit(scale, 5).result() == 21
    table["a"] = 2
    assert executor.submit(scale, 5).result() == 22
    assert list(executor.map(scale, [1, 2])) == [6, 10]


def test_recursive_closures(executor: AmorsizeExecutor) -> None:
    def factorial(n: int) -> int:
        return 1 if n < 2 else n * factorial(n - 1)

    assert executor.submit(factorial, 20).result() == functools.reduce(operator.mul, range(1, 21))


def test_partials(executor: AmorsizeExecutor) -> None:
    assert executor.submit(functools.partial(tasks.add, 1), 2).result() == 3
    assert executor.submit(functools.partial(int, base=2), "101").result() == 5
    assert list(executor.map(functools.partial(functools.partial(pow, 2), mod=7), range(5))) == [1, 2, 4, 1, 2]


def test_bound_methods_class_methods_and_static_methods(executor: AmorsizeExecutor) -> None:
    assert executor.submit(tasks.Counter(4).plus, 1).result() == 5
    assert executor.submit(tasks.Counter.of, 7).result().value == 7
    assert executor.submit(tasks.Counter.twice, 7).result() == 14
    assert list(executor.map(tasks.Counter(1).plus, range(4))) == [1, 2, 3, 4]


def test_callable_objects_and_classes(executor: AmorsizeExecutor) -> None:
    assert executor.submit(tasks.Counter(4), 3).result() == 12
    assert executor.submit(tasks.Counter, 3).result().value == 3


def test_a_method_sees_the_present_state_of_its_object(executor: AmorsizeExecutor) -> None:
    counter = tasks.Counter(1)
    assert executor.submit(counter.plus, 1).result() == 2
    counter.value = 10
    assert executor.submit(counter.plus, 1).result() == 11
    assert list(executor.map(counter.plus, [1, 2])) == [11, 12]


def test_builtins_and_methods_of_builtins(executor: AmorsizeExecutor) -> None:
    assert executor.submit(len, "four").result() == 4
    assert executor.submit("{}-{}".format, 1, 2).result() == "1-2"
    assert list(executor.map(str.upper, ["a", "b"])) == ["A", "B"]
    assert executor.submit(operator.itemgetter(1), [1, 2]).result() == 2


def test_classes_and_functions_made_in_a_function_travel_both_ways(executor: AmorsizeExecutor) -> None:
    class Point:
        def __init__(self, x: int) -> None:
            self.x = x

    made = executor.submit(Point, 3).result()
    assert made.x == 3
    assert executor.submit(operator.attrgetter("x"), Point(5)).result() == 5
    assert executor.submit(tasks.make_local).result()() is None


def test_many_functions_alternate(executor: AmorsizeExecutor) -> None:
    functions = [lambda x, n=n: x + n for n in range(600)]  # more than a worker remembers
    for _ in range(2):
        futures = [executor.submit(function, 1000) for function in functions]
        assert [future.result(LIMIT_S) for future in futures] == [1000 + n for n in range(600)]


# ---------------------------------------------------------------------- arguments and results


@pytest.mark.parametrize(
    "value",
    [
        None, True, 3, -(2**200), 1.5, float("inf"), 1j, "text", "\ud800", b"bytes", bytearray(b"x"), [1, [2]],
        (1, (2, (3, (4,)))), {"a": {1, 2}}, frozenset({1}), range(5), ..., NotImplemented, slice(1, 2), int,
        tasks.square, len, memoryview,
    ],
    ids=repr,
)  # fmt: skip
def test_values_arrive_as_they_are(executor: AmorsizeExecutor, value: Any) -> None:
    for result in (executor.submit(tasks.identity, value).result(), next(executor.map(tasks.identity, [value]))):
        assert result == value
        assert type(result) is type(value)


@pytest.mark.parametrize("n_bytes", [0, 1, 65_000, 65_536, 70_000, 1 << 20, 9 << 20])
def test_bytes_and_strings_of_any_size(executor: AmorsizeExecutor, n_bytes: int) -> None:
    data = bytes(n_bytes)
    assert executor.submit(tasks.identity, data).result() == data
    text = "x" * n_bytes
    assert list(executor.map(tasks.identity, [text, [text]])) == [text, [text]]


@pytest.mark.parametrize("n", [0, 1, 1000, 10_000, 1_000_000])
def test_arrays_arrive_writable_and_the_callers_stay_untouched(executor: AmorsizeExecutor, n: int) -> None:
    array = np.ones(n)
    assert executor.submit(tasks.double_in_place, array).result() == (True, 2.0 * n)
    assert list(executor.map(tasks.double_in_place, [array] * 3)) == [(True, 2.0 * n)] * 3
    assert array.sum() == n
    assert array.flags.writeable


@pytest.mark.parametrize("n", [0, 1, 1000, 10_000, 1_000_000])
def test_arrays_come_back_writable_and_each_its_own(executor: AmorsizeExecutor, n: int) -> None:
    first, second = executor.map(tasks.zeros, [n, n])
    assert first.flags.writeable
    assert second.flags.writeable
    first += 1
    assert first.sum() == n
    assert second.sum() == 0


def test_results_outlive_the_executor() -> None:
    with AmorsizeExecutor(max_workers=1, inline="never") as executor:
        array = executor.submit(tasks.identity, np.arange(1_000_000)).result()
    array[0] = 5
    assert array.sum() == 5 + sum(range(1_000_000))


def test_thousands_of_results_may_be_kept(executor: AmorsizeExecutor) -> None:
    arrays = list(executor.map(tasks.zeros, [10_000] * 3_000))
    assert sum(len(array) for array in arrays) == 30_000_000
    futures = [executor.submit(tasks.zeros, 10_000) for _ in range(1_500)]
    assert sum(len(future.result(LIMIT_S)) for future in futures) == 15_000_000


def test_arrays_among_other_things(executor: AmorsizeExecutor) -> None:
    big = np.arange(100_000)
    value = {"big": big, "again": big, "view": big[::2], "fortran": np.asfortranarray(np.ones((50, 400))), "n": 1}
    result = executor.submit(tasks.identity, value).result()
    assert result.keys() == value.keys()
    assert (result["big"] == big).all()
    assert (result["view"] == big[::2]).all()
    assert result["fortran"].flags.f_contiguous
    assert result["again"] is result["big"]


def test_a_read_only_array_stays_read_only(executor: AmorsizeExecutor) -> None:
    array = np.arange(100_000)
    array.flags.writeable = False
    assert not executor.submit(tasks.identity, array).result().flags.writeable


def test_object_arrays(executor: AmorsizeExecutor) -> None:
    array = np.array([1, "two", [3]], dtype=object)
    assert list(executor.submit(tasks.identity, array).result()) == [1, "two", [3]]


def test_items_of_one_map_that_share_an_object_do_not_see_each_others_changes(executor: AmorsizeExecutor) -> None:
    shared: list[int] = []
    assert list(executor.map(tasks.mutate, [shared] * 10, chunksize=5)) == [[0]] * 10
    assert shared == []


def test_mixed_sizes_in_one_map(executor: AmorsizeExecutor) -> None:
    items: list[Any] = [1, np.ones(100_000), "x", b"y" * 200_000, None, np.ones(3), [np.zeros(50_000)]] * 5
    for sent, received in zip(items, executor.map(tasks.identity, items), strict=True):
        assert type(received) is type(sent)
        assert pickle.dumps(received) == pickle.dumps(sent)


def test_many_large_submits_at_once(executor: AmorsizeExecutor) -> None:
    futures = [executor.submit(tasks.double_in_place, np.full(50_000, float(i))) for i in range(100)]
    assert [future.result(LIMIT_S) for future in futures] == [(True, 100_000.0 * i) for i in range(100)]


# ---------------------------------------------------------------------- what cannot travel


def _works(executor: AmorsizeExecutor) -> bool:
    return executor.submit(tasks.square, 3).result(LIMIT_S) == 9 and list(executor.map(tasks.square, [2])) == [4]


def test_a_function_that_cannot_be_pickled_is_named(executor: AmorsizeExecutor) -> None:
    lock = threading.Lock()

    def locked(_: int) -> bool:
        return lock.locked()

    with pytest.raises(SerializationError, match=r"function .*locked") as caught:
        executor.submit(locked, 1).result()
    assert isinstance(caught.value, (TypeError, pickle.PicklingError))
    with pytest.raises(SerializationError, match=r"function .*locked"):
        list(executor.map(locked, [1]))
    assert _works(executor)


def test_an_argument_that_cannot_be_pickled_is_named(executor: AmorsizeExecutor) -> None:
    with pytest.raises(TypeError, match=r"argument 1, a 'lock' object"):
        executor.submit(tasks.add, 1, threading.Lock()).result()
    with pytest.raises(TypeError, match=r"timeout=, a 'lock' object"):
        executor.submit(tasks.add, 1, timeout=threading.Lock()).result()
    with pytest.raises(TypeError, match=r"item 2 of map\(identity\).*'lock' object"):
        list(executor.map(tasks.identity, [0, [1], threading.Lock(), 3]))
    assert _works(executor)


def test_a_result_that_cannot_be_pickled_is_named(executor: AmorsizeExecutor) -> None:
    with pytest.raises(TypeError, match=r"result of make_lock, a 'lock' object"):
        executor.submit(tasks.make_lock).result()
    with pytest.raises(TypeError, match=r"result of make_lock"):
        list(executor.map(tasks.make_lock, range(3)))
    assert _works(executor)


@pytest.mark.parametrize("error", [ValueError, KeyError, MemoryError, RuntimeError, pickle.PicklingError])
def test_an_argument_that_raises_when_pickled_fails_alone(executor: AmorsizeExecutor, error: type[Exception]) -> None:
    with pytest.raises(error, match="no copies of me"):
        executor.submit(tasks.identity, tasks.Unpicklable(error)).result()
    results = executor.map(tasks.identity, [1, tasks.Unpicklable(error), 3], chunksize=3)
    assert next(results) == 1
    with pytest.raises(error, match="no copies of me"):
        next(results)
    assert _works(executor)


def test_an_argument_that_raises_when_unpickled_fails_alone(executor: AmorsizeExecutor) -> None:
    with pytest.raises(ValueError, match="not here"):
        executor.submit(tasks.identity, tasks.Unloadable()).result()
    results = executor.map(tasks.identity, [1, tasks.Unloadable(), 3], chunksize=3)
    assert next(results) == 1
    with pytest.raises(ValueError, match="not here"):
        next(results)
    assert _works(executor)


def test_a_result_that_raises_when_pickled_fails_alone(executor: AmorsizeExecutor) -> None:
    with pytest.raises(ValueError, match="no copies of me"):
        executor.submit(tasks.make_unpicklable).result()
    assert _works(executor)


def test_a_result_that_raises_when_unpickled_fails_alone(executor: AmorsizeExecutor) -> None:
    with pytest.raises(ValueError, match="not here"):
        executor.submit(tasks.make_unloadable).result()
    futures = [executor.submit(function) for function in (tasks.pid, tasks.make_unloadable, tasks.pid)]
    assert [type(future.exception(LIMIT_S)) for future in futures] == [type(None), ValueError, type(None)]
    assert _works(executor)


def test_a_function_that_raises_when_unpickled_fails_each_of_its_calls(executor: AmorsizeExecutor) -> None:
    function = functools.partial(tasks.identity, tasks.Unloadable())
    for future in [executor.submit(function) for _ in range(3)]:
        with pytest.raises(ValueError, match="not here"):
            future.result()
    assert _works(executor)


@pytest.mark.parametrize(
    ("kind", "args", "expected"),
    [
        (tasks.NeedsTwo, ("one", "two"), SerializationError),
        (tasks.HoldsLock, ("one",), SerializationError),
        (tasks.Mute, ("one",), SerializationError),
        (tasks.Impostor, ("one",), SerializationError),
        (tasks.Frozen, ("one",), tasks.Frozen),
        (KeyboardInterrupt, (), KeyboardInterrupt),
        (GeneratorExit, (), GeneratorExit),
        (RecursionError, ("deep",), RecursionError),
    ],
)
def test_odd_exceptions_arrive_or_are_described(
    executor: AmorsizeExecutor, kind: type[BaseException], args: tuple[str, ...], expected: type[BaseException]
) -> None:
    error = executor.submit(tasks.raise_instance, kind, *args).exception(LIMIT_S)
    assert type(error) is expected
    assert kind.__name__ in str(error.__cause__)
    if expected is SerializationError:
        assert kind.__name__ in str(error)
    assert _works(executor)


def test_exceptions_of_local_classes_arrive(executor: AmorsizeExecutor) -> None:
    class LocalError(Exception):
        pass

    def fail() -> None:
        raise LocalError("here")

    error = executor.submit(fail).exception(LIMIT_S)
    assert type(error).__name__ == "LocalError"
    assert str(error) == "here"


def test_chained_exceptions_show_their_chain(executor: AmorsizeExecutor) -> None:
    def fail() -> None:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("second") from error

    error = executor.submit(fail).exception(LIMIT_S)
    assert isinstance(error, ValueError)
    assert "KeyError: 'first'" in str(error.__cause__)


# ---------------------------------------------------------------------- depth


def test_endless_recursion_in_a_task_is_its_exception(executor: AmorsizeExecutor) -> None:
    with pytest.raises(RecursionError):
        executor.submit(tasks.recurse, 0).result()
    assert _works(executor)


@pytest.mark.parametrize("make", [tasks.nested_list, tasks.nested_tuple])
def test_deep_objects_travel_while_pickle_can_follow(executor: AmorsizeExecutor, make: Callable[[int], Any]) -> None:
    deep = make(100)
    assert executor.submit(tasks.identity, deep).result() == deep
    assert executor.submit(make, 100).result() == deep
    assert list(executor.map(tasks.identity, [deep, deep])) == [deep, deep]


@pytest.mark.parametrize("make", [tasks.nested_list, tasks.nested_tuple])
@pytest.mark.parametrize("inline", ["auto", "never"])
def test_objects_too_deep_for_pickle_are_an_error(
    executor: AmorsizeExecutor, automatic: AmorsizeExecutor, make: Callable[[int], Any], inline: str
) -> None:
    used = automatic if inline == "auto" else executor
    deep = make(20 * sys.getrecursionlimit())
    with pytest.raises((RecursionError, SerializationError)):
        used.submit(tasks.identity, deep).result()
    with pytest.raises((RecursionError, SerializationError)):
        list(used.map(tasks.identity, [deep]))
    with pytest.raises((RecursionError, SerializationError)):
        used.submit(make, 20 * sys.getrecursionlimit()).result()
    with pytest.raises((RecursionError, SerializationError)):
        list(used.map(make, [20 * sys.getrecursionlimit()]))
    assert _works(used)


def test_objects_with_many_paths_through_them_travel(executor: AmorsizeExecutor, automatic: AmorsizeExecutor) -> None:
    def depth(nested: Any) -> int:
        n = 0
        while nested:
            nested, n = nested[0], n + 1
        return n

    for used in (executor, automatic):
        assert depth(used.submit(tasks.identity, tasks.doubled_tuple(60)).result()) == 60
        assert [depth(result) for result in used.map(tasks.doubled_tuple, [60, 50])] == [60, 50]
