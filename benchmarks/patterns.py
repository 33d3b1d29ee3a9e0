"""Patterns: what machine learning asks of a pool, taken from the examples.

``python -m benchmarks.patterns [--only NAME ...] [--rounds N] [--markdown FILE]``

AmorsizeExecutor, with nothing tuned, beside a serial loop, the standard pool (forking, a sixteenth of the items in a
chunk) and joblib. Each measurement has a fresh interpreter with the example imported. Cold: a pool is opened and runs
the pattern for the first time; its workers import libraries and load models, except that forked ones inherit the
imports. Warm: the same pool runs it again. The loop is measured likewise, so the first run of each process, which
loads models and compiles, is compared with first runs. The contenders take turns in another order each round; medians
over rounds are quoted. All linear algebra runs on one thread. Efficiency is speed-up over the number of workers.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks._measure import ProbeError, in_turn
from benchmarks._pattern_list import BY_NAME, PATTERNS, Pattern
from benchmarks._pattern_probe import Sample, measure
from benchmarks._regret_contenders import FORK, JOBLIB, OURS, SERIAL, Contender, cpu_count, why_missing
from benchmarks._report import Table, machine, seconds

CONTENDERS = {c.family: c for c in (Contender(SERIAL), Contender(FORK, "n/16"), Contender(JOBLIB), Contender(OURS))}
ROUNDS = 5
LEAST_WORK_S = 0.1
"""What takes a warm loop less than this is no work for a pool, and shown without a verdict."""
TARGET_EFFICIENCY = 0.85
TARGET_ERROR = 0.15
TOLERANCE = 1e-4
"""Relative difference between sums of results that counts as none."""


@dataclass
class Measured:
    """All samples of a pattern, by contender."""

    pattern: Pattern
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def cold_s(self, family: str) -> float:
        """Median of a contender's first runs; not a number where it has none."""
        return _median([sample.cold_s for sample in self.samples.get(family, [])])

    def warm_s(self, family: str) -> float:
        """Median of a contender's later runs; not a number where it has none."""
        return _median([sample.warm_s for sample in self.samples.get(family, [])])

    def speedup(self, family: str) -> float:
        """Warm loop over warm contender."""
        return self.warm_s(SERIAL) / self.warm_s(family)

    def efficiency(self, family: str) -> float:
        """Speed-up over workers."""
        return self.speedup(family) / cpu_count()

    @property
    def predicted(self) -> float:
        """Speed-up that our plans promised, over all maps of a run; not a number where nothing was promised."""
        promised = []
        for sample in self.samples.get(OURS, []):
            known = [(f.predicted_s, f.estimated_speedup) for f in sample.forecasts]
            if known and all(predicted_s and speedup for predicted_s, speedup in known):
                serial_s = sum(predicted_s * speedup for predicted_s, speedup in known if predicted_s and speedup)
                promised.append(serial_s / sum(predicted_s or 0.0 for predicted_s, _ in known))
        return _median(promised)

    @property
    def error(self) -> float:
        """How far the promise was from what we got."""
        return self.predicted / self.speedup(OURS) - 1

    @property
    def is_reached(self) -> bool | None:
        """Whether we are efficient enough, or no slower than the loop where our plan was to be serial."""
        if self.warm_s(SERIAL) < LEAST_WORK_S:
            return None
        is_serial = not math.isnan(self.predicted) and self.predicted <= 1
        return self.efficiency(OURS) >= TARGET_EFFICIENCY or (is_serial and self.speedup(OURS) >= 0.95)


def run(patterns: Sequence[Pattern], rounds: int) -> tuple[list[Measured], list[str]]:
    """Measure patterns; return what was found and what is to be said about it."""
    notes, measured = [], []
    for pattern in patterns:
        if pattern.missing:
            notes.append(f"{pattern.name} was skipped: {', '.join(pattern.missing)} not installed.")
        else:
            measured.append(Measured(pattern))
    families = []
    for family in CONTENDERS:
        why = None if family in (OURS, SERIAL) else why_missing(family)
        if why is None:
            families.append(family)
        else:
            notes.append(f"{family} was skipped: {why}.")
    try:
        for number in range(rounds):
            for one in measured:
                say(f"round {number + 1} of {rounds}, {one.pattern.name}")
                for family in in_turn(tuple(families), number):
                    try:
                        sample = measure(one.pattern.name, CONTENDERS[family])
                    except ProbeError as error:
                        notes.append(f"{one.pattern.name}: {family} failed: {error}")
                    else:
                        one.samples.setdefault(family, []).append(sample)
    except KeyboardInterrupt:
        notes.append("Interrupted: some patterns have fewer rounds.")
    notes += [f"{one.pattern.name}: {family} found something else than the loop." for one, family in _odd(measured)]
    return [one for one in measured if one.samples.get(SERIAL) and one.samples.get(OURS)], notes


def _odd(measured: Sequence[Measured]) -> list[tuple[Measured, str]]:
    return [
        (one, family)
        for one in measured
        for family, samples in one.samples.items()
        if not all(_agree(one.samples[SERIAL][0].digest, sample.digest) for sample in samples if SERIAL in one.samples)
    ]


def _agree(left: list[float], right: list[float]) -> bool:
    return len(left) == len(right) and all(
        math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE) for a, b in zip(left, right, strict=True)
    )


def tables(measured: Sequence[Measured]) -> list[Table]:
    """Return warm and cold times of all patterns."""
    n = cpu_count()
    warm = [
        (
            one.pattern.name,
            *(_time(one.warm_s(family)) for family in CONTENDERS),
            _number(one.speedup(OURS)),
            _number(one.efficiency(OURS)),
            _number(one.efficiency(FORK)),
            _number(one.efficiency(JOBLIB)),
            _published(one.pattern),
            {None: "", True: "yes", False: "NO"}[one.is_reached],
            _number(one.predicted),
            "" if math.isnan(one.error) else f"{one.error:+.0%}",
        )
        for one in measured
    ]
    cold = [
        (
            one.pattern.name,
            *(_time(one.cold_s(family)) for family in CONTENDERS),
            *(_number(one.cold_s(SERIAL) / one.cold_s(family)) for family in (FORK, JOBLIB, OURS)),
        )
        for one in measured
    ]
    names = ("loop", "standard", "joblib", "amorsize")
    efficiencies = ("speed-up", "efficiency", "standard's", "joblib's")
    return [
        Table(
            f"Warm, {n} workers",
            ("pattern", *names, *efficiencies, "published", "reached", "predicted", "error"),
            warm,
            _summary(measured),
        ),
        Table(
            f"Cold, {n} workers",
            ("pattern", *names, "standard's speed-up", "joblib's", "amorsize's"),
            cold,
        ),
    ]


def _summary(measured: Sequence[Measured]) -> str:
    errors = [abs(one.error) for one in measured if not math.isnan(one.error)]
    verdicts = [one.is_reached for one in measured if one.is_reached is not None]
    return (
        f"Published: efficiency of the original on eight cores. Reached: an efficiency of at least "
        f"{TARGET_EFFICIENCY}, or a serial plan that is not slower, where there is more than {seconds(LEAST_WORK_S)} "
        f"of work: {sum(verdicts)} of {len(verdicts)}. Predicted: the plan's speed-up; its error, as a median: "
        + (f"{median(errors):.0%} (target: at most {TARGET_ERROR:.0%})." if errors else "none.")
    )


def _median(values: Sequence[float]) -> float:
    return median(values) if values else math.nan


def _time(value: float) -> str:
    return "" if math.isnan(value) else seconds(value)


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def _published(pattern: Pattern) -> str:
    if pattern.published is None:
        return ""
    speedup, workers = pattern.published
    return f"{speedup / workers:.2f} ({speedup}/{workers})"


def say(what: str) -> None:
    """Tell on stderr what is being measured."""
    print(what, file=sys.stderr, flush=True)


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--only", nargs="+", choices=tuple(BY_NAME), metavar="NAME", help=f"of {', '.join(map(repr, BY_NAME))}"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help=f"instead of {ROUNDS}")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write a page, too")
    return parser.parse_args()


def main() -> None:
    """Measure what the command line asks for, and print it."""
    wanted = options()
    patterns = [BY_NAME[name] for name in wanted.only] if wanted.only else PATTERNS
    measured, notes = run(patterns, wanted.rounds)
    if not measured:
        raise SystemExit("\n".join(["Nothing could be measured.", *notes]))
    notes.append(f"Rounds: {wanted.rounds}.")
    found = tables(measured)
    print("\n\n".join([machine(), *(table.text() for table in found), *notes]))
    if wanted.markdown:
        title, _, introduction = (__doc__ or "").partition("\n\n")
        parts = [f"# {title.rstrip('.')}", introduction, f"Measured on: {machine()}."]
        parts += [table.markdown() for table in found]
        wanted.markdown.write_text("\n\n".join([*(part.strip() for part in parts), *notes]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
