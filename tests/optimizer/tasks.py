"""Functions that tests run in workers, which import them from here."""

from __future__ import annotations

import os
import sys
import time
import types
from pathlib import Path
from typing import Any

from ..executor.tools import Signal

changed = False


class WithoutAddNote(Exception):
    """As every exception before Python 3.11."""

    @property
    def add_note(self) -> None:  # type: ignore[override]
        raise AttributeError


is_warm = False


def write(log: str, x: Any) -> Any:
    """Tell that an item runs: a short line appended is written as a whole."""
    fd = os.open(log, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, f"{os.getpid()} {x}\n".encode())
    finally:
        os.close(fd)
    return x


def write_first(log: str, items: list[int]) -> int:
    return int(write(log, items[0]))


def lines(log: str) -> list[str]:
    """The items that ran, in order of their beginning."""
    return [line.split()[1] for line in Path(log).read_text().splitlines()]


def pids(log: str) -> set[int]:
    return {int(line.split()[0]) for line in Path(log).read_text().splitlines()}


def change_globals(_: object) -> bool:
    global changed
    changed = True
    return changed


def fail_on_17(x: int) -> int:
    if x == 17:
        raise KeyError("seventeen")
    return x


def end_process_on_17(x: int) -> int:
    if x == 17:
        os._exit(3)
    return x


def spin_at_first(seconds: float, _: object) -> None:
    """The first call in a process takes so long, as if it imported something."""
    global is_warm
    until = time.perf_counter() + (0 if is_warm else seconds)
    is_warm = True
    while time.perf_counter() < until:
        pass


def import_much(_: object) -> None:
    """Import, in the first call of a process, as many modules as a large library has."""
    for i in range(200):
        name = f"much_{i}"
        sys.modules.setdefault(name, types.ModuleType(name))


def meet(signals: list[Signal], i: int) -> int:
    """Ends only if as many items run at once as there are signals."""
    for j, signal in enumerate(signals):
        if j != i:
            signal.give()
    signals[i].take(len(signals) - 1)
    return os.getpid()


def total(row: Any) -> float:
    return float(row.sum())


class Model:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    def predict(self, x: int) -> int:
        return self.factor * x


def predict(model: Model, x: int) -> int:
    return model.predict(x)


def predict_item(item: tuple[int, list[Model]]) -> int:
    x, (model,) = item
    return model.predict(x)


def here(_: object) -> int:
    return os.getpid()
