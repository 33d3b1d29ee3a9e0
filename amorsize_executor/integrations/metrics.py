"""What executors do, as metrics for Prometheus.

Nothing is counted here: at each scrape the numbers of `AmorsizeExecutor.stats` are read, so tasks pay nothing. All
executors of a registry are told apart by the label `executor`.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Protocol

try:
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "metrics need prometheus-client, which is not installed: pip install 'amorsize_executor[metrics]'",
        name="prometheus_client",
    ) from error

from ..executor import AmorsizeExecutor
from ..stats import ExecutorStats, TimeSummary

_STATES = ("starting", "spare", "loading", "idle", "busy", "leaving", "stopped", "stuck")

#: Guards `_exporters` and what they hold.
_lock = threading.Lock()
_exporters: weakref.WeakKeyDictionary[CollectorRegistry, _Exporter] = weakref.WeakKeyDictionary()


class BatchCounts(Protocol):
    """What a micro-batching front has counted."""

    @property
    def calls(self) -> int:
        """Calls that were taken in."""

    @property
    def waiting(self) -> int:
        """Those of them that wait to be sent."""

    @property
    def sizes(self) -> Mapping[int, int]:
        """How many batches had at most so many calls, and more than the next smaller bound."""


class Batcher(Protocol):
    """A micro-batching front."""

    def stats(self) -> BatchCounts:
        """What it has done so far."""


class Registration:
    """Metrics of one executor; a context manager that ends with `unregister`.

    They also end when the executor was shut down (at the next scrape, if it is not broken) or is gone.
    """

    def __init__(self, exporter: _Exporter, executor: AmorsizeExecutor, name: str) -> None:
        self._exporter = exporter
        self._executor = weakref.ref(executor)
        self._batchers: dict[str, weakref.ref[Batcher]] = {}
        self.name = name

    def add_batcher(self, batcher: Batcher, name: str) -> None:
        """Tell of a micro-batching front of the executor, too: the sizes of its batches, and the calls that wait.

        Parameters
        ----------
        batcher
            The front. It is not kept alive.
        name
            Value of the label `batcher`.
        """
        self._batchers[name] = weakref.ref(batcher)

    def unregister(self) -> None:
        """End these metrics."""
        self._exporter.drop(self)

    def __enter__(self) -> Registration:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.unregister()

    def _take(self) -> tuple[ExecutorStats | None, dict[str, BatchCounts]]:
        """Present numbers of the executor, None if there is none any more; and of its batchers."""
        executor = self._executor()
        stats = None if executor is None else executor.stats(memory=True)
        if stats is not None and not stats.is_open and not stats.is_broken and not stats.workers:
            stats = None
        batchers = {name: batcher for name, ref in self._batchers.items() if (batcher := ref()) is not None}
        return stats, {name: batcher.stats() for name, batcher in batchers.items()}


def register(
    executor: AmorsizeExecutor, name: str = "default", *, registry: CollectorRegistry = REGISTRY
) -> Registration:
    """Let Prometheus see an executor.

    Parameters
    ----------
    executor
        The executor. It is not kept alive.
    name
        Value of the label `executor`.
    registry
        Where to register. In another process, such as a forked one of gunicorn, it is another executor: register there.

    Returns
    -------
    Registration
        To end it; nothing has to be done with it.

    Raises
    ------
    ValueError
        If an executor of that name is registered there.

    Examples
    --------
    >>> from prometheus_client import CollectorRegistry
    >>> registry = CollectorRegistry()
    >>> with AmorsizeExecutor(2) as executor, register(executor, "images", registry=registry):
    ...     _ = executor.submit(pow, 2, 10).result()
    ...     registry.get_sample_value("amorsize_tasks_total", {"executor": "images", "outcome": "done"})
    1
    """
    with _lock:
        exporter = _exporters.get(registry)
        if exporter is None:
            exporter = _Exporter()
            registry.register(exporter)
            _exporters[registry] = exporter
    return exporter.add(executor, name)


class _Exporter:
    """All executors of one registry: a metric must come from one place."""

    def __init__(self) -> None:
        self._registrations: dict[str, Registration] = {}

    def add(self, executor: AmorsizeExecutor, name: str) -> Registration:
        """Take in an executor."""
        self._taken()  # those that are over go, with their names
        with _lock:
            if name in self._registrations:
                raise ValueError(f"an executor named {name!r} is registered; give this one another name")
            registration = self._registrations[name] = Registration(self, executor, name)
        return registration

    def drop(self, registration: Registration) -> None:
        """Tell no more of it."""
        with _lock:
            if self._registrations.get(registration.name) is registration:
                del self._registrations[registration.name]

    def describe(self) -> list[Metric]:
        """All metrics, without values: for the registry, which looks for names that are taken."""
        return list(_families().values())

    def collect(self) -> Iterator[Metric]:
        """All metrics as they are now."""
        families = _families()
        for name, stats, batchers in self._taken():
            _add(families, name, stats)
            for batcher, counts in batchers.items():
                _add_batches(families, [name, batcher], counts)
        yield from families.values()

    def _taken(self) -> list[tuple[str, ExecutorStats, dict[str, BatchCounts]]]:
        with _lock:
            registrations = list(self._registrations.values())
        taken = []
        for registration in registrations:
            stats, batchers = registration._take()
            if stats is None:
                self.drop(registration)
            else:
                taken.append((registration.name, stats, batchers))
        return taken


def _families() -> dict[str, Any]:
    """The metrics by name, without values."""
    kinds: list[tuple[type[Any], str, str, list[str]]] = [
        (GaugeMetricFamily, "open", "1 if the executor takes work, 0 if it is broken or shuts down", []),
        (GaugeMetricFamily, "workers", "Workers by what they do", ["state"]),
        (GaugeMetricFamily, "workers_limit", "Workers allowed now, as asked for and as memory permits", []),
        (CounterMetricFamily, "workers_started", "Workers started", []),
        (CounterMetricFamily, "workers_left", "Workers ended because they were told to", []),
        (CounterMetricFamily, "workers_died", "Workers ended otherwise", []),
        (GaugeMetricFamily, "workers_memory_bytes", "Resident memory of all workers", []),
        (GaugeMetricFamily, "largest_worker_memory_bytes", "Resident memory of the largest worker", []),
        (GaugeMetricFamily, "blocks_bytes", "Shared memory for arguments", []),
        (CounterMetricFamily, "tasks_submitted", "Calls of submit", []),
        (GaugeMetricFamily, "tasks_queued", "Submitted tasks that wait for a worker", []),
        (GaugeMetricFamily, "tasks_running", "Submitted tasks that are with a worker", []),
        (CounterMetricFamily, "tasks", "Submitted tasks that are settled", ["outcome"]),
        (GaugeMetricFamily, "items_waiting", "Items of maps that wait", []),
        (CounterMetricFamily, "items", "Items of maps that are settled", ["outcome"]),
        (CounterMetricFamily, "items_inline", "Items of maps that ran in the caller", []),
        (HistogramMetricFamily, "task_wait_seconds", "Time of submitted tasks beside running", []),
        (HistogramMetricFamily, "run_seconds", "Time that tasks and items ran in workers", []),
        (CounterMetricFamily, "maps", "Maps that have ended", []),
        (CounterMetricFamily, "maps_predicted_seconds", "What maps were predicted to take", []),
        (CounterMetricFamily, "maps_actual_seconds", "What maps that had a prediction have taken", []),
        (HistogramMetricFamily, "batch_size", "Calls in a batch", ["batcher"]),
        (GaugeMetricFamily, "batch_calls_waiting", "Calls that wait to be sent in a batch", ["batcher"]),
    ]
    return {name: kind(f"amorsize_{name}", text, labels=["executor", *labels]) for kind, name, text, labels in kinds}


def _add(families: dict[str, Any], name: str, stats: ExecutorStats) -> None:
    """The values of one executor."""
    of_workers = [worker.memory_nbytes or 0 for worker in stats.workers]
    values: dict[str, float] = {
        "open": stats.is_open,
        "workers_limit": stats.worker_limit,
        "workers_started": stats.workers_started,
        "workers_left": stats.workers_left,
        "workers_died": stats.workers_died,
        "workers_memory_bytes": sum(of_workers),
        "largest_worker_memory_bytes": max(of_workers, default=0),
        "blocks_bytes": stats.blocks_nbytes,
        "tasks_submitted": stats.tasks_submitted,
        "tasks_queued": stats.tasks_queued,
        "tasks_running": stats.tasks_running,
        "items_waiting": stats.items_waiting,
        "items_inline": stats.items_inline,
        "maps": stats.maps_ended,
        "maps_predicted_seconds": stats.maps_predicted_s,
        "maps_actual_seconds": stats.maps_actual_s,
    }
    for family, value in values.items():
        families[family].add_metric([name], value)
    for state in _STATES:
        families["workers"].add_metric([name, state], stats.n_workers(state))
    outcomes = {"done": stats.tasks_done, "failed": stats.tasks_failed, "cancelled": stats.tasks_cancelled}
    for outcome, n in outcomes.items():
        families["tasks"].add_metric([name, outcome], n)
    for outcome, n in {"done": stats.items_done, "failed": stats.items_failed}.items():
        families["items"].add_metric([name, outcome], n)
    families["task_wait_seconds"].add_metric([name], _buckets(stats.wait), stats.wait.total_s)
    families["run_seconds"].add_metric([name], _buckets(stats.run), stats.run.total_s)


def _buckets(summary: TimeSummary) -> list[tuple[str, float]]:
    bounds = [*(f"{bound:g}" for bound in summary.bounds_s), "+Inf"]
    return [(bound, float(n)) for bound, n in zip(bounds, summary.cumulative(), strict=True)]


def _add_batches(families: dict[str, Any], labels: list[str], counts: BatchCounts) -> None:
    total = 0
    buckets = []
    for bound, n in sorted(counts.sizes.items()):
        total += n
        buckets.append((str(float(bound)), float(total)))
    families["batch_size"].add_metric(labels, [*buckets, ("+Inf", float(total))], counts.calls - counts.waiting)
    families["batch_calls_waiting"].add_metric(labels, counts.waiting)
