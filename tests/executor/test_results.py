"""What a running map knows of its items."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from amorsize_executor.decisions.cost_model import CostModel
from amorsize_executor.decisions.planner import PoolState
from amorsize_executor.decisions.scaling import Scaling
from amorsize_executor.maps import Maps
from amorsize_executor.results import MapJob


def made(n_items: int) -> MapJob:
    function = cast(Any, None)  # nothing here asks for it
    return MapJob(
        1, function, list(range(n_items)), is_star=False, source=None, chunksize=None, is_ordered=True,
        may_inline=True, constraint="",
    )  # fmt: skip


def note(job: MapJob, n_items: int, elapsed_s: float, at_once: int) -> None:
    job.note(0, job.started_at, job.started_at + elapsed_s, n_items, elapsed_s, at_once, is_continued=False)


def test_what_was_measured_counts_as_it_would_have_taken_alone() -> None:
    job, scaling = made(100), Scaling()
    note(job, 4, 0.2, 1)
    note(job, 6, 0.9, 2)
    assert job.measured(scaling) == (10, pytest.approx(1.1))
    scaling.observe(1, 0.1)
    scaling.observe(2, 0.15)
    assert job.measured(scaling) == (10, pytest.approx(0.2 + 0.6))


def test_the_slowest_of_those_that_ran_alone_is_known_but_not_a_first_call() -> None:
    job = made(100)
    note(job, 1, 5.0, 1)
    note(job, 10, 0.1, 1)
    note(job, 10, 0.4, 1)
    note(job, 10, 9.0, 2)
    assert job.most_alone_s == pytest.approx(0.04)


def test_as_soon_as_sizes_tell_how_long_items_take_the_long_ones_go_first() -> None:
    pulled: list[Any] = []
    scheduler = SimpleNamespace(pull_ahead=lambda job_id, giants: pulled.append((job_id, [i for i, _ in giants])))
    model = CostModel()
    maps = Maps(cast(Any, SimpleNamespace(cost_model=model, scheduler=scheduler, lock=threading.Lock())))
    job = made(30)  # the items are their own sizes
    job.function, job.is_released = cast(Any, SimpleNamespace(key="f")), True
    job.plan = cast(Any, SimpleNamespace(n_workers=2))
    for i in range(1, 6):
        model.observe("f", 1, 0.01 * i, size=i)
        maps.learn_sizes(job)
    assert pulled == []
    model.observe("f", 1, 0.06, size=6)
    maps.learn_sizes(job)
    maps.learn_sizes(job)
    assert pulled == [(1, list(range(29, 18, -1)))]


@pytest.mark.parametrize(
    ("item_s", "n_ready", "until_help_s", "helps"),
    [
        (0.02, 2, None, False),
        (0.02, 1, 0.01, False),  # the other worker begins before the item would end
        (0.02, 1, 5.0, True),
        (0.001, 1, None, True),
    ],
)
def test_the_caller_leaves_long_items_to_a_cluster(
    item_s: float, n_ready: int, until_help_s: float | None, helps: bool
) -> None:
    scheduler = SimpleNamespace(
        n_ready=n_ready,
        worker_limit=8,
        n_waiting=lambda job_id: 20,
        n_unbegun=lambda job_id: 0,
        n_knowing=lambda key: 1,
        until_help_s=lambda job_id, now: until_help_s,
    )
    model = CostModel()
    model.observe("f", 10, 10 * item_s)
    pool = PoolState(n_ready, 8, 8, 0.02)
    engine = SimpleNamespace(cost_model=model, scheduler=scheduler, pool_state=lambda: pool, is_cluster=True)
    maps = Maps(cast(Any, engine))
    job = made(30)
    job.function, job.plan = cast(Any, SimpleNamespace(key="f")), cast(Any, SimpleNamespace(n_workers=2))
    assert maps._may_help(job) is helps


def test_a_tiny_item_does_not_keep_the_caller_from_helping() -> None:
    scheduler = SimpleNamespace(
        n_ready=1,
        worker_limit=2,
        n_waiting=lambda job_id: 20,
        n_unbegun=lambda job_id: 0,
        n_knowing=lambda key: 1,
        next_item=lambda job_id: 0,
        until_help_s=lambda job_id, now: None,
    )
    model = CostModel()
    model.observe("f", 10, 20e-3)
    model.observe_carriage("f", 10, 1e-3, 1000)
    pool = PoolState(1, 2, 2, 0.02)
    engine = SimpleNamespace(cost_model=model, scheduler=scheduler, pool_state=lambda: pool, is_cluster=False)
    job = made(30)
    job.function, job.plan = cast(Any, SimpleNamespace(key="f")), cast(Any, SimpleNamespace(n_workers=2))
    job.expected_s = lambda index, otherwise_s: 1e-9  # type: ignore[method-assign]
    job.line = cast(Any, (0.0, 1e-9))
    assert Maps(cast(Any, engine))._may_help(job)
