"""The tasks that the benchmarks run, in a module that every worker can import.

A busy task gets its length as its item: the parent calibrates once (`_measure.calibrate`) and
workers need no calibration of their own.
"""

from __future__ import annotations

import os


def identity(value: int) -> int:
    """Return the argument: a task that costs nothing but its dispatch."""
    return value


def spin(loops: int) -> int:
    """Turn a pure-Python loop `loops` times, holding the GIL, and return `loops`."""
    for _ in range(loops):
        pass
    return loops


def occupy(loops: int) -> int:
    """Spin, and return the worker's process id.

    Not `spin` itself, so that starting workers with it teaches a cost model nothing about `spin`.
    """
    for _ in range(loops):
        pass
    return os.getpid()
