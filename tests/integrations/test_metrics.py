"""Metrics for Prometheus: the numbers of `stats`, read at each scrape."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import NamedTuple

import pytest

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry, generate_latest

from amorsize_executor import AmorsizeExecutor, CostModel, WorkerDied
from amorsize_executor.integrations import metrics

LIMIT_S = 30.0


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def executor() -> Iterator[AmorsizeExecutor]:
    with AmorsizeExecutor(2, cost_model=CostModel()) as executor:
        yield executor


def value(registry: CollectorRegistry, name: str, executor: str = "default", **labels: str) -> float | None:
    found = registry.get_sample_value(f"amorsize_{name}", {"executor": executor, **labels})
    return None if found is None else float(found)


def end_process() -> None:
    os._exit(3)


def test_tasks_and_their_times(registry: CollectorRegistry, executor: AmorsizeExecutor) -> None:
    metrics.register(executor, registry=registry)
    assert value(registry, "tasks_submitted_total") == 0
    for i in range(5):
        executor.submit(abs, -i).result(LIMIT_S)
    with pytest.raises(TypeError):
        executor.submit(abs, "x").result(LIMIT_S)
    assert value(registry, "tasks_submitted_total") == 6
    assert value(registry, "tasks_total", outcome="done") == 5
    assert value(registry, "tasks_total", outcome="failed") == 1
    assert value(registry, "tasks_queued") == value(registry, "tasks_running") == 0
    assert value(registry, "task_wait_seconds_count") == 6
    assert value(registry, "run_seconds_bucket", le="+Inf") == value(registry, "run_seconds_count") == 6
    assert value(registry, "task_wait_seconds_sum") == executor.stats().wait.total_s


def test_workers_and_their_memory(registry: CollectorRegistry, executor: AmorsizeExecutor) -> None:
    metrics.register(executor, registry=registry)
    executor.submit(abs, 1).result(LIMIT_S)
    with pytest.raises(WorkerDied):
        executor.submit(end_process).result(LIMIT_S)
    executor.submit(abs, 1).result(LIMIT_S)
    stats = executor.stats()
    assert value(registry, "workers_died_total") == 1
    assert value(registry, "workers_started_total") == stats.workers_started
    assert value(registry, "workers", state="idle") == stats.n_workers("idle")
    assert value(registry, "workers", state="leaving") == 0
    assert (value(registry, "workers_memory_bytes") or 0) >= (value(registry, "largest_worker_memory_bytes") or 0) > 1e6
    assert value(registry, "open") == 1


def test_maps_and_what_was_predicted(registry: CollectorRegistry, executor: AmorsizeExecutor) -> None:
    metrics.register(executor, registry=registry)
    for _ in range(2):  # of the first nothing is known beforehand
        list(executor.map(sum, [[1, 2]] * 100))
    stats = executor.stats()
    assert value(registry, "items_total", outcome="done") == 200
    assert value(registry, "maps_total") == stats.maps_ended >= 1
    assert value(registry, "maps_predicted_seconds_total") == stats.maps_predicted_s
    assert value(registry, "maps_actual_seconds_total") == stats.maps_actual_s


def test_executors_are_told_apart(registry: CollectorRegistry, executor: AmorsizeExecutor) -> None:
    with AmorsizeExecutor(1) as other:
        metrics.register(executor, "one", registry=registry)
        metrics.register(other, "two", registry=registry)
        other.submit(abs, 1).result(LIMIT_S)
        assert value(registry, "tasks_submitted_total", "one") == 0
        assert value(registry, "tasks_submitted_total", "two") == 1
        with pytest.raises(ValueError, match="'two' is registered; give this one another name"):
            metrics.register(executor, "two", registry=registry)


def test_they_end_with_the_executor_or_when_told(registry: CollectorRegistry) -> None:
    with AmorsizeExecutor(1) as executor:
        with metrics.register(executor, registry=registry):
            assert value(registry, "open") == 1
        assert value(registry, "open") is None
        metrics.register(executor, registry=registry)
    assert value(registry, "open") is None
    gone = AmorsizeExecutor(1)
    metrics.register(gone, registry=registry)
    del gone
    gc.collect()
    assert value(registry, "open") is None
    with AmorsizeExecutor(1) as again:
        metrics.register(again, registry=registry)
        assert value(registry, "open") == 1


def test_a_broken_executor_can_be_seen(registry: CollectorRegistry) -> None:
    with AmorsizeExecutor(1) as executor:
        metrics.register(executor, registry=registry)
        executor.submit(abs, 1).result(LIMIT_S)
        executor.kill_workers()
        assert value(registry, "open") == 0
        assert value(registry, "open") == 0, "and not only at the first look"


def test_sizes_of_batches(registry: CollectorRegistry, executor: AmorsizeExecutor) -> None:
    class Counts(NamedTuple):
        calls: int
        waiting: int
        sizes: dict[int, int]

    class Front:
        def stats(self) -> Counts:
            return Counts(calls=14, waiting=2, sizes={4: 3, 1: 2})

    front = Front()
    metrics.register(executor, registry=registry).add_batcher(front, "embed")
    assert value(registry, "batch_size_bucket", batcher="embed", le="1.0") == 2
    assert value(registry, "batch_size_bucket", batcher="embed", le="4.0") == 5
    assert value(registry, "batch_size_count", batcher="embed") == 5
    assert value(registry, "batch_size_sum", batcher="embed") == 12
    assert value(registry, "batch_calls_waiting", batcher="embed") == 2
    del front
    gc.collect()
    assert value(registry, "batch_calls_waiting", batcher="embed") is None


def test_a_front_of_the_executor(registry: CollectorRegistry, executor: AmorsizeExecutor) -> None:
    registration = metrics.register(executor, registry=registry)
    with executor.batch(sorted) as batch:
        registration.add_batcher(batch, "sort")
        assert [future.result(LIMIT_S) for future in [batch.submit(i) for i in range(5)]] == list(range(5))
        assert value(registry, "batch_size_sum", batcher="sort") == 5
        assert 1 <= (value(registry, "batch_size_count", batcher="sort") or 0) <= 5


def test_the_text_that_prometheus_reads(registry: CollectorRegistry, executor: AmorsizeExecutor) -> None:
    metrics.register(executor, "images", registry=registry)
    text = generate_latest(registry).decode()
    assert '# TYPE amorsize_workers gauge\namorsize_workers{executor="images",state="starting"} 0.0\n' in text
    assert 'amorsize_run_seconds_bucket{executor="images",le="+Inf"} 0.0' in text
