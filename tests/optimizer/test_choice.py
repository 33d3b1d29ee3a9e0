"""Choices from made-up measurements, without processes."""

from __future__ import annotations

from typing import Any

import pytest

from amorsize_executor import CostModel, machine
from amorsize_executor.decisions.planner import PoolState
from amorsize_executor.optimizer.arguments import Bounds
from amorsize_executor.optimizer.choice import Choice, choose
from amorsize_executor.optimizer.sampling import Sample
from amorsize_executor.optimizer.workload import Workload

LONG = Workload("f", 20, item_s=0.05, item_std_s=0.005, first_s=0.05, nbytes_in=100, peak_nbytes=100 << 20)


class Pool:
    """An executor that has only a state."""

    cost_model = CostModel()

    def __init__(self, **state: Any) -> None:
        self._state = PoolState(**{"n_ready": 1, "max_workers": 4, "n_cpus": 4, "worker_start_s": 0.1, **state})

    def pool_state(self, fn: object) -> PoolState:
        return self._state


def chosen(load: Workload, n_items: int, limit: float | None = None, **state: Any) -> Choice:
    pool: Any = Pool(**state)
    return choose(load, n_items, pool, Bounds(None, limit), abs)


def test_long_work_is_shared_by_all() -> None:
    choice = chosen(LONG, 1000)
    assert choice.n_jobs == 4
    assert 3.5 < choice.speedup <= 4
    assert choice.time_s == pytest.approx(50 / choice.speedup)
    assert choice.warnings == ()


def test_short_work_stays_here() -> None:
    choice = chosen(LONG._replace(item_s=1e-6, item_std_s=0), 1000)
    assert (choice.n_jobs, choice.speedup) == (1, 1.0)
    assert choice.time_s == pytest.approx(1e-3)


def test_one_worker_is_no_gain() -> None:
    choice = chosen(LONG, 1000, max_workers=1, n_cpus=1)
    assert (choice.n_jobs, choice.plan.n_workers) == (1, 0)
    assert choice.time_s == pytest.approx(50)


def test_workers_are_no_more_than_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "resident_nbytes", lambda pid: 100 << 20)
    choice = chosen(LONG, 1000, limit=320 << 20)
    assert choice.n_jobs == 2
    assert any("memory allows 2 of 4" in text for text in choice.warnings)
    choice = chosen(LONG, 1000, limit=150 << 20)
    assert choice.n_jobs == 1
    assert any("more than the memory limit leaves" in text for text in choice.warnings)
    assert chosen(LONG._replace(peak_nbytes=0), 1000, limit=150 << 20).n_jobs == 4


def test_a_warm_up_counts_as_a_part_of_the_start() -> None:
    load = LONG._replace(first_s=30.0)
    assert chosen(load, 20).n_jobs == 1
    assert chosen(LONG, 20).n_jobs > 1
    assert any("the first call in a process took 30 s" in text for text in chosen(load, 20).warnings)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"n_measured": 1}, "only one item was measured"),
        ({"item_std_s": 0.2}, "vary widely"),
        ({"carry_s": 0.02}, "to carry an item takes 20 ms for 50 ms of work"),
        ({"cpu_share": 3.2}, "keeps 3.2 CPUs busy"),
        ({"cpu_share": 0.04}, r"waits most of its time (CPU 4 %): more workers than CPUs (max_workers), or threads"),
    ],
)
def test_warnings(change: dict[str, Any], told: str) -> None:
    assert any(told in text for text in chosen(LONG._replace(**change), 1000).warnings)


def test_a_workload_teaches_a_cost_model() -> None:
    model = CostModel()
    LONG._replace(carry_s=2e-3, cpu_share=0.5).teach(model, "key")
    cost = model.lookup("key")
    assert cost is not None
    assert cost.mean_s == pytest.approx(0.05)
    assert cost.carry_s == pytest.approx(2e-3)
    assert cost.nbytes == pytest.approx(100)
    assert cost.n_items == 20
    assert LONG.cost().std_s == pytest.approx(0.005)


def sample(times_s: list[float], **more: Any) -> Sample:
    return Sample("f", results=dict.fromkeys(range(len(times_s) + 1)), times_s=times_s, first_s=1.0, **more)


def test_a_stall_of_the_machine_does_not_make_a_short_function_long() -> None:
    assert sample([1e-6] * 28 + [1e-3]).workload().item_s < 2e-6


def test_long_items_count_in_full() -> None:
    load = sample([0.01] * 9 + [1.0], cpu_s=0.5).workload()
    assert load.item_s == pytest.approx(0.109)
    assert load.cpu_share == pytest.approx(0.5 / 1.09)
    assert load.warm_up_s == pytest.approx(1 - 0.109)
