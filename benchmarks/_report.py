"""Tables of the benchmarks, as plain text and as markdown."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

from benchmarks._measure import CONTENDERS

HEADER = ("measure", "amorsize", "standard, fork", "loky", "ratio", "target", "reached")
UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
DECIMALS_BELOW = 100


@dataclass(frozen=True)
class Row:
    """One measure: its value by contender, as text, and whether the target is reached.

    `reached` is None where there is no target.
    """

    measure: str
    values: Mapping[str, str]
    ratio: str = ""
    target: str = ""
    reached: bool | None = None

    def cells(self) -> tuple[str, ...]:
        """Return the cells in the order of `HEADER`."""
        values = (self.values.get(name, "") for name in CONTENDERS)
        verdict = {None: "", True: "yes", False: "NO"}[self.reached]
        return (self.measure, *values, self.ratio, self.target, verdict)


@dataclass(frozen=True)
class Table:
    """A titled table with right-aligned columns, but for the first."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def text(self) -> str:
        """Render for a terminal."""
        lines = [list(self.header), *map(list, self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        rendered = [_text_line(line, widths) for line in lines]
        rendered.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([self.title, *rendered, *([self.note] if self.note else [])])

    def markdown(self) -> str:
        """Render as a section of a markdown page."""
        rule = ["---"] + ["---:"] * (len(self.header) - 1)
        lines = [f"| {' | '.join(line)} |" for line in (self.header, rule, *self.rows)]
        note = ["", self.note] if self.note else []
        return "\n".join([f"## {self.title}", "", *lines, *note])


def _text_line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = (
        cell.rjust(width) if column else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join([first, *rest]).rstrip()


@dataclass
class Report:
    """What one run found: rows of the summary, and the tables that explain some of them."""

    rows: list[Row] = field(default_factory=list)
    details: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, other: Report) -> None:
        """Append another report's content."""
        self.rows += other.rows
        self.details += other.details
        self.notes += other.notes

    def tables(self) -> Iterable[Table]:
        """Yield the summary, then the details."""
        if self.rows:
            yield Table("Summary", HEADER, [row.cells() for row in self.rows])
        yield from self.details

    def text(self) -> str:
        """Render for a terminal."""
        return "\n\n".join([machine(), *(table.text() for table in self.tables()), *self.notes])

    def markdown(self, title: str, introduction: str) -> str:
        """Render as a markdown page."""
        parts = [f"# {title}", introduction, f"Measured on: {machine()}."]
        parts += [table.markdown() for table in self.tables()]
        return "\n\n".join([*parts, *self.notes]) + "\n"


def machine() -> str:
    """Name what was measured, and on what."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    packages = (f"{name} {_version(name)}" for name in ("amorsize-executor", "loky"))
    python = f"{platform.python_implementation()} {platform.python_version()}"
    system = f"{platform.system()} {platform.machine()}"
    return ", ".join([f"{cpus} CPUs", system, python, *packages])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def seconds(value: float) -> str:
    """Write a time with three digits and the unit that suits it."""
    scale, unit = next((pair for pair in UNITS if abs(value) >= pair[0]), UNITS[-1])
    return f"{value / scale:.3g} {unit}"


def each(times: Mapping[str, float]) -> dict[str, str]:
    """Write every contender's time."""
    return {name: seconds(value) for name, value in times.items()}


def ratio(value: float) -> str:
    """Write a ratio; a large one needs no decimals."""
    return f"{value:.2f}" if value < DECIMALS_BELOW else f"{value:.0f}"
