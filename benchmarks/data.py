"""Work over large arrays: AmorsizeExecutor, threads, and the process pools that people use for it.

``python -m benchmarks.data [--quick] [--only NAME] [--markdown FILE] [--soak ROUNDS]``

Each contender does each pattern's work in a fresh interpreter: once with everything new, then three more times
("later", the median), then once with an eye on memory: the peak of parent and workers together, what they have in
common counted once (PSS), less that of the interpreter before. Threads are what beats process pools over arrays, where
NumPy releases the interpreter lock. mpire gets what items have in common as shared objects. BLAS has one thread
everywhere. "First" includes the start of the workers, and memory that the kernel has to find.

``--soak`` sends large arguments and results back and forth, and looks for what grows.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import _data_soak
from benchmarks._data_closure import OURS as OURS_CARRYING
from benchmarks._data_patterns import (
    CONTENDERS,
    FORK,
    LOKY,
    MIB,
    OURS,
    OURS_SHARED,
    PATTERNS,
    SERIAL,
    THREADS,
    WORKERS,
)
from benchmarks._measure import ProbeError, fresh_interpreter
from benchmarks._report import Report, Table, machine, seconds

ROUNDS = 4
CLOSURE_CALLS = 200

SHARED_TARGET = 1.1
"""Times the ideal: serial time / workers, and one copy of the data at the memory's speed."""
MEMORY_TARGET = 1.2
"""Times the data."""
OWN_TARGET = 3.0
"""Times the standard pool's throughput."""
THREADS_TARGET = 1.3
"""Times the time of threads."""
CLOSURE_TARGET_S = 0.3e-3
"""A megabyte of state and call, over the compute."""
SHIPPED_TARGET = 64 << 10
"""Bytes a call after the first ones."""
SHARE_TARGET_S = 1e-3
"""A call, over the compute."""

HEADER = ("contender", "first", "later", "of serial", "peak memory / data")
VERDICT_HEADER = ("measure", "value", "target", "reached")
#: The slowest of them would take minutes with a gigabyte.
SKIPPED = {("shared 1 GB", FORK), ("shared 1 GB", LOKY)}
CLOSURES = (*OURS_CARRYING, FORK, LOKY)


class Verdicts:
    """Rows of what was to be reached."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, ...]] = []

    def add(self, measure: str, value: float, target: float, shown: Callable[[float], str], *, is_least: bool) -> None:
        """Compare a value with the least or the most that it should be."""
        is_reached = value >= target if is_least else value <= target
        sign = ">=" if is_least else "<="
        self.rows.append((measure, shown(value), f"{sign} {shown(target)}", "yes" if is_reached else "NO"))


def times(value: float) -> str:
    """Write a factor."""
    return f"{value:.2f} x"


def probe_pattern(name: str, contender: str, rounds: int) -> dict[str, Any] | None:
    """Measure one contender; None where it cannot be."""
    if (name, contender) in SKIPPED:
        return None
    if contender == OURS_SHARED and not PATTERNS[name].n_shared:
        return None
    try:
        output = fresh_interpreter("-m", "benchmarks._data_patterns", name, contender, str(rounds))
    except ProbeError as error:
        print(f"  {contender}: {error}", file=sys.stderr)
        return None
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def pattern(name: str, rounds: int, verdicts: Verdicts, copy_rate: float) -> Table:
    """Measure all contenders by one pattern."""
    nbytes = PATTERNS[name].data_nbytes
    found: dict[str, dict[str, Any]] = {}
    rows = []
    for contender in CONTENDERS:
        print(f"{name}: {contender}", file=sys.stderr)
        measured = probe_pattern(name, contender, 1 if nbytes > 512 * MIB and contender in (FORK, LOKY) else rounds)
        if measured is None:
            continue
        found[contender] = measured
        serial_s = found[SERIAL]["later_s"]
        rows.append(
            (
                contender,
                seconds(measured["first_s"]),
                seconds(measured["later_s"]),
                f"{measured['later_s'] / serial_s:.2f}",
                f"{measured['pss'] / nbytes:.2f}",
            )
        )
    judge(name, found, verdicts, copy_rate)
    return Table(name, HEADER, rows)


def judge(name: str, found: dict[str, dict[str, Any]], verdicts: Verdicts, copy_rate: float) -> None:
    """Say what was reached of what should be."""
    work = PATTERNS[name]
    ours = found[OURS]
    if work.n_shared:
        ideal_s = found[SERIAL]["later_s"] / WORKERS + work.data_nbytes / copy_rate
        for contender in (OURS, OURS_SHARED):
            for when in ("first", "later"):
                ratio = found[contender][f"{when}_s"] / ideal_s
                verdicts.add(f"{name}: {contender}, {when} / ideal", ratio, SHARED_TARGET, times, is_least=False)
            memory = found[contender]["pss"] / work.data_nbytes
            verdicts.add(f"{name}: {contender}, memory / data", memory, MEMORY_TARGET, times, is_least=False)
        return
    for when in ("first", "later"):
        ours_s = ours[f"{when}_s"]
        if FORK in found:
            ratio = found[FORK][f"{when}_s"] / ours_s
            verdicts.add(f"{name}: standard / amorsize, {when}", ratio, OWN_TARGET, times, is_least=True)
        ratio = ours_s / found[THREADS][f"{when}_s"]
        verdicts.add(f"{name}: amorsize / threads, {when}", ratio, THREADS_TARGET, times, is_least=False)


def closure(kind: str, n_calls: int, verdicts: Verdicts) -> Table:
    """Measure calls of a function over a fitted model."""
    rows = []
    for how in CLOSURES:
        print(f"closure over a {kind}: {how}", file=sys.stderr)
        # The peers ship the model with each call.
        calls = n_calls if how in OURS_CARRYING else max(n_calls // 10, 5)
        found = json.loads(fresh_interpreter("-m", "benchmarks._data_closure", how, kind, str(calls)).splitlines()[-1])
        over_s = found["call_s"] - found["compute_s"]
        mib = found["nbytes"] / MIB
        shipped = "" if found["shipped"] is None else f"{found['shipped']:,}"
        rows.append((how, seconds(found["compute_s"]), seconds(found["call_s"]), seconds(over_s / mib), shipped))
        name = f"{kind} of {mib:.0f} MB, {how}"
        if how == "closure":
            verdicts.add(f"{name}: over the compute, each MB", over_s / mib, CLOSURE_TARGET_S, seconds, is_least=False)
        elif how in OURS_CARRYING:
            verdicts.add(f"{name}: over the compute", over_s, SHARE_TARGET_S, seconds, is_least=False)
        if found["shipped"] is not None:
            verdicts.add(f"{name}: bytes a call", found["shipped"], SHIPPED_TARGET, "{:,.0f}".format, is_least=False)
    header = ("contender", "compute", "call", "over it, each MB", "bytes a call")
    return Table(f"closure over a {kind}, {n_calls} calls", header, rows)


def measure(names: list[str], rounds: int, n_calls: int) -> tuple[Report, Verdicts]:
    """Run the patterns and closures that were asked for."""
    report, verdicts = Report(), Verdicts()
    rates = json.loads(fresh_interpreter("-m", "benchmarks._data_patterns", "rates", "", "0"))
    copy_rate = float(rates["copy"])
    report.notes.append(
        f"One thread copies {copy_rate / 1e9:.1f} GB/s; into a new block of shared memory {rates['new'] / 1e9:.1f}, "
        f"over what a block has {rates['first over'] / 1e9:.1f} for the first time and {rates['over'] / 1e9:.1f} then."
    )
    for name in names:
        try:
            if name in PATTERNS:
                report.details.append(pattern(name, rounds, verdicts, copy_rate))
            else:
                report.details.append(closure(name.removeprefix("closure "), n_calls, verdicts))
        except ProbeError as error:
            verdicts.rows.append((name, "failed", "", "NO"))
            report.notes.append(f"{name} failed: {error}")
    report.details.insert(0, Table("Summary", VERDICT_HEADER, verdicts.rows))
    return report, verdicts


SOAK = """\
Arrays of up to 4 MB go to workers and come back, one in ten rounds four times in one map. Looked at behind a fifth of
the rounds and at the end, parent and workers together: resident memory, open descriptors, and how many of these are
blocks of shared memory, of which some are kept for use again."""
NAMES = [*PATTERNS, "closure network", "closure forest"]


def main() -> int:
    """Measure what the command line asks for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--only", action="append", choices=NAMES, help="may be repeated")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write a page, too")
    parser.add_argument("--soak", type=int, metavar="ROUNDS", help="only look for what grows in so many rounds")
    options = parser.parse_args()
    if options.soak:
        lines, has_grown = _data_soak.soak(options.soak)
        print(*lines, sep="\n")
        if options.markdown:
            command = f"``python -m benchmarks.data --soak {options.soak}``"
            parts = ("# Large arguments and results, many times", command, SOAK, f"Measured on: {machine()}.")
            text = "\n\n".join((*parts, "\n".join(("```text", *lines, "```"))))
            options.markdown.write_text(text + "\n", encoding="utf-8")
        return int(has_grown)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    report, _ = measure(options.only or NAMES, 2 if options.quick else ROUNDS, 40 if options.quick else CLOSURE_CALLS)
    print(report.text())
    if options.markdown:
        introduction = "\n".join((__doc__ or "").splitlines()[2:])
        options.markdown.write_text(report.markdown("Data: work over large arrays", introduction), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
