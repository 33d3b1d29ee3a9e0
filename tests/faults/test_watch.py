"""Workers that stand still or go bad slowly: they are told, and those that leak are replaced."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable

import pytest

from amorsize_executor import AmorsizeExecutor, watch
from amorsize_executor.stats import WorkerStats
from amorsize_executor.workers import trees

from ..executor.tools import LIMIT_S, Signal, beside_this_process
from .tasks import leak, pid, tell_and_wait

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes as Linux shows them"),
]

MIB = 1 << 20


@pytest.fixture
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_LONG_START_S", 0.0)
    monkeypatch.setattr("amorsize_executor.dispatcher.PERIOD_S", 0.05)


def until_told(caplog: pytest.LogCaptureFixture, what: str) -> str:
    """The record that has these words, when it has come."""
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until:
        for record in list(caplog.records):
            if what in record.getMessage():
                return record.getMessage()
        time.sleep(0.01)
    raise AssertionError(f"nobody tells {what!r}")


def only_worker(executor: AmorsizeExecutor) -> WorkerStats:
    (worker,) = executor.stats().workers
    return worker


@pytest.mark.usefixtures("_no_patience")
def test_a_stopped_worker_is_told(make_signal: Callable[[], Signal], caplog: pytest.LogCaptureFixture) -> None:
    started, go = make_signal(), make_signal()
    with AmorsizeExecutor(1, inline="never") as executor:
        future = executor.submit(tell_and_wait, started, go, 5)
        started.take()
        worker = only_worker(executor)
        assert (worker.state, worker.running) == ("busy", "tell_and_wait")
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGSTOP)
        while not trees.is_stopped(worker.pid):
            pass
        later = only_worker(executor)
        assert (later.state, later.running) == ("stopped", "tell_and_wait")
        assert later.state_s >= worker.state_s
        assert "stopped in tell_and_wait" in str(executor.stats())
        assert f"kill -CONT {worker.pid}" in until_told(caplog, f"worker process {worker.pid} is stopped")
        os.kill(worker.pid, signal.SIGCONT)
        go.give()
        assert future.result(LIMIT_S) == 5
    assert len([record for record in caplog.records if "is stopped" in record.getMessage()]) == 1


@pytest.mark.usefixtures("_no_patience")
def test_a_worker_that_is_stuck_in_its_start_is_told(
    make_signal: Callable[[], Signal], caplog: pytest.LogCaptureFixture
) -> None:
    started, go = make_signal(), make_signal()
    with AmorsizeExecutor(1, inline="never", initializer=tell_and_wait, initargs=(started, go)) as executor:
        future = executor.submit(pid)
        started.take()
        worker = only_worker(executor)
        assert worker.state == "starting"
        message = until_told(caplog, "is not ready yet")
        assert f"py-spy dump --pid {worker.pid}" in message
        go.give()
        assert future.result(LIMIT_S) == worker.pid


def test_a_worker_that_leaks_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    with AmorsizeExecutor(1, inline="never", memory_limit=beside_this_process(900 * MIB)) as executor:
        assert executor.submit(pid).result(LIMIT_S)
        pids = list(executor.map(leak, [8 * MIB] * 120, chunksize=1))
        stats = executor.stats()
    assert 1 < len(set(pids)) < 10
    assert stats.workers_replaced >= 1
    assert stats.workers_died == 0
    assert "leaks" in until_told(caplog, "has grown by")
    assert next(record.levelno for record in caplog.records if "has grown" in record.getMessage()) == logging.WARNING


def test_workers_that_had_their_share_are_replaced(make_signal: Callable[[], Signal]) -> None:
    started, go = make_signal(), make_signal()
    with AmorsizeExecutor(1, inline="never", max_tasks_per_child=1) as executor:
        first = executor.submit(tell_and_wait, started, go)
        started.take()
        second = executor.submit(pid)
        assert second.result(LIMIT_S) != 0, "the successor works while the old one has not ended"
        assert not first.done()
        go.give()
        first.result(LIMIT_S)
        assert executor.submit(pid).result(LIMIT_S) != second.result()
        assert executor.stats().workers_replaced >= 1
