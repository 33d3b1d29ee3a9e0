"""Single calls from many threads and coroutines, put together into calls of a function over lists.

    callers                          I/O thread                      workers
    submit(item) --> policy (lock)
        |  wait for others
        |  a batch: submit --------------------------------------->  fn([item, item, ...])
        |                            policy (lock)  <--------------  results
        |                               the next batch  ---------->
      future  <-- one result each ------'

`decisions.batching` decides when calls are sent and how many; here is what carries that out. A batch is a task of the
executor, so priorities, time limits and deaths are the executor's business. What happens to a batch as a whole:

| the batch | its calls |
|---|---|
| gives one result for each | get them |
| gives another number of results | all fail with `ValueError`; to repeat it would not help |
| raises, or cannot be pickled | if it is one call, that fails; else both halves are batches again |
| loses its worker | as `retries` says; the last time one by one, so that one that ends workers does so alone |
| is not done in time | fail with `TaskTimeout`, each when its own time is over |

A call is settled exactly once, by whoever takes it out of `_Core.waiting` or has it in a batch. Each front that has
calls is in `Dispatcher.fronts`, which keeps the I/O thread, lets it submit until all are settled, and rings when time
matters.
"""

from __future__ import annotations

import copy
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future, InvalidStateError
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from .decisions.batching import BatchPolicy
from .decisions.terms import Terms
from .failures import batch_timeout, queue_full
from .options import TaskOptions
from .workers.batches import BatchCall, BatchResult
from .workers.serialize import name_of

if TYPE_CHECKING:
    from types import TracebackType

    from .dispatcher import Dispatcher

T = TypeVar("T")
R = TypeVar("R")


class BatchStats(NamedTuple):
    """What a `Batcher` has done so far, and what it goes by.

    Attributes
    ----------
    calls
        Calls that were taken in.
    batches
        Batches that were sent, parts of split ones included.
    waiting
        Calls that wait to be sent.
    running
        Calls in batches that are with the executor.
    sizes
        Batches by size: how many had at most 1, 2, 4, 8, ... calls, and more than half as many.
    fixed_s, item_s
        a and b of t(n) = a + b n, what a batch of n calls takes, in seconds; 0 before one was measured.
    arrival_rate
        Calls a second, lately.
    """

    calls: int
    batches: int
    waiting: int
    running: int
    sizes: dict[int, int]
    fixed_s: float
    item_s: float
    arrival_rate: float


class _Call(Future[Any]):
    """One call: its argument, and its future."""

    def __init__(self, core: _Core, item: Any, now: float, timeout_s: float | None) -> None:
        super().__init__()
        self.core = core
        self.item = item
        self.arrived_at = now
        self.due_at = None if timeout_s is None else now + timeout_s
        self.admitted: threading.Event | None = None  # set when a caller need not wait for room any more

    def cancel(self) -> bool:
        is_cancelled = super().cancel()
        if is_cancelled:
            self.core.forget(self)
        return is_cancelled

    def settle(self, value: Any, error: BaseException | None = None) -> None:
        """Give the result, unless the call was settled before."""
        self.item = None
        try:
            if error is None:
                self.set_result(value)
            else:
                self.set_exception(error)
        except InvalidStateError:
            pass
        if self.admitted is not None:
            self.admitted.set()


class Batcher(Generic[T, R]):
    """What `AmorsizeExecutor.batch` returns: call it with one item, and it is run together with others.

    It may be used by any number of threads and coroutines. A context manager: leaving the block is `close`.
    """

    def __init__(
        self,
        own: Callable[[], Dispatcher],
        fn: Callable[[list[T]], Iterable[R]],
        options: TaskOptions | None,
        *,
        max_batch_size: int | None,
        max_delay_s: float | None,
        target_s: float | None,
    ) -> None:
        self._own = own  # a bound method: as long as there is a front, the executor is not collected
        self._call = BatchCall(fn, name_of(fn))
        self._options = options
        self._make_policy = partial(BatchPolicy, max_batch_size, max_delay_s, target_s)
        self._is_closed = False
        self._core = _Core(own(), self._call, options, self._make_policy())

    def _enter(self, item: T) -> _Call:
        dispatcher = self._own()
        dispatcher.check_open()
        if self._is_closed:
            raise RuntimeError(f"cannot take calls of {self._call.__qualname__} after close()")
        if self._core.dispatcher is not dispatcher:  # in the child of a fork: the calls are the parent's
            self._core = _Core(dispatcher, self._call, self._options, self._make_policy())
        return self._core.take_in(item)

    def submit(self, item: T) -> Future[R]:
        """Run the function over a batch that has this item.

        Parameters
        ----------
        item
            What the function's list is to contain.

        Returns
        -------
        Future
            Of this item's result. Cancelling it takes the item out of the batch that it waits for.

        Raises
        ------
        QueueFull
            If as many calls as `max_pending` of the view wait, and the view is not to wait for room.
        BrokenProcessPool
            If workers cannot be started.
        RuntimeError
            After `close`, or a shutdown of the executor.
        """
        call = self._enter(item)
        if call.admitted is not None and not self._core.dispatcher.is_io_thread:
            try:
                call.admitted.wait()
            except BaseException:  # Ctrl-C: nobody will have the future
                call.cancel()
                raise
        return call

    def __call__(self, item: T) -> R:
        """Wait for the result of an item; errors are those of `submit` and of its future."""
        return self.submit(item).result()

    async def asubmit(self, item: T) -> R:
        """Wait for the result of an item in a coroutine, and never hold up its loop.

        If the coroutine is cancelled, the item is taken out of the batch that it waits for; if it runs, its result is
        dropped. Errors are those of `submit` and of its future.

        Parameters
        ----------
        item
            As for `submit`.

        Returns
        -------
        R
            The function's result for this item.
        """
        import asyncio

        result: R = await asyncio.wrap_future(self._enter(item))
        return result

    def close(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; the executor stays.

        Parameters
        ----------
        wait
            Whether to return only when all calls are settled.
        cancel_futures
            Whether to cancel the calls that were not sent yet.
        """
        self._is_closed = True
        self._core.end(cancel_futures=cancel_futures)
        if wait and not self._core.dispatcher.is_io_thread:
            self._core.wait()

    def __enter__(self) -> Batcher[T, R]:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is not None and issubclass(exc_type, KeyboardInterrupt):
            self.close(wait=False, cancel_futures=True)
        else:
            self.close()

    def stats(self) -> BatchStats:
        """What it has done so far, and what it goes by.

        Returns
        -------
        BatchStats
            A snapshot that nothing changes any more.
        """
        return self._core.stats()


class _Sending:
    """A batch on its way.

    Attributes
    ----------
    calls
        Its calls, all running.
    retries
        How often they may run again after deaths.
    begun
        When it was submitted.
    """

    __slots__ = ("begun", "calls", "retries")

    def __init__(self, calls: list[_Call], retries: int) -> None:
        self.calls = calls
        self.retries = retries
        self.begun = 0.0


class _Core:
    """The calls of a front, in one process. Any thread; everything but the constants is guarded by ``_lock``.

    The dispatcher's lock may be taken under this one, never the other way round. No future is settled, nothing pickled
    and nothing submitted under it.
    """

    def __init__(
        self, dispatcher: Dispatcher, call: BatchCall, options: TaskOptions | None, policy: BatchPolicy
    ) -> None:
        self.dispatcher = dispatcher
        self.alarm_at: float | None = None
        self._call = call
        self._terms = Terms() if options is None else options.terms
        self._max_pending = None if options is None else options.max_pending
        self._blocks = options is None or options.blocks
        retries = self._terms.retries
        self._retries = dispatcher.settings.retries if retries is None else retries
        self._policy = policy
        self._lock = threading.Lock()
        self._all_settled = threading.Condition(self._lock)
        self._waiting: OrderedDict[_Call, None] = OrderedDict()  # in the order of arrival
        self._blocked: OrderedDict[_Call, None] = OrderedDict()  # those that wait for room among them
        self._due: deque[_Call] = deque()  # by deadline, with calls that are settled; all have the same time limit
        self._hold_until: float | None = None  # when waiting calls are sent in any case
        self._n_unsettled = 0
        self._n_busy = self._n_running = 0  # batches with the executor, and the calls in them
        self._n_calls = 0
        self._is_ending = False
        self._sizes: dict[int, int] = {}

    # ------------------------------------------------------------------ calls come

    def take_in(self, item: Any) -> _Call:
        """A call has come.

        Raises
        ------
        QueueFull, RuntimeError
            If it is not taken.
        """
        self.dispatcher.get_ready()
        now = time.perf_counter()
        call = _Call(self, item, now, self._terms.timeout_s)
        with self._lock:
            if self._is_ending:
                self.dispatcher.check_open()
                raise RuntimeError("cannot take calls after close()")
            is_full = self._max_pending is not None and len(self._waiting) >= self._max_pending
            if is_full and not self._blocks:
                raise queue_full(self._max_pending)
            if not self._n_unsettled:
                self.dispatcher.enlist(self)
            self._n_unsettled += 1
            self._n_calls += 1
            self._policy.arrived(now)
            if is_full:
                call.admitted = threading.Event()
                self._blocked[call] = None
            else:
                self._waiting[call] = None
            if call.due_at is not None:
                self._due.append(call)
            batches, wakes = self._decide(now)
        self._carry_out(batches, wakes)
        return call

    def forget(self, call: _Call) -> None:
        """A call was cancelled."""
        with self._lock:
            if call in self._waiting:
                del self._waiting[call]
                self._admit()
            elif call in self._blocked:
                del self._blocked[call]
            else:
                return  # it is being sent: it is left out there
            self._settled(1)
        call.item = None
        if call.admitted is not None:
            call.admitted.set()

    # ------------------------------------------------------------------ batches go; under the lock

    def _decide(self, now: float) -> tuple[list[_Sending], bool]:
        """Batches to send now, and whether the I/O thread must be told of an earlier alarm."""
        batches: list[_Sending] = []
        while self._waiting:
            n_workers = max(self.dispatcher.scheduler.worker_limit, 1)
            first = next(iter(self._waiting))
            decision = self._policy.decide(
                len(self._waiting), first.arrived_at, self._n_busy, self._n_running, n_workers, now
            )
            self._hold_until = decision.until
            if not decision.size:
                break
            batches += self._take(decision.size)
        else:
            self._hold_until = None
        return batches, self._set_alarm()

    def _take(self, size: int) -> list[_Sending]:
        """The next batch: the calls that came first and were not cancelled; none if all were."""
        batch: list[_Call] = []
        while self._waiting and len(batch) < size:
            call, _ = self._waiting.popitem(last=False)
            if call.set_running_or_notify_cancel():
                batch.append(call)
            else:
                self._settled(1)
        self._admit()
        if not batch:
            return []
        self._note(batch)
        return [_Sending(batch, self._retries)]

    def _note(self, batch: list[_Call]) -> None:
        """A batch goes to the executor."""
        self._n_busy += 1
        self._n_running += len(batch)
        bound = 1 << (len(batch) - 1).bit_length()
        self._sizes[bound] = self._sizes.get(bound, 0) + 1

    def _admit(self) -> None:
        """Let calls in that waited for room."""
        assert self._max_pending is not None or not self._blocked
        while self._blocked and (self._is_ending or len(self._waiting) < (self._max_pending or 0)):
            call, _ = self._blocked.popitem(last=False)
            self._waiting[call] = None
            if call.admitted is not None:
                call.admitted.set()

    def _set_alarm(self) -> bool:
        """Have the I/O thread ring when time matters; whether it must be woken for that."""
        while self._due and self._due[0].done():
            self._due.popleft()
        alarm_at = self._hold_until
        if self._due:
            due_at = self._due[0].due_at
            assert due_at is not None
            alarm_at = due_at if alarm_at is None else min(alarm_at, due_at)
        is_earlier = alarm_at is not None and (self.alarm_at is None or alarm_at < self.alarm_at)
        self.alarm_at = alarm_at
        return is_earlier

    def _settled(self, n_calls: int) -> None:
        self._n_unsettled -= n_calls
        if n_calls and not self._n_unsettled:
            self.alarm_at = None
            self.dispatcher.dismiss(self)
            self._all_settled.notify_all()

    # ------------------------------------------------------------------ without the lock

    def _carry_out(self, sendings: list[_Sending], wakes: bool) -> None:
        """Submit batches, and those that they lead to if they fail at once: in a loop, since these may be many."""
        if wakes:
            self.dispatcher.wake()
        todo = deque(sendings)
        while todo:
            sending = todo.popleft()
            future = self._submit(sending)
            if future is None:
                continue
            if future.done():
                todo.extend(self._done(sending, future))
            else:
                future.add_done_callback(partial(self._come_back, sending))

    def _submit(self, sending: _Sending) -> Future[BatchResult] | None:
        """Submit a batch; None if the executor takes nothing any more."""
        batch, retries = sending.calls, sending.retries
        sending.begun = now = time.perf_counter()
        timeout_s = None
        if batch[-1].due_at is not None:  # its worker is ended when no call of it has time left
            timeout_s = max(batch[-1].due_at - now, 0.0)
        n_reruns = retries if len(batch) == 1 else max(retries - 1, 0)
        options = TaskOptions(Terms(self._terms.priority, n_reruns, timeout_s), None, True, is_owed=True)
        try:
            return self.dispatcher.submit(self._call, ([call.item for call in batch],), {}, options)
        except BaseException as error:
            with self._lock:
                self._n_busy -= 1
                self._n_running -= len(batch)
            self._tell(batch, error)
            with self._lock:
                self._settled(len(batch))
            if not isinstance(error, Exception):
                raise
            return None

    def _come_back(self, sending: _Sending, future: Future[BatchResult]) -> None:
        """A batch has come back: first give workers what is next, then callers their results."""
        more, settle = self._judge(sending, future)
        try:
            self._carry_out(more, False)
        finally:
            settle()

    def _done(self, sending: _Sending, future: Future[BatchResult]) -> list[_Sending]:
        """A batch failed at once; returns those to send next."""
        more, settle = self._judge(sending, future)
        settle()
        return more

    def _judge(self, sending: _Sending, future: Future[BatchResult]) -> tuple[list[_Sending], Callable[[], None]]:
        """The batches to send after one, and what settles its calls."""
        batch = sending.calls
        now = time.perf_counter()
        error: BaseException | None = None
        values: list[Any] | None = None
        parts: list[_Sending] = []
        try:
            result = future.result()
            if result.values is None:
                error = ValueError(result.problem)
            else:
                values = list(result.values)
        except BaseException as raised:  # the task's
            error = raised.with_traceback(None)
            parts = self._parts(sending, error)
        n_kept = sum([len(part.calls) for part in parts])
        with self._lock:
            self._n_busy -= 1
            self._n_running -= len(batch)
            for part in parts:
                self._note(part.calls)
            if values is not None:
                self._policy.done(len(batch), result.run_s, now - sending.begun)
            more, wakes = self._decide(now)
        if wakes:
            self.dispatcher.wake()

        def settle() -> None:
            if values is not None:
                for call, value in zip(batch, values, strict=True):
                    call.settle(value)
            elif error is not None and not parts:
                self._tell(batch, error)
            with self._lock:
                self._settled(len(batch) - n_kept)

        return parts + more, settle

    def _parts(self, sending: _Sending, error: BaseException) -> list[_Sending]:
        """The batches that are made of one that failed."""
        from .errors import TaskTimeout, WorkerDied

        batch, retries = sending.calls, sending.retries
        if len(batch) == 1 or isinstance(error, (TaskTimeout, CancelledError)):
            return []
        live = [call for call in batch if not call.done()]  # others were late
        if isinstance(error, WorkerDied):
            return [_Sending([call], 0) for call in live] if retries else []
        if self.dispatcher.is_broken:
            return []
        half = (len(live) + 1) // 2
        return [_Sending(part, retries) for part in (live[:half], live[half:]) if part]

    def _tell(self, batch: list[_Call], error: BaseException) -> None:
        """Fail calls, each with an exception of its own: their tracebacks grow where they are raised."""
        for call in batch:
            call.settle(None, error if call is batch[-1] else _copied(error))

    def ring(self) -> None:
        """Time has come: to send calls that were held up, or to give up those that are late."""
        now = time.perf_counter()
        late: list[tuple[_Call, bool]] = []
        with self._lock:
            while self._due and (self._due[0].due_at or 0.0) <= now:
                call = self._due.popleft()
                if call.done():
                    continue
                is_waiting = call in self._waiting or call in self._blocked
                self._waiting.pop(call, None)
                self._blocked.pop(call, None)
                late.append((call, is_waiting))
            self._admit()
            batches, wakes = self._decide(now)
        self._carry_out(batches, wakes)
        for call, is_waiting in late:
            self._give_up(call, is_waiting)

    def _give_up(self, call: _Call, was_waiting: bool) -> None:
        """A call's time is over."""
        assert self._terms.timeout_s is not None
        error = batch_timeout(self._call.__qualname__, self._terms.timeout_s, was_waiting=was_waiting)
        if not was_waiting:  # its batch goes on
            call.settle(None, error)
            return
        if call.set_running_or_notify_cancel():
            call.settle(None, error)
        with self._lock:
            self._settled(1)

    # ------------------------------------------------------------------ ends

    def end(self, *, cancel_futures: bool) -> None:
        """Take no more calls, and send those that came or cancel them."""
        batches: list[_Sending] = []
        cancelled: list[_Call] = []
        with self._lock:
            self._is_ending = True
            if cancel_futures:
                cancelled = [*self._waiting, *self._blocked]
            else:
                self._admit()
                n_workers = max(self.dispatcher.scheduler.worker_limit, 1)
                while self._waiting:
                    batches += self._take(self._policy.size(len(self._waiting), self._n_running, n_workers))
                self._hold_until = None
        self._carry_out(batches, False)
        for call in cancelled:
            call.cancel()

    def wait(self) -> None:
        """Wait until all calls are settled."""
        with self._lock:
            while self._n_unsettled:
                self._all_settled.wait()

    def stats(self) -> BatchStats:
        """A snapshot."""
        with self._lock:
            cost = self._policy.cost
            fixed_s, item_s = cost.line() if cost.is_known else (0.0, 0.0)
            return BatchStats(
                self._n_calls,
                sum(self._sizes.values()),
                len(self._waiting) + len(self._blocked),
                self._n_running,
                dict(sorted(self._sizes.items())),
                fixed_s,
                item_s,
                self._policy.rate,
            )


def _copied(error: BaseException) -> BaseException:
    try:
        found = copy.copy(error)
    except Exception:  # one that cannot be copied is shared
        return error
    if type(found) is not type(error):
        return error
    found.__cause__ = error.__cause__
    return found
