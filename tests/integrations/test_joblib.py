"""joblib's loops on an executor: what people rely on with joblib's own backend."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

joblib = pytest.importorskip("joblib")

from joblib.externals.loky import get_reusable_executor  # noqa: E402

from amorsize_executor import register_joblib_backend  # noqa: E402
from amorsize_executor.integrations.joblib_backend import shutdown_executors  # noqa: E402

from ..executor.tools import LIMIT_S, Signal, remaining_children, wait_for_end  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def _no_worker_is_left_behind() -> Iterator[None]:
    yield
    shutdown_executors()
    get_reusable_executor().shutdown(wait=True)  # of the tests that compare
    assert remaining_children() == []


@pytest.fixture(autouse=True)
def _amorsize() -> Iterator[None]:
    register_joblib_backend()
    with joblib.parallel_config(backend="amorsize", n_jobs=2):
        yield


@pytest.fixture
def make_signal(tmp_path: Path) -> Iterator[Callable[[], Signal]]:
    made: list[Signal] = []

    def make() -> Signal:
        made.append(Signal(tmp_path / f"signal-{len(made)}"))
        return made[-1]

    yield make
    for signal in made:
        signal.close()


def pid(_: object = None) -> int:
    return os.getpid()


def square(x: int) -> int:
    return x * x


def environment(name: str) -> str | None:
    return os.environ.get(name)


def fail_on(bad: int, x: int) -> int:
    if x == bad:
        raise ValueError(f"{x} is bad")
    return x


def test_results_come_in_order() -> None:
    assert joblib.Parallel()(joblib.delayed(square)(x) for x in range(200)) == [x * x for x in range(200)]


def test_calls_run_in_workers_that_the_next_loop_finds_again() -> None:
    first = set(joblib.Parallel()(joblib.delayed(pid)() for _ in range(20)))
    again = set(joblib.Parallel()(joblib.delayed(pid)() for _ in range(20)))
    assert os.getpid() not in first | again
    assert first & again


def test_one_job_is_a_plain_loop() -> None:
    assert set(joblib.Parallel(n_jobs=1)(joblib.delayed(pid)() for _ in range(3))) == {os.getpid()}


@pytest.mark.parametrize("how", ["generator", "generator_unordered"])
def test_results_may_be_taken_as_they_come(how: str) -> None:
    results = joblib.Parallel(return_as=how)(joblib.delayed(square)(x) for x in range(50))
    assert sorted(results) == [x * x for x in range(50)]


def test_a_loop_may_run_while_the_results_of_another_are_taken() -> None:
    calls = (joblib.delayed(square)(x) for x in range(2_000))
    results = joblib.Parallel(return_as="generator", batch_size=1, pre_dispatch=2)(calls)
    assert next(results) == 0
    assert joblib.Parallel()(joblib.delayed(square)(x) for x in range(5)) == [0, 1, 4, 9, 16]
    assert list(results) == [x * x for x in range(1, 2_000)]


def test_an_exception_is_the_users_and_the_next_loop_works() -> None:
    with pytest.raises(ValueError, match="7 is bad"):
        joblib.Parallel()(joblib.delayed(fail_on)(7, x) for x in range(50))
    assert joblib.Parallel()(joblib.delayed(square)(x) for x in range(5)) == [0, 1, 4, 9, 16]


def test_a_loop_that_takes_too_long_ends() -> None:
    import time

    with pytest.raises(Exception) as raised:
        joblib.Parallel(timeout=0.5)(joblib.delayed(time.sleep)(60) for _ in range(4))
    assert "Timeout" in type(raised.value).__name__
    assert joblib.Parallel()(joblib.delayed(square)(x) for x in range(3)) == [0, 1, 4]


def test_tasks_may_write_into_large_arrays_and_nobody_sees_it() -> None:
    array = np.zeros(1_000_000)
    sums = joblib.Parallel()(joblib.delayed(_fill)(array, x) for x in range(4))
    assert sums == [0.0, 1e6, 2e6, 3e6]
    assert not array.any()


def _fill(array: Any, value: float) -> float:
    array += value
    return float(array.sum())


def test_loops_in_tasks_do_not_make_more_processes() -> None:
    pids = joblib.Parallel()(joblib.delayed(_inner)() for _ in range(4))
    assert all(len(set(inner)) == 1 for inner in pids)


def _inner() -> list[int]:
    return list(joblib.Parallel(n_jobs=2)(joblib.delayed(pid)() for _ in range(4)))


def test_threads_of_libraries_are_limited_as_asked() -> None:
    with joblib.parallel_config(backend="amorsize", n_jobs=2, inner_max_num_threads=3):
        found = joblib.Parallel()(joblib.delayed(environment)("OMP_NUM_THREADS") for _ in range(2))
    assert found == ["3", "3"]


@pytest.mark.parametrize("n_jobs", [-1, -2, 3])
def test_negative_numbers_of_jobs_count_from_all_cpus(n_jobs: int) -> None:
    from amorsize_executor import machine

    expected = n_jobs if n_jobs > 0 else max(machine.cpu_count() + 1 + n_jobs, 1)
    assert joblib.effective_n_jobs(n_jobs) == expected


def test_no_jobs_is_an_error() -> None:
    with pytest.raises(ValueError, match="n_jobs == 0"):
        joblib.Parallel(n_jobs=0)(joblib.delayed(square)(x) for x in range(3))


def test_scikit_learn_finds_the_same_as_with_its_own_backend() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import cross_val_score

    X, y = datasets.load_iris(return_X_y=True)
    forest = RandomForestClassifier(10, random_state=0)
    ours = cross_val_score(forest, X, y, n_jobs=2)
    with joblib.parallel_config(backend="loky", n_jobs=2):
        theirs = cross_val_score(forest, X, y, n_jobs=2)
    assert ours.tolist() == theirs.tolist()


def test_without_joblib_the_error_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['joblib'] = None\n"
        "try:\n    from amorsize_executor import register_joblib_backend\n"
        "except ModuleNotFoundError as error:\n    print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=True).stdout
    assert "amorsize_executor[ml]" in out


def test_with_a_joblib_that_is_too_old_the_error_says_what_to_install() -> None:
    code = (
        "import joblib, joblib.parallel\njoblib.__version__ = '1.4.2'\n"
        "joblib.parallel.ParallelBackendBase = type('Old', (), {})  # without submit\n"
        "try:\n    from amorsize_executor import register_joblib_backend\n"
        "except ImportError as error:\n    print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=True).stdout
    assert "joblib 1.5 or newer, and 1.4.2 is installed: pip install -U 'amorsize_executor[ml]'" in out


# ---------------------------------------------------------------------- options, and other loops


_seen: list[object] = []


def note(value: object) -> None:
    _seen.append(value)


def seen() -> list[object]:
    return _seen


def test_workers_are_initialized() -> None:
    with joblib.Parallel(initializer=note, initargs=("ready",)) as parallel:
        results = parallel(joblib.delayed(seen)() for _ in range(20))
    assert results == [["ready"]] * 20
    assert joblib.Parallel()(joblib.delayed(seen)() for _ in range(4)) == [[]] * 4, "those of others are not"


def test_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError, match="has no option start_method"):
        joblib.Parallel(start_method="fork")(joblib.delayed(pid)() for _ in range(2))


def test_a_loop_in_a_daemonic_process_runs_there() -> None:
    import multiprocessing

    with multiprocessing.get_context("fork").Pool(1) as pool:
        own, pids = pool.apply(_loop_in_pool)
    assert pids == {own}


def _loop_in_pool() -> tuple[int, set[int]]:
    with pytest.warns(UserWarning, match="daemonic"):
        return os.getpid(), set(joblib.Parallel(n_jobs=2, backend="amorsize")(joblib.delayed(pid)() for _ in range(4)))


def _loop(_: object) -> list[int]:
    return joblib.Parallel(n_jobs=2, backend="amorsize")(joblib.delayed(square)(x) for x in range(4))


def test_a_task_may_name_the_backend() -> None:
    assert joblib.Parallel()(joblib.delayed(_loop)(x) for x in range(2)) == [[0, 1, 4, 9]] * 2


def test_a_loop_that_fails_leaves_the_workers_to_another() -> None:
    others = joblib.Parallel(return_as="generator")(joblib.delayed(square)(x) for x in range(500))
    assert next(others) == 0
    with pytest.raises(ValueError, match="3 is bad"):
        joblib.Parallel()(joblib.delayed(fail_on)(3, x) for x in range(100))
    assert list(others) == [x * x for x in range(1, 500)]


def _tell_pid_and_wait(started: Signal, told: str, go: Signal) -> int:
    Path(told).write_text(str(os.getpid()))
    started.give()
    go.take()
    return os.getpid()


def _wait(started: Signal, go: Signal) -> None:
    started.give()
    go.take()


def _fail_after(started: Signal) -> None:
    started.take()
    raise ValueError("bad")


def test_a_loop_that_fails_ends_what_it_runs_and_nothing_of_another(
    make_signal: Callable[[], Signal], tmp_path: Path
) -> None:
    started, go, mine, never = (make_signal() for _ in range(4))
    theirs, own = str(tmp_path / "theirs"), str(tmp_path / "own")
    wait = joblib.delayed(_tell_pid_and_wait)
    other = joblib.Parallel(n_jobs=3, return_as="generator")([wait(started, theirs, go)])
    started.take()
    with pytest.raises(ValueError, match="bad"):
        joblib.Parallel(n_jobs=3)([wait(mine, own, never), joblib.delayed(_fail_after)(mine)])
    wait_for_end(int(Path(own).read_text()))
    go.give()
    assert list(other) == [int(Path(theirs).read_text())]


# ---------------------------------------------------------------------- the iterator of calls


def test_the_iterator_may_wait_for_the_same_workers() -> None:
    def calls() -> Iterator[Any]:
        for x in range(20):
            (squared,) = joblib.Parallel(n_jobs=2, backend="amorsize")([joblib.delayed(square)(x)])
            yield joblib.delayed(square)(squared)

    assert joblib.Parallel()(calls()) == [x**4 for x in range(20)]


@pytest.mark.parametrize(
    ("options", "is_callers"),
    [({}, True), ({"return_as": "generator"}, False), ({"timeout": LIMIT_S}, False)],
    ids=["list", "generator", "time limit"],
)
def test_who_only_waits_reads_the_iterator(options: dict[str, Any], is_callers: bool) -> None:
    readers = []

    def calls() -> Iterator[Any]:
        for x in range(10):
            readers.append(threading.current_thread())
            yield joblib.delayed(square)(x)

    results = joblib.Parallel(pre_dispatch=2, batch_size=1, **options)(calls())
    assert list(results) == [x * x for x in range(10)]
    assert (set(readers[2:]) == {threading.current_thread()}) is is_callers


def test_nobody_waits_for_the_others_when_a_call_has_failed(make_signal: Callable[[], Signal]) -> None:
    started, never = make_signal(), make_signal()
    calls = [joblib.delayed(_wait)(started, never), joblib.delayed(_fail_after)(started)]
    with pytest.raises(ValueError, match="bad"):
        joblib.Parallel()(calls)


def test_an_iterator_that_waits_holds_up_no_other_loop() -> None:
    waits, go = threading.Event(), threading.Event()

    def calls() -> Iterator[Any]:
        for x in range(10):
            if x == 8:
                waits.set()
                assert go.wait(LIMIT_S)
            yield joblib.delayed(square)(x)

    slow = joblib.Parallel(return_as="generator", pre_dispatch=2, batch_size=1)(calls())
    assert waits.wait(LIMIT_S)
    assert joblib.Parallel()(joblib.delayed(square)(x) for x in range(100)) == [x * x for x in range(100)]
    go.set()
    assert list(slow) == [x * x for x in range(10)]


@pytest.mark.parametrize("at", [0, 1, 2, 5, 9])
@pytest.mark.parametrize("kind", [ValueError, SystemExit])
def test_what_the_iterator_raises_is_raised(kind: type[BaseException], at: int) -> None:
    def calls() -> Iterator[Any]:
        for x in range(10):
            if x == at:
                raise kind("no more")
            yield joblib.delayed(square)(x)

    for how in ("list", "generator"):
        with pytest.raises(kind, match="no more"):
            list(joblib.Parallel(pre_dispatch=1, batch_size=1, return_as=how)(calls()))
    with joblib.Parallel(pre_dispatch=1) as parallel:
        with pytest.raises(kind, match="no more"):
            parallel(calls())
        assert parallel(joblib.delayed(square)(x) for x in range(5)) == [0, 1, 4, 9, 16]


class _NoDisplay(joblib.Parallel):  # type: ignore[misc]  # joblib has no types
    def print_progress(self) -> None:
        raise RuntimeError("there is no display")


def test_what_an_override_of_joblib_raises_is_raised() -> None:
    with pytest.raises(RuntimeError, match="there is no display"):
        _NoDisplay(n_jobs=2)(joblib.delayed(square)(x) for x in range(5))


def test_threads_of_loops_end_with_them() -> None:
    joblib.Parallel()(joblib.delayed(square)(x) for x in range(50))
    with pytest.raises(ValueError, match="3 is bad"):
        joblib.Parallel()(joblib.delayed(fail_on)(3, x) for x in range(50))
    for thread in threading.enumerate():
        if thread.name == "amorsize-joblib":
            thread.join(LIMIT_S)
            assert not thread.is_alive()
