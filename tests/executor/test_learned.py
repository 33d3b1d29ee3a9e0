"""Learning across processes: `cost_model=` is a path."""

from __future__ import annotations

import sqlite3
import warnings
from contextlib import closing
from pathlib import Path

import pytest

from amorsize_executor import AmorsizeExecutor
from amorsize_executor.decisions.cost_model import CostModel

from . import tasks
from .tools import run_script

SCRIPT = """
import sys
from amorsize_executor import AmorsizeExecutor

def work(x):
    return sum(range(x))

with AmorsizeExecutor(2, cost_model=sys.argv[1], inline=sys.argv[2]) as ex:
    iterator = ex.map(work, [1000] * 200)
    known = ex.last_plan.item_s is not None
    list(iterator)
    print(known, ex.submit(work, 10).result())
"""


@pytest.mark.parametrize("inline", ["auto", "never"])
def test_a_later_process_knows_what_an_earlier_one_measured(tmp_path: Path, inline: str) -> None:
    store = tmp_path / "learned.sqlite3"
    assert run_script(tmp_path, SCRIPT, store, inline) == "False 45\n"
    assert run_script(tmp_path, SCRIPT, store, inline) == "True 45\n"
    with closing(sqlite3.connect(store)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_changed_function_is_another_one(tmp_path: Path) -> None:
    store = tmp_path / "learned.sqlite3"
    assert run_script(tmp_path, SCRIPT, store, "auto") == "False 45\n"
    assert run_script(tmp_path, SCRIPT.replace("sum(range(x))", "sum(range(x)) + 0"), store, "auto") == "False 45\n"


def test_a_corrupt_file_costs_one_warning_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "learned.sqlite3"
    path.write_bytes(b"no database at all" * 100)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with AmorsizeExecutor(2, cost_model=path) as executor:
            for _ in range(3):
                assert list(executor.map(tasks.square, range(100))) == [x * x for x in range(100)]
            assert executor.submit(tasks.square, 3).result() == 9
        with AmorsizeExecutor(2, cost_model=str(path)) as executor:
            assert list(executor.map(tasks.square, range(3))) == [0, 1, 4]
    assert [str(path) in str(w.message) for w in caught] == [True, True], "one for each executor"
    assert path.read_bytes().startswith(b"no database at all")


def test_numbers_that_make_no_sense_are_not_believed() -> None:
    model = CostModel()
    model.restore("f", {"mean_s": -1.0})
    model.restore("g", {"mean_s": float("nan"), "n_items": 3})
    model.restore("h", {"mean_s": "long"})
    assert [model.lookup(key) for key in "fgh"] == [None, None, None]
    model.restore_machine({"worker_start_s": -1, "chunk_overhead_s": None})
    assert model.worker_start_s == CostModel.PRIOR_WORKER_START_S


def test_what_was_restored_gives_way_to_what_is_measured() -> None:
    model = CostModel()
    model.observe("f", 100, 1.0)
    model.observe_map("f", {1: (100, 1.0)})
    exported = model.export("f")
    assert exported is not None
    later = CostModel()
    later.restore("f", exported)
    found = later.lookup("f")
    assert found is not None
    assert found.mean_s == pytest.approx(0.01)
    later.observe("f", 100, 2.0)
    later.observe_map("f", {1: (100, 2.0)})
    found = later.lookup("f")
    assert found is not None
    assert found.mean_s == pytest.approx(0.02, rel=0.02)


def test_cost_model_of_a_wrong_type_is_told() -> None:
    with pytest.raises(TypeError, match="cost_model must be a CostModel, the path of a file or None, got 3"):
        AmorsizeExecutor(cost_model=3)  # type: ignore[arg-type]
