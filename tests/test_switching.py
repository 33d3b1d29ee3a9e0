"""The interval at which threads switch, while items run in their caller and while workers start."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from amorsize_executor import AmorsizeExecutor
from amorsize_executor.switching import quick_switching
from amorsize_executor.workers.pool import WorkerPool
from amorsize_executor.workers.pools import Ended


@pytest.fixture(autouse=True)
def interval() -> Iterator[None]:
    before = sys.getswitchinterval()
    yield
    sys.setswitchinterval(before)


def test_the_interval_is_short_inside_and_as_before_behind_it() -> None:
    sys.setswitchinterval(4e-3)
    with quick_switching:
        assert sys.getswitchinterval() < 1e-3
        with quick_switching:  # of another thread
            assert sys.getswitchinterval() < 1e-3
        assert sys.getswitchinterval() < 1e-3
    assert sys.getswitchinterval() == pytest.approx(4e-3)


def test_one_that_is_shorter_still_stays() -> None:
    sys.setswitchinterval(1e-5)
    with quick_switching:
        assert sys.getswitchinterval() == pytest.approx(1e-5)
    assert sys.getswitchinterval() == pytest.approx(1e-5)


def test_one_that_was_set_inside_stays() -> None:
    with quick_switching:
        sys.setswitchinterval(3e-3)
    assert sys.getswitchinterval() == pytest.approx(3e-3)


def test_items_in_the_caller_leave_it_as_it_was() -> None:
    sys.setswitchinterval(4e-3)
    with AmorsizeExecutor(1) as executor:
        assert all(s < 5e-3 for s in executor.map(_interval, range(3)))
        with pytest.raises(ZeroDivisionError):
            list(executor.map(_divide, [1, 0]))
    assert sys.getswitchinterval() == pytest.approx(4e-3)


def test_workers_are_started_with_a_short_one(monkeypatch: pytest.MonkeyPatch) -> None:
    sys.setswitchinterval(4e-3)
    start, found = WorkerPool.start, []

    def noting(pool: WorkerPool, worker_id: int) -> Ended | None:
        found.append(sys.getswitchinterval())
        return start(pool, worker_id)

    monkeypatch.setattr(WorkerPool, "start", noting)
    with AmorsizeExecutor(1) as executor:
        assert executor.submit(abs, -1).result() == 1
    assert len(found) == 1
    assert found[0] < 1e-3
    assert sys.getswitchinterval() == pytest.approx(4e-3)


def _interval(x: int) -> float:
    return sys.getswitchinterval()


def _divide(x: int) -> float:
    return 1 / x


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_fork_leaves_nobody_inside() -> None:
    sys.setswitchinterval(4e-3)
    with quick_switching:
        pid = os.fork()
        if not pid:
            os._exit(sys.getswitchinterval() != pytest.approx(4e-3))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
