"""A pool without processes: it carries out what the scheduler wants, and does what a test tells it to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

from amorsize_executor.decisions.actions import (
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
from amorsize_executor.decisions.cost_model import CostModel
from amorsize_executor.decisions.resources import NOTHING, Needs
from amorsize_executor.decisions.scheduler import Scheduler
from amorsize_executor.decisions.work import Chunk

#: A map and an index in it, or None and the id of a submitted task.
Item = tuple[int | None, int]
DEPTH = 2


class FakePool:
    """Workers as sets and lists; every action is checked for what must hold whenever it is taken."""

    def __init__(self, max_workers: int = 2, *, cost_model: CostModel | None = None, **settings: Any) -> None:
        self.cost_model = cost_model or CostModel()
        self.scheduler = Scheduler(self.cost_model, max_workers=max_workers, **settings)
        self.now = 0.0
        self.max_tasks_per_child: int | None = settings.get("max_tasks_per_child")
        self.starting: list[int] = []
        self.ready: list[int] = []
        self.leaving: list[int] = []
        self.chunks: dict[int, list[Chunk]] = {}
        self.sent: list[SendChunk] = []
        self.n_given: Counter[int] = Counter()
        self.runs: Counter[Item] = Counter()
        self.failed: list[Item] = []
        self.loading: dict[int, set[int]] = {}  # resources that a worker loads ahead of tasks
        self.ahead: list[tuple[int, int]] = []  # (worker, resource) that was to be loaded ahead of tasks
        self.closed: list[tuple[int, int]] = []  # (worker, resource) that was to be closed
        self.late: list[Item] = []  # failed because their time was over
        self.too_large: list[Item] = []  # failed because they take more memory than there is
        self.is_broken = False
        self.n_claimed = 1  # items that a worker has claimed ahead of what is settled, in its first chunk

    # what a test reads

    def items(self, worker_id: int) -> list[list[int]]:
        """Items of a worker's chunks that are not settled."""
        return [list(chunk.items[chunk.n_done :]) for chunk in self.chunks[worker_id]]

    def held(self) -> list[Item]:
        """Items that are with workers."""
        return [(chunk.job_id, item) for chunks in self.chunks.values() for chunk in chunks for item in left(chunk)]

    def idle(self) -> list[int]:
        """Ready workers without work, which load nothing ahead of it either."""
        spare = self.scheduler.spare
        return [i for i in self.ready if not self.chunks[i] and not self.loading.get(i) and i != spare]

    def busy(self) -> list[int]:
        """Workers with work."""
        return [worker_id for worker_id in self.ready if self.chunks[worker_id]]

    # what a test makes happen

    def submit(self, *task_ids: int, key: Hashable = "f", needs: Needs = NOTHING) -> None:
        for task_id in task_ids:
            self.do(self.scheduler.submit(task_id, key, self.now, needs=needs))

    def load(self, worker_id: int, resource_id: int, load_s: float, nbytes: int) -> None:
        """A worker has built a resource."""
        self.do(self.scheduler.resource_loaded(worker_id, resource_id, load_s, nbytes, self.now))

    def load_done(self, worker_id: int, resource_id: int, *, is_loaded: bool = True) -> None:
        """A worker answers that it has built a resource ahead of tasks, or that it could not."""
        self.loading[worker_id].discard(resource_id)
        self.do(self.scheduler.load_done(worker_id, resource_id, is_loaded, self.now))

    def map(self, job_id: int, n_items: int, n_workers: int, key: Hashable = "f", **how: Any) -> None:
        self.scheduler.add_map(job_id, key, n_items, **how)
        self.do(self.scheduler.release_map(job_id, n_workers, self.now))

    def start(self, n_workers: int) -> None:
        """Have so many workers ready."""
        self.do(self.scheduler.want_workers(n_workers, self.now))
        self.answer()

    def answer(self) -> None:
        """Every worker that is starting becomes ready."""
        while self.starting:
            self.become_ready(self.starting[0])

    def become_ready(self, worker_id: int) -> None:
        self.starting.remove(worker_id)
        self.ready.append(worker_id)
        self.do(self.scheduler.worker_ready(worker_id, self.now))

    def finish(self, worker_id: int, n_items: int | None = None, item_s: float | None = None) -> None:
        """A worker has settled items of its first chunk: all that are left, unless told."""
        chunk = self.chunks[worker_id][0]
        n = len(left(chunk)) if n_items is None else n_items
        for item in left(chunk)[:n]:
            self.runs[chunk.job_id, item] += 1
        is_over = n == len(left(chunk)) and not chunk.awaits_cut
        if is_over:
            del self.chunks[worker_id][0]
        self.do(self.scheduler.items_done(worker_id, chunk.chunk_id, n, self.now))
        self.come_to_cut(worker_id)  # in this chunk, or in the next, of which all may have been taken back
        if item_s is not None:
            self.cost_model.observe("f", n, n * item_s)

    def come_to_cut(self, worker_id: int) -> None:
        """A worker tells that it has come to where chunks were cut."""
        chunks = self.chunks[worker_id]
        while chunks and chunks[0].awaits_cut and not left(chunks[0]):
            self.do(self.scheduler.chunk_cut(worker_id, chunks.pop(0).chunk_id, self.now))

    def take_back(self, worker_id: int, chunk: Chunk) -> None:
        """Claim what a worker has not."""
        chunks = self.chunks[worker_id]
        n = len(left(chunk)) - (self.n_claimed if chunk is chunks[0] else 0)
        if n > 0:
            self.n_given[worker_id] -= n
        self.do(self.scheduler.taken_back(worker_id, chunk.chunk_id, max(n, 0), self.now))
        assert chunk.slot is not None, "only what has a slot can be taken back"
        self.come_to_cut(worker_id)

    def die(self, worker_id: int, running: tuple[int, int, int] | None = None, *, is_oom: bool = False) -> None:
        """A worker's process ends; `running` is what it says it ran."""
        for group in (self.starting, self.ready, self.leaving):
            if worker_id in group:
                group.remove(worker_id)
        del self.chunks[worker_id]
        self.loading.pop(worker_id, None)
        self.do(self.scheduler.worker_died(worker_id, running, self.now, is_oom=is_oom))

    def die_running(self, worker_id: int, *, is_oom: bool = False) -> None:
        """A worker dies in the next item of its first chunk."""
        chunk = self.chunks[worker_id][0]
        self.die(worker_id, (chunk.chunk_id, chunk.n_done, 1), is_oom=is_oom)

    def leave(self) -> None:
        """Every worker that was told to leave does."""
        while self.leaving:
            self.die(self.leaving[0])

    def resize(self, max_workers: int) -> None:
        self.do(self.scheduler.resize(max_workers, self.now))

    def wait(self, elapsed_s: float) -> None:
        self.now += elapsed_s
        self.do(self.scheduler.tick(self.now))
        self.look()

    def look(self) -> None:
        """Tell what workers run that have items with a time limit: the first that is not settled."""
        running: dict[int, tuple[int, int, int] | None] = {}
        for worker_id in self.scheduler.timed_workers():
            chunk = next((chunk for chunk in self.chunks[worker_id] if left(chunk)), None)
            running[worker_id] = None if chunk is None else (chunk.chunk_id, chunk.n_done, 1)
        self.do(self.scheduler.look(running, self.now))

    def shutdown(self) -> None:
        self.do(self.scheduler.shutdown(self.now))

    def run_until_quiet(self, most: int = 10_000) -> None:
        """Let all workers answer, work and leave until nobody has anything to do."""
        for _ in range(most):
            self.leave()
            self.answer()
            for worker_id, resource_ids in list(self.loading.items()):
                for resource_id in list(resource_ids):
                    self.load_done(worker_id, resource_id)
            busy = self.busy()
            if busy:
                self.finish(busy[0])
            elif not self.starting and not self.leaving:
                return
        raise AssertionError("the workers never come to rest")

    # how actions are carried out

    def do(self, actions: Sequence[Action]) -> None:
        # A worker that is killed dies after all else was asked for.
        for action in sorted(actions, key=lambda action: isinstance(action, KillRunning)):
            self._do(action)

    def _do(self, action: Action) -> None:
        if isinstance(action, StartWorker):
            assert action.worker_id not in self.chunks, "worker ids are used once"
            self.starting.append(action.worker_id)
            self.chunks[action.worker_id] = []
            n_spare = self.scheduler.spare is not None
            assert len(self.starting) + len(self.ready) - n_spare <= self.scheduler.worker_limit, "too many workers"
        elif isinstance(action, SendChunk):
            worker_id, chunk = action
            assert worker_id in self.ready, "work goes to workers that have answered and do not leave"
            assert worker_id != self.scheduler.spare, "who waits for the place of another gets no work"
            assert len(left(chunk)), "no chunk is empty"
            self.sent.append(action)
            self.chunks[worker_id].append(chunk)
            self.n_given[worker_id] += len(chunk.items)
            assert len(self.chunks[worker_id]) <= DEPTH, "a worker has one chunk that runs, and one that waits"
            assert self.max_tasks_per_child is None or self.n_given[worker_id] <= self.max_tasks_per_child
        elif isinstance(action, TakeBack):
            self.take_back(*action)
        elif isinstance(action, RetireWorker):
            assert not self.chunks[action.worker_id], "who leaves has done what it had"
            self.ready.remove(action.worker_id)
            self.leaving.append(action.worker_id)
        elif isinstance(action, KillWorker):
            for group in (self.starting, self.ready, self.leaving):
                if action.worker_id in group:
                    group.remove(action.worker_id)
            self.leaving.append(action.worker_id)
        elif isinstance(action, LoadResources):
            assert action.worker_id in self.ready, "who loads ahead has answered and does not leave"
            self.loading.setdefault(action.worker_id, set()).update(action.resource_ids)
            self.ahead.extend((action.worker_id, i) for i in action.resource_ids)
        elif isinstance(action, CloseResources):
            running = self.chunks[action.worker_id]
            assert not any(set(action.resource_ids) & chunk.needs for chunk in running), "a chunk needs what is closed"
            self.closed.extend((action.worker_id, i) for i in action.resource_ids)
        elif isinstance(action, KillRunning):
            chunks = self.chunks.get(action.worker_id)
            if chunks and chunks[0].chunk_id == action.chunk_id and chunks[0].n_done == action.offset:
                self.die_running(action.worker_id)
        elif isinstance(action, ExpireTask):
            self.late.append((None, action.task_id))
        elif isinstance(action, FailItems):
            group = self.late if action.is_late else self.failed if action.excess is None else self.too_large
            group.extend((action.job_id, item) for item in action.items)
        else:
            assert isinstance(action, BreakPool)
            self.is_broken = True


def left(chunk: Chunk) -> list[int]:
    """Items of a chunk that are not settled."""
    return list(chunk.items[chunk.n_done :])
