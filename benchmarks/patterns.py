"""Patterns: what machine learning asks of a pool, taken from the examples.

``python -m benchmarks.patterns [--only NAME ...] [--quick] [--rounds N] [--keep FILE] [--markdown FILE]``

AmorsizeExecutor, with nothing tuned, beside a serial loop, the standard pool (forking, a sixteenth of the items in a
chunk) and joblib. Each measurement has a fresh interpreter with the example imported. Cold: a pool is opened and runs
the pattern for the first time; its workers import libraries and load models, except that forked ones inherit the
imports. The loop runs before that, untimed, so that nobody is charged for what comes from the disk. Warm: the same pool
runs it again, up to seven times within four seconds, and the median of these runs counts; what the second run takes, in
which more workers may start and load, is told beside the first. The loop is measured likewise, so the first run of each
process, which loads models and compiles, is compared with first runs. The contenders take turns in another order each
round; medians over rounds are quoted. All linear algebra runs on one thread. Efficiency is speed-up over the number of
workers.

Then, of each pattern that is a single map: what `optimize` estimates beside what the first `execute` behind it gets,
and a warm `execute` beside every choice of `n_jobs` and `chunksize`. And requests of a web server, which make a closure
over the same model afresh each time.

``--quick`` measures each thing once, with a third of the requests: in a third of the time, and with the noise of single
runs. ``--keep FILE`` writes what was measured to a file as it comes. A run that was interrupted goes on from there, and
runs of single patterns add up to one page.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import _pattern_choice, _pattern_probe, _pattern_requests
from benchmarks._measure import ProbeError, in_turn
from benchmarks._pattern_choice import Choice
from benchmarks._pattern_list import BY_NAME, PATTERNS, Pattern
from benchmarks._pattern_probe import Sample
from benchmarks._pattern_requests import MODELS, Requests
from benchmarks._regret_contenders import FORK, JOBLIB, OURS, SERIAL, Contender, Forecast, cpu_count, why_missing
from benchmarks._report import Table, machine, seconds

CONTENDERS = {c.family: c for c in (Contender(SERIAL), Contender(FORK, "n/16"), Contender(JOBLIB), Contender(OURS))}
ROUNDS = 1
LEAST_WORK_S = 0.1
"""What takes a warm loop less than this is no work for a pool, and shown without a verdict."""
TARGET_EFFICIENCY = 0.85
TARGET_ERROR = 0.15
TARGET_OVER_BEST = 1.05
TARGET_OVER_S = 3e-3
"""Of a request, beyond its compute."""
REQUESTS = "requests"
"""Name of the web server's pattern on the command line."""
TOLERANCE = 1e-4
"""Relative difference between sums of results that counts as none."""


@dataclass
class Measured:
    """All samples of a pattern, by contender."""

    pattern: Pattern
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    choice: Choice | None = None

    def cold_s(self, family: str) -> float:
        """Median of a contender's first runs; not a number where it has none."""
        return _median([sample.cold_s for sample in self.samples.get(family, [])])

    def second_s(self, family: str) -> float:
        """Median of a contender's second runs; not a number where it has none."""
        return _median([sample.second_s for sample in self.samples.get(family, [])])

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


class Kept:
    """What was measured, by name; written to a file as it comes, if there is one."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.found: dict[str, Any] = {}
        self.troubles: list[str] = []
        if path is not None and path.exists():
            for line in path.read_text("utf-8").splitlines():
                self.found |= json.loads(line)

    def measure(self, name: str, probe: Callable[[], Any]) -> None:
        """Measure what is not known yet; a probe that fails is told, and tried again by the next run."""
        if name in self.found:
            return
        say(name)
        try:
            self.found[name] = asdict(probe())
        except ProbeError as error:
            self.troubles.append(f"{name} failed: {error}")
            return
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({name: self.found[name]}) + "\n")

    def measured(self, rounds: int) -> list[Measured]:
        """Patterns that can be compared."""
        found = []
        for pattern in PATTERNS:
            one = Measured(pattern)
            for family in CONTENDERS:
                kept = [self.found.get(_name(pattern, family, number)) for number in range(rounds)]
                one.samples[family] = [_sample(each) for each in kept if each is not None]
            choice = self.found.get(f"{pattern.name}, choice")
            one.choice = None if choice is None else Choice(**choice)
            if one.samples[SERIAL] and one.samples[OURS]:
                found.append(one)
        return found

    def requests(self) -> dict[str, Requests]:
        """What requests found, by model."""
        kept = {model: self.found.get(f"{REQUESTS}, {model}") for model in MODELS}
        return {model: Requests(**each) for model, each in kept.items() if each is not None}


def _name(pattern: Pattern, family: str, number: int) -> str:
    return f"{pattern.name}, {family}, round {number + 1}"


def _sample(kept: dict[str, Any]) -> Sample:
    return Sample(**{**kept, "forecasts": [Forecast(**each) for each in kept["forecasts"]]})


def run(names: Sequence[str], rounds: int, kept: Kept, *, is_quick: bool = False) -> list[str]:
    """Measure patterns; return what is to be said about it."""
    notes = ["Quick: single runs, a third of the requests."] if is_quick else []
    n_requests = _pattern_requests.N_REQUESTS // 3 if is_quick else _pattern_requests.N_REQUESTS
    warm_runs, turns = (1, 1) if is_quick else (_pattern_probe.WARM_RUNS, _pattern_choice.ROUNDS)
    families = []
    for family in CONTENDERS:
        why = None if family in (OURS, SERIAL) else why_missing(family)
        if why is None:
            families.append(family)
        else:
            notes.append(f"{family} was skipped: {why}.")
    patterns = [BY_NAME[name] for name in names if name != REQUESTS]
    for pattern in patterns:
        if pattern.missing:
            notes.append(f"{pattern.name} was skipped: {', '.join(pattern.missing)} not installed.")
    patterns = [pattern for pattern in patterns if not pattern.missing]
    try:
        if REQUESTS in names:
            for model in MODELS:
                kept.measure(f"{REQUESTS}, {model}", lambda model=model: _pattern_requests.measure(model, n_requests))
        for number in range(rounds):
            for index, pattern in enumerate(patterns):
                turn = in_turn(tuple(families), number + index)
                if not any(_name(pattern, family, number) in kept.found for family in turn):
                    say(f"{pattern.name}, round {number + 1}: reading its files")
                    with suppress(ProbeError):  # those behind it will tell
                        _pattern_probe.measure(pattern.name, CONTENDERS[SERIAL], warm_runs=1)
                for family in turn:
                    contender = CONTENDERS[family]
                    kept.measure(
                        _name(pattern, family, number),
                        lambda p=pattern.name, contender=contender: _pattern_probe.measure(p, contender, warm_runs),
                    )
        for pattern in patterns:
            if pattern.is_one_map:
                kept.measure(f"{pattern.name}, choice", lambda p=pattern.name: _pattern_choice.measure(p, turns))
    except KeyboardInterrupt:
        notes.append("Interrupted: not all was measured.")
    return notes + kept.troubles


def odd(measured: Sequence[Measured]) -> list[str]:
    """Tell who found something else than the loop."""
    return [
        f"{one.pattern.name}: {family} found something else than the loop."
        for one in measured
        for family, samples in one.samples.items()
        if not all(_agree(one.samples[SERIAL][0].digest, sample.digest) for sample in samples)
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
            *(_number(one.warm_s(SERIAL) / one.second_s(family)) for family in (FORK, JOBLIB, OURS)),
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
            (
                "pattern",
                *names,
                *("standard's speed-up", "joblib's", "amorsize's"),
                *("second run: standard's", "joblib's", "amorsize's"),
            ),
            cold,
        ),
    ]


def choice_table(measured: Sequence[Measured]) -> Table:
    """Return what `optimize` and `execute` did, beside every other choice."""
    rows = []
    for one in measured:
        choice = one.choice
        if choice is None:
            continue
        best, best_s = choice.best
        rows.append(
            (
                one.pattern.name,
                f"{choice.n_jobs}, {choice.chunksize}",
                f"{choice.estimated_speedup:.2f}",
                f"{choice.speedup:.2f}",
                f"{choice.error:+.0%}",
                seconds(choice.times_s[_pattern_choice.EXECUTE]),
                f"{seconds(best_s)} ({best})",
                f"{choice.over_best:.2f}",
            )
        )
    choices = [one.choice for one in measured if one.choice is not None]
    note = ""
    if choices:
        error = median(abs(choice.error) for choice in choices)
        over = [choice.over_best for choice in choices]
        note = (
            f"Estimated and real speed-up of the first `execute` behind `optimize`, in which workers start and load: "
            f"the median of the errors is {error:.0%} (target: at most {TARGET_ERROR:.0%}). A warm `execute` over the "
            f"fastest choice of all, picked after the fact: {median(over):.2f} in the median, {max(over):.2f} at most "
            f"(target: at most {TARGET_OVER_BEST})."
        )
    header = (
        "pattern",
        "optimize: n_jobs, chunksize",
        "estimated",
        "real",
        "error",
        "execute",
        "best choice",
        "over it",
    )
    return Table("Estimates, and every other choice", header, rows, note)


def request_table(found: dict[str, Requests]) -> Table:
    """Return what requests cost that make a closure over the same model afresh."""
    rows = [
        (
            f"{model} of {one.model_nbytes / 1e6:.1f} MB",
            seconds(one.first_s),
            seconds(one.compute_s),
            seconds(one.request_s),
            seconds(one.over_s),
            "yes" if one.over_s <= TARGET_OVER_S else "NO",
            seconds(one.loop_s),
            seconds(one.large_s),
            f"{one.shipped / 1e3:,.0f} kB",
            str(one.n_shipped),
            "yes" if one.is_refit_seen else "NO",
        )
        for model, one in found.items()
    ]
    n_requests = min((one.n_requests for one in found.values()), default=0)
    note = (
        f"{n_requests} requests with `execute` and a new lambda in each, of one batch of "
        f"{_pattern_requests.BATCH} rows, and each {_pattern_requests.LARGE_EVERY}th of {_pattern_requests.N_BATCHES}. "
        f"Within: at most {seconds(TARGET_OVER_S)} beyond the compute. Shipped: bytes that went to workers in a large "
        "request, without its rows, in the median; and in how many requests the model travelled, once for each worker."
    )
    header = (
        "model", "first", "a batch: compute", "request", "beyond it", "within", "many: loop", "request", "shipped",
        "with model", "refit seen",
    )  # fmt: skip
    return Table("Requests over the same model", header, rows, note)


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
    names = (*BY_NAME, REQUESTS)
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(map(repr, names))}")
    parser.add_argument("--quick", action="store_true", help="single runs, and fewer requests")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help=f"instead of {ROUNDS}")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="go on from what is in it, and add to it")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write a page, too")
    return parser.parse_args()


def main() -> None:
    """Measure what the command line asks for, and print it."""
    wanted = options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Terminated."))  # what runs is ended, too
    kept = Kept(wanted.keep)
    notes = run(wanted.only or (*BY_NAME, REQUESTS), wanted.rounds, kept, is_quick=wanted.quick)
    measured, requests = kept.measured(wanted.rounds), kept.requests()
    found = [*tables(measured)] if measured else []
    if any(one.choice for one in measured):
        found.append(choice_table(measured))
    if requests:
        found.append(request_table(requests))
    if not found:
        raise SystemExit("\n".join(["Nothing could be measured.", *notes]))
    notes += [*odd(measured), f"Rounds: {wanted.rounds}."]
    print("\n\n".join([machine(), *(table.text() for table in found), *notes]))
    if wanted.markdown:
        title, _, introduction = (__doc__ or "").partition("\n\n")
        parts = [f"# {title.rstrip('.')}", introduction, f"Measured on: {machine()}."]
        parts += [table.markdown() for table in found]
        wanted.markdown.write_text("\n\n".join([*(part.strip() for part in parts), *notes]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
