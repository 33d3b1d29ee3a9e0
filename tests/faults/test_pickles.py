"""Objects whose pickling goes wrong, on the way there and back: each costs its own task, and nothing else."""

from __future__ import annotations

import copyreg
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from amorsize_executor import AmorsizeExecutor, SerializationError, WorkerDied

from ..executor.tools import LIMIT_S
from .tasks import identity, make, square

pytestmark = pytest.mark.timeout(60)


class Trouble(Exception):
    pass


def trouble(*args: object) -> Any:
    raise Trouble(*args)


def leave(*args: object) -> Any:
    raise SystemExit(3)


def interrupt(*args: object) -> Any:
    raise KeyboardInterrupt


def nothing(*args: object) -> None:
    return None


class Reduces:
    """`reduced` is what `__reduce__` gives, or raises if it is an exception."""

    def __init__(self, reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> Any:
        if isinstance(self.reduced, BaseException):
            raise self.reduced
        return self.reduced


class LoadsState:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise state["error"]


class Fails(Exception):
    """An exception that cannot be made from its arguments."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def fail_with(kind: type[BaseException], *args: Any) -> None:
    raise kind(*args)


class FailsWith(Exception):
    """An exception with a payload that pickle refuses, or whose copy raises."""

    def __init__(self, payload: Any) -> None:
        super().__init__(payload)


#: Refused as they are pickled, and what is told.
REFUSED: dict[str, tuple[Callable[[], Any], type[BaseException]]] = {
    "raises": (lambda: Reduces(Trouble("mine")), Trouble),
    "raises a pickling error": (lambda: Reduces(TypeError("no")), SerializationError),
    "gives a number": (lambda: Reduces(7), SerializationError),
    "gives a short tuple": (lambda: Reduces((square,)), SerializationError),
    "gives no callable": (lambda: Reduces((1, 2)), SerializationError),
    "gives an unknown name": (lambda: Reduces("no_such_name"), SerializationError),
    "gives no arguments": (lambda: Reduces((square, None)), SerializationError),
    "holds a lock": (lambda: Reduces((identity, (threading.Lock(),))), SerializationError),
}
#: Pickled, but cannot be loaded.
UNLOADABLE: dict[str, tuple[Callable[[], Any], type[BaseException]]] = {
    "raises": (lambda: Reduces((trouble, ("mine",))), Trouble),
    "raises SystemExit": (lambda: Reduces((leave, ())), SystemExit),
    "raises KeyboardInterrupt": (lambda: Reduces((interrupt, ())), KeyboardInterrupt),
    "takes other arguments": (lambda: Reduces((square, (1, 2, 3))), TypeError),
    "has a state that raises": (lambda: LoadsState(Trouble("mine")), Trouble),
    "has a state that nobody takes": (lambda: Reduces((nothing, (), {"a": 1})), AttributeError),
}


@pytest.fixture
def executor() -> Iterator[AmorsizeExecutor]:
    with AmorsizeExecutor(2, inline="never") as executor:
        yield executor


@pytest.fixture(autouse=True)
def _others_are_not_concerned(executor: AmorsizeExecutor) -> Iterator[None]:
    before = [executor.submit(square, x) for x in range(5)]
    yield
    after = [executor.submit(square, x) for x in range(5)]
    assert [future.result(LIMIT_S) for future in (*before, *after)] == [x * x for x in range(5)] * 2
    assert list(executor.map(square, range(50))) == [x * x for x in range(50)]


def test_an_argument_that_pickle_refuses_fails_its_task(executor: AmorsizeExecutor) -> None:
    for build, told in REFUSED.values():
        assert isinstance(executor.submit(identity, build()).exception(LIMIT_S), told)
        results = executor.map(identity, [1, build(), 3])
        assert next(results) == 1
        with pytest.raises(told):
            next(results)


def test_a_result_that_pickle_refuses_fails_its_task(executor: AmorsizeExecutor) -> None:
    for build, told in REFUSED.values():
        assert isinstance(executor.submit(build).exception(LIMIT_S), told)
        with pytest.raises(told):
            list(executor.map(_call, [int, build, int]))


def test_an_argument_that_cannot_be_loaded_fails_its_task(executor: AmorsizeExecutor) -> None:
    for build, told in UNLOADABLE.values():
        assert isinstance(executor.submit(identity, build()).exception(LIMIT_S), told)
        results = executor.map(identity, [1, build(), 3])
        assert next(results) == 1
        with pytest.raises(told):
            next(results)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_a_result_that_ends_more_than_its_own_pickling_fails_its_task(
    executor: AmorsizeExecutor, kind: type[BaseException]
) -> None:
    assert isinstance(executor.submit(Reduces, kind()).exception(LIMIT_S), kind)


def test_a_result_that_cannot_be_loaded_fails_its_task(executor: AmorsizeExecutor) -> None:
    for build, told in UNLOADABLE.values():
        assert isinstance(executor.submit(build).exception(LIMIT_S), told)
        results = executor.map(_call, [int, build, int])
        assert next(results) == 0
        with pytest.raises(told):
            next(results)


def test_a_function_that_cannot_be_loaded_fails_its_task(executor: AmorsizeExecutor) -> None:
    for build, told in UNLOADABLE.values():
        error = executor.submit(_Callable(build())).exception(LIMIT_S)
        assert isinstance(error, (told, WorkerDied))


def test_an_exception_that_does_not_travel_is_told_in_words(executor: AmorsizeExecutor) -> None:
    for build, _ in [*REFUSED.values(), *UNLOADABLE.values()]:
        error = executor.submit(_raise_with, build).exception(LIMIT_S)
        assert isinstance(error, (SerializationError, FailsWith))
        error = executor.submit(fail_with, Fails, 1, 2).exception(LIMIT_S)
        assert isinstance(error, SerializationError)
        assert "1 and 2" in str(error)


def test_a_result_that_is_something_else_when_it_arrives_is_handed_out_as_it_is(executor: AmorsizeExecutor) -> None:
    assert executor.submit(make, Reduces, (nothing, ())).result(LIMIT_S) is None
    assert list(executor.map(_call, [_make_nothing] * 3)) == [None] * 3


def test_a_worker_that_ends_while_it_loads_an_argument_takes_that_task_with_it(executor: AmorsizeExecutor) -> None:
    assert isinstance(executor.submit(identity, Reduces((os._exit, (3,)))).exception(LIMIT_S), WorkerDied)


def test_a_reducer_that_is_registered_and_fails_is_told(executor: AmorsizeExecutor) -> None:
    copyreg.pickle(_Registered, trouble)  # type: ignore[arg-type]
    try:
        assert isinstance(executor.submit(identity, _Registered()).exception(LIMIT_S), Trouble)
    finally:
        del copyreg.dispatch_table[_Registered]


class _Registered:
    pass


class _Callable:
    def __init__(self, payload: Any) -> None:
        self.payload = payload

    def __call__(self) -> None:
        pass


def _call(build: Callable[[], Any]) -> Any:
    return build()


def _raise_with(build: Callable[[], Any]) -> None:
    raise FailsWith(build())


def _make_nothing() -> Any:
    return Reduces((nothing, ()))
