"""Whatever a user does, in whatever order, and whatever happens to workers: results are those of a simple model.

Short by default. Ten thousand steps::

    AMORSIZE_MACHINE_STEPS=10000 python -m pytest tests/faults/test_machine.py
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from amorsize_executor import AmorsizeExecutor, TaskTimeout, WorkerDied

from ..executor.tools import remaining_children
from .tasks import die, sleep_briefly, square, work

_STEPS = int(os.environ.get("AMORSIZE_MACHINE_STEPS", "100"))
_NUMBERS = st.integers(0, 59)
#: Who waits longer than this, in seconds, waits for ever, be the machine as busy as it may.
_PATIENCE_S = 300.0
#: Steps of one executor's life.
_LIFE = 50

pytestmark = pytest.mark.timeout(60 + _STEPS)


class Trouble(Exception):
    pass


class Table:
    """A resource."""

    def __init__(self, offset: int) -> None:
        self.offset = offset


def trouble_at(x: int, at: int) -> int:
    if x == at:
        raise Trouble(x)
    return x * x


def look_up(table: Table, x: int) -> int:
    return table.offset + x


def add(x: int, y: int) -> int:
    return x + y


def total(array: np.ndarray, x: int) -> float:
    return float(array.sum()) + x


def worked(x: int) -> int:
    work(x % 4 * 2e-4)
    return x * x


#: What the model knows of a function.
_FUNCTIONS: dict[str, Callable[[int], int]] = {"square": square, "worked": worked}


class Machine(RuleBasedStateMachine):
    """An executor, and what is expected of each future and iterator that is not finished."""

    def __init__(self) -> None:
        super().__init__()
        self.executor: AmorsizeExecutor | None = None

    @initialize(
        max_workers=st.integers(1, 3),
        inline=st.sampled_from(["auto", "never"]),
        retries=st.integers(0, 1),
        max_tasks_per_child=st.sampled_from([None, None, 20]),
        idle_timeout=st.sampled_from([None, 0.05, 60.0]),
    )
    def begin(self, **how: Any) -> None:
        self.executor = AmorsizeExecutor(**how)
        self.may_die = False  # a worker was killed: any task that ran then may have been lost
        self.futures: list[tuple[Future[Any], Any, tuple[type[BaseException], ...]]] = []
        self.results: list[tuple[Iterator[Any], list[Any], bool]] = []  # what is left to come, and whether in order
        self.shared = self.executor.share(np.arange(100_000.0))
        self.table = self.executor.resource(Table, 1000)

    @property
    def pool(self) -> AmorsizeExecutor:
        assert self.executor is not None
        return self.executor

    def note(self, future: Future[Any], expected: Any, *errors: type[BaseException]) -> None:
        self.futures.append((future, expected, errors))

    # submits

    @rule(x=st.integers(-5, 1000), count=st.sampled_from([1, 1, 5, 40]), name=st.sampled_from(sorted(_FUNCTIONS)))
    def submit(self, x: int, count: int, name: str) -> None:
        for i in range(count):
            self.note(self.pool.submit(_FUNCTIONS[name], x + i), (x + i) ** 2)

    @rule(x=st.integers(0, 1000), priority=st.integers(-1, 1), retries=st.integers(0, 2))
    def submit_with_options(self, x: int, priority: int, retries: int) -> None:
        view = self.pool.options(priority=priority, retries=retries, max_pending=50, timeout=_PATIENCE_S)
        self.note(view.submit(worked, x), x * x)

    @rule(x=st.integers(0, 1000))
    def submit_large(self, x: int) -> None:
        array = np.full(50_000, float(x))
        self.note(self.pool.submit(total, array, x), 50_000.0 * x + x)
        array[:] = -1.0  # which the task does not see
        self.note(self.pool.submit(np.full, 30_000, x), [x] * 30_000)

    @rule(x=st.integers(0, 1000))
    def submit_with_what_is_shared(self, x: int) -> None:
        self.note(self.pool.submit(total, self.shared, x), 100_000.0 * 99_999 / 2 + x)
        self.note(self.pool.submit(look_up, self.table, x), 1000 + x)

    @rule(x=st.integers(0, 1000))
    def submit_trouble(self, x: int) -> None:
        self.note(self.pool.submit(trouble_at, x, x), None, Trouble)

    @rule(how=st.sampled_from(["exit", "SIGKILL"]))
    def submit_death(self, how: str) -> None:
        self.note(self.pool.options(retries=0).submit(die, how), None, WorkerDied)

    @rule()
    def submit_too_long(self) -> None:
        self.note(self.pool.options(timeout=0.15).submit(sleep_briefly, 60.0), None, TaskTimeout)

    # What is there depends on who was faster, and must not decide what is drawn: so a number is drawn, for any of them.

    @rule(number=_NUMBERS)
    def cancel(self, number: int) -> None:
        if not self.futures:
            return
        i = number % len(self.futures)
        future, _, _ = self.futures[i]
        if future.cancel():
            self.futures[i] = (future, None, (CancelledError,))

    # maps

    @rule(
        name=st.sampled_from(sorted(_FUNCTIONS)),
        n_items=st.sampled_from([0, 1, 7, 40, 150]),
        chunksize=st.sampled_from([None, None, 1, 7, 1000]),
        buffersize=st.sampled_from([None, None, 1, 5, 64]),
        ordered=st.booleans(),
        is_endless=st.booleans(),
        priority=st.integers(-1, 1),
    )
    def map(
        self,
        name: str,
        n_items: int,
        chunksize: int | None,
        buffersize: int | None,
        ordered: bool,
        is_endless: bool,
        priority: int,
    ) -> None:
        items: Any = iter(range(n_items)) if is_endless else range(n_items)
        pool = self.pool if priority == 0 else self.pool.options(priority=priority, retries=2)
        results = pool.map(
            _FUNCTIONS[name], items, chunksize=chunksize, buffersize=buffersize, ordered=ordered, timeout=_PATIENCE_S
        )
        self.results.append((results, [x * x for x in range(n_items)], ordered))

    @rule(n=st.integers(0, 30))
    def map_two(self, n: int) -> None:
        self.results.append((self.pool.map(add, range(n), itertools.count(5)), [2 * x + 5 for x in range(n)], True))

    @rule(n=st.integers(1, 100), at=st.integers(0, 99))
    def map_trouble(self, n: int, at: int) -> None:
        results = self.pool.map(trouble_at, range(n), itertools.repeat(at))
        expected: list[Any] = [x * x for x in range(n)]
        if at < n:
            expected[at:] = [Trouble]
        self.results.append((results, expected, True))

    @rule(n=st.integers(1, 20))
    def map_arrays(self, n: int) -> None:
        results = self.pool.map(total, (np.full(20_000, float(x)) for x in range(n)), range(n))
        self.results.append((results, [20_001.0 * x for x in range(n)], True))

    @rule(n=st.integers(1, 30))
    def map_with_what_is_shared(self, n: int) -> None:
        results = self.pool.map(look_up, [self.table] * n, range(n))
        self.results.append((results, [1000 + x for x in range(n)], True))

    @rule(number=_NUMBERS, most=st.sampled_from([1, 5, 1000]))
    def take(self, number: int, most: int) -> None:
        i = number % max(len(self.results), 1)
        if self.results and not self.take_from(i, most):
            del self.results[i]

    def take_from(self, i: int, most: int) -> bool:
        """Take results of a map, and see that they are right; whether there are more to come."""
        results, expected, ordered = self.results[i]
        for _ in range(most):
            try:
                value = next(results)
            except StopIteration:
                assert not expected, f"{len(expected)} results are missing"
                return False
            except WorkerDied:
                assert self.may_die
                return False
            except Trouble:
                assert expected == [Trouble]
                return False
            if ordered:
                assert value == expected.pop(0)
            else:
                expected.remove(value)
        return True

    @rule(number=_NUMBERS)
    def drop(self, number: int) -> None:
        """Nobody wants more results of a map."""
        if self.results:
            del self.results[number % len(self.results)]

    # the pool

    @rule(max_workers=st.integers(1, 4))
    def resize(self, max_workers: int) -> None:
        self.pool.resize(max_workers)
        assert self.pool.max_workers == max_workers

    @rule()
    def warm_up(self) -> None:
        self.pool.warm_up(timeout=_PATIENCE_S)

    @rule()
    def look(self) -> None:
        stats = self.pool.stats()
        assert len(stats.workers) <= 12
        assert str(stats)

    @rule(number=_NUMBERS)
    def kill_a_worker(self, number: int) -> None:
        """Not one that starts: of those, three in a row break the pool, and rightly."""
        found = [w.pid for w in self.pool.stats().workers if w.state in ("idle", "busy") and w.pid is not None]
        if found:
            self.may_die = True
            with contextlib.suppress(ProcessLookupError):  # it has left in between
                os.kill(found[number % len(found)], signal.SIGKILL)

    @rule()
    def wait(self) -> None:
        """All that was submitted is done, and right."""
        for future, expected, errors in self.futures:
            error = None if future.cancelled() else future.exception(_PATIENCE_S)
            if future.cancelled():
                assert CancelledError in errors
            elif error is not None:
                assert isinstance(error, errors) or (self.may_die and isinstance(error, WorkerDied)), error
            else:
                assert not errors
                assert np.array_equal(future.result(), expected)
        self.futures.clear()

    # the end

    @rule(cancels=st.booleans(), takes=st.booleans())
    def shut_down(self, cancels: bool, takes: bool) -> None:
        """... and begin anew."""
        pool = self.pool
        if takes:
            while self.results:
                while self.take_from(0, 1000):
                    pass
                del self.results[0]
        self.results.clear()
        if cancels:
            self.futures = [(f, x, (*e, CancelledError)) for f, x, e in self.futures]
        pool.shutdown(cancel_futures=cancels)
        assert all(future.done() for future, _, _ in self.futures)
        if not cancels:
            self.wait()
        with pytest.raises(RuntimeError):
            pool.submit(square, 1)
        self.shared.close()
        self.table.close()
        self.begin(max_workers=2)

    def teardown(self) -> None:
        if self.executor is not None:
            self.shut_down(False, True)
            self.pool.shutdown()
            self.shared.close()
            self.table.close()
        assert remaining_children() == []


class TestMachine(Machine.TestCase):
    settings = settings(
        max_examples=max(_STEPS // _LIFE, 1),
        stateful_step_count=_LIFE,
        deadline=None,
        derandomize=_STEPS < 1000,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors")
def test_nothing_is_left_of_a_life() -> None:
    def live() -> None:
        machine = Machine()
        machine.begin(max_workers=2, inline="never")
        machine.submit(1, 40, "worked")
        machine.submit_large(3)
        machine.submit_with_what_is_shared(4)
        machine.map("worked", 300, None, 64, False, True, 0)
        machine.teardown()

    live()
    before = len(os.listdir("/proc/self/fd"))
    live()
    assert len(os.listdir("/proc/self/fd")) == before
