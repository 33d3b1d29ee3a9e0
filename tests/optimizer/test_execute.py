from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amorsize_executor import AmorsizeExecutor, CostModel, WorkerDied, default_executor, execute, optimize
from amorsize_executor.optimizer import executors
from amorsize_executor.optimizer.executors import executor_for

from ..executor import tasks as executor_tasks
from ..executor.tools import Signal, run_script
from . import tasks


@pytest.fixture
def make_signals(tmp_path: Path) -> Iterable[Callable[[int], list[Signal]]]:
    made: list[Signal] = []

    def make(n: int) -> list[Signal]:
        made.extend(Signal(tmp_path / f"meet-{len(made)}-{i}") for i in range(n))
        return made[-n:]

    yield make
    for signal in made:
        signal.close()


# ---------------------------------------------------------------------- data and functions


KINDS: list[Callable[[], Any]] = [
    lambda: [0, 1, 2],
    lambda: (0, 1, 2),
    lambda: range(3),
    lambda: dict.fromkeys(range(3)),
    lambda: iter([0, 1, 2]),
    lambda: (i for i in range(3)),
    lambda: np.arange(3),
]


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("n_jobs", [None, 1, 2])
def test_items_of_every_kind_of_data(make: Callable[[], Any], n_jobs: int | None) -> None:
    results = execute(executor_tasks.square, make(), n_jobs=n_jobs)
    assert type(results) is list
    assert results == [0, 1, 4]


@pytest.mark.parametrize("n_jobs", [None, 1, 2])
def test_the_items_of_an_array_are_its_rows(n_jobs: int | None) -> None:
    assert execute(tasks.total, np.arange(6).reshape(3, 2), n_jobs=n_jobs) == [1.0, 5.0, 9.0]


@pytest.mark.parametrize("n_jobs", [None, 1, 2])
def test_pandas(n_jobs: int | None) -> None:
    pandas = pytest.importorskip("pandas")
    assert execute(executor_tasks.square, pandas.Series([1, 2], index=["a", "b"]), n_jobs=n_jobs) == [1, 4]
    frame = pandas.DataFrame({"a": [1, 2], "b": [10, 20]})
    assert execute(lambda row: row["a"] + row.b, frame, n_jobs=n_jobs) == [11, 22]
    assert execute(len, frame.columns, n_jobs=n_jobs) == [1, 1]


@pytest.mark.parametrize("data", [[], (), range(0), iter([]), np.empty((0, 3))])
def test_no_items(data: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(abs, data) == []
    assert execute(abs, data, n_jobs=2, verbose=True) == []
    assert "no items" in capsys.readouterr().err


@pytest.mark.parametrize("n_jobs", [None, 1, 2])
def test_functions_that_nobody_can_import(n_jobs: int | None) -> None:
    model = tasks.Model(3)
    for function in (lambda x: model.predict(x), model.predict, functools.partial(executor_tasks.add, 3)):
        expected = [function(x) for x in range(50)]
        assert execute(function, range(50), n_jobs=n_jobs) == expected


def test_a_model_that_is_changed_in_place_is_seen() -> None:
    model = tasks.Model(1)

    def request() -> list[int]:
        return execute(lambda x: model.predict(x), [1, 2])

    assert request() == [1, 2]
    model.factor = 10
    assert request() == [10, 20]


# ---------------------------------------------------------------------- how it runs


def test_one_job_is_a_plain_loop_here() -> None:
    items: list[list[int]] = [[], []]
    lock = threading.Lock()  # cannot be pickled

    def append(item: list[int]) -> list[int]:
        with lock:
            item.append(os.getpid())
        return item

    results = execute(append, items, n_jobs=1)
    assert items == [[os.getpid()]] * 2
    assert all(result is item for result, item in zip(results, items, strict=True))


@pytest.mark.parametrize("n_jobs", [2, 3])
def test_exactly_so_many_jobs(n_jobs: int, make_signals: Callable[[int], list[Signal]]) -> None:
    signals = make_signals(n_jobs)
    met = execute(functools.partial(tasks.meet, signals), range(n_jobs), n_jobs=n_jobs, chunksize=1)
    assert len(set(met)) == n_jobs
    assert len(set(execute(executor_tasks.pid, range(300), n_jobs=n_jobs, chunksize=1))) <= n_jobs
    assert os.getpid() not in met


def test_exactly_this_chunksize() -> None:
    calls = execute(executor_tasks.pid_and_call_number, range(40), n_jobs=2, chunksize=5)
    for start in range(0, 40, 5):
        chunk = calls[start : start + 5]
        first_pid, first = chunk[0]
        assert chunk == [(first_pid, first + i) for i in range(5)]


def test_max_workers_bounds_the_workers() -> None:
    pids = set(execute(executor_tasks.pid, range(300), max_workers=1)) - {os.getpid()}
    assert len(pids) <= 1


def test_bounds_get_an_executor_of_their_own_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int | None, float | None]] = []

    def make(max_workers: int | None = None, memory_limit: float | None = None) -> AmorsizeExecutor:
        made.append((max_workers, memory_limit))
        return AmorsizeExecutor(max_workers, memory_limit=memory_limit)

    monkeypatch.setattr(executors, "AmorsizeExecutor", make)
    for _ in range(2):
        assert execute(abs, [-1], memory_limit=5e9) == [1]
        assert execute(abs, [-1], max_workers=7, memory_limit=6_000_000_000) == [1]
    assert made == [(None, 5e9), (7, 6e9)]


def test_only_a_few_executors_are_kept_and_none_in_use_is_given_up() -> None:
    opened: list[AmorsizeExecutor] = []
    with executor_for(31, None) as used:
        for n in range(32, 40):
            with executor_for(n, None) as executor:
                assert executor.max_workers == n
                opened.append(executor)
        assert used.is_open
    n_open = sum(executor.is_open for executor in opened)
    assert 0 < n_open < len(opened)
    with executor_for(39, None) as again:
        assert again is opened[-1]


def test_calls_with_the_same_bounds_find_the_same_workers() -> None:
    pids = [set(execute(executor_tasks.pid, range(20), n_jobs=2, chunksize=1)) for _ in range(5)]
    assert len(set.union(*pids)) <= 2


def test_the_function_is_known_after_its_first_call() -> None:
    def function(x: int) -> int:
        return x + 1

    execute(function, range(100))
    execute(function, range(100))
    plan = default_executor().last_plan
    assert plan is not None
    assert plan.item_s is not None
    assert "nothing is known" not in plan.reason


def test_the_sample_of_an_unknown_function_is_no_larger_than_asked_for() -> None:
    with AmorsizeExecutor(1, cost_model=CostModel()) as executor:
        running = executor.start_map(executor_tasks.square, range(1000), sample_size=1)
        next(running.results)
        next(running.results)
        assert running.plan is not None
        assert running.plan.item_s is not None  # decided after one item, not after half a millisecond
        assert list(running.results) == [x * x for x in range(2, 1000)]


def test_execute_hands_the_sample_size_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    start_map = AmorsizeExecutor.start_map

    def spy(self: AmorsizeExecutor, *args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["sample_size"])
        return start_map(self, *args, **kwargs)

    monkeypatch.setattr(AmorsizeExecutor, "start_map", spy)
    execute(abs, [1, 2], sample_size=7)
    assert seen == [7]


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize("how", [{}, {"n_jobs": 1}, {"n_jobs": 2}, {"n_jobs": 2, "chunksize": 50}, {"chunksize": 7}])
def test_the_exception_of_an_item_tells_which(how: dict[str, Any]) -> None:
    with pytest.raises(KeyError, match="seventeen") as caught:
        execute(tasks.fail_on_17, range(1000), **how)
    assert caught.value.__notes__ == ["raised by fail_on_17 for item 17 of 1,000 (counted from 0)"]


def test_an_item_that_ends_its_process_is_named() -> None:
    with pytest.raises(WorkerDied) as caught:
        execute(tasks.end_process_on_17, range(100), n_jobs=2)
    assert "item 17 of 100" in caught.value.__notes__[0]
    assert execute(tasks.end_process_on_17, range(10), n_jobs=2) == list(range(10))


def test_the_index_counts_items_that_were_taken_over() -> None:
    result = optimize(tasks.fail_on_17, range(100), sample_size=5)
    with pytest.raises(KeyError) as caught:
        execute(tasks.fail_on_17, result.data)
    assert "item 17 of 100" in caught.value.__notes__[0]


@pytest.mark.parametrize("progress", [None, lambda done, total: None])
@pytest.mark.parametrize("n_jobs", [None, 1, 2])
def test_a_stop_iteration_of_the_function_does_not_end_the_results(n_jobs: int | None, progress: Any) -> None:
    """As from a `next` that finds nothing: the rest would be missing, and nobody would know."""
    with pytest.raises(RuntimeError, match="raised StopIteration") as caught:
        execute(next, [iter([1]), iter([])], n_jobs=n_jobs, progress=progress)
    assert isinstance(caught.value.__cause__, StopIteration)
    assert "item 1 of 2" in caught.value.__notes__[0]


@pytest.mark.parametrize("n_jobs", [None, 1, 2])
def test_the_exception_of_an_item_under_a_bar_tells_which(n_jobs: int | None) -> None:
    with pytest.raises(KeyError) as caught:
        execute(tasks.fail_on_17, range(1000), n_jobs=n_jobs, progress=lambda done, total: None)
    assert "item 17 of 1,000" in caught.value.__notes__[0]


@pytest.mark.parametrize("n_jobs", [None, 1, 2])
def test_an_exception_of_the_display_is_not_blamed_on_an_item(n_jobs: int | None) -> None:
    def show(done: int, total: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        execute(abs, range(10), n_jobs=n_jobs, progress=show)
    assert not hasattr(caught.value, "__notes__")


def test_the_note_is_there_before_python_3_11_too() -> None:
    def fail(x: int) -> None:
        raise tasks.WithoutAddNote(x)

    with pytest.raises(tasks.WithoutAddNote) as caught:
        execute(fail, [1])
    assert caught.value.__notes__ == [
        "raised by test_the_note_is_there_before_python_3_11_too.<locals>.fail for item 0 of 1 (counted from 0)"
    ]


def test_a_pool_that_breaks_at_the_end_of_the_interpreter_says_so_itself() -> None:
    """Nothing that tells the item's error from the pool's may need what cannot be imported any more."""
    code = (
        "import sys\n"
        "from concurrent.futures import BrokenExecutor\n"
        "from amorsize_executor.optimizer.items import is_of_item\n"
        "assert not is_of_item(BrokenExecutor())\n"
        "assert 'concurrent.futures.process' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=50)


def test_an_exception_that_takes_no_note_is_raised_as_it_is() -> None:
    with pytest.raises(executor_tasks.Frozen):
        execute(functools.partial(executor_tasks.raise_instance, executor_tasks.Frozen), ["x"], n_jobs=2)


def test_a_function_that_cannot_be_pickled_is_an_error_unless_one_job_is_asked_for() -> None:
    lock = threading.Lock()
    with pytest.raises(TypeError, match="cannot be pickled"):
        execute(lambda x: lock.locked(), [1, 2])
    assert execute(lambda x: lock.locked(), [1, 2], n_jobs=1) == [False, False]


# ---------------------------------------------------------------------- what it shows


def test_verbose_tells_what_was_done_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    execute(executor_tasks.square, range(100), verbose=True)
    execute(executor_tasks.square, range(100), n_jobs=1, verbose=True)
    result = optimize(executor_tasks.square, range(100))
    execute(executor_tasks.square, result.data, verbose=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Plan for square over 100 items" in shown.err
    assert "real" in shown.err
    assert "n_jobs=1 was asked for" in shown.err
    assert "30 results were taken over" in shown.err


def test_nothing_is_shown_unless_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    execute(executor_tasks.square, range(100))
    optimize(executor_tasks.square, range(100))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == ""


@pytest.mark.parametrize("n_jobs", [None, 1, 2])
def test_progress_counts_all_items(n_jobs: int | None) -> None:
    heard: list[tuple[int, int]] = []
    execute(executor_tasks.square, range(100), n_jobs=n_jobs, progress=lambda done, total: heard.append((done, total)))
    assert heard[-1] == (100, 100)


def test_progress_shows_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    execute(executor_tasks.square, range(100), progress=True)
    shown = capsys.readouterr().err
    assert "square" in shown
    assert "100/100" in shown
    assert "item/s" in shown


@pytest.mark.parametrize("n_jobs", [None, 1, 2])
def test_profile_prints_where_the_time_goes(n_jobs: int | None, log: str, capsys: pytest.CaptureFixture[str]) -> None:
    function = functools.partial(tasks.write, log)
    assert execute(function, range(20), n_jobs=n_jobs, profile=True, sample_size=10) == list(range(20))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "cumulative" in shown.err
    assert "write" in shown.err
    assert sorted(map(int, tasks.lines(log))) == list(range(20))  # once each


# ---------------------------------------------------------------------- the default executor


def test_the_default_executor_is_one_until_it_ends() -> None:
    first = default_executor()
    barrier = threading.Barrier(8)
    found: list[AmorsizeExecutor] = []

    def get() -> None:
        barrier.wait()
        found.append(default_executor())

    first.shutdown()
    threads = [threading.Thread(target=get) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1
    assert found[0] is not first
    assert execute(abs, [-1]) == [1]


def test_a_killed_default_executor_is_replaced() -> None:
    default_executor().submit(os.getpid).result()
    default_executor().kill_workers()
    assert execute(os.path.basename, ["a/b"]) == ["b"]


def test_threads_share_it() -> None:
    results: dict[int, list[int]] = {}

    def work(n: int) -> None:
        results[n] = execute(executor_tasks.square, range(n))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: [x * x for x in range(n)] for n in range(1, 9)}


def test_functions_of_a_program_and_its_end(tmp_path: Path) -> None:
    out = run_script(
        tmp_path,
        """
        from amorsize_executor import execute, optimize, optimize_streaming

        class Point:
            def __init__(self, x):
                self.x = x

        def work(point):
            return Point(point.x + 1)

        points = [Point(i) for i in range(40)]
        for n_jobs in (None, 1, 2):
            assert [p.x for p in execute(work, points, n_jobs=n_jobs)] == list(range(1, 41))
        result = optimize(work, points)
        assert [p.x for p in execute(work, result.data)] == list(range(1, 41))
        assert [p.x for p in optimize_streaming(work, iter(points)).stream()] == list(range(1, 41))
        print("done")
        """,
    )
    assert out == "done\n"


def test_the_child_of_a_fork_has_workers_of_its_own(tmp_path: Path) -> None:
    out = run_script(
        tmp_path,
        """
        import os, warnings
        from amorsize_executor import execute
        warnings.simplefilter("ignore")  # Python's, about forks beside threads

        pids = lambda _: os.getpid()
        theirs = set(execute(pids, range(20), n_jobs=2, chunksize=1))
        child = os.fork()
        if child == 0:
            own = set(execute(pids, range(20), n_jobs=2, chunksize=1))
            os._exit(len(own & theirs))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(theirs | set(execute(pids, range(20), n_jobs=2, chunksize=1))) <= 2
        print("done")
        """,
    )
    assert out == "done\n"


def test_a_daemonic_process_runs_everything_itself(tmp_path: Path) -> None:
    """As those of multiprocessing.Pool, which may have no children; its parent's workers are not its own."""
    out = run_script(
        tmp_path,
        """
        import multiprocessing, os, time, warnings
        from amorsize_executor import default_executor, execute, optimize, optimize_streaming

        def pid(x):
            time.sleep(0.005)
            return os.getpid()

        def work(queue):
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                pids = {*execute(pid, range(20)), *execute(pid, range(4), n_jobs=2), *execute(pid, [1], max_workers=3)}
                result = optimize(pid, range(100))
                pids |= {*execute(pid, result.data), *optimize_streaming(pid, range(9)).stream()}
                pids.add(default_executor().submit(os.getpid).result())
            queue.put((pids == {os.getpid()}, result.n_jobs, [str(w.message) for w in told]))

        if __name__ == "__main__":
            assert execute(pid, range(4), n_jobs=2)[0] != os.getpid()
            context = multiprocessing.get_context("fork")
            queue = context.Queue()
            process = context.Process(target=work, args=(queue,), daemon=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Python's, about forks beside threads
                process.start()
            is_alone, n_jobs, told = queue.get(timeout=40)
            process.join()
            assert is_alone
            assert n_jobs == 1
            assert len(told) == 1 and "daemonic" in told[0], told
            print("done")
        """,
    )
    assert out == "done\n"


def test_in_a_task_of_another_executor() -> None:
    with AmorsizeExecutor(1) as executor:
        assert executor.submit(execute, executor_tasks.square, [1, 2, 3]).result() == [1, 4, 9]


# ---------------------------------------------------------------------- handles


@pytest.mark.parametrize("n_jobs", [None, 1, 2])
def test_what_share_and_resource_give_stands_for_the_object(n_jobs: int | None) -> None:
    executor = default_executor()
    with executor.resource(tasks.Model, 3) as model, executor.share([1, 2, 3]) as numbers:
        assert execute(functools.partial(tasks.predict, model), [1, 2], n_jobs=n_jobs) == [3, 6]
        assert execute(sum, [[1, 1], numbers], n_jobs=n_jobs) == [2, 6]
        assert execute(tasks.predict_item, [(2, [model])], n_jobs=n_jobs) == [6]


def test_one_job_needs_no_worker_for_items_without_handles() -> None:
    with default_executor().share([1, 2]):
        assert execute(tasks.here, [0, threading.Lock()], n_jobs=1) == [os.getpid()] * 2
