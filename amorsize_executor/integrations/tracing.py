"""Spans of OpenTelemetry for what an executor does, in its own process and in workers.

A trace goes on in the worker: what a task does there, and what services that it calls do, has the right parent. Which
spans are recorded and where they go is the SDK's affair, in workers as in any other process: it is set up there by an
initializer.
"""

from __future__ import annotations

import functools
import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

try:
    from opentelemetry import context, propagate, trace
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "spans need opentelemetry-api, which is not installed: pip install 'amorsize_executor[metrics]'",
        name="opentelemetry",
    ) from error

from ..executor import AmorsizeExecutor, RunningMap
from ..views import ExecutorView

if TYPE_CHECKING:
    from typing import ParamSpec

    P = ParamSpec("P")
T = TypeVar("T")

_NAME = "amorsize_executor"


def traced(executor: AmorsizeExecutor, *, tracer_provider: Any = None) -> AmorsizeExecutor:
    """A view on an executor that makes spans.

    A `submit` makes a span "submit NAME" that lasts until the future is done. Its child "run NAME", made in the worker,
    lasts as long as the call, and says in `amorsize.wait_s` how long that had to wait. A `map` makes one span "map
    NAME" until its last result was taken, and none for its items, but what they make has it for a parent.

    Parameters
    ----------
    executor
        The executor, or a view on it, such as ``executor.options(timeout=5)``.
    tracer_provider
        Who makes the spans of this process. None: the global one. In workers it is always the global one.

    Returns
    -------
    AmorsizeExecutor
        A view as `AmorsizeExecutor.options` gives: the same workers.

    Examples
    --------
    >>> with AmorsizeExecutor(2) as executor:
    ...     traced(executor).submit(pow, 2, 10).result()
    1024
    """
    return _TracedView(executor, trace.get_tracer(_NAME, tracer_provider=tracer_provider))


class _TracedView(ExecutorView):
    """What `traced` returns."""

    def __init__(self, base: AmorsizeExecutor, tracer: trace.Tracer) -> None:
        super().__init__(base)
        self._tracer = tracer

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        if not callable(fn):
            return super().submit(fn, *args, **kwargs)  # which says so
        call = _TracedCall(fn)
        span = self._tracer.start_span(f"submit {call.name}", kind=trace.SpanKind.PRODUCER)
        try:
            future: Future[T] = super().submit(call, _Sent(_carrier(span), time.time_ns()), *args, **kwargs)
        except BaseException as error:
            _fail(span, error)
            span.end()
            raise
        future.add_done_callback(functools.partial(_end, span))
        return future

    def start_map(self, fn: Callable[..., Any], *iterables: Iterable[Any], **options: Any) -> RunningMap:
        if not callable(fn):
            return super().start_map(fn, *iterables, **options)  # which says so
        name = getattr(fn, "__qualname__", type(fn).__qualname__)
        span = self._tracer.start_span(f"map {name}")
        try:
            running = super().start_map(_TracedItem(fn, _carrier(span)), *iterables, **options)
        except BaseException as error:
            _fail(span, error)
            span.end()
            raise
        return running._replace(results=_TracedResults(running, span))

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        ordered: bool = True,
        progress: bool | Callable[[int, int], object] | None = None,
    ) -> Iterator[T]:
        if not iterables:
            return super().map(fn)  # which says so
        return self.start_map(
            fn,
            *iterables,
            timeout=timeout,
            chunksize=chunksize,
            buffersize=buffersize,
            ordered=ordered,
            progress=progress,
        ).results


class _Sent(NamedTuple):
    """What goes with a call: its place in the trace, and when it was submitted, in ns since the epoch."""

    carrier: dict[str, str]
    at_ns: int


class _Traced:
    """A function that runs within a trace; for the cost model it is the function itself."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        for attribute in ("__module__", "__qualname__", "__code__"):  # by which it is known
            if hasattr(fn, attribute):
                setattr(self, attribute, getattr(fn, attribute))
        self.fn = fn
        self.name: str = getattr(fn, "__qualname__", type(fn).__qualname__)


class _TracedCall(_Traced):
    """One of `submit`."""

    def __call__(self, sent: _Sent, /, *args: Any, **kwargs: Any) -> Any:
        wait_s = max(time.time_ns() - sent.at_ns, 0) * 1e-9
        with trace.get_tracer(_NAME).start_as_current_span(
            f"run {self.name}",
            propagate.extract(sent.carrier),
            kind=trace.SpanKind.CONSUMER,
            attributes={"amorsize.wait_s": wait_s, "process.pid": os.getpid()},
        ):
            return self.fn(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _TracedCall, (self.fn,)


class _TracedItem(_Traced):
    """One of `map`."""

    def __init__(self, fn: Callable[..., Any], carrier: dict[str, str]) -> None:
        super().__init__(fn)
        self._carrier = carrier
        self._context = propagate.extract(carrier)

    def __call__(self, *args: Any) -> Any:
        token = context.attach(self._context)
        try:
            return self.fn(*args)
        finally:
            context.detach(token)

    def __reduce__(self) -> tuple[Any, ...]:
        return _TracedItem, (self.fn, self._carrier)


class _TracedResults(Iterator[Any]):
    """Results of a map; its span ends with the last, an error, or when they are dropped."""

    def __init__(self, running: RunningMap, span: trace.Span) -> None:
        self._running = running
        self._span = span
        self._end = weakref.finalize(self, span.end)  # once
        self._end.atexit = False

    def __next__(self) -> Any:
        try:
            return next(self._running.results)
        except StopIteration:
            self._tell_plan()
            self._end()
            raise
        except BaseException as error:
            _fail(self._span, error)
            self._end()
            raise

    def close(self) -> None:
        """Give no more results, and cancel what has not started."""
        close = getattr(self._running.results, "close", None)
        if close is not None:
            close()
        self._end()

    def _tell_plan(self) -> None:
        plan = self._running.plan
        if plan is None:
            return
        self._span.set_attribute("amorsize.n_items", plan.n_items)
        self._span.set_attribute("amorsize.n_inline", plan.n_inline)
        self._span.set_attribute("amorsize.n_workers", plan.n_workers)
        if plan.predicted_s is not None:
            self._span.set_attribute("amorsize.predicted_s", plan.predicted_s)


def _carrier(span: trace.Span) -> dict[str, str]:
    """What another process needs to go on with a span's trace."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier, trace.set_span_in_context(span))
    return carrier


def _fail(span: trace.Span, error: BaseException) -> None:
    span.record_exception(error)
    span.set_status(trace.Status(trace.StatusCode.ERROR, f"{type(error).__name__}: {error}"))


def _end(span: trace.Span, future: Future[Any]) -> None:
    """A submitted call is done."""
    if future.cancelled():
        span.set_attribute("amorsize.cancelled", True)
    else:
        error = future.exception()
        if error is not None:
            _fail(span, error)
    span.end()
