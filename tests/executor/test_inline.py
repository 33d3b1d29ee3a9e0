"""Items that run in the calling thread: when they may, and that nobody can tell by the data."""

from __future__ import annotations

import fcntl
import importlib
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amorsize_executor import AmorsizeExecutor, CostModel, inline, machine
from amorsize_executor.maps import Maps
from amorsize_executor.results import MapJob
from amorsize_executor.workers.functions import cost_key
from amorsize_executor.workers.pool import WorkerPool

from . import tasks
from .tools import LIMIT_S, Signal


@pytest.fixture
def fresh() -> AmorsizeExecutor:
    """An executor that knows no function and has started nothing."""
    return AmorsizeExecutor(max_workers=2, cost_model=CostModel())


def test_tiny_items_run_in_the_calling_thread_and_start_no_worker(fresh: AmorsizeExecutor) -> None:
    with fresh:
        here = (os.getpid(), threading.current_thread().name)
        assert set(fresh.map(tasks.pid_and_thread, range(100))) == {here}
        assert fresh.last_plan is not None
        assert fresh.last_plan.n_inline == 100


def test_nothing_runs_in_the_caller_before_a_result_is_asked_for(fresh: AmorsizeExecutor) -> None:
    ran: list[int] = []
    with fresh:
        results = fresh.map(_remember, [ran] * 3)
        assert ran == []
        assert list(results) == [1, 1, 1]


def _remember(ran: list[int]) -> int:
    ran.append(1)
    return len(ran)


@pytest.mark.parametrize(
    "make",
    [
        lambda: AmorsizeExecutor(max_workers=1, inline="never"),
        lambda: AmorsizeExecutor(max_workers=1, initializer=tasks.set_state, initargs=("a", 1)),
    ],
    ids=["inline='never'", "initializer"],
)
def test_items_may_be_kept_out_of_the_caller(make: Callable[[], AmorsizeExecutor]) -> None:
    with make() as executor:
        assert os.getpid() not in set(executor.map(tasks.pid, range(50)))


def test_items_of_an_executor_with_an_initializer_find_what_it_set() -> None:
    with AmorsizeExecutor(max_workers=1, initializer=tasks.set_state, initargs=("name", [1, 2])) as executor:
        assert list(executor.map(tasks.get_state, ["name"] * 3)) == [[1, 2]] * 3


def test_inline_items_get_copies_of_their_arguments(fresh: AmorsizeExecutor) -> None:
    items = [[1], [2], [3]]
    with fresh:
        assert list(fresh.map(tasks.mutate, items)) == [[1, 0], [2, 0], [3, 0]]
        assert fresh.last_plan is not None
        assert fresh.last_plan.n_inline == 3
    assert items == [[1], [2], [3]]


def test_inline_items_that_are_the_same_object_get_a_copy_each(fresh: AmorsizeExecutor) -> None:
    shared: list[int] = []
    with fresh:
        assert list(fresh.map(tasks.mutate, [shared] * 4)) == [[0]] * 4
    assert shared == []


def test_inline_items_get_copies_of_arrays(fresh: AmorsizeExecutor) -> None:
    array = np.ones(10)
    with fresh:
        assert list(fresh.map(tasks.double_in_place, [array, array])) == [(True, 20.0), (True, 20.0)]
    assert array.sum() == 10


def test_inline_results_are_copies(fresh: AmorsizeExecutor) -> None:
    value = [1]
    with fresh:
        results = list(fresh.map(tasks.identity, [value, value]))
    assert results == [[1], [1]]
    assert results[0] is not results[1]
    assert results[0] is not value


def test_an_inline_exception_comes_in_its_place_and_ends_the_map(fresh: AmorsizeExecutor) -> None:
    with fresh:
        results = fresh.map(partial(tasks.fail_on, 2), range(5))
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(ValueError, match="2 is bad"):
            next(results)
        assert list(results) == []
        assert list(fresh.map(tasks.square, [3])) == [9]


def test_an_inline_exit_leaves_through_next(fresh: AmorsizeExecutor) -> None:
    with fresh:
        with pytest.raises(SystemExit):
            list(fresh.map(tasks.leave, [3, 3]))
        assert list(fresh.map(tasks.square, [3])) == [9]


@pytest.mark.parametrize("make", [tasks.make_unpicklable, tasks.make_lock], ids=["raises", "lock"])
def test_an_inline_result_that_could_not_be_sent_fails_as_in_a_worker(
    fresh: AmorsizeExecutor, executor: AmorsizeExecutor, make: Callable[[int], object]
) -> None:
    with fresh:
        with pytest.raises(Exception) as here:
            list(fresh.map(make, range(3)))
        with pytest.raises(Exception) as there:
            list(executor.map(make, range(3)))
        assert type(here.value) is type(there.value)


def test_an_inline_argument_that_could_not_be_sent_fails_as_in_a_worker(
    fresh: AmorsizeExecutor, executor: AmorsizeExecutor
) -> None:
    with fresh:
        results = fresh.map(tasks.identity, [1, threading.Lock(), 3])
        assert next(results) == 1
        with pytest.raises(TypeError, match="item 1 of map"):
            next(results)
        results = executor.map(tasks.identity, [1, threading.Lock(), 3])
        assert next(results) == 1
        with pytest.raises(TypeError, match="item 1 of map"):
            next(results)


def test_a_slow_first_item_in_the_caller_does_not_hold_up_the_others(
    fresh: AmorsizeExecutor, make_signal: Callable[[], Signal]
) -> None:
    # The first item waits for the others, which only workers can run.
    signal = make_signal()
    with fresh:
        assert list(fresh.map(partial(_first_waits_for_the_rest, signal, 9), range(10))) == list(range(10))
        assert fresh.last_plan is not None
        assert fresh.last_plan.n_inline < 10


def _first_waits_for_the_rest(signal: Signal, n_others: int, i: int) -> int:
    if i == 0:
        signal.take(n_others)
    else:
        signal.give()
    return i


def test_a_callers_pause_between_results_is_used_by_workers(
    fresh: AmorsizeExecutor, make_signal: Callable[[], Signal]
) -> None:
    ran = make_signal()
    with fresh:
        results = fresh.map(partial(tasks.give, ran), range(50))
        next(results)
        ran.take(50)  # while the caller does not ask for results
        assert len(list(results)) == 49


def test_other_maps_go_on_while_the_caller_is_in_an_item(
    fresh: AmorsizeExecutor, make_signal: Callable[[], Signal]
) -> None:
    started, go = make_signal(), make_signal()
    with fresh:
        results = fresh.map(partial(tasks.pause, started, go), [1])
        taken: list[int] = []
        thread = threading.Thread(target=lambda: taken.extend(results))
        thread.start()
        started.take()
        assert list(fresh.map(tasks.square, range(100))) == [i * i for i in range(100)]
        assert fresh.submit(tasks.square, 4).result(LIMIT_S) == 16
        go.give()
        thread.join(LIMIT_S)
        assert taken == [1]


def test_an_item_in_the_caller_may_use_the_executor(fresh: AmorsizeExecutor) -> None:
    with fresh:
        _used[:] = [fresh]
        assert list(fresh.map(_use_it, [1, 2, 3])) == [[0], [0, 1], [0, 1, 4]]


_used: list[AmorsizeExecutor] = []


def _use_it(n: int) -> list[int]:
    return list(_used[0].map(tasks.square, range(n)))


def test_a_batch_whose_items_become_slow_ends_early_and_keeps_what_is_left() -> None:
    now = 0.0
    ran: list[int] = []

    def call(item: int) -> int:
        nonlocal now
        now += 1.0 if item >= 10 else 0.0
        ran.append(item)
        return item

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inline.time, "perf_counter", lambda: now)
        batch = inline.InlineBatch(100, list(range(64)), call, is_star=False)
        assert batch.run(most_s=2.5) is None
    assert ran == batch.values == list(range(14))  # two between looks at the clock
    assert batch.left_over(14) == range(114, 164)


def test_a_batch_without_a_limit_of_time_runs_to_its_end() -> None:
    batch = inline.InlineBatch(0, list(range(100)), abs, is_star=False)
    assert batch.run() is None
    assert batch.values == list(range(100))


def test_nothing_is_taken_back_of_a_batch_that_has_just_ended() -> None:
    batch = inline.InlineBatch(7, [1, 2], abs, is_star=False)
    assert batch.run() is None
    assert batch.take_back() == range(0)
    assert batch.left_over(2) == range(0)


def test_a_stop_iteration_in_a_batch_with_a_limit_of_time_is_its_items() -> None:
    batch = inline.InlineBatch(0, [0, 1, 2, 3], _stop_at_two, is_star=False)
    assert isinstance(batch.run(most_s=60.0), StopIteration)
    assert batch.values == [0, 1]


def _stop_at_two(item: int) -> int:
    if item == 2:
        raise StopIteration
    return item


def test_a_map_whose_items_become_longer_and_longer_gets_a_worker(fresh: AmorsizeExecutor) -> None:
    with fresh:
        pids = set(fresh.map(tasks.pid_after, [1e-3 * 1.01**i for i in range(300)]))
        assert os.getpid() in pids
        assert len(pids) > 1


SLOW_TO_IMPORT = """
import fcntl, multiprocessing, os, time

if multiprocessing.parent_process() is not None:  # a worker
    with open(os.environ["AMORSIZE_TEST_GATE"], "rb") as gate:
        fcntl.flock(gate, fcntl.LOCK_SH)

def where(x):
    until = time.perf_counter() + 0.02
    while time.perf_counter() < until:
        pass
    return x, os.getpid()
"""


@pytest.mark.parametrize(("n_cpus", "max_workers"), [(2, 2), (8, 2), (8, 7)])
def test_the_caller_works_while_a_worker_imports(
    n_cpus: int, max_workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cpu_count", lambda: n_cpus)
    fresh = AmorsizeExecutor(max_workers=max_workers, cost_model=CostModel())
    (tmp_path / "slow_to_import.py").write_text(SLOW_TO_IMPORT, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    gate = tmp_path / "gate"
    monkeypatch.setenv("AMORSIZE_TEST_GATE", str(gate))
    where = importlib.import_module("slow_to_import").where
    with fresh:
        fresh.warm_up(1)
        with gate.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            for n in (12, 3):
                assert list(fresh.map(where, range(n))) == [(i, os.getpid()) for i in range(n)]
        futures = [fresh.submit(where, i) for i in range(2)]
        assert all(future.result(LIMIT_S)[1] != os.getpid() for future in futures)
        assert [x for x, _ in fresh.map(where, range(12))] == list(range(12))
    monkeypatch.delitem(sys.modules, "slow_to_import")


@pytest.mark.parametrize("is_inline", [True, False])
def test_the_worker_of_a_map_is_launched_by_the_caller_who_runs_items_of_it(
    is_inline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    launch = WorkerPool.launch

    def noting(pool: WorkerPool, worker_id: int) -> None:
        threads.append(threading.current_thread())
        launch(pool, worker_id)
        assert pool.is_launched(worker_id)

    monkeypatch.setattr(machine, "cpu_count", lambda: 2)
    monkeypatch.setattr(WorkerPool, "launch", noting)
    cost_model = CostModel()
    with AmorsizeExecutor(max_workers=1, inline="auto" if is_inline else "never", cost_model=cost_model) as executor:
        cost_model.observe(cost_key(abs), 10, 1.0)
        assert list(executor.map(abs, range(0, -10, -1))) == list(range(10))
    assert threads == [threading.current_thread()] * is_inline


def test_all_but_one_cpu_get_workers_once_the_first_item_of_a_long_map_has_ended(
    make_signal: Callable[[], Signal], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cpu_count", lambda: 4)
    started, go = make_signal(), make_signal()
    released: list[int] = []
    release = Maps.release

    def noting(maps: Maps, job: MapJob, n_workers: int) -> None:
        released.append(n_workers)
        release(maps, job, n_workers)

    monkeypatch.setattr(Maps, "release", noting)
    with AmorsizeExecutor(cost_model=CostModel()) as executor:
        results = executor.map(partial(_pause_behind_the_first, started, go), range(40))
        reader = threading.Thread(target=list, args=(results,))
        reader.start()
        try:
            started.take(4)  # the caller, and three workers
            assert max(released) >= 3, "nobody was late, so that one more had to start"
        finally:
            go.give(100)
            reader.join(LIMIT_S)


def _pause_behind_the_first(started: Signal, go: Signal, i: int) -> Any:
    if i == 0:
        until = time.thread_time() + 0.05
        while time.thread_time() < until:
            pass
        return i
    return tasks.pause(started, go, i)


def test_caller_goes_on_alone_when_the_first_worker_shows_that_it_is_faster(
    fresh: AmorsizeExecutor, make_signal: Callable[[], Signal], monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go = make_signal(), make_signal()
    function = partial(tasks.pause, started, go)
    with fresh:
        fresh.submit(tasks.pid).result(LIMIT_S)
        fresh.cost_model.observe(cost_key(function), 10, 0.1)
        maps, scheduler = fresh._dispatcher.maps, fresh._dispatcher.scheduler
        running = fresh.start_map(function, range(50))
        started.take()
        job = running.job
        assert job is not None
        assert job.is_released
        assert job.plan is not None
        alone = job.plan._replace(n_workers=0, is_helped=False)
        monkeypatch.setattr(maps, "_plan", lambda _: alone)
        monkeypatch.setattr(maps, "look_after", lambda *_: None)  # nobody has come for results yet
        job.n_staged = 1
        maps.load_known(job)
        assert not job.is_released
        assert scheduler.held_jobs() == (job.job_id,)
        assert scheduler.n_waiting(job.job_id) == 49, "all but the one that has begun"
        monkeypatch.undo()
        go.give(50)
        assert list(running.results) == list(range(50))


@pytest.mark.parametrize(("n_cpus", "waits"), [(2, True), (4, False)])
def test_a_first_item_in_a_worker_is_not_enough_to_know_what_another_has_to_load(
    fresh: AmorsizeExecutor,
    make_signal: Callable[[], Signal],
    monkeypatch: pytest.MonkeyPatch,
    n_cpus: int,
    waits: bool,
) -> None:
    started, go = make_signal(), make_signal()
    function = partial(tasks.pause, started, go)
    with fresh:
        engine, maps = fresh._dispatcher, fresh._dispatcher.maps
        fresh.cost_model.observe(cost_key(function), 1, 5.0)
        running = fresh.start_map(function, range(50))
        started.take()
        job = running.job
        assert job is not None
        given: list[int] = []
        monkeypatch.setattr(engine, "n_cpus", n_cpus)
        monkeypatch.setattr(maps, "release", lambda _, n: given.append(n))
        monkeypatch.setattr(maps, "look_after", lambda *_: None)  # nobody has come for results yet
        job.n_staged = 2
        engine._note_load(cost_key(function), job, 0.1, 5.0)
        assert bool(given) is not waits, "another would take the caller's CPU"
        if waits:
            engine._note_next(cost_key(function), job, 0.01)
            assert fresh.cost_model.load_s(cost_key(function)) == pytest.approx(4.99)
        assert job.lone_s is None
        assert not job.n_staged
        assert len(given) == 1
        monkeypatch.undo()
        go.give(50)
        assert list(running.results) == list(range(50))


@pytest.mark.parametrize(("n_items", "starts"), [(20, False), (5000, True)])
def test_no_worker_is_asked_for_that_comes_when_the_map_is_over(
    fresh: AmorsizeExecutor, monkeypatch: pytest.MonkeyPatch, n_items: int, starts: bool
) -> None:
    monkeypatch.setattr(machine, "cpu_count", lambda: 2)
    with fresh:
        maps, scheduler = fresh._dispatcher.maps, fresh._dispatcher.scheduler
        fresh.cost_model.observe(cost_key(tasks.identity), 100, 0.1)
        running = fresh.start_map(tasks.identity, range(n_items))
        job = running.job
        assert job is not None
        assert job.plan is not None
        if job.is_released:
            maps._engine.execute(scheduler.hold_map(job.job_id))
            job.is_released = False
        job.plan = job.plan._replace(n_workers=0, is_helped=False)
        job.inline_s = 100.0
        asked: list[int] = []
        monkeypatch.setattr(maps._engine, "want_workers", asked.append)
        maps._ask_for_worker(job)
        assert bool(asked) is job.has_asked is starts
        assert list(running.results) == list(range(n_items))


def test_workers_that_maps_have_missed_start_when_nothing_is_mapped(
    fresh: AmorsizeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cpu_count", lambda: 2)
    with fresh:
        scheduler, maps = fresh._dispatcher.scheduler, fresh._dispatcher.maps
        results = fresh.map(tasks.pid_after, [1e-3] * 3)
        maps._missed_s = 1000.0
        assert list(results) == [os.getpid()] * 3
        until = time.monotonic() + LIMIT_S
        while not scheduler.n_ready and time.monotonic() < until:
            select.select([], [], [], 1e-3)
        assert scheduler.n_ready == 1, "the caller is beside it"
        assert fresh.submit(os.getpid).result(LIMIT_S) != os.getpid()


def test_last_plan_tells_of_a_map_for_which_one_more_worker_loads_the_function(fresh: AmorsizeExecutor) -> None:
    with fresh:
        assert fresh.submit(tasks.pid_after, 3e-3).result(LIMIT_S)
        key = cost_key(tasks.pid_after)
        for _ in range(10):
            fresh.cost_model.observe(key, 10, 30e-3, 30e-3)
        fresh.cost_model.observe_load(key, 30.0)
        fresh._dispatcher.maps._missed_s = 1000.0  # maps before have missed a second worker
        assert len(list(fresh.map(tasks.pid_after, [3e-3] * 20))) == 20
        plan = fresh.last_plan
        assert plan is not None
        assert plan.actual_s is not None
        assert plan.timeline
