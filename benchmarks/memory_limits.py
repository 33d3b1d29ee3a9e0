"""Tasks that need more memory than there is for all workers at once, in a control group of their own.

Each pool runs the same tasks, each of which takes 300 MB for a moment, in a memory group of 1 GiB (cgroup version 1, as
root). The kernel kills whoever exceeds it. Told are how many results were right, how many processes the kernel has
killed, the largest use of the group, and the time.

    python -m benchmarks.memory_limits
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks._measure import ROOT
from benchmarks._memory_group import NoGroup, memory_group
from benchmarks._report import Table, machine, seconds

LIMIT_NBYTES = 1 << 30
TASK_NBYTES = 300 << 20
N_TASKS = 16
POOLS = ("amorsize", "standard, fork", "standard, spawn", "loky")
DEADLINE_S = 100
HEADER = ("pool", "workers", "right results", "killed", "peak", "time", "error")


def heavy(x: int) -> int:
    """Fill memory, and have it for a moment."""
    from time import sleep

    data = bytearray(TASK_NBYTES)
    data[::4096] = b"x" * len(data[::4096])
    sleep(0.05)
    return x * x


def make_pool(name: str, n_workers: int) -> Any:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    if name == "amorsize":
        from amorsize_executor import AmorsizeExecutor

        return AmorsizeExecutor(n_workers)
    if name == "loky":
        from loky import ProcessPoolExecutor as LokyExecutor

        return LokyExecutor(n_workers)
    method = name.rpartition(" ")[2]
    return ProcessPoolExecutor(n_workers, mp_context=multiprocessing.get_context(method))


def work(name: str, n_workers: int) -> None:
    """Run the tasks in this process's group; prints what came out as JSON."""
    from time import perf_counter

    begun = perf_counter()
    n_right, error = 0, ""
    with make_pool(name, n_workers) as pool:
        futures = [pool.submit(heavy, x) for x in range(N_TASKS)]
        for x, future in enumerate(futures):
            try:
                n_right += future.result() == x * x
            except Exception as problem:
                error = type(problem).__name__
    print(json.dumps({"n_right": n_right, "error": error, "elapsed_s": perf_counter() - begun}))


def run(name: str, n_workers: int) -> tuple[dict[str, Any], int, int]:
    """What a pool made of the tasks, how many processes were killed, and the peak in bytes."""
    command = [sys.executable, "-m", "benchmarks.memory_limits", "--pool", name, "--workers", str(n_workers)]
    with memory_group(LIMIT_NBYTES) as group:
        try:
            done = group.run(command, DEADLINE_S, cwd=ROOT)
            lines = done.stdout.splitlines()
            told = json.loads(lines[-1]) if lines else {"n_right": 0, "error": "killed itself", "elapsed_s": None}
        except subprocess.TimeoutExpired:
            told = {"n_right": 0, "error": "hangs", "elapsed_s": None}
        return told, group.n_kills(), group.most_nbytes()


def measure(n_runs: int) -> Table:
    """All pools in turn."""
    found: dict[tuple[int, str], list[tuple[dict[str, Any], int, int]]] = {}
    for _ in range(n_runs):
        for n_workers in (2, 4, 8):
            for name in POOLS:
                found.setdefault((n_workers, name), []).append(run(name, n_workers))
    rows = []
    for (n_workers, name), outcomes in found.items():
        times = [told["elapsed_s"] for told, _, _ in outcomes if told["elapsed_s"] is not None]
        rows.append(
            (
                name,
                str(n_workers),
                f"{min(told['n_right'] for told, _, _ in outcomes)} of {N_TASKS}",
                str(max(kills for _, kills, _ in outcomes)),
                f"{max(peak for _, _, peak in outcomes) >> 20} MiB",
                seconds(statistics.median(times)) if times else "",
                ", ".join(sorted({told["error"] for told, _, _ in outcomes if told["error"]})),
            )
        )
    note = f"The worst of {n_runs} runs, but for the time, which is their median; peak: with pages of files."
    return Table(f"{N_TASKS} tasks of 300 MiB in 1 GiB", HEADER, rows, note)


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=3, help="runs of each pool")
    parser.add_argument("--pool", help="run the tasks with this pool, in the group of this process")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks" / "memory_limits.md")
    options = parser.parse_args()
    if options.pool:
        work(options.pool, options.workers)
        return 0
    try:
        table = measure(options.runs)
    except NoGroup as why:
        print(f"not measured: {why}")
        return 1
    introduction = (__doc__ or "").split("\n\n    python")[0].strip()
    page = f"# Memory limits\n\n{introduction}\n\nMeasured on: {machine()}.\n\n{table.markdown()}\n"
    options.output.write_text(page)
    print(table.text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
