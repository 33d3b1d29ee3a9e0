"""Executors inside of tasks: they get a share of the CPUs, never wait for their own worker, and do not multiply."""

from __future__ import annotations

import os

import psutil
import pytest

from amorsize_executor import AmorsizeExecutor, machine

from ..executor.tools import LIMIT_S
from .tasks import square

pytestmark = pytest.mark.timeout(120)


def max_workers_inside(wanted: int | None = None) -> int:
    with AmorsizeExecutor(wanted) as executor:
        return executor.max_workers


def sum_of_squares(n: int) -> int:
    with AmorsizeExecutor(inline="never") as executor:
        return sum(executor.map(square, range(n)))


def descend(depth: int) -> int:
    """Use an executor in a worker of an executor ...; returns how many processes of the family there are at the end."""
    if not depth:
        return len(_ancestor().children(recursive=True))
    with AmorsizeExecutor() as executor:
        return executor.submit(descend, depth - 1).result(LIMIT_S)


def _ancestor() -> psutil.Process:
    return psutil.Process(int(os.environ["AMORSIZE_TEST_PID"]))


def test_an_executor_in_a_worker_gets_its_share_of_the_cpus() -> None:
    n_cpus = machine.cpu_count()
    with AmorsizeExecutor() as executor:
        assert executor.max_workers == n_cpus
        assert executor.submit(max_workers_inside).result(LIMIT_S) == 1
    with AmorsizeExecutor(1) as executor:
        assert executor.submit(max_workers_inside).result(LIMIT_S) == n_cpus


def test_an_executor_in_a_worker_has_as_many_workers_as_it_asks_for() -> None:
    with AmorsizeExecutor() as executor:
        assert executor.submit(max_workers_inside, 3).result(LIMIT_S) == 3


@pytest.mark.parametrize("method", ["loky", "spawn", "forkserver", "fork"])
def test_every_worker_may_use_an_executor_at_the_same_time(method: str) -> None:
    with AmorsizeExecutor(2, method, inline="never") as executor:
        assert list(executor.map(sum_of_squares, [10] * 6)) == [285] * 6


def test_executors_in_executors_add_one_process_for_each_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMORSIZE_TEST_PID", str(os.getpid()))
    depth = 4
    n_processes = descend(depth)
    n_helpers = 2 * depth  # resource trackers
    assert n_processes <= depth + n_helpers + machine.cpu_count()


def test_a_task_that_brings_its_own_executor_along_is_told_that_it_cannot() -> None:
    with AmorsizeExecutor(1) as executor, pytest.raises(TypeError, match="AmorsizeExecutor"):
        executor.submit(executor.submit, square, 3).result(LIMIT_S)
