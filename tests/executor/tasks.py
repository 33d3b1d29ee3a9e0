"""Functions that tests run in workers, which import them from here."""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import sys
import threading
import time
from typing import Any

import numpy as np

from .tools import Signal

_calls = itertools.count()
_state: dict[str, Any] = {}


def square(x: int) -> int:
    return x * x


def add(x: int, y: int) -> int:
    return x + y


def stop_at_17(x: int) -> int:
    return next(iter([])) if x == 17 else x


def stop_at_last(x: tuple[int, int]) -> int:
    return next(iter([])) if x[0] == x[1] else x[0]


def identity(x: Any) -> Any:
    return x


def call(fn: Any, *args: Any) -> Any:
    return fn(*args)


def pid(_: object = None) -> int:
    return os.getpid()


def pid_and_call_number(_: object = None) -> tuple[int, int]:
    return os.getpid(), next(_calls)


def pid_and_thread(_: object = None) -> tuple[int, str]:
    return os.getpid(), threading.current_thread().name


def environment(name: str) -> str | None:
    return os.environ.get(name)


def pause(started: Signal, go: Signal, value: Any = None) -> Any:
    """Tell that it runs, and go on when told to."""
    started.give()
    go.take()
    return value


def take_then(go: Signal, value: Any) -> Any:
    go.take()
    return value


def take_at_zero(go: Signal, x: int) -> int:
    """Block on the item 0."""
    if x == 0:
        go.take()
    return x


def give(signal: Signal, value: Any = None) -> Any:
    signal.give()
    return value


def raise_error(message: str) -> None:
    raise ValueError(message)


def fail_on(bad: int, x: int) -> int:
    if x == bad:
        raise ValueError(f"{x} is bad")
    return x


def leave(code: int) -> None:
    sys.exit(code)


def end_process(code: int) -> None:
    os._exit(code)


def end_process_once(marker: str) -> str:
    """Die the first time that this marker is met."""
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return "alive"
    os._exit(3)


def mutate(items: list[int]) -> list[int]:
    items.append(0)
    return items


def set_state(name: str, value: Any) -> None:
    _state[name] = value


def get_state(name: str, _: object = None) -> Any:
    return _state.get(name)


def fail_to_initialize(message: str) -> None:
    raise ValueError(message)


def double_in_place(array: np.ndarray) -> tuple[bool, float]:
    array *= 2
    return array.flags.writeable, float(array.sum())


def zeros(n: int) -> np.ndarray:
    return np.zeros(n)


def use_an_executor(n: int) -> list[int]:
    from amorsize_executor import AmorsizeExecutor

    with AmorsizeExecutor(max_workers=1, inline="never") as inner:
        return list(inner.map(square, range(n)))


def keep_an_executor(n: int) -> list[int]:
    """As a module would that has one for all its tasks."""
    global kept
    from amorsize_executor import AmorsizeExecutor

    kept = AmorsizeExecutor(max_workers=1, inline="never", idle_timeout=None)
    return list(kept.map(square, range(n)))


def make_local() -> Any:
    return lambda: None


class Unpicklable:
    """Refuses to be pickled with an error of its own."""

    def __init__(self, error: type[Exception] = ValueError) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error("no copies of me")


class Unloadable:
    """Is pickled, but raises where it is loaded."""

    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> None:
    raise ValueError("not here")


def make_unpicklable(_: object = None) -> Unpicklable:
    return Unpicklable()


def make_unloadable(_: object = None) -> Unloadable:
    return Unloadable()


def make_lock(_: object = None) -> Any:
    return threading.Lock()


class Deaf:
    """Ends the process where it is loaded."""

    def __reduce__(self) -> Any:
        return os._exit, (4,)


class NeedsTwo(Exception):
    """Cannot be unpickled: pickle passes one argument."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)
        self.two = two


class HoldsLock(Exception):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


class Mute(HoldsLock):
    """Can neither be pickled nor shown."""

    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class Frozen(Exception):
    """Takes no attribute, as a frozen dataclass does."""

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"cannot assign to {name}")


class Impostor(Exception):
    """Becomes something else where it is unpickled."""

    def __reduce__(self) -> Any:
        return str, ("not an exception",)


def raise_instance(kind: type[BaseException], *args: Any) -> None:
    raise kind(*args)


def nested_list(depth: int) -> list[Any]:
    nested: list[Any] = []
    for _ in range(depth):
        nested = [nested]
    return nested


def nested_tuple(depth: int) -> tuple[Any, ...]:
    nested: tuple[Any, ...] = ()
    for _ in range(depth):
        nested = (nested,)
    return nested


def doubled_tuple(depth: int) -> tuple[Any, ...]:
    """A tuple of two references to a tuple of two references and so on: small, but endless to walk through."""
    nested: tuple[Any, ...] = ()
    for _ in range(depth):
        nested = (nested, nested)
    return nested


def recurse(n: int) -> int:
    return recurse(n + 1)


class Counter:
    def __init__(self, start: int) -> None:
        self.value = start

    def plus(self, n: int) -> int:
        return self.value + n

    @classmethod
    def of(cls, n: int) -> Counter:
        return cls(n)

    @staticmethod
    def twice(n: int) -> int:
        return 2 * n

    def __call__(self, n: int) -> int:
        return self.value * n


def pickled_size(obj: object) -> int:
    return len(pickle.dumps(obj))


class StepCounter:
    """Counts its calls."""

    def __init__(self) -> None:
        self.n = 0

    def step(self, _: int = 0) -> int:
        self.n += 1
        return self.n


def clean_up_when_terminated(started: Signal, cleaned: Signal) -> None:
    """Wait for SIGTERM, and tell that it came."""

    def clean_up(*_: object) -> None:
        cleaned.give()
        sys.exit(0)

    signal.signal(signal.SIGTERM, clean_up)
    started.give()
    while True:
        signal.pause()


def filled(n: int, value: float) -> Any:
    return np.full(n, value)


def total(array: Any) -> float:
    return float(array.sum())


def pid_after(seconds: float) -> int:
    """Compute for so long, and tell where."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass
    return os.getpid()
