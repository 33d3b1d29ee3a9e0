"""Spans: what is made where, and that a trace goes on in workers."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from amorsize_executor import AmorsizeExecutor, CostModel, WorkerDied
from amorsize_executor.integrations.tracing import traced

LIMIT_S = 30.0

_in_worker = InMemorySpanExporter()


def record_spans() -> None:
    """Initializer: keep the spans of a worker."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(_in_worker))
    trace.set_tracer_provider(provider)


def recorded(_: object = None) -> list[tuple[str, int, int | None, dict[str, Any]]]:
    """Name, span, parent and attributes of what this worker has recorded."""
    spans = _in_worker.get_finished_spans()
    _in_worker.clear()
    return [
        (s.name, s.context.span_id, s.parent.span_id if s.parent else None, dict(s.attributes or {})) for s in spans
    ]


def current(_: object = None) -> tuple[int, int]:
    found = trace.get_current_span().get_span_context()
    return found.trace_id, found.span_id


def work(x: int) -> int:
    with trace.get_tracer("test").start_as_current_span("inner"):
        return 2 * x


def fail() -> None:
    raise ValueError("oh")


def end_process() -> None:
    import os

    os._exit(3)


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> TracerProvider:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


@pytest.fixture(scope="module")
def base() -> Iterator[AmorsizeExecutor]:
    with AmorsizeExecutor(1, initializer=record_spans, cost_model=CostModel()) as executor:
        yield executor


@pytest.fixture
def executor(base: AmorsizeExecutor, provider: TracerProvider) -> AmorsizeExecutor:
    base.submit(recorded).result(LIMIT_S)  # forget what earlier tests made
    return traced(base, tracer_provider=provider)


def test_submit_and_run_and_what_the_task_makes_are_one_trace(
    executor: AmorsizeExecutor, base: AmorsizeExecutor, exporter: InMemorySpanExporter
) -> None:
    assert executor.submit(work, 4).result(LIMIT_S) == 8
    (submit,) = exporter.get_finished_spans()
    inner, run = base.submit(recorded).result(LIMIT_S)
    assert (submit.name, run[0], inner[0]) == ("submit work", "run work", "inner")
    assert inner[2] == run[1]
    assert run[2] == submit.context.span_id
    assert 0 <= run[3]["amorsize.wait_s"] < LIMIT_S
    assert run[3]["process.pid"] == base.stats().workers[0].pid


def test_the_span_of_the_caller_is_the_parent(
    executor: AmorsizeExecutor, provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    with provider.get_tracer("test").start_as_current_span("request") as request:
        trace_id, _ = executor.submit(current).result(LIMIT_S)
    assert trace_id == request.get_span_context().trace_id
    submit = exporter.get_finished_spans()[0]
    assert submit.parent is not None
    assert submit.parent.span_id == request.get_span_context().span_id


def test_items_of_a_map_have_its_span_for_a_parent(executor: AmorsizeExecutor, exporter: InMemorySpanExporter) -> None:
    ids = set(executor.map(current, range(20)))
    (span,) = exporter.get_finished_spans()
    assert ids == {(span.context.trace_id, span.context.span_id)}
    assert span.name == "map current"
    assert dict(span.attributes or {})["amorsize.n_items"] == 20


def test_so_have_those_that_the_caller_runs(provider: TracerProvider, exporter: InMemorySpanExporter) -> None:
    with AmorsizeExecutor(1) as plain:
        ids = set(traced(plain, tracer_provider=provider).map(current, range(3)))
        assert plain.last_plan is not None
        assert plain.last_plan.is_serial
    (span,) = exporter.get_finished_spans()
    assert ids == {(span.context.trace_id, span.context.span_id)}


def test_errors_are_told(executor: AmorsizeExecutor, base: AmorsizeExecutor, exporter: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="oh"):
        executor.submit(fail).result(LIMIT_S)
    with pytest.raises(WorkerDied):
        executor.submit(end_process).result(LIMIT_S)
    with pytest.raises(TypeError):
        list(executor.map(work, ["x", None]))
    told = [span.status.description for span in exporter.get_finished_spans()]
    assert told[0] == "ValueError: oh"
    assert told[1] is not None
    assert told[1].startswith("WorkerDied: ")
    assert told[2] is not None
    assert told[2].startswith("TypeError: ")
    assert all(span.status.status_code is trace.StatusCode.ERROR for span in exporter.get_finished_spans())


def test_a_map_that_is_dropped_ends_its_span(executor: AmorsizeExecutor, exporter: InMemorySpanExporter) -> None:
    results = executor.map(work, range(10))
    assert next(results) == 0
    assert not exporter.get_finished_spans()
    del results
    gc.collect()
    assert [span.name for span in exporter.get_finished_spans()] == ["map work"]


def test_options_hold(base: AmorsizeExecutor, provider: TracerProvider) -> None:
    executor = traced(base.options(retries=1, timeout=LIMIT_S), tracer_provider=provider)
    assert executor.submit(work, 1).result(LIMIT_S) == 2
    executor.shutdown()
    with pytest.raises(RuntimeError, match="shutdown"):
        executor.submit(work, 1)
    assert base.submit(work, 1).result(LIMIT_S) == 2


def test_what_is_learned_of_a_function_holds_for_both(base: AmorsizeExecutor, provider: TracerProvider) -> None:
    model = CostModel()
    with AmorsizeExecutor(1, cost_model=model) as plain:
        plain.submit(work, 1).result(LIMIT_S)
        plan = plain.plan(work, range(10))
        traced(plain, tracer_provider=provider).submit(work, 1).result(LIMIT_S)
        assert plan.item_s is not None
        assert plain.plan(work, range(10)).item_s != plan.item_s


def test_arguments_are_checked(executor: AmorsizeExecutor) -> None:
    with pytest.raises(TypeError, match="fn must be a callable, got 3"):
        executor.submit(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="fn must be a callable, got 3"):
        executor.map(3, [1])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="at least one iterable"):
        executor.map(work)
