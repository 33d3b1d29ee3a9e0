from __future__ import annotations

import math

import pytest

from amorsize_executor.decisions import planner
from amorsize_executor.decisions.cost_model import FunctionCost
from amorsize_executor.decisions.plan import Plan, format_time
from amorsize_executor.decisions.planner import (
    PoolState,
    best_ready,
    chunk_size,
    first_starts,
    hand_over_pays,
    inline_batch,
    missed_s,
    parallel_cost,
    plan_map,
)

COLD = PoolState(n_ready=0, max_workers=4, n_cpus=4, worker_start_s=0.1)
WARM = COLD._replace(n_ready=4)


def cost(item_s: float, *, std_s: float = 0.0, cpu_share: float = 1.0, carry_s: float = 1e-6) -> FunctionCost:
    return FunctionCost(item_s, std_s, cpu_share, carry_s, nbytes=0.0, n_items=100)


def plan(n_items: int, item_s: float, pool: PoolState = WARM, *, inline: bool = True, cpu_share: float = 1.0) -> Plan:
    return plan_map("f", n_items, cost(item_s, cpu_share=cpu_share), pool, inline=inline)


# serial or parallel


@pytest.mark.parametrize("pool", [COLD, WARM])
@pytest.mark.parametrize("item_s", [1e-7, 1e-6])
def test_tiny_work_stays_serial(pool: PoolState, item_s: float) -> None:
    chosen = plan(100, item_s, pool)
    assert chosen.is_serial
    assert chosen.predicted_s == chosen.serial_s


def test_long_work_goes_to_all_workers() -> None:
    chosen = plan(1000, 0.1)
    assert chosen.n_workers == 4
    assert chosen.estimated_speedup == pytest.approx(4, rel=0.05)


def test_work_that_ends_before_a_worker_could_start_stays_serial() -> None:
    assert plan(10, 5e-3, COLD).is_serial
    assert not plan(10, 5e-3, WARM).is_serial


def test_items_that_cost_more_to_carry_than_to_run_stay_serial() -> None:
    heavy = cost(1e-4, carry_s=1e-3)
    assert plan_map("f", 10_000, heavy, WARM, inline=True).is_serial


def test_single_item_needs_no_worker() -> None:
    assert plan(1, 10.0).is_serial


def test_there_are_no_more_workers_than_items() -> None:
    assert plan(3, 1.0).n_workers == 3


def test_cpu_bound_work_gains_nothing_from_more_workers_than_cpus() -> None:
    many = PoolState(n_ready=0, max_workers=16, n_cpus=4, worker_start_s=0.1)
    assert plan(10_000, 0.01, many).n_workers <= 5


def test_waiting_work_uses_more_workers_than_cpus() -> None:
    many = PoolState(n_ready=16, max_workers=16, n_cpus=4, worker_start_s=0.1)
    assert plan(1000, 0.1, many, cpu_share=0.1).n_workers == 16


def test_unknown_function_begins_in_the_caller() -> None:
    chosen = plan_map("f", 100, None, COLD, inline=True)
    assert chosen.is_serial
    assert "its first item tells" in chosen.reason


def test_unknown_function_that_may_not_run_in_the_caller_gets_all_workers_and_single_items() -> None:
    chosen = plan_map("f", 100, None, COLD, inline=False, constraint="inline='never'")
    assert (chosen.n_workers, chosen.chunksize) == (4, 1)
    assert "inline='never'" in chosen.reason


def test_what_may_not_run_in_the_caller_goes_to_workers_however_tiny() -> None:
    chosen = plan_map("f", 10, cost(1e-7), COLD, inline=False, constraint="there is an initializer")
    assert chosen.n_workers >= 1
    assert "initializer" in chosen.reason


def test_plan_considers_serial_and_every_small_number_of_workers() -> None:
    assert [n for n, _ in plan(1000, 0.1).considered] == [0, 1, 2, 3, 4]


def test_thousands_of_workers_are_not_tried_one_by_one() -> None:
    many = PoolState(n_ready=1000, max_workers=1000, n_cpus=1000, worker_start_s=0.1)
    considered = plan(1_000_000, 1e-3, many).considered
    assert len(considered) < 50
    assert considered[-1][0] == 1000


def test_plan_tells_what_was_chosen_and_why() -> None:
    text = str(plan(1000, 0.1))
    assert "1,000 items" in text
    assert "4 workers" in text
    assert "instead of 100 s in a serial loop" in text


def test_serial_plan_names_what_workers_would_have_cost() -> None:
    assert "against" in plan(10, 5e-3, COLD).reason


# chunks


def test_unknown_items_travel_one_by_one() -> None:
    assert chunk_size(1000, 4, None, known=False) == 1


def test_chunks_shrink_to_the_end() -> None:
    sizes = []
    remaining = 10_000
    while remaining:
        sizes.append(chunk_size(remaining, 4, 1e-5, known=True, variation=0.0))
        remaining -= sizes[-1]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == math.ceil(10_000 / (4 * planner.LEAST_FACTOR))
    assert sum(sizes) == 10_000


def test_overhead_of_a_chunk_is_a_small_share_of_it() -> None:
    size = chunk_size(200_000, 2, 1e-7, known=True)
    assert planner.OVERHEAD_SHARE * size * 1e-7 >= planner.CostModel.CHUNK_OVERHEAD_S


def test_rest_is_shared_equally_where_it_is_too_little_for_large_chunks() -> None:
    assert chunk_size(8, 4, 100e-6, known=True) == 2


def test_last_chunks_are_worth_their_overhead():
    overhead_s = planner.CostModel.CHUNK_OVERHEAD_S
    size = chunk_size(1_000, 4, overhead_s / 400, known=True)
    assert size * overhead_s / 400 == pytest.approx(planner.LAST_OVERHEADS * overhead_s)
    assert chunk_size(8, 4, 1e-6, known=True) == 8


def test_no_chunk_is_longer_than_a_wrong_estimate_may_go_unnoticed() -> None:
    assert chunk_size(10**9, 1, 1e-3, known=True) * 1e-3 <= planner.MAX_CHUNK_S


def test_chunks_grow_with_what_one_costs_beyond_its_items():
    size = chunk_size(100, 2, 0.05, known=True, variation=0.0, overhead_s=4e-3)
    assert size * 0.05 > planner.MAX_CHUNK_S
    assert 0.005 < 4e-3 / (size * 0.05) < planner.OVERHEAD_SHARE


def test_chunks_are_short_until_the_map_confirms_the_estimate() -> None:
    assert chunk_size(10**9, 1, 1e-3, known=False) * 1e-3 <= planner.FIRST_CHUNK_S


def test_large_items_travel_in_few() -> None:
    assert chunk_size(10**6, 2, 1e-6, known=True, nbytes=planner.MAX_CHUNK_NBYTES / 3) == 3


def test_item_larger_than_a_chunk_may_be_travels_alone() -> None:
    assert chunk_size(10**6, 2, 1e-6, known=True, nbytes=2.0 * planner.MAX_CHUNK_NBYTES) == 1


def test_growth_of_chunks_is_bounded_by_what_was_seen() -> None:
    assert chunk_size(10**6, 2, 1e-6, known=True, limit=4) == 4


# the caller


def test_caller_tries_one_item_of_an_unknown_function() -> None:
    assert inline_batch(1000, None, 0, is_known=False) == 1


def test_caller_looks_around_every_few_milliseconds() -> None:
    assert inline_batch(10**6, 1e-5, 10_000, is_known=True) == round(planner.INLINE_BATCH_S / 1e-5)


def test_batches_of_a_new_function_double() -> None:
    assert inline_batch(10**6, 1e-7, 8, is_known=False) == 16


@pytest.mark.parametrize(
    ("seconds", "text"), [(2e-9, "2 ns"), (1.5e-6, "1.5 us"), (0.25, "250 ms"), (3.0, "3 s"), (180.0, "3.0 min")]
)
def test_times_have_units(seconds: float, text: str) -> None:
    assert format_time(seconds) == text


# workers for maps to come


@pytest.mark.parametrize(
    ("n_ready", "missed_s", "pays"),
    [(0, 0.011, True), (0, 0.009, False), (1, 0.011, False), (1, 0.051, True)],
)
def test_a_worker_starts_once_its_price_was_missed_which_is_higher_without_a_cpu_for_it(
    n_ready: int, missed_s: float, pays: bool
) -> None:
    pool = COLD._replace(n_ready=n_ready, n_cpus=2)
    assert planner.start_pays(missed_s, pool) is pays
    assert planner.start_pays(missed_s, pool, is_idle=True) is (missed_s > 0.010), "between maps there is one"


def test_a_worker_that_is_ready_helps_even_if_to_start_another_one_does_not_pay() -> None:
    pool = PoolState(n_ready=1, max_workers=2, n_cpus=4, worker_start_s=1e-3)
    n_items = int(planner.MIN_GAIN_COLD_S * 1.5 / 1e-3)
    plan = plan_map("f", n_items, cost(1e-3), pool, inline=True)
    seconds = dict(plan.considered)
    assert seconds[2] < seconds[1], "two would be faster, but by less than a start must promise"
    assert plan.n_workers == 1


def test_a_map_misses_only_what_others_would_gain_that_must_load_its_function() -> None:
    chosen, long = Plan("f", 100, 1, 1), cost(0.02)
    two = PoolState(n_ready=0, max_workers=2, n_cpus=2, worker_start_s=1.0, load_s=1.0)
    assert planner.missed_s(chosen, long, two) == pytest.approx(1.0, rel=0.1)  # of 2 s
    assert planner.missed_s(chosen, long, two._replace(n_ready=1)) < 0.05  # the caller is as good as another worker
    assert planner.missed_s(chosen, long, two._replace(n_ready=2)) == 0
    assert planner.missed_s(chosen, long, two._replace(n_ready=1, max_workers=8, n_cpus=8)) > 0.5
    assert (
        planner.missed_s(chosen, long, two._replace(n_ready=1, load_s=0.0)) > 0.5
    )  # it would serve other functions, too


def test_work_whose_results_take_longer_to_send_than_to_make_stays_in_the_caller() -> None:
    small, large = cost(1e-3)._replace(return_s=10e-6), cost(1e-3)._replace(return_s=5e-3)
    assert plan_map("f", 400, small, WARM, inline=True).n_workers == 4
    assert plan_map("f", 400, large, WARM, inline=True).is_serial


# the caller beside workers


def test_the_caller_runs_long_items_where_no_other_worker_is_at_hand() -> None:
    long = cost(0.05)
    assert planner.caller_helps(long, 1, WARM._replace(n_ready=1))
    assert not planner.caller_helps(long, 1, WARM)
    assert not planner.caller_helps(long, 4, WARM)
    assert planner.caller_helps(cost(1e-4), 1, WARM)


def test_until_a_worker_begins_the_caller_runs_what_it_ends_before() -> None:
    pool = WARM._replace(n_ready=1, n_cpus=2)
    assert planner.inline_pays(10, cost(0.05), 2, pool, 0.1)
    assert planner.inline_pays(1, cost(0.05), 2, pool._replace(n_ready=0), 0.1)
    assert not planner.inline_pays(2, cost(0.5), 2, pool._replace(n_ready=0), 0.1)
    assert not planner.inline_pays(10, cost(0.05), 2, pool._replace(n_ready=2), None)
    assert not planner.inline_pays(0, cost(0.05), 2, pool, 0.1)


def test_one_worker_beside_the_caller_is_enough_where_another_takes_longer_to_load() -> None:
    pool = PoolState(n_ready=1, max_workers=2, n_cpus=2, worker_start_s=1.5, load_s=1.5)
    chosen = plan_map("f", 100, cost(0.01), pool, inline=True)
    assert (chosen.n_workers, chosen.is_helped) == (1, True)
    assert chosen.estimated_speedup == pytest.approx(1.9, abs=0.1)
    chosen = plan_map("f", 100_000, cost(0.01), pool, inline=True)
    assert chosen.n_workers == 2


@pytest.mark.parametrize("n_items", [2, 8, 10, 11])
def test_few_long_items_take_the_caller_and_one_worker_as_long_as_two_workers(n_items: int) -> None:
    pool = PoolState(n_ready=1, max_workers=2, n_cpus=2, worker_start_s=1.0, load_s=1.0)
    helped = parallel_cost(n_items, cost(0.3), 1, pool, inline=True)
    both = parallel_cost(n_items, cost(0.3), 2, pool._replace(n_ready=2), inline=True)
    assert helped.helped
    assert helped.total_s == pytest.approx(both.total_s, rel=0.03)


def test_a_worker_that_loads_where_no_cpu_is_free_takes_half_of_that_from_the_map() -> None:
    pool = PoolState(n_ready=1, max_workers=2, n_cpus=2, worker_start_s=1.0, load_s=1.0)
    assert parallel_cost(1000, cost(0.01), 2, pool, inline=True).start_s == pytest.approx(0.5, abs=0.1)
    assert parallel_cost(1000, cost(0.01), 2, pool._replace(n_ready=0), inline=True).start_s > 0.6  # alone till then


def test_an_item_that_keeps_all_cpus_busy_hands_nothing_over_to_workers_that_must_start() -> None:
    pool = COLD._replace(n_cpus=2, max_workers=2)
    assert hand_over_pays(50, 10e-3, 5e-3, pool)
    assert not hand_over_pays(50, 10e-3, 5e-3, pool, cpu_share=2.0)
    assert hand_over_pays(50, pool.worker_start_s, 5e-3, pool, cpu_share=2.0)  # as long as a start takes
    assert hand_over_pays(50, 10e-3, 5e-3, WARM, cpu_share=4.0)


def test_half_of_the_cpus_get_workers_at_first_and_all_but_one_for_a_very_long_item() -> None:
    pool = COLD._replace(n_cpus=16, max_workers=16)
    assert first_starts(100, 1 * pool.worker_start_s, pool) == 8
    assert first_starts(100, 4 * pool.worker_start_s, pool) == 15
    assert first_starts(3, 4 * pool.worker_start_s, pool) == 3
    assert first_starts(100, 4 * pool.worker_start_s, pool._replace(n_cpus=1)) == 1


def test_a_map_that_workers_share_already_gets_no_fewer() -> None:
    alone = plan_map("f", 20, cost(1e-6), COLD, inline=True)
    assert alone.is_serial
    shared = plan_map("f", 20, cost(1e-6), COLD, inline=True, least=3)
    assert shared.n_workers == 3
    assert shared.predicted_s == pytest.approx(parallel_cost(20, cost(1e-6), 3, COLD, inline=True).total_s)
    assert plan_map("f", 1000, cost(0.1), COLD, inline=True, least=1).n_workers == 4


def test_all_workers_that_would_pay_start_once_it_was_shown_that_they_are_missed() -> None:
    pool = COLD._replace(n_cpus=16, max_workers=16, n_ready=2)
    assert best_ready(1000, cost(10e-3), pool).n_workers >= 15
    assert best_ready(3, cost(10e-3), pool).n_workers == 3


def test_of_the_end_of_a_map_the_caller_takes_no_crumbs() -> None:
    assert inline_batch(10_000, 1e-6, 50_000, True, n_sharing=1) == 4_000  # 4 ms
    assert inline_batch(1_000, 1e-6, 50_000, True, n_sharing=1) == 500  # half
    assert inline_batch(300, 1e-6, 50_000, True, n_sharing=1) == 200  # 0.2 ms
    assert inline_batch(100, 1e-6, 50_000, True, n_sharing=1) == 100
    assert inline_batch(3, 1e-3, 50, True, n_sharing=1) == 2


def test_items_that_wait_are_handed_over_sooner() -> None:
    pool = COLD._replace(n_cpus=2, max_workers=8)
    assert not hand_over_pays(20, 10e-3, 8e-3, pool, cpu_share=1.0)
    assert hand_over_pays(20, 10e-3, 8e-3, pool, cpu_share=0.1)


@pytest.mark.parametrize("pool", [COLD._replace(n_cpus=2, max_workers=2), WARM._replace(n_cpus=2, max_workers=2)])
def test_items_that_have_nearly_all_cpus_stay_where_they_are(pool: PoolState) -> None:
    nearly, half = cost(4e-3, cpu_share=1.75), cost(4e-3, cpu_share=1.0)
    assert plan(500, 4e-3, pool, cpu_share=1.75).is_serial
    assert missed_s(plan(500, 4e-3, pool, cpu_share=1.75), nearly, pool) == 0.0
    assert not plan(500, 4e-3, pool).is_serial
    assert missed_s(plan(500, 4e-3, pool)._replace(n_workers=0), half, pool) > 0.0


def test_items_with_two_cpus_each_still_share_eight() -> None:
    assert plan(500, 4e-3, WARM._replace(n_cpus=8, max_workers=8, n_ready=8), cpu_share=2.0).n_workers > 1
