"""Send the scheduler through random schedules of faults, each with its seed, and see that nothing is lost or repeated.

A schedule is some 25 things that happen to an executor, and all that follows until it has ended: tasks and maps come,
are cancelled and dropped; workers start, hang, stop and die; callers work; the number of workers changes; time limits
pass; it is shut down. The actions of three threads, and messages on their way, take any order that they can have
(`tests/decisions/fault_world.py`, where it also stands what is checked).

    python -m benchmarks.fault_schedules [--count 1000000] [--events 25] [--seed 0] [--add]

With ``--add`` the count is added to that of earlier calls, which is the way to a million in pieces: the seeds go on
where the last call ended. Exit status 1 if a schedule went wrong: ``play(SEED, EVENTS)`` plays it again. The result is
written to docs/benchmarks/fault_schedules.md.
"""

from __future__ import annotations

import argparse
import collections
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from amorsize_executor import AmorsizeExecutor
from benchmarks import _soak_report
from benchmarks._measure import ROOT
from benchmarks._report import Table, machine
from benchmarks._soak_report import Part
from tests.decisions.fault_world import play

PAGE = ROOT / "docs" / "benchmarks" / "fault_schedules.md"
KEPT = Path(tempfile.gettempdir()) / "amorsize-fault-schedules.json"
#: Schedules that one task plays: about a quarter of a second.
_BATCH = 100


def play_some(seeds: range, n_events: int) -> tuple[collections.Counter[str], list[str]]:
    """Play these schedules: what came of items, and what went wrong."""
    counts: collections.Counter[str] = collections.Counter()
    problems = []
    for seed in seeds:
        try:
            world = play(seed, n_events)
        except AssertionError as error:
            problems.append(str(error))
            continue
        counts["schedules"] += 1
        counts["events"] += world.n_events
        counts.update(f"items: {how}" for how in world.outcomes.values())
    return counts, problems


_PAGE = """# Random schedules of faults

``python -m benchmarks.fault_schedules``

Each plays some 25 random events in virtual time, and all that follows until the scheduler has ended; what is checked
stands in `tests/decisions/fault_world.py`. Measured on: {machine}, shared with other work.

{table}

{problems}
"""


def page(part: Part) -> str:
    rate = part.counts["schedules"] / part.counts["seconds"]
    rows = [(what, f"{value:,.0f}") for what, value in part.counts.items()]
    table = Table(f"{rate:,.0f} schedules a second", ("what", "how many"), rows).markdown()
    problems = "\n".join(f"- {problem}" for problem in part.problems) or "Nothing went wrong."
    return _PAGE.format(machine=machine(), table=table, problems=problems)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000, help="schedules to play")
    parser.add_argument("--events", type=int, default=25, help="that each begins with")
    parser.add_argument("--seed", type=int, help="of the first one; by default 0, or behind those of earlier calls")
    parser.add_argument("--add", action="store_true", help="to what earlier calls have found")
    options = parser.parse_args()
    kept = _soak_report.load(KEPT) if options.add else {}
    part = kept.get("schedules", Part())
    first = int(part.counts.get("schedules", 0)) if options.seed is None else options.seed
    last = first + options.count
    begun = time.perf_counter()
    total: collections.Counter[str] = collections.Counter()
    problems: list[str] = []
    batches = [range(seed, min(seed + _BATCH, last)) for seed in range(first, last, _BATCH)]
    with AmorsizeExecutor(inline="never") as executor:
        for counts, found in executor.map(partial(play_some, n_events=options.events), batches, ordered=False):
            total.update(counts)
            problems += found
    elapsed = time.perf_counter() - begun
    part.add(Part({**dict(sorted(total.items(), reverse=True)), "seconds": elapsed}, problems))
    _soak_report.save(KEPT, {"schedules": part})
    print(f"{total['schedules'] / elapsed:,.0f} schedules a second, {len(problems)} went wrong")
    print(part.text())
    PAGE.write_text(page(part))
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
