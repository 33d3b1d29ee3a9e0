"""Workers die at random while submits and maps of all lengths run: only what ran is lost, and nothing runs twice.

Short by default; ``AMORSIZE_STRESS_S=600`` runs it for that many seconds, over and over with other seeds.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from concurrent.futures import Future, wait
from pathlib import Path

import psutil
import pytest

from amorsize_executor import AmorsizeExecutor, WorkerDied

from ..executor.tools import LIMIT_S
from .tasks import Deadly, count_notes

#: A worker is ready after this, in seconds, on any machine that can run these tests.
_START_S = 5.0
_STRESS_S = float(os.environ.get("AMORSIZE_STRESS_S", "0"))

pytestmark = pytest.mark.timeout(60 + _STRESS_S)


def _workers() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if "amorsize worker" in " ".join(process.cmdline()).lower().replace("amorsizeworker", "amorsize worker"):
                found.append(process)
    return found


class _Killer(threading.Thread):
    """Kills workers from outside, at random: while they work, idle or start."""

    def __init__(self, seed: int, mean_s: float) -> None:
        super().__init__(name="killer")
        self._rng = random.Random(seed)
        self._mean_s = mean_s
        self._over = threading.Event()
        self.n_killed = 0
        self._n_young = 0

    def run(self) -> None:
        while not self._over.wait(self._rng.expovariate(1 / self._mean_s)):
            workers = _workers()
            if not workers:
                continue
            with contextlib.suppress(psutil.Error):
                victim = self._rng.choice(workers)
                if time.time() - victim.create_time() < _START_S:
                    self._n_young += 1
                    if self._n_young > 2:  # three in a row before they are ready break a pool, and rightly
                        continue
                victim.send_signal(self._rng.choice([signal.SIGKILL, signal.SIGTERM]))
                self.n_killed += 1

    def stop(self) -> None:
        self._over.set()
        self.join()


def _round(folder: Path, seed: int) -> int:
    """One round; returns how many tasks were lost with their workers."""
    rng = random.Random(seed)
    n_lost = 0
    killer = _Killer(seed, mean_s=0.25)
    with AmorsizeExecutor(2, inline="never") as executor:
        killer.start()
        try:
            for step in range(6):
                path = str(folder / f"notes-{seed}-{step}")
                n = rng.choice([5, 60, 300])
                seconds = rng.choice([0.0, 1e-4, 1e-3]) if n > 5 else rng.choice([1e-3, 0.03])
                deadly = set(rng.sample(range(n), rng.randrange(3)))
                if rng.random() < 0.5:
                    n_lost += _submits(executor, path, n, seconds, deadly)
                else:
                    n_lost += _map(executor, path, n, seconds, rng.choice([None, 1, 16]))
        finally:
            killer.stop()
        # What is told as lost was lost by a death, and one death costs no more than one item.
        assert executor.submit(os.getpid).result(LIMIT_S)
    assert n_lost <= killer.n_killed + 12
    return n_lost


def _submits(executor: AmorsizeExecutor, path: str, n: int, seconds: float, deadly: set[int]) -> int:
    run = Deadly(path, deadly, seconds)
    futures: list[Future[int]] = [executor.submit(run, x) for x in range(n)]
    assert not wait(futures, LIMIT_S).not_done
    lost = set()
    for x, future in enumerate(futures):
        error = future.exception()
        if error is None:
            assert future.result() == x * x
        else:
            assert isinstance(error, WorkerDied), error
            lost.add(x)
    assert deadly <= lost
    executed = count_notes(path)
    assert max(executed.values(), default=1) == 1
    assert set(range(n)) - lost <= set(executed)
    return len(lost - deadly)


def _map(executor: AmorsizeExecutor, path: str, n: int, seconds: float, chunksize: int | None) -> int:
    results = executor.map(Deadly(path, set(), seconds), range(n), chunksize=chunksize)
    x = 0
    try:
        for x, result in enumerate(results):
            assert result == x * x
    except WorkerDied:
        assert max(count_notes(path).values(), default=1) == 1
        return 1
    assert x == n - 1
    assert count_notes(path) == dict.fromkeys(range(n), 1)
    return 0


def test_random_deaths_cost_only_what_ran(tmp_path: Path) -> None:
    until = time.monotonic() + _STRESS_S
    seed = int(os.environ.get("AMORSIZE_SEED", "0"))
    while True:
        for _ in range(3):
            _round(tmp_path, seed)
            seed += 1
        if time.monotonic() >= until:
            break
