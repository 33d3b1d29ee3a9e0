"""One contender's maps of one workload in an interpreter of their own.

The parent (`measure`) starts it with ``-c``: workers that import the main module again then find none, and are charged
for nothing but the tasks' own modules. All times are in seconds.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks._measure import fresh_interpreter
from benchmarks._regret_contenders import SERIAL, Contender, Forecast, OurMaps, RunMap, load, open_pool
from benchmarks._regret_workloads import Workload, build

COLD, WARM = MODES = ("cold", "warm")
LIMIT_TIMES_SERIAL, LIMIT_EXTRA_S = 5.0, 3.0
"""Who takes longer for a workload than this many times the serial loop and these seconds is beaten."""
WARM_RUNS = 3
"""Timed runs in one process, after the one that is not; fewer where they would take longer than the limit."""
CODE = "import sys; from benchmarks._regret_probe import main; main(sys.argv[1])"


class BeatenError(Exception):
    """A contender was over the time limit."""


class WrongResultsError(Exception):
    """A contender returned something else than the loop."""


@dataclass(frozen=True)
class Race:
    """A workload as it was found on this machine.

    Attributes
    ----------
    name, loops_per_s
        What `build` needs.
    lengths
        Items of each map.
    serial_s
        One serial loop, in seconds: for limits, not for comparison.
    preparation_s
        From the start of an interpreter until it has items and modules, in seconds.
    checksum
        Of the loop's results.
    """

    name: str
    loops_per_s: float
    lengths: list[int]
    serial_s: float
    preparation_s: float
    checksum: int

    @property
    def limit_s(self) -> float:
        """Longest time, in seconds, of a contender that is not beaten."""
        return LIMIT_TIMES_SERIAL * self.serial_s + LIMIT_EXTRA_S


@dataclass(frozen=True)
class Sample:
    """What one process measured: its median time in seconds, and the forecasts of ours."""

    elapsed_s: float
    forecasts: list[Forecast]


def look_at(name: str, loops_per_s: float) -> Race:
    """Build a workload in a fresh interpreter and run its loop once."""
    started = perf_counter()
    found = json.loads(
        fresh_interpreter("-c", CODE, json.dumps({"workload": name, "loops_per_s": loops_per_s, "mode": "look"}))
    )
    preparation_s = perf_counter() - started - found["serial_s"]
    return Race(name, loops_per_s, found["lengths"], found["serial_s"], preparation_s, found["checksum"])


def measure(race: Race, contender: Contender, mode: str) -> Sample:
    """Measure in a fresh interpreter.

    Raises
    ------
    BeatenError
        Over the limit.
    ProbeError
        It failed, or took so long that it had to be killed (`ProbeTimeoutError`).
    WrongResultsError
        Its results are not the loop's.
    """
    order = {
        "workload": race.name,
        "loops_per_s": race.loops_per_s,
        "mode": mode,
        **asdict(contender),
        "limit_s": race.limit_s,
    }
    # Warm runs come after one that is not timed; behind ours come those that are asked for forecasts.
    allowed_s = race.preparation_s + race.limit_s * (3 if mode == WARM else 1)
    found = json.loads(fresh_interpreter("-c", CODE, json.dumps(order), limit_s=allowed_s))
    if found["checksum"] != race.checksum:
        raise WrongResultsError(f"{race.name}: {contender.name} has other results than the loop")
    if found["elapsed_s"] > race.limit_s:
        raise BeatenError(f"{race.name}: {contender.name} took {found['elapsed_s']:.1f} s")
    return Sample(found["elapsed_s"], [Forecast(**forecast) for forecast in found["forecasts"]])


def main(order: str) -> None:
    """Carry out what `look_at` or `measure` ordered, and print what was found."""
    # Whoever is killed for its slowness has its semaphores cleaned up by its trackers, which would warn of each.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
    given: dict[str, Any] = json.loads(order)
    workload = build(given["workload"], given["loops_per_s"])
    if given["mode"] == "look":
        found = _look(workload)
    else:
        contender = Contender(given["family"], given["chunk"])
        load(contender.family)
        found = _cold(workload, contender) if given["mode"] == COLD else _warm(workload, contender, given["limit_s"])
    print(json.dumps(found))


def _look(workload: Workload) -> dict[str, Any]:
    with open_pool(Contender(SERIAL)) as run_map:
        elapsed_s, checksum = _run(workload, run_map)
    return {"serial_s": elapsed_s, "checksum": checksum, "lengths": workload.lengths}


def _cold(workload: Workload, contender: Contender) -> dict[str, Any]:
    prepared = workload.prepare()
    started = perf_counter()
    with open_pool(contender) as run_map:
        results = [run_map(part.function, part.items, part.n_items) for part in prepared]
    return {"elapsed_s": perf_counter() - started, "checksum": _checksum(results), "forecasts": []}


def _warm(workload: Workload, contender: Contender, limit_s: float) -> dict[str, Any]:
    forecasts: list[Forecast] = []
    elapsed_s: list[float] = []
    with open_pool(contender) as run_map:
        _, checksum = _run(workload, run_map)
        while len(elapsed_s) < WARM_RUNS and sum(elapsed_s) < limit_s / 2:
            taken_s, again = _run(workload, run_map)
            elapsed_s.append(taken_s)
            checksum = checksum if again == checksum else -1
        if isinstance(run_map, OurMaps):  # of as many runs more: to ask takes time
            run_map.forecasts = forecasts
            for _ in elapsed_s:
                _run(workload, run_map)
    return {
        "elapsed_s": median(elapsed_s),
        "checksum": checksum,
        "forecasts": [asdict(forecast) for forecast in forecasts],
    }


def _run(workload: Workload, run_map: RunMap) -> tuple[float, int]:
    prepared = workload.prepare()
    started = perf_counter()
    results = [run_map(part.function, part.items, part.n_items) for part in prepared]
    elapsed_s = perf_counter() - started
    return elapsed_s, _checksum(results)


def _checksum(maps: Iterable[list[Any]]) -> int:
    value = 0
    for results in maps:
        for result in results:
            value = zlib.crc32(result if isinstance(result, bytes) else repr(result).encode(), value)
    return value
