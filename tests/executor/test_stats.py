"""`stats`: what an executor has done, and what it looks like."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import pytest

from amorsize_executor import AmorsizeExecutor, CostModel, ExecutorStats, TimeSummary, WorkerDied
from amorsize_executor.counters import BOUNDS_S, Histogram

from . import tasks
from .tools import LIMIT_S, Signal


@pytest.fixture
def single() -> Iterator[AmorsizeExecutor]:
    with AmorsizeExecutor(1, cost_model=CostModel()) as executor:
        yield executor


def n_tasks(stats: ExecutorStats) -> int:
    return stats.tasks_queued + stats.tasks_running + stats.tasks_done + stats.tasks_failed + stats.tasks_cancelled


def test_an_executor_that_has_done_nothing(single: AmorsizeExecutor) -> None:
    stats = single.stats()
    assert stats.workers == ()
    assert (stats.tasks_submitted, n_tasks(stats), stats.wait.count, stats.run.count) == (0, 0, 0, 0)
    assert stats.is_open
    assert "none" in str(stats)


def test_every_task_is_in_one_place(single: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> None:
    started, go = make_signal(), make_signal()
    running = single.submit(tasks.pause, started, go)
    queued = [single.submit(tasks.square, i) for i in range(5)]
    started.take()
    queued[-1].cancel()
    stats = single.stats()
    assert stats.n_workers("busy") == 1
    assert (stats.tasks_submitted, n_tasks(stats)) == (6, 6)
    assert stats.tasks_running >= 1
    go.give()
    for future in (running, *queued[:-1]):
        future.result(LIMIT_S)
    with pytest.raises(ValueError, match="oh"):
        single.submit(tasks.raise_error, "oh").result(LIMIT_S)
    with pytest.raises(TypeError):
        single.submit(tasks.identity, tasks.Unpicklable(TypeError)).result(LIMIT_S)
    with pytest.raises(WorkerDied):
        single.submit(tasks.end_process, 3).result(LIMIT_S)
    stats = single.stats()
    assert (stats.tasks_done, stats.tasks_failed, stats.tasks_cancelled) == (5, 3, 1)
    assert n_tasks(stats) == stats.tasks_submitted == 9
    assert stats.wait.count == 6, "those that came back from a worker"


def test_items_of_maps(single: AmorsizeExecutor) -> None:
    list(single.map(tasks.square, range(100)))
    results = single.map(tasks.fail_on, [3] * 5, range(5), chunksize=1, timeout=LIMIT_S)
    with pytest.raises(ValueError, match="3 is bad"):
        list(results)
    stats = single.stats()
    assert stats.items_done >= 103
    assert stats.items_failed == 1
    assert stats.items_inline > 0
    assert stats.items_waiting <= 1
    (first, *_) = stats.maps
    assert (first.name, first.n_items) == ("square", 100)
    assert first.actual_s > 0
    assert "last map" in str(stats)


def test_workers_come_and_go() -> None:
    with AmorsizeExecutor(1, max_tasks_per_child=1) as executor:
        for _ in range(2):
            executor.submit(tasks.square, 1).result(LIMIT_S)
        with pytest.raises(WorkerDied):
            executor.submit(tasks.end_process, 3).result(LIMIT_S)
    stats = executor.stats()
    assert stats.workers == ()
    assert stats.workers_died == 1
    assert stats.workers_left >= 2
    assert stats.workers_started == stats.workers_left + stats.workers_died
    assert not stats.is_open


def test_memory_is_told_when_asked_for(single: AmorsizeExecutor) -> None:
    single.submit(tasks.square, 1).result(LIMIT_S)
    assert single.stats().memory_nbytes is None
    stats = single.stats(memory=True)
    assert stats.memory_nbytes is not None
    assert stats.memory_nbytes > 1 << 20
    assert stats.workers[0].memory_nbytes == stats.memory_nbytes
    assert stats.workers[0].pid == single.submit(tasks.pid).result(LIMIT_S)
    assert "in workers" in str(stats)


def test_blocks_are_counted(single: AmorsizeExecutor) -> None:
    single.submit(len, bytes(1 << 20)).result(LIMIT_S)
    assert single.stats().blocks_nbytes >= 1 << 20


def test_resources_are_named(single: AmorsizeExecutor) -> None:
    with single.resource(list, (1, 2)) as numbers:
        single.submit(sum, numbers).result(LIMIT_S)
        stats = single.stats()
        assert stats.workers[0].resources == ("list",)
        assert "has list" in str(stats)


def test_a_snapshot_does_not_change(single: AmorsizeExecutor) -> None:
    stats = single.stats()
    single.submit(tasks.square, 1).result(LIMIT_S)
    assert stats.tasks_submitted == 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.tasks_submitted = 1  # type: ignore[misc]


def test_times_fall_into_buckets() -> None:
    histogram = Histogram()
    for time_s in (0.0, 1e-5, 1.1e-5, 3.0, 1e9):
        histogram.observe(time_s)
    histogram.observe(0.2, n=10)
    summary = TimeSummary.of(histogram)
    assert summary.count == sum(summary.counts) == 15
    assert summary.cumulative()[-1] == 15
    assert summary.counts[:2] == (2, 1)
    assert summary.counts[-1] == 1
    assert summary.total_s == pytest.approx(1e9 + 5.0, rel=1e-6)
    assert list(summary.bounds_s) == sorted(BOUNDS_S)
    assert 0.1 <= summary.quantile(0.5) <= 0.25
    assert summary.quantile(1.0) == BOUNDS_S[-1]


def test_an_empty_summary() -> None:
    empty = TimeSummary(0, 0.0, (1.0,), (0, 0))
    assert (empty.mean_s, empty.quantile(0.5)) == (0.0, 0.0)
    with pytest.raises(ValueError, match="between 0 and 1, got 2"):
        empty.quantile(2)
