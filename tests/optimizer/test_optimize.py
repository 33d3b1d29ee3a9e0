from __future__ import annotations

import copy
import functools
import os
import pickle
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amorsize_executor import (
    OptimizationResult,
    WorkerDied,
    default_executor,
    execute,
    optimize,
    optimize_streaming,
)
from amorsize_executor.optimizer import sampling
from amorsize_executor.optimizer.items import spread

from ..executor import tasks as executor_tasks
from ..executor.tools import run_script
from . import tasks


def writer(log: str) -> Any:
    return functools.partial(tasks.write, log)


# ---------------------------------------------------------------------- results


def test_a_result_tells_what_was_measured_and_chosen() -> None:
    result = optimize(executor_tasks.square, range(1000))
    assert (result.n_jobs, result.n_items) == (1, 1000)
    assert result.chunksize >= 1
    assert result.estimated_speedup == 1.0
    assert result.estimated_time == pytest.approx(1000 * result.profile.avg_execution_time)
    assert result.reason.startswith("serial")
    profile = result.profile
    assert (profile.function, profile.n_measured) == ("square", 30)
    for name in ("first_execution_time", "avg_pickle_time", "worker_start_time", "dispatch_overhead"):
        assert getattr(profile, name) > 0, name
    assert 0 < profile.avg_nbytes_in < 100
    assert 0 < profile.avg_nbytes_out < 100
    assert profile.peak_worker_memory > 1e6
    assert profile.report == ""
    with pytest.raises(AttributeError):
        result.n_jobs = 2  # type: ignore[misc]


def test_bytes_of_large_items_and_results_count() -> None:
    profile = optimize(executor_tasks.identity, [np.zeros(100_000)] * 3).profile
    assert 800_000 <= profile.avg_nbytes_in < 810_000
    assert 800_000 <= profile.avg_nbytes_out < 810_000


def test_no_items() -> None:
    result = optimize(abs, [], verbose=False)
    assert (result.n_jobs, result.chunksize, result.estimated_speedup, result.estimated_time) == (1, 1, 1.0, 0.0)
    assert result.data == []
    assert "no items" in result.reason
    assert "0 items" in str(result)
    with pytest.raises(ValueError, match="nothing to plot: there are no items"):
        result.plot()


def test_data_is_whole_and_an_object_of_its_own() -> None:
    items = [1, 2, 3]
    assert optimize(abs, iter(items), sample_size=1).data == items
    assert optimize(abs, (i for i in items)).data == items
    result = optimize(abs, items)
    items.append(4)
    assert result.data == [1, 2, 3]
    assert optimize(abs, range(5)).data == range(5)
    array = np.arange(6).reshape(3, 2)
    data: Any = optimize(tasks.total, array).data
    assert data is not array
    assert np.shares_memory(data, array)
    assert (data == array).all()


def test_one_item() -> None:
    result = optimize(abs, [-3])
    assert result.n_jobs == 1
    assert any("only one item" in text for text in result.warnings)


def test_the_sample_is_spread_over_the_items(log: str) -> None:
    optimize(writer(log), range(1000), sample_size=4)
    assert tasks.lines(log) == ["0", "500", "250", "750"]


@pytest.mark.parametrize("n_wanted", [1, 2, 3, 7, 30])
@pytest.mark.parametrize("n_items", [1, 2, 29, 30, 31, 1000])
def test_a_spread_has_distinct_indices_and_begins_with_the_first(n_items: int, n_wanted: int) -> None:
    indices = spread(n_items, n_wanted)
    assert len(set(indices)) == len(indices) == min(n_items, n_wanted)
    assert indices[0] == 0
    assert all(0 <= i < n_items for i in indices)


# ---------------------------------------------------------------------- where the sample runs


def test_the_sample_runs_in_another_process(log: str) -> None:
    optimize(writer(log), range(10))
    assert os.getpid() not in tasks.pids(log)
    assert len(tasks.pids(log)) == 1
    optimize(tasks.change_globals, range(5))
    assert not tasks.changed


def test_a_crash_stays_there() -> None:
    with pytest.raises(WorkerDied) as caught:
        optimize(tasks.end_process_on_17, range(30))
    assert caught.value.__notes__ == ["raised by end_process_on_17 for item 17 of 30 (counted from 0)"]
    assert optimize(tasks.end_process_on_17, range(10)).n_items == 10


def test_what_the_function_raises_is_raised_with_the_index() -> None:
    with pytest.raises(KeyError, match="seventeen") as caught:
        optimize(tasks.fail_on_17, range(30))
    assert caught.value.__notes__ == ["raised by fail_on_17 for item 17 of 30 (counted from 0)"]


def test_functions_items_and_results_that_cannot_travel_are_named() -> None:
    with pytest.raises(TypeError, match=r"item 1 of map.*'Unpicklable' object|no copies of me"):
        optimize(executor_tasks.identity, [1, executor_tasks.Unpicklable(TypeError)])
    with pytest.raises(TypeError, match="the result of make_lock, a 'lock' object, cannot be pickled"):
        optimize(executor_tasks.make_lock, [1, 2])
    with pytest.raises(ValueError, match="not here"):
        optimize(executor_tasks.make_unloadable, [1, 2])


@pytest.mark.parametrize(("lone_item_s", "n_run"), [(5.0, 2), (-1.0, 1)])
def test_a_sample_ends_with_its_time(lone_item_s: float, n_run: int, log: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "BUDGET_S", 0.0)
    monkeypatch.setattr(sampling, "LONE_ITEM_S", lone_item_s)
    assert optimize(writer(log), range(100)).profile.n_measured == n_run
    assert len(tasks.lines(log)) == n_run


def test_a_first_call_that_imports_leaves_time_to_measure_the_others() -> None:
    profile = optimize(functools.partial(tasks.spin_at_first, 1.2 * sampling.BUDGET_S), range(100)).profile
    assert profile.first_execution_time > sampling.BUDGET_S
    assert profile.avg_execution_time < sampling.BUDGET_S / 100
    assert profile.n_measured == 30


def test_a_first_call_that_imports_is_not_the_only_one_however_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "BUDGET_S", 0.0)
    monkeypatch.setattr(sampling, "LONE_ITEM_S", -1.0)
    assert optimize(tasks.import_much, range(100)).profile.n_measured == 2


def test_a_sample_ends_with_its_memory(log: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "MOST_NBYTES", 250_000)
    assert optimize(writer(log), [b"x" * 100_000 + bytes([i]) for i in range(50)]).profile.n_measured == 3


def test_items_do_not_see_what_others_change() -> None:
    shared: list[int] = []
    result = optimize(executor_tasks.mutate, [shared] * 5)
    assert execute(executor_tasks.mutate, result.data) == [[0]] * 5
    assert shared == []


# ---------------------------------------------------------------------- going on from there


def test_measured_items_are_not_run_again(log: str) -> None:
    function = writer(log)
    result = optimize(function, range(100))
    assert len(tasks.lines(log)) == 30
    assert execute(function, result.data) == list(range(100))
    assert sorted(map(int, tasks.lines(log))) == list(range(100))


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_nor_with_what_was_chosen(log: str, n_jobs: int) -> None:
    function = writer(log)
    result = optimize(function, iter(range(50)))
    assert execute(function, result.data, n_jobs=n_jobs, chunksize=result.chunksize) == list(range(50))
    assert sorted(map(int, tasks.lines(log))) == list(range(50))


def test_results_are_taken_over_once(log: str) -> None:
    function = writer(log)
    result = optimize(function, range(40))
    execute(function, result.data)
    assert execute(function, result.data) == list(range(40))
    assert len(tasks.lines(log)) == 80


def test_nothing_is_taken_over_for_another_function_or_other_data(log: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.touch()
    items = list(range(10))
    result = optimize(writer(log), items)
    execute(writer(str(other)), result.data)
    assert len(tasks.lines(str(other))) == 10
    execute(writer(log), items)
    assert len(tasks.lines(log)) == 20


def test_nothing_is_taken_over_when_an_item_was_changed(log: str) -> None:
    items = [[i] for i in range(10)]
    function = functools.partial(tasks.write_first, log)
    result = optimize(function, items)
    items[3][0] = 33
    assert execute(function, result.data) == [0, 1, 2, 33, *range(4, 10)]
    assert len(tasks.lines(log)) == 20


def test_nothing_is_taken_over_when_the_function_was_changed() -> None:
    model = tasks.Model(1)
    result = optimize(model.predict, [1, 2, 3])
    model.factor = 10
    assert execute(model.predict, result.data) == [10, 20, 30]


def test_data_that_was_shortened_or_lengthened() -> None:
    for change in (lambda data: data.pop(), lambda data: data.append(50), lambda data: data.clear()):
        data: Any = (result := optimize(executor_tasks.square, [1, 2, 3])).data
        change(data)
        assert execute(executor_tasks.square, data) == [x * x for x in data]
        del result


def test_rows_of_an_array_are_taken_over(log: str) -> None:
    array = np.arange(10.0).reshape(5, 2)
    result = optimize(functools.partial(tasks.write_first, log), array)
    assert execute(functools.partial(tasks.write_first, log), result.data) == [0, 2, 4, 6, 8]
    assert len(tasks.lines(log)) == 5


# ---------------------------------------------------------------------- names for later


def test_what_is_kept_under_a_name_is_not_measured_again(log: str, tmp_path: Path) -> None:
    function = writer(log)
    first = optimize(function, range(100), cache_key="writing_v1")
    n = len(tasks.lines(log))
    second = optimize(function, range(50), cache_key="writing_v1")
    assert len(tasks.lines(log)) == n
    assert second.profile.avg_execution_time == first.profile.avg_execution_time
    assert second.profile.peak_worker_memory == first.profile.peak_worker_memory
    assert second.data == range(50)
    assert "what is kept as 'writing_v1'" in second.reason
    optimize(function, range(100), cache_key="writing_v2")
    assert len(tasks.lines(log)) == 2 * n
    assert execute(function, second.data) == list(range(50))  # nothing was measured, so all run


def test_a_name_says_nothing_about_other_code() -> None:
    optimize(executor_tasks.square, range(10), cache_key="k")
    assert "kept as" not in optimize(lambda x: x, range(10), cache_key="k").reason
    assert "kept as" not in optimize(executor_tasks.square, range(10), cache_key="k").reason


def test_profiling_measures_in_any_case() -> None:
    optimize(executor_tasks.square, range(10), cache_key="k")
    assert "square" in optimize(executor_tasks.square, range(10), cache_key="k", profile=True).profile.report


def test_names_hold_in_other_processes(tmp_path: Path) -> None:
    source = """
        import os, sys
        from amorsize_executor import default_executor, execute, optimize, optimize_streaming

        def work(x):
            with open("log", "a") as file:
                file.write(f"{x}\\n")
            return x

        how = sys.argv[1]
        if how == "execute":
            assert execute(work, range(40), cache_key="mine") == list(range(40))
            plan = default_executor().last_plan
            print(plan.item_s is not None)
        elif how == "optimize":
            print("kept as" in optimize(work, range(40), cache_key="mine").reason)
        else:
            result = optimize_streaming(work, range(40), cache_key="mine")
            print("kept as" in result.reason)
            assert list(result.stream()) == list(range(40))
        """
    assert run_script(tmp_path, source, "execute") == "True\n"
    for how in ("optimize", "stream"):
        (tmp_path / "log").write_text("")
        assert run_script(tmp_path, source, how) == "True\n"
        assert len((tmp_path / "log").read_text().split()) == (0 if how == "optimize" else 40)


def test_a_damaged_record_is_measured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    from amorsize_executor.identity import function_key, machine_key
    from amorsize_executor.store import Record, Store, default_path

    good = {"function": "square", "code": function_key(executor_tasks.square), "n_measured": 3, "item_s": "long"}
    Store(default_path()).write_many([Record("workload", "k", machine_key(), good)])
    assert "kept as" not in optimize(executor_tasks.square, range(10), cache_key="k").reason


# ---------------------------------------------------------------------- what it shows


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda result: pickle.loads(pickle.dumps(result))])
def test_results_can_be_copied_and_pickled(duplicate: Callable[[Any], Any], log: str) -> None:
    result = optimize(writer(log), list(range(40)), sample_size=10)
    other = duplicate(result)
    assert (other, other.data, str(other)) == (result, result.data, str(result))
    assert execute(writer(log), other.data) == list(range(40))
    assert len(tasks.lines(log)) == 50  # only the result itself has what was measured
    stream = optimize_streaming(executor_tasks.square, range(5))
    other = duplicate(stream)
    assert other == stream
    with pytest.raises(ValueError, match="copied or unpickled: it has no input"):
        other.stream()
    assert list(stream.stream()) == [0, 1, 4, 9, 16]


def test_results_as_dictionaries_and_through_workers() -> None:
    for result in (optimize(abs, range(40)), optimize_streaming(abs, range(40)), optimize_streaming(abs, iter([1]))):
        assert asdict(result)["n_jobs"] == 1
        assert str(execute(executor_tasks.identity, [result], n_jobs=2)[0]) == str(result)


def test_text_and_html() -> None:
    result = optimize(lambda x: x, range(10), profile=True)
    text = str(result)
    for word in ("<lambda> over 10 items", "one item", "a worker", "choice", "predicted", "why"):
        assert word in text
    shown = result._repr_html_()
    assert "&lt;lambda&gt; over 10 items" in shown
    assert "<lambda>" not in shown
    assert "cumulative" in shown
    assert all(len(line) < 160 for line in text.splitlines())


def test_verbose_prints_the_result_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    result = optimize(executor_tasks.square, range(10), verbose=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"{result}\n"


def test_profile_shows_where_the_time_goes(log: str) -> None:
    result = optimize(writer(log), range(100), profile=True)
    assert "cumulative" in result.profile.report
    assert "(write)" in result.profile.report
    assert result.profile.n_measured == 30
    assert len(set(tasks.lines(log))) == 30


def test_plot() -> None:
    figure_class = pytest.importorskip("matplotlib.figure").Figure
    assert isinstance(optimize(executor_tasks.square, range(1000)).plot(), figure_class)
    assert OptimizationResult(1, 1, 1.0, 0.0, "because").plan is None


def test_what_share_and_resource_give_stands_for_the_object() -> None:
    executor = default_executor()
    with executor.resource(tasks.Model, 3) as model, executor.share([1, 2, 3]) as numbers:
        predict = functools.partial(tasks.predict, model)
        result = optimize(predict, range(4))
        assert execute(predict, result.data, n_jobs=result.n_jobs) == [0, 3, 6, 9]
        result = optimize(sum, [[1], numbers])
        assert execute(sum, result.data, n_jobs=result.n_jobs) == [1, 6]
