"""The tables and the chart of the regret."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

from benchmarks._regret_contenders import MEANING, OURS, PEERS, SERIAL
from benchmarks._regret_probe import COLD, LIMIT_EXTRA_S, LIMIT_TIMES_SERIAL, MODES, WARM
from benchmarks._regret_results import (
    DROP_ABOVE,
    FORECAST_TARGET,
    MEAN_TARGETS,
    TOLERATED_S,
    TOLERATED_SHARE,
    WORST_TARGETS,
    Field,
    mean_regret,
)
from benchmarks._report import Table, machine, ratio, seconds

LOSS = 1.05
"""Regret from which it is listed as a loss: below, it cannot be told from noise."""
PACKAGES = ("joblib", "mpire", "numpy")
COLORS = {COLD: "#5b8db8", WARM: "#e08e45"}


def where() -> str:
    """Name the machine, and the versions that were compared."""
    found = [f"{name} {version(name)}" for name in PACKAGES if _is_installed(name)]
    return ", ".join([_cpu_model(), machine(), *found])


def _is_installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown CPU"


def tables(fields: Sequence[Field]) -> list[Table]:
    """Return the summary first, then the losses, then everything."""
    found = [_summary(fields), _losses(fields)]
    for mode in MODES:
        of_mode = [field for field in fields if field.mode == mode]
        if of_mode:
            found += [_workloads(of_mode, mode), _families(of_mode, mode)]
    if any(field.forecasts for field in fields):
        found.append(_forecasts(fields))
    return found


def _summary(fields: Sequence[Field]) -> Table:
    rows: list[list[str]] = []
    for mode in reversed(MODES):
        of_mode = [field for field in fields if field.mode == mode]
        if not of_mode:
            continue
        mean, worst = mean_regret(of_mode), max(of_mode, key=lambda field: field.regret)
        slower = [field.race.name for field in of_mode if field.is_slower_than_serial]
        fastest = sum(field.regret <= 1 for field in of_mode)
        rows += [
            _judged(f"regret, geometric mean, {mode}", mean, MEAN_TARGETS[mode]),
            _judged(f"regret, worst, {mode} ({worst.race.name})", worst.regret, WORST_TARGETS[mode]),
            *_held_out_rows(of_mode, mode),
            [f"slower than the loop, {mode}", str(len(slower)), "0", _verdict(not slower)],
            [f"fastest of all, {mode}", f"{fastest} of {len(of_mode)}", "", ""],
        ]
    rows += _forecast_rows([field for field in fields if field.forecasts])
    tolerated = f"{TOLERATED_SHARE:.0%} and {seconds(TOLERATED_S)}"
    return Table("Summary", ["measure", "value", "target", "reached"], rows, f"Slower: by more than {tolerated}.")


def _held_out_rows(fields: Sequence[Field], mode: str) -> list[list[str]]:
    values = [value for field in fields if (value := field.held_out_regret) is not None]
    if len(values) < len(fields):
        return []
    return [[f"regret, geometric mean, held out, {mode}", f"{geometric_mean(values):.3f}", "", ""]]


def _judged(measure: str, value: float, target: float) -> list[str]:
    return [measure, f"{value:.3f}", f"<= {target:.2f}", _verdict(value <= target)]


def _verdict(is_reached: bool) -> str:
    return "yes" if is_reached else "NO"


def _forecast_rows(fields: Sequence[Field]) -> list[list[str]]:
    errors = [median(field.forecast_errors) for field in fields if field.forecast_errors]
    speedups = [field.speedups for field in fields]
    speedup_errors = [abs(promised - real) / real for promised, real in filter(None, speedups)]
    rows = []
    for measure, values in (("predicted time", errors), ("estimated speed-up", speedup_errors)):
        if values:
            value = median(values)
            target = f"<= {FORECAST_TARGET:.0%}"
            rows.append([f"{measure}, error, warm", f"{value:.1%}", target, _verdict(value <= FORECAST_TARGET)])
    return rows


def _losses(fields: Sequence[Field]) -> Table:
    lost = sorted((field for field in fields if field.regret > LOSS), key=lambda field: -field.regret)
    rows = []
    for field in lost:
        best, best_s = field.best
        behind_s = field.seconds(OURS) - best_s
        rows.append([f"{field.race.name}, {field.mode}", best.name, seconds(behind_s), ratio(field.regret)])
    note = f"All with a regret above {LOSS}." if rows else f"No regret is above {LOSS}."
    return Table("Losses", ["workload", "winner", "we are behind by", "regret"], rows, note)


def _workloads(fields: Sequence[Field], mode: str) -> Table:
    rows = []
    for field in fields:
        best, best_s = field.best
        serial_s = field.seconds(SERIAL)
        rows.append(
            [
                field.race.name,
                seconds(serial_s / sum(field.race.lengths)),
                seconds(serial_s),
                seconds(best_s),
                best.name,
                seconds(field.seconds(OURS)),
                ratio(field.regret) + " *" * (field.regret > WORST_TARGETS[mode]),
                "" if field.held_out_regret is None else ratio(field.held_out_regret),
                ratio(field.over_serial) + " *" * field.is_slower_than_serial,
            ]
        )
    header = ["workload", "task", "serial", "best", "who", "ours", "regret", "held out", "ours / serial"]
    return Table(
        f"Regret by workload, {mode}",
        header,
        rows,
        "*: misses the target. Held out: in each round the best is picked by the others; the median.",
    )


def _families(fields: Sequence[Field], mode: str) -> Table:
    header = ["workload", SERIAL, OURS, *PEERS]
    rows = [[field.race.name, *(_at_its_best(field, family) for family in header[1:])] for field in fields]
    note = (
        f"The best chunk size in brackets. >: over the limit of {LIMIT_TIMES_SERIAL:g} x serial + {LIMIT_EXTRA_S:g} s, "
        f"or failed. Who was behind by more than a factor of {DROP_ABOVE:g} was not measured in later rounds."
    )
    return Table(f"Each at its best, {mode}", header, rows, note)


def _at_its_best(field: Field, family: str) -> str:
    found = field.family_best(family)
    if found is None:
        was_there = any(contender.family == family for contender in field.out)
        return f"> {seconds(field.race.limit_s)}" if was_there else ""
    contender, taken_s = found
    return seconds(taken_s) + (f" ({contender.chunk})" if contender.chunk else "")


def _forecasts(fields: Sequence[Field]) -> Table:
    rows = []
    for field in fields:
        if not field.forecasts:
            continue
        promised = [f for f in field.forecasts if f.predicted_s]
        errors, speedups = field.forecast_errors, field.speedups
        rows.append(
            [
                field.race.name,
                f"{len(promised)} of {len(field.forecasts)}",
                seconds(median(f.predicted_s or 0.0 for f in promised)) if promised else "",
                seconds(median(f.actual_s or 0.0 for f in promised)) if promised else "",
                f"{median(errors):.1%}" if errors else "",
                *(ratio(value) for value in speedups or ()),
                *([""] * (0 if speedups else 2)),
            ]
        )
    header = ["workload", "maps with a forecast", "predicted", "real", "error", "speed-up predicted", "real speed-up"]
    note = (
        "Medians over maps. A forecast is the plan's when the map begins; the real speed-up is the loop's time / ours."
    )
    return Table(f"Forecasts, {WARM}", header, rows, note)


def meanings(peers: Sequence[str]) -> str:
    """Say who the peers are."""
    return "Peers: " + "; ".join(f"*{family}*: {MEANING[family]}" for family in peers) + "."


def draw(fields: Sequence[Field], path: Path) -> str | None:
    """Draw a bar of regret for each workload; return why not, where that is so."""
    try:
        import matplotlib
    except ImportError:
        return "matplotlib is not installed: no chart."
    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(field.race.name for field in fields))
    figure, axes = pyplot.subplots(figsize=(8, 1.5 + 0.34 * len(names)), layout="constrained")
    _bars(axes, fields, names)
    axes.set_title("Our time / best of all others (left of 1: faster)")
    axes.set_xlabel(where(), fontsize=6)
    figure.legend(fontsize=7, loc="outside lower center", ncols=2 * len(MODES))
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return None


def _bars(axes: Any, fields: Sequence[Field], names: Sequence[str]) -> None:
    height = 0.38
    by_key = {(field.race.name, field.mode): field.regret for field in fields}
    for mode, offset in zip(MODES, (-height / 2, height / 2), strict=True):
        shown = [(row, by_key[name, mode]) for row, name in enumerate(names) if (name, mode) in by_key]
        positions, regrets = [row + offset for row, _ in shown], [regret for _, regret in shown]
        widths = [regret - 1 for regret in regrets]
        axes.barh(positions, widths, height, left=1, color=COLORS[mode], label=mode)
        axes.axvline(WORST_TARGETS[mode], color=COLORS[mode], linestyle=":", linewidth=1, label=f"limit, {mode}")
        for position, regret in zip(positions, regrets, strict=True):
            axes.annotate(
                ratio(regret),
                (regret, position),
                (3 if regret >= 1 else -3, 0),
                textcoords="offset points",
                ha="left" if regret >= 1 else "right",
                va="center",
                fontsize=6,
            )
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    low, high = min(0.7, *by_key.values()) / 1.1, max(1.5, *by_key.values()) * 1.1
    axes.set_xlim(low, high)
    ticks = [tick for tick in (0.2, 0.3, 0.5, 0.7, 1, 1.4, 2, 3, 5, 10, 20, 50) if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
