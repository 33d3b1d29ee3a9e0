"""Whatever happens, in whatever order: no item is lost, none runs twice, and nobody idles beside work."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from amorsize_executor.decisions import planner
from amorsize_executor.decisions.cost_model import CostModel, FunctionCost
from amorsize_executor.decisions.memory import Room, Sample
from amorsize_executor.decisions.planner import PoolState, chunk_size, inline_batch, plan_map
from amorsize_executor.decisions.resources import NOTHING, Needs
from amorsize_executor.decisions.terms import Terms

from .fake_pool import FakePool, Item, left

QUICK = settings(max_examples=200, deadline=None, derandomize=True)

#: What tasks and maps are submitted with.
terms = st.none() | st.builds(
    Terms,
    priority=st.sampled_from([0, 0, -1, 3]),
    retries=st.none() | st.integers(0, 1),
    timeout_s=st.sampled_from([None, None, 0.0, 0.6, 5.0]),
)

#: Known to take 100 us, 1 s, and not known.
KEYS = ("short", "long", "unknown")
RESOURCES = (1, 2)
NEEDS = st.sampled_from([NOTHING, NOTHING, frozenset({1}), frozenset({2}), frozenset({1, 2})])


class Events(RuleBasedStateMachine):
    """Every event that the scheduler can meet, in any order."""

    @initialize(
        max_workers=st.integers(1, 4),
        min_workers=st.integers(0, 2),
        retries=st.integers(0, 2),
        idle_timeout_s=st.sampled_from([None, 1.0]),
        max_tasks_per_child=st.sampled_from([None, None, 1, 3, 10]),
    )
    def begin(
        self,
        max_workers: int,
        min_workers: int,
        retries: int,
        idle_timeout_s: float | None,
        max_tasks_per_child: int | None,
    ) -> None:
        model = CostModel()
        model.observe("short", 100, 0.01)
        model.observe("long", 1, 1.0)
        self.retries = retries
        self.make_pool = partial(
            FakePool,
            max_workers,
            cost_model=model,
            min_workers=min(min_workers, max_workers),
            retries=retries,
            idle_timeout_s=idle_timeout_s,
            max_tasks_per_child=max_tasks_per_child,
        )
        self.begin_anew()

    def begin_anew(self) -> None:
        self.pool = self.make_pool()
        self.scheduler = self.pool.scheduler
        self.n_ids = 0
        self.tasks: set[int] = set()
        self.dropped: set[int] = set()
        self.sizes: dict[int, int] = {}  # of maps that nobody cancelled
        self.open: set[int] = set()  # maps that may grow
        self.released: set[int] = set()
        self.inline: list[tuple[int, range]] = []
        self.by_caller: Counter[Item] = Counter()
        self.by_nobody: Counter[Item] = Counter()  # dropped with their map
        self.crashes: Counter[Item] = Counter()
        self.expected_failures: list[Item] = []
        self.own_retries: dict[Item, int] = {}
        self.map_retries: dict[int, int | None] = {}
        self.needy: set[int] = set()  # tasks and maps that need resources
        self.scheduler.resource_budget_nbytes = 10
        for resource_id in RESOURCES:
            self.scheduler.add_resource(resource_id)

    # work arrives

    def an_id(self, needs: Needs) -> int:
        self.n_ids += 1
        for resource_id in needs:
            self.needy.add(self.n_ids)
            self.scheduler.add_resource(resource_id)  # as an executor does before it submits
        return self.n_ids

    @rule(key=st.sampled_from(KEYS), is_alone=st.booleans(), count=st.integers(1, 5), terms=terms, needs=NEEDS)
    def submit(self, key: str, is_alone: bool, count: int, terms: Terms | None, needs: Needs) -> None:
        now = self.pool.now
        until = None if terms is None or terms.timeout_s is None else now + terms.timeout_s
        for _ in range(count):
            task_id = self.an_id(needs)
            self.tasks.add(task_id)
            if terms is not None and terms.retries is not None:
                self.own_retries[None, task_id] = terms.retries
            self.pool.do(
                self.scheduler.submit(task_id, key, now, is_alone=is_alone, terms=terms, until=until, needs=needs)
            )

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def end_tasks(self, data: st.DataObject) -> None:
        """Nobody wants some tasks any more, whatever has become of them."""
        some = st.lists(st.sampled_from(sorted(self.tasks)), unique=True)
        self.pool.do(self.scheduler.end_tasks(data.draw(some, label="tasks"), self.pool.now))

    @rule(
        key=st.sampled_from(KEYS),
        n_items=st.integers(0, 200),
        chunksize=st.sampled_from([None, None, 1, 7]),
        is_open=st.booleans(),
        terms=terms,
        needs=NEEDS,
    )
    def add_map(
        self, key: str, n_items: int, chunksize: int | None, is_open: bool, terms: Terms | None, needs: Needs
    ) -> None:
        job_id = self.an_id(needs)
        terms = terms or Terms()
        self.scheduler.add_map(job_id, key, n_items, chunksize=chunksize, closed=not is_open, terms=terms, needs=needs)
        self.map_retries[job_id] = terms.retries
        self.sizes[self.n_ids] = n_items
        if is_open:
            self.open.add(self.n_ids)

    def a_map(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.sizes)), label="map")

    @precondition(lambda self: self.sizes)
    @rule(data=st.data(), n_workers=st.integers(1, 5))
    def release_map(self, data: st.DataObject, n_workers: int) -> None:
        job_id = self.a_map(data)
        self.released.add(job_id)
        self.pool.do(self.scheduler.release_map(job_id, n_workers, self.pool.now))

    @precondition(lambda self: self.sizes)
    @rule(data=st.data())
    def hold_map(self, data: st.DataObject) -> None:
        job_id = self.a_map(data)
        self.released.discard(job_id)
        self.pool.do(self.scheduler.hold_map(job_id))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), more=st.integers(0, 20), closes=st.booleans())
    def extend_map(self, data: st.DataObject, more: int, closes: bool) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.open)), label="map")
        self.sizes[job_id] += more
        if closes:
            self.open.remove(job_id)
        self.pool.do(self.scheduler.extend_map(job_id, self.sizes[job_id], closes, self.pool.now))

    @precondition(lambda self: self.sizes)
    @rule(data=st.data())
    def pull_ahead(self, data: st.DataObject) -> None:
        job_id = self.a_map(data)
        indices = st.integers(0, max(self.sizes[job_id] - 1, 0))
        giants = data.draw(st.lists(st.tuples(indices, st.floats(0.1, 10)), unique_by=lambda pair: pair[0]))
        self.scheduler.pull_ahead(job_id, giants)

    @precondition(lambda self: self.sizes)
    @rule(data=st.data())
    def cancel_map(self, data: st.DataObject) -> None:
        job_id = self.a_map(data)
        actions = self.scheduler.cancel_map(job_id)
        del self.sizes[job_id]
        self.open.discard(job_id)
        self.pool.do(actions)

    @precondition(lambda self: self.sizes)
    @rule(data=st.data())
    def drop_map(self, data: st.DataObject) -> None:
        job_id = self.a_map(data)
        self.open.discard(job_id)
        waiting, actions = self.scheduler.drop_map(job_id, self.pool.now)
        self.by_nobody.update((job_id, i) for i in waiting)
        self.pool.do(actions)
        assert not self.scheduler.n_waiting(job_id)

    # the caller works

    @precondition(lambda self: self.sizes)
    @rule(data=st.data(), most=st.integers(1, 20))
    def take_inline(self, data: st.DataObject, most: int) -> None:
        job_id = self.a_map(data)
        taken = self.scheduler.take_inline(job_id, most)
        assert len(taken) <= most
        if taken:
            self.inline.append((job_id, taken))

    @precondition(lambda self: self.inline)
    @rule(data=st.data())
    def end_inline(self, data: st.DataObject) -> None:
        """The caller has run some of what it took, and gives the others back."""
        job_id, taken = self.inline.pop()
        n = data.draw(st.integers(0, len(taken)), label="ran")
        self.by_caller.update((job_id, i) for i in taken[:n])
        self.scheduler.return_inline(job_id, taken[n:])
        if n:
            self.scheduler.inline_done(job_id, n)
        self.pool.do(self.scheduler.tick(self.pool.now))

    # workers answer, work and die

    @precondition(lambda self: self.pool.starting)
    @rule(data=st.data(), after_s=st.sampled_from([0.0, 0.1]))
    def worker_ready(self, data: st.DataObject, after_s: float) -> None:
        self.pool.now += after_s
        self.pool.become_ready(data.draw(st.sampled_from(self.pool.starting), label="worker"))

    @precondition(lambda self: self.pool.busy())
    @rule(data=st.data(), after_s=st.sampled_from([0.0, 0.001, 1.0]), is_whole=st.booleans())
    def items_done(self, data: st.DataObject, after_s: float, is_whole: bool) -> None:
        self.pool.now += after_s
        worker_id = data.draw(st.sampled_from(self.pool.busy()), label="worker")
        n = len(left(self.pool.chunks[worker_id][0]))
        self.pool.finish(worker_id, None if is_whole else data.draw(st.integers(1, n), label="items"))

    @precondition(lambda self: self.pool.chunks)
    @rule(data=st.data())
    def worker_died(self, data: st.DataObject) -> None:
        worker_id = data.draw(st.sampled_from(sorted(self.pool.chunks)), label="worker")
        chunks = self.pool.chunks[worker_id]
        running, is_oom = None, False
        if chunks and data.draw(st.booleans(), label="ran something"):
            # Results that it wrote are in before its death is told, so at worst the mark is that of settled items.
            chunk = chunks[0]
            first = data.draw(st.integers(0, max(len(chunk.items) - 1, 0)), label="first")
            count = data.draw(st.integers(1, max(len(chunk.items) - first, 1)), label="count")
            running = (chunk.chunk_id, first, count)
            is_oom = data.draw(st.booleans(), label="killed by the kernel")
            is_wanted = not is_oom and (chunk.job_id is None or chunk.job_id in self.sizes)
            for item in chunk.items[max(first, chunk.n_done) : first + count] if is_wanted else ():
                if (chunk.job_id, item) in self.pool.late:
                    continue  # that was told
                self.crashes[chunk.job_id, item] += 1
                if self.crashes[chunk.job_id, item] > self.retries_of(chunk.job_id, item):
                    self.expected_failures.append((chunk.job_id, item))
        self.pool.die(worker_id, running, is_oom=is_oom)
        assert sorted(self.pool.failed, key=str) == sorted(self.expected_failures, key=str)
        if self.pool.is_broken:
            self.give_up()

    def failed(self) -> list[Item]:
        return self.pool.failed + self.pool.too_large

    def retries_of(self, job_id: int | None, item: int) -> int:
        own = self.own_retries.get((None, item)) if job_id is None else self.map_retries[job_id]
        return self.retries if own is None else own

    def give_up(self) -> None:
        """What the executor does with a broken pool; then it begins again with a new one."""
        self.pool.do(self.scheduler.give_up())
        assert set(self.pool.leaving) == set(self.scheduler.worker_ids())
        self.pool.leave()
        assert not self.pool.chunks
        assert self.scheduler.is_drained
        self.begin_anew()

    # resources

    @precondition(lambda self: self.pool.busy())
    @rule(
        data=st.data(),
        resource_id=st.sampled_from(RESOURCES),
        load_s=st.sampled_from([0.01, 2.0]),
        nbytes=st.integers(0, 20),
    )
    def resource_loaded(self, data: st.DataObject, resource_id: int, load_s: float, nbytes: int) -> None:
        """For a task that needs it, or unexpectedly."""
        worker_id = data.draw(st.sampled_from(self.pool.busy()), label="worker")
        self.pool.load(worker_id, resource_id, load_s, nbytes)

    @rule(resource_id=st.sampled_from(RESOURCES))
    def load_ahead(self, resource_id: int) -> None:
        self.scheduler.add_resource(resource_id)
        self.pool.do(self.scheduler.load(resource_id, self.pool.now))

    @precondition(lambda self: any(self.pool.loading.values()))
    @rule(data=st.data(), is_loaded=st.booleans())
    def load_done(self, data: st.DataObject, is_loaded: bool) -> None:
        found = [(worker_id, i) for worker_id, loads in self.pool.loading.items() for i in sorted(loads)]
        worker_id, resource_id = data.draw(st.sampled_from(found), label="worker and resource")
        if is_loaded:
            self.pool.load(worker_id, resource_id, 0.5, 5)
        self.pool.load_done(worker_id, resource_id, is_loaded=is_loaded)

    @rule(resource_id=st.sampled_from(RESOURCES))
    def close_resource(self, resource_id: int) -> None:
        self.pool.do(self.scheduler.close_resource(resource_id, self.pool.now))

    @rule(n_wanted=st.integers(0, 3))
    def want_for_ever(self, n_wanted: int) -> None:
        self.scheduler.n_wanted = n_wanted
        self.pool.wait(0.0)

    # the pool itself

    @rule(elapsed_s=st.sampled_from([0.0, 0.01, 0.5, 5.0]))
    def tick(self, elapsed_s: float) -> None:
        self.pool.wait(elapsed_s)
        in_s = self.scheduler.next_tick(self.pool.now)
        assert in_s is None or in_s > 0, "after a tick there is nothing left to do now"

    @rule(n_claimed=st.integers(0, 5))
    def claim_ahead(self, n_claimed: int) -> None:
        """Workers claim more or less ahead of what they have settled from now on."""
        self.pool.n_claimed = n_claimed

    @rule(max_workers=st.integers(1, 5))
    def resize(self, max_workers: int) -> None:
        self.pool.resize(max_workers)

    @rule(
        data=st.data(),
        free=st.sampled_from([-100, 0, 10, 100, 500, 1000, 10_000_000]),
        swap=st.sampled_from([0, 1000]),
        after_s=st.sampled_from([0.0, 0.01, 2.0]),
    )
    def look_at_memory(self, data: st.DataObject, free: int, swap: int, after_s: float) -> None:
        self.pool.now += after_s
        nbytes = st.integers(1, 1000).map(lambda n: Sample(n << 20))
        uses = {worker_id: data.draw(nbytes, label="used") for worker_id in sorted(self.pool.chunks)}
        marks = {
            i: (chunks[0].chunk_id, chunks[0].n_done, 1) if chunks else None for i, chunks in self.pool.chunks.items()
        }
        room = Room(1000 << 20, free << 20, (free + swap) << 20)
        self.pool.do(self.scheduler.look_at_memory(room, uses, marks, self.pool.now))
        assert self.scheduler.next_memory_look_s(self.scheduler.n_busy) > 0

    @precondition(lambda self: self.pool.busy())
    @rule(data=st.data(), growth=st.sampled_from([0, 100, 600]), used=st.sampled_from([10, 700]))
    def memory_told(self, data: st.DataObject, growth: int, used: int) -> None:
        worker_id = data.draw(st.sampled_from(self.pool.busy()), label="worker")
        chunk = self.pool.chunks[worker_id][0]
        offset = data.draw(st.integers(0, max(len(chunk.items) - 1, 0)), label="offset")
        now = self.pool.now
        self.scheduler.memory_told(worker_id, chunk.chunk_id, offset, growth << 20, used << 20, now)

    @rule(n_workers=st.integers(1, 5))
    def want_workers(self, n_workers: int) -> None:
        self.pool.do(self.scheduler.want_workers(n_workers, self.pool.now))

    @rule(n_workers=st.integers(1, 5), after_s=st.floats(0, 2))
    def want_workers_at(self, n_workers: int, after_s: float) -> None:
        self.scheduler.want_workers_at(n_workers, self.pool.now + after_s)

    @rule()
    def drop_queue(self) -> None:
        dropped = self.scheduler.drop_queue()
        assert len(set(dropped)) == len(dropped)
        self.dropped.update(dropped)

    # what holds after every event

    @invariant()
    def every_item_is_in_exactly_one_place(self) -> None:
        held, late = self.pool.held(), self.pool.late
        settled = [*(self.pool.runs + self.by_caller + self.by_nobody).elements(), *self.failed()]
        tasks = [i for job_id, i in held + settled if job_id is None]
        assert max(Counter(tasks).values(), default=1) == 1
        late_tasks = {i for job_id, i in late if job_id is None}  # which a worker may have, or have finished
        assert self.scheduler.n_queued + len({*tasks, *late_tasks}) + len(self.dropped) == len(self.tasks)
        taken = [(job_id, i) for job_id, items in self.inline for i in items]
        waiting = [(job_id, i) for job_id in self.sizes for i in self.scheduler.waiting_items(job_id)]
        settled += [item for item in late if item[0] is not None]
        mine = [item for item in held + settled + taken + waiting if item[0] in self.sizes]
        assert sorted(mine) == [(job_id, i) for job_id, n in sorted(self.sizes.items()) for i in range(n)]

    @invariant()
    def nobody_idles_while_items_wait(self) -> None:
        """Save for those who wait for a worker that has what they need, and shall not wait for long."""
        held = {item for job_id, item in self.pool.held() if job_id is None}
        settled = {item for job_id, item in [*self.pool.runs, *self.failed()] if job_id is None}
        late = {item for job_id, item in self.pool.late if job_id is None}
        waiting = self.tasks - held - settled - self.dropped - late
        assert len(waiting) == self.scheduler.n_queued
        released = [i for i in self.released if i in self.sizes and self.scheduler.n_waiting(i)]
        if self.pool.idle() and not self.scheduler.holds_back:
            assert {*waiting, *released} <= self.needy
            assert not waiting or self.scheduler.next_tick(self.pool.now) is not None

    @invariant()
    def the_scheduler_knows_its_workers(self) -> None:
        pool = self.pool
        assert set(self.scheduler.worker_ids()) == {*pool.starting, *pool.ready, *pool.leaving}
        assert self.scheduler.n_ready == len(pool.ready) - (self.scheduler.spare in pool.ready)
        assert self.scheduler.n_idle == len(pool.idle())

    # how it ends

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        while self.inline:
            job_id, taken = self.inline.pop()
            self.by_caller.update((job_id, i) for i in taken)
            self.scheduler.inline_done(job_id, len(taken))
        for job_id in self.sizes:
            if job_id in self.open:
                self.pool.do(self.scheduler.extend_map(job_id, self.sizes[job_id], True, self.pool.now))
            self.pool.do(self.scheduler.release_map(job_id, 1, self.pool.now))
        self.scheduler.n_wanted = 0
        self.pool.shutdown()
        for _ in range(100):  # time passes in which nobody has anything to do
            self.pool.run_until_quiet()
            if self.scheduler.is_drained:
                break
            self.pool.wait(1.0)
        assert self.scheduler.is_drained
        settled = self.pool.runs + self.by_caller + self.by_nobody + Counter(self.failed())
        assert max(settled.values(), default=1) == 1
        assert max(Counter(self.pool.late).values(), default=1) == 1
        settled += Counter(self.pool.late)
        assert {i for job_id, i in settled if job_id is None} | self.dropped == self.tasks
        assert all((job_id, i) in settled for job_id, n in self.sizes.items() for i in range(n))


TestEvents = Events.TestCase
TestEvents.settings = settings(
    max_examples=300,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


item_s = st.one_of(st.just(0.0), st.floats(1e-9, 1e4))
costs = st.builds(
    FunctionCost,
    mean_s=item_s,
    std_s=item_s,
    cpu_share=st.floats(0.0, 1.0),
    carry_s=st.floats(1e-7, 1.0),
    nbytes=st.floats(0.0, 1e9),
    n_items=st.integers(1, 10**6),
    try_alone_s=st.none() | item_s,
    return_s=st.none() | st.floats(0.0, 1.0),
    inline_s=st.floats(0.0, 1e-3),
)
pools = st.builds(
    PoolState,
    n_ready=st.integers(0, 2000),
    max_workers=st.integers(1, 2000),
    n_cpus=st.integers(1, 256),
    worker_start_s=st.floats(0.01, 10.0),
    chunk_overhead_s=st.floats(1e-6, 1e-2),
    load_s=st.just(0.0) | st.just(0.01),
)


@QUICK
@given(
    remaining=st.integers(1, 10**9),
    n_workers=st.integers(1, 10_000),
    item_s=st.none() | item_s,
    known=st.booleans(),
    nbytes=st.floats(0.0, 1e10),
    limit=st.none() | st.integers(1, 10**6),
)
def test_chunk_is_within_every_bound(
    remaining: int, n_workers: int, item_s: float | None, known: bool, nbytes: float, limit: int | None
) -> None:
    size = chunk_size(remaining, n_workers, item_s, known=known, nbytes=nbytes, limit=limit)
    assert 1 <= size <= remaining
    if size > 1:
        assert item_s is not None
        assert size * item_s <= (planner.MAX_CHUNK_S if known else planner.FIRST_CHUNK_S) * (1 + 1e-9)
        assert size * nbytes <= planner.MAX_CHUNK_NBYTES
        assert limit is None or size <= limit
        worth_it = math.ceil(planner.LAST_OVERHEADS * CostModel.CHUNK_OVERHEAD_S / max(item_s, 1e-9))
        assert size <= max(-(-remaining // n_workers), worth_it)  # nobody gets more than an equal share


@QUICK
@given(n_items=st.integers(1, 10**7), cost=costs, pool=pools, inline=st.booleans())
def test_plan_is_the_best_that_was_considered(n_items: int, cost: FunctionCost, pool: PoolState, inline: bool) -> None:
    plan = plan_map("f", n_items, cost, pool, inline=inline)
    assert plan.predicted_s is not None
    assert plan.serial_s is not None
    assert plan.n_workers <= min(pool.max_workers, n_items)
    assert (plan.n_workers, plan.predicted_s) in plan.considered
    if not plan.is_serial:
        has_started = plan.n_workers <= pool.n_ready  # those to start must promise more
        least_s = min(seconds for n, seconds in plan.considered if n and (n <= pool.n_ready or not has_started))
        assert plan.predicted_s <= 1.01 * least_s + 1e-9, "as good as the best, if not with the fewest new workers"
    if inline:
        assert plan.predicted_s <= plan.considered[0][1]
    else:
        assert not plan.is_serial
    assert str(plan)


@QUICK
@given(
    remaining=st.integers(1, 10**9),
    item_s=st.none() | item_s,
    done=st.integers(0, 10**6),
    is_known=st.booleans(),
)
def test_caller_takes_some_items_and_not_more_than_there_are(
    remaining: int, item_s: float | None, done: int, is_known: bool
) -> None:
    size = inline_batch(remaining, item_s, done, is_known)
    assert 1 <= size <= remaining
    if size > 1:
        assert item_s is not None
        assert size * item_s <= planner.INLINE_BATCH_S * (1 + 1e-9)


@QUICK
@given(st.lists(st.tuples(st.integers(1, 10_000), st.floats(1e-9, 1e3)), min_size=1, max_size=50))
def test_mean_stays_within_what_was_observed(observations: list[tuple[int, float]]) -> None:
    model = CostModel()
    for n_items, each_s in observations:
        model.observe("f", n_items, n_items * each_s)
    found = model.lookup("f")
    assert found is not None
    shortest, longest = min(s for _, s in observations), max(s for _, s in observations)
    assert shortest * (1 - 1e-9) <= found.mean_s <= longest * (1 + 1e-9)
    cautious, _ = model.next_items("f", is_confirmed=False)
    assert cautious is not None
    assert found.mean_s <= cautious <= longest * (1 + 1e-9)
    assert found.std_s >= 0
    assert found.n_items == sum(n for n, _ in observations)
