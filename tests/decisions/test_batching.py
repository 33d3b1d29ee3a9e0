"""When calls become batches: decided without threads, in virtual time."""

from __future__ import annotations

import heapq
import itertools
import random
from statistics import mean

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from amorsize_executor.decisions.batching import BatchCost, BatchPolicy, Decision


def policy(
    fixed_s: float = 5e-3,
    item_s: float = 1e-4,
    *,
    max_size: int | None = None,
    max_delay_s: float | None = None,
    target_s: float | None = None,
    rate: float | None = None,
    measured: bool = True,
) -> BatchPolicy:
    """One that has measured batches of a function, and calls at a rate, until time 0."""
    made = BatchPolicy(max_size, max_delay_s, target_s)
    if measured:
        for n in (1, 2, 4, 8, 16, 32) * 5:
            made.done(n, fixed_s + item_s * n, fixed_s + item_s * n)
    if rate is not None:
        for i in range(-100, 1):
            made.arrived(i / rate)
    return made


def decide(
    made: BatchPolicy, n_waiting: int, *, busy: int = 0, running: int = 0, workers: int = 1, now: float = 0.0
) -> Decision:
    return made.decide(n_waiting, 0.0, busy, running, workers, now)


# ---------------------------------------------------------------------- the cost of a batch


def test_line_through_measured_batches_is_found() -> None:
    cost = BatchCost()
    for n in (1, 5, 20, 3, 9) * 10:
        cost.observe(n, 4e-3 + 2e-4 * n, 5e-3 + 2e-4 * n)
    assert cost.fixed_s == pytest.approx(4e-3, rel=0.02)
    assert cost.item_s == pytest.approx(2e-4, rel=0.02)
    assert cost.run_s(100) == pytest.approx(24e-3, rel=0.02)
    assert 0.9e-3 < cost.slack_s < 1.5e-3


def test_one_size_tells_nothing_of_the_slope() -> None:
    cost = BatchCost()
    for _ in range(20):
        cost.observe(1, 3e-3, 3e-3)
    assert cost.line() == (pytest.approx(3e-3), 0.0)


def test_cost_follows_a_function_that_became_slower() -> None:
    cost = BatchCost()
    for factor in (1, 3):
        for n in (1, 4, 16) * 40:
            cost.observe(n, factor * (1e-3 + 1e-4 * n), 0.0)
    assert cost.run_s(8) == pytest.approx(3 * 1.8e-3, rel=0.1)


def test_one_outlier_hardly_counts() -> None:
    cost = BatchCost()
    for n in (1, 4, 16) * 20:
        cost.observe(n, 1e-3 + 1e-4 * n, 0.0)
    cost.observe(4, 10.0, 10.0)
    assert cost.run_s(4) < 1.5 * 1.4e-3


@given(st.lists(st.tuples(st.integers(1, 500), st.floats(0, 10)), min_size=1, max_size=50))
def test_line_is_never_negative(measured: list[tuple[int, float]]) -> None:
    cost = BatchCost()
    for n, run_s in measured:
        cost.observe(n, run_s, run_s)
    fixed_s, item_s = cost.line()
    assert fixed_s >= 0
    assert item_s >= 0


# ---------------------------------------------------------------------- when


def test_single_call_goes_at_once_to_a_free_worker() -> None:
    assert decide(policy(measured=False), 1) == Decision(1)
    assert decide(policy(rate=10), 1) == Decision(1)


def test_calls_gather_while_all_workers_are_busy_and_go_together() -> None:
    made = policy()
    assert decide(made, 7, busy=1, running=1) == Decision(0)
    assert decide(made, 7) == Decision(7)


def test_last_free_worker_waits_for_calls_that_come_fast_at_most_until_they_have_waited_a_fixed_part() -> None:
    made = policy(fixed_s=5e-3, rate=2000)
    held = decide(made, 1)
    assert held.size == 0
    assert held.until == pytest.approx(5e-3, rel=0.05)
    now, n = 0.0, 1
    while held.size == 0:
        now, n = now + 0.5e-3, n + 1
        made.arrived(now)
        held = decide(made, n, now=now)
    assert held.size == n
    assert 0.5e-3 * n * (n - 1) / 2 <= 5e-3


def test_other_free_workers_leave_nothing_to_wait_for() -> None:
    assert decide(policy(rate=2000), 1, workers=2) == Decision(1)
    assert decide(policy(rate=2000), 1, busy=1, running=1, workers=2).size == 0


def test_calls_that_do_not_come_are_not_waited_for() -> None:
    made = policy(rate=2000)
    held = decide(made, 1)
    assert held.until is not None
    assert decide(made, 1, now=held.until) == Decision(1)


@pytest.mark.parametrize(("max_delay_s", "until"), [(0.0, None), (1e-3, 1e-3)])
def test_max_delay_bounds_the_wait(max_delay_s: float, until: float | None) -> None:
    held = decide(policy(rate=2000, max_delay_s=max_delay_s), 1)
    assert held.until == until
    assert held.size == (1 if until is None else 0)


def test_target_bounds_the_wait() -> None:
    held = decide(policy(fixed_s=5e-3, item_s=0, rate=2000, target_s=7e-3), 1)
    assert held.until is not None
    assert held.until <= 2e-3


def test_full_batch_waits_for_nobody() -> None:
    assert decide(policy(rate=2000, max_size=4), 4) == Decision(4)
    assert decide(policy(rate=2000, max_size=4), 9) == Decision(4)


# ---------------------------------------------------------------------- how many


def test_calls_are_shared_among_workers() -> None:
    assert decide(policy(), 32, workers=2).size == 16
    assert decide(policy(), 16, busy=1, running=16, workers=2).size == 16
    assert decide(policy(), 5, busy=1, running=20, workers=2).size == 5


def test_batches_end_where_the_fixed_part_is_a_tenth() -> None:
    assert decide(policy(fixed_s=5e-3, item_s=1e-3), 1000).size == pytest.approx(45, abs=2)
    assert decide(policy(fixed_s=0.0, item_s=1e-3), 1000).size == 1


def test_target_bounds_the_size() -> None:
    made = policy(fixed_s=5e-3, item_s=1e-3, target_s=30e-3, rate=10)
    assert decide(made, 40).size == pytest.approx(10, abs=1)  # 2 (5 + n) <= 30
    assert decide(made, 8).size == 8


def test_target_out_of_reach_gives_way_to_the_load() -> None:
    made = policy(fixed_s=5e-3, item_s=1e-3, target_s=15e-3, rate=800)
    assert decide(made, 40).size == pytest.approx(20, abs=2)  # n / (5 + n) ms = 800 a second


@example(1, 0, 0, 1, None, None, None, 0.0, 5e-324)
@given(
    st.integers(1, 2000),
    st.integers(0, 16),
    st.integers(0, 500),
    st.integers(1, 16),
    st.sampled_from([None, 1, 7, 64]),
    st.sampled_from([None, 0.0, 1e-3, 1.0]),
    st.sampled_from([None, 0.0, 20e-3, 1.0]),
    st.floats(0, 0.1),
    st.floats(0, 0.1),
)
def test_decision_is_possible_and_what_is_held_up_has_an_end(
    n_waiting: int,
    busy: int,
    running: int,
    workers: int,
    max_size: int | None,
    max_delay_s: float | None,
    target_s: float | None,
    fixed_s: float,
    item_s: float,
) -> None:
    made = policy(fixed_s, item_s, max_size=max_size, max_delay_s=max_delay_s, target_s=target_s, rate=1000)
    now, decision = 0.0, decide(made, n_waiting, busy=busy, running=running, workers=workers)
    if busy >= workers:
        assert decision == Decision(0)
        return
    for _ in range(3):  # asked again when it said, it sends
        assert 0 <= decision.size <= min(n_waiting, max_size or n_waiting)
        if decision.size:
            return
        assert decision.until is not None
        assert decision.until > now
        now = decision.until
        decision = decide(made, n_waiting, busy=busy, running=running, workers=workers, now=now)
    raise AssertionError("it waits for ever")


# ---------------------------------------------------------------------- all of it, in a simulation


def simulate(
    made: BatchPolicy, fixed_s: float, item_s: float, workers: int, *, clients: int = 0, rate: float = 0.0
) -> tuple[float, float, float]:
    """Calls a second, mean latency in seconds, mean size of batches: with clients in a closed loop, or at a rate."""
    chance = random.Random(1)
    numbers = itertools.count()
    events: list[tuple[float, int, str, list[float]]] = []

    def at(when: float, kind: str, arrivals: list[float]) -> None:
        heapq.heappush(events, (when, next(numbers), kind, arrivals))

    for _ in range(clients or 1):
        at(chance.random() * 1e-3, "call", [])
    waiting: list[float] = []
    busy = running = 0
    taken: list[float] = []
    sizes: list[int] = []
    while events and events[0][0] < 3.0:
        now, _, kind, arrivals = heapq.heappop(events)
        if kind == "call":
            made.arrived(now)
            waiting.append(now)
            if rate:
                at(now + chance.expovariate(rate), "call", [])
        elif kind == "done":
            busy, running = busy - 1, running - len(arrivals)
            made.done(len(arrivals), fixed_s + item_s * len(arrivals), fixed_s + item_s * len(arrivals))
            taken += [now - arrival for arrival in arrivals]
            for i in range(len(arrivals) if clients else 0):
                at(now + 0.5e-3 + 0.2e-3 * (i + 1), "call", [])  # the answer, and the next request
        while (decision := made.decide(len(waiting), waiting[0] if waiting else 0, busy, running, workers, now)).size:
            batch, waiting = waiting[: decision.size], waiting[decision.size :]
            busy, running = busy + 1, running + len(batch)
            sizes.append(len(batch))
            at(now + fixed_s + item_s * len(batch), "done", batch)
        if decision.until is not None:
            at(decision.until, "alarm", [])
    return len(taken) / 3.0, mean(taken), mean(sizes)


def test_light_load_runs_singly_without_delay() -> None:
    _, latency_s, size = simulate(BatchPolicy(None, None, None), 5e-3, 1e-4, 2, rate=40)
    assert latency_s < 1.1 * 5.1e-3
    assert size < 1.1


@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_is_held_up_while_workers_keep_up_with_calls_one_by_one(workers: int) -> None:
    rate = 0.6 * workers / 5.1e-3
    with_delay = simulate(BatchPolicy(None, None, None), 5e-3, 1e-4, workers, rate=rate)
    assert with_delay == simulate(BatchPolicy(None, 0.0, None), 5e-3, 1e-4, workers, rate=rate)


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_closed_loop_gets_far_more_than_one_by_one(workers: int) -> None:
    rate, _, _ = simulate(BatchPolicy(None, None, None), 5e-3, 1e-4, workers, clients=32)
    assert rate > (9, 5, 2.2)[(1, 2, 8).index(workers)] * workers / 5.1e-3


@pytest.mark.parametrize("workers", [4, 8])
def test_waiting_for_returning_clients_pays(workers: int) -> None:
    with_delay, _, _ = simulate(BatchPolicy(None, None, None), 5e-3, 1e-4, workers, clients=32)
    without, _, _ = simulate(BatchPolicy(None, 0.0, None), 5e-3, 1e-4, workers, clients=32)
    assert with_delay > 1.2 * without


def test_work_that_gains_nothing_by_batches_loses_nothing() -> None:
    rate, _, _ = simulate(BatchPolicy(None, None, None), 1e-5, 5e-3, 2, clients=32)
    assert rate > 0.9 * 2 / 5e-3
