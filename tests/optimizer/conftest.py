from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from amorsize_executor import AmorsizeExecutor
from amorsize_executor.optimizer import executors

from ..executor.tools import remaining_children


@pytest.fixture(autouse=True)
def _no_file_of_the_user_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMORSIZE_STORE", str(tmp_path / "store.sqlite3"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture(scope="package", autouse=True)
def _end_the_process_wide_executors() -> Iterator[None]:
    """The default one, and those for other bounds, whose workers would stay for another minute."""
    made: list[AmorsizeExecutor] = []

    def make(*args: Any, **kwargs: Any) -> AmorsizeExecutor:
        made.append(AmorsizeExecutor(*args, **kwargs))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executors, "AmorsizeExecutor", make)
        yield
    for executor in made:
        executor.shutdown()
    assert remaining_children() == []


@pytest.fixture
def log(tmp_path: Path) -> str:
    """A file to which items write that they ran."""
    path = tmp_path / "log"
    path.touch()
    return str(path)
