"""Tasks and maps for coroutines: nothing here waits in the loop's thread, and none of it has a thread of its own.

The I/O thread tells the loop when there is something (`call_soon_threadsafe`). asyncio is imported here and nowhere
else, when the first coroutine asks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol

from .failures import task_timeout
from .results import Failed, MapJob
from .workers.serialize import name_of

if TYPE_CHECKING:
    from .dispatcher import Dispatcher, TaskFuture
    from .maps import Maps
    from .options import TaskOptions


async def submit(
    dispatcher: Dispatcher,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: TaskOptions | None,
    watch: Callable[[Future[Any]], None],
) -> Any:
    """Result of a task; `watch` is shown its future."""
    if options is not None and options.max_pending is not None and options.blocks:
        future = await _submit_when_there_is_room(dispatcher, fn, args, kwargs, options)
    else:
        future = dispatcher.submit(fn, args, kwargs, options)
    watch(future)
    try:
        return await _result_of(future)
    except asyncio.CancelledError:
        if future.cancel():
            dispatcher.withdraw(future)
        raise


async def _result_of(future: Future[Any]) -> Any:
    """Result of a future. A StopIteration becomes a RuntimeError, as out of any coroutine.

    `asyncio.wrap_future` would wait for ever for a task that raised one, before Python 3.12.
    """
    bell = _Bell()
    future.add_done_callback(lambda _: bell.ring())
    await bell.wait()  # also if it is done: coroutines go on in the order in which their results came
    if future.cancelled():
        raise asyncio.CancelledError
    return future.result()


async def _submit_when_there_is_room(
    dispatcher: Dispatcher,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: TaskOptions,
) -> TaskFuture:
    """Wait until fewer tasks do, and submit this one.

    Raises
    ------
    TaskTimeout
        If its time is over before.
    """
    bell = _Bell()
    is_collected = False
    try:
        left = await _wait_for_room(dispatcher, bell, name_of(fn), options)
        return dispatcher.submit(fn, args, kwargs, left)
    except GeneratorExit:  # with a loop that was closed before its coroutines were done
        is_collected = True
        raise
    finally:
        (dispatcher.abandon_wait if is_collected else dispatcher.stop_waiting)(bell.ring)


async def _wait_for_room(dispatcher: Dispatcher, bell: _Bell, name: str, options: TaskOptions) -> TaskOptions:
    """The options that the task is left with when there is room."""
    begun = time.perf_counter()
    timeout_s = left_s = options.terms.timeout_s
    while dispatcher.wait_for_room(options, bell.ring):
        try:
            await asyncio.wait_for(bell.wait(), left_s)
        except asyncio.TimeoutError:
            assert timeout_s is not None
            raise task_timeout(name, timeout_s, pid=None, was_waiting=True) from None
        left_s = None if timeout_s is None else max(timeout_s - (time.perf_counter() - begun), 0.0)
    # Should another thread take the place now: better one task too many than to hold up the loop.
    return options._replace(terms=options.terms._replace(timeout_s=left_s), max_pending=None)


class Shown(Protocol):
    """A progress bar."""

    def advance(self) -> None:
        """One more result was taken."""

    def close(self) -> None:
        """No more will come."""


class _Bell:
    """Wakes a coroutine from another thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._rung = asyncio.Event()
        self.ring = self._ring  # one object, by which it is known

    def _ring(self) -> bool:
        try:
            self._loop.call_soon_threadsafe(self._rung.set)
        except RuntimeError:  # the loop was closed under its coroutines
            return False
        return True

    async def wait(self) -> None:
        """Wait until it was rung since the last time."""
        await self._rung.wait()
        self._rung.clear()


async def map_results(maps: Maps, job: MapJob | None, shown: Shown | None, kept: object) -> AsyncGenerator[Any, None]:
    """Results of a map (none without one); `shown`: its progress bar; `kept`: stays alive meanwhile."""
    if job is None:
        return
    is_complete = False
    bell = _Bell()
    try:
        while (batch := await _next_results(maps, job, bell)) is not None:
            batch.reverse()  # no result is kept longer than its taker does
            while batch:
                value = batch.pop()
                if type(value) is Failed:
                    raise value.error
                if shown is not None:
                    shown.advance()
                yield value
                del value
            await asyncio.sleep(0)  # results may come as fast as they are taken, and others have their turn
        is_complete = True
    finally:
        if not is_complete:
            maps.abandon(job)
        if shown is not None:
            shown.close()


async def _next_results(maps: Maps, job: MapJob, bell: _Bell) -> list[Any] | None:
    """More results of a map, as `Maps.next_results`."""
    while True:
        batch = maps.ready_results(job)
        if batch is not None:
            return batch
        if job.is_finished():
            if job.cut is not None:
                raise job.cut
            return None
        if job.call_when_ready(bell.ring):
            await bell.wait()
