"""Start, use and shut down many executors in one process, and look for what they left behind.

``python -m benchmarks.churn [--count 500]``

The work happens in a fresh interpreter where every warning is an error, so that a warning at exit
shows. Exit status 1 if threads, descriptors, shared memory or child processes grew, or if that
interpreter failed or wrote anything to stderr. Resident memory is reported, not judged. Linux only.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import psutil

from amorsize_executor import AmorsizeExecutor
from benchmarks._measure import ROOT
from benchmarks._tasks import identity

WARM_UP = 20
"""Executors before the first count: they import modules and start process-wide helpers."""
WORKERS = 2
MAP_ITEMS = 8
DESCRIPTORS = Path("/proc/self/fd")
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Snapshot:
    """What the process holds: each thing by a name that tells where it came from."""

    threads: tuple[str, ...]
    descriptors: tuple[str, ...]
    shared_memory: tuple[str, ...]
    children: tuple[str, ...]
    resident_bytes: int


def take_snapshot() -> Snapshot:
    """Count, after the garbage is gone."""
    gc.collect()
    process = psutil.Process()
    return Snapshot(
        threads=_named((str(thread.ident), thread.name) for thread in threading.enumerate()),
        descriptors=_named(_descriptors()),
        shared_memory=tuple(sorted(_shared_memory(process.pid))),
        children=_named((str(child.pid), child.name()) for child in process.children(recursive=True)),
        resident_bytes=process.memory_info().rss,
    )


def _named(things: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(sorted(f"{identifier} ({name})" for identifier, name in things))


def _descriptors() -> list[tuple[str, str]]:
    found = []
    for number in os.listdir(DESCRIPTORS):
        try:
            found.append((number, os.readlink(DESCRIPTORS / number)))
        except FileNotFoundError:  # the one that listed the folder
            continue
    return found


def _shared_memory(own_pid: int) -> set[str]:
    """Return the entries in shared memory, but for those that a stranger's process has mapped."""
    family = {own_pid, *(child.pid for child in psutil.Process().children(recursive=True))}
    foreign: set[str] = set()
    for pid in set(psutil.pids()) - family:
        try:
            mapped = Path(f"/proc/{pid}/maps").read_text(errors="replace")
        except OSError:
            continue
        prefix = f"{SHARED_MEMORY}/"
        foreign.update(line.partition(prefix)[2] for line in mapped.splitlines() if prefix in line)
    return set(os.listdir(SHARED_MEMORY)) - foreign


def use_executors(count: int) -> None:
    """Start, use and shut down `count` executors, one after the other."""
    for number in range(count):
        with AmorsizeExecutor(WORKERS, inline="never") as executor:
            assert executor.submit(identity, number).result() == number
            assert list(executor.map(identity, range(MAP_ITEMS))) == list(range(MAP_ITEMS))


def churn(count: int) -> int:
    """Use `count` executors between two snapshots; print both, return 1 if something grew."""
    use_executors(WARM_UP)
    before = take_snapshot()
    started = perf_counter()
    use_executors(count)
    elapsed = perf_counter() - started
    after = take_snapshot()
    print(f"{count} executors, {elapsed / count * 1e3:.1f} ms each")
    print(f"{'':<20}{'before':>10}{'after':>10}")
    grew = 0
    for name in ("threads", "descriptors", "shared_memory", "children"):
        old, new = getattr(before, name), getattr(after, name)
        leaked = len(new) > len(old)
        grew |= leaked
        print(f"{name.replace('_', ' '):<20}{len(old):>10}{len(new):>10}{' GREW' * leaked}")
        if leaked:
            print(*(f"  new: {thing}" for thing in sorted({*new} - {*old})), sep="\n")
    resident = [snapshot.resident_bytes / 2**20 for snapshot in (before, after)]
    print(f"{'resident MiB':<20}{resident[0]:>10.1f}{resident[1]:>10.1f}", flush=True)
    return grew


def churn_in_fresh_interpreter(count: int) -> int:
    """Run `churn` where warnings are errors, show what it said, return the exit status."""
    command = [sys.executable, "-W", "error", "-m", "benchmarks.churn"]
    arguments = ["--here", "--count", str(count)]
    done = subprocess.run([*command, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    print(f"exit status {done.returncode}; stderr {'as follows' if done.stderr else 'empty'}")
    print(done.stderr, end="")
    return 1 if done.returncode or done.stderr else 0


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=500, help="executors to start and shut down")
    parser.add_argument("--here", action="store_true", help="in this interpreter, as it is")
    options = parser.parse_args()
    run = churn if options.here else churn_in_fresh_interpreter
    return run(options.count)


if __name__ == "__main__":
    sys.exit(main())
