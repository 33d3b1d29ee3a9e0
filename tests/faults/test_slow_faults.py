"""Workers that go wrong slowly: they are stopped, stuck, or leak. It is told, and only who leaks is replaced."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import sys
import time
from collections.abc import Callable, Iterator
from logging.handlers import QueueHandler
from typing import Any

import pytest

from amorsize_executor import AmorsizeExecutor, TaskTimeout, dispatcher
from amorsize_executor.decisions import health as rules
from amorsize_executor.decisions import recycling
from amorsize_executor.stats import ExecutorStats, WorkerStats

from ..executor.tools import LIMIT_S, Signal
from .tasks import pid, square, tell_and_wait

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(sys.platform != "linux", reason="states and memory of processes are read in /proc"),
]

MIB = 1 << 20
_kept: list[bytes] = []


class ImportsForEver:
    """A function whose import, or what else unpickling takes, does not end before somebody allows it."""

    def __init__(self, started: Signal, go: Signal) -> None:
        self.signals = started, go

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return tell_and_wait, (*self.signals, square)

    def __call__(self, x: int) -> int:
        raise AssertionError("workers have another function in its place")


def keep(nbytes: int) -> int:
    """Leak."""
    _kept.append(b"x" * nbytes)
    until = time.process_time() + 0.012  # long enough to be measured
    while time.process_time() < until:
        pass
    return os.getpid()


def fill_cache(nbytes: int, most: int) -> int:
    """Leak until there is enough."""
    return keep(nbytes if len(_kept) < most else 0)


@pytest.fixture
def warnings() -> Iterator[queue.SimpleQueue[logging.LogRecord]]:
    """What the package's logger warns of."""
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    handler = QueueHandler(records)
    logger = logging.getLogger("amorsize_executor")
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are looked after often."""
    monkeypatch.setattr(dispatcher, "PERIOD_S", 0.05)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch, often: None) -> None:
    """Let starts, imports and tasks that take 50 ms count as stuck."""
    monkeypatch.setattr(rules, "START_S", 0.05)
    monkeypatch.setattr(rules, "TASK_S", 0.05)


def await_warning(records: queue.SimpleQueue[logging.LogRecord], *texts: str) -> None:
    """Wait for a warning in which all of this stands."""
    while True:
        record = records.get(timeout=LIMIT_S)
        if all(text in record.getMessage() for text in texts):
            assert record.levelno == logging.WARNING
            return


@contextlib.contextmanager
def usable(*args: Any, **kwargs: Any) -> Iterator[AmorsizeExecutor]:
    """An executor; when a test fails, nobody waits for its workers."""
    with AmorsizeExecutor(*args, **kwargs) as executor:
        try:
            yield executor
        except BaseException:
            executor.kill_workers()
            raise


def stats_when(executor: AmorsizeExecutor, holds: Callable[[WorkerStats], bool]) -> ExecutorStats:
    """Statistics at the first moment at which this holds for some worker."""
    until = time.monotonic() + LIMIT_S
    while True:
        stats = executor.stats()
        if any(map(holds, stats.workers)):
            return stats
        assert time.monotonic() < until, stats
        time.sleep(0.01)


def test_a_stopped_worker_is_told_once_and_goes_on(
    make_signal: Callable[[], Signal], warnings: queue.SimpleQueue[logging.LogRecord], often: None
) -> None:
    started, go = make_signal(), make_signal()
    with usable(1) as executor:
        future = executor.submit(tell_and_wait, started, go, 7)
        started.take(1)
        (worker,) = executor.stats().workers
        assert (worker.state, worker.runs) == ("busy", "tell_and_wait")
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGSTOP)
        stats_when(executor, lambda worker: worker.state == "stopped")
        await_warning(warnings, f"worker process {worker.pid} is stopped", "tell_and_wait")
        stats = stats_when(executor, lambda worker: worker.state == "stopped" and worker.state_s > 0.2)
        assert "is stopped for" in str(stats)
        assert warnings.empty()
        os.kill(worker.pid, signal.SIGCONT)
        go.give(1)
        assert future.result(LIMIT_S) == 7
        assert executor.submit(pid).result(LIMIT_S) == worker.pid
        assert executor.stats().workers[0].state == "idle"


def test_an_idle_worker_that_is_stopped_is_told_when_somebody_asks() -> None:
    with usable(1) as executor:
        number = executor.submit(pid).result(LIMIT_S)
        os.kill(number, signal.SIGSTOP)
        stats_when(executor, lambda worker: worker.state == "stopped" and worker.state_s > 0.02)
        os.kill(number, signal.SIGCONT)
        stats_when(executor, lambda worker: worker.state == "idle")


def test_a_stopped_worker_is_ended_by_a_timeout_only() -> None:
    with usable(1) as executor:
        number = executor.submit(pid).result(LIMIT_S)
        os.kill(number, signal.SIGSTOP)
        future = executor.submit(square, 3)
        timed = executor.options(timeout=0.3).submit(square, 4)
        assert isinstance(timed.exception(LIMIT_S), TaskTimeout)
        os.kill(number, signal.SIGCONT)
        assert future.result(LIMIT_S) == 9


def test_a_task_that_takes_far_longer_than_its_function_does_is_told_once(
    make_signal: Callable[[], Signal], warnings: queue.SimpleQueue[logging.LogRecord], soon: None
) -> None:
    started, go = make_signal(), make_signal()
    with usable(1) as executor:
        for _ in range(20):
            go.give(1)
            executor.submit(tell_and_wait, started, go).result(LIMIT_S)
        started.take(20)
        while not warnings.empty():  # on a machine that is busy, one of these may have looked stuck
            warnings.get()
        future = executor.submit(tell_and_wait, started, go)
        started.take(1)
        stats = stats_when(executor, lambda worker: worker.state == "stuck")
        assert (stats.workers[0].runs, stats.workers_died) == ("tell_and_wait", 0)
        assert stats.workers[0].state_s > 0.05
        await_warning(warnings, "no progress", "tell_and_wait")
        go.give(1)
        assert future.exception(LIMIT_S) is None
        assert executor.stats().workers[0].state == "idle"
        assert warnings.empty()


def test_a_worker_that_is_stuck_in_what_it_loads_is_told(
    make_signal: Callable[[], Signal], warnings: queue.SimpleQueue[logging.LogRecord], soon: None
) -> None:
    started, go = make_signal(), make_signal()
    with usable(1) as executor:
        future = executor.submit(ImportsForEver(started, go), 3)
        started.take(1)
        stats = stats_when(executor, lambda worker: worker.state == "stuck")
        assert stats.workers[0].runs is not None
        await_warning(warnings, "no progress", "ImportsForEver")
        go.give(1)
        assert future.result(LIMIT_S) == 9


def test_a_worker_that_is_stuck_in_its_start_is_told(
    make_signal: Callable[[], Signal], warnings: queue.SimpleQueue[logging.LogRecord], soon: None
) -> None:
    started, go = make_signal(), make_signal()
    with usable(1, initializer=tell_and_wait, initargs=(started, go)) as executor:
        future = executor.submit(square, 3)
        started.take(1)
        stats = stats_when(executor, lambda worker: worker.state == "stuck")
        assert (stats.workers[0].runs, stats.tasks_queued) == (None, 1)
        await_warning(warnings, "is not ready")
        go.give(1)
        assert future.result(LIMIT_S) == 9
        assert executor.stats().workers[0].state != "stuck"


def test_a_worker_that_leaks_is_replaced_and_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch, warnings: queue.SimpleQueue[logging.LogRecord]
) -> None:
    monkeypatch.setattr(recycling, "LIVES", 0)
    monkeypatch.setattr(recycling, "allowed_nbytes", lambda part_nbytes, n_found: 64 * MIB)
    with usable(1) as executor:
        pids = [future.result(LIMIT_S) for future in [executor.submit(keep, 4 * MIB) for _ in range(60)]]
        stats = executor.stats()
        assert stats.workers_leaked >= 1
        assert stats.workers_died == stats.tasks_failed == 0
        assert 1 < len(set(pids)) <= stats.workers_leaked + 1
    await_warning(warnings, "memory has grown")


def test_a_cache_that_is_full_is_no_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recycling, "LIVES", 0)
    with usable(1) as executor:
        futures = [executor.submit(fill_cache, 8 * MIB, 14) for _ in range(80)]
        assert len({future.result(LIMIT_S) for future in futures}) == 1
        assert executor.stats().workers_leaked == 0


def test_the_next_worker_is_there_before_the_old_one_leaves(make_signal: Callable[[], Signal]) -> None:
    started, go = make_signal(), make_signal()
    with usable(1, max_tasks_per_child=1) as executor:
        futures = [executor.submit(tell_and_wait, started, go, i) for i in range(3)]
        started.take(1)
        stats = stats_when(executor, lambda worker: worker.state == "spare")
        assert [worker.leaves_because for worker in stats.workers] == ["max_tasks_per_child", None]
        assert stats.tasks_queued == 2, "one task at a time"
        go.give(3)
        assert [future.result(LIMIT_S) for future in futures] == [0, 1, 2]
