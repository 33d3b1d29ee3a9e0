"""Regret: our time over that of the best hand-tuned choice, for many kinds of work.

``python -m benchmarks.regret [--quick] [--only WORKLOAD ...] [--peers NAME ...] [--rounds N]``
``[--minutes M] [--markdown FILE] [--chart FILE.png]``

AmorsizeExecutor, with nothing tuned, beside a serial loop, the standard pool with several chunk sizes,
multiprocessing.Pool, joblib, loky and mpire. Regret is our time over the best of all of them, the loop included: at
most 1 means that nothing was faster. Each measurement has a fresh interpreter, with everything imported. Cold: a pool
is created, maps, and is shut down. Warm: a pool that ran the same function before maps again. The contenders take
turns in another order each round, and medians over rounds are quoted. Forecasts are of further runs of ours, since to
ask for them takes time. "Everything imported" includes loky for ours, and what starts
its processes, which a program imports when it starts its first worker: 28 ms here.

The best of many is chosen after the fact, by the same times that are quoted: where several are equally fast, noise
makes the best one look faster than any of them is. That counts against us. Beside it stands what they take in rounds
that had no part in the choice.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from benchmarks import _regret_report as report
from benchmarks._measure import ProbeError, ProbeTimeoutError, in_turn, loops_for
from benchmarks._regret_contenders import CHUNKS, PEERS, QUICK_CHUNKS, Contender, contenders_for, why_missing
from benchmarks._regret_probe import COLD, MODES, WARM, BeatenError, WrongResultsError, look_at, measure
from benchmarks._regret_results import Field
from benchmarks._regret_workloads import NAMES, QUICK_NAMES

CALIBRATED_S = 1e-3


@dataclass(frozen=True)
class Effort:
    """How long to measure: rounds, chunk sizes of the standard pool, workloads, and seconds for everything."""

    rounds: int
    chunks: tuple[str, ...]
    workloads: tuple[str, ...]
    budget_s: float | None = None


FULL = Effort(5, CHUNKS, NAMES)
QUICK = Effort(3, QUICK_CHUNKS, QUICK_NAMES, budget_s=220.0)


class Benchmark:
    """All fields, and the rounds that fill them."""

    def __init__(self, peers: Sequence[str], effort: Effort) -> None:
        self._peers = peers
        self._effort = effort
        self._until = None if effort.budget_s is None else monotonic() + effort.budget_s
        self.fields: dict[tuple[str, str], Field] = {}
        self.notes: list[str] = []

    def run(self, names: Sequence[str]) -> list[Field]:
        """Measure workloads; return what can be compared."""
        loops_per_s = loops_for(CALIBRATED_S) / CALIBRATED_S
        for number in range(self._effort.rounds):
            for index, name in enumerate(names):
                if self._is_over:
                    self.notes.append(f"Time was up in round {number + 1}, before {name}.")
                    return self._compared()
                say(f"round {number + 1} of {self._effort.rounds}, {name} ({index + 1} of {len(names)})")
                self._one_round(name, number, loops_per_s)
        return self._compared()

    @property
    def _is_over(self) -> bool:
        return self._until is not None and monotonic() > self._until

    def _compared(self) -> list[Field]:
        return [field for field in self.fields.values() if field.is_complete]

    def _one_round(self, name: str, number: int, loops_per_s: float) -> None:
        if number == 0:
            race = look_at(name, loops_per_s)
            for mode in MODES:
                self.fields[name, mode] = Field(race, mode)
        fields = [self.fields[name, mode] for mode in MODES]
        for contender in self._order(fields[0].race.lengths, number):
            for field in fields:
                if contender not in field.out:
                    self._measure(field, contender)
        for field in fields:
            field.drop_slow()

    def _order(self, lengths: list[int], number: int) -> Iterable[Contender]:
        """Another one first in each round, and every other round backwards."""
        found = {c.name: c for c in contenders_for(lengths, self._peers, self._effort.chunks)}
        names = in_turn(tuple(found), number)
        return [found[name] for name in (names[::-1] if number % 2 else names)]

    def _measure(self, field: Field, contender: Contender) -> None:
        try:
            field.record(contender, measure(field.race, contender, field.mode))
        except (BeatenError, ProbeTimeoutError):
            why = f"was over the limit of {field.race.limit_s:.1f} s"
            field.record_beaten(contender, why)
            if field.mode == COLD and contender in field.out:  # nor will it be fast enough when warm
                self.fields[field.race.name, WARM].out.setdefault(contender, why)
        except (ProbeError, WrongResultsError) as error:
            field.record_beaten(contender, "failed")
            self.notes.append(f"{field.race.name}, {field.mode}: {contender.name} failed: {error}")


def say(what: str) -> None:
    """Tell on stderr what is being measured."""
    print(what, file=sys.stderr, flush=True)


def available(wanted: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the peers that can be measured, and lines about those that cannot."""
    reasons = {family: why_missing(family) for family in wanted}
    skipped = [f"{family} was skipped: {why}." for family, why in reasons.items() if why is not None]
    return [family for family in wanted if reasons[family] is None], skipped


def page(fields: Sequence[Field], notes: Sequence[str], chart: str | None) -> str:
    """Write everything as markdown."""
    title, _, introduction = (__doc__ or "").partition("\n\n")
    parts = [f"# {title.rstrip('.')}", introduction.partition("\n\n")[2].strip(), f"Measured on: {report.where()}."]
    if chart:
        parts.append(f"![Regret by workload]({chart})")
    return "\n\n".join([*parts, *(table.markdown() for table in report.tables(fields)), *notes]) + "\n"


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, chunk sizes and workloads; 4 minutes")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="WORKLOAD", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), metavar="NAME", help=", ".join(PEERS))
    parser.add_argument("--rounds", type=int, metavar="N", help="instead of the default")
    parser.add_argument("--minutes", type=float, metavar="M", help="stop after so long, with what is there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write a page, too")
    parser.add_argument("--chart", type=Path, metavar="FILE.png", help="draw a bar for each workload")
    return parser.parse_args()


def main() -> None:
    """Measure what the command line asks for, and print it."""
    wanted = options()
    effort = QUICK if wanted.quick else FULL
    if wanted.rounds:
        effort = Effort(wanted.rounds, effort.chunks, effort.workloads, effort.budget_s)
    if wanted.minutes:
        effort = Effort(effort.rounds, effort.chunks, effort.workloads, 60 * wanted.minutes)
    peers, notes = available(wanted.peers)
    for note in notes:
        say(note)
    benchmark = Benchmark(peers, effort)
    fields = benchmark.run(wanted.only or effort.workloads)
    if not fields:
        raise SystemExit("\n".join(["Nothing could be measured.", *benchmark.notes]))
    counts = {len(taken_s) for field in fields for taken_s in field.samples.values()}
    notes += [*benchmark.notes, *(trouble for field in fields for trouble in field.troubles)]
    notes += [f"Rounds: {max(counts)}.", report.meanings(peers)]
    drawn = wanted.chart is not None
    if drawn and (problem := report.draw(fields, wanted.chart)) is not None:
        notes.append(problem)
        drawn = False
    print("\n\n".join([report.where(), *(table.text() for table in report.tables(fields)), *notes]))
    if wanted.markdown:
        folder = wanted.markdown.resolve().parent
        chart = os.path.relpath(wanted.chart.resolve(), folder) if drawn else None
        wanted.markdown.write_text(page(fields, notes, chart), encoding="utf-8")


if __name__ == "__main__":
    main()
