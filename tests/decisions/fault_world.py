"""A world of processes and threads, without any: the scheduler meets every order of events that real ones can bring.

`FakePool` carries actions out at once. Here they take their time. Each thread (two callers, and the one that does I/O)
has a list of actions that it carries out one by one, while the others go on; a chunk is encoded, and sent a moment
later; a worker takes what lies in its inbox, claims items by tickets, answers into a channel that is read later, and
may stop, hang or die at any point. What happens next is drawn by a seeded generator, so a schedule that went wrong can
be looked at again.

Checked: each item has one outcome, runs to its end at most once and begins at most as often as its retries allow; an
item fails only if its worker died in it, or for the reason that the world made up; nobody idles beside work; all ends;
and nothing is remembered of what is over.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
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
from amorsize_executor.decisions.terms import Terms
from amorsize_executor.decisions.work import Chunk

#: A map and an index in it, or None and the id of a submitted task.
Item = tuple[int | None, int]
#: What a worker says that it runs: chunk, offset, number of items.
Mark = tuple[int, int, int]

KEYS = ("short", "long", "unknown")
RESOURCES = (1, 2)
_CALLERS = (0, 1)
_IO = 2
#: Rounds in which everybody may act until all must have ended.
_MOST_ROUNDS = 50_000


class Process:
    """A worker, seen from inside and from outside."""

    __slots__ = (
        "claimed", "dies_at_start", "frame", "has_begun", "inbox", "is_dead", "is_ready", "is_stopped", "is_stuck",
        "known", "loaded", "mark", "offset", "outbox", "tickets", "unsent",
    )  # fmt: skip

    def __init__(self) -> None:
        self.inbox: deque[tuple[Any, ...]] = deque()
        self.outbox: deque[tuple[Any, ...]] = deque()  # sent, and not read
        self.unsent: tuple[int, int, int] | None = None  # chunk, offset, number of items whose results wait
        self.tickets = [0, 0]
        self.frame: tuple[Any, ...] | None = None  # the chunk that runs
        self.offset = self.claimed = 0
        self.mark: Mark | None = None
        self.has_begun = False  # the item at `offset`
        self.is_ready = self.is_dead = self.is_stopped = self.is_stuck = self.dies_at_start = False
        self.loaded: set[int] = set()
        self.known = False  # the functions


class FaultWorld:
    """One schedule: `run` plays it, and raises AssertionError where something is wrong."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        model = CostModel()
        model.observe("short", 100, 0.01)
        model.observe("long", 1, 1.0)
        self.retries = rng.choice((0, 0, 1, 2))
        max_workers = rng.randint(1, 4)
        self.scheduler = Scheduler(
            model,
            max_workers=max_workers,
            min_workers=rng.choice((0, 0, 1)),
            idle_timeout_s=rng.choice((None, 1.0)),
            max_tasks_per_child=rng.choice((None, None, None, 1, 3, 10)),
            retries=self.retries,
        )
        self.has_resources = rng.random() < 0.25
        if self.has_resources:
            self.scheduler.resource_budget_nbytes = 10
        self.now = 0.0
        self.n_events = 0
        self.lists: tuple[deque[Any], ...] = (deque(), deque(), deque())  # by thread: actions that it is to carry out
        self.to_do: deque[Action] = deque()  # of the I/O thread
        self.processes: dict[int, Process] = {}  # from their start until their death is told
        self.ended_for: dict[int, tuple[int, int]] = {}  # stopped, to see what they run
        self.is_shut_down = self.is_broken = False
        self.n_ids = 0
        self.futures: dict[int, str] = {}  # of tasks that have no outcome: "pending", "running"
        self.jobs: dict[int, int] = {}  # maps whose results are wanted, and how many items they have
        self.open: set[int] = set()  # those that may grow
        self.held: set[int] = set()
        self.inline: list[tuple[int, range]] = []
        self.outcomes: dict[Item, str] = {}
        self.begun: Counter[Item] = Counter()
        self.ended: Counter[Item] = Counter()
        self.culprits: dict[int, Item] = {}  # by dead worker
        self.own_retries: dict[int | None, int] = {}  # by map; tasks have ids of their own
        self.needy: set[int] = set()
        self.fault_rate = rng.choice((0.0, 0.05, 0.2))
        self.leaks = rng.random() < 0.25
        self.used: Counter[int] = Counter()  # memory of leaking workers, in bytes
        if self.leaks:
            model.observe_worker_start(0.0)  # so soon is a worker old enough

    # ------------------------------------------------------------------ the play

    def run(self, n_events: int = 60) -> None:
        """Let things happen, then see that all ends."""
        rng = self.rng
        for _ in range(n_events):
            self.happen(rng.random())
        self.finish()

    def happen(self, what: float) -> None:
        """One of those who can act does."""
        self.n_events += 1
        if what < 0.3:
            self.step_caller(self.rng.choice(_CALLERS))
        elif what < 0.6:
            self.step_io()
        else:
            self.step_worker()

    def finish(self) -> None:
        """Nothing new comes: all that came must have an outcome, and everybody leave."""
        if not self.is_shut_down:
            self.shutdown(_CALLERS[0], self.rng.random() < 0.3)
        for n_rounds in range(_MOST_ROUNDS):
            self.n_events += 1
            if self.fault_rate:
                self.end_faults(n_rounds)
            for caller in _CALLERS:
                if self.lists[caller]:
                    self.carry_out(caller)
                elif self.inline:
                    self.end_inline(caller)
            for job_id in list(self.open):
                self.close_map(job_id)
            for job_id in list(self.held):
                self.release(_CALLERS[0], job_id)
            is_quiet = not self.step_io(may_wait=False)
            for worker_id in list(self.processes):
                is_quiet = not self.work(worker_id) and is_quiet
            if is_quiet and not any(self.lists) and not self.to_do and not self.inline:
                if self.scheduler.is_drained:
                    break
                if self.fault_rate:
                    continue
                self.check_rest()
                wait_s = self.scheduler.next_tick(self.now)
                assert wait_s is not None, "work is left, nobody has anything to do, and no time is waited for"
                self.now += wait_s + 1e-6
                self.tick()
            assert n_rounds < _MOST_ROUNDS - 1, "it never ends"
        self.check_end()

    def end_faults(self, n_rounds: int) -> None:
        """Deaths go on for a while, so that they meet what ends, too."""
        if n_rounds < 20:
            if self.processes and self.rng.random() < self.fault_rate:
                self.kill(self.rng.choice(tuple(self.processes)))
            return
        self.fault_rate = 0.0
        for process in self.processes.values():
            process.is_stuck = process.dies_at_start = False

    # ------------------------------------------------------------------ callers

    def step_caller(self, thread: int) -> None:
        if self.lists[thread]:
            self.carry_out(thread)
            return
        rng = self.rng
        if self.is_shut_down:
            if self.inline:
                self.end_inline(thread)
            return
        what = rng.random()
        if what < 0.35:
            self.submit(thread)
        elif what < 0.55:
            self.add_map(thread)
        elif what < 0.62 and self.held:
            self.release(thread, rng.choice(tuple(self.held)))
        elif what < 0.64 and self.jobs:
            self.hold(thread, rng.choice(tuple(self.jobs)))
        elif what < 0.66 and self.open:
            self.extend(thread, rng.choice(tuple(self.open)))
        elif what < 0.74 and self.jobs:
            self.take_inline(rng.choice(tuple(self.jobs)), thread)
        elif what < 0.80 and self.inline:
            self.end_inline(thread)
        elif what < 0.84 and self.jobs:
            self.cancel_map(rng.choice(tuple(self.jobs)))
        elif what < 0.88 and self.futures:
            self.cancel_future(rng.choice(tuple(self.futures)))
        elif what < 0.91:
            self.add(thread, self.scheduler.resize(rng.randint(1, 5), self.now))
        elif what < 0.93:
            if rng.random() < 0.5:
                self.add(thread, self.scheduler.want_workers(rng.randint(1, 4), self.now))
            else:
                self.scheduler.want_workers_at(rng.randint(1, 4), self.now + rng.random())
        elif what < 0.94:
            self.scheduler.memory_cap = rng.choice((None, 1, 2))
            self.add(thread, self.scheduler.tick(self.now))
        elif what < 0.96 and self.has_resources:
            self.touch_resource(thread)
        elif what < 0.965:
            self.shutdown(thread, rng.random() < 0.5)

    def terms(self) -> Terms | None:
        rng = self.rng
        if rng.random() < 0.6:
            return None
        return Terms(rng.choice((0, 0, -1, 3)), rng.choice((None, 0, 1)), rng.choice((None, None, 0.0, 0.6, 5.0)))

    def needs(self, item: int) -> Needs:
        if not self.has_resources or self.rng.random() < 0.5:
            return NOTHING
        found = frozenset(i for i in RESOURCES if self.rng.random() < 0.5)
        for resource_id in found:
            self.scheduler.add_resource(resource_id)
        if found:
            self.needy.add(item)
        return found

    def submit(self, thread: int) -> None:
        rng = self.rng
        for _ in range(rng.choice((1, 1, 1, 3, 8))):
            self.n_ids += 1
            task_id, terms = self.n_ids, self.terms()
            needs = self.needs(task_id)
            until = None
            if terms is not None:
                if terms.timeout_s is not None:
                    until = self.now + terms.timeout_s
                if terms.retries is not None:
                    self.own_retries[task_id] = terms.retries
            self.futures[task_id] = "pending"
            actions = self.scheduler.submit(
                task_id, rng.choice(KEYS), self.now, is_alone=rng.random() < 0.1, terms=terms, until=until, needs=needs
            )
            self.add(thread, actions)

    def add_map(self, thread: int) -> None:
        rng = self.rng
        self.n_ids += 1
        job_id, n_items, terms = self.n_ids, rng.choice((1, 3, 20, 100)), self.terms() or Terms()
        needs = self.needs(job_id)
        is_open = rng.random() < 0.3
        if terms.retries is not None:
            self.own_retries[job_id] = terms.retries
        self.jobs[job_id] = n_items
        self.held.add(job_id)
        if is_open:
            self.open.add(job_id)
        chunksize = rng.choice((None, None, 1, 7))
        self.scheduler.add_map(
            job_id, rng.choice(KEYS), n_items, chunksize=chunksize, closed=not is_open, terms=terms, needs=needs
        )
        if rng.random() < 0.1:
            giants = [(rng.randrange(n_items), rng.uniform(0.1, 9.0))]
            self.scheduler.pull_ahead(job_id, giants)
        if rng.random() < 0.7:
            self.release(thread, job_id)

    def release(self, thread: int, job_id: int) -> None:
        self.held.discard(job_id)
        self.add(thread, self.scheduler.release_map(job_id, self.rng.randint(1, 5), self.now))

    def hold(self, thread: int, job_id: int) -> None:
        self.held.add(job_id)
        self.add(thread, self.scheduler.hold_map(job_id))

    def extend(self, thread: int, job_id: int) -> None:
        closes = self.rng.random() < 0.4
        self.jobs[job_id] += self.rng.choice((0, 1, 10))
        if closes:
            self.open.discard(job_id)
        self.add(thread, self.scheduler.extend_map(job_id, self.jobs[job_id], closes, self.now))

    def close_map(self, job_id: int) -> None:
        self.open.discard(job_id)
        self.add(_CALLERS[0], self.scheduler.extend_map(job_id, self.jobs[job_id], True, self.now))

    def cancel_map(self, job_id: int) -> None:
        self.add(_CALLERS[0], self.scheduler.cancel_map(job_id))
        self.forget_map(job_id)

    def forget_map(self, job_id: int) -> None:
        del self.jobs[job_id]
        self.open.discard(job_id)
        self.held.discard(job_id)

    def cancel_future(self, task_id: int) -> None:
        """As `Future.cancel`: the scheduler is not told."""
        if self.futures[task_id] == "pending":
            self.settle((None, task_id), "cancelled")

    def take_inline(self, job_id: int, thread: int) -> None:
        if self.rng.random() < 0.3:
            self.add(thread, self.scheduler.take_for_caller(job_id, self.now))
        taken = self.scheduler.take_inline(job_id, self.rng.choice((1, 5, 30)))
        if taken:
            self.inline.append((job_id, taken))

    def end_inline(self, thread: int) -> None:
        """The caller has run some of what it took, and gives the others back."""
        job_id, taken = self.inline.pop(self.rng.randrange(len(self.inline)))
        n = self.rng.choice((0, len(taken), len(taken) // 2))
        if job_id in self.jobs:
            for i in taken[:n]:
                self.begun[job_id, i] += 1
                self.ended[job_id, i] += 1
                self.settle((job_id, i), "inline")
        self.scheduler.inline_done(job_id, n)
        self.scheduler.return_inline(job_id, taken[n:])
        self.add(thread, self.scheduler.tick(self.now))

    def touch_resource(self, thread: int) -> None:
        resource_id = self.rng.choice(RESOURCES)
        if self.rng.random() < 0.5:
            self.add(thread, self.scheduler.close_resource(resource_id, self.now))
        else:
            self.scheduler.add_resource(resource_id)
            self.add(thread, self.scheduler.load(resource_id, self.now))

    def shutdown(self, thread: int, cancels: bool) -> None:
        self.is_shut_down = True
        if cancels:
            for task_id in self.scheduler.drop_queue():
                if task_id in self.futures:
                    self.settle((None, task_id), "cancelled")
        for job_id in list(self.jobs):
            if job_id in self.open:
                self.open.discard(job_id)
                self.add(thread, self.scheduler.extend_map(job_id, self.jobs[job_id], True, self.now))
            if cancels:
                waiting, actions = self.scheduler.drop_map(job_id, self.now)
                self.add(thread, actions)
                for i in waiting:
                    self.settle((job_id, i), "cancelled")
        self.add(thread, self.scheduler.shutdown(self.now))

    # ------------------------------------------------------------------ actions

    def add(self, thread: int, actions: Sequence[Action]) -> None:
        self.lists[thread].extend(actions)

    def carry_out(self, thread: int) -> None:
        """A thread carries out the first of its actions."""
        action = self.lists[thread].popleft()
        kind = type(action)
        if kind is SendChunk:
            self.encode(thread, action.worker_id, action.chunk, is_resent=False)
        elif kind is TakeBack:
            self.take_back(thread, action.worker_id, action.chunk)
        elif kind is LoadResources:
            for resource_id in action.resource_ids:
                self.post(action.worker_id, ("load", resource_id))
        elif kind is CloseResources:
            self.post(action.worker_id, ("close", action.resource_ids))
        elif kind is tuple:  # what was encoded
            action[0](*action[1:])
        else:
            self.to_do.append(action)

    def encode(self, thread: int, worker_id: int, chunk: Chunk, *, is_resent: bool) -> None:
        items: list[int | None] = list(chunk.items)
        if not items:
            assert is_resent, "no chunk is empty"
            self.lists[thread].extendleft(reversed(self.scheduler.chunk_cut(worker_id, chunk.chunk_id, self.now)))
            return
        if self.rng.random() < 0.1 * self.fault_rate:  # no room for it
            if self.scheduler.chunk(worker_id, chunk.chunk_id) is chunk:
                self.close_chunk(thread, chunk)
                for item in items:
                    assert item is not None
                    self.settle_first((chunk.job_id, item), "no room")
            return
        if chunk.job_id is None:
            items = [item if self.begin(item) else None for item in items]
            if not any(items):
                self.close_chunk(thread, chunk)
                return
        elif chunk.job_id not in self.jobs:
            self.close_chunk(thread, chunk)
            return
        self.lists[thread].appendleft((self.send, worker_id, chunk, items, is_resent))

    def send(self, worker_id: int, chunk: Chunk, items: list[int | None], is_resent: bool) -> None:
        process = self.processes.get(worker_id)
        if process is None:
            return
        if chunk.slot is not None and not is_resent:
            process.tickets[chunk.slot] = len(items)
        self.post(worker_id, ("run", chunk.chunk_id, chunk.slot, chunk.is_whole, chunk.job_id, items, chunk.needs))

    def post(self, worker_id: int, frame: tuple[Any, ...]) -> None:
        process = self.processes.get(worker_id)
        if process is not None and not process.is_dead:
            process.inbox.append(frame)

    def begin(self, task_id: int | None) -> bool:
        assert task_id is not None
        if task_id not in self.futures:
            return False
        self.futures[task_id] = "running"
        return True

    def close_chunk(self, thread: int, chunk: Chunk) -> None:
        n = len(chunk.items) - chunk.n_done
        actions = self.scheduler.items_done(chunk.worker_id, chunk.chunk_id, n, self.now)
        self.lists[thread].extendleft(reversed(actions))

    def take_back(self, thread: int, worker_id: int, chunk: Chunk) -> None:
        if self.scheduler.chunk(worker_id, chunk.chunk_id) is not chunk or chunk.slot is None:
            return
        process = self.processes.get(worker_id)
        n = 0
        if process is not None:
            n, process.tickets[chunk.slot] = process.tickets[chunk.slot], 0
        actions = self.scheduler.taken_back(worker_id, chunk.chunk_id, n, self.now)
        self.lists[thread].extendleft(reversed(actions))

    # ------------------------------------------------------------------ the I/O thread

    def step_io(self, *, may_wait: bool = True) -> bool:
        """The I/O thread does the next thing; whether there was one."""
        if self.lists[_IO]:
            self.carry_out(_IO)
            return True
        if self.to_do and not (may_wait and self.rng.random() < 0.2):
            self.do(self.to_do.popleft())
            return True
        if self.ended_for:
            self.go_on()
            return True
        ready = [i for i, process in self.processes.items() if process.outbox or process.is_dead]
        if ready:
            worker_id = self.rng.choice(ready)
            process = self.processes[worker_id]
            if process.outbox:
                self.handle(worker_id, process.outbox.popleft())
            else:
                self.tell_death(worker_id)
            return True
        if may_wait:
            self.now += self.rng.choice((0.0, 0.01, 0.01, 0.5, 5.0))
            self.tick()
            if not any(self.lists) and not self.to_do:
                self.check_rest()
        return False

    def tick(self) -> None:
        actions = self.scheduler.tick(self.now)
        timed = self.scheduler.timed_workers()
        if timed:
            running = {i: self.processes[i].mark for i in timed if i in self.processes}
            actions += self.scheduler.look(running, self.now)
        self.add(_IO, actions)

    def do(self, action: Action) -> None:
        if isinstance(action, StartWorker):
            if not self.scheduler.has_worker(action.worker_id):
                return
            if self.rng.random() < 0.2 * self.fault_rate:  # it cannot be started
                self.add(_IO, self.scheduler.worker_died(action.worker_id, None, self.now))
                return
            process = self.processes[action.worker_id] = Process()
            process.dies_at_start = self.rng.random() < 0.5 * self.fault_rate
            n_live = sum(not process.is_dead for process in self.processes.values())
            assert n_live <= len(self.scheduler.worker_ids()), "more processes than the scheduler knows"
        elif isinstance(action, RetireWorker):
            self.post(action.worker_id, ("exit",))
        elif isinstance(action, KillWorker):
            if action.worker_id in self.processes:
                self.kill(action.worker_id)
            else:  # it was not started, and will not be
                self.add(_IO, self.scheduler.worker_died(action.worker_id, None, self.now))
        elif isinstance(action, KillRunning):
            process_or_none = self.processes.get(action.worker_id)
            if process_or_none is not None and action.worker_id not in self.ended_for:
                self.ended_for[action.worker_id] = (action.chunk_id, action.offset)
                process_or_none.is_stopped = True
        elif isinstance(action, ExpireTask):
            if action.task_id in self.futures:
                self.settle((None, action.task_id), "late")
        elif isinstance(action, FailItems):
            for i in action.items:
                item = (action.job_id, i)
                assert self.culprits.get(action.worker_id) == item, f"{item} fails, and did not run in the dead worker"
                self.settle_first(item, "late" if action.is_late else "died")
        else:
            assert isinstance(action, BreakPool)
            self.break_pool()

    def go_on(self) -> None:
        worker_id, (chunk_id, offset) = self.ended_for.popitem()
        process = self.processes.get(worker_id)
        if process is None:
            return
        process.is_stopped = False
        if process.mark == (chunk_id, offset, 1):
            self.kill(worker_id)

    def handle(self, worker_id: int, message: tuple[Any, ...]) -> None:
        kind = message[0]
        scheduler = self.scheduler
        if kind == "ready":
            self.add(_IO, scheduler.worker_ready(worker_id, self.now))
        elif kind == "results":
            _, chunk_id, offset, n = message
            chunk = scheduler.chunk(worker_id, chunk_id)
            if chunk is None or offset < chunk.n_done:
                return
            items = chunk.items[offset : offset + n]
            assert offset == chunk.n_done, "results come in order"
            assert len(items) == n, "a result of an item that was taken back"
            if self.leaks:
                self.used[worker_id] += n << 28
                told = (chunk_id, offset + n - 1, 0, self.used[worker_id])
                self.add(_IO, scheduler.memory_told(worker_id, *told, self.now))
            actions = scheduler.items_done(worker_id, chunk_id, n, self.now)
            for i in items:
                self.settle_first((chunk.job_id, i), "done")
            self.add(_IO, actions)
        elif kind == "need":
            chunk = scheduler.chunk_resent(worker_id, message[1])
            if chunk is not None:
                self.encode(_IO, worker_id, chunk, is_resent=True)
        elif kind == "cut":
            self.add(_IO, scheduler.chunk_cut(worker_id, message[1], self.now))
        elif kind == "loaded":
            self.add(_IO, scheduler.resource_loaded(worker_id, message[1], 0.5, self.rng.randint(0, 12), self.now))
        else:
            self.add(_IO, scheduler.load_done(worker_id, message[1], message[2], self.now))

    def tell_death(self, worker_id: int) -> None:
        process = self.processes.pop(worker_id)
        mark = process.mark
        chunk = self.scheduler.chunk(worker_id, mark[0]) if mark is not None else None
        if chunk is not None and mark is not None and chunk.n_done <= mark[1] < len(chunk.items):
            self.culprits[worker_id] = (chunk.job_id, chunk.items[mark[1]])
        self.add(_IO, self.scheduler.worker_died(worker_id, mark, self.now))

    def break_pool(self) -> None:
        self.is_broken = self.is_shut_down = True
        for task_id in list(self.futures):
            self.settle((None, task_id), "broken")
        for job_id in list(self.jobs):
            self.forget_map(job_id)
        self.add(_IO, self.scheduler.give_up())

    # ------------------------------------------------------------------ workers

    def step_worker(self) -> None:
        if not self.processes:
            return
        worker_id = self.rng.choice(tuple(self.processes))
        process = self.processes[worker_id]
        luck = self.rng.random()
        if luck < 0.3 * self.fault_rate:
            self.kill(worker_id)
        elif luck < 0.6 * self.fault_rate:
            process.is_stuck = True
        elif luck < 0.9 * self.fault_rate:
            process.is_stuck = False
        else:
            for _ in range(self.rng.choice((1, 2, 3, 5, 9))):
                if not self.work(worker_id):
                    return

    def kill(self, worker_id: int) -> None:
        process = self.processes.get(worker_id)
        if process is not None and not process.is_dead:
            process.is_dead = True
            self.flush(process)  # it stands in memory that outlives the process

    def work(self, worker_id: int) -> bool:
        """A worker takes its next step; False if it cannot."""
        process = self.processes[worker_id]
        if process.is_dead or process.is_stopped or process.is_stuck:
            return False
        if not process.is_ready:
            if process.dies_at_start:
                self.kill(worker_id)
                return False
            process.is_ready = True
            process.outbox.append(("ready",))
            return True
        if process.frame is not None:
            self.run_item(process)
            return True
        if not process.inbox:
            return False
        frame = process.inbox.popleft()
        kind = frame[0]
        if kind == "exit":
            process.is_dead = True
        elif kind == "load":
            is_loaded = self.rng.random() > self.fault_rate
            if is_loaded and frame[1] not in process.loaded:
                process.loaded.add(frame[1])
                process.outbox.append(("loaded", frame[1]))
            process.outbox.append(("load done", frame[1], is_loaded))
        elif kind == "close":
            process.loaded.difference_update(frame[1])
        else:
            self.take_chunk(process, frame)
        return True

    def take_chunk(self, process: Process, frame: tuple[Any, ...]) -> None:
        _, chunk_id, slot, is_whole, _, items, needs = frame
        process.mark = (chunk_id, 0, 1)
        if not process.known and self.rng.random() < 0.3:
            process.known = True
            process.mark = None
            process.outbox.append(("need", chunk_id))
            return
        process.known = self.rng.random() > 0.02
        for resource_id in sorted(needs - process.loaded):
            process.loaded.add(resource_id)
            process.outbox.append(("loaded", resource_id))
        process.frame, process.offset = frame, 0
        process.claimed = len(items) if slot is None else 0
        if slot is not None and is_whole:
            process.claimed = process.tickets[slot]
            process.tickets[slot] = 0

    def run_item(self, process: Process) -> None:
        """Claim and begin the next item, or end the one that runs."""
        assert process.frame is not None
        _, chunk_id, slot, _, job_id, items, _ = process.frame
        offset = process.offset
        if offset == len(items):
            self.flush(process)
            process.frame = process.mark = None
            return
        if offset == process.claimed:
            n = min(process.tickets[slot], self.rng.choice((1, 1, 4)))
            process.tickets[slot] -= n
            process.claimed += n
            if not n:  # the others were taken back
                self.flush(process)
                process.frame = process.mark = None
                process.outbox.append(("cut", chunk_id))
                return
        if not process.has_begun:
            process.has_begun = True
            process.mark = (chunk_id, offset, 1)
            if items[offset] is not None:
                self.begun[job_id, items[offset]] += 1
            return
        process.has_begun = False
        if items[offset] is not None:
            self.ended[job_id, items[offset]] += 1
        process.offset += 1
        if process.unsent is None:
            process.unsent = (chunk_id, offset, 1)
        else:
            process.unsent = (chunk_id, process.unsent[1], process.unsent[2] + 1)
        if self.rng.random() < 0.4:
            self.flush(process)

    def flush(self, process: Process) -> None:
        if process.unsent is not None:
            process.outbox.append(("results", *process.unsent))
            process.unsent = None

    # ------------------------------------------------------------------ what must hold

    def settle(self, item: Item, how: str) -> None:
        """An item has an outcome: it must be the only one."""
        job_id, i = item
        if job_id is None:
            del self.futures[i]
        assert item not in self.outcomes, f"{item} is {how} and was {self.outcomes[item]}"
        self.outcomes[item] = how

    def settle_first(self, item: Item, how: str) -> None:
        """An item has an outcome that nobody may want any more."""
        job_id, i = item
        if job_id is None:
            if i in self.futures:
                self.settle(item, how)
        elif job_id in self.jobs:
            self.settle(item, how)

    def check_rest(self) -> None:
        """Between events of which nobody has anything to tell: nobody idles beside work, and somebody comes for it."""
        scheduler = self.scheduler
        if any(self.lists) or self.to_do or any(p.outbox or p.is_dead for p in self.processes.values()):
            return
        waits = [job_id for job_id in self.jobs if job_id not in self.held and scheduler.n_waiting(job_id)]
        n_queued = scheduler.n_queued
        if scheduler.n_idle and not self.needy:
            assert not waits, "a worker idles beside a map"
            assert not n_queued, "a worker idles beside a queue"
        if (waits or n_queued) and not scheduler.worker_ids():
            assert scheduler.next_tick(self.now) is not None, "work waits, and nobody comes"

    def check_end(self) -> None:
        for job_id, n_items in self.jobs.items():
            for i in range(n_items):
                assert (job_id, i) in self.outcomes, f"item {i} of map {job_id} is lost"
        assert not self.futures, f"tasks are lost: {self.futures}"
        for item, n in self.ended.items():
            assert n == 1, f"{item} ran to its end {n} times"
        for item, n in self.begun.items():
            job_id, i = item
            retries = self.own_retries.get(i if job_id is None else job_id, self.retries)
            assert n <= 1 + retries, f"{item} began {n} times"
        assert not self.processes, "processes are left"
        assert not self.lists[_IO], "actions are left"
        self.check_memory()

    def check_memory(self) -> None:
        """Nothing is remembered of what is over."""
        self.scheduler.tick(self.now)  # which looks after tasks that were late
        for name in _EMPTY_AT_THE_END:
            assert not getattr(self.scheduler, name), f"{name} still holds {getattr(self.scheduler, name)}"
        limits = self.scheduler._limits
        for name in ("deadlines", "timed", "late", "_seen"):
            assert not getattr(limits, name), f"the limits' {name} still holds {getattr(limits, name)}"
        queue = self.scheduler._queue
        for name in ("levels", "alone", "terms", "late", "_keys", "_dropped"):
            assert not getattr(queue, name), f"the queue's {name} still holds {getattr(queue, name)}"


#: What the scheduler knows of work and workers.
_EMPTY_AT_THE_END = (
    "_workers", "_idle", "_partial", "_laden", "_jobs", "_lane_of", "_attempts",
)  # fmt: skip


def play(seed: int, n_events: int = 60, make: Callable[[int], FaultWorld] = FaultWorld) -> FaultWorld:
    """Play one schedule; an AssertionError names its seed."""
    world = make(seed)
    try:
        world.run(n_events)
    except Exception as error:
        raise AssertionError(f"schedule {seed}: {type(error).__name__}: {error}") from error
    return world
