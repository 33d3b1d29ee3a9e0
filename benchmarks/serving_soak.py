"""What must hold in a pool that serves for weeks: memory stays flat, workers follow demand, a model stays loaded.

Three checks, each with its figure; the exit status tells whether all hold. Figures of memory and counts need no quiet
machine.

* ``submits``: resident memory of the parent and of its worker before and after a million submits.
* ``demand``: short cycles of a burst and a pause that is longer than `idle_timeout`, as many as a server has in four
  hours with one a minute; workers must come and go with them, and leave nothing behind.
* ``model``: a resource of 400 MB that a worker loads for its second task, and how often it was built for 1,000 more.

    python -m benchmarks.serving_soak [submits] [demand] [model]
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import threading
import time
from collections import deque
from concurrent.futures import Future, wait
from typing import Any

from amorsize_executor import AmorsizeExecutor, machine

MIB = 1 << 20
N_SUBMITS = 1_000_000
N_AHEAD = 1_000
MOST_GROWTH_NBYTES = 5_000_000
N_CYCLES = 240
#: Tasks of 20 ms: twice as long as a worker takes to start on a busy machine, for two workers.
N_BURST = 30
IDLE_TIMEOUT_S = 0.1
MODEL_NBYTES = 400_000_000
N_MODEL_TASKS = 1_000


class Model:
    def __init__(self, nbytes: int) -> None:
        self.weights = bytearray(os.urandom(4096)) * (nbytes // 4096)
        self.n_calls = 0

    def predict(self, index: int) -> int:
        self.n_calls += 1
        return self.n_calls


def increment(x: int) -> int:
    return x + 1


def work(_: int) -> int:
    until = time.perf_counter() + 0.02
    while time.perf_counter() < until:
        pass
    return os.getpid()


def submits(n_submits: int) -> bool:
    with AmorsizeExecutor(1) as executor:

        def run(n: int) -> None:
            ahead: deque[Future[Any]] = deque()
            for i in range(n):
                ahead.append(executor.submit(increment, i))
                if len(ahead) > N_AHEAD:
                    ahead.popleft().result()
            wait(ahead)

        run(n_submits // 20)
        before = memory(executor)
        begun = time.perf_counter()
        run(n_submits)
        elapsed = time.perf_counter() - begun
        after = memory(executor)
        stats = executor.stats()
    grown = [b - a for a, b in zip(before, after, strict=True)]
    print(f"{n_submits:,} submits in {elapsed:.1f} s: parent grew by {grown[0]:,} bytes, worker by {grown[1]:,}")
    print(stats)
    return max(grown) < MOST_GROWTH_NBYTES and stats.tasks_done == stats.tasks_submitted


def memory(executor: AmorsizeExecutor) -> tuple[int, int]:
    gc.collect()
    own = machine.resident_nbytes(os.getpid()) or 0
    return own, executor.stats(memory=True).memory_nbytes or 0


def demand(n_cycles: int) -> bool:
    seen: list[tuple[int, int]] = []
    with AmorsizeExecutor(2, idle_timeout=IDLE_TIMEOUT_S, min_workers=0) as executor:
        first: tuple[int, int] | None = None
        for cycle in range(n_cycles):
            futures = [executor.submit(work, i) for i in range(N_BURST)]
            n_used = len({future.result() for future in futures})
            until = time.perf_counter() + 10.0
            while executor.stats().workers and time.perf_counter() < until:
                time.sleep(IDLE_TIMEOUT_S / 5)
            seen.append((n_used, len(executor.stats().workers)))
            if cycle == n_cycles // 10:
                gc.collect()
                first = state()
        gc.collect()
        last, stats = state(), executor.stats()
    assert first is not None
    n_wide = sum(used > 1 for used, _ in seen)
    n_gone = sum(not left for _, left in seen)
    print(f"{n_cycles} bursts: {n_wide} ran on two workers; after {n_gone} all workers had left")
    print(f"descriptors {first[0]} -> {last[0]}, resident memory {first[1]:,} -> {last[1]:,} bytes")
    print(f"{stats.workers_started} workers started, {stats.workers_left} left, {stats.workers_died} died")
    is_flat = last[0] <= first[0] and last[1] - first[1] < MOST_GROWTH_NBYTES
    return is_flat and n_gone == n_cycles and n_wide >= 0.9 * n_cycles and not stats.workers_died


def state() -> tuple[int, int]:
    """Descriptors and resident memory of this process."""
    assert threading.active_count() < 10
    return len(os.listdir("/proc/self/fd")), machine.resident_nbytes(os.getpid()) or 0


def model(n_tasks: int) -> bool:
    with AmorsizeExecutor(1) as executor, executor.resource(Model, MODEL_NBYTES) as handle:
        executor.submit(increment, 1).result()
        pid = executor.submit(work, 1).result()
        calls = [executor.submit(Model.predict, handle, i).result() for i in range(n_tasks)]
        stats = executor.stats(memory=True)
        same = executor.submit(work, 1).result() == pid
    print(f"{n_tasks:,} tasks with a model: built {sum(n == 1 for n in calls)} times, same process: {same}")
    print(stats)
    return calls == list(range(1, n_tasks + 1)) and same


CHECKS = {
    "submits": lambda share: submits(int(N_SUBMITS * share)),
    "demand": lambda share: demand(int(N_CYCLES * share)),
    "model": lambda share: model(int(N_MODEL_TASKS * share)),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", help=f"of {', '.join(CHECKS)}; all by default")
    parser.add_argument("--share", type=float, default=1.0, help="of the full length")
    args = parser.parse_args()
    unknown = set(args.checks) - CHECKS.keys()
    if unknown:
        parser.error(f"no such check: {', '.join(unknown)}")
    failed = []
    for name in args.checks or CHECKS:
        print(f"== {name}")
        if not CHECKS[name](args.share):
            failed.append(name)
    print("all hold" if not failed else f"broken: {', '.join(failed)}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
