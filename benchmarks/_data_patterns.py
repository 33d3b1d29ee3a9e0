"""Work over large arrays, as it is met in practice, and one round of it by each contender.

Everything runs in a fresh interpreter: ``python -m benchmarks._data_patterns PATTERN CONTENDER ROUNDS`` prints what it
measured as JSON.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import psutil

MIB = 1 << 20
WORKERS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

SERIAL, OURS, OURS_SHARED, THREADS, FORK, LOKY, JOBLIB, MPIRE = CONTENDERS = (
    "serial", "amorsize", "amorsize, share()", "threads", "standard, fork", "loky", "joblib", "mpire",
)  # fmt: skip

#: Seconds between two looks at memory.
_SAMPLE_S = 0.02


# ---------------------------------------------------------------------- tasks


def survey(array: Any, seed: int) -> float:
    """Read all of an array three times."""
    return float(array.sum() + array.max() + array.min()) + seed


def transform(array: Any) -> float:
    """Find the median of an array; NumPy releases the interpreter lock while it sorts."""
    return float(np.sort(array)[len(array) // 2])


def simulate(seed: int, n: int) -> Any:
    """Make a large array."""
    return np.random.default_rng(seed).standard_normal(n)


def fit(fold: int, train: Any, test: Any, x: Any, y: Any) -> float:
    """Fit a linear model on some rows of a table, and judge it by others."""
    a, b = x[train], y[train]
    weights = np.linalg.solve(a.T @ a + np.eye(a.shape[1]), a.T @ b)
    return float(((x[test] @ weights - y[test]) ** 2).mean()) + fold


@dataclass(frozen=True)
class Pattern:
    """A kind of work.

    Attributes
    ----------
    data_nbytes
        Of what is large, each counted once.
    items
        Makes argument tuples; those that stand in all of them come last.
    n_shared
        How many of the last arguments are the same in all items.
    """

    function: Callable[..., Any]
    items: Callable[[], list[tuple[Any, ...]]]
    data_nbytes: int
    n_shared: int = 0


def _shared(nbytes: int) -> list[tuple[Any, ...]]:
    array = np.random.default_rng(0).random(nbytes // 8)
    return [(i, array) for i in range(12)]


def _survey(seed: int, array: Any) -> float:
    return survey(array, seed)


def _own() -> list[tuple[Any, ...]]:
    return [(np.random.default_rng(i).random(MIB),) for i in range(64)]


def _folds() -> list[tuple[Any, ...]]:
    random = np.random.default_rng(0)
    x = random.random((32_768, 200))
    y = random.random(len(x))
    rows = np.arange(len(x))
    return [(fold, rows[rows % 10 != fold], rows[rows % 10 == fold], x, y) for fold in range(10)]


PATTERNS = {
    "shared 100 MB": Pattern(_survey, functools.partial(_shared, 100 * MIB), 100 * MIB, n_shared=1),
    "shared 1 GB": Pattern(_survey, functools.partial(_shared, 1024 * MIB), 1024 * MIB, n_shared=1),
    "own 64 x 8 MB": Pattern(transform, _own, 512 * MIB),
    "results 32 x 32 MB": Pattern(simulate, lambda: [(i, 4 * MIB) for i in range(32)], 1024 * MIB),
    "folds, X of 50 MB": Pattern(fit, _folds, 50 * MIB, n_shared=2),
}

# ---------------------------------------------------------------------- contenders

Run = Callable[[], list[Any]]


@contextlib.contextmanager
def opened(contender: str, pattern: Pattern, items: list[tuple[Any, ...]]) -> Iterator[Run]:
    """One contender's pool, and how it does the pattern's work once."""
    columns = list(zip(*items, strict=True))
    function = pattern.function
    if contender == SERIAL:
        yield lambda: [function(*item) for item in items]
    elif contender in (OURS, OURS_SHARED):
        from amorsize_executor import AmorsizeExecutor

        with AmorsizeExecutor() as executor, contextlib.ExitStack() as handles:
            for i in range(len(columns) - pattern.n_shared, len(columns)) if contender == OURS_SHARED else ():
                columns[i] = (handles.enter_context(executor.share(columns[i][0])),) * len(items)
            if contender == OURS_SHARED:
                items.clear()  # the handle has the data: the caller's own copy is not needed
            yield lambda: list(executor.map(function, *columns))
    elif contender in (THREADS, FORK, LOKY):
        module = importlib.import_module("loky" if contender == LOKY else "concurrent.futures")
        if contender == THREADS:
            pool = module.ThreadPoolExecutor(WORKERS)
        elif contender == FORK:
            pool = module.ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("fork"))
        else:
            pool = module.ProcessPoolExecutor(WORKERS)
        with pool:
            yield lambda: list(pool.map(function, *columns))
    elif contender == JOBLIB:
        import joblib

        with joblib.Parallel(n_jobs=WORKERS) as parallel:
            yield lambda: parallel(joblib.delayed(function)(*item) for item in items)
    else:
        yield from _mpire(pattern, items)


def _mpire(pattern: Pattern, items: list[tuple[Any, ...]]) -> Iterator[Run]:
    """With the shared arguments as shared objects: they come by fork, first among the arguments."""
    import mpire

    n_own = len(items[0]) - pattern.n_shared
    shared = items[0][n_own:] if pattern.n_shared else None
    own = [item[:n_own] for item in items]
    with mpire.WorkerPool(n_jobs=WORKERS, shared_objects=shared, start_method="fork", keep_alive=True) as pool:
        function = functools.partial(_with_shared, pattern.function) if shared is not None else pattern.function
        yield lambda: pool.map(function, own, chunk_size=1, concatenate_numpy_output=False)


def _with_shared(function: Callable[..., Any], shared: tuple[Any, ...], *own: Any) -> Any:
    return function(*own, *shared)


# ---------------------------------------------------------------------- measuring


class PeakMemory:
    """Largest proportional set size of this process and its children while a block runs, in bytes."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory")

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.nbytes = max(self.nbytes, proportional_nbytes())
            if self._is_over.wait(_SAMPLE_S):
                return


def proportional_nbytes() -> int:
    """Memory of this process and its children, what several have in common counted once."""
    me = psutil.Process()
    return sum(_pss(process.pid) for process in (me, *me.children(recursive=True)))


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def copy_rate() -> float:
    """Bytes a second at which one thread copies what no cache holds."""
    source = np.ones(16 * MIB)
    target = np.zeros_like(source)
    times = []
    for _ in range(5):
        started = perf_counter()
        np.copyto(target, source)
        times.append(perf_counter() - started)
    return source.nbytes / median(times)


def block_rates() -> dict[str, float]:
    """Bytes a second at which one thread writes to a new block, and over what a block has."""
    from amorsize_executor.workers import blocks

    data = memoryview(np.ones(16 * MIB)).cast("B")
    times: dict[str, list[float]] = {"new": [], "first over": [], "over": []}
    for _ in range(3):
        file = blocks.File(blocks.create())
        for each in times.values():
            started = perf_counter()
            file.write(0, data)
            each.append(perf_counter() - started)
        file.close()
    return {name: data.nbytes / median(each) for name, each in times.items()}


def measure(name: str, contender: str, rounds: int) -> dict[str, Any]:
    """Do a pattern's work several times, then once more with an eye on memory."""
    pattern = PATTERNS[name]
    base = proportional_nbytes()
    items = pattern.items()
    times = []
    with opened(contender, pattern, items) as run:
        for _ in range(rounds):
            started = perf_counter()
            results = run()
            times.append(perf_counter() - started)
            del results
        with PeakMemory() as peak:
            results = run()
            # Memory that nobody has looked at counts for nobody.
            _ = [result.sum() for result in results if isinstance(result, np.ndarray)]
        del results
    return {"first_s": times[0], "later_s": median(times[1:] or times), "pss": max(peak.nbytes - base, 0)}


def main() -> None:
    """Print what was asked for on the command line."""
    name, contender, rounds = sys.argv[1:]
    if name == "rates":
        print(json.dumps({"copy": copy_rate(), **block_rates()}))
    else:
        print(json.dumps(measure(name, contender, int(rounds))))


if __name__ == "__main__":
    # Workers import the tasks from here by the module's name, not from the main module.
    importlib.import_module("benchmarks._data_patterns").main()
