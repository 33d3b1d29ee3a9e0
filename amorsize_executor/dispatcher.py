"""Between the scheduler, which decides, and the worker pool, which does: the executor's engine room.

    caller's threads                        I/O thread                        workers
    submit, map --> scheduler (lock) --> actions
        |  SendChunk: encode, post ---------------------------------------->  run
        |  StartWorker, ...: queue --> wake --> start, kill, retire
        |                                wait  <--------------------------- results
        |                                scheduler (lock) --> actions
      future, map iterator  <-- resolve --'

Every event goes to the scheduler under one lock, held for pure computation only; the actions that it returns are
carried out after the lock is released. Chunks are encoded and sent by the thread that got the action, so a task
submitted to an idle worker is on its way before `submit` returns; processes are started and ended by the I/O thread
alone.

The I/O thread starts with the first need for it and ends when the executor is shut down and drained. It is not a
daemon: the interpreter waits for it, and it finishes what was submitted, as the standard pools do.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from . import lifecycle
from .counters import Counters
from .decisions import planner
from .decisions.actions import (
    Action,
    BreakPool,
    CloseResources,
    ExpireTask,
    FailItems,
    KillRunning,
    KillWorker,
    LoadResources,
    RetireWorker,
    SendChunk,
    StartWorker,
    TakeBack,
)
from .decisions.cost_model import CostModel
from .decisions.planner import LEAST_LOAD_S, PoolState
from .decisions.resources import NOTHING, Needs
from .decisions.scheduler import Scheduler
from .decisions.work import Chunk
from .encoding import Parcel, Task, decode_outcomes, encode_items, encode_one, encode_tasks
from .failures import (
    broken_pool,
    chained,
    init_error,
    memory_exceeded,
    no_descriptors,
    no_lease,
    queue_full,
    start_failure,
    task_timeout,
    worker_died,
)
from .health import PERIOD_S, HealthWatch
from .logs import WorkerLogs
from .maps import Maps
from .memory import MemoryWatch
from .options import Gate, TaskOptions
from .overtime import Overtime
from .residency import Residency
from .results import Failed
from .switching import quick_switching
from .tiny import PATIENCE_S
from .workers import protocol, serialize
from .workers.channel import LOST, make_frame
from .workers.functions import FunctionTable
from .workers.ledger import BlockLedger
from .workers.pool import WorkerPool
from .workers.pools import Ended, Message, Pool
from .workers.warm import IDLE_S

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

    from .learned import LearnedCosts
    from .results import MapJob
    from .workers.functions import Function
    from .workers.pools import Engine

#: While maps are computed by their callers, the I/O thread looks after them this often, in seconds ...
_WATCH_S = 5e-3
#: ... and less and less often, to this, where it finds only tiny ones: who is looked after must give it the interpreter
#: lock, and has less in the caches of its CPU then, which costs a caller of tiny maps a tenth ...
_MOST_WATCH_S = 40e-3
#: ... and for so many looks after the last one is gone: a wake-up costs more than a look.
_WATCH_IDLE_LOOKS = 10
#: A worker told to leave must be gone after this, in seconds; then it is killed.
_RETIRE_GRACE_S = 30.0
#: A caller waits for the start of processes at most this long, in seconds, before it computes beside them.
_STARTS_S = 0.2
#: A worker that was told to stop is looked at this often, in seconds: that may take a moment where CPUs are short.
_STOP_S = 1e-3
#: What was learned is written at most this often while nothing runs, in seconds, and at the end.
_KEEP_S = 30.0
#: A worker's first item that takes so many times what others take has loaded something.
_LOADING_ITEM = 4
#: Longest wait of the I/O thread, in seconds: a selector takes no infinity.
_LONGEST_WAIT_S = 86_400.0


class Settings(NamedTuple):
    """What the user asked for, checked by the executor."""

    n_cpus: int
    max_workers: int
    context: BaseContext | str | None
    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]
    max_tasks_per_child: int | None
    min_workers: int
    idle_timeout_s: float | None
    memory_limit: int | None
    inline: Literal["auto", "never", "always"]
    retries: int
    env: dict[str, str]
    cost_model: CostModel
    learned: LearnedCosts | None = None
    engine: Engine | None = None
    #: Whether `max_workers` is what the engine has room for, which may change.
    follows_engine: bool = False


class Front(Protocol):
    """What takes calls in and submits tasks for them later. Nothing here is called with a lock held.

    While it is among `Dispatcher.fronts`, tasks that it submits are taken even after a shutdown, and the I/O thread
    stays.
    """

    #: When `ring` is to be called, in seconds of `time.perf_counter`; None: not at all.
    alarm_at: float | None

    def ring(self) -> None:
        """Its time has come; the I/O thread's."""

    def end(self, *, cancel_futures: bool) -> None:
        """The executor was shut down or broke: submit all that has come, or cancel it."""


class TaskFuture(Future[Any]):
    """The future of a submitted task."""

    #: 0 if it never came to be one.
    task_id = 0


class Dispatcher:
    """Owns the scheduler, the pool, the I/O thread, and every task and map that is not settled."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ledger = BlockLedger(settings.memory_limit)
        self.functions = FunctionTable(self.ledger.store)
        self.cost_model = settings.cost_model
        # Guards the scheduler and the attributes below; held for computation only, never over pickling, sending,
        # user code, callbacks or waiting.
        self.lock = threading.Lock()
        self.scheduler = Scheduler(
            settings.cost_model,
            max_workers=settings.max_workers,
            min_workers=settings.min_workers,
            idle_timeout_s=settings.idle_timeout_s,
            max_tasks_per_child=settings.max_tasks_per_child,
            retries=settings.retries,
        )
        self._gate = Gate(self.lock, lambda: self.scheduler.n_queued, lambda: self.is_shut_down)
        self._tasks: dict[int, Task] = {}
        self.fronts: set[Front] = set()  # those that have calls; under the lock
        self.maps = Maps(self)
        self.residency = Residency(self)
        self.counters = Counters()
        self._logs = WorkerLogs()
        self.health = HealthWatch(self._logs.warn, self.function_name)
        self._last_id = 0
        self._broken: BaseException | None = None
        self.is_shut_down: bool = False
        self._thread: threading.Thread | None = None
        self.pool: Pool | None = None
        self._runs: Pool | None = None  # set by the I/O thread, under the lock, when it begins
        self._to_do: deque[Action] = deque()  # for the I/O thread
        self._starting = threading.Lock()  # held while the I/O thread is started
        self.watch_s: float | None = None
        self._no_starts = threading.Event()  # no process waits to be started
        self._no_starts.set()
        # Owned by the I/O thread.
        self._idle_looks = 0
        self._kept_at = 0.0  # when what was learned was last written
        self._overtime = Overtime()
        self._looked_at = 0.0  # when it was looked around last
        self._look_at = float("inf")  # when it must be looked around, however much there is to do
        self._retiring: dict[int, float] = {}  # when a worker that was told to end is killed
        self.peak_nbytes: dict[int, int] = {}
        self._init_fd: int | None = None  # block of the initializer's arguments
        self._memory = MemoryWatch(settings.memory_limit, lambda: self.ledger.store.nbytes)
        self._memory_at: float | None = None  # when it is looked at next
        self._trim_at: float | None = None  # when blocks are looked through
        # Set by a collected executor or the end of the interpreter, without a lock.
        self.is_abandoned = False
        self.kill_at_exit = False
        self._end_signal = signal.SIGKILL  # for workers that end before their work is done
        self.is_foreign = False  # in the child of a fork: belongs to the parent
        self.n_cpus = settings.n_cpus
        self.is_cluster = settings.engine is not None
        self.carry_s_a_byte = planner.CARRY_S_A_BYTE
        if settings.engine is not None:
            self.carry_s_a_byte = max(settings.engine.carry_s_a_byte, self.carry_s_a_byte)
            self.scheduler.resource_budget_nbytes = settings.engine.resource_nbytes

    # ------------------------------------------------------------------ submit

    def check_usable(self) -> None:
        """Raise if no task can run any more."""
        if self._broken is not None:
            from concurrent.futures.process import BrokenProcessPool

            raise BrokenProcessPool(str(self._broken)) from self._broken

    def check_open(self) -> None:
        """Raise what a submit to this executor raises, if anything."""
        if self._broken is not None:
            self.check_usable()
        if self.is_shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if lifecycle.is_interpreter_ending():
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    @property
    def is_open(self) -> bool:
        """Whether `check_open` has nothing to raise."""
        return self._broken is None and not self.is_shut_down and not lifecycle.is_interpreter_ending()

    @property
    def is_broken(self) -> bool:
        """Whether it takes no work because workers cannot be started, or were ended."""
        return self._broken is not None

    def submit(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions | None = None,
    ) -> TaskFuture:
        """Run a call in a worker.

        Raises
        ------
        QueueFull
            If the options say so, and it is.
        """
        is_owed = options is not None and options.is_owed
        if is_owed:
            self.check_usable()
        else:
            self.check_open()
        now = time.perf_counter() if options is not None else 0.0
        future = TaskFuture()
        if options is not None and not options.blocks:
            with self.lock:
                is_full = self._gate.is_full(options)
            if is_full:
                raise queue_full(options.max_pending)  # before anything is pickled
        try:
            function = self.register(fn)
            _ = function.fn_id  # pickles a new function now, so that an error is this future's
            task = Task(future, function, args, kwargs, self.ledger.store)
        except Exception as error:  # told through the future, as the standard pool does
            with self.lock:
                self.counters.submitted += 1
                self.counters.failed += 1
            future.set_running_or_notify_cancel()
            future.set_exception(error)
            return future
        terms = until = None
        if options is not None:
            terms = options.terms
            if terms.timeout_s is not None:
                task.timeout_s, until = terms.timeout_s, now + terms.timeout_s
        needs = self.residency.admit(task.resources) if task.resources else NOTHING
        actions: list[Action] | None = None
        asks_clock = is_late = False
        try:
            if self._thread is None:
                self.ensure_thread()
            if self.pool is not None and self.pool.context is None:
                self.prepare_start()  # here and not in the I/O thread: the interpreter may end before that is done
            with self.lock:
                is_late = options is not None and not self._enter(options, until)
                if is_late:
                    self.counters.submitted += 1
                    self.counters.failed += 1
                if not is_late and (is_owed or not self.is_shut_down) and self._broken is None:
                    task_id = future.task_id = self.new_id()
                    self._tasks[task_id] = task
                    self.counters.submitted += 1
                    task.submitted_at = time.perf_counter()
                    actions = self.scheduler.submit(
                        task_id,
                        task.function.key,
                        task.submitted_at,
                        is_alone=task.is_large,
                        terms=terms,
                        until=until,
                        needs=needs,
                    )
                    asks_clock = self.scheduler.asks_clock
        except BaseException:
            task.close()
            raise
        if actions is None:
            task.close()
            if is_late:
                self._fail_late(task, None)
                return future
            self.check_open()
        elif actions:
            self.execute(actions)
        if asks_clock:
            self.wake()
        return future

    def withdraw(self, future: TaskFuture) -> None:
        """A future was cancelled by who will not come back for it: its task leaves the queue now, not at its turn."""
        task_id = future.task_id
        with self.lock:
            task = self._tasks.get(task_id)
            if task is None or not self.scheduler.withdraw(task_id, is_timed=task.timeout_s is not None):
                return
            del self._tasks[task_id]
            self.counters.cancelled += 1
            self._gate.open()
            actions = self.scheduler.tick(time.perf_counter()) if self.is_shut_down else []
        task.close()
        task.future.set_running_or_notify_cancel()  # tells those who wait for several
        self.execute(actions)

    def end_tasks(self, futures: Iterable[Future[Any]]) -> None:
        """Nobody wants these tasks any more: those that wait leave the queue, those that run are ended."""
        begun = []
        for future in futures:
            if future.cancel():
                if isinstance(future, TaskFuture):
                    self.withdraw(future)
            elif isinstance(future, TaskFuture) and not future.done():
                begun.append(future.task_id)
        if not begun or self.settings.engine is not None:  # whose workers are threads
            return
        others: list[Action] = []
        with self.lock:
            ended = []
            for action in self.scheduler.end_tasks(begun, time.perf_counter()):
                if type(action) is not ExpireTask:
                    others.append(action)
                elif (task := self._tasks.pop(action.task_id, None)) is not None:
                    ended.append(task)
            self.counters.cancelled += len(ended)
            self._gate.open()
        self.execute(others)
        self.wake()  # to look whether they have ended
        for task in ended:
            task.close()
            task.future.set_exception(CancelledError())

    def wait_for_room(self, options: TaskOptions, wake: Callable[[], bool]) -> bool:
        """Have `wake` called, under the lock, when there is room in the queue; False if there is, or never will be."""
        with self.lock:
            return not self.is_shut_down and self._gate.add(options, wake)

    def stop_waiting(self, wake: Callable[[], bool]) -> None:
        """Who has waited for room has taken it, or does not want it any more."""
        with self.lock:
            self._gate.discard(wake)

    def abandon_wait(self, wake: Callable[[], bool]) -> None:
        """The same without a lock: the garbage collector may call this at any point of any thread."""
        self._gate.abandoned.append(wake)
        self.nudge()

    def get_ready(self) -> None:
        """Do what the first task would do in the I/O thread, where it might be too late."""
        if self._thread is None:
            self.ensure_thread()
        self.prepare_start()

    def enlist(self, front: Front) -> None:
        """A front has calls; after `get_ready`.

        Raises
        ------
        RuntimeError
            After a shutdown.
        """
        with self.lock:
            if not self.is_shut_down:
                self.fronts.add(front)
                return
        self.check_open()

    def dismiss(self, front: Front) -> None:
        """A front has no calls any more."""
        with self.lock:
            self.fronts.discard(front)
            is_over = self.is_shut_down
        if is_over:
            self.wake()

    @property
    def is_io_thread(self) -> bool:
        """Whether this thread must not wait for tasks, since it is the one that settles them."""
        return threading.current_thread() is self._thread

    @property
    def n_tasks(self) -> int:
        """Submitted tasks that are not settled; under the lock."""
        return len(self._tasks)

    def _enter(self, options: TaskOptions, until: float | None) -> bool:
        """Wait for room in the queue; False if the task's time is over before; under the lock.

        Raises
        ------
        QueueFull
            If there is none, and the options say so.
        """
        if not self._gate.is_full(options):
            return True
        if not options.blocks:
            raise queue_full(options.max_pending)
        if self.is_io_thread:  # in a callback: it is this thread that makes room
            return True
        return self._gate.wait(options, until)

    def _fail_late(self, task: Task, worker_id: int | None) -> None:
        """Fail a task whose time is over; `worker_id`: who has it."""
        pid = None if worker_id is None or self.pool is None else self.pool.pid(worker_id)
        assert task.timeout_s is not None
        if task.has_begun or task.future.set_running_or_notify_cancel():
            task.future.set_exception(
                task_timeout(task.function.name, task.timeout_s, pid=pid, was_waiting=worker_id is None)
            )

    def register(self, fn: Callable[..., Any]) -> Function:
        """A function's entry, with what is known about it recalled."""
        function = self.functions.register(fn)
        if self.settings.learned is not None:
            self.settings.learned.recall(function.key, fn)
        return function

    def function_name(self, job_id: int | None, item: int) -> str | None:
        """Name of the function of a task, or of a map's item; None if it is settled."""
        found = self._tasks.get(item) if job_id is None else self.maps.jobs.get(job_id)
        return found.function.name if found is not None else None

    def new_id(self) -> int:
        """A number for a task or map; under the lock."""
        self._last_id += 1
        return self._last_id

    def pool_state(self, needs: Needs = NOTHING, key: Hashable = None) -> PoolState:
        """The pool as the planner sees it for items of a function with these needs; under the lock."""
        n_ready, start_s, load_s = self.scheduler.n_ready, self.cost_model.worker_start_s, 0.0
        if needs:  # a worker that must load first is like one that must start
            n_ready = self.scheduler.n_holders(needs)
            load_s = self.scheduler.load_s(needs) or 0.0
            start_s = load_s + (start_s if n_ready == self.scheduler.n_ready else 0.0)
        elif key is not None and self._load_s(key) >= LEAST_LOAD_S:  # and so is one that must import much
            n_ready, load_s = self.scheduler.n_knowing(key), self._load_s(key)
            left_s = self.scheduler.load_left_s(key, time.perf_counter())
            if left_s is not None:
                start_s = left_s
            else:
                start_s = load_s + (start_s if n_ready == self.scheduler.n_ready else 0.0)
        return PoolState(
            n_ready,
            self.scheduler.worker_limit,
            self.n_cpus,
            start_s,
            self.cost_model.chunk_overhead_s,
            load_s,
        )

    def _load_s(self, key: Hashable) -> float:
        """What a worker takes to load a function, in seconds, as far as that is known by now."""
        known_s = self.cost_model.load_s(key)
        return known_s if known_s is not None else self.scheduler.loading_s(key, time.perf_counter())

    # ------------------------------------------------------------------ actions

    def execute(self, actions: list[Action]) -> None:
        """Carry out what the scheduler wants; any thread, no lock held."""
        wake = False
        left = iter(actions)
        more: list[Action] = []
        action: Action | None = None
        try:
            while True:
                for action in left:
                    if type(action) is SendChunk:
                        # What workers use is to be looked at from now on.
                        wake = wake or (self._memory.is_asleep and self.settings.engine is None)
                        more += self._send(action.worker_id, action.chunk)
                        # Should its first task block, it is time for another worker: time is the I/O thread's.
                        wake = wake or (action.chunk.slot is not None and self.scheduler.may_start)
                        wake = wake or self.scheduler.has_timed_maps  # it is to be looked at what it runs
                        if self._gate.n_blocked and action.chunk.job_id is None:
                            self._open_gate()
                    elif type(action) is TakeBack:
                        more += self._take_back(action.worker_id, action.chunk)
                    elif type(action) is LoadResources:
                        more += self.residency.send_loads(action.worker_id, action.resource_ids)
                    elif type(action) is CloseResources:
                        self.residency.send_closes(action.worker_id, action.resource_ids)
                    else:
                        self._to_do.append(action)
                        if type(action) is StartWorker and not self._is_launched(action.worker_id):
                            self._no_starts.clear()
                        wake = True
                if not more:
                    break
                left, more = iter(more), []
        except BaseException:  # Ctrl-C, in the main thread: what it has not done the I/O thread does
            if type(action) is SendChunk and not action.chunk.is_sent:
                self._to_do.append(action)
            self._to_do.extend([*left, *more])
            self.wake()
            raise
        if wake:
            self.wake()

    def execute_here(self, actions: list[Action]) -> None:
        """Carry out what the scheduler wants for a map, and start processes in the thread of its caller."""
        pool = self.pool
        try:
            if pool is not None and self._broken is None and not self.is_io_thread:
                for action in actions:
                    if type(action) is StartWorker:
                        pool.launch(action.worker_id)
        finally:
            self.execute(actions)

    def _is_launched(self, worker_id: int) -> bool:
        return self.pool is not None and self.pool.is_launched(worker_id)

    def _open_gate(self) -> None:
        with self.lock:
            self._gate.open()

    def run_in_worker(self, fn: Callable[..., Any], item: Any) -> Any:
        """Result of one call in a worker, which is measured."""
        return self.submit(fn, (item,), {}).result()

    def want_workers(self, n_workers: int) -> None:
        """Start workers ahead of work, up to so many in all."""
        self.ensure_thread()
        self.prepare_start()
        with self.lock:
            actions = self.scheduler.want_workers(n_workers, time.perf_counter())
        self.execute_here(actions)

    def prepare_start(self) -> None:
        """Import and look up what the start of a worker takes, in this thread.

        Beside a caller that computes, the I/O thread gets the interpreter lock late (see `switching`), and an import
        gives it away a hundred times.
        """
        if self.pool is not None and self.pool.context is None and not self.is_io_thread:  # whose own starts try again
            self.pool.prepare()
            if not self._memory.looked_at:
                self._look_at_memory()

    def await_starts(self) -> None:
        """Wait until the processes that were asked for have been started; for the same reason."""
        self._no_starts.wait(_STARTS_S)

    def watch(self) -> None:
        """Have the I/O thread look after maps in their callers."""
        if self.watch_s != _WATCH_S:
            self.watch_s = _WATCH_S
            self.wake()

    def nudge(self) -> None:
        """Wake the I/O thread, without a lock."""
        if self.pool is not None:
            self.pool.nudge()

    def wake(self) -> None:
        """Wake the I/O thread, unless this is it."""
        if self.pool is not None and threading.current_thread() is not self._thread:
            self.pool.wake()

    def _take_back(self, worker_id: int, chunk: Chunk) -> list[Action]:
        """Claim what a worker has not begun of a chunk."""
        pool = self.pool
        assert pool is not None
        with self.lock:  # as long as the chunk is the worker's, its claims are this chunk's
            if self.scheduler.chunk(worker_id, chunk.chunk_id) is not chunk or chunk.slot is None:
                return []
            if not chunk.is_sent:  # another thread is about to: its items cannot be claimed yet
                self.scheduler.not_taken(worker_id, chunk.chunk_id)
                return []
            n_items = pool.take_back(worker_id, chunk.slot, chunk.chunk_id)
            if n_items is None:  # the answer is on its way
                return []
            return self.scheduler.taken_back(worker_id, chunk.chunk_id, n_items, time.perf_counter())

    def _send(self, worker_id: int, chunk: Chunk, *, is_resent: bool = False) -> list[Action]:
        """Encode a chunk and post it to its worker; returns what is to be done if there was nothing to send."""
        pool = self.pool
        assert pool is not None
        if time.perf_counter() > self._logs.looks_at:
            self._logs.look(pool)
        known = pool.known_functions(worker_id)
        if is_resent:
            known.clear()
            self.ledger.forget_known(worker_id)
            chunk.is_sent = False
        begun = time.thread_time() if chunk.job_id is not None else 0.0
        items = chunk.items  # as soon as they are offered, some may be taken back
        if not items:  # all were, before it was asked for, or after Ctrl-C
            with self.lock:
                return self.scheduler.chunk_cut(worker_id, chunk.chunk_id, time.perf_counter())
        try:
            if chunk.job_id is None:
                parcel = encode_tasks(chunk, [self._begin(task_id) for task_id in items], known, self.ledger.store)
            else:
                parcel = self._encode_items(chunk, items, known)
            if parcel is None:
                return self._close_chunk(chunk)
            for frame in self.ledger.give(worker_id, chunk.chunk_id, parcel.used):
                pool.post(worker_id, frame)
            if chunk.slot is not None and not is_resent:
                pool.offer(worker_id, chunk.slot, len(items))
            chunk.is_sent = True
            pool.post(worker_id, parcel.frame)
        except Exception as error:  # no room for a block: these items fail, the pool works on
            if chunk.is_sent:
                raise
            return self._fail_chunk(chunk, error)
        if chunk.job_id is not None:
            job = self.maps.jobs.get(chunk.job_id)
            if job is not None:
                spent = time.thread_time() - begun
                if self.settings.engine is not None:
                    nbytes = len(items) * (parcel.item_nbytes or 0.0) or len(parcel.frame.data)
                    spent += nbytes * self.settings.engine.carry_s_a_byte
                self.cost_model.observe_carriage(job.function.key, len(items), spent, len(parcel.frame.data))
        return []

    def _begin(self, task_id: int) -> Task | None:
        """A task that is about to be sent; None if it was cancelled."""
        task = self._tasks.get(task_id)
        if task is None or task.has_begun:  # in a worker that died before it came to this task
            return task
        if task.future.set_running_or_notify_cancel():
            task.has_begun = True
            return task
        with self.lock:
            self._tasks.pop(task_id, None)
            self.counters.cancelled += 1
        task.close()
        return None

    def _encode_items(self, chunk: Chunk, items: Sequence[int], known: set[int]) -> Parcel | None:
        """The parcel of items of a map; None if nobody wants them any more."""
        job = self.maps.jobs.get(chunk.job_id or 0)
        if job is None:
            return None
        parcel = encode_items(chunk, items, job, known, self.ledger.store)
        if parcel.item_nbytes is not None:
            with self.lock:
                self.scheduler.set_item_nbytes(job.job_id, parcel.item_nbytes)
        if parcel.resources:
            needs = self.residency.admit(parcel.resources)
            with self.lock:
                self.scheduler.set_needs(job.job_id, chunk, needs)
        return parcel

    def _close_chunk(self, chunk: Chunk) -> list[Action]:
        """Nothing of a chunk runs: its items are settled."""
        with self.lock:
            return self.scheduler.items_done(
                chunk.worker_id, chunk.chunk_id, len(chunk.items) - chunk.n_done, time.perf_counter()
            )

    def _fail_chunk(self, chunk: Chunk, error: BaseException) -> list[Action]:
        """A chunk cannot be sent."""
        with self.lock:
            if self.scheduler.chunk(chunk.worker_id, chunk.chunk_id) is not chunk:
                return []  # its worker has died meanwhile: its items are others' now
            items = tuple(chunk.items[chunk.n_done :])
            actions = self.scheduler.items_done(chunk.worker_id, chunk.chunk_id, len(items), time.perf_counter())
        self._fail_items(chunk.job_id, items, error)
        return actions

    def _fail_items(self, job_id: int | None, items: tuple[int, ...], error: BaseException) -> None:
        if job_id is not None:
            job = self.maps.jobs.get(job_id)
            if job is not None:
                for i in items:
                    job.settle([i], [Failed(error)], failed=True)
                with self.lock:
                    self.counters.items_failed += len(items)
                self.maps.forget_if_settled(job)
            return
        for task_id in items:
            with self.lock:
                task = self._tasks.pop(task_id, None)
                self.counters.failed += task is not None
            if task is not None:
                task.close()
                if task.has_begun or task.future.set_running_or_notify_cancel():
                    task.future.set_exception(error)

    # ------------------------------------------------------------------ the I/O thread

    def ensure_thread(self) -> None:
        """Start the I/O thread if it does not run; any thread."""
        if self._thread is not None:
            return
        init_entry: serialize.Entry | None = None
        init_fd: int | None = None
        if self.settings.initializer is not None and self.settings.engine is None:
            init = (self.settings.initializer, self.settings.initargs)
            name = serialize.name_of(self.settings.initializer)
            init_entry, init_fd = encode_one(init, lambda: f"the initializer {name} or one of its arguments")
        try:
            with self._starting:
                if self._thread is not None:
                    return
                lifecycle.ensure_watch()  # while threads can be started, and where somebody is told that they cannot
                pool = self._make_pool(init_entry)
                is_started = False
                try:
                    self.pool, self._init_fd = pool, init_fd
                    self.watch_s = _WATCH_S
                    self._thread = threading.Thread(target=self._run, args=(pool,), name="amorsize-io", daemon=False)
                    lifecycle.add(self)
                    self._thread.start()
                    is_started = True
                finally:
                    # Else there can be no more threads now, or Ctrl-C came: then it may run all the same.
                    with self.lock:
                        if is_started or self._runs is pool:
                            init_fd = None  # the I/O thread's
                        else:
                            self._thread = self.pool = self._init_fd = None
                    if self.pool is None:
                        pool.close()
        finally:
            if init_fd is not None:
                os.close(init_fd)

    def _make_pool(self, init_entry: serialize.Entry | None) -> Pool:
        settings = self.settings
        if settings.engine is not None:
            return settings.engine.make_pool(settings.initializer, settings.initargs, self._fit_engine)
        pool = WorkerPool(settings.context, settings.env)
        pool.init_message = lambda: make_frame(
            (protocol.INIT, init_entry), None if self._init_fd is None else os.dup(self._init_fd)
        )
        pool.greeting = lambda worker_id: self._logs.greet(worker_id, pool)
        return pool

    def _fit_engine(self, n_workers: int) -> None:
        """The engine has room for so many workers now; the I/O thread's."""
        self.n_cpus = max(n_workers, 1)
        if self.settings.follows_engine:
            before = self.scheduler.max_workers
            self.resize(self.n_cpus)
            self.maps.widen(before, self.n_cpus)

    def _run(self, pool: Pool) -> None:
        """Body of the I/O thread."""
        with self.lock:
            if self.pool is not pool:
                return  # who started it was interrupted, and has given it up
            self._runs = pool
        learned = self.settings.learned
        if lifecycle.is_interpreter_ending():
            self.is_abandoned = True  # the one who tells may have come before this was added
        try:
            while True:
                self._notice_abandonment()
                self.maps.forget_dropped()
                self.residency.forget_abandoned()
                if self._to_do or not self._no_starts.is_set():
                    self._do()
                if self.fronts:
                    self._ring()
                if self._gate.abandoned:
                    with self.lock:
                        self._gate.discard_abandoned()
                with self.lock:
                    if self.scheduler.is_drained and not self._to_do and not self.fronts:
                        return
                    timeout = self._timeout()
                is_quiet = not pool.wait(timeout, self._handle, self._ended)
                if is_quiet or time.perf_counter() >= self._look_at:
                    self._look_around()
                if self._overtime.is_busy:
                    self._overtime.go_on(pool)
        except BaseException as error:  # a bug here must not leave callers waiting for ever
            self._break(error)
            raise
        finally:
            pool.close()
            self.ledger.close()
            self._logs.close()
            if self._init_fd is not None:
                os.close(self._init_fd)
            if learned is not None:
                learned.close()
            lifecycle.discard(self)

    def _do(self) -> None:
        """Carry out the actions that are the I/O thread's."""
        pool = self.pool
        assert pool is not None
        while self._to_do:
            action = self._to_do.popleft()
            if type(action) is StartWorker:
                if not self._memory.looked_at:  # nobody was there to do it
                    self._look_at_memory()
                if self._broken is not None or not self.scheduler.has_worker(action.worker_id):
                    pool.drop(action.worker_id)
                    continue  # it is to be killed next, or was by a thread that was faster
                self._memory.note_kills()
                with quick_switching:  # between maps, the caller computes, too
                    failure = pool.start(action.worker_id)
                self.counters.workers_started += failure is None
                if failure is not None:
                    self._ended(failure)
            elif type(action) is RetireWorker:
                pool.post(action.worker_id, make_frame((protocol.EXIT,)))
                self._retiring[action.worker_id] = time.perf_counter() + _RETIRE_GRACE_S
            elif type(action) is KillWorker and not pool.has(action.worker_id):
                self._ended(Ended(action.worker_id, None, None, None, ""))  # it was not started, and will not be
            elif type(action) is KillWorker:
                pool.kill(action.worker_id, self._end_signal)
                if self._end_signal != signal.SIGKILL:  # a task may have survived it
                    pool.post(action.worker_id, make_frame((protocol.EXIT,)))
                self._retiring[action.worker_id] = time.perf_counter() + _RETIRE_GRACE_S
            elif type(action) is KillRunning:
                self._overtime.end(pool, action.worker_id, action.chunk_id, action.offset)
            elif type(action) is ExpireTask:
                with self.lock:
                    task = self._tasks.pop(action.task_id, None)
                    self.counters.failed += task is not None
                if task is not None:
                    task.close()
                    self._fail_late(task, action.worker_id)
                if self._gate.n_blocked:
                    self._open_gate()
            elif type(action) is FailItems:
                self._fail_items(action.job_id, action.items, self._death_error(action, self._last_end))
            elif type(action) is BreakPool:
                self._break(start_failure(self._last_end))
            else:
                self._go_on(action)
        self._no_starts.set()

    def _go_on(self, action: Action) -> None:
        """Carry out what Ctrl-C has kept the main thread from, or has interrupted."""
        if type(action) is SendChunk:
            chunk = action.chunk
            if self.scheduler.chunk(action.worker_id, chunk.chunk_id) is not chunk:
                return  # nobody wants it any more, or its worker has died
            if chunk.job_id is None:
                for task_id in chunk.items:
                    task = self._tasks.get(task_id)
                    if task is not None and task.future.running():
                        task.has_begun = True  # which it was about to note
        self.execute([action])

    def _ring(self) -> None:
        """Call the fronts whose time has come."""
        with self.lock:
            fronts = list(self.fronts)
        for front in fronts:
            if front.alarm_at is not None and front.alarm_at <= time.perf_counter():
                front.ring()

    def _timeout(self) -> float | None:
        """Seconds until time matters; None when it does not. Under the lock."""
        now = time.perf_counter()
        tick_s = self.scheduler.next_tick(now)
        times = [] if tick_s is None else [tick_s]
        for front in self.fronts:
            if front.alarm_at is not None:
                times.append(front.alarm_at - now)
        must_look = [at for at in (self.scheduler.next_limit(), self._trim_at) if at is not None]
        if self.watch_s is not None:
            must_look.append(self._looked_at + self.watch_s)
        if self.settings.engine is None:
            n_busy = self.scheduler.n_busy
            self._memory_at = self._next_memory_look(n_busy)
            if self._memory_at is not None:
                must_look.append(self._memory_at)
            if (n_busy or self.scheduler.is_starting) and not self._overtime.is_busy:
                times.append(self.health.looked_at + PERIOD_S - now)
        self._look_at = min(must_look, default=float("inf"))
        if must_look:
            times.append(self._look_at - now)
        if self._overtime.is_busy:
            times.append(_STOP_S)
        if self._retiring:
            times.append(1.0)
        if self.settings.learned is not None:
            times.append(_KEEP_S)
        return max(min(*times, _LONGEST_WAIT_S), 0.0) if times else None

    def _look_around(self) -> None:
        """Time has passed."""
        now = self._looked_at = time.perf_counter()
        if self.settings.learned is not None and now - self._kept_at > _KEEP_S and not self.scheduler.n_busy:
            self._kept_at = now
            self.settings.learned.keep()
        pool = self.pool
        with self.lock:
            actions = self.scheduler.tick(now)
            timed = self.scheduler.timed_workers()
            if timed and pool is not None:
                actions += self.scheduler.look({worker_id: pool.running(worker_id) for worker_id in timed}, now)
            held = [self.maps.jobs[i] for i in self.scheduler.held_jobs() if i in self.maps.jobs]
            held += [job for job in self.maps.jobs.values() if job.is_guess]
            tiny = list(self.maps.tiny)
            if self.watch_s is not None:
                self._idle_looks = 0 if held or tiny else self._idle_looks + 1
                later_s = min(2 * self.watch_s, _MOST_WATCH_S) if self._idle_looks < _WATCH_IDLE_LOOKS else None
                self.watch_s = _WATCH_S if held else later_s
        self.execute(actions)
        if self._trim_at is not None and now >= self._trim_at:
            self._trim_blocks(now)
        if self._memory_at is not None and now >= self._memory_at:
            self._look_at_memory()
        if pool is not None and now >= self.health.looked_at + PERIOD_S and not self._overtime.is_busy:
            with self.lock:
                views = self.scheduler.worker_views()
            self.health.look(pool, views, now)
        for worker_id, until in list(self._retiring.items()):
            if now > until and self.pool is not None:
                self.pool.kill(worker_id)
        for found in tiny:
            if now - found.created_at > PATIENCE_S:
                self.maps.convert(found)
                self.watch_s = _WATCH_S
        for job in held:
            self.maps.look_after(job, now)

    def _trim_blocks(self, now: float) -> None:
        """Give up blocks that were not used for long."""
        frames, wait = self.ledger.trim()
        self._trim_at = now + wait if wait is not None else None
        for worker_id, frame in frames:
            if self.pool is not None:
                self.pool.post(worker_id, frame)

    def _handle(self, message: Message) -> None:
        """A worker has sent something."""
        worker_id, content, block_fd = message
        try:
            code = content[0]
            if code == protocol.RESULTS or code == protocol.OUTCOMES:
                self._results(worker_id, content, block_fd)
            elif code == protocol.READY:
                self._look_at_memory()
                with self.lock:
                    actions = self.scheduler.worker_ready(worker_id, time.perf_counter())
                if self.pool is not None:
                    self._logs.ready(worker_id, self.pool)
                self.execute(actions)
                self.residency.look_at_warm_ups()
            elif code == protocol.NEED_FUNCTIONS:
                with self.lock:
                    chunk = self.scheduler.chunk_resent(worker_id, content[1])
                if chunk is not None:
                    self.execute(self._send(worker_id, chunk, is_resent=True))
            elif code == protocol.CUT:
                chunk, now = self.scheduler.chunk(worker_id, content[1]), time.perf_counter()
                key = chunk.first_of if chunk is not None and not chunk.needs else None
                with self.lock:
                    actions = self.scheduler.chunk_cut(worker_id, content[1], now)
                self.execute(actions)
                if chunk is not None and key is not None:  # it has loaded the function, and found no item left
                    job = self.maps.jobs.get(chunk.job_id) if chunk.job_id is not None else None
                    self._note_load(key, job, now - chunk.given_at)
            elif code == protocol.TAKEN:
                with self.lock:
                    actions = self.scheduler.taken_back(worker_id, content[1], content[2], time.perf_counter())
                self.execute(actions)
            elif code == protocol.BLOCKS_DONE:
                self.ledger.done(worker_id, content[1], content[2])
                if self._trim_at is None:
                    self._trim_at = time.perf_counter() + IDLE_S
            elif code == protocol.MEMORY:
                _, chunk_id, offset, growth, used, self.peak_nbytes[worker_id] = content
                with self.lock:
                    now = time.perf_counter()
                    n_leaks = self.scheduler.n_leaks
                    actions = self.scheduler.memory_told(worker_id, chunk_id, offset, growth, used, now)
                    is_leak = self.scheduler.n_leaks > n_leaks
                self.execute(actions)
                if is_leak:
                    self._tell_leak(worker_id, used)
            elif code == protocol.LOADED:
                self.residency.loaded(worker_id, *content[1:])
            elif code == protocol.LOAD_DONE:
                self.residency.load_done(worker_id, *content[1:])
            elif code == protocol.LOG:
                self._logs.put(content[1], content[2])
            elif code == protocol.INIT_FAILED:
                self._break(init_error(content[1]), "the initializer failed in a worker")
        finally:
            if block_fd is not None and block_fd != LOST:
                os.close(block_fd)

    def _tell_leak(self, worker_id: int, used_nbytes: int) -> None:
        pid = self.pool.pid(worker_id) if self.pool is not None else None
        self._logs.warn(
            f"worker process {pid} is replaced after what it runs: its memory has grown with each of its tasks, to "
            f"{used_nbytes / 1e6:,.0f} MB"
        )

    def _results(self, worker_id: int, content: tuple[Any, ...], block_fd: int | None) -> None:
        code, chunk_id, offset, n, elapsed_ns, cpu_ns, *rest = content
        chunk = self.scheduler.chunk(worker_id, chunk_id)  # two look-ups, each atomic
        number = rest[1] if len(rest) > 1 else 0
        if chunk is None or offset < chunk.n_done:
            self.ledger.unread(worker_id, number)
            return  # a record read both from the channel and from a dead worker's memory
        job = self.maps.jobs.get(chunk.job_id) if chunk.job_id is not None else None
        items = chunk.items[offset : offset + n]
        n_skipped, received_s = 0, None
        if not rest:
            code, values = protocol.OUTCOMES, [Failed(no_descriptors()) for _ in items]
        elif code == protocol.OUTCOMES:
            has_block = block_fd is not None and block_fd != LOST
            lease = self.ledger.reader(worker_id, number, block_fd) if block_fd is not None and has_block else no_lease
            began_s = time.thread_time()
            values, n_skipped = decode_outcomes(job, items, rest[0], lease)
            received_s = time.thread_time() - began_s
        else:
            values = rest[0]
        if job is not None:
            key = job.function.key
        elif chunk.job_id is None:
            task = self._tasks.get(items[0])
            key = task.function.key if task is not None else None
        else:
            key = None
        now = time.perf_counter()
        elapsed_s, cpu_s = elapsed_ns * 1e-9, cpu_ns * 1e-9 if cpu_ns >= 0 else None
        with self.lock:
            at_once = max(self.scheduler.n_busy, 1) + (job is not None and job.batch is not None)
            began = chunk.given_at if not chunk.n_done else chunk.progress_at
            is_single = n == 1 == len(chunk.items) and chunk.slot is None and not chunk.needs
            is_first = chunk.first_of is not None and not chunk.needs
            actions = self.scheduler.items_done(worker_id, chunk_id, n, now)
            if job is not None:
                n_failed = sum([type(value) is Failed for value in values]) if code == protocol.OUTCOMES else 0
                self.counters.items_failed += n_failed
                self.counters.items_done += n - n_failed
        if actions:
            self.execute(actions)  # first give the worker its next chunk, then the caller its results
        is_measured = key is not None and n > n_skipped and elapsed_ns >= 0
        known = self.cost_model.lookup(key) if is_measured and is_first else None
        usual_s = n * (self.cost_model.mean_s(key) or 0.0) if is_measured and is_first else 0.0
        has_loaded = is_first and 0 < _LOADING_ITEM * usual_s < elapsed_s  # not only modules, but perhaps a model
        item_s = usual_s if has_loaded else elapsed_s
        size = None
        if job is not None:
            if is_measured:
                size = job.size_of(items, elapsed_s) if not n_skipped and not has_loaded else None
                job.note(worker_id, began, now, n, item_s, at_once, is_continued=offset > 0)
            job.settle(items, values, failed=code == protocol.OUTCOMES)
            self.maps.replace_caller(job, now)
            self.maps.forget_if_settled(job)
        elif chunk.job_id is None:
            self._resolve(items, values, now, max(elapsed_s / n, 0.0))
        if is_measured:
            self.counters.run.observe(elapsed_s / n, n - n_skipped)
            if received_s is not None:
                self.cost_model.observe_receipt(key, n, received_s)
            if not has_loaded:
                self.cost_model.observe(key, n - n_skipped, elapsed_s, cpu_s, at_once=at_once, size=size)
            if job is not None and size is not None:
                self.maps.learn_sizes(job)
            if is_first:
                is_lone = n == 1 and (known is None or known.n_items <= 1)
                self._note_load(key, job, now - began - item_s, item_s if is_lone else None)
            elif job is not None and job.lone_s is not None:
                self._note_next(key, job, elapsed_s / n)
            elif is_single:
                self.cost_model.observe_overhead(now - began - elapsed_s)
            elif offset and (job is None or job.batch is None):
                # Its worker went on with these directly behind others of the chunk, and nobody here held them up.
                self.cost_model.observe_return(key, n, now - began - elapsed_s)

    def _note_load(self, key: Hashable, job: MapJob | None, elapsed_s: float, lone_s: float | None = None) -> None:
        """A worker has taken so long for a function that it had not run before.

        `lone_s`: time of the item itself, if no other, or one more first call, is all that is known of the function.
        """
        self.cost_model.observe_load(key, max(elapsed_s, 0.0))
        if job is not None:
            self.maps.load_known(job, lone_s)

    def _note_next(self, key: Hashable, job: MapJob, item_s: float) -> None:
        """An item was run behind a lone one, and tells whether that had loaded a model, too."""
        assert job.lone_s is not None
        lone_s, job.lone_s = job.lone_s, None
        if lone_s > _LOADING_ITEM * item_s:
            self.cost_model.observe_load(key, lone_s - item_s)
        self.maps.load_known(job)

    def _resolve(self, task_ids: Any, values: list[Any], now: float, run_s: float) -> None:
        """Settle submitted tasks; `run_s`: how long each of them ran."""
        counters = self.counters
        for task_id, value in zip(task_ids, values, strict=True):
            task = self._tasks.pop(task_id, None)
            if task is None:
                continue
            if task.blocks:
                task.close()
            counters.wait.observe(now - task.submitted_at - run_s)
            if type(value) is not Failed:
                task.future.set_result(value)
                continue
            counters.raised += 1
            if task.future.running():
                task.future.set_exception(task.error or value.error)

    # ------------------------------------------------------------------ ends

    def _ended(self, event: Ended) -> None:
        """A worker's process is gone."""
        if self._retiring.pop(event.worker_id, None) is not None:
            self.counters.workers_left += 1
        elif event.pid is not None:
            self.counters.workers_died += 1
        self.peak_nbytes.pop(event.worker_id, None)
        self._last_end = event
        self.ledger.worker_gone(event.worker_id)
        self._logs.gone(event.worker_id)
        self.health.forget_worker(event.worker_id)
        is_oom = not event.is_killed and self._memory.is_oom(event.exitcode)
        with self.lock:
            running = self.scheduler.oldest_item(event.worker_id) if event.is_guess else event.running
            actions = self.scheduler.worker_died(event.worker_id, running, time.perf_counter(), is_oom=is_oom)
        self.execute(actions)
        self._do_failures(event)
        self.residency.look_at_warm_ups()

    def _do_failures(self, event: Ended) -> None:
        """Fail the items of a death while its circumstances are at hand."""
        kept: list[Action] = []
        while self._to_do:
            action = self._to_do.popleft()
            if type(action) is FailItems and action.worker_id == event.worker_id:
                self._fail_items(action.job_id, action.items, self._death_error(action, event))
            elif type(action) is BreakPool:
                self._break(start_failure(self._last_end))
            else:
                kept.append(action)
        self._to_do.extendleft(reversed(kept))

    def _death_error(self, action: FailItems, event: Ended) -> BaseException:
        """What items get whose worker has ended."""
        job = self.maps.jobs.get(action.job_id) if action.job_id is not None else None
        if action.is_late and job is not None and job.timeout_s is not None:
            what = f"item {', '.join(map(str, action.items))} of map({job.function.name})"
            return task_timeout(what, job.timeout_s, pid=event.pid, was_waiting=False)
        if action.excess is not None:
            return memory_exceeded(event, *action.excess)
        return worker_died(event)

    def _break(self, cause: BaseException, what: str = "workers cannot be started") -> None:
        """Fail everything that waits or runs; the executor is of no more use."""
        BrokenProcessPool = broken_pool()
        is_told = type(cause) is BrokenProcessPool
        message = str(cause) if is_told else f"{what}: {type(cause).__name__}: {cause}"
        with self.lock:
            if self._broken is not None:
                return
            self._broken = cause if is_told else chained(BrokenProcessPool(message), cause)
            self.is_shut_down = True
            tasks, self._tasks = self._tasks, {}
            self.counters.failed += len(tasks)
            jobs, self.maps.jobs = self.maps.jobs, {}
            tiny = list(self.maps.tiny)
            fronts = list(self.fronts)
            actions = self.scheduler.give_up()
            self._gate.open()
        for task in tasks.values():
            task.close()
            if task.future.running() or task.future.set_running_or_notify_cancel():
                task.future.set_exception(chained(BrokenProcessPool(message), cause))
        for job in jobs.values():
            job.fail(chained(BrokenProcessPool(message), cause))
        self.residency.fail(self._broken)
        for found in tiny:
            found.fail(chained(BrokenProcessPool(message), cause))
        for front in fronts:
            front.end(cancel_futures=False)  # what it submits now fails
        self.execute(actions)

    def end_workers(self, signum: signal.Signals, what: str) -> None:
        """Break the executor by ending all its workers with a signal."""
        if self._thread is None:
            self.shutdown(wait=False, cancel_futures=True)
            return
        self._end_signal = signum
        self._break(broken_pool()(f"the workers were ended by {what}"))

    def shutdown(self, *, wait: bool, cancel_futures: bool) -> None:
        """No more work; the I/O thread ends when what came is done."""
        with self.lock:
            self.is_shut_down = True
            self._gate.open()
            tiny = list(self.maps.tiny)
            fronts = list(self.fronts)
        for found in tiny:
            self.maps.convert(found)
        for front in fronts:
            front.end(cancel_futures=cancel_futures)
        with self.lock:
            cancelled = self.scheduler.drop_queue() if cancel_futures else []
            tasks = [task for task_id in cancelled if (task := self._tasks.pop(task_id, None)) is not None]
            self.counters.cancelled += len(tasks)
            jobs = list(self.maps.jobs.values())
            held = set(self.scheduler.held_jobs())
        for task in tasks:
            task.close()
            if task.future.cancel():
                task.future.set_running_or_notify_cancel()
            else:  # given out before, but its worker died before it began
                task.future.set_exception(CancelledError())
        for job in jobs:
            if job.source is not None:
                with self.lock:
                    job.close_source(RuntimeError("cannot schedule new futures after shutdown"))
                    self.scheduler.extend_map(job.job_id, job.n_items, True, time.perf_counter())
            if cancel_futures:
                with self.lock:
                    waiting, actions = self.scheduler.drop_map(job.job_id, time.perf_counter())
                self.execute(actions)
                for i in waiting:
                    job.settle([i], [Failed(CancelledError())], failed=True)
            elif job.job_id in held and self.pool is not None:
                if not lifecycle.is_interpreter_ending() or self.pool.can_start:
                    self.maps.release(job, min(self.scheduler.worker_limit, job.n_items))
                else:  # nobody is left to run them
                    with self.lock:
                        actions = self.scheduler.cancel_map(job.job_id)
                    self.execute(actions)
                    job.fail(RuntimeError("the interpreter ends, and workers cannot be started any more"))
        self.residency.fail(RuntimeError("the executor was shut down before it was warm"))
        with self.lock:
            actions = self.scheduler.shutdown(time.perf_counter())
        self.execute(actions)
        with self._starting:
            thread = self._thread
        if thread is None:
            return
        if self.pool is not None:
            self.pool.wake()
        if wait and threading.current_thread() is not thread:
            thread.join()
            self._logs.join()

    def abandon_all(self) -> None:
        """The executor was collected. May be called at any point of any thread, so it takes no lock."""
        self.is_abandoned = True
        if self.pool is not None:
            self.pool.nudge()

    def _notice_abandonment(self) -> None:
        if self.kill_at_exit:
            self.end_workers(signal.SIGKILL, "Ctrl-C")
        elif self.is_abandoned:
            self.is_abandoned = False
            self.shutdown(wait=False, cancel_futures=False)

    def resize(self, max_workers: int) -> None:
        """Change the upper bound on workers."""
        with self.lock:
            actions = self.scheduler.resize(max_workers, time.perf_counter())
        if self._thread is not None:
            self.execute(actions)

    # ------------------------------------------------------------------ memory

    def memory_room(self) -> float | None:
        """Bytes for all workers together; None if that cannot be told now. The I/O thread's."""
        try:
            return self._memory.room_for_workers()
        except OSError:  # no descriptor left to read it
            return None

    def _next_memory_look(self, n_busy: int) -> float | None:
        """When to look at memory; None: when some worker has work again. Under the lock."""
        if n_busy:
            self._memory.is_asleep = False
        elif self._memory.is_asleep:
            return None
        return self._memory.due_at(self.scheduler.next_memory_look_s(n_busy))

    def _look_at_memory(self) -> None:
        """Tell the scheduler what there is, and what workers use."""
        pool = self.pool
        assert pool is not None
        if self.settings.engine is not None:
            return
        begun = self._memory.looked_at = time.perf_counter()
        uses = self._memory.samples(pool.pids(), in_detail=self.scheduler.memory.is_tight)
        try:
            room = self._memory.room(uses)
        except OSError:  # no descriptor left to read it
            return
        with self.lock:
            running = {worker_id: pool.running(worker_id) for worker_id in uses}
            actions = self.scheduler.look_at_memory(room, uses, running, time.perf_counter())
            self._memory.is_asleep = not self.scheduler.n_busy
        self._memory.cost_s = time.perf_counter() - begun
        self.execute(actions)
