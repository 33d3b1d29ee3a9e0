"""Memory is short: what begins waits for what runs, who takes too much fails alone, and nobody else is lost."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import pytest

from amorsize_executor import AmorsizeExecutor, MemoryLimitExceeded, cgroups
from benchmarks._memory_group import MemoryGroup, NoGroup, memory_group

from ..executor.tools import LIMIT_S, beside_this_process
from .tasks import allocate, count_notes, hold, kill_like_the_kernel, noted, pid, square

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(sys.platform != "linux", reason="memory is measured in /proc"),
]

MIB = 1 << 20


# ---------------------------------------------------------------------- memory_limit


def test_tasks_that_do_not_fit_beside_each_other_run_one_after_another(notes: str) -> None:
    with AmorsizeExecutor(4, memory_limit=beside_this_process(540 * MIB), inline="never") as executor:
        futures = [executor.submit(hold, 200 * MIB, notes) for _ in range(6)]
        assert [future.result(LIMIT_S) for future in futures] == [200 * MIB] * 6
        assert executor.stats().workers_died == 0
    assert most_at_once(notes) <= 2


def test_cheap_tasks_of_the_same_pool_use_all_workers() -> None:
    with AmorsizeExecutor(3, memory_limit=beside_this_process(540 * MIB), inline="never") as executor:
        assert executor.submit(allocate, 400 * MIB).result(LIMIT_S)
        executor.warm_up(3)
        futures = [executor.submit(pid) for _ in range(300)]
        assert len({future.result(LIMIT_S) for future in futures}) > 1


@pytest.mark.parametrize("how", ["submit", "map"])
def test_a_task_that_takes_more_than_the_limit_fails_with_both_numbers(how: str) -> None:
    limit = beside_this_process(240 * MIB)
    with AmorsizeExecutor(2, memory_limit=limit, inline="never") as executor:
        sizes = [MIB, 2 * MIB, 900 * MIB, 3 * MIB]
        if how == "submit":
            futures = [executor.submit(hold, size) for size in sizes]
            error = futures[2].exception(LIMIT_S)
            assert [futures[i].result(LIMIT_S) for i in (0, 1, 3)] == [MIB, 2 * MIB, 3 * MIB]
        else:
            results = executor.map(hold, sizes)
            assert [next(results), next(results)] == sizes[:2]
            with pytest.raises(MemoryLimitExceeded) as caught:
                next(results)
            error = caught.value
        assert isinstance(error, MemoryLimitExceeded)
        assert isinstance(error, MemoryError)
        assert error.limit_nbytes == limit
        assert error.used_nbytes is not None
        assert 120 * MIB < error.used_nbytes < 900 * MIB
        assert f"{limit / 1e6:,.0f} MB" in str(error)
        assert f"{error.used_nbytes / 1e6:,.0f} MB" in str(error)
        assert executor.submit(square, 3).result(LIMIT_S) == 9


def most_at_once(notes: str) -> int:
    """Largest number of tasks that held memory at the same time, by their notes of beginning and end."""
    changes = [1 if line == "1" else -1 for line in Path(notes).read_text().splitlines()]
    return max(accumulate(changes))


def test_the_error_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(MemoryLimitExceeded("too much", 5, 4)))
    assert (str(error), error.used_nbytes, error.limit_nbytes) == ("too much", 5, 4)


def test_peak_of_a_worker_is_told() -> None:
    with AmorsizeExecutor(1) as executor:
        executor.submit(hold, 100 * MIB).result(LIMIT_S)
        (worker,) = executor.stats().workers
        assert worker.peak_nbytes is not None
        assert worker.peak_nbytes > 100 * MIB


# ---------------------------------------------------------------------- killed by the kernel


@pytest.fixture
def kills(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file with as many bytes as the kernel has killed processes."""
    path = tmp_path / "kills"
    path.touch()
    monkeypatch.setattr(cgroups, "oom_kills", lambda root="/": path.stat().st_size)
    return path


def test_what_the_kernel_has_killed_runs_once_more_and_nothing_else_does(kills: Path, notes: str) -> None:
    with AmorsizeExecutor(2) as executor:
        futures = [executor.submit(noted, notes, x) for x in range(20)]
        culprit = executor.submit(kill_like_the_kernel, str(kills), 1)
        futures += [executor.submit(noted, notes, x) for x in range(20, 40)]
        assert culprit.result(LIMIT_S) == 1
        assert [future.result(LIMIT_S) for future in futures] == [x * x for x in range(40)]
    assert count_notes(notes) == dict.fromkeys(range(40), 1)


def test_what_the_kernel_kills_twice_has_failed_by_name(kills: Path) -> None:
    with AmorsizeExecutor(2, retries=5) as executor:
        error = executor.submit(kill_like_the_kernel, str(kills), 100).exception(LIMIT_S)
        assert isinstance(error, MemoryLimitExceeded)
        assert kills.stat().st_size == 2
        assert executor.submit(square, 3).result(LIMIT_S) == 9


def test_items_of_maps_run_once_more_too(kills: Path) -> None:
    with AmorsizeExecutor(2, inline="never") as executor:
        assert list(executor.map(kill_like_the_kernel, [str(kills)] * 6, [1] * 6)) == [1] * 6


def test_the_kernel_takes_workers_before_their_parent() -> None:
    def score(process: int | str) -> int:
        return int(Path(f"/proc/{process}/oom_score_adj").read_text())

    with AmorsizeExecutor(1) as executor:
        assert score(executor.submit(pid).result(LIMIT_S)) > score("self")


# ---------------------------------------------------------------------- in a real group

GIB = 1 << 30
SCRIPT = """
import time
from concurrent.futures import Future
from {module} import {name}

def heavy(x):
    data = bytearray(300 << 20)
    data[::4096] = b"x" * len(data[::4096])
    time.sleep(0.05)
    return x * x

if __name__ == "__main__":
    with {name}({n_workers}) as executor:
        try:
            print(list({calls}) == [x * x for x in range(12)])
        except Exception as error:
            print(type(error).__name__)
"""


@pytest.fixture
def group() -> Iterator[MemoryGroup]:
    if not os.environ.get("AMORSIZE_TEST_CGROUPS"):
        pytest.skip("set AMORSIZE_TEST_CGROUPS=1 to let tests make memory groups of their own (cgroup v1, as root)")
    try:
        with memory_group(GIB) as made:
            yield made
    except NoGroup as why:
        pytest.skip(str(why))


def run_in(group: MemoryGroup, tmp_path: Path, module: str, name: str, n_workers: int, how: str = "map") -> str:
    script = tmp_path / "script.py"
    calls = "executor.map(heavy, range(12))"
    if how == "submit":
        calls = "map(Future.result, [executor.submit(heavy, x) for x in range(12)])"
    script.write_text(SCRIPT.format(module=module, name=name, n_workers=n_workers, calls=calls))
    done = group.run([sys.executable, str(script)], timeout_s=55)
    assert not done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("how", ["map", "submit"])
@pytest.mark.parametrize("n_workers", [2, 4, 8])
def test_nobody_is_killed_where_heavy_tasks_have_more_workers_than_memory(
    group: MemoryGroup, tmp_path: Path, n_workers: int, how: str
) -> None:
    assert run_in(group, tmp_path, "amorsize_executor", "AmorsizeExecutor", n_workers, how) == "True"
    assert group.n_kills() == 0


def test_the_standard_pool_is_killed_there(group: MemoryGroup, tmp_path: Path) -> None:
    assert run_in(group, tmp_path, "concurrent.futures", "ProcessPoolExecutor", 4) == "BrokenProcessPool"
    assert group.n_kills() > 0
