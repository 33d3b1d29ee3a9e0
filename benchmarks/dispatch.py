"""What it costs to hand work to AmorsizeExecutor, the standard pool, and loky's executor.

``python -m benchmarks.dispatch [--quick] [--only NAME] [--markdown FILE]``

The contenders take turns, round by round, and medians over rounds are quoted: whatever else runs on
the machine hits all of them. The standard pool forks; all keep their defaults, but for the parent's
CPU time: there ours keeps no item in its caller, and the others get an eighth of the items in a chunk.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import _grid
from benchmarks._measure import (
    CONTENDERS,
    LOKY,
    OURS,
    STANDARD,
    ProbeError,
    fresh_interpreter,
    in_turn,
    loops_for,
    medians,
    probe,
    timed,
)
from benchmarks._report import Report, Row, each, ratio, seconds

WORKERS = 2
LATENCY_CALLS = 2_000
FLOOD_CALLS = 20_000
TINY_ITEMS = 1_000_000
SMALL_MAP_ITEMS = 1_000
SMALL_MAP_TASK_S = 1e-6

LATENCY_TARGET = 0.5
"""Of the standard pool's latency."""
FLOOD_TARGET = 5.0
"""Times the standard pool's rate."""
TINY_TARGET_S = 2e-6
"""CPU time of the parent for an item, in seconds."""
SMALL_MAP_TARGET_S = 5e-3
IMPORT_TARGET = 1.5
"""Times the import of the standard pool."""

BARE = "bare interpreter"
IMPORTS = {
    OURS: "from amorsize_executor import AmorsizeExecutor",
    STANDARD: "import concurrent.futures.process",
    LOKY: "import loky",
    BARE: "pass",
}
TIMED_IMPORT = "from time import perf_counter as now; start = now(); {}; print(now() - start)"


@dataclass(frozen=True)
class Effort:
    """How long to measure: rounds of each kind, and the longest serial loop of the grids."""

    pool_rounds: int
    tiny_rounds: int
    small_map_rounds: int
    interpreters: int
    imports: int
    grid_repetitions: int
    max_serial_s: float


FULL = Effort(9, 5, 31, 11, 40, 7, 6.5)
QUICK = Effort(3, 2, 9, 5, 12, 5, 1.5)


def say(what: str) -> None:
    """Tell on stderr what is being measured."""
    print(what, file=sys.stderr, flush=True)


def latency(effort: Effort) -> Report:
    """Time from submit to result on warm pools."""
    found = probe("latency", workers=WORKERS, calls=LATENCY_CALLS, rounds=effort.pool_rounds)
    times = found["seconds"]
    value = times[OURS] / times[STANDARD]
    row = Row(
        f"submit -> result, median of {LATENCY_CALLS:,}",
        each(times),
        ratio(value),
        f"<= {LATENCY_TARGET} x standard",
        value <= LATENCY_TARGET,
    )
    return Report([row], notes=_missing_workers("latency", found["workers"]))


def flood(effort: Effort) -> Report:
    """Rate of many submits at once on warm pools."""
    found = probe("flood", workers=WORKERS, calls=FLOOD_CALLS, rounds=effort.pool_rounds)
    rates = {name: FLOOD_CALLS / elapsed for name, elapsed in found["seconds"].items()}
    value = rates[OURS] / rates[STANDARD]
    row = Row(
        f"flood of {FLOOD_CALLS:,} submits, rate",
        {name: f"{rate:,.0f} /s" for name, rate in rates.items()},
        ratio(value),
        f">= {FLOOD_TARGET:g} x standard",
        value >= FLOOD_TARGET,
    )
    return Report([row], notes=_missing_workers("flood", found["workers"]))


def tiny_items(effort: Effort) -> Report:
    """CPU time that a warm map of very many tiny items takes the parent, for each of them."""
    found = probe("parent_cpu", workers=WORKERS, items=TINY_ITEMS, rounds=effort.tiny_rounds)
    times = {name: total / TINY_ITEMS for name, total in found["seconds"].items()}
    kept_s = probe("caller_cpu", items=TINY_ITEMS, rounds=effort.tiny_rounds)["seconds"] / TINY_ITEMS
    target = f"<= {seconds(TINY_TARGET_S)}"
    what = f"parent's CPU time an item, warm map of {TINY_ITEMS:,}"
    return Report(
        [
            Row(
                f"{what}, in workers",
                each(times),
                ratio(times[OURS] / times[STANDARD]),
                target,
                times[OURS] <= TINY_TARGET_S,
            ),
            Row(f"{what}, as decided - loop", {OURS: seconds(kept_s)}, "", target, kept_s <= TINY_TARGET_S),
        ],
        notes=_missing_workers("tiny-items", found["workers"]),
    )


def _missing_workers(section: str, started: dict[str, int]) -> list[str]:
    return [
        f"{section}: only {count} of {WORKERS} workers of {name} answered before the first round."
        for name, count in started.items()
        if count < WORKERS
    ]


def small_map(effort: Effort) -> Report:
    """Excess of a block around a small map over the serial loop."""
    imported = probe(
        "small_map",
        items=SMALL_MAP_ITEMS,
        task_s=SMALL_MAP_TASK_S,
        rounds=effort.small_map_rounds,
    )
    rows = [_small_map_row("imported", imported["seconds"])]
    loops = loops_for(SMALL_MAP_TASK_S)
    samples: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for number in range(effort.interpreters):
        for name in in_turn(CONTENDERS, number):
            found = probe(
                "first_small_map",
                contender=name,
                loops=loops,
                items=SMALL_MAP_ITEMS,
                serial_first=number % 2 == 0,
            )
            samples[name].append(found["seconds"])
    rows.append(_small_map_row("fresh interpreter", medians(samples)))
    return Report(rows)


def _small_map_row(where: str, excess: dict[str, float]) -> Row:
    return Row(
        f"block around {SMALL_MAP_ITEMS:,} tasks of 1 µs - serial, {where}",
        each(excess),
        target=f"<= {seconds(SMALL_MAP_TARGET_S)}",
        reached=excess[OURS] <= SMALL_MAP_TARGET_S,
    )


def imports(effort: Effort) -> Report:
    """Time of the import in fresh interpreters."""
    names = tuple(IMPORTS)
    statement_s: dict[str, list[float]] = {name: [] for name in names}
    process_s: dict[str, list[float]] = {name: [] for name in names}

    def run(name: str) -> None:
        code = TIMED_IMPORT.format(IMPORTS[name])
        statement_s[name].append(float(fresh_interpreter("-c", code)))

    for name in names:  # compiles what is not compiled yet
        run(name)
        statement_s[name].clear()
    for number in range(effort.imports):
        for name in in_turn(names, number):
            process_s[name].append(timed(partial(run, name)))
    raw = medians(process_s)
    bare = raw[BARE]
    above_bare = {name: raw[name] - bare for name in CONTENDERS}
    return Report(
        [
            _import_row("import, process - bare interpreter", above_bare, judged=True),
            _import_row("import, the statement alone", medians(statement_s), judged=True),
            _import_row(f"import, process (bare: {seconds(bare)})", raw, judged=False),
        ]
    )


def _import_row(measure: str, times: dict[str, float], judged: bool) -> Row:
    value = times[OURS] / times[STANDARD]
    return Row(
        measure,
        each(times),
        ratio(value),
        f"<= {IMPORT_TARGET} x standard" if judged else "",
        value <= IMPORT_TARGET if judged else None,
    )


def cold_start(effort: Effort) -> Report:
    """Time from the constructor to the first result."""
    samples: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for number in range(effort.interpreters):
        for name in in_turn(CONTENDERS, number):
            found = probe("cold_start", contender=name, workers=WORKERS)
            samples[name].append(found["seconds"])
    times = medians(samples)
    row = Row(
        "constructor -> first result of a submit",
        each(times),
        ratio(times[OURS] / times[STANDARD]),
    )
    return Report([row])


def cold_grid(effort: Effort) -> Report:
    """Time maps beside the serial loop, everything new."""
    return _grid.cold(effort.max_serial_s, effort.grid_repetitions, say)


def warm_grid(effort: Effort) -> Report:
    """Time maps beside the serial loop, on a warm executor that has met the function."""
    return _grid.warm(effort.max_serial_s, effort.grid_repetitions, WORKERS, say)


SECTIONS: dict[str, Callable[[Effort], Report]] = {
    "latency": latency,
    "flood": flood,
    "tiny-items": tiny_items,
    "small-map": small_map,
    "import": imports,
    "cold-start": cold_start,
    "cold-grid": cold_grid,
    "warm-grid": warm_grid,
}


def measure(names: list[str], effort: Effort) -> Report:
    """Run the sections; one that fails is reported, and the others go on."""
    report = Report()
    for name in names:
        say(name)
        try:
            report.add(SECTIONS[name](effort))
        except ProbeError as error:
            report.rows.append(Row(name, {OURS: "failed"}, reached=False))
            report.notes.append(f"{name} failed: {error}")
    return report


def main() -> None:
    """Measure what the command line asks for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, shorter maps")
    parser.add_argument("--only", action="append", choices=SECTIONS, help="may be repeated")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write a page, too")
    options = parser.parse_args()
    report = measure(options.only or list(SECTIONS), QUICK if options.quick else FULL)
    print(report.text())
    if options.markdown:
        introduction = "\n".join((__doc__ or "").splitlines()[2:])
        page = report.markdown("Dispatch: what handing out work costs", introduction)
        options.markdown.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
