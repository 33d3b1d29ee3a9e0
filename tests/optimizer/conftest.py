from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from amorsize_executor import default_executor


@pytest.fixture(autouse=True)
def _no_file_of_the_user_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMORSIZE_STORE", str(tmp_path / "store.sqlite3"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture(scope="package", autouse=True)
def _end_the_default_executor() -> Iterator[None]:
    yield
    default_executor().shutdown()


@pytest.fixture
def log(tmp_path: Path) -> str:
    """A file to which items write that they ran."""
    path = tmp_path / "log"
    path.touch()
    return str(path)
