"""Between the scheduler, which decides, and the worker pool, which does: the executor's engine room.

    caller's threads                        I/O thread                        workers
    submit, map --> scheduler (lock) --> actions
        |  SendChunk: encode, post ---------------------------------------->  run
        |  StartWorker, ...: queue --> wake --> start, kill, retire
        |                                wait  <--------------------------- results
        |                                scheduler (lock) --> actions
      future, map iterator  <-- resolve --'

Every event goes to the scheduler under one lock, held for pure computation only; the actions that it returns are carried
out after the lock is released. Chunks are encoded and sent by the thread that got the action, so a task submitted to
an idle worker is on its way before `submit` returns; processes are started and ended by the I/O thread alone.

The I/O thread starts with the first need for it and ends when the executor is shut down and drained. It is not a daemon:
the interpreter waits for it, and it finishes what was submitted, as the standard pools do.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, CancelledError, Future
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from . import machine
from .decisions import planner
from .decisions.cost_model import CostModel
from .decisions.planner import Plan, PoolState
from .decisions.scheduler import (
    Action,
    BreakPool,
    Chunk,
    FailItems,
    KillWorker,
    RetireWorker,
    Scheduler,
    SendChunk,
    StartWorker,
)
from .inline import InlineBatch, copy_items, copy_values
from .results import Failed, MapJob
from .workers import blocks, protocol, serialize
from .workers.channel import LOST, Frame, make_frame
from .workers.functions import Function, FunctionTable
from .workers.pool import Ended, Message, WorkerPool
from .workers.process import add_note, not_picklable

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

#: While maps are computed by their callers, the I/O thread looks after them this often, in seconds ...
_WATCH_S = 5e-3
#: ... and for so many looks after the last one is gone: a wake-up costs more than a look.
_WATCH_IDLE_LOOKS = 10
#: A worker told to leave must be gone after this, in seconds; then it is killed.
_RETIRE_GRACE_S = 30.0
#: Memory in use is looked up at most this often, in seconds.
_MEMORY_PERIOD_S = 0.25
#: A map with a buffer reads on when about this part of its buffer was taken.
_BUFFER_PARTS = 4
#: Longest wait of the I/O thread, in seconds: a selector takes no infinity.
_LONGEST_WAIT_S = 86_400.0
#: Part of the memory limit that stays free for what was not foreseen.
_MEMORY_RESERVE = 0.05


class Settings:
    """What the user asked for, checked by the executor."""

    def __init__(
        self,
        *,
        max_workers: int,
        context: BaseContext | str | None,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        max_tasks_per_child: int | None,
        min_workers: int,
        idle_timeout_s: float | None,
        memory_limit: int | None,
        inline: Literal["auto", "never"],
        retries: int,
        env: dict[str, str],
        cost_model: CostModel,
        n_cpus: int,
    ) -> None:
        self.n_cpus = n_cpus
        self.max_workers = max_workers
        self.context = context
        self.initializer = initializer
        self.initargs = initargs
        self.max_tasks_per_child = max_tasks_per_child
        self.min_workers = min_workers
        self.idle_timeout_s = idle_timeout_s
        self.memory_limit = memory_limit
        self.inline = inline
        self.retries = retries
        self.env = env
        self.cost_model = cost_model


class _Task:
    """A submitted call that is not settled."""

    __slots__ = ("args", "block_fd", "entry", "function", "future", "has_begun")

    def __init__(self, future: Future[Any], function: Function) -> None:
        self.future = future
        self.function = function
        self.args: tuple[Any, ...] | None = None  # scalars, sent as they are
        self.entry: serialize.Entry | None = None  # else: pickled when submitted
        self.block_fd = -1  # what `entry` refers to; owned by this task
        self.has_begun = False  # the future is running

    def close(self) -> None:
        if self.block_fd >= 0:
            os.close(self.block_fd)
            self.block_fd = -1


class Dispatcher:
    """Owns the scheduler, the pool, the I/O thread, and every task and map that is not settled."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.functions = FunctionTable()
        self.cost_model = settings.cost_model
        # Guards the scheduler and the attributes below; held for computation only, never over pickling, sending,
        # user code, callbacks or waiting.
        self._lock = threading.Lock()
        self.scheduler = Scheduler(
            settings.cost_model,
            max_workers=settings.max_workers,
            min_workers=settings.min_workers,
            idle_timeout_s=settings.idle_timeout_s,
            max_tasks_per_child=settings.max_tasks_per_child,
            retries=settings.retries,
        )
        self._tasks: dict[int, _Task] = {}
        self._jobs: dict[int, MapJob] = {}
        self._last_id = 0
        self._broken: BaseException | None = None
        self._is_shut_down = False
        self._thread: threading.Thread | None = None
        self._pool: WorkerPool | None = None
        self._to_do: deque[Action] = deque()  # for the I/O thread
        self._dropped: deque[MapJob] = deque()  # maps whose iterators are gone, for the I/O thread
        self._starting = threading.Lock()  # held while the I/O thread is started
        self._is_watching = False
        # Owned by the I/O thread.
        self._idle_looks = 0
        self._retiring: dict[int, float] = {}
        self._peak_nbytes: dict[int, int] = {}
        self._memory_checked_at = 0.0
        self._memory_room = 0.0  # bytes for all workers together, as last looked up
        # Set by a collected executor or the end of the interpreter, without a lock.
        self.is_abandoned = False
        self.kill_at_exit = False
        self.is_foreign = False  # in the child of a fork: belongs to the parent
        self.n_cpus = settings.n_cpus
        self.last_plan: Plan | None = None

    # ------------------------------------------------------------------ submit

    def check_open(self) -> None:
        """Raise what a submit to this executor raises, if anything."""
        if self._broken is not None:
            from concurrent.futures.process import BrokenProcessPool

            raise BrokenProcessPool(str(self._broken)) from self._broken
        if self._is_shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if _is_interpreter_ending:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    def submit(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[Any]:
        """Run a call in a worker."""
        self.check_open()
        future: Future[Any] = Future()
        try:
            task = _Task(future, self.functions.register(fn))
            _ = task.function.fn_id  # pickles a new function now, so that an error is this future's
            if not kwargs and serialize.is_scalar(args):
                task.args = args
            else:
                self._encode_call(task, fn, args, kwargs)
        except Exception as error:  # told through the future, as the standard pool does
            future.set_running_or_notify_cancel()
            future.set_exception(error)
            return future
        try:
            if self._thread is None:
                self._ensure_thread()
            if self._pool is not None and self._pool.context is None:
                self._pool.prepare()  # here and not in the I/O thread: the interpreter may end before that is done
        except BaseException:
            task.close()
            raise
        with self._lock:
            if self._is_shut_down or self._broken is not None:
                task.close()
                actions = None
            else:
                self._last_id += 1
                self._tasks[self._last_id] = task
                actions = self.scheduler.submit(
                    self._last_id, task.function.key, time.perf_counter(), is_alone=task.block_fd >= 0
                )
        if actions is None:
            self.check_open()
        elif actions:
            self._execute(actions)
        return future

    def _encode_call(self, task: _Task, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        block = blocks.BlockWriter()
        try:
            task.entry = serialize.encode((args, kwargs), block)
            task.block_fd = -1 if (fd := block.detach()) is None else fd
        except OSError:
            raise
        except Exception as error:
            raise not_picklable(f"an argument of {serialize.name_of(fn)} ({_culprit(args, kwargs)})", error) from (
                error.__cause__
            )
        finally:
            block.close()

    # ------------------------------------------------------------------ map

    def open_map(
        self,
        fn: Callable[..., Any],
        items: list[Any],
        *,
        is_star: bool,
        source: Any,
        chunksize: int | None,
        is_ordered: bool,
        constraint: str,
    ) -> MapJob:
        """Take in a map; `results` of it gives what comes out.

        Parameters
        ----------
        fn, items
            The function and the arguments read so far.
        is_star
            Whether each item is a tuple of arguments.
        source
            Iterator of further items, or None.
        chunksize
            Fixed by the caller, or None.
        is_ordered
            Whether results come in the order of the items.
        constraint
            Why the caller may not run items; empty if it may.
        """
        self.check_open()
        function = self.functions.register(fn)
        may_inline = not constraint
        self._ensure_thread()
        with self._lock:
            if self._is_shut_down:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._last_id += 1
            job = MapJob(
                self._last_id,
                function,
                items,
                is_star=is_star,
                source=source,
                chunksize=chunksize,
                is_ordered=is_ordered,
                may_inline=may_inline,
                constraint=constraint,
            )
            self._jobs[job.job_id] = job
            self.scheduler.add_map(job.job_id, function.key, len(items), chunksize=chunksize, closed=source is None)
            self._plan(job)
        assert job.plan is not None
        if not job.plan.is_serial:
            self.release(job, job.plan.n_workers)
        elif not self._is_watching:
            self._is_watching = True
            self._wake()
        return job

    def _plan(self, job: MapJob) -> Plan:
        """Plan what remains of a map; under the lock."""
        waiting = self.scheduler.n_waiting(job.job_id)
        plan = planner.plan_map(
            job.function.name,
            waiting if job.plan is not None else job.n_items,
            self.cost_model.lookup(job.function.key),
            self._pool_state(),
            inline=job.may_inline,
            chunksize=job.chunksize,
            constraint=job.constraint,
        )
        if job.plan is not None and waiting < job.n_items and plan.item_s is not None:
            # The plan of the rest tells the whole: what is done already was done at the price now known.
            done_s = time.perf_counter() - job.started_at
            plan = plan._replace(
                n_items=job.n_items,
                serial_s=job.n_items * plan.item_s,
                predicted_s=done_s + (plan.predicted_s or 0.0),
            )
        job.plan = self.last_plan = plan
        return plan

    def _pool_state(self) -> PoolState:
        return PoolState(
            self.scheduler.n_ready, self.scheduler.worker_limit, self.n_cpus, self.cost_model.worker_start_s
        )

    def release(self, job: MapJob, n_workers: int) -> None:
        """Let workers take items of a map."""
        self._ensure_thread()
        with self._lock:
            job.is_released = True
            actions = self.scheduler.release_map(job.job_id, n_workers, time.perf_counter())
        self._execute(actions)

    def next_results(self, job: MapJob, until: float | None) -> list[Any] | None:
        """More results of a map, in order; None when there will be none.

        Called by the thread that iterates. This is the only place where items run in the caller's thread.
        """
        while True:
            if job.source is None:
                batch = job.take()
                if batch is not None and job.n_out >= job.n_items and job.cut is None:
                    self._finish(job)
            else:
                # All results handed out so far were taken, and one of the next ones will be.
                n_free = job.n_out + 1 + job.buffersize - job.n_items
                batch = job.take(max(job.buffersize // _BUFFER_PARTS, 1))
                if batch is not None:
                    self._read_more(job, n_free)
            if batch is not None:
                return batch
            if job.is_finished():
                if job.cut is not None:
                    raise job.cut
                return None
            if job.may_inline and self._run_inline(job):
                continue
            job.wait(until)

    def _read_more(self, job: MapJob, most: int) -> None:
        """Read up to `most` items, so that the buffer stays full; in the caller's thread."""
        source = job.source
        if source is None:
            return  # closed by a shutdown in between
        new = list(islice(source, most))
        closed = len(new) < most
        with self._lock:
            if self._is_shut_down:
                return  # too late for these
            n_items = job.extend(new)
            if closed:
                job.source = None
            actions = self.scheduler.extend_map(job.job_id, n_items, closed, time.perf_counter())
        self._execute(actions)

    def _run_inline(self, job: MapJob) -> bool:
        """Run some items in this thread if that is best; whether it did."""
        with self._lock:
            taken = self._take_inline(job)
        if isinstance(taken, int):
            self.release(job, taken)
            return True
        if not taken:
            return False
        name, function = job.function.name, job.function
        items, error = copy_items(job.take_items(taken), taken.start, name)
        batch = job.batch = InlineBatch(taken.start, items, function.local(), job.is_star)
        try:
            problem = batch.run()
        finally:
            job.batch = None
            job.visited_at = time.perf_counter()
        values = batch.values
        ran = len(values) + (problem is not None)
        if ran:
            elapsed = job.visited_at - batch.started_at
            job.inline_s += elapsed
            self.cost_model.observe(function.key, ran, elapsed)
        if problem is not None or ran < len(items):
            error = problem
        error = copy_values(values, taken.start, name) or error
        if error is not None:
            values.append(Failed(error))
        n = len(values)
        with self._lock:
            if error is None:
                self.scheduler.return_inline(job.job_id, batch.left_over(n))
            self.scheduler.inline_done(job.job_id, n)
        job.n_inline += n
        job.settle(range(taken.start, taken.start + n), values, failed=error is not None)
        return True

    def _take_inline(self, job: MapJob) -> range | int:
        """Items for the caller to run now, or the number of workers to hand the map to; under the lock."""
        scheduler = self.scheduler
        waiting = scheduler.n_waiting(job.job_id)
        if not waiting:
            return range(0)
        item_s = self.cost_model.mean_s(job.function.key)
        plan = job.plan
        assert plan is not None
        if not job.is_released:
            planned = plan.item_s
            if item_s is None or (planned is None and job.inline_s < planner.SAMPLE_S):
                pass  # more of a sample first
            elif planned is None or not 0.8 * planned <= item_s <= 1.25 * planned:
                plan = self._plan(job)
                if not plan.is_serial:
                    return plan.n_workers
        else:
            asked_at = scheduler.asked_at(job.job_id)
            waited = time.perf_counter() - (asked_at if asked_at is not None else 0.0)
            if not planner.inline_pays(
                waiting,
                item_s,
                scheduler.n_at_hand(job.job_id),
                min(plan.n_workers or 1, scheduler.worker_limit),
                waited,
                self.cost_model.worker_start_s,
            ):
                return range(0)
        is_known = plan.item_s is not None
        return scheduler.take_inline(job.job_id, planner.inline_batch(waiting, item_s, job.n_inline, is_known))

    def abandon(self, job: MapJob) -> None:
        """Nobody will ask for more results of a map.

        The garbage collector may call this at any point of any thread, so it takes no lock: the I/O thread does the rest.
        """
        self._dropped.append(job)
        if self._pool is not None:
            self._pool.nudge()

    def _forget_dropped(self) -> None:
        """Give up maps whose iterators are gone."""
        while self._dropped:
            job = self._dropped.popleft()
            with self._lock:
                self._jobs.pop(job.job_id, None)
                self.scheduler.cancel_map(job.job_id)
                actions = self.scheduler.tick(time.perf_counter()) if self._is_shut_down else []
            self._execute(actions)

    def _forget_if_settled(self, job: MapJob) -> None:
        """Once all results are there, only the iterator keeps them: it may have been dropped before its first step."""
        if job.source is None and job.n_settled >= job.n_items:
            with self._lock:
                self._jobs.pop(job.job_id, None)

    def _finish(self, job: MapJob) -> None:
        """All results of a map were handed out: its plan now tells what was real."""
        cost = self.cost_model.lookup(job.function.key)
        with self._lock:
            self._jobs.pop(job.job_id, None)
            plan = job.plan
            assert plan is not None
            job.plan = plan._replace(
                n_items=job.n_items,
                actual_s=time.perf_counter() - job.started_at,
                n_inline=job.n_inline,
                n_chunks=job.n_chunks,
            )
            if plan.item_s is None and cost is not None:  # was unknown
                job.plan = job.plan._replace(
                    item_s=cost.mean_s, item_std_s=cost.std_s, serial_s=job.n_items * cost.mean_s
                )
            if self.last_plan is plan:
                self.last_plan = job.plan

    # ------------------------------------------------------------------ actions

    def _execute(self, actions: list[Action]) -> None:
        """Carry out what the scheduler wants; any thread, no lock held."""
        wake = False
        while actions:
            more: list[Action] = []
            for action in actions:
                if type(action) is SendChunk:
                    more += self._send(action.worker_id, action.chunk)
                else:
                    self._to_do.append(action)
                    wake = True
            actions = more
        if wake:
            self._wake()

    def _wake(self) -> None:
        if self._pool is not None and threading.current_thread() is not self._thread:
            self._pool.wake()

    def _send(self, worker_id: int, chunk: Chunk, *, resend_functions: bool = False) -> list[Action]:
        """Encode a chunk and post it to its worker; returns what is to be done if there was nothing to send."""
        pool = self._pool
        assert pool is not None
        known = pool.known_functions(worker_id)
        if resend_functions:
            known.clear()
        begun = time.thread_time() if chunk.job_id is not None else 0.0
        try:
            if chunk.job_id is None:
                frame = self._encode_tasks(chunk, known)
            else:
                frame = self._encode_items(chunk, known)
        except Exception as error:  # no room for a block: these items fail, the pool works on
            self._fail_items(chunk.job_id, tuple(chunk.items[chunk.n_done :]), error)
            return self._close_chunk(chunk)
        if frame is None:
            return self._close_chunk(chunk)
        pool.post(worker_id, frame)
        if chunk.job_id is not None:
            job = self._jobs.get(chunk.job_id)
            if job is not None:
                spent = time.thread_time() - begun
                self.cost_model.observe_carriage(job.function.key, len(chunk.items), spent, len(frame.data))
        return []

    def _begin(self, task_id: int) -> _Task | None:
        """A task that is about to be sent; None if it was cancelled."""
        task = self._tasks.get(task_id)
        if task is None or task.has_begun:  # in a worker that died before it came to this task
            return task
        if task.future.set_running_or_notify_cancel():
            task.has_begun = True
            return task
        self._tasks.pop(task_id, None)
        task.close()
        return None

    def _encode_tasks(self, chunk: Chunk, known: set[int]) -> Frame | None:
        """The frame of submitted tasks; None if all were cancelled."""
        if len(chunk.items) == 1:
            task = self._begin(chunk.items[0])
            if task is None:
                return None
            if task.args is not None and task.function.fn_id in known:
                return make_frame(
                    (protocol.RUN, chunk.chunk_id, (), task.function.fn_id, protocol.SCALAR_TUPLES, [task.args])
                )
        functions: dict[int, bytes] = {}
        fn_ids: list[int] = []
        items: list[Any] = []
        are_plain = True
        block_fd = None
        are_args: list[bool] = []
        for task_id in chunk.items:
            task = self._begin(task_id)
            are_args.append(task is not None and task.args is not None)
            if task is None:
                fn_ids.append(fn_ids[-1] if fn_ids else 0)
                items.append(None)
                are_plain = False
                continue
            function = task.function
            fn_ids.append(function.fn_id)
            if function.fn_id not in known:
                functions[function.fn_id] = function.data
            if task.args is not None:
                items.append(task.args)
            else:
                items.append(task.entry)
                are_plain = False
                if task.block_fd >= 0:
                    block_fd = os.dup(task.block_fd)
        if not are_plain:
            items = [(item,) if is_args else item for item, is_args in zip(items, are_args, strict=True)]
            used = [fn_id for fn_id in fn_ids if fn_id]
            if not used:
                return None
            fn_ids = [fn_id or used[0] for fn_id in fn_ids]
        known.update(functions)
        same = fn_ids[0] if len(set(fn_ids)) == 1 else fn_ids
        kind = protocol.SCALAR_TUPLES if are_plain else protocol.ENTRIES
        return make_frame((protocol.RUN, chunk.chunk_id, tuple(functions.items()), same, kind, items), block_fd)

    def _encode_items(self, chunk: Chunk, known: set[int]) -> Frame | None:
        """The frame of items of a map; None if nobody wants them any more."""
        job = self._jobs.get(chunk.job_id or 0)
        if job is None:
            return None
        job.n_chunks += 1
        function = job.function
        functions = () if function.fn_id in known else ((function.fn_id, function.data),)
        items = job.take_items(chunk.items)
        if serialize.are_scalars(items):
            kind = protocol.SCALAR_TUPLES if job.is_star else protocol.SCALAR_ITEMS
            frame = make_frame((protocol.RUN, chunk.chunk_id, functions, function.fn_id, kind, items))
        else:
            block = blocks.BlockWriter()
            try:
                entries = [self._encode_item(job, i, item, block) for i, item in zip(chunk.items, items)]
                nbytes = sum(serialize.entry_nbytes(e) for e in entries if e is not None) / len(entries)
                message = (protocol.RUN, chunk.chunk_id, functions, function.fn_id, protocol.ENTRIES, entries)
                frame = make_frame(message, block.detach())
            finally:
                block.close()
            with self._lock:
                self.scheduler.set_item_nbytes(job.job_id, nbytes)
        known.add(function.fn_id)
        return frame

    def _encode_item(self, job: MapJob, index: int, item: Any, block: blocks.BlockWriter) -> Any:
        args = item if job.is_star else (item,)
        try:
            return serialize.encode((args, {}), block)
        except OSError:
            raise
        except Exception as error:
            what = f"item {index} of map({job.function.name}) ({_culprit(args, {})})"
            job.local_errors[index] = not_picklable(what, error)
            return None

    def _close_chunk(self, chunk: Chunk) -> list[Action]:
        """Nothing of a chunk runs: its items are settled."""
        with self._lock:
            return self.scheduler.items_done(
                chunk.worker_id, chunk.chunk_id, len(chunk.items) - chunk.n_done, time.perf_counter()
            )

    def _fail_items(self, job_id: int | None, items: tuple[int, ...], error: BaseException) -> None:
        if job_id is not None:
            job = self._jobs.get(job_id)
            if job is not None:
                for i in items:
                    job.settle([i], [Failed(error)], failed=True)
                self._forget_if_settled(job)
            return
        for task_id in items:
            task = self._tasks.pop(task_id, None)
            if task is not None:
                task.close()
                if task.has_begun or task.future.set_running_or_notify_cancel():
                    task.future.set_exception(error)

    # ------------------------------------------------------------------ the I/O thread

    def _ensure_thread(self) -> None:
        if self._thread is not None:
            return
        init_entry, init_fd = self._encode_initializer()
        try:
            with self._starting:
                if self._thread is not None:
                    return
                pool = WorkerPool(self.settings.context, self.settings.env)
                pool.init_message = lambda: make_frame(
                    (protocol.INIT, init_entry), None if init_fd is None else os.dup(init_fd)
                )
                self._pool, self._init_fd = pool, init_fd
                self._is_watching = True
                self._thread = threading.Thread(target=self._run, name="amorsize-io", daemon=False)
                _live.add(self)
                try:
                    self._thread.start()
                except RuntimeError:  # no more threads can be started now; perhaps later
                    self._thread = self._pool = None
                    pool.close()
                    raise
                init_fd = None  # the I/O thread's
        finally:
            if init_fd is not None:
                os.close(init_fd)

    def _encode_initializer(self) -> tuple[serialize.Entry | None, int | None]:
        initializer = self.settings.initializer
        if initializer is None:
            return None, None
        block = blocks.BlockWriter()
        try:
            return serialize.encode((initializer, self.settings.initargs), block), block.detach()
        except OSError:
            raise
        except Exception as error:
            what = f"the initializer {serialize.name_of(initializer)} or one of its arguments"
            raise not_picklable(what, error) from error.__cause__
        finally:
            block.close()

    def _run(self) -> None:
        """Body of the I/O thread."""
        pool = self._pool
        assert pool is not None
        _ensure_exit_watch()
        try:
            while True:
                self._notice_abandonment()
                self._forget_dropped()
                self._do()
                with self._lock:
                    if self.scheduler.is_drained and not self._to_do:
                        return
                    timeout = self._timeout()
                if not pool.wait(timeout, self._handle, self._ended) or self._is_watching:
                    self._look_around()
        except BaseException as error:  # a bug here must not leave callers waiting for ever
            self._break(error)
            raise
        finally:
            pool.close()
            if self._init_fd is not None:
                os.close(self._init_fd)
            _live.discard(self)

    def _do(self) -> None:
        """Carry out the actions that are the I/O thread's."""
        pool = self._pool
        assert pool is not None
        while self._to_do:
            action = self._to_do.popleft()
            if type(action) is StartWorker:
                # No use to start what is to be killed next.
                is_over = self._broken is not None
                failure = Ended(action.worker_id, None, None, None, "") if is_over else pool.start(action.worker_id)
                if failure is not None:
                    self._ended(failure)
            elif type(action) is RetireWorker:
                pool.post(action.worker_id, make_frame((protocol.EXIT,)))
                self._retiring[action.worker_id] = time.perf_counter() + _RETIRE_GRACE_S
            elif type(action) is KillWorker:
                pool.kill(action.worker_id)
            elif type(action) is FailItems:
                self._fail_items(action.job_id, action.items, self._death_of(action.worker_id))
            elif type(action) is BreakPool:
                self._break(self._start_failure())

    def _timeout(self) -> float | None:
        """Seconds until time matters; None when it does not. Under the lock."""
        times = [self.scheduler.next_tick(time.perf_counter())]
        if self._is_watching:
            times.append(_WATCH_S)
        if self._retiring:
            times.append(1.0)
        known = [t for t in times if t is not None]
        return min(*known, _LONGEST_WAIT_S) if known else None

    def _look_around(self) -> None:
        """Time has passed."""
        now = time.perf_counter()
        with self._lock:
            actions = self.scheduler.tick(now)
            held = [self._jobs[i] for i in self.scheduler.held_jobs() if i in self._jobs]
            pool_state = self._pool_state()
            if self._is_watching:
                self._idle_looks = 0 if held else self._idle_looks + 1
                self._is_watching = self._idle_looks < _WATCH_IDLE_LOOKS
        self._execute(actions)
        for worker_id, until in list(self._retiring.items()):
            if now > until and self._pool is not None:
                self._pool.kill(worker_id)
        for job in held:
            self._look_after(job, pool_state, now)

    def _look_after(self, job: MapJob, pool_state: PoolState, now: float) -> None:
        """Hand a map to workers if its caller is stuck in an item, or does not come for results."""
        with self._lock:
            waiting = self.scheduler.n_waiting(job.job_id)
        batch = job.batch
        if batch is not None:
            item_s = job.time_in_item(batch, now)
            waiting += batch.n_unstarted
        else:
            item_s = now - job.visited_at
            if pool_state.n_ready == 0 and item_s < pool_state.worker_start_s:
                return
        if not planner.hand_over_pays(waiting, item_s, pool_state):
            return
        n_workers = max(min(pool_state.max_workers, waiting), 1)
        with self._lock:
            if batch is not None:
                self.scheduler.return_inline(job.job_id, batch.take_back())
            plan = job.plan
            if plan is not None and plan.is_serial:
                why = "the caller was busy with an item" if batch is not None else "the caller did other work"
                why = f"{why} for {planner.format_time(item_s)}"
                job.plan = plan._replace(n_workers=n_workers, constraint=why)
                if self.last_plan is plan:
                    self.last_plan = job.plan
        self.release(job, n_workers)

    def _handle(self, message: Message) -> None:
        """A worker has sent something."""
        worker_id, content, block_fd = message
        try:
            code = content[0]
            if code == protocol.RESULTS or code == protocol.OUTCOMES:
                self._results(worker_id, content, block_fd)
            elif code == protocol.READY:
                with self._lock:
                    actions = self.scheduler.worker_ready(worker_id, time.perf_counter())
                self._execute(actions)
            elif code == protocol.NEED_FUNCTIONS:
                with self._lock:
                    chunk = self.scheduler.chunk(worker_id, content[1])
                if chunk is not None:
                    self._execute(self._send(worker_id, chunk, resend_functions=True))
            elif code == protocol.MEMORY:
                self._peak_nbytes[worker_id] = content[1]
                self._fit_memory()
            elif code == protocol.INIT_FAILED:
                self._break(_init_error(content[1]), "the initializer failed in a worker")
        finally:
            if block_fd is not None and block_fd != LOST:
                os.close(block_fd)

    def _results(self, worker_id: int, content: tuple[Any, ...], block_fd: int | None) -> None:
        code, chunk_id, offset, n, elapsed_ns, cpu_ns, *rest = content
        chunk = self.scheduler.chunk(worker_id, chunk_id)  # two look-ups, each atomic
        if chunk is None or offset < chunk.n_done:
            return  # a record read both from the channel and from a dead worker's memory
        items = chunk.items[offset : offset + n]
        n_skipped = 0
        if not rest:
            code, values = protocol.OUTCOMES, [Failed(_no_descriptors()) for _ in items]
        elif code == protocol.OUTCOMES:
            values, n_skipped = self._decode_outcomes(chunk.job_id, items, rest[0], block_fd)
        else:
            values = rest[0]
        job = self._jobs.get(chunk.job_id) if chunk.job_id is not None else None
        if job is not None:
            key = job.function.key
        elif chunk.job_id is None:
            task = self._tasks.get(items[0])
            key = task.function.key if task is not None else None
        else:
            key = None
        with self._lock:
            actions = self.scheduler.items_done(worker_id, chunk_id, n, time.perf_counter())
        if actions:
            self._execute(actions)  # first give the worker its next chunk, then the caller its results
        if job is not None:
            job.settle(items, values, failed=code == protocol.OUTCOMES)
            self._forget_if_settled(job)
        elif chunk.job_id is None:
            self._resolve(items, values)
        if key is not None and n > n_skipped:
            self.cost_model.observe(
                key, n - n_skipped, elapsed_ns * 1e-9, cpu_ns * 1e-9 if cpu_ns >= 0 else None
            )

    def _decode_outcomes(
        self, job_id: int | None, items: Any, outcomes: list[tuple[int, Any]], block_fd: int | None
    ) -> tuple[list[Any], int]:
        values: list[Any] = []
        n_skipped = 0
        mapped: memoryview | None = None

        def view() -> memoryview:
            nonlocal mapped
            if block_fd is None or block_fd == LOST:
                raise _no_descriptors()
            if mapped is None:
                mapped = blocks.map_private(block_fd, blocks.size(block_fd))
            return mapped

        for index, (kind, entry) in zip(items, outcomes, strict=True):
            if kind == protocol.SKIPPED:
                n_skipped += 1
                job = self._jobs.get(job_id) if job_id is not None else None
                error = job.local_errors.get(index) if job is not None else None
                values.append(Failed(error or CancelledError()))
                continue
            try:
                value = serialize.decode(entry, view)
                values.append(Failed(_with_cause(*value)) if kind == protocol.ERROR else value)
            except BaseException as error:  # whatever the unpickled code raises
                values.append(Failed(add_note(error, "raised while the result of the task was unpickled")))
        return values, n_skipped

    def _resolve(self, task_ids: Any, values: list[Any]) -> None:
        for task_id, value in zip(task_ids, values):
            task = self._tasks.pop(task_id, None)
            if task is None:
                continue
            if task.block_fd >= 0:
                task.close()
            if type(value) is not Failed:
                task.future.set_result(value)
            elif task.future.running():
                task.future.set_exception(value.error)

    # ------------------------------------------------------------------ ends

    def _ended(self, event: Ended) -> None:
        """A worker's process is gone."""
        self._retiring.pop(event.worker_id, None)
        self._peak_nbytes.pop(event.worker_id, None)
        self._last_end = event
        with self._lock:
            actions = self.scheduler.worker_died(event.worker_id, event.running, time.perf_counter())
        self._execute(actions)
        self._do_failures(event)

    def _do_failures(self, event: Ended) -> None:
        """Fail the items of a death while its circumstances are at hand."""
        kept: list[Action] = []
        while self._to_do:
            action = self._to_do.popleft()
            if type(action) is FailItems and action.worker_id == event.worker_id:
                self._fail_items(action.job_id, action.items, self._death_of(event.worker_id))
            elif type(action) is BreakPool:
                self._break(self._start_failure())
            else:
                kept.append(action)
        self._to_do.extendleft(reversed(kept))

    def _death_of(self, worker_id: int) -> BaseException:
        from .errors import RemoteTraceback, WorkerDied

        event = self._last_end
        error = WorkerDied(
            f"worker process {event.pid} died while it was running this task ({_describe_exit(event.exitcode)}); "
            "the other tasks are not affected. retries=1 runs such a task once more",
            event.pid,
            event.exitcode,
        )
        if event.fault:
            error.__cause__ = RemoteTraceback(event.fault)
        return error

    def _start_failure(self) -> BaseException:
        event = self._last_end
        if event.error is not None:
            return event.error
        return RuntimeError(
            f"three workers in a row ended before they were ready, the last one with {_describe_exit(event.exitcode)}"
            + (f"\n{event.fault}" if event.fault else "")
        )

    def _break(self, cause: BaseException, what: str = "workers cannot be started") -> None:
        """Fail everything that waits or runs; the executor is of no more use."""
        BrokenProcessPool = _broken_pool()  # noqa: N806
        is_told = type(cause) is BrokenProcessPool
        message = str(cause) if is_told else f"{what}: {type(cause).__name__}: {cause}"
        with self._lock:
            if self._broken is not None:
                return
            self._broken = cause if is_told else _chained(BrokenProcessPool(message), cause)
            self._is_shut_down = True
            tasks, self._tasks = self._tasks, {}
            jobs, self._jobs = self._jobs, {}
            actions = self.scheduler.give_up()
        for task in tasks.values():
            task.close()
            if task.future.running() or task.future.set_running_or_notify_cancel():
                task.future.set_exception(_chained(BrokenProcessPool(message), cause))
        for job in jobs.values():
            job.fail(_chained(BrokenProcessPool(message), cause))
        self._execute(actions)

    def end_workers(self, signum: int, what: str) -> None:
        """Break the executor by ending all its workers with a signal."""
        if self._thread is None:
            self.shutdown(wait=False, cancel_futures=True)
            return
        pool = self._pool
        with self._lock:
            workers = self.scheduler.worker_ids()
        if pool is not None:
            for worker_id in workers:
                pool.kill(worker_id, signum)
        self._break(_broken_pool()(f"the workers were ended by {what}"))

    def shutdown(self, *, wait: bool, cancel_futures: bool) -> None:
        """No more work; the I/O thread ends when what came is done."""
        with self._lock:
            self._is_shut_down = True
            cancelled = self.scheduler.drop_queue() if cancel_futures else []
            tasks = [task for task_id in cancelled if (task := self._tasks.pop(task_id, None)) is not None]
            jobs = list(self._jobs.values())
            held = set(self.scheduler.held_jobs())
        for task in tasks:
            task.close()
            if task.future.cancel():
                task.future.set_running_or_notify_cancel()
            else:  # given out before, but its worker died before it began
                task.future.set_exception(CancelledError())
        for job in jobs:
            if job.source is not None:
                with self._lock:
                    job.close_source(RuntimeError("cannot schedule new futures after shutdown"))
                    self.scheduler.extend_map(job.job_id, job.n_items, True, time.perf_counter())
            if cancel_futures:
                with self._lock:
                    waiting, actions = self.scheduler.drop_map(job.job_id, time.perf_counter())
                self._execute(actions)
                for i in waiting:
                    job.settle([i], [Failed(CancelledError())], failed=True)
            elif job.job_id in held and self._pool is not None:
                if not _is_interpreter_ending or self._pool.can_start:
                    self.release(job, min(self.scheduler.worker_limit, job.n_items))
                else:  # nobody is left to run them
                    with self._lock:
                        self.scheduler.cancel_map(job.job_id)
                    job.fail(RuntimeError("the interpreter ends, and workers cannot be started any more"))
        with self._lock:
            actions = self.scheduler.shutdown(time.perf_counter())
        self._execute(actions)
        with self._starting:
            thread = self._thread
        if thread is None:
            return
        if self._pool is not None:
            self._pool.wake()
        if wait and threading.current_thread() is not thread:
            thread.join()

    def abandon_all(self) -> None:
        """The executor was collected. May be called at any point of any thread, so it takes no lock."""
        self.is_abandoned = True
        if self._pool is not None:
            self._pool.nudge()

    def _notice_abandonment(self) -> None:
        if self.kill_at_exit:
            self.end_workers(signal.SIGKILL, "Ctrl-C")
        elif self.is_abandoned:
            self.is_abandoned = False
            self.shutdown(wait=False, cancel_futures=False)

    def resize(self, max_workers: int) -> None:
        """Change the upper bound on workers."""
        with self._lock:
            actions = self.scheduler.resize(max_workers, time.perf_counter())
        if self._thread is not None:
            self._execute(actions)

    def want_workers(self, n_workers: int) -> None:
        """Start workers ahead of work."""
        self._ensure_thread()
        with self._lock:
            actions = self.scheduler.want_workers(n_workers, time.perf_counter())
        self._execute(actions)

    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return list(self._pool.pids().values()) if self._pool is not None else []

    # ------------------------------------------------------------------ memory

    def _fit_memory(self) -> None:
        """Cap the number of workers by what their measured peak leaves room for."""
        now = time.perf_counter()
        if not self._memory_room or now - self._memory_checked_at > _MEMORY_PERIOD_S:
            self._memory_checked_at = now
            limit = self.settings.memory_limit or machine.memory_limit()
            own = machine.resident_nbytes(os.getpid()) or 0
            self._memory_room = limit * (1 - _MEMORY_RESERVE) - own
        cap = max(int(self._memory_room / max(self._peak_nbytes.values())), 1)
        with self._lock:
            self.scheduler.memory_cap = cap
            actions = self.scheduler.tick(now)
        self._execute(actions)


def _no_descriptors() -> OSError:
    return OSError(
        errno.EMFILE,
        "too many open files: this process had no descriptor left to receive a result; raise its limit (ulimit -n)",
    )


def _chained(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def _init_error(entry: Any) -> BaseException:
    """What an initializer raised in a worker."""
    try:
        return _with_cause(*serialize.decode(entry, lambda: memoryview(b"")))
    except Exception as error:  # of a class that this process cannot make
        return add_note(error, "raised while the initializer's exception was unpickled")


def _broken_pool() -> type[BrokenExecutor]:
    """`BrokenProcessPool`; its base when the interpreter ends, which allows its module to be used but not to be imported."""
    if _is_interpreter_ending and "concurrent.futures.process" not in sys.modules:
        return BrokenExecutor
    from concurrent.futures.process import BrokenProcessPool

    return BrokenProcessPool


def _with_cause(error: BaseException, text: str) -> BaseException:
    from .errors import RemoteTraceback

    # Past a __setattr__ that allows no changes, as that of a frozen dataclass.
    BaseException.__setattr__(error, "__cause__", RemoteTraceback(text))
    return error


def _culprit(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Names the argument that cannot be pickled."""
    named = [(f"argument {i}", value) for i, value in enumerate(args)] + [(f"{k}=", v) for k, v in kwargs.items()]
    for name, value in named:
        try:
            serialize.dumps(value)
        except Exception:  # the error itself is raised by the caller; this only finds the place
            return f"{name}, a {type(value).__qualname__!r} object"
    return "its arguments"


def _describe_exit(exitcode: int | None) -> str:
    if exitcode is None:
        return "its exit status is unknown"
    if exitcode < 0:
        try:
            name = signal.Signals(-exitcode).name
        except ValueError:
            name = f"signal {-exitcode}"
        hint = ": perhaps the system's out-of-memory killer" if name == "SIGKILL" else ""
        return f"ended by {name}{hint}"
    return f"exit status {exitcode}"


# ---------------------------------------------------------------------- the end of the process

#: Dispatchers whose I/O thread runs.
_live: weakref.WeakSet[Dispatcher] = weakref.WeakSet()
_is_interpreter_ending = False
_exit_watch: threading.Thread | None = None
_exit_watch_lock = threading.Lock()  # guards the start of the thread


def _ensure_exit_watch() -> None:
    """Start the thread that tells executors when the main thread has ended, so that the interpreter can end."""
    global _exit_watch
    if _exit_watch is None or not _exit_watch.is_alive():
        with _exit_watch_lock:
            if _exit_watch is None or not _exit_watch.is_alive():
                _exit_watch = threading.Thread(target=_watch_exit, name="amorsize-exit-watch", daemon=False)
                _exit_watch.start()


def _watch_exit() -> None:
    """Wait for the end of the main thread, then let every executor finish what it has; joined by the interpreter."""
    global _is_interpreter_ending
    threading.main_thread().join()
    _is_interpreter_ending = True
    # After an unhandled Ctrl-C nobody waits for results: end at once.
    kill = issubclass(getattr(sys, "last_type", None) or Exception, KeyboardInterrupt)
    for dispatcher in list(_live):
        dispatcher.kill_at_exit = kill
        dispatcher.abandon_all()


def _after_fork_in_child() -> None:
    global _exit_watch, _exit_watch_lock
    for dispatcher in list(_live):
        dispatcher.is_foreign = True
    _live.clear()
    _exit_watch = None
    _exit_watch_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
