from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from amorsize_executor import AmorsizeExecutor

from .tools import Signal, remaining_children


@pytest.fixture(scope="package", autouse=True)
def _no_process_is_left_behind() -> Iterator[None]:
    yield
    assert remaining_children() == []


@pytest.fixture(scope="module")
def executor() -> Iterator[AmorsizeExecutor]:
    """Two workers, shared by the tests of a module; all items run in them."""
    with AmorsizeExecutor(max_workers=2, min_workers=2, inline="never") as shared:
        yield shared


@pytest.fixture(scope="module")
def automatic() -> Iterator[AmorsizeExecutor]:
    """As users have it, with two workers; shared by the tests of a module."""
    with AmorsizeExecutor(max_workers=2) as shared:
        yield shared


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
