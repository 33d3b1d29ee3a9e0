"""State of workers: built once in each, found wherever its handle stands, closed in the end."""

from __future__ import annotations

import functools
import gc
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from amorsize_executor import AmorsizeExecutor, CostModel, Resource, SerializationError, WorkerDied

from . import tasks
from .tools import LIMIT_S, Signal, beside_this_process


class Model:
    """Tells when it is built, and when it is closed."""

    def __init__(self, name: str = "model", built: Signal | None = None, closed: Signal | None = None) -> None:
        self.name = name
        self.closed = closed
        self.n_calls = 0
        if built is not None:
            built.give()

    def close(self) -> None:
        if self.closed is not None:
            self.closed.give()


class Managed:
    """A context manager that has no `close`."""

    def __init__(self, entered: Signal, left: Signal) -> None:
        self.entered, self.left = entered, left

    def __enter__(self) -> str:
        self.entered.give()
        return "what entering gives"

    def __exit__(self, *_: object) -> None:
        self.left.give()


def _ids(*args: Any, **kwargs: Any) -> set[tuple[str, int]]:
    """Names and identities of all models, wherever they stand."""
    found: set[tuple[str, int]] = set()
    for value in (*args, *kwargs.values()):
        if isinstance(value, Model):
            found.add((value.name, id(value)))
        elif isinstance(value, dict):
            found |= _ids(**value)
        elif isinstance(value, (list, tuple)):
            found |= _ids(*value)
    return found


def _count(model: Model, _: object = None) -> tuple[int, int]:
    model.n_calls += 1
    return os.getpid(), model.n_calls


def _pause_with(model: Model, started: Signal, go: Signal) -> int:
    started.give()
    go.take()
    return os.getpid()


@pytest.fixture
def single() -> Iterator[AmorsizeExecutor]:
    with AmorsizeExecutor(1) as executor:
        yield executor


@pytest.fixture
def model(single: AmorsizeExecutor) -> Iterator[Resource[Model]]:
    with single.resource(Model) as handle:
        yield handle


# where it may stand


def test_a_task_gets_the_same_object_each_time(single: AmorsizeExecutor, model: Resource[Model]) -> None:
    counts = [single.submit(_count, model).result(LIMIT_S)[1] for _ in range(3)]
    assert counts == [1, 2, 3]


def test_it_is_kept_across_submits_and_maps(single: AmorsizeExecutor, model: Resource[Model]) -> None:
    single.submit(_count, model).result(LIMIT_S)
    list(single.map(_count, [model] * 5))
    list(single.map(functools.partial(_count, model), range(5)))
    assert single.submit(_count, model).result(LIMIT_S)[1] == 12


def test_it_may_stand_anywhere_in_the_arguments(single: AmorsizeExecutor, model: Resource[Model]) -> None:
    (one,) = single.submit(_ids, model).result(LIMIT_S)
    assert single.submit(_ids, (model, [model]), key={"x": model}).result(LIMIT_S) == {one}
    assert single.submit(functools.partial(_ids, model), key=model).result(LIMIT_S) == {one}
    assert single.submit(lambda: _ids(model)).result(LIMIT_S) == {one}
    assert list(single.map(_ids, [model] * 2, [[model]] * 2)) == [{one}] * 2
    assert list(single.map(lambda i: _ids(model), range(3))) == [{one}] * 3
    assert list(single.map(_ids, [(0, [model])] * 3)) == [{one}] * 3


def test_functions_of_a_script_may_name_it_as_a_global(single: AmorsizeExecutor, model: Resource[Model]) -> None:
    code = "def use(_=None):\n    model.n_calls += 1\n    return model.n_calls\n"
    namespace: dict[str, Any] = {"__name__": "__main__", "model": model}
    exec(code, namespace)
    assert [single.submit(namespace["use"]).result(LIMIT_S) for _ in range(3)] == [1, 2, 3]
    assert list(single.map(namespace["use"], range(3))) == [4, 5, 6]


def test_a_global_is_not_kept_after_the_end(single: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> None:
    closed = make_signal()
    code = "def use(_=None):\n    model.n_calls += 1\n    return model.n_calls\n"
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(code, namespace)
    for _ in range(2):
        with single.resource(Model, closed=closed) as model:
            namespace["model"] = model
            assert single.submit(namespace["use"]).result(LIMIT_S) == 1
        closed.take()


def test_two_stand_side_by_side(single: AmorsizeExecutor, model: Resource[Model]) -> None:
    with single.resource(Model, "another") as other:
        found = single.submit(_ids, model, [other]).result(LIMIT_S)
        assert {name for name, _ in found} == {"model", "another"}
        assert single.submit(_ids, other, model).result(LIMIT_S) == found


def test_one_may_be_built_from_another(single: AmorsizeExecutor, model: Resource[Model]) -> None:
    with single.resource(list, (model,)) as pipeline:
        (inner,) = single.submit(_ids, model).result(LIMIT_S)
        assert single.submit(_ids, pipeline).result(LIMIT_S) == {inner}


def test_it_may_be_built_from_something_large(single: AmorsizeExecutor) -> None:
    array = np.arange(100_000.0)
    with single.resource(functools.partial(np.add, 1.0), array) as larger, single.share(array) as shared:
        assert single.submit(np.sum, larger).result(LIMIT_S) == array.sum() + len(array)
        with single.resource(np.negative, shared) as negative:
            assert single.submit(np.sum, negative).result(LIMIT_S) == -array.sum()


def test_each_worker_builds_its_own(make_signal: Callable[[], Signal]) -> None:
    built, started, go = make_signal(), make_signal(), make_signal()
    with AmorsizeExecutor(2, cost_model=CostModel()) as executor, executor.resource(Model, built=built) as model:
        futures = [executor.submit(_pause_with, model, started, go) for _ in range(2)]
        started.take(2)
        go.give(2)
        assert len({future.result(LIMIT_S) for future in futures}) == 2
        assert built.count() == 2


def test_a_handle_works_in_other_executors(single: AmorsizeExecutor, model: Resource[Model]) -> None:
    with AmorsizeExecutor(1) as another:
        assert another.submit(_count, model).result(LIMIT_S)[1] == 1
        assert another.submit(_count, model).result(LIMIT_S)[1] == 2


def test_items_that_need_one_never_run_in_the_caller(single: AmorsizeExecutor, model: Resource[Model]) -> None:
    for items in ([model] * 3, [[[model]]] * 3):
        assert len(list(single.map(_ids, items))) == 3
        plan = single.last_plan
        assert plan is not None
        assert plan.n_inline == 0
        assert "resource" in plan.reason
    assert single.plan(functools.partial(_count, model), range(3)).constraint


def test_a_buffered_map_of_items_that_need_one(single: AmorsizeExecutor, model: Resource[Model]) -> None:
    items = ([model] for _ in range(20))
    assert len(list(single.map(_ids, items, buffersize=3))) == 20


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_every_start_method(method: str) -> None:
    with AmorsizeExecutor(1, method) as executor, executor.resource(Model) as model:
        assert [executor.submit(_count, model).result(LIMIT_S)[1] for _ in range(2)] == [1, 2]


# what goes wrong


def _fail_once(marker: str) -> Model:
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return Model()
    raise FileNotFoundError("no model here")


@pytest.mark.parametrize("is_captured", [False, True])
def test_a_factory_that_raises_fails_the_task_and_is_tried_again(
    single: AmorsizeExecutor, tmp_path: Any, is_captured: bool
) -> None:
    with single.resource(_fail_once, str(tmp_path / "marker")) as model:
        call = (lambda: _ids(model)) if is_captured else functools.partial(_ids)
        args = () if is_captured else (model,)
        with pytest.raises(FileNotFoundError, match="no model here") as caught:
            single.submit(call, *args).result(LIMIT_S)
        assert "_fail_once" in str(caught.value.__cause__)
        assert len(single.submit(call, *args).result(LIMIT_S)) == 1


def test_a_factory_that_raises_fails_one_item_of_a_map(single: AmorsizeExecutor, tmp_path: Any) -> None:
    with single.resource(_fail_once, str(tmp_path / "marker")) as model:
        results = single.map(functools.partial(_ids, model), range(5), chunksize=5)
        with pytest.raises(FileNotFoundError):
            next(results)
        results = single.map(functools.partial(_ids, model), range(5), chunksize=5)
        assert len(list(results)) == 5


def test_a_factory_may_leave_without_taking_the_worker_along(single: AmorsizeExecutor) -> None:
    pid = single.submit(tasks.pid).result(LIMIT_S)
    with single.resource(tasks.leave, 3) as model:
        with pytest.raises(SystemExit):
            single.submit(_ids, model).result(LIMIT_S)
        with pytest.raises(SystemExit):
            single.submit(lambda: _ids(model)).result(LIMIT_S)
    assert single.submit(tasks.pid).result(LIMIT_S) == pid


def test_a_factory_that_ends_the_process_costs_its_task(single: AmorsizeExecutor) -> None:
    with single.resource(tasks.end_process, 3) as model:
        with pytest.raises(WorkerDied):
            single.submit(_ids, model).result(LIMIT_S)
        assert single.submit(tasks.square, 3).result(LIMIT_S) == 9


def test_factories_and_arguments_that_cannot_be_pickled_are_told_at_once(single: AmorsizeExecutor) -> None:
    with pytest.raises(SerializationError, match=r"factory 'list'.*cannot be pickled"):
        single.resource(list, threading.Lock())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="factory must be a callable, got 5"):
        single.resource(5)  # type: ignore[arg-type]


def test_a_handle_cannot_be_pickled_for_elsewhere(model: Resource[Model]) -> None:
    with pytest.raises(SerializationError, match="goes to workers"):
        pickle.dumps(model)


def test_a_result_cannot_have_a_handle(single: AmorsizeExecutor) -> None:
    with pytest.raises(SerializationError):
        single.submit(_make_handle).result(LIMIT_S)


def _make_handle() -> Resource[Model]:
    with AmorsizeExecutor(1) as executor:
        return executor.resource(Model)


def test_a_worker_that_died_is_replaced_by_one_that_builds_it_anew(
    single: AmorsizeExecutor, model: Resource[Model]
) -> None:
    single.submit(_count, model).result(LIMIT_S)
    with pytest.raises(WorkerDied):
        single.submit(tasks.end_process, 3).result(LIMIT_S)
    assert single.submit(_count, model).result(LIMIT_S)[1] == 1


# the end


def test_closing_the_handle_closes_the_objects(make_signal: Callable[[], Signal]) -> None:
    closed, started, go = make_signal(), make_signal(), make_signal()
    with AmorsizeExecutor(2, cost_model=CostModel()) as executor:
        with executor.resource(Model, closed=closed) as model:
            futures = [executor.submit(_pause_with, model, started, go) for _ in range(2)]
            started.take(2)
            go.give(2)
            wait(futures, LIMIT_S)
            assert closed.count() == 0
        closed.take(2)
        with pytest.raises(ValueError, match="closed before it was used"):
            executor.submit(_ids, model).result(LIMIT_S)
        with pytest.raises(ValueError, match="closed before it was used"):
            model.warm()


def test_tasks_that_were_submitted_before_still_have_it(
    single: AmorsizeExecutor, make_signal: Callable[[], Signal]
) -> None:
    built, closed, started, go = (make_signal() for _ in range(4))
    model = single.resource(Model, built=built, closed=closed)
    futures = [single.submit(_pause_with, model, started, go) for _ in range(3)]
    started.take()
    model.close()
    assert closed.count() == 0
    go.give(3)
    assert len({future.result(LIMIT_S) for future in futures}) == 1
    closed.take()
    assert built.count() == 1


def test_a_handle_that_is_gone_is_closed(single: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> None:
    closed = make_signal()
    model: Resource[Model] | None = single.resource(Model, closed=closed)
    single.submit(_count, model).result(LIMIT_S)
    model = None
    gc.collect()
    closed.take()


def test_a_worker_that_leaves_closes_what_it_has(make_signal: Callable[[], Signal]) -> None:
    closed = make_signal()
    with AmorsizeExecutor(1) as executor:
        model = executor.resource(Model, closed=closed)
        executor.submit(_count, model).result(LIMIT_S)
    assert closed.count() == 1
    model.close()


def test_a_recycled_worker_closes_what_it_has(make_signal: Callable[[], Signal]) -> None:
    closed = make_signal()
    with AmorsizeExecutor(1, max_tasks_per_child=2) as executor, executor.resource(Model, closed=closed) as model:
        for _ in range(4):
            executor.submit(_count, model).result(LIMIT_S)
        closed.take()


def test_a_context_manager_is_entered_and_left(single: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> None:
    entered, left = make_signal(), make_signal()
    with single.resource(Managed, entered, left) as managed:
        assert single.submit(tasks.identity, managed).result(LIMIT_S) == "what entering gives"
        entered.take()
        assert left.count() == 0
    left.take()


@contextmanager
def _opened(left: Signal) -> Iterator[list[int]]:
    yield [1, 2]
    left.give()


def test_a_factory_may_be_a_context_manager_by_decorator(
    single: AmorsizeExecutor, make_signal: Callable[[], Signal]
) -> None:
    left = make_signal()
    with single.resource(_opened, left) as numbers:
        assert single.submit(sum, numbers).result(LIMIT_S) == 3  # type: ignore[arg-type]
    left.take()


# ahead of tasks


def test_warm_up_starts_workers_and_builds_what_there_is(make_signal: Callable[[], Signal]) -> None:
    built = make_signal()
    with AmorsizeExecutor(2) as executor:
        with executor.resource(Model, built=built):
            executor.warm_up()
            assert built.count() == 2
            assert executor.stats().n_workers("idle") == 2
            executor.warm_up()
            assert built.count() == 0
        executor.warm_up()


def test_warm_up_takes_a_number_of_workers_and_certain_resources(make_signal: Callable[[], Signal]) -> None:
    built = make_signal()
    with AmorsizeExecutor(2) as executor:
        executor.resource(Model, built=built)
        with executor.resource(Model, "other") as other:
            executor.warm_up(1, resources=[other])
            assert [worker.resources for worker in executor.stats().workers] == [("Model",)]
            assert built.count() == 0
            executor.warm_up(1, resources=[])
            assert len(executor.stats().workers) == 1


def test_workers_that_start_later_build_what_is_warm(
    single: AmorsizeExecutor, make_signal: Callable[[], Signal]
) -> None:
    built = make_signal()
    with single.resource(Model, built=built).warm():
        single.submit(tasks.square, 2).result(LIMIT_S)
        built.take()
        with pytest.raises(WorkerDied):
            single.submit(tasks.end_process, 3).result(LIMIT_S)
        single.submit(tasks.square, 2).result(LIMIT_S)
        built.take()


def test_warm_up_raises_what_a_factory_raises(single: AmorsizeExecutor) -> None:
    with (
        single.resource(tasks.raise_error, "no model here"),
        pytest.raises(ValueError, match="no model here") as caught,
    ):
        single.warm_up(timeout=LIMIT_S)
    assert "raise_error" in str(caught.value.__cause__)
    assert single.submit(tasks.square, 3).result(LIMIT_S) == 9


def test_warm_up_raises_what_an_initializer_raises() -> None:
    from concurrent.futures.process import BrokenProcessPool

    with (
        AmorsizeExecutor(1, initializer=tasks.fail_to_initialize, initargs=("no",)) as executor,
        pytest.raises(BrokenProcessPool, match="initializer failed"),
    ):
        executor.warm_up(timeout=LIMIT_S)


def test_warm_up_says_that_it_takes_too_long(single: AmorsizeExecutor, make_signal: Callable[[], Signal]) -> None:
    go = make_signal()
    with single.resource(tasks.take_then, go, 1):
        with pytest.raises(TimeoutError, match="1 workers were not ready"):
            single.warm_up(timeout=0.01)
        go.give()
        single.warm_up(timeout=LIMIT_S)


def test_warm_up_checks_its_parameters(single: AmorsizeExecutor) -> None:
    with pytest.raises(ValueError, match=r"at most max_workers \(1\), got 2"):
        single.warm_up(2)
    with pytest.raises(TypeError, match="what resource\\(\\) gave, got 5"):
        single.warm_up(resources=[5])  # type: ignore[list-item]
    with AmorsizeExecutor(1) as executor:
        pass
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.warm_up()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.resource(Model)


def test_a_shutdown_ends_a_warm_up(make_signal: Callable[[], Signal]) -> None:
    started, go = make_signal(), make_signal()
    executor = AmorsizeExecutor(1)
    raised: list[BaseException] = []

    def warm_up() -> None:
        try:
            executor.warm_up()
        except RuntimeError as error:
            raised.append(error)

    executor.resource(tasks.pause, started, go)
    handle = executor.resource(tasks.pause, started, go)
    thread = threading.Thread(target=warm_up)
    thread.start()
    started.take()
    executor.shutdown(wait=False)
    thread.join(LIMIT_S)
    assert "shut down before it was warm" in str(raised[0])
    go.give(2)
    executor.shutdown()
    handle.close()


# memory and time


def _grow(nbytes: int, closed: Signal | None = None) -> Model:
    model = Model(closed=closed)
    model.data = np.ones(nbytes, np.uint8)  # type: ignore[attr-defined]
    return model


def test_what_was_used_least_recently_goes_when_memory_is_short(make_signal: Callable[[], Signal]) -> None:
    closed = make_signal()
    mib = 1 << 20
    with AmorsizeExecutor(1, memory_limit=beside_this_process(600 * mib)) as executor:
        sizes = (150 * mib, 160 * mib, 170 * mib, 180 * mib, 190 * mib)
        handles = [executor.resource(_grow, nbytes, closed) for nbytes in sizes]
        for handle in handles:
            executor.submit(_count, handle).result(LIMIT_S)
        closed.take()
        (worker,) = executor.stats().workers
        assert worker.resources_nbytes < 710 * mib
        assert executor.submit(_count, handles[-1]).result(LIMIT_S)[1] == 2, "the latest is kept"


def test_the_time_to_load_is_no_task_time(single: AmorsizeExecutor) -> None:
    with single.resource(_slow, 0.5) as slow:
        single.submit(tasks.identity, slow).result(LIMIT_S)
        assert list(single.map(functools.partial(tasks.call, _ids, slow), [1], chunksize=1))
    stats = single.stats()
    assert stats.run.total_s < 0.5 <= stats.wait.total_s


def _slow(elapsed_s: float) -> str:
    time.sleep(elapsed_s)
    return "slow"
