"""Of one pattern: what `optimize` estimates, what `execute` then gets, and how fast any choice could have been.

All in an interpreter of its own: a loop, `optimize`, the first `execute` behind it, and then in turns, warm, the loop,
`execute`, and `execute` with each pair of `n_jobs` and `chunksize` (one job is the loop).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks._measure import fresh_interpreter, in_turn
from benchmarks._pattern_list import BY_NAME
from benchmarks._pattern_probe import ONE_THREAD
from benchmarks._regret_contenders import cpu_count

LIMIT_S = 240.0
ROUNDS, BUDGET_S = 3, 12.0
"""Turns at most, and the time after which no other is begun, in seconds."""
CODE = "import sys; from benchmarks._pattern_choice import main; main(sys.argv[1], int(sys.argv[2]))"
LOOP, EXECUTE = "loop", "execute"


@dataclass(frozen=True)
class Choice:
    """What was found.

    Attributes
    ----------
    n_jobs, chunksize, estimated_speedup
        As `optimize` said.
    optimize_s
        What it took, in seconds.
    execute_s
        What the first `execute` behind it took, in seconds.
    times_s
        Medians of the turns, in seconds: of "loop", "execute", and each choice as "n_jobs, chunksize".
    """

    n_jobs: int
    chunksize: int
    estimated_speedup: float
    optimize_s: float
    execute_s: float
    times_s: dict[str, float]

    @property
    def speedup(self) -> float:
        """Of the first `execute`, over the loop."""
        return self.times_s[LOOP] / self.execute_s

    @property
    def error(self) -> float:
        """How far the estimate was from that."""
        return self.estimated_speedup / self.speedup - 1

    @property
    def best(self) -> tuple[str, float]:
        """The fastest choice, and its time in seconds."""
        choices = {name: taken_s for name, taken_s in self.times_s.items() if name != EXECUTE}
        name = min(choices, key=choices.__getitem__)
        return name, choices[name]

    @property
    def over_best(self) -> float:
        """Time of `execute` over that of the fastest choice."""
        return self.times_s[EXECUTE] / self.best[1]


def measure(pattern: str, rounds: int = ROUNDS) -> Choice:
    """Measure in a fresh interpreter, in so many turns.

    Raises
    ------
    ProbeError
        It failed, or took too long.
    """
    return Choice(**json.loads(fresh_interpreter("-c", CODE, pattern, str(rounds), limit_s=LIMIT_S)))


def main(pattern: str, rounds: int) -> None:
    """Measure a pattern, and print what was found."""
    os.environ.update(ONE_THREAD)
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    with tempfile.TemporaryDirectory() as folder:
        function, items = BY_NAME[pattern].load_map(Path(folder))
        found = _choice(function, items, rounds)
    json.dump(asdict(found), sys.stdout)


def _choice(function: Callable[[Any], Any], items: list[Any], rounds: int) -> Choice:
    from amorsize_executor import execute, optimize

    function(items[0])  # loads and compiles what the loop should not be charged for
    started = perf_counter()
    result = optimize(function, items)
    optimize_s = perf_counter() - started
    started = perf_counter()
    execute(function, items)
    execute_s = perf_counter() - started
    ways: dict[str, Callable[[], list[Any]]] = {
        LOOP: lambda: [function(item) for item in items],
        EXECUTE: lambda: execute(function, items),
    }
    for n_jobs, chunksize in choices(len(items)):
        ways[f"{n_jobs}, {chunksize}"] = lambda n=n_jobs, c=chunksize: execute(function, items, n_jobs=n, chunksize=c)
    times: dict[str, list[float]] = {name: [] for name in ways}
    until = perf_counter() + BUDGET_S
    for turn in range(rounds):
        if turn and perf_counter() > until:
            break
        for name in in_turn(tuple(ways), turn):
            started = perf_counter()
            ways[name]()
            times[name].append(perf_counter() - started)
    medians = {name: median(values) for name, values in times.items()}
    return Choice(result.n_jobs, result.chunksize, result.estimated_speedup, optimize_s, execute_s, medians)


def choices(n_items: int) -> list[tuple[int, int]]:
    """All pairs of jobs and chunk size to compare: each number of jobs, with chunks of 1, 2, 4, ... to equal shares.

    One job is the loop.

    >>> choices(10)[:2]
    [(2, 1), (2, 2)]
    """
    found = []
    for n_jobs in range(2, cpu_count() + 1):
        share = -(-n_items // n_jobs)
        found += [(n_jobs, 2**power) for power in range(share.bit_length()) if 2**power < share]
        found.append((n_jobs, share))
    return found
