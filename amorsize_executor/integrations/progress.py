"""Showing how far a map is: tqdm where it is installed, a plain line where not, or the user's own callable."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

#: A shown line is renewed at most this often, in seconds.
_PERIOD_S = 0.1


class Progress:
    """Counts results; owned by the thread that iterates over the map."""

    def __init__(self, total: int | None, show: Callable[[int], object], end: Callable[[], object]) -> None:
        self._done = 0
        self._total = total
        self._show = show
        self._end = end
        self._next_at = 0.0

    def advance(self, n: int = 1) -> None:
        """So many more results were handed out."""
        self._done += n
        now = time.monotonic()
        if now >= self._next_at or self._done == self._total:
            self._next_at = now + _PERIOD_S
            self._show(self._done)

    def close(self) -> None:
        """No more will come."""
        self._show(self._done)
        self._end()


def make_progress(progress: bool | Callable[[int, int], object], total: int | None, name: str) -> Progress:
    """A progress display.

    Parameters
    ----------
    progress
        True for a bar on stderr; or a callable, called with (done, total), total -1 when it is unknown.
    total
        Items of the map; None when unknown.
    name
        Shown in front.
    """
    if callable(progress):
        call = progress
        return Progress(total, lambda done: call(done, -1 if total is None else total), lambda: None)
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return _plain(total, name)
    bar: Any = tqdm(total=total, desc=name, unit="item")

    def show(done: int) -> None:
        bar.update(done - bar.n)

    return Progress(total, show, bar.close)


def is_watched() -> bool:
    """Whether stderr is a terminal or a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def plain_line(name: str, done: int, total: int | None, elapsed_s: float) -> str:
    """How far a map is, with its rate and the time that is left.

    >>> plain_line("fit", 25, 100, 5.0)
    'fit: 25/100 (25 %), 5.00 items/s, 0:05 passed, 0:15 left'
    >>> plain_line("fit", 5, None, 50.0)
    'fit: 5, 10.0 s an item, 0:50 passed'
    """
    parts = [f"{name}: {done}" + (f"/{total} ({100 * done // max(total, 1)} %)" if total is not None else "")]
    rate = done / max(elapsed_s, 1e-9)
    if done:
        parts.append(f"{_rounded(rate)} items/s" if rate >= 1 else f"{_rounded(1 / rate)} s an item")
    parts.append(f"{_clock(elapsed_s)} passed")
    if total is not None and 0 < done < total:
        parts.append(f"{_clock((total - done) / rate)} left")
    return ", ".join(parts)


def _rounded(number: float) -> str:
    return f"{number:#.3g}" if number < 100 else f"{number:,.0f}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _plain(total: int | None, name: str) -> Progress:
    """A line on stderr where it is a terminal or a notebook; nothing elsewhere (a log wants no carriage returns)."""
    if not is_watched():
        return Progress(total, lambda done: None, lambda: None)
    began = time.monotonic()
    width = 0

    def show(done: int) -> None:
        nonlocal width
        line = plain_line(name, done, total, time.monotonic() - began)
        sys.stderr.write(f"\r{line:<{width}}")  # over what is left of a longer line
        sys.stderr.flush()
        width = len(line)

    def end() -> None:
        sys.stderr.write("\n")

    return Progress(total, show, end)
