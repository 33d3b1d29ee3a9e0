"""Runs the same work in several ways, times each, and checks that all of them found the same."""

from __future__ import annotations

import operator
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar

T = TypeVar("T")

#: Read by the linear algebra of processes that start later.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def compare(ways: dict[str, Callable[[], T]], same: Callable[[T, T], bool] = operator.eq) -> T:
    """Run each way once and print its time beside that of the first.

    Linear algebra runs on one thread in all of them, so that only the number of processes differs.

    Parameters
    ----------
    ways
        Name and what to run. The first is the measure of the others.
    same
        Whether two results count as equal.

    Returns
    -------
    What the last way found.

    Raises
    ------
    SystemExit
        If one found something else than the first.
    """
    for variable in THREAD_VARIABLES:
        os.environ.setdefault(variable, "1")
    results, times = [], []
    with _one_thread():
        for way in ways.values():
            started = time.perf_counter()
            results.append(way())
            times.append(time.perf_counter() - started)
    print()
    for name, taken_s in zip(ways, times, strict=True):
        print(f"{name:22} {taken_s * 1e3:10,.1f} ms   {times[0] / taken_s:5.2f} x {next(iter(ways))}")
    odd = [name for name, result in zip(ways, results, strict=True) if not same(results[0], result)]
    if odd:
        sys.exit(f"\nOther results than the {next(iter(ways))}: {', '.join(odd)}")
    print("\nAll found the same.\n")
    return results[-1]


def _one_thread() -> Any:
    """Limit what is loaded already, where the package for that is there (scikit-learn brings it)."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return nullcontext()
    return threadpool_limits(1)
