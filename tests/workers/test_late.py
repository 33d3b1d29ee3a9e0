"""Waiting for the import of a module."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from amorsize_executor.workers.late import when_imported

CONTENT = "import sys\nvalue = 1\nis_in_modules = __name__ in sys.modules\n"


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module that can be imported, and was not."""
    (tmp_path / "late_module.py").write_text(CONTENT, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "late_module", raising=False)
    monkeypatch.setattr(sys, "meta_path", sys.meta_path[:])
    return "late_module"


def test_what_waits_is_called_with_the_whole_module(name: str) -> None:
    seen: list[tuple[ModuleType, int]] = []
    when_imported(name, lambda module: seen.append((module, module.value)))
    assert seen == []
    module = importlib.import_module(name)
    assert seen == [(module, 1)]


def test_a_module_that_is_there_needs_no_waiting() -> None:
    seen: list[ModuleType] = []
    when_imported("sys", seen.append)
    assert seen == [sys]


def test_the_module_is_as_if_nobody_had_waited(name: str) -> None:
    when_imported(name, lambda module: None)
    module = importlib.import_module(name)
    assert module.__spec__ is not None
    assert module.__loader__ is module.__spec__.loader
    assert type(module.__loader__).__module__.startswith("_frozen_importlib")
    assert module.__cached__.endswith(".pyc")
    assert importlib.reload(module) is module


def test_an_import_that_fails_leaves_the_next_to_tell(name: str, tmp_path: Path) -> None:
    file = tmp_path / f"{name}.py"
    file.write_text("raise ValueError", "utf-8")
    seen: list[ModuleType] = []
    when_imported(name, seen.append)
    with pytest.raises(ValueError):
        importlib.import_module(name)
    assert seen == []
    file.write_text(CONTENT + "# longer\n", "utf-8")
    importlib.invalidate_caches()
    assert importlib.import_module(name) is seen[0]


def test_a_module_that_does_not_exist_is_not_found(name: str) -> None:
    when_imported("no_such_module_at_all", lambda module: None)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_module_at_all")
