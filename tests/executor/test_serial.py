"""``inline="always"``: everything runs in the caller, as it would in workers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amorsize_executor import AmorsizeExecutor, CostModel, SerializationError, default_executor, execute, optimize

from . import tasks
from .tools import run_script

calls: list[Any] = []


@pytest.fixture(autouse=True)
def _forget_calls() -> Iterator[None]:
    calls.clear()
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "amorsize-io"]


@pytest.fixture
def executor() -> Iterator[AmorsizeExecutor]:
    with AmorsizeExecutor(2, inline="always") as executor:
        yield executor


def note(x: Any) -> Any:
    calls.append(x)
    return x


def where(_: object = None) -> tuple[int, str]:
    return os.getpid(), threading.current_thread().name


class Model:
    """A resource."""

    def __init__(self, scale: int) -> None:
        note(("built", scale))
        self.scale = scale

    def close(self) -> None:
        note(("closed", self.scale))


def scaled(model: Model, x: int) -> int:
    return model.scale * x


def fail_once() -> Model:
    note("tried")
    if calls.count("tried") == 1:
        raise OSError("not yet")
    return Model(1)


def test_a_submitted_task_has_run_in_the_caller(executor: AmorsizeExecutor) -> None:
    future = executor.submit(where)
    assert future.done()
    assert future.result() == (os.getpid(), threading.current_thread().name)
    futures = [executor.submit(tasks.square, i) for i in range(5)]
    assert sorted(f.result() for f in as_completed(futures)) == [0, 1, 4, 9, 16]


def test_items_run_when_their_results_are_asked_for(executor: AmorsizeExecutor) -> None:
    results = executor.map(note, range(5))
    assert calls == []
    assert next(results) == 0
    assert calls == [0]
    assert list(results) == [1, 2, 3, 4]


@pytest.mark.parametrize("ordered", [True, False])
def test_maps(executor: AmorsizeExecutor, ordered: bool) -> None:
    assert list(executor.map(pow, [2, 3, 4], [2, 2], ordered=ordered)) == [4, 9]
    assert list(executor.map(tasks.square, (i for i in range(3000)), chunksize=7, ordered=ordered)) == [
        i * i for i in range(3000)
    ]
    assert list(executor.map(tasks.square, iter(range(3000)), buffersize=3, ordered=ordered)) == [
        i * i for i in range(3000)
    ]
    assert list(executor.map(tasks.square, [])) == []


def test_no_more_is_read_ahead_than_the_buffer(executor: AmorsizeExecutor) -> None:
    results = executor.map(tasks.square, map(note, range(10)), buffersize=2)
    assert calls == [0, 1]
    next(results)
    assert calls == [0, 1, 2]


def test_arguments_and_results_are_copies(executor: AmorsizeExecutor) -> None:
    mine = [1]
    assert executor.submit(tasks.mutate, mine).result() != mine == [1]
    array = np.zeros(200_000)
    (doubled,) = executor.map(tasks.double_in_place, [array])
    assert doubled[0]
    assert array.sum() == 0
    kept: list[int] = []
    assert executor.submit(kept.append, 1).result() is None
    assert kept == [], "nor do methods change their object"
    assert executor.submit(functools.partial(tasks.mutate, kept)).result() != kept


def test_what_cannot_be_pickled_fails_as_with_workers(executor: AmorsizeExecutor) -> None:
    with pytest.raises(SerializationError, match=r"an argument of identity \(argument 0, a 'lock' object\)"):
        executor.submit(tasks.identity, threading.Lock()).result()
    with pytest.raises(SerializationError, match=r"item 1 of map\(identity\)"):
        list(executor.map(tasks.identity, [1, threading.Lock()]))
    with pytest.raises(SerializationError, match="the result of make_lock"):
        executor.submit(tasks.make_lock).result()
    lock = threading.Lock()
    with pytest.raises(SerializationError, match="the function"):
        executor.submit(lambda: lock).result()


def test_an_exception_is_the_task_s_own_with_its_traceback(executor: AmorsizeExecutor) -> None:
    error = executor.submit(tasks.raise_error, "oh").exception()
    assert isinstance(error, ValueError)
    assert error.__cause__ is None
    traceback = error.__traceback__
    assert traceback is not None
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    assert traceback.tb_frame.f_code.co_name == "raise_error"
    results = executor.map(tasks.fail_on, [1] * 3, range(3))
    assert next(results) == 0
    with pytest.raises(ValueError, match="1 is bad"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)
    assert isinstance(executor.submit(tasks.raise_instance, SystemExit, 3).exception(), SystemExit)


def test_ctrl_c_reaches_the_caller_at_once(executor: AmorsizeExecutor) -> None:
    with pytest.raises(KeyboardInterrupt):
        executor.submit(tasks.raise_instance, KeyboardInterrupt)
    results = executor.map(tasks.raise_instance, [KeyboardInterrupt, ValueError])
    with pytest.raises(KeyboardInterrupt):
        next(results)
    stats = executor.stats()
    assert (stats.tasks_submitted, stats.tasks_failed) == (1, 1)


def test_the_initializer_runs_once(executor: AmorsizeExecutor) -> None:
    with AmorsizeExecutor(2, inline="always", initializer=note, initargs=("ready",)) as with_initializer:
        assert calls == []
        with_initializer.submit(note, 1)
        list(with_initializer.map(note, [2]))
        with_initializer.warm_up()
    assert calls == ["ready", 1, 2]


def test_an_initializer_that_raises_breaks_the_executor() -> None:
    with AmorsizeExecutor(2, inline="always", initializer=tasks.fail_to_initialize, initargs=("no",)) as broken:
        for _ in range(2):
            with pytest.raises(BrokenProcessPool, match="the initializer failed") as caught:
                broken.submit(note, 1)
        assert caught.value.__cause__ is not None
        with pytest.raises(BrokenProcessPool):
            broken.map(note, [1])
        assert not broken.is_open
        assert broken.stats().is_broken


def test_a_resource_is_built_once_and_closed(executor: AmorsizeExecutor) -> None:
    with executor.resource(Model, 3) as model:
        assert calls == []
        assert executor.submit(scaled, model, 2).result() == 6
        assert list(executor.map(functools.partial(scaled, model), [1, 2])) == [3, 6]
        assert executor.plan(functools.partial(scaled, model), [1, 2]).is_serial
        assert calls == [("built", 3)]
    assert calls == [("built", 3), ("closed", 3)]
    other = executor.resource(Model, 4)
    executor.warm_up(resources=[other])
    assert calls[2:] == [("built", 4)]
    executor.shutdown()
    assert calls[2:] == [("built", 4), ("closed", 4)]


def test_a_factory_that_raises_fails_its_task_and_is_tried_again(executor: AmorsizeExecutor) -> None:
    model = executor.resource(fail_once)
    assert isinstance(executor.submit(scaled, model, 2).exception(), OSError)
    assert executor.submit(scaled, model, 2).result() == 2


def test_what_is_shared(executor: AmorsizeExecutor) -> None:
    with executor.share(np.arange(100_000)) as numbers:
        assert executor.submit(np.sum, numbers).result() == 4999950000
        assert list(executor.map(len, [numbers, numbers])) == [100_000] * 2


def test_shutdown_runs_what_nobody_has_asked_for(executor: AmorsizeExecutor) -> None:
    results = executor.map(note, range(3))
    dropped = executor.map(note, [7, 8])
    next(dropped)
    del dropped
    assert calls == [7]
    calls.clear()
    executor.shutdown()
    assert calls == [0, 1, 2]
    assert list(results) == [0, 1, 2]
    assert calls == [0, 1, 2]
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(note, 1)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.map(note, [1])


def test_shutdown_cancels_if_told_to(executor: AmorsizeExecutor) -> None:
    results = executor.map(note, range(3))
    next(results)
    executor.shutdown(cancel_futures=True)
    assert calls == [0]
    with pytest.raises(CancelledError):
        next(results)


def test_views(executor: AmorsizeExecutor) -> None:
    view = executor.options(timeout=1e-9, priority=3, retries=2, max_pending=1, when_full="raise")
    assert view.submit(tasks.square, 3).result() == 9, "there is nothing that a limit of time could end"
    assert list(view.map(tasks.square, [3], timeout=0)) == [9]


def test_statistics_and_plans(executor: AmorsizeExecutor) -> None:
    executor.submit(tasks.square, 1)
    list(executor.map(tasks.square, range(10)))
    stats = executor.stats()
    assert stats.workers == ()
    assert (stats.tasks_submitted, stats.tasks_done, stats.tasks_running) == (1, 1, 0)
    assert (stats.items_done, stats.items_inline, stats.run.count) == (10, 10, 11)
    plan = executor.last_plan
    assert plan is not None
    assert (plan.is_serial, plan.n_items, plan.n_inline) == (True, 10, 10)
    assert plan.actual_s is not None
    assert "inline='always'" in str(plan)
    assert stats.maps[-1].name == "square"
    assert executor.plan(tasks.square, range(100_000)).is_serial


def test_nothing_is_learned(tmp_path: Path) -> None:
    path = tmp_path / "costs"
    with AmorsizeExecutor(2, inline="always", cost_model=path) as executor:
        list(executor.map(tasks.square, range(10)))
    assert not path.exists()
    model = CostModel()
    with AmorsizeExecutor(2, inline="always", cost_model=model) as executor:
        executor.submit(tasks.square, 1)
        list(executor.map(tasks.square, range(10)))
    with AmorsizeExecutor(2, cost_model=model) as executor:
        assert model.lookup(executor._own().register(tasks.square).key) is None


def test_tasks_may_submit(executor: AmorsizeExecutor) -> None:
    assert executor.submit(tasks.use_an_executor, 3).result() == [0, 1, 4]


def test_coroutines(executor: AmorsizeExecutor) -> None:
    async def run() -> None:
        assert await executor.asubmit(where) == (os.getpid(), threading.current_thread().name)
        assert await executor.options(max_pending=1).asubmit(tasks.square, 3) == 9
        assert [x async for x in executor.amap(tasks.square, range(5))] == [0, 1, 4, 9, 16]
        assert [x async for x in executor.amap(tasks.square, iter(range(5)), buffersize=2)] == [0, 1, 4, 9, 16]
        with pytest.raises(ValueError, match="1 is bad"):
            async for _ in executor.amap(tasks.fail_on, [1] * 3, range(3)):
                pass

    asyncio.run(run())


def squares(numbers: list[int]) -> list[tuple[int, str]]:
    return [(x * x, threading.current_thread().name) for x in numbers]


def test_batches_run_in_the_caller_too(executor: AmorsizeExecutor) -> None:
    me = threading.current_thread().name
    with executor.batch(squares) as batch:
        assert [future.result() for future in [batch.submit(i) for i in range(3)]] == [(0, me), (1, me), (4, me)]
        assert batch(5) == (25, me)
    executor.shutdown()


def test_progress(executor: AmorsizeExecutor) -> None:
    shown: list[tuple[int, int]] = []
    list(executor.map(tasks.square, range(3), progress=lambda done, total: shown.append((done, total))))
    assert shown[-1] == (3, 3)


@pytest.fixture
def _inline_by_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    default_executor().shutdown()  # the next one is made under the variable
    monkeypatch.setenv("AMORSIZE_INLINE", "1")
    yield
    default_executor().shutdown()


@pytest.mark.usefixtures("_inline_by_environment")
def test_the_environment_holds_for_all_executors() -> None:
    with AmorsizeExecutor(2, inline="never") as executor:
        assert executor.submit(where).result()[0] == os.getpid()
    assert execute(tasks.square, range(100)) == [i * i for i in range(100)]
    assert execute(tasks.square, range(100), n_jobs=2, chunksize=10) == [i * i for i in range(100)]
    assert optimize(tasks.square, range(100)).n_jobs == 1


@pytest.mark.parametrize(("value", "is_inline"), [("", False), ("0", False), ("1", True)])
def test_values_in_the_environment(monkeypatch: pytest.MonkeyPatch, value: str, is_inline: bool) -> None:
    monkeypatch.setenv("AMORSIZE_INLINE", value)
    with AmorsizeExecutor(1) as executor:
        assert executor.submit(os.getpid).done() == is_inline
        if is_inline:
            monkeypatch.setenv("AMORSIZE_INLINE", "yes")
            with pytest.raises(ValueError, match="AMORSIZE_INLINE must be 1, 0 or empty, got 'yes'"):
                AmorsizeExecutor(1)


def test_other_values_are_refused() -> None:
    with pytest.raises(ValueError, match="'auto', 'never' or 'always', got 'sometimes'"):
        AmorsizeExecutor(1, inline="sometimes")  # type: ignore[arg-type]


def test_after_a_fork(executor: AmorsizeExecutor) -> None:
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            os._exit(0 if executor.submit(os.getpid).result() == os.getpid() else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_threads_build_a_resource_once(executor: AmorsizeExecutor) -> None:
    model = executor.resource(Model, 2)
    threads = [threading.Thread(target=executor.submit, args=(scaled, model, i)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [("built", 2)]
    assert executor.stats().tasks_done == 8


def test_functions_of_a_script(tmp_path: Path) -> None:
    source = """
        from amorsize_executor import AmorsizeExecutor

        def set_up():
            global total
            total = 7

        def task(x):
            return total + x

        with AmorsizeExecutor(2, inline="always", initializer=set_up) as executor:
            one = executor.submit(lambda: total).result()
            print(executor.submit(task, 1).result(), *executor.map(task, [1, 2]), one)
        """
    assert run_script(tmp_path, source) == "8 8 9 7\n"
