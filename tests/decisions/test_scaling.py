from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amorsize_executor.decisions.cost_model import CostModel
from amorsize_executor.decisions.scaling import Scaling, fit_usl


@settings(derandomize=True, deadline=None)
@given(contention=st.floats(0, 1), coherency=st.floats(0, 0.1), levels=st.sets(st.integers(2, 64), min_size=2))
def test_fit_finds_the_law_that_made_the_points(contention: float, coherency: float, levels: set[int]) -> None:
    points = [(n, contention * (n - 1) + coherency * n * (n - 1), 1.0) for n in levels]
    found = fit_usl(points)
    assert found == pytest.approx((contention, coherency), abs=1e-6)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.integers(2, 100), st.floats(-1, 10), st.floats(0.01, 10))))
def test_fit_is_never_below_zero(points: list[tuple[int, float, float]]) -> None:
    contention, coherency = fit_usl(points)
    assert contention >= 0
    assert coherency >= 0


def test_items_do_not_slow_each_other_down_until_that_is_seen() -> None:
    scaling = Scaling()
    scaling.observe(2, 0.02)
    assert scaling.slowdown(2) == 1.0
    scaling.observe(1, 0.01)
    assert scaling.slowdown(2) == pytest.approx(2.0)
    assert scaling.slowdown(1) == 1.0


def test_one_level_gives_the_others_too() -> None:
    scaling = Scaling()
    scaling.observe(1, 0.01)
    scaling.observe(3, 0.014)
    assert scaling.slowdown(2) == pytest.approx(1.2)
    assert scaling.slowdown(4) == pytest.approx(1.6)


def test_what_was_found_slow_is_forgotten_after_many_maps_without_it() -> None:
    scaling = Scaling()
    scaling.observe(2, 0.03)
    for _ in range(100):
        scaling.observe(1, 0.01)
    assert scaling.slowdown(2) == 1.0


def test_a_map_at_several_levels_counts_for_none_of_them() -> None:
    model = CostModel()
    model.observe("f", 100, 1.0)
    model.observe_map("f", {1: (40, 0.08), 2: (60, 0.9)})
    found = model.lookup("f")
    assert found is not None
    assert found.scaling.slowdown(2) == 1.0
    assert found.try_alone_s == pytest.approx(2e-3)


def test_items_that_differ_where_they_run_alone_tell_nothing_about_being_alone() -> None:
    model = CostModel()
    model.observe("f", 100, 1.0)
    model.observe_map("f", {1: (40, 0.08), 2: (60, 0.9)}, 14e-3)
    found = model.lookup("f")
    assert found is not None
    assert found.try_alone_s == pytest.approx(14e-3)


def test_a_serial_map_answers_whether_items_are_faster_alone() -> None:
    model = CostModel()
    model.observe("f", 100, 1.0)
    model.observe_map("f", {1: (10, 0.02), 2: (90, 0.9)})
    model.observe_map("f", {1: (100, 0.2)})
    model.observe_map("f", {2: (100, 1.0)})
    found = model.lookup("f")
    assert found is not None
    assert found.try_alone_s is None
    assert found.scaling.slowdown(2) == pytest.approx(4.0), "at most twice as slow as there are workers"
