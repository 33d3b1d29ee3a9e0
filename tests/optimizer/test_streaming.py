from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
import pytest

from amorsize_executor import StreamingOptimizationResult, default_executor, execute, optimize_streaming
from amorsize_executor.optimizer import streaming
from amorsize_executor.optimizer.arguments import Bounds
from amorsize_executor.optimizer.choice import Choice
from amorsize_executor.optimizer.workload import Workload

from ..executor import tasks as executor_tasks
from . import tasks
from .test_choice import Pool


@pytest.fixture(params=["serial", "parallel"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Streams that were chosen to be serial, and others with two workers."""
    choose = streaming.choose
    n_jobs = 1 if request.param == "serial" else 2

    def choose_as_told(*args: Any) -> Choice:
        choice = choose(*args)
        return choice._replace(n_jobs=n_jobs, plan=choice.plan._replace(chunksize=3))

    monkeypatch.setattr(streaming, "choose", choose_as_told)
    return str(request.param)


class Source:
    """An input that counts what was read."""

    def __init__(self, n: int | None = None) -> None:
        self.n_read = 0
        self._numbers = itertools.count() if n is None else iter(range(n))

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        x = next(self._numbers)
        self.n_read += 1
        return x


def test_results_from_the_first_item_on_each_run_once(how: str, log: str) -> None:
    result = optimize_streaming(functools.partial(tasks.write, log), Source(100))
    assert result.is_serial == (how == "serial")
    assert len(tasks.lines(log)) == 30
    assert list(result.stream()) == list(range(100))
    assert sorted(map(int, tasks.lines(log))) == list(range(100))


def test_an_endless_input_is_read_no_further_than_needed(how: str) -> None:
    source = Source()
    result = optimize_streaming(executor_tasks.square, source, buffersize=10)
    assert source.n_read == 30
    stream = result.stream()
    assert [next(stream) for _ in range(200)] == [x * x for x in range(200)]
    assert source.n_read <= 200 + 10 + 1
    del stream


def test_items_that_there_was_no_time_to_measure_are_not_lost(
    how: str, log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = streaming.Sampler.run

    def run_few(self: Any, **kwargs: Any) -> Any:
        sample = run(self, **kwargs)
        for i in range(5, 30):  # as if time had been up after the fifth
            sample.results.pop(i)
            sample.not_run.append((i, i))
        return sample

    monkeypatch.setattr(streaming.Sampler, "run", run_few)
    result = optimize_streaming(executor_tasks.square, Source(50))
    assert list(result.stream()) == [x * x for x in range(50)]


def test_profiled_samples_are_complete(how: str) -> None:
    result = optimize_streaming(executor_tasks.square, Source(50), profile=True)
    assert "square" in result.profile.report
    assert list(result.stream()) == [x * x for x in range(50)]


def test_a_sample_may_be_asked_to_be_larger_than_any_input() -> None:
    assert list(optimize_streaming(executor_tasks.square, range(5), sample_size=10**30).stream()) == [0, 1, 4, 9, 16]


@pytest.mark.parametrize("n", [0, 1, 2, 29, 30, 31])
def test_short_inputs(how: str, n: int) -> None:
    assert list(optimize_streaming(executor_tasks.square, Source(n)).stream()) == [x * x for x in range(n)]
    assert list(optimize_streaming(executor_tasks.square, range(n)).stream()) == [x * x for x in range(n)]


def test_no_items() -> None:
    result = optimize_streaming(abs, iter(()))
    assert "no items" in result.reason
    assert (result.n_jobs, result.estimated_time) == (1, 0.0)
    assert list(result.stream()) == []


def test_a_generator_can_be_streamed_once(how: str) -> None:
    result = optimize_streaming(abs, (i for i in range(3)))
    assert list(result.stream()) == [0, 1, 2]
    with pytest.raises(ValueError, match="can be read only once"):
        result.stream()


def test_a_list_can_be_streamed_again(how: str, log: str) -> None:
    result = optimize_streaming(functools.partial(tasks.write, log), [1, 2, 3])
    assert list(result.stream()) == [1, 2, 3]
    assert len(tasks.lines(log)) == 3
    assert list(result.stream()) == [1, 2, 3]
    assert len(tasks.lines(log)) == 6


def test_what_was_changed_since_is_run_again(how: str) -> None:
    items = [[1], [2], [3]]
    result = optimize_streaming(executor_tasks.identity, items)
    items[1][0] = 20
    assert list(result.stream()) == [[1], [20], [3]]
    model = tasks.Model(1)
    result = optimize_streaming(model.predict, [1, 2])
    model.factor = 5
    assert list(result.stream()) == [5, 10]


def test_rows_of_arrays_and_frames(how: str) -> None:
    assert list(optimize_streaming(tasks.total, np.arange(6).reshape(3, 2)).stream()) == [1, 5, 9]
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1, 2], "b": [10, 20]})
    assert list(optimize_streaming(tasks.total, frame).stream()) == [11, 22]


def test_the_exception_of_an_item_tells_which(how: str) -> None:
    stream = optimize_streaming(tasks.fail_on_17, Source(100), sample_size=3).stream()
    assert [next(stream) for _ in range(17)] == list(range(17))
    with pytest.raises(KeyError) as caught:
        next(stream)
    assert caught.value.__notes__ == ["raised by fail_on_17 for item 17 (counted from 0)"]
    with pytest.raises(KeyError):
        optimize_streaming(tasks.fail_on_17, Source(100))


def test_an_exception_of_the_input_is_raised_as_it_is(how: str) -> None:
    def items() -> Iterator[int]:
        yield from range(40)
        raise OSError("the disk is gone")

    stream = optimize_streaming(abs, items()).stream()
    with pytest.raises(OSError, match="the disk is gone"):
        list(stream)
    with pytest.raises(OSError, match="the disk is gone"):
        optimize_streaming(abs, items(), sample_size=50)


def test_the_length_is_used_where_it_is_known() -> None:
    known = optimize_streaming(abs, range(1000))
    assert known.n_items == 1000
    assert known.estimated_time >= 0
    unknown = optimize_streaming(abs, Source(1000))
    assert unknown.n_items is None
    assert math.isnan(unknown.estimated_time)
    assert "an input of unknown length" in str(unknown)
    assert "nan" not in str(unknown)


def test_the_buffer_is_what_was_asked_for_or_fits_into_memory() -> None:
    assert optimize_streaming(abs, range(10), buffersize=7).buffersize == 7
    large = [np.zeros(1_000_000) for _ in range(3)]
    result = optimize_streaming(executor_tasks.identity, large, memory_limit=3e9)
    assert result.buffersize <= 3e8 / 8e6
    assert "buffersize=" in str(result)


def test_data_is_not_kept() -> None:
    result = optimize_streaming(abs, range(10))
    assert isinstance(result, StreamingOptimizationResult)
    assert list(result.data) == []
    assert execute(abs, result.data) == []


def test_a_stream_that_is_dropped_half_way(how: str) -> None:
    stream = optimize_streaming(executor_tasks.square, Source()).stream()
    assert next(stream) == 0
    del stream
    assert execute(executor_tasks.square, [3], n_jobs=2) == [9]


def test_a_slow_input_is_told_and_not_read_far_ahead() -> None:
    load = Workload("f", 30, item_s=0.01)
    pool: Any = Pool(n_ready=2, max_workers=2, n_cpus=2)
    choice = streaming.choose(load, 10_000, pool, Bounds(None, None), abs)
    assert choice.n_jobs == 2
    assert streaming.buffersize_for(choice, load, Bounds(None, None), 0.0) == 8 * choice.plan.chunksize
    assert streaming.buffersize_for(choice, load, Bounds(None, None), 0.5) == 3
    assert list(streaming.slow_input(1e-3, choice, load)) == []
    (told,) = streaming.slow_input(6e-3, choice, load)
    assert "takes 6 ms for 10 ms of work" in told


def test_what_share_and_resource_give_stands_for_the_object(how: str) -> None:
    executor = default_executor()
    with executor.resource(tasks.Model, 3) as model, executor.share([1, 2, 3]) as numbers:
        predict = functools.partial(tasks.predict, model)
        assert list(optimize_streaming(predict, iter(range(50))).stream()) == [3 * x for x in range(50)]
        late = chain([[x] for x in range(40)], [numbers] * 2)
        assert list(optimize_streaming(sum, late).stream()) == [*range(40), 6, 6]
