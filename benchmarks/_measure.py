"""What the benchmarks share: contenders, calibrated busy loops, fresh interpreters.

The module imports no contender before it is asked for one, so that what a fresh interpreter
measures includes nothing of another's import.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Executor
from functools import cache, partial
from pathlib import Path
from statistics import median
from time import monotonic, perf_counter
from typing import Any

from benchmarks._tasks import occupy, spin

OURS, STANDARD, LOKY = CONTENDERS = ("amorsize", "standard", "loky")

ROOT = Path(__file__).resolve().parent.parent
PROBE_LIMIT_S = 300.0
"""A probe that takes longer hangs: the longest, 20,000 submits in all rounds, takes about 30 s."""
CLEANING_UP_S = 2.0
"""Patience with what a killed probe leaves behind: named semaphores and folders in shared memory."""

START_LIMIT_S = 10.0
"""Patience with an executor that is slow to start, or unwilling to use, all its workers."""
OCCUPY_S = 0.005
"""Length of a task that starts workers: much longer than its dispatch, so that all are needed."""

CALIBRATED_S = 1e-3
"""Calibration measures no task longer than this, nor a loop over tasks much longer; turns of a loop
over small integers are faster, so that what is shorter is calibrated at its own length."""
CALIBRATION_STEPS = 8
CALIBRATION_ROUNDS = 5
"""The fastest round counts: whatever else runs on the machine can only add time."""


class ProbeError(Exception):
    """A fresh interpreter did not deliver its measurement."""


class ProbeTimeoutError(ProbeError):
    """A fresh interpreter took longer than its limit."""


def make_executor(contender: str, max_workers: int | None = None, **options: Any) -> Executor:
    """Build an executor of one contender with its defaults, or with options of ours; the standard pool always forks."""
    module = load(contender)
    if contender == STANDARD:
        context = importlib.import_module("multiprocessing").get_context("fork")
        executor = module.ProcessPoolExecutor(max_workers, mp_context=context)
    elif contender == LOKY:
        executor = module.ProcessPoolExecutor(max_workers)
    else:
        executor = module.AmorsizeExecutor(max_workers, **options)
    assert isinstance(executor, Executor)
    return executor


def load(contender: str) -> Any:
    """Import a contender down to its executor class, and return the module that has it."""
    name, executor_class = {
        OURS: ("amorsize_executor", "AmorsizeExecutor"),
        STANDARD: ("concurrent.futures.process", "ProcessPoolExecutor"),
        LOKY: ("loky", "ProcessPoolExecutor"),
    }[contender]
    module = importlib.import_module(name)
    getattr(module, executor_class)
    return module


def start_workers(executor: Executor, wanted: int, loops: int) -> int:
    """Keep an executor busy until `wanted` workers have answered; return how many did."""
    deadline = monotonic() + START_LIMIT_S
    seen: set[int] = set()
    while len(seen) < wanted and monotonic() < deadline:
        futures = [executor.submit(occupy, loops) for _ in range(4 * wanted)]
        seen.update(future.result() for future in futures)
    return len(seen)


@cache
def loops_for(duration_s: float) -> int:
    """Return the argument with which a call of `spin` in a serial loop takes `duration_s`."""
    measured_s = min(duration_s, CALIBRATED_S)
    calls = round(CALIBRATED_S / measured_s)
    loops = 1_000.0
    for _ in range(CALIBRATION_STEPS):
        items = [max(1, round(loops))] * calls
        taken_s = min(timed(partial(serial, items)) for _ in range(CALIBRATION_ROUNDS))
        loops *= measured_s * calls / taken_s
    return max(1, round(loops * duration_s / measured_s))


def serial(items: list[int]) -> list[int]:
    """Run the loop that every map is compared with."""
    return [spin(item) for item in items]


def timed(action: Callable[[], object]) -> float:
    """Return how long `action` takes, in seconds."""
    started = perf_counter()
    action()
    return perf_counter() - started


def in_turn(names: tuple[str, ...], round_number: int) -> tuple[str, ...]:
    """Return the contenders, another one first in each round."""
    first = round_number % len(names)
    return names[first:] + names[:first]


def medians(samples: dict[str, list[float]]) -> dict[str, float]:
    """Return the median of each list."""
    return {name: median(values) for name, values in samples.items()}


def probe(name: str, **arguments: Any) -> dict[str, Any]:
    """Run one function of `benchmarks._probes` in a fresh interpreter and return what it found."""
    output = fresh_interpreter("-m", "benchmarks._probes", name, json.dumps(arguments))
    try:
        found = json.loads(output)
    except ValueError:
        raise ProbeError(f"probe {name} {arguments}: no measurement in {output!r}") from None
    assert isinstance(found, dict)
    return found


def fresh_interpreter(*arguments: str, limit_s: float = PROBE_LIMIT_S) -> str:
    """Run Python with `arguments` in the project's folder and return its output.

    The interpreter leads a process group of its own: what a hanging one started goes with it.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit_s)
    except BaseException as error:
        _end_group(process)
        if isinstance(error, subprocess.TimeoutExpired):
            raise ProbeTimeoutError(f"{arguments}: killed after {limit_s:.0f} s") from None
        raise
    if process.returncode:
        raise ProbeError(f"{arguments}: exit status {process.returncode}")
    return output


def _end_group(process: subprocess.Popen[str]) -> None:
    """End an interpreter and all that it started; resource trackers first get the time to clean up after them."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, signum)
            process.communicate(timeout=CLEANING_UP_S)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass
