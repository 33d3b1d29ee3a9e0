"""Lets the I/O thread have the interpreter lock soon while items run in their caller, and while it starts workers.

A thread that computes in Python gives the lock away only when another one has waited for `sys.getswitchinterval`: 5 ms,
each time that the other one comes back from a system call. To start a worker takes it some thirty of these.
"""

from __future__ import annotations

import math
import os
import sys
import threading

#: In seconds. What it costs to switch is some ten microseconds.
_INTERVAL_S = 2e-4


class _QuickSwitching:
    """A context in which threads switch sooner; any number of threads may be in it. The interval is the process's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the attributes below
        self._n_inside = 0
        self._before_s = 0.0

    def __enter__(self) -> None:
        with self._lock:
            self._n_inside += 1
            if self._n_inside == 1:
                self._before_s = sys.getswitchinterval()
                if self._before_s > _INTERVAL_S:
                    sys.setswitchinterval(_INTERVAL_S)

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._n_inside = max(self._n_inside - 1, 0)  # below zero behind a fork inside
            if not self._n_inside and math.isclose(sys.getswitchinterval(), _INTERVAL_S, rel_tol=0.01):
                sys.setswitchinterval(self._before_s)  # else an item has set another one

    def forget(self) -> None:
        """In the child of a fork: threads that it has not may have held the lock, and been inside."""
        self._lock = threading.Lock()
        if self._n_inside:
            self._n_inside = 0
            sys.setswitchinterval(self._before_s)


quick_switching = _QuickSwitching()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=quick_switching.forget)
