from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from amorsize_executor.decisions.sizes import SizeFit, giants, item_sizes


class NoSize:
    @property
    def nbytes(self) -> int:
        raise RuntimeError("no size today")


@pytest.mark.parametrize(
    ("items", "sizes"),
    [
        ([1, -2, 3.5], [1, 2, 3.5]),
        (["", "abc"], [0, 3]),
        ([[1], (1, 2), {1: 2}, b"abc"], [1, 2, 1, 3]),
        ([np.zeros(3), np.zeros((2, 2))], [24, 32]),
        ([True, False], None),
        ([None], None),
        ([1, "a"], None),
        ([NoSize()], None),
    ],
)
def test_sizes_of_items(items: list[Any], sizes: list[float] | None) -> None:
    assert item_sizes(items) == sizes


def fitted(n_chunks: int, noise: float = 0.0, slope: float = 1e-3) -> SizeFit:
    rng = random.Random(1)
    fit = SizeFit()
    for _ in range(n_chunks):
        sizes = [rng.uniform(1, 10) for _ in range(5)]
        times = [0.002 + slope * x + noise * rng.uniform(-1, 1) for x in sizes]
        fit.observe(5, sum(times), sum(sizes))
    return fit


def test_times_that_follow_sizes_give_the_line() -> None:
    line = fitted(20).line()
    assert line is not None
    assert line == pytest.approx((0.002, 1e-3))


def test_few_chunks_or_much_noise_give_no_line() -> None:
    assert fitted(5).line() is None
    assert fitted(50, noise=0.05).line() is None


def test_sizes_that_are_all_equal_or_explain_nothing_give_no_line() -> None:
    assert fitted(50, slope=0.0).line() is None
    fit = SizeFit()
    for elapsed_s in range(1, 20):
        fit.observe(1, elapsed_s, 7.0)
    assert fit.line() is None


def test_larger_items_that_are_faster_give_no_line() -> None:
    assert fitted(50, slope=-1e-4).line() is None


def test_giants_are_those_that_one_worker_would_be_left_with() -> None:
    sizes = [1.0] * 200
    sizes[150], sizes[199] = 40.0, 150.0
    assert giants(sizes, (0.0, 1e-3), 2) == [(199, pytest.approx(0.15)), (150, pytest.approx(0.04))]


def test_equal_items_have_no_giants() -> None:
    assert giants([5.0] * 100, (0.0, 1e-3), 2) == []
    assert giants([5.0], (0.0, 1e-3), 4) == []
