"""What the rounds found: samples of each contender, who is out, and the numbers that follow from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import geometric_mean, median

from benchmarks._regret_contenders import OURS, SERIAL, Contender, Forecast
from benchmarks._regret_probe import COLD, WARM, Race, Sample

MEAN_TARGETS = {COLD: 1.10, WARM: 1.00}
WORST_TARGETS = {COLD: 1.35, WARM: 1.15}
FORECAST_TARGET = 0.15
TOLERATED_SHARE, TOLERATED_S = 0.05, 5e-3
"""By both together may a map be slower than the loop."""

DROP_ABOVE = 2.0
"""Who was slower than this times the best in all rounds so far is not measured again: it cannot become the best."""


@dataclass
class Field:
    """One workload, cold or warm, and all who ran it.

    Attributes
    ----------
    race, mode
        What is run.
    samples
        By contender, one for each round, in seconds.
    out
        Why a contender is not measured any more.
    forecasts
        Of our warm maps.
    troubles
        What to tell the reader.
    """

    race: Race
    mode: str
    samples: dict[Contender, list[float]] = field(default_factory=dict)
    out: dict[Contender, str] = field(default_factory=dict)
    forecasts: list[Forecast] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)

    def record(self, contender: Contender, sample: Sample) -> None:
        """Take in what a round found."""
        self.samples.setdefault(contender, []).append(sample.elapsed_s)
        self.forecasts += sample.forecasts

    def record_beaten(self, contender: Contender, why: str) -> None:
        """Take in that a contender has no time: it is out, but for ours, which is charged the limit."""
        if contender.family in (OURS, SERIAL):
            self.samples.setdefault(contender, []).append(self.race.limit_s)
            self.troubles.append(f"{self.race.name}, {self.mode}: {contender.name} {why}; counted with the limit.")
        else:
            self.out[contender] = why

    def drop_slow(self) -> None:
        """Leave out of later rounds who is far behind."""
        if len(self.samples) < 2:
            return
        _, best_s = self.best
        for contender, taken_s in self.samples.items():
            if contender.family not in (OURS, SERIAL) and min(taken_s) > DROP_ABOVE * best_s:
                self.out.setdefault(contender, "far behind")

    @property
    def is_complete(self) -> bool:
        """Whether there is something to compare."""
        families = {contender.family for contender in self.samples}
        return {OURS, SERIAL} <= families

    @property
    def best(self) -> tuple[Contender, float]:
        """The fastest contender but ours, and its median in seconds."""
        medians = {c: median(taken_s) for c, taken_s in self.samples.items() if c.family != OURS}
        best = min(medians, key=medians.__getitem__)
        return best, medians[best]

    def family_best(self, family: str) -> tuple[Contender, float] | None:
        """Return a family's fastest member and its median in seconds; None if none has a time."""
        medians = {c: median(taken_s) for c, taken_s in self.samples.items() if c.family == family}
        if not medians:
            return None
        best = min(medians, key=medians.__getitem__)
        return best, medians[best]

    def seconds(self, family: str) -> float:
        """Return the median of ours, or of the loop."""
        return median(self.samples[Contender(family)])

    @property
    def regret(self) -> float:
        """Our time over the best of the others."""
        return self.seconds(OURS) / self.best[1]

    @property
    def held_out_regret(self) -> float | None:
        """Regret without the luck of who is picked; None with less than two rounds.

        In each round our time over that of whoever was best in all the other rounds, and of these the median. The best
        of many medians is the luckiest, too (J. E. Smith, R. L. Winkler: The optimizer's curse, Management Science 52,
        2006); what it takes in a round that had no part in its choice is what one who has tuned by hand will see.
        """
        ours = self.samples[Contender(OURS)]
        others = [t for c, t in self.samples.items() if c.family != OURS and len(t) == len(ours)]
        if len(ours) < 2:
            return None
        ratios = []
        for number, our_s in enumerate(ours):
            best = min(others, key=lambda taken_s: median(taken_s[:number] + taken_s[number + 1 :]))
            ratios.append(our_s / best[number])
        return median(ratios)

    @property
    def over_serial(self) -> float:
        """Our time over the loop's."""
        return self.seconds(OURS) / self.seconds(SERIAL)

    @property
    def is_slower_than_serial(self) -> bool:
        """Whether the loop was faster by more than is tolerated."""
        serial_s = self.seconds(SERIAL)
        return self.seconds(OURS) > serial_s * (1 + TOLERATED_SHARE) + TOLERATED_S

    @property
    def forecast_errors(self) -> list[float]:
        """Relative errors of the times that were promised."""
        return [abs(f.predicted_s - f.actual_s) / f.actual_s for f in self.forecasts if f.predicted_s and f.actual_s]

    @property
    def speedups(self) -> tuple[float, float] | None:
        """The speed-up that was promised, over all maps together, and the real one; None without a promise."""
        promised = [(f.predicted_s, f.estimated_speedup) for f in self.forecasts if f.predicted_s]
        known = [(predicted_s, speedup) for predicted_s, speedup in promised if speedup is not None]
        if not known:
            return None
        promised_serial_s = sum(predicted_s * speedup for predicted_s, speedup in known)
        return promised_serial_s / sum(predicted_s for predicted_s, _ in known), 1 / self.over_serial


def mean_regret(fields: Iterable[Field]) -> float:
    """Return the geometric mean."""
    return geometric_mean(found.regret for found in fields)
