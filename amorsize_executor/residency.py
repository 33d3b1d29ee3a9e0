"""The parent's side of resources: whose handles tasks carry, what workers are told to build and close, and warm-ups.

Which worker should have what is the scheduler's to decide (`decisions.resources`).
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol

from . import machine
from .decisions import resources as decisions
from .decisions.resources import NOTHING, Needs
from .failures import chained, no_lease, with_cause
from .workers import protocol, serialize
from .workers.channel import make_frame
from .workers.warm import BlockWriter

if TYPE_CHECKING:
    from .decisions.actions import Action
    from .decisions.scheduler import Scheduler
    from .workers.ledger import BlockLedger
    from .workers.pools import Pool
    from .workers.resources import Resource


class Engine(Protocol):
    """What residency needs of the dispatcher."""

    #: Guards the scheduler and the warm-ups.
    lock: threading.Lock
    scheduler: Scheduler
    ledger: BlockLedger
    pool: Pool | None
    is_shut_down: bool

    def check_open(self) -> None:
        """Raise what a submit raises, if anything."""

    def want_workers(self, n_workers: int) -> None:
        """Start workers ahead of work, up to so many in all."""

    def nudge(self) -> None:
        """Make the I/O thread look around, without a lock."""

    def execute(self, actions: list[Action]) -> None:
        """Carry out actions; without the lock."""

    def memory_room(self) -> float | None:
        """Bytes for all workers together; None if that cannot be told now."""


class WarmUp:
    """A caller waits until workers run and have what they need. Guarded by the dispatcher's lock."""

    def __init__(self, n_workers: int, resource_ids: frozenset[int]) -> None:
        self.n_workers = n_workers
        self.resource_ids = resource_ids
        self.future: Future[None] = Future()


class Residency:
    """The resources of one executor."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        #: Open handles that tasks were given, by number.
        self._handles: weakref.WeakValueDictionary[int, Resource[Any]] = weakref.WeakValueDictionary()
        self._abandoned: deque[int] = deque()  # for the I/O thread
        self._warm_ups: list[WarmUp] = []
        self._bare_nbytes: int | None = None  # of a worker without resources

    # ------------------------------------------------------------------ handles

    def admit(self, handles: Sequence[Resource[Any]]) -> Needs:
        """Tasks are about to need these; without the lock."""
        if not handles:
            return NOTHING
        for handle in handles:
            if self._handles.get(handle.resource_id) is not handle:
                handle.used_by(self)
                with self._engine.lock:
                    self._handles[handle.resource_id] = handle
                    self._engine.scheduler.add_resource(handle.resource_id)
        return frozenset([handle.resource_id for handle in handles])

    def name_of(self, resource_id: int) -> str:
        """The name of a resource's factory; of one that was closed nobody knows it any more."""
        handle = self._handles.get(resource_id)
        return handle.name if handle is not None else "a closed resource"

    def close_resource(self, resource_id: int) -> None:
        """A handle was closed."""
        with self._engine.lock:
            self._handles.pop(resource_id, None)
            actions = self._engine.scheduler.close_resource(resource_id, time.perf_counter())
        self._engine.execute(actions)

    def abandon_resource(self, resource_id: int) -> None:
        """A handle is gone; at any point of any thread."""
        self._abandoned.append(resource_id)
        self._engine.nudge()

    def forget_abandoned(self) -> None:
        """Close the resources whose handles are gone; the I/O thread's."""
        while self._abandoned:
            self.close_resource(self._abandoned.popleft())

    def warm_resource(self, resource: Resource[Any]) -> None:
        """Let all workers build a resource ahead of tasks, now and later."""
        self.admit([resource])
        with self._engine.lock:
            actions = self._engine.scheduler.load(resource.resource_id, time.perf_counter())
        self._engine.execute(actions)

    # ------------------------------------------------------------------ what workers are told, and tell

    def send_loads(self, worker_id: int, resource_ids: Iterable[int]) -> list[Action]:
        """Tell a worker to build resources ahead of tasks; returns what is to be done where that is not possible."""
        pool = self._engine.pool
        assert pool is not None
        actions: list[Action] = []
        for resource_id in resource_ids:
            handle = self._handles.get(resource_id)
            writer = BlockWriter(self._engine.ledger.store)
            try:
                if handle is None:
                    raise ValueError("it was closed")
                entry = serialize.encode(handle, writer)
                block_ids = tuple(writer.used)
                frame = make_frame((protocol.LOAD, resource_id, entry, block_ids))
                for block_frame in self._engine.ledger.give(worker_id, -resource_id, writer.detach()):
                    pool.post(worker_id, block_frame)
                pool.post(worker_id, frame)
            except (ValueError, OSError) as error:  # closed in between, or no room for what it is built from
                actions += self._load_done(worker_id, resource_id, error if handle is not None else None)
            finally:
                writer.close()
        return actions

    def send_closes(self, worker_id: int, resource_ids: tuple[int, ...]) -> None:
        """Tell a worker to close resources."""
        pool = self._engine.pool
        assert pool is not None
        pool.post(worker_id, make_frame((protocol.CLOSE_RESOURCES, resource_ids)))

    def loaded(self, worker_id: int, resource_id: int, elapsed_ns: int, nbytes: int) -> None:
        """A worker has built a resource."""
        with self._engine.lock:
            scheduler = self._engine.scheduler
            actions = scheduler.resource_loaded(worker_id, resource_id, elapsed_ns * 1e-9, nbytes, time.perf_counter())
        self._engine.execute(actions)
        self._fit_budget(worker_id, nbytes)
        self.look_at_warm_ups()

    def load_done(self, worker_id: int, resource_id: int, entry: Any) -> None:
        """A worker has built a resource ahead of tasks, or was not able to."""
        error = None
        if entry is not None:
            try:
                error = with_cause(*serialize.decode(entry, no_lease))
            except Exception as unreadable:  # of a class that this process cannot make
                error = unreadable
        self._engine.execute(self._load_done(worker_id, resource_id, error))
        self.look_at_warm_ups()

    def _load_done(self, worker_id: int, resource_id: int, error: BaseException | None) -> list[Action]:
        failed: list[WarmUp] = []
        with self._engine.lock:
            actions = self._engine.scheduler.load_done(worker_id, resource_id, error is None, time.perf_counter())
            if error is not None:
                failed = [warm_up for warm_up in self._warm_ups if resource_id in warm_up.resource_ids]
                self._warm_ups = [warm_up for warm_up in self._warm_ups if warm_up not in failed]
        for warm_up in failed:
            assert error is not None
            warm_up.future.set_exception(error)
        if error is not None and not failed:
            _logger().warning(
                "the resource %r could not be built ahead of tasks; the next task that needs it tries again",
                self.name_of(resource_id),
                exc_info=error,
            )
        return actions

    def _fit_budget(self, worker_id: int, nbytes: int) -> None:
        """See how much memory a worker's resources may take."""
        room = self._engine.memory_room()
        pids = self._engine.pool.pids() if self._engine.pool is not None else {}
        resident = machine.resident_nbytes(pids[worker_id]) if worker_id in pids else None
        if room is None or resident is None:
            return
        with self._engine.lock:
            scheduler = self._engine.scheduler
            bare = max(resident - sum(scheduler.held_by(worker_id).values()), 0)
            self._bare_nbytes = bare if self._bare_nbytes is None else min(self._bare_nbytes, bare)
            scheduler.resource_budget_nbytes = decisions.budget_nbytes(room, scheduler.max_workers, self._bare_nbytes)

    # ------------------------------------------------------------------ warm-up

    def warm_up(self, n_workers: int, handles: Sequence[Resource[Any]] | None) -> Future[None]:
        """Start workers and let them build resources (None: all that are open); the future tells when that is done."""
        if handles is None:
            handles = [handle for handle in list(self._handles.values()) if not handle.is_closed]
        needs = self.admit(handles)
        warm_up = WarmUp(n_workers, needs)
        with self._engine.lock:
            if self._engine.is_shut_down:
                raise RuntimeError("cannot warm up after shutdown")
            self._warm_ups.append(warm_up)
            self._engine.scheduler.n_wanted = max(self._engine.scheduler.n_wanted, n_workers)
            now = time.perf_counter()
            actions = [action for resource_id in needs for action in self._engine.scheduler.load(resource_id, now)]
        self._engine.execute(actions)
        self._engine.want_workers(n_workers)
        self.look_at_warm_ups()
        return warm_up.future

    def look_at_warm_ups(self) -> None:
        """Something has changed: see which warm-ups are over."""
        if not self._warm_ups:
            return
        over: list[WarmUp] = []
        with self._engine.lock:
            scheduler = self._engine.scheduler
            for warm_up in self._warm_ups:
                n_workers = min(warm_up.n_workers, scheduler.worker_limit)
                if scheduler.n_loaded(warm_up.resource_ids) >= n_workers:
                    over.append(warm_up)
            self._warm_ups = [warm_up for warm_up in self._warm_ups if warm_up not in over]
            scheduler.n_wanted = max((warm_up.n_workers for warm_up in self._warm_ups), default=0)
            actions = scheduler.tick(time.perf_counter())
        self._engine.execute(actions)
        for warm_up in over:
            warm_up.future.set_result(None)

    def fail(self, error: BaseException) -> None:
        """Nothing will be warm any more: the executor is broken or was shut down."""
        with self._engine.lock:
            failed, self._warm_ups = self._warm_ups, []
            self._engine.scheduler.n_wanted = 0
        for warm_up in failed:
            warm_up.future.set_exception(chained(type(error)(str(error)), error))


def _logger() -> Any:
    import logging  # which takes 5 ms to import

    return logging.getLogger(__name__)
