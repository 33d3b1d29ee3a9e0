"""Wrong arguments get an error where they are given, with the parameter's name and the value."""

from __future__ import annotations

import multiprocessing
from typing import Any

import numpy as np
import pytest

from amorsize_executor import AmorsizeExecutor

from . import tasks

_NAN = float("nan")


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("max_workers", 0, ValueError),
        ("max_workers", -1, ValueError),
        ("max_workers", 1.5, TypeError),
        ("max_workers", "2", TypeError),
        ("max_workers", True, TypeError),
        ("mp_context", "threads", ValueError),
        ("mp_context", 3, TypeError),
        ("initializer", 3, TypeError),
        ("initargs", 3, TypeError),
        ("max_tasks_per_child", 0, ValueError),
        ("max_tasks_per_child", -1, ValueError),
        ("max_tasks_per_child", 1.0, TypeError),
        ("min_workers", -1, ValueError),
        ("min_workers", 1000, ValueError),
        ("min_workers", None, TypeError),
        ("idle_timeout", -1, ValueError),
        ("idle_timeout", _NAN, ValueError),
        ("idle_timeout", "1", TypeError),
        ("memory_limit", -1, ValueError),
        ("memory_limit", 0, ValueError),
        ("memory_limit", _NAN, ValueError),
        ("memory_limit", "1GB", TypeError),
        ("memory_limit", True, TypeError),
        ("inline", "sometimes", ValueError),
        ("inline", True, ValueError),
        ("inline", None, ValueError),
        ("retries", -1, ValueError),
        ("retries", None, TypeError),
        ("threads_per_worker", 0, ValueError),
        ("threads_per_worker", 0.5, TypeError),
        ("cost_model", 3, TypeError),
        ("progress", 3, TypeError),
        ("progress", None, TypeError),
    ],
)
def test_wrong_arguments_of_the_constructor(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        AmorsizeExecutor(**{name: value})
    assert name in str(caught.value)
    assert repr(value) in str(caught.value)


def test_unknown_arguments_of_the_constructor() -> None:
    with pytest.raises(TypeError, match="max_worker"):
        AmorsizeExecutor(max_worker=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("context", ["fork", multiprocessing.get_context("fork")], ids=["name", "object"])
def test_forked_workers_cannot_be_replaced_after_some_tasks(context: Any) -> None:
    with pytest.raises(ValueError, match="max_tasks_per_child"):
        AmorsizeExecutor(mp_context=context, max_tasks_per_child=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_workers", np.int64(2)),
        ("initargs", [1, 2]),
        ("idle_timeout", None),
        ("idle_timeout", 0),
        ("memory_limit", 1e12),
        ("memory_limit", float("inf")),
        ("progress", True),
    ],
)
def test_arguments_that_are_fine(name: str, value: Any) -> None:
    with AmorsizeExecutor(**{name: value}):
        pass


@pytest.mark.parametrize("idle_timeout", [float("inf"), 1e300])
def test_an_endless_idle_timeout_keeps_workers(idle_timeout: float) -> None:
    with AmorsizeExecutor(max_workers=1, idle_timeout=idle_timeout) as executor:
        assert executor.submit(tasks.square, 2).result() == 4
        assert executor.submit(tasks.square, 3).result() == 9


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("chunksize", 0, ValueError),
        ("chunksize", -5, ValueError),
        ("chunksize", 1.5, TypeError),
        ("chunksize", "1", TypeError),
        ("buffersize", 0, ValueError),
        ("buffersize", -1, ValueError),
        ("buffersize", 2.0, TypeError),
        ("timeout", "1", TypeError),
        ("timeout", True, TypeError),
        ("timeout", _NAN, ValueError),
        ("progress", 3, TypeError),
    ],
)
def test_wrong_arguments_of_map(executor: AmorsizeExecutor, name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        executor.map(tasks.square, [1], **{name: value})
    assert name in str(caught.value)
    assert repr(value) in str(caught.value)


def test_map_needs_an_iterable(executor: AmorsizeExecutor) -> None:
    with pytest.raises(TypeError, match="iterable"):
        executor.map(tasks.square)
    with pytest.raises(TypeError, match="'int' object is not iterable"):
        executor.map(tasks.square, 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        executor.map(tasks.add, [1], 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("fn", [3, None, "square"])
def test_what_is_called_must_be_callable(executor: AmorsizeExecutor, fn: Any) -> None:
    with pytest.raises(TypeError, match=f"fn must be a callable, got {fn!r}"):
        executor.submit(fn, 1)
    with pytest.raises(TypeError, match=f"fn must be a callable, got {fn!r}"):
        executor.map(fn, [1])


def test_submit_needs_a_function(executor: AmorsizeExecutor) -> None:
    with pytest.raises(TypeError, match="fn"):
        executor.submit()  # type: ignore[call-arg]


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (None, TypeError)])
def test_wrong_sizes_of_the_pool(executor: AmorsizeExecutor, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"max_workers.*{value!r}"):
        executor.resize(value)


def test_wrong_arguments_of_a_task_are_its_exception(executor: AmorsizeExecutor) -> None:
    with pytest.raises(TypeError, match="square"):
        executor.submit(tasks.square, 1, 2, 3).result()


def test_the_executor_works_on_after_wrong_arguments(executor: AmorsizeExecutor) -> None:
    assert executor.submit(tasks.square, 3).result() == 9
