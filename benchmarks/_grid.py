"""Never slower than serial: maps of many durations and lengths beside the serial loop.

Cold: a fresh interpreter for each measurement, where no worker runs and nothing is known about the
function; the executor's shutdown counts, and is also left out. Warm: the second and later maps of
an executor whose workers run. A cell's ratio is the median over repetitions of map over serial
loop, the two measured one after the other, first one first, then the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks._measure import OURS, loops_for, probe
from benchmarks._report import Report, Row, Table, ratio, seconds

DURATIONS_S = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
LENGTHS = (1, 2, 3, 5, 10, 30, 100, 1_000, 10_000, 100_000)
TARGET = 1.15

SHORT_LOOP_S = 1e-3
"""Below it, a ratio to the serial loop says little, and the excess in microseconds is shown."""
SHORT_LOOP_ROUNDS = 25
"""Warm rounds for such a loop: they cost nothing, and single microseconds are noisy."""
EXTRA_PASSES = 2
"""Cells above the target are measured again, later, and all their repetitions count."""
WORST = 8


@dataclass
class Cell:
    """One duration and length: what its repetitions took, in seconds."""

    duration_s: float
    items: int
    serial_s: list[float] = field(default_factory=list)
    map_s: dict[str, list[float]] = field(default_factory=dict)

    @property
    def expected_s(self) -> float:
        """The serial time it was built for."""
        return self.duration_s * self.items

    @property
    def is_short(self) -> bool:
        """Whether its serial loop is too short for a ratio to mean much."""
        return self.expected_s < SHORT_LOOP_S * 0.999

    def record(self, found: dict[str, list[float]], kinds: Iterable[str]) -> None:
        """Add the repetitions of one probe."""
        self.serial_s += found["serial"]
        for kind in kinds:
            self.map_s.setdefault(kind, []).extend(found[kind])

    def ratios(self, kind: str) -> list[float]:
        """Return map over serial loop, by repetition."""
        return [m / s for m, s in zip(self.map_s[kind], self.serial_s, strict=True)]

    def ratio(self, kind: str) -> float:
        """Return the median of `ratios`."""
        return median(self.ratios(kind))

    def excess_s(self, kind: str) -> float:
        """Return the median of what a map took longer than the serial loop."""
        return median(m - s for m, s in zip(self.map_s[kind], self.serial_s, strict=True))


@dataclass(frozen=True)
class Kind:
    """A way of timing a map: the probe's name for it, and ours."""

    key: str
    title: str


COLD = (Kind("block", "cold, with shutdown"), Kind("map", "cold, without shutdown"))
WARM = (Kind("map", "warm"),)


def cold(max_serial_s: float, repetitions: int, say: Callable[[str], None]) -> Report:
    """Measure the grid with a fresh interpreter for each map."""

    def one_pass(cells: list[Cell]) -> None:
        for number in range(repetitions):
            say(f"cold grid: repetition {number + 1} of {repetitions}, {len(cells)} cells")
            for cell in cells:
                loops = loops_for(cell.duration_s)
                even = number % 2 == 0
                found = probe("cold_cell", loops=loops, items=cell.items, serial_first=even)
                cell.record(found, [kind.key for kind in COLD])

    return _measure(one_pass, COLD, max_serial_s)


def warm(max_serial_s: float, repetitions: int, workers: int, say: Callable[[str], None]) -> Report:
    """Measure the grid with maps that an executor has seen before."""
    idle: list[str] = []

    def one_pass(cells: list[Cell]) -> None:
        say(f"warm grid: {len(cells)} cells")
        for cell in cells:
            found = _warm_probe(cell, workers, repetitions)
            cell.record(found, [kind.key for kind in WARM])
            if found["workers"] < workers:
                idle.append(f"{cell.items:,} of {seconds(cell.duration_s)}")

    report = _measure(one_pass, WARM, max_serial_s)
    if idle:
        report.notes.append(f"Fewer than {workers} workers answered before: {', '.join(idle)}.")
    return report


def _warm_probe(cell: Cell, workers: int, repetitions: int) -> dict[str, Any]:
    return probe(
        "warm_cell",
        loops=loops_for(cell.duration_s),
        items=cell.items,
        workers=workers,
        rounds=SHORT_LOOP_ROUNDS if cell.is_short else repetitions,
    )


def _measure(one_pass: Callable[[list[Cell]], None], kinds: tuple[Kind, ...], max_serial_s: float) -> Report:
    cells = [Cell(duration_s, items) for duration_s in DURATIONS_S for items in LENGTHS]
    cells = [cell for cell in cells if cell.expected_s <= max_serial_s]
    one_pass(cells)
    for _ in range(EXTRA_PASSES):
        doubtful = [cell for cell in cells if not cell.is_short and _misses(cell, kinds)]
        if doubtful:
            one_pass(doubtful)
    report = Report()
    for kind in kinds:
        report.rows += _rows(cells, kind)
        report.details += [*_matrices(cells, kind), _worst(cells, kind)]
    return report


def _misses(cell: Cell, kinds: tuple[Kind, ...]) -> bool:
    return any(cell.ratio(kind.key) > TARGET for kind in kinds)


def _rows(cells: list[Cell], kind: Kind) -> list[Row]:
    long = [cell for cell in cells if not cell.is_short]
    worst_excess = max(cell.excess_s(kind.key) for cell in cells if cell.is_short)
    return [
        _ratio_row(f"map / serial, {kind.title}: worst, loops >= 1 ms", long, kind),
        _ratio_row(f"map / serial, {kind.title}: worst, all loops", cells, kind),
        Row(f"map - serial, {kind.title}: worst, loops < 1 ms", {OURS: seconds(worst_excess)}),
    ]


def _ratio_row(measure: str, cells: list[Cell], kind: Kind) -> Row:
    worst = max(cells, key=lambda cell: cell.ratio(kind.key))
    value = worst.ratio(kind.key)
    taken = seconds(median(worst.map_s[kind.key]))
    return Row(measure, {OURS: taken}, ratio=ratio(value), target=f"<= {TARGET}", reached=value <= TARGET)


def _matrices(cells: list[Cell], kind: Kind) -> list[Table]:
    def ratio_of(cell: Cell) -> str:
        value = cell.ratio(kind.key)
        return ratio(value) + (" *" if value > TARGET else "")

    def excess_of(cell: Cell) -> str:
        return f"{cell.excess_s(kind.key) * 1e6:+.0f}" if cell.is_short else ""

    return [
        _matrix(f"Map / serial loop, {kind.title}", cells, ratio_of, f"*: above {TARGET}."),
        _matrix(
            f"Map - serial loop in µs, {kind.title}",
            [cell for cell in cells if cell.is_short],
            excess_of,
            "Only loops that take less than 1 ms.",
        ),
    ]


def _matrix(title: str, cells: list[Cell], value: Callable[[Cell], str], note: str) -> Table:
    lengths = sorted({cell.items for cell in cells})
    found = {(cell.duration_s, cell.items): value(cell) for cell in cells}
    rows = [
        [seconds(duration_s), *(found.get((duration_s, items), "") for items in lengths)]
        for duration_s in sorted({cell.duration_s for cell in cells})
    ]
    return Table(title, ["task \\ items", *(f"{items:,}" for items in lengths)], rows, note)


def _worst(cells: list[Cell], kind: Kind) -> Table:
    long = [cell for cell in cells if not cell.is_short]
    ranked = sorted(long, key=lambda cell: cell.ratio(kind.key), reverse=True)[:WORST]
    rows = [_worst_row(cell, kind.key) for cell in ranked]
    header = ["task", "items", "ratio", "lowest", "highest", "serial", "map", "repetitions"]
    return Table(f"Worst of the loops >= 1 ms, {kind.title}", header, rows)


def _worst_row(cell: Cell, key: str) -> list[str]:
    ratios = cell.ratios(key)
    return [
        seconds(cell.duration_s),
        f"{cell.items:,}",
        *(ratio(value) for value in (median(ratios), min(ratios), max(ratios))),
        seconds(median(cell.serial_s)),
        seconds(median(cell.map_s[key])),
        str(len(ratios)),
    ]
