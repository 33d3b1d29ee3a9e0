"""Copies for items that the caller runs: what several items have is stored once, what one has is not."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from amorsize_executor.inline import copy_items
from amorsize_executor.workers import blocks
from amorsize_executor.workers.copies import CallerCopies
from amorsize_executor.workers.sharing import Shared
from amorsize_executor.workers.warm import BlockWriter, Epoch, WarmBlocks, owners

N = 40_000


@pytest.fixture
def store() -> Iterator[WarmBlocks]:
    made = WarmBlocks(lambda: 1 << 30)
    yield made
    made.close()


def copy_each(store: WarmBlocks, items: list[Any]) -> tuple[list[Any], list[int]]:
    """Copies of items, each made alone, and how many bytes are in blocks after each."""
    copies, copied, stored = CallerCopies(store, Epoch()), [], []
    for i in range(len(items)):
        (copy,), error = copy_items(items[i : i + 2], 1, i, "f", copies)
        assert error is None
        copied.append(copy)
        stored.append(store.nbytes)
    return copied, stored


@pytest.mark.parametrize("array", [np.arange(float(N)), np.arange(float(N)).reshape(2, -1), np.arange(2.0 * N)[N:]])
def test_an_array_that_the_next_item_has_too_is_stored_at_once(store: WarmBlocks, array: Any) -> None:
    before = array.copy()
    copied, stored = copy_each(store, [(i, array) for i in range(3)])
    assert stored == [array.nbytes] * 3
    for i, (number, copy) in enumerate(copied):
        assert number == i
        np.testing.assert_array_equal(copy, before)
        copy[...] = -1
    np.testing.assert_array_equal(array, before)


def test_items_that_are_the_same_array_are_stored_once(store: WarmBlocks) -> None:
    array = np.arange(float(N))
    copied, stored = copy_each(store, [array, array])
    assert stored == [array.nbytes] * 2
    copied[0][:] = 7
    np.testing.assert_array_equal(copied[1], array)


def test_arrays_that_one_item_has_are_not_stored(store: WarmBlocks) -> None:
    assert copy_each(store, [(0, np.arange(float(N))) for _ in range(3)])[1] == [0, 0, 0]


def test_what_workers_have_got_is_not_copied_for_the_last_item(store: WarmBlocks) -> None:
    array, epoch = np.arange(float(N)), Epoch()
    writer = BlockWriter(store, epoch)
    writer.store(memoryview(array).cast("B"))
    copies = CallerCopies(store, epoch)
    ((_, copy),), _ = copy_items([(5, array)], 1, 5, "f", copies)
    *_, memory = owners(memoryview(copy).cast("B"))
    assert isinstance(memory, mmap.mmap)
    np.testing.assert_array_equal(copy, array)
    writer.close()


def test_what_is_met_again_later_is_stored_then(store: WarmBlocks) -> None:
    array = np.arange(float(N))
    assert copy_each(store, [[array], [0], [array]])[1] == [0, 0, array.nbytes]


@pytest.mark.parametrize("is_handle", [False, True])
def test_a_mapping_serves_the_next_map_too_unless_somebody_has_it(
    store: WarmBlocks, is_handle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped: list[int] = []
    try_map = blocks.try_map
    monkeypatch.setattr(blocks, "try_map", lambda fd, nbytes: mapped.append(fd) or try_map(fd, nbytes))
    array = np.arange(float(N))
    kept: list[Any] = []
    with Shared(array) as handle:

        def run_map(*, keeps: bool = False) -> None:
            copies, items = CallerCopies(store, Epoch()), [(i, handle if is_handle else array) for i in range(2)]
            ((_, copy),), error = copy_items(items, 1, 0, "f", copies)
            assert error is None
            np.testing.assert_array_equal(copy, array)
            copy[:] = -1
            if keeps:
                kept.append(copy)
            del copy  # before what has made it goes

        run_map()
        run_map()
        assert len(mapped) == 1
        run_map(keeps=True)
        assert len(mapped) == 1
        run_map()
        assert len(mapped) == 2
        np.testing.assert_array_equal(kept[0], np.full(N, -1.0))


def test_items_get_what_a_handle_has_each_for_itself(store: WarmBlocks) -> None:
    array = np.arange(float(N))
    with Shared({"a": array, "b": bytes(100_000)}) as handle:
        copied, stored = copy_each(store, [(i, handle) for i in range(3)])
        assert stored == [0, 0, 0]
        for i, (number, given) in enumerate(copied):
            assert number == i
            np.testing.assert_array_equal(given["a"], array)
            given["a"][:] = -1
        assert copied[0][1]["b"] == bytes(100_000)
    assert handle.is_closed
    np.testing.assert_array_equal(copied[0][1]["a"], np.full(N, -1.0))  # who has it keeps it


def test_nothing_stays_of_a_closed_handle_that_a_map_has_used(store: WarmBlocks) -> None:
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with Shared(np.arange(float(N))) as handle:
        copy_each(store, [(i, handle) for i in range(2)])
    assert not before or len(os.listdir("/proc/self/fd")) == before


def test_what_an_item_has_kept_does_not_change_when_the_memory_is_used_again(store: WarmBlocks) -> None:
    array = np.arange(float(N))
    copies = CallerCopies(store, Epoch())
    ((_, kept),), _ = copy_items([(i, array) for i in range(2)], 1, 0, "f", copies)
    del copies
    block = store.take(array.nbytes)
    block.write(0, memoryview(np.full(N, -1.0)).cast("B"))
    block.release()
    np.testing.assert_array_equal(kept, array)
