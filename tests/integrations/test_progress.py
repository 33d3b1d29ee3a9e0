"""Bars and lines: what they show, where, and where not."""

from __future__ import annotations

import builtins
import contextlib
import io
import sys
from typing import Any

import pytest

from amorsize_executor.integrations.progress import is_watched, make_progress, plain_line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown_on_a_terminal(*steps: int) -> str:
    with contextlib.redirect_stderr(Terminal()) as terminal:
        progress = make_progress(True, 10, "fit")
        for n in steps:
            progress.advance(n)
        progress.close()
    return terminal.getvalue()


@pytest.fixture
def _no_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("tqdm"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)


def test_tqdm_shows_rate_and_time_left() -> None:
    pytest.importorskip("tqdm")
    terminal = shown_on_a_terminal(1, 9)
    assert "fit: 100%" in terminal
    assert "10/10 [" in terminal
    assert "item/s]" in terminal


@pytest.mark.usefixtures("_no_tqdm")
def test_a_plain_line_on_a_terminal() -> None:
    terminal = shown_on_a_terminal(4, 6)
    assert terminal.startswith("\rfit: 4/10 (40 %), ")
    assert "left" in terminal
    assert "\rfit: 10/10 (100 %), " in terminal
    assert terminal.endswith("\n")


@pytest.mark.usefixtures("_no_tqdm")
def test_a_shorter_line_leaves_nothing_of_a_longer_one() -> None:
    terminal = shown_on_a_terminal(4, 6)
    first, last = terminal.split("\r")[1:3]
    assert len(last.rstrip("\n")) >= len(first)


@pytest.mark.usefixtures("_no_tqdm")
def test_no_line_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    progress = make_progress(True, 10, "fit")
    progress.advance(10)
    progress.close()
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("_no_tqdm")
def test_a_notebook_is_watched(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert not is_watched()
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert is_watched()
    make_progress(True, 3, "fit").close()
    assert "fit: 0/3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("done", "total", "elapsed_s", "expected"),
    [
        (0, 10, 0.0, "f: 0/10 (0 %), 0:00 passed"),
        (1, 3, 7200.0, "f: 1/3 (33 %), 7,200 s an item, 2:00:00 passed, 4:00:00 left"),
        (3, 3, 1.5, "f: 3/3 (100 %), 2.00 items/s, 0:02 passed"),
        (50_000, 100_000, 1.0, "f: 50000/100000 (50 %), 50,000 items/s, 0:01 passed, 0:01 left"),
        (0, 0, 1.0, "f: 0/0 (0 %), 0:01 passed"),
        (500, None, 1.0, "f: 500, 500 items/s, 0:01 passed"),
    ],
)
def test_lines(done: int, total: int | None, elapsed_s: float, expected: str) -> None:
    assert plain_line("f", done, total, elapsed_s) == expected
