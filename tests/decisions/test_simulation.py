"""Whole maps in virtual time: what the decisions are worth, with nothing of the machine in it."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.simulate import Simulation, Times, World, distributions, one_by_one

WORLD = World(n_workers=16)
N_ITEMS = 20_000
MEAN_S = 1e-3
DISTRIBUTIONS = distributions(N_ITEMS, MEAN_S, WORLD.n_workers)
#: Chunks and messages may cost this share of the time that handing out items one by one would take, if it were free.
COST_OF_CHUNKS = 0.03

names = pytest.mark.parametrize("name", DISTRIBUTIONS)


@names
def test_every_item_runs_exactly_once(name: str) -> None:
    simulation = Simulation(WORLD)
    outcome = simulation.map(DISTRIBUTIONS[name])
    assert (outcome.runs == 1).all()
    assert simulation.shutdown()


@names
def test_chunks_cost_little_over_handing_out_items_one_by_one_for_free(name: str) -> None:
    times = DISTRIBUTIONS[name]
    free = one_by_one(times, WORLD.n_workers)
    simulation = Simulation(WORLD)
    for outcome in (simulation.map(times), simulation.map(times)):
        assert outcome.makespan_s <= (1 + COST_OF_CHUNKS) * free
        assert outcome.n_chunks < N_ITEMS / 5


def test_constant_items_end_within_two_percent_of_the_ideal() -> None:
    assert Simulation(WORLD).map(np.full(N_ITEMS, MEAN_S)).over_ideal <= 1.02


def test_microsecond_items_are_bounded_by_their_overhead_alone() -> None:
    simulation = Simulation(WORLD)
    simulation.map(np.full(1_000_000, 1e-6))
    again = simulation.map(np.full(1_000_000, 1e-6))
    assert again.over_ideal <= 1.1


def test_long_items_are_never_two_in_a_chunk() -> None:
    outcome = Simulation(WORLD).map(np.full(100, 10.0))
    assert outcome.n_chunks == 100
    assert outcome.over_ideal == pytest.approx(7 * 16 / 100, rel=0.01)


def test_planner_predicts_a_known_function_of_constant_time() -> None:
    simulation = Simulation(WORLD)
    simulation.map(np.full(N_ITEMS, MEAN_S))
    again = simulation.map(np.full(N_ITEMS, MEAN_S))
    assert again.predicted_s == pytest.approx(again.makespan_s, rel=0.02)


def test_two_functions_do_not_confuse_each_other() -> None:
    simulation = Simulation(WORLD)
    for _ in range(2):
        for key, item_s in (("quick", 1e-5), ("slow", 1e-2)):
            outcome = simulation.map(np.full(5_000, item_s), key)
            assert outcome.makespan_s - outcome.ideal_s < 0.05 * outcome.ideal_s + 10 * WORLD.round_trip_s


@pytest.mark.parametrize("n_items", [1, 15, 16, 17, 100])
def test_few_items_spread_over_all_workers(n_items: int) -> None:
    times: Times = np.full(n_items, 1.0)
    simulation = Simulation(WORLD)
    simulation.map(times)
    rounds = -(-n_items // WORLD.n_workers)
    assert simulation.map(times).makespan_s == pytest.approx(rounds, rel=0.01)


def test_same_events_give_the_same_decisions() -> None:
    times = DISTRIBUTIONS["lognormal, sigma 1"]
    one, other = Simulation(WORLD).map(times), Simulation(WORLD).map(times)
    assert (one.makespan_s, one.n_chunks) == (other.makespan_s, other.n_chunks)
