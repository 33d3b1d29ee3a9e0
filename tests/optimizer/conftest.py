from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ..executor.tools import process_wide_executors_end, remaining_children


@pytest.fixture(autouse=True)
def _no_file_of_the_user_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMORSIZE_STORE", str(tmp_path / "store.sqlite3"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture(scope="package", autouse=True)
def _end_the_process_wide_executors() -> Iterator[None]:
    with process_wide_executors_end():
        yield
    assert remaining_children() == []


@pytest.fixture
def log(tmp_path: Path) -> str:
    """A file to which items write that they ran."""
    path = tmp_path / "log"
    path.touch()
    return str(path)
