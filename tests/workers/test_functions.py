"""The table of functions: never stale, never sent twice without need."""

from __future__ import annotations

import functools
import math
import os.path
import threading
from collections.abc import Callable
from typing import Any

import pytest

from amorsize_executor import SerializationError
from amorsize_executor.workers.functions import FunctionTable, cost_key

_by_value = {"__name__": "__main__", "__builtins__": __builtins__}
"""Namespace of functions that no other process can import."""


def _make(source: str, **names: Any) -> Callable[..., Any]:
    """A function of ``__main__``."""
    namespace = {**_by_value, **names}
    exec(source, namespace)
    function: Callable[..., Any] = namespace["f"]
    return function


def test_the_same_function_has_the_same_number() -> None:
    table = FunctionTable()
    assert table.register(os.path.join).fn_id == table.register(os.path.join).fn_id
    f = lambda x: x + 1  # noqa: E731
    assert table.register(f).fn_id == table.register(f).fn_id


def test_different_functions_have_different_numbers() -> None:
    table = FunctionTable()
    functions = [len, os.path.join, lambda x: x + 1, lambda x: x + 2, functools.partial(int, base=2), str.upper]
    assert len({table.register(f).fn_id for f in functions}) == len(functions)


def test_what_is_sent_does_what_the_function_does() -> None:
    import pickle

    table, n = FunctionTable(), 5
    for f in (lambda x: x + n, functools.partial(pow, 2), math.sqrt, "{}".format):
        assert pickle.loads(table.register(f).data)(9) == f(9)


def test_fresh_equal_lambdas_share_a_number() -> None:
    table = FunctionTable()
    n = 5
    assert len({table.register(lambda x: x + n).fn_id for _ in range(10)}) == 1


def test_fresh_closures_over_the_same_object_share_a_number() -> None:
    table = FunctionTable()
    model = {"weights": [1.0, 2.0] * 1000}

    def make() -> Callable[[int], float]:
        return lambda i: model["weights"][i]

    assert len({table.register(make()).fn_id for _ in range(10)}) == 1
    model["weights"][0] = 7.0
    assert table.register(make()).local()(0) == 7.0


def test_fresh_lambdas_over_different_values_do_not() -> None:
    table = FunctionTable()
    functions = [lambda x, n=n: x + n for n in range(5)] + [_adding(n) for n in range(5)]
    assert len({table.register(f).fn_id for f in functions}) == 10


def _adding(n: int) -> Callable[[int], int]:
    return lambda x: x + n


def test_a_changed_global_is_seen() -> None:
    table = FunctionTable()
    f = _make("def f(x): return x + N", N=1)
    before = table.register(f).fn_id
    assert table.register(f).fn_id == before
    f.__globals__["N"] = 2
    assert table.register(f).fn_id != before
    f.__globals__["N"] = 1
    assert table.register(f).fn_id == before


def test_a_global_that_appears_later_is_seen() -> None:
    table = FunctionTable()
    f = _make("def f(x): return x + LATER")
    before = table.register(f).fn_id
    f.__globals__["LATER"] = 2
    assert table.register(f).fn_id != before


def test_a_global_that_shadows_a_builtin_is_seen() -> None:
    table = FunctionTable()
    f = _make("def f(x): return abs(x)")
    before = table.register(f).fn_id
    f.__globals__["abs"] = f.__globals__["f"]
    assert table.register(f).fn_id != before


def test_a_changed_helper_is_seen() -> None:
    table = FunctionTable()
    f = _make("def g(x): return x + N\ndef f(x): return g(x)", N=1)
    before = table.register(f).fn_id
    f.__globals__["N"] = 2
    assert table.register(f).fn_id != before
    f.__globals__["N"] = 1
    assert table.register(f).fn_id == before
    f.__globals__["g"] = lambda x: x
    assert table.register(f).fn_id != before


def test_a_global_used_in_an_inner_function_is_seen() -> None:
    table = FunctionTable()
    f = _make("def f(x):\n    def inner():\n        return x + N\n    return inner()", N=1)
    before = table.register(f).fn_id
    f.__globals__["N"] = 2
    assert table.register(f).fn_id != before


def test_a_changed_closure_is_seen() -> None:
    table = FunctionTable()
    n = 1

    def f(x: int) -> int:
        return x + n

    before = table.register(f).fn_id
    n = 2
    assert table.register(f).fn_id != before


def test_changed_defaults_are_seen() -> None:
    table = FunctionTable()

    def f(x: int = 1, *, y: int = 2) -> int:
        return x + y

    numbers = [table.register(f).fn_id]
    f.__defaults__ = (5,)
    numbers.append(table.register(f).fn_id)
    f.__kwdefaults__ = {"y": 6}
    numbers.append(table.register(f).fn_id)
    f.__kwdefaults__["y"] = 7
    numbers.append(table.register(f).fn_id)
    assert len(set(numbers)) == 4


def test_changed_keyword_defaults_of_a_helper_are_seen() -> None:
    table = FunctionTable()
    f = _make("def g(x, *, y=1): return x + y\ndef f(x): return g(x)")
    before = table.register(f).fn_id
    f.__globals__["g"].__kwdefaults__["y"] = 2
    assert table.register(f).fn_id != before


def test_keyword_defaults_that_appear_later_are_seen() -> None:
    table = FunctionTable()
    f = _make("def f(x, *, y): return x + y")
    before = table.register(f).fn_id
    f.__kwdefaults__ = {"y": 2}
    assert table.register(f).fn_id != before


def test_attributes_that_appear_later_are_seen() -> None:
    table = FunctionTable()
    f = _make("def f(x): return f.scale * x")
    before = table.register(f).fn_id
    f.scale = 3  # type: ignore[attr-defined]
    assert table.register(f).fn_id != before


def test_changed_code_is_seen() -> None:
    table = FunctionTable()
    f, g = _make("def f(x): return x"), _make("def f(x): return -x")
    before = table.register(f).fn_id
    f.__code__ = g.__code__
    assert table.register(f).fn_id != before


@pytest.mark.parametrize("kind", ["list", "dict", "object", "method", "partial", "callable"])
def test_a_changed_object_that_a_function_holds_is_seen(kind: str) -> None:
    table = FunctionTable()
    values, box = [1], Box()

    f: Callable[..., Any] = {
        "list": lambda: values[0],
        "dict": functools.partial(dict.get, {"a": values}),
        "object": lambda: box.value,
        "method": box.get,
        "partial": functools.partial(max, values),
        "callable": box,
    }[kind]
    first = table.register(f)
    assert table.register(f).fn_id == first.fn_id
    values[0] = 2
    box.value = 2
    assert table.register(f).fn_id != first.fn_id


class Box:
    value: Any = 1

    def __init__(self) -> None:
        self.value: Any = 1

    def get(self) -> int:
        return self.value

    def __call__(self) -> int:
        return self.value


@pytest.mark.parametrize("is_importable", [True, False])
def test_a_large_object_that_did_not_change_is_pickled_into_no_new_memory(is_importable: bool) -> None:
    """Of small objects, which pickle writes in parts of 64 kB, and of a large one, which it writes by itself."""
    table, box = FunctionTable(), Box()
    values: list[Any] = [b"x" * 100_000, *([n, bytes([n]) * 1_000] for n in range(200))]
    box.value = values

    def register() -> Any:
        return table.register(box.get if is_importable else lambda: box.value)

    first = register()
    for _ in range(3):
        again = register()
        assert again.fn_id == first.fn_id
        assert again.data is first.data
    for change, undo in (
        (lambda: values[150].append(1), lambda: values[150].pop()),
        (lambda: values.append(1), lambda: values.pop()),
        (lambda: values.insert(0, 1), lambda: values.pop(0)),
    ):
        change()
        changed = register()
        assert changed.fn_id != first.fn_id
        assert changed.local()() == values
        undo()
        assert register().fn_id == first.fn_id
    del values[100:]
    assert register().local()() == values


def test_the_local_function_of_one_that_holds_state_is_a_copy() -> None:
    table = FunctionTable()
    seen: list[int] = []
    local = table.register(seen.append).local()
    local(1)
    assert seen == []


def test_the_local_function_of_one_without_state_is_itself() -> None:
    assert FunctionTable().register(os.path.join).local() is os.path.join


def test_a_function_that_cannot_be_pickled_is_named() -> None:
    lock = threading.Lock()

    def locked() -> bool:
        return lock.locked()

    with pytest.raises(SerializationError, match=r"the function '.*locked' cannot be pickled"):
        _ = FunctionTable().register(locked).data


def test_functions_that_name_each_other_are_fine() -> None:
    table = FunctionTable()
    f = _make("def g(x): return f(x)\ndef f(x): return g(x) if x else 0")
    assert table.register(f).fn_id == table.register(f).fn_id


def test_very_many_functions_are_forgotten_and_known_anew() -> None:
    table = FunctionTable()
    functions = [lambda n=n: n for n in range(1200)]
    assert len({table.register(f).fn_id for f in functions}) == 1200
    again = table.register(functions[0])
    assert again.local()() == 0


def test_registering_from_many_threads_gives_each_function_one_number() -> None:
    table = FunctionTable()
    functions = [lambda n=n: n for n in range(50)]
    numbers: list[list[int]] = [[] for _ in range(8)]

    def register(k: int) -> None:
        numbers[k] = [table.register(f).fn_id for f in functions]

    threads = [threading.Thread(target=register, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len({tuple(n) for n in numbers}) == 1
    assert len(set(numbers[0])) == 50


def test_the_cost_is_that_of_the_code_wherever_it_came_from() -> None:
    def make(n: int) -> Callable[[], int]:
        return lambda: n

    assert cost_key(make(1)) == cost_key(make(2))
    assert cost_key(functools.partial(len)) == cost_key(functools.partial(len, []))
    assert cost_key(Box().get) == cost_key(Box().get)
    assert cost_key(Box()) == cost_key(Box())
    assert len({cost_key(f) for f in (len, max, make(1), Box().get, Box())}) == 5
    assert cost_key(functools.partial(len)) != cost_key(functools.partial(max))
    assert cost_key("a".upper) != cost_key("a".lower)
