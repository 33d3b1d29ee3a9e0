from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..executor.tools import Signal, remaining_children


@pytest.fixture(autouse=True)
def _no_process_is_left_behind() -> Iterator[None]:
    yield
    assert remaining_children() == []


@pytest.fixture
def notes(tmp_path: Path) -> str:
    """Path of a file for notes."""
    return str(tmp_path / "notes")


@pytest.fixture
def make_signal(tmp_path: Path) -> Iterator[Callable[[], Signal]]:
    made: list[Signal] = []
    numbers = itertools.count()

    def make() -> Signal:
        made.append(Signal(tmp_path / f"signal-{next(numbers)}"))
        return made[-1]

    yield make
    for signal in made:
        signal.close()
