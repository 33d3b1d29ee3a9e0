"""Kill workers, kill parents, end programs in every way: nothing may be lost, hang, or stay behind.

* ``kills``: ten workers a second are killed over 50,000 tasks (60 s).
* ``parents``: 1,000 programs are killed at a random moment; nothing of them may be there 2 s later.
* ``exits``: 2,000 programs end in every way there is; none may hang or print a line that is not expected.

    python -m benchmarks.soak [kills] [parents] [exits] [--share 0.1] [--add]

Each part can be shortened, and continued: with ``--add`` its counts are added to those of earlier calls. The exit
status is 1 if anything went wrong. The result is written to docs/benchmarks/soak.md. Linux only.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks import _soak_report
from benchmarks._measure import ROOT
from benchmarks._report import Table, machine
from benchmarks._soak_exits import exits
from benchmarks._soak_kills import kills
from benchmarks._soak_parents import parents
from benchmarks._soak_report import Part

PAGE = ROOT / "docs" / "benchmarks" / "soak.md"
KEPT = Path(tempfile.gettempdir()) / "amorsize-soak.json"
PARTS: Mapping[str, tuple[Callable[[float, int], Part], str]] = {
    "kills": (kills, "Ten workers killed each second, over 50,000 tasks"),
    "parents": (parents, "1,000 programs killed at a random moment"),
    "exits": (exits, "2,000 programs that end, one way or another"),
}


def page(found: Mapping[str, Part]) -> str:
    """The report as Markdown."""
    lines = [
        "# Soak: deaths and ends",
        "``python -m benchmarks.soak``",
        "What must hold is in the docstrings of `benchmarks/_soak_*.py`; what did not would stand under its table. "
        "The machine was shared with other work.",
        f"Measured on: {machine()}.",
    ]
    for name, (_, title) in PARTS.items():
        part = found.get(name)
        if part is None:
            continue
        rows = [(what, f"{value:,}") for what, value in part.counts.items()]
        lines.append(Table(title, ("what", "how many"), rows).markdown())
        lines.append("\n".join(f"- {problem}" for problem in part.problems) or "Nothing was wrong.")
    return "\n\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--share", type=float, default=1.0, help="of the full length")
    parser.add_argument("--seed", type=int, help="of what is random; by default the time")
    parser.add_argument("--add", action="store_true", help="to what earlier calls have found")
    parser.add_argument("--no-page", action="store_true", help="leave docs/benchmarks/soak.md as it is")
    options = parser.parse_args()
    unknown = set(options.parts) - PARTS.keys()
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}")
    seed = int(time.time()) if options.seed is None else options.seed
    found = _soak_report.load(KEPT)
    n_problems = 0
    for name in options.parts or PARTS:
        print(f"== {name}, seed {seed}", flush=True)
        part = PARTS[name][0](options.share, seed)
        print(part.text(), flush=True)
        n_problems += len(part.problems)
        if options.add and name in found:
            found[name].add(part)
        else:
            found[name] = part
        _soak_report.save(KEPT, found)
    if not options.no_page:
        PAGE.write_text(page(found))
    return int(n_problems > 0)


if __name__ == "__main__":
    sys.exit(main())
