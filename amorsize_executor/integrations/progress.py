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

    def advance(self) -> None:
        """One more result was handed out."""
        self._done += 1
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


def _plain(total: int | None, name: str) -> Progress:
    """A line on stderr where it is a terminal; nothing elsewhere (a log wants no carriage returns)."""
    if not sys.stderr.isatty():
        return Progress(total, lambda done: None, lambda: None)
    began = time.monotonic()

    def show(done: int) -> None:
        elapsed = max(time.monotonic() - began, 1e-9)
        of = f"/{total} ({100 * done // max(total, 1)} %)" if total is not None else ""
        sys.stderr.write(f"\r{name}: {done}{of}, {done / elapsed:.1f} items/s, {elapsed:.0f} s")
        sys.stderr.flush()

    def end() -> None:
        sys.stderr.write("\n")

    return Progress(total, show, end)
