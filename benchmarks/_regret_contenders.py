"""Who is compared: each contender as a pool that is opened, maps, and is closed.

Nothing is imported before it is asked for. All have as many workers as there are CPUs; the chunk sizes are the tuning.
"""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amorsize_executor import AmorsizeExecutor

OURS, SERIAL = "amorsize", "serial"
FORK, SPAWN, POOL, JOBLIB, LOKY, MPIRE = PEERS = ("fork", "spawn", "pool", "joblib", "loky", "mpire")
MEANING = {
    FORK: "the standard ProcessPoolExecutor, forking",
    SPAWN: "the standard ProcessPoolExecutor, spawning",
    POOL: "multiprocessing.Pool, forking, default chunk size",
    JOBLIB: "joblib, its loky backend, automatic batches",
    LOKY: "loky's executor",
    MPIRE: "mpire, default chunk size",
}
MODULES = {
    OURS: ("amorsize_executor", "amorsize_executor.workers.launch"),
    SERIAL: (),
    FORK: ("concurrent.futures.process", "multiprocessing.popen_fork"),
    SPAWN: ("concurrent.futures.process", "multiprocessing.popen_spawn_posix"),
    POOL: ("multiprocessing.pool", "multiprocessing.popen_fork"),
    JOBLIB: ("joblib",),
    LOKY: ("loky",),
    MPIRE: ("mpire",),
}

CHUNKS = ("1", "8", "64", "512", "n/8", "n/2")
QUICK_CHUNKS = ("8", "n/8")
LOKY_CHUNKS = ("1", "n/8")

RunMap = Callable[[Callable[[Any], Any], Iterable[Any], int], list[Any]]
"""Function, items and how many there are; returns the results in order."""


@dataclass(frozen=True)
class Forecast:
    """What a map of ours promised when it began, and what it took; None where nothing was promised."""

    predicted_s: float | None
    estimated_speedup: float | None
    actual_s: float | None


@dataclass(frozen=True)
class Contender:
    """A way to run maps: its family, and the chunk size where it takes one."""

    family: str
    chunk: str = ""

    @property
    def name(self) -> str:
        """Name in tables."""
        return f"{self.family} {self.chunk}".strip()


def chunk_size(chunk: str, n_items: int) -> int:
    """Return the items in a chunk for a chunk size as it is written in `CHUNKS`.

    >>> chunk_size("64", 1_000), chunk_size("n/8", 1_000), chunk_size("n/8", 3)
    (64, 125, 1)
    """
    if chunk.startswith("n/"):
        return -(-n_items // int(chunk[2:]))
    return int(chunk)


def contenders_for(lengths: list[int], peers: Iterable[str], chunks: tuple[str, ...]) -> list[Contender]:
    """Return who runs maps of these lengths: chunk sizes that come to the same, or to one chunk, are left out."""
    found = [Contender(SERIAL), Contender(OURS)]
    for family in peers:
        if family in (FORK, SPAWN, LOKY):
            wanted = tuple(c for c in chunks if c in LOKY_CHUNKS) if family == LOKY else chunks
            found += [Contender(family, chunk) for chunk in _distinct(wanted, lengths)]
        else:
            found.append(Contender(family))
    return found


def _distinct(chunks: tuple[str, ...], lengths: list[int]) -> list[str]:
    most = chunk_size("n/2", max(lengths))
    by_sizes: dict[tuple[int, ...], str] = {}
    for chunk in chunks:
        sizes = tuple(min(chunk_size(chunk, n_items), n_items) for n_items in sorted(set(lengths)))
        if max(sizes) <= most:
            by_sizes.setdefault(sizes, chunk)
    return list(by_sizes.values())


def why_missing(family: str) -> str | None:
    """Return why a peer cannot be measured here; None when it can."""
    if family in (FORK, POOL) and "fork" not in multiprocessing.get_all_start_methods():
        return "this system does not fork"
    if any(importlib.util.find_spec(module.partition(".")[0]) is None for module in MODULES[family]):
        return "not installed"
    return None


def cpu_count() -> int:
    """Return the CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load(family: str) -> None:
    """Import what a contender needs, so that its first map is not charged for it."""
    for module in MODULES[family]:
        importlib.import_module(module)
    if family == OURS:
        _ = importlib.import_module("amorsize_executor").AmorsizeExecutor


def open_pool(contender: Contender, forecasts: list[Forecast] | None = None) -> AbstractContextManager[RunMap]:
    """Open a contender's pool for a with block; ours appends a forecast for each map, if there is a list."""
    match contender.family:
        case "amorsize":
            return _ours(forecasts)
        case "serial":
            return _serial()
        case "pool":
            return _pool()
        case "joblib":
            return _joblib()
        case "mpire":
            return _mpire()
        case family:
            return _executor(family, contender.chunk)


@contextmanager
def _serial() -> Iterator[RunMap]:
    yield lambda function, items, n_items: [function(item) for item in items]


class OurMaps:
    """Maps of an executor of ours.

    Attributes
    ----------
    forecasts
        Gets what each map promised and took; None: nobody asks, as in most programs, and as while time is taken.
    """

    def __init__(self, executor: AmorsizeExecutor, forecasts: list[Forecast] | None) -> None:
        self._executor = executor
        self.forecasts = forecasts

    def __call__(self, function: Callable[[Any], Any], items: Iterable[Any], n_items: int) -> list[Any]:
        """Run a map and return its results."""
        if self.forecasts is None:
            return list(self._executor.map(function, items))
        iterator = self._executor.map(function, items)
        promised = self._executor.last_plan  # before the map corrects it
        results = list(iterator)
        done = self._executor.last_plan
        assert promised is not None
        assert done is not None
        self.forecasts.append(Forecast(promised.predicted_s, promised.estimated_speedup, done.actual_s))
        return results


@contextmanager
def _ours(forecasts: list[Forecast] | None) -> Iterator[RunMap]:
    from amorsize_executor import AmorsizeExecutor

    with AmorsizeExecutor() as executor:
        yield OurMaps(executor, forecasts)


@contextmanager
def _executor(family: str, chunk: str) -> Iterator[RunMap]:
    module = importlib.import_module("loky" if family == LOKY else "concurrent.futures.process")
    options = {} if family == LOKY else {"mp_context": multiprocessing.get_context(family)}
    with module.ProcessPoolExecutor(cpu_count(), **options) as executor:
        yield lambda function, items, n_items: list(executor.map(function, items, chunksize=chunk_size(chunk, n_items)))


@contextmanager
def _pool() -> Iterator[RunMap]:
    pool = multiprocessing.get_context("fork").Pool(cpu_count())
    yield lambda function, items, n_items: pool.map(function, items)
    pool.close()
    pool.join()


@contextmanager
def _joblib() -> Iterator[RunMap]:
    import joblib
    from joblib.externals.loky import get_reusable_executor

    with joblib.Parallel(n_jobs=cpu_count()) as parallel:
        yield lambda function, items, n_items: parallel(joblib.delayed(function)(item) for item in items)
    get_reusable_executor().shutdown(wait=True)


@contextmanager
def _mpire() -> Iterator[RunMap]:
    pool = importlib.import_module("mpire").WorkerPool(n_jobs=cpu_count(), keep_alive=True)
    yield lambda function, items, n_items: pool.map(function, items, iterable_len=n_items)
    pool.stop_and_join()
