"""Large arguments and results, many times, and what is left of them."""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import psutil

from amorsize_executor import AmorsizeExecutor

WARM_UP_PART = 0.2
"""Of the rounds: until then sizes and pools may settle."""
MEMORY_GROWTH = 0.1
"""Part by which memory may differ between two looks."""
LARGEST = 1 << 19
"""Elements of 8 bytes of the largest array."""


@dataclass(frozen=True)
class Snapshot:
    """What this process and its workers hold."""

    resident_nbytes: int
    descriptors: int
    blocks: int


def take_snapshot() -> Snapshot:
    """Count, after the garbage is gone."""
    gc.collect()
    me = psutil.Process()
    family = [me, *me.children(recursive=True)]
    names = [name for process in family for name in _descriptors(process.pid)]
    return Snapshot(
        resident_nbytes=sum(process.memory_info().rss for process in family),
        descriptors=len(names),
        blocks=sum("amorsize_executor" in name for name in names),
    )


def _descriptors(pid: int) -> list[str]:
    folder = Path(f"/proc/{pid}/fd")
    found = []
    try:
        for entry in folder.iterdir():
            found.append(os.readlink(entry))
    except OSError:  # gone in between
        pass
    return found


def negative(array: np.ndarray) -> np.ndarray:
    """Return a large result for a large argument."""
    return -array


def soak(rounds: int) -> tuple[list[str], bool]:
    """Go back and forth; return two snapshots in lines of text, and whether something grew between them."""
    random = np.random.default_rng(0)
    before: Snapshot | None = None
    started = perf_counter()
    with AmorsizeExecutor(2, min_workers=2, inline="never") as executor:
        for i in range(rounds):
            n = int(random.integers(LARGEST // 16, LARGEST))
            array = np.full(n, float(i))
            if i % 10 == 0:
                results = list(executor.map(negative, [array] * 4))
            else:
                results = [executor.submit(negative, array).result()]
            assert all(len(result) == n and result[-1] == -i for result in results)
            del results
            if i == int(rounds * WARM_UP_PART):
                before = take_snapshot()
        after = take_snapshot()
    assert before is not None
    lines = [f"{rounds:,} rounds, {(perf_counter() - started) / rounds * 1e3:.2f} ms each"]
    lines.append(f"{'':<20}{'before':>14}{'after':>14}")
    has_grown = False
    for name in ("resident_nbytes", "descriptors", "blocks"):
        old, new = getattr(before, name), getattr(after, name)
        # Blocks come and go: how many there are at a time is not the same at each look.
        leaked = new > old * (1 + MEMORY_GROWTH) + (8 if name != "resident_nbytes" else 64 << 20)
        has_grown |= leaked
        lines.append(f"{name:<20}{old:>14,}{new:>14,}{' GREW' * leaked}")
    return lines, has_grown
