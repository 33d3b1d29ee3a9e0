"""The peak of the memory that a piece of work uses, watched from a thread."""

from __future__ import annotations

import threading

import psutil

PERIOD_S = 0.01


class PeakMemory:
    """The most memory that this process, or it and its children, had while a with block ran.

    Attributes
    ----------
    start, peak
        Bytes resident when the block began, and at most.
    """

    def __init__(self, *, children: bool = False) -> None:
        self._children = children
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak memory")
        self.start = self.peak = 0

    def __enter__(self) -> PeakMemory:
        self.start = self.peak = self._resident()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(PERIOD_S):
            self.peak = max(self.peak, self._resident())

    def _resident(self) -> int:
        this = psutil.Process()
        return sum(map(_resident, [this, *this.children(recursive=True)] if self._children else [this]))


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:  # it has just ended
        return 0
