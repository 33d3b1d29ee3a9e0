from __future__ import annotations

import pytest

from amorsize_executor.decisions.cost_model import CostModel


@pytest.fixture
def model() -> CostModel:
    return CostModel()


def test_nothing_is_known_of_a_function_that_never_ran(model: CostModel) -> None:
    assert model.lookup("f") is None
    assert model.mean_s("f") is None


def test_size_and_carriage_alone_tell_nothing_about_time(model: CostModel) -> None:
    model.observe_carriage("f", 10, 1e-3, 1000)
    assert model.lookup("f") is None
    assert model.mean_s("f") is None


def test_first_observation_is_believed(model: CostModel) -> None:
    model.observe("f", 4, 2.0)
    found = model.lookup("f")
    assert found is not None
    assert (found.mean_s, found.n_items) == (0.5, 4)


def test_functions_are_kept_apart(model: CostModel) -> None:
    model.observe("f", 1, 1.0)
    model.observe("g", 1, 2.0)
    assert (model.mean_s("f"), model.mean_s("g")) == (1.0, 2.0)


def test_constant_time_has_no_spread(model: CostModel) -> None:
    for _ in range(50):
        model.observe("f", 10, 0.1)
    found = model.lookup("f")
    assert found is not None
    assert found.mean_s == pytest.approx(0.01)
    assert found.std_s == pytest.approx(0.0, abs=1e-9)


def test_spread_of_single_items_is_learned(model: CostModel) -> None:
    for i in range(1000):
        model.observe("f", 1, 1.0 if i % 2 else 3.0)
    found = model.lookup("f")
    assert found is not None
    assert found.mean_s == pytest.approx(2.0, rel=0.2)
    assert found.std_s == pytest.approx(1.0, rel=0.3)


def test_tenfold_drift_is_followed_within_fifteen_chunks(model: CostModel) -> None:
    for _ in range(100):
        model.observe("f", 100, 0.1)
    for _ in range(15):
        model.observe("f", 100, 1.0)
    assert model.mean_s("f") == pytest.approx(0.01, rel=0.1)


def test_half_of_a_drift_of_250_times_is_believed_within_five_batches(model: CostModel) -> None:
    model.observe("f", 27, 27 * 4e-6)
    for _ in range(5):
        model.observe("f", 8, 8e-3)
    assert model.mean_s("f") == pytest.approx(1e-3, rel=0.5)


def test_stalls_with_usual_items_in_between_do_not_add_up(model: CostModel) -> None:
    for _ in range(20):
        model.observe("f", 10, 0.1)
    for _ in range(10):
        model.observe("f", 10, 100.0)
        for _ in range(5):
            model.observe("f", 10, 0.1)
    assert model.mean_s("f") < 2 * 0.01


def test_one_stall_moves_the_mean_by_less_than_double(model: CostModel) -> None:
    for _ in range(20):
        model.observe("f", 10, 0.1)
    model.observe("f", 10, 100.0)
    assert model.mean_s("f") < 2 * 0.01


def test_cold_first_item_is_soon_forgotten(model: CostModel) -> None:
    model.observe("f", 1, 0.1)
    for n_items in (1, 2, 4, 8, 16, 32, 64, 128):
        model.observe("f", n_items, n_items * 1e-4)
    assert model.mean_s("f") == pytest.approx(1e-4, rel=1.0)


def test_time_of_zero_is_no_trap(model: CostModel) -> None:
    model.observe("f", 1, 0.0)
    model.observe("f", 1, 1.0)
    assert model.mean_s("f") > 0


def test_waiting_shows_as_low_cpu_share(model: CostModel) -> None:
    for _ in range(30):
        model.observe("f", 1, 0.1, cpu_s=0.01)
    found = model.lookup("f")
    assert found is not None
    assert found.cpu_share == pytest.approx(0.1, abs=0.02)


def test_cpu_share_is_full_until_it_was_measured(model: CostModel) -> None:
    model.observe("f", 1, 0.1)
    found = model.lookup("f")
    assert found is not None
    assert found.cpu_share == 1.0


def test_carriage_and_size_are_learned_an_item(model: CostModel) -> None:
    model.observe("f", 1, 1.0)
    model.observe_carriage("f", 1000, 0.1, nbytes=100_000)
    found = model.lookup("f")
    assert found is not None
    assert found.carry_s == pytest.approx(1e-4, rel=0.01)
    assert found.nbytes == 100


def test_single_items_hardly_change_what_a_large_chunk_told(model: CostModel) -> None:
    model.observe("f", 1000, 1.0)
    model.observe("f", 1, 1.0)
    assert model.mean_s("f") == pytest.approx(1e-3, rel=0.01)


def test_beginning_of_a_map_is_not_expected_to_be_like_the_end_of_the_last(model: CostModel) -> None:
    model.observe("f", 10, 10.0)
    for _ in range(50):
        model.observe("f", 10, 1e-3)
    recent, _ = model.next_items("f", is_confirmed=True)
    cautious, _ = model.next_items("f", is_confirmed=False)
    assert recent == pytest.approx(1e-4, rel=0.1)
    assert cautious == pytest.approx((10.0 + 50e-3) / 510)


def test_nothing_is_expected_of_an_unknown_function(model: CostModel) -> None:
    assert model.next_items("f", is_confirmed=False)[0] is None


def test_first_worker_start_replaces_the_guess(model: CostModel) -> None:
    assert model.worker_start_s == CostModel.PRIOR_WORKER_START_S
    model.observe_worker_start(2.0)
    assert model.worker_start_s == 2.0


def test_least_recently_used_function_is_forgotten_first() -> None:
    model = CostModel(max_functions=2)
    for key in ("f", "g", "f", "h"):
        model.observe(key, 1, 1.0)
    assert model.mean_s("g") is None
    assert model.mean_s("f") == model.mean_s("h") == 1.0
    assert len(model) == 2


def test_room_for_no_function_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        CostModel(max_functions=0)


def test_what_workers_take_beyond_their_items_is_unknown_until_it_was_measured(model: CostModel) -> None:
    model.observe("f", 10, 0.1)
    found = model.lookup("f")
    assert found is not None
    assert found.return_s is None
    for _ in range(10):
        model.observe_return("f", 10, 0.05)
    model.observe_return("f", 10, -0.01)  # clocks of two processes
    found = model.lookup("f")
    assert found is not None
    assert found.return_s is not None
    assert 0 < found.return_s <= 5e-3


def test_carrying_an_item_is_to_send_it_and_to_receive_its_result(model: CostModel) -> None:
    model.observe("f", 10, 0.1)
    model.observe_carriage("f", 10, 2e-3 + 0.5 * CostModel.CHUNK_OVERHEAD_S, 100)
    model.observe_receipt("f", 10, 3e-3)
    found = model.lookup("f")
    assert found is not None
    assert found.carry_s == pytest.approx(0.5e-3)


def test_what_a_batch_costs_whatever_its_size_is_not_its_items(model: CostModel) -> None:
    model.observe("f", 10, 0.1)
    model.observe_inline("f", 1, CostModel.CHUNK_OVERHEAD_S)
    found = model.lookup("f")
    assert found is not None
    assert found.inline_s == 0
    model.observe_inline("f", 10_000, CostModel.CHUNK_OVERHEAD_S + 1e-3)
    found = model.lookup("f")
    assert found is not None
    assert found.inline_s == pytest.approx(0.1e-6, rel=0.01)


def test_tiny_maps_that_last_as_expected_count_together(model: CostModel) -> None:
    model.observe("f", 4, 40e-6)
    model.observe_map("f", {1: (4, 40e-6)})
    for _ in range(7):
        model.observe_tiny_map("f", 4, 44e-6)
        assert model.map_item_s("f") == pytest.approx(10e-6)
    model.observe_tiny_map("f", 4, 44e-6)
    assert 10.5e-6 < (model.map_item_s("f") or 0.0) <= 11e-6


def test_a_tiny_map_that_lasts_longer_than_expected_counts_at_once(model: CostModel) -> None:
    model.observe("f", 4, 40e-6)
    model.observe_map("f", {1: (4, 40e-6)})
    model.observe_tiny_map("f", 4, 44e-6)
    model.observe_tiny_map("f", 4, 400e-6)
    assert (model.map_item_s("f") or 0.0) > 30e-6
    model.observe_tiny_map("g", 4, 400e-6)
    assert model.map_item_s("g") is None


def test_results_that_come_late_and_the_next_ones_soon_after_take_no_time(model: CostModel) -> None:
    model.observe("f", 1, 0.05)
    for _ in range(20):
        model.observe_return("f", 1, 0.02)  # held up on their way
        model.observe_return("f", 1, -0.03)
    found = model.lookup("f")
    assert found is not None
    assert found.return_s == 0.0


def test_cpu_time_of_several_cpus_counts_and_a_little_more_than_one_is_noise(model: CostModel) -> None:
    model.observe("f", 1, 1.0, 1.9)
    model.observe("g", 1, 1.0, 1.1)
    assert [found.cpu_share for name in "fg" if (found := model.lookup(name)) is not None] == [pytest.approx(1.9), 1.0]


def test_a_cpu_clock_that_is_late_by_a_tick_hides_no_second_cpu(model: CostModel) -> None:
    for elapsed_s, cpu_s in ((6.5e-3, 14.5e-3), (3.7e-3, 7.8e-3), (3.6e-3, 3.7e-3)):
        model.observe("f", 1, elapsed_s, cpu_s)
    found = model.lookup("f")
    assert found is not None
    assert found.cpu_share > 1.7


def test_what_a_function_takes_to_load_is_remembered_at_its_longest() -> None:
    model = CostModel()
    assert model.load_s("f") is None
    model.observe_load("f", 0.1)
    model.observe_load("f", 1.0)
    assert model.load_s("f") == 1.0
    model.observe_load("f", 0.0)  # by a worker that had the same modules for another function
    assert model.load_s("f") == 0.75
    assert model.lookup("f") is None
    model.observe("f", 1, 0.01)
    other = CostModel()
    other.restore("f", model.export("f") or {})
    assert other.load_s("f") == 0.75
