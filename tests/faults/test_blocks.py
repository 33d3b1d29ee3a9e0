"""Blocks when something goes wrong: the task concerned fails, nothing else is lost, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amorsize_executor import AmorsizeExecutor, WorkerDied

from ..executor.tools import LIMIT_S, Script, run_script
from .tasks import pid, square, total

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="looks for descriptors in /proc")
N = 100_000


def die(array: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(array: Any, i: int) -> float:
    if array[0] == i:
        os.kill(os.getpid(), signal.SIGKILL)
    return float(array.sum())


def fail(array: Any) -> None:
    array[:] = -1
    raise ValueError("no")


def open_blocks(of: int | None = None) -> int:
    folder = f"/proc/{of or os.getpid()}/fd"
    names = []
    for fd in os.listdir(folder):
        try:
            names.append(os.readlink(f"{folder}/{fd}"))
        except FileNotFoundError:
            continue
    return sum("amorsize_executor (deleted)" in name for name in names)


def wait_for_blocks(n: int) -> None:
    until = time.monotonic() + LIMIT_S
    while open_blocks() > n:
        assert time.monotonic() < until, f"{open_blocks()} blocks are left, not {n}"
        os.sched_yield()


def test_deaths_of_workers_that_have_blocks_leave_none() -> None:
    before = open_blocks()
    shared = np.ones(N)
    with AmorsizeExecutor(2, inline="never") as executor:
        for i in range(2):
            futures = [executor.submit(die if j == 1 else total, np.full(N, float(j))) for j in range(4)]
            assert isinstance(futures[1].exception(LIMIT_S), WorkerDied)
            assert [futures[j].result(LIMIT_S) for j in (0, 2, 3)] == [0.0, 2.0 * N, 3.0 * N]
            shared[0] = i
            futures = [executor.submit(die_at, shared, i + (k != 2)) for k in range(5)]
            assert sum(isinstance(f.exception(LIMIT_S), WorkerDied) for f in futures) == 1
            assert futures[4].result(LIMIT_S) == N - 1 + i
    assert open_blocks() == before


def test_tasks_that_raise_give_their_blocks_back() -> None:
    with AmorsizeExecutor(1, inline="never") as executor:
        for i in range(30):
            with pytest.raises(ValueError, match="no"):
                executor.submit(fail, np.full(N, float(i))).result(LIMIT_S)
        assert executor.submit(total, np.ones(N)).result(LIMIT_S) == N
        assert open_blocks() < 20


@pytest.mark.parametrize("method", ["loky", "spawn", "forkserver", "fork"])
def test_an_executor_leaves_no_block_behind(method: str) -> None:
    before = open_blocks()
    with AmorsizeExecutor(2, method, inline="never") as executor, executor.share(np.ones(N)) as shared:
        results = list(executor.map(np.negative, [shared, np.ones(N)] * 4))
        assert executor.submit(open_blocks).result(LIMIT_S) < 40
    del results
    wait_for_blocks(before)


def test_forked_workers_do_not_keep_the_blocks_of_others() -> None:
    with AmorsizeExecutor(1, "fork", inline="never") as first, first.share(np.ones(N)) as shared:
        held = [first.submit(np.negative, np.full(N, float(i))).result(LIMIT_S) for i in range(3)]
        assert first.submit(total, shared).result(LIMIT_S) == N
        with AmorsizeExecutor(1, "fork", inline="never") as second:
            # What faulthandler, the status and the claims of each worker take is the same in each.
            assert second.submit(open_blocks).result(LIMIT_S) <= first.submit(open_blocks).result(LIMIT_S)
        assert len(held) == 3


def test_the_child_of_a_fork_may_use_a_handle(tmp_path: Path) -> None:
    out = run_script(
        tmp_path,
        """
        import os, warnings
        import numpy as np
        from amorsize_executor import AmorsizeExecutor

        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads

        def total(array):
            return float(array.sum())

        with AmorsizeExecutor(1) as ex:
            shared = ex.share(np.ones(100_000))
            print(ex.submit(total, shared).result(20), flush=True)
            child = os.fork()
            if not child:
                print(shared.get().sum(), flush=True)
                os._exit(0)
            os.waitpid(child, 0)
            print(ex.submit(total, shared).result(20), flush=True)
            shared.close()
        """,
    )
    assert out.splitlines() == ["100000.0"] * 3


def test_nothing_is_left_when_the_parent_is_killed(tmp_path: Path) -> None:
    before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    script = Script(
        tmp_path,
        """
        import os, signal
        import numpy as np
        from amorsize_executor import AmorsizeExecutor

        def last(array, other):
            return float(array[-1] + other[-1]), other

        ex = AmorsizeExecutor(2, inline="never")
        shared = ex.share(np.ones(1_000_000))
        results = list(ex.map(last, [shared] * 8, [np.ones(500_000)] * 8))
        futures = [ex.submit(last, shared, np.ones(500_000)) for _ in range(8)]
        print(results[3][0], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    status, out, _ = script.finish()  # which waits for the workers, too
    assert (status, out) == (-signal.SIGKILL, "2.0\n")
    left = set(os.listdir("/dev/shm")) - before if os.path.isdir("/dev/shm") else set()
    assert not {name for name in left if "amorsize" in name}


def test_few_descriptors_are_enough_for_many_large_tasks(tmp_path: Path) -> None:
    out = run_script(
        tmp_path,
        """
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
        import numpy as np
        from amorsize_executor import AmorsizeExecutor

        def double(array):
            return 2 * array

        if __name__ == "__main__":
            with AmorsizeExecutor(2, inline="never") as ex:
                for i in range(40):
                    n = 20_000 + 5_000 * (i % 7)
                    arrays = [np.full(n, float(i + j)) for j in range(6)]
                    results = list(ex.map(double, arrays))
                    assert all((r == 2 * a).all() for r, a in zip(results, arrays))
                handles = [ex.share(np.full(20_000, float(i))) for i in range(10)]
                assert [float(r[0]) for r in ex.map(double, handles)] == [2.0 * i for i in range(10)]
                for handle in handles:
                    handle.close()
            print("done")
        """,
    )
    assert out == "done\n"


def test_without_memory_files_blocks_are_files_that_nobody_sees(tmp_path: Path) -> None:
    out = run_script(
        tmp_path,
        """
        import os
        import numpy as np
        from amorsize_executor import AmorsizeExecutor
        from amorsize_executor.workers import blocks

        FOLDERS = "/dev/shm", "/nonexistent"

        def without(folder):
            del os.memfd_create
            from amorsize_executor.workers import blocks
            blocks.SHARED_MEMORY = folder

        def spoil(array):
            found = float(array.sum())
            array[:] = -1
            return found, array

        if __name__ == "__main__":
            del os.memfd_create
            for folder in FOLDERS:
                blocks.SHARED_MEMORY = folder
                with AmorsizeExecutor(2, initializer=without, initargs=(folder,)) as ex:
                    array = np.ones(100_000)
                    for _ in range(3):
                        for found, result in ex.map(spoil, [array] * 6):
                            assert found == array.sum() and result[5] == -1
                        array[3] += 1
                    with ex.share(array) as shared:
                        print(ex.submit(spoil, shared).result(20)[0])
        """.replace("del os.memfd_create\n            from", "vars(os).pop('memfd_create', None)\n            from"),
    )
    assert out.splitlines() == ["100003.0"] * 2


class Unwilling(np.ndarray):
    def __reduce__(self) -> Any:
        raise RuntimeError("not me")

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RuntimeError("not me")


def test_an_array_that_refuses_to_be_pickled_fails_alone() -> None:
    arrays = [np.ones(N), np.ones(N).view(Unwilling), np.full(N, 2.0)]
    with AmorsizeExecutor(2, inline="never") as executor:
        futures = [executor.submit(total, array) for array in arrays]
        assert [futures[i].result(LIMIT_S) for i in (0, 2)] == [N, 2.0 * N]
        with pytest.raises(RuntimeError, match="not me"):
            futures[1].result(LIMIT_S)
        results = executor.map(total, [arrays[0], arrays[2], arrays[1]], chunksize=3)
        assert [next(results), next(results)] == [N, 2.0 * N]
        with pytest.raises(RuntimeError, match="not me"):
            next(results)
        with pytest.raises(RuntimeError, match="not me"):
            executor.submit(lambda: arrays[1].sum()).result(LIMIT_S)
        with pytest.raises(RuntimeError, match="not me"):
            executor.share(arrays[1])
        assert executor.submit(square, 3).result(LIMIT_S) == 9
        assert executor.submit(pid).result(LIMIT_S)
