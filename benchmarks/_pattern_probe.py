"""One contender's runs of one pattern, in an interpreter of their own: the first one cold, the next ones warm."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks._measure import fresh_interpreter
from benchmarks._pattern_list import BY_NAME, MapAll
from benchmarks._regret_contenders import Contender, Forecast, load, open_pool

WARM_RUNS, WARM_S = 7, 4.0
"""Timed runs after the first one at most, and the time after which no other is begun, in seconds."""
LIMIT_S = 240.0
CODE = "import sys; from benchmarks._pattern_probe import main; main(sys.argv[1])"
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)
"""In this process and all workers, so that only the number of processes differs."""


@dataclass(frozen=True)
class Sample:
    """What one process measured.

    Attributes
    ----------
    cold_s
        Opening a pool and the first run, in seconds; closing the pool is not counted.
    second_s
        The second run, in seconds.
    warm_s
        Median of all runs but the first, in seconds.
    digest
        Numbers that stand for the results.
    forecasts
        Of the maps of the last run, if they are ours.
    """

    cold_s: float
    second_s: float
    warm_s: float
    digest: list[float]
    forecasts: list[Forecast]


def measure(pattern: str, contender: Contender, warm_runs: int = WARM_RUNS) -> Sample:
    """Measure in a fresh interpreter.

    Raises
    ------
    ProbeError
        It failed, or took too long.
    """
    order = {"pattern": pattern, "warm_runs": warm_runs, **asdict(contender)}
    found = json.loads(fresh_interpreter("-c", CODE, json.dumps(order), limit_s=LIMIT_S))
    return Sample(
        found["cold_s"],
        found["second_s"],
        found["warm_s"],
        found["digest"],
        [Forecast(**forecast) for forecast in found["forecasts"]],
    )


def main(order: str) -> None:
    """Carry out what `measure` ordered, and print what was found."""
    os.environ.update(ONE_THREAD)
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    given: dict[str, Any] = json.loads(order)
    contender = Contender(given["family"], given["chunk"])
    with tempfile.TemporaryDirectory() as folder:
        program = BY_NAME[given["pattern"]].load(Path(folder))
        load(contender.family)
        print(json.dumps(asdict(_sample(program, contender, given["warm_runs"]))))


def _sample(program: Callable[[MapAll], Any], contender: Contender, warm_runs: int) -> Sample:
    forecasts: list[Forecast] = []
    warm_s: list[float] = []
    started = perf_counter()
    with open_pool(contender, forecasts) as run_map:

        def map_all(function: Callable[[Any], Any], items: list[Any]) -> list[Any]:
            return run_map(function, items, len(items))

        found = program(map_all)
        cold_s = perf_counter() - started
        while len(warm_s) < warm_runs and sum(warm_s) < WARM_S:
            forecasts.clear()
            started = perf_counter()
            found = program(map_all)
            warm_s.append(perf_counter() - started)
    return Sample(cold_s, warm_s[0], median(warm_s), list(_numbers(found)), forecasts)


def _numbers(found: Any) -> Iterable[float]:
    """The numbers in some results: of an array its sum, which is enough to see that it is another one."""
    if isinstance(found, dict):
        found = list(found.values())
    if isinstance(found, (list, tuple)):
        for part in found:
            yield from _numbers(part)
    else:
        yield float(found.sum() if hasattr(found, "sum") else found)
