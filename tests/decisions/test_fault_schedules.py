"""Some of the schedules of which `benchmarks/fault_schedules.py` plays a million."""

from __future__ import annotations

import pytest

from .fault_world import play


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_schedules_of_faults_lose_and_repeat_nothing(first: int) -> None:
    for seed in range(first, first + 100):
        play(seed)
