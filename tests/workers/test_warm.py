"""Blocks that are used again: never while anyone reads them, and never stale."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from amorsize_executor.workers import blocks, serialize, warm
from amorsize_executor.workers.warm import Block, BlockWriter, Epoch, WarmBlocks

N = 40_000


def view(array: Any) -> memoryview:
    return memoryview(array).cast("B")


def read(part: tuple[int, int, bool, int], used: list[Block]) -> bytes:
    """What stands where an entry refers to."""
    offset, nbytes, _, block_id = part
    (block,) = [b for b in used if b.block_id == block_id]
    return bytes(blocks.read_copy(block.fd, offset, offset + nbytes))


@pytest.fixture
def store() -> Iterator[WarmBlocks]:
    made = WarmBlocks(lambda: 1 << 30)
    yield made
    made.close()


def stored(store: WarmBlocks, *arrays: Any, epoch: Epoch | None = None) -> tuple[list[Any], list[Block], int]:
    """Parts of arrays, the blocks in use, and what had to be written."""
    writer = BlockWriter(store, epoch)
    parts = [writer.store(view(array)) for array in arrays]
    return parts, writer.detach(), writer.nbytes


def release(used: list[Block]) -> None:
    for block in used:
        block.release()


def test_what_was_stored_is_found_again(store: WarmBlocks) -> None:
    array = np.arange(float(N))
    for epoch in (None, Epoch()):
        first, used, _ = stored(store, array, epoch=epoch)
        again, used_again, nbytes = stored(store, array, epoch=epoch)
        assert again == first
        assert nbytes == 0
        assert read(again[0], used_again) == array.tobytes()
        release(used + used_again)


def test_what_has_changed_is_stored_again(store: WarmBlocks) -> None:
    array = np.arange(float(N))
    before = array.tobytes()
    first, used, _ = stored(store, array)
    for i in (0, N // 2, N - 1):
        array[i] = -1.0
        again, used_again, nbytes = stored(store, array)
        assert nbytes == array.nbytes
        assert read(again[0], used_again) == array.tobytes()
        assert read(first[0], used) == before, "a block in use is never written to"
        release(used_again)
    release(used)


def test_within_a_map_the_same_memory_is_not_looked_at(store: WarmBlocks, monkeypatch: pytest.MonkeyPatch) -> None:
    array, epoch = np.zeros(N), Epoch()
    first, used, _ = stored(store, array, epoch=epoch)
    monkeypatch.setattr(Block, "holds", None)
    again, used_again, _ = stored(store, array.view(), array[:], epoch=epoch)
    assert again == first * 2
    release(used + used_again)


def test_two_threads_that_meet_the_same_buffer_store_it_once(
    store: WarmBlocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer, epoch = memoryview(np.arange(50_000.0)).cast("B"), Epoch()
    is_writing, is_waiting, may_write = threading.Event(), threading.Event(), threading.Event()
    write, wait = Block.write, store._has_stored.wait

    def told_wait() -> bool:
        is_waiting.set()
        return wait()

    def slow_write(self: Block, offset: int, data: memoryview) -> None:
        is_writing.set()
        assert may_write.wait(30)
        write(self, offset, data)

    monkeypatch.setattr(Block, "write", slow_write)
    monkeypatch.setattr(store._has_stored, "wait", told_wait)
    writers, parts = [BlockWriter(store, epoch) for _ in range(2)], []
    threads = [threading.Thread(target=lambda w=w: parts.append(w.store(buffer))) for w in writers]
    threads[0].start()
    assert is_writing.wait(30)
    threads[1].start()
    assert is_waiting.wait(30)
    may_write.set()
    for thread in threads:
        thread.join()
    assert parts[0] == parts[1]
    assert store.nbytes == buffer.nbytes
    for writer in writers:
        writer.close()


def test_a_buffer_that_could_not_be_stored_is_tried_again_by_the_next(
    store: WarmBlocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer, writer = memoryview(np.arange(50_000.0)).cast("B"), BlockWriter(store, Epoch())

    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Block, "write", fail)
        with pytest.raises(OSError, match="No space"):
            writer.store(buffer)
    assert writer.store(buffer)[1] == buffer.nbytes
    writer.close()


def test_memory_that_another_array_has_got_since_is_looked_at(store: WarmBlocks) -> None:
    epoch = Epoch()
    array = np.zeros(N)
    key = warm.key_of(view(array))
    _, used, _ = stored(store, array, epoch=epoch)
    del array
    for i in range(1, 100):
        other = np.full(N, float(i))
        parts, used_again, _ = stored(store, other, epoch=epoch)
        assert read(parts[0], used_again) == other.tobytes()
        is_same_place = warm.key_of(view(other)) == key
        release(used_again)
        del other
        if is_same_place:
            break
    release(used)


def test_a_map_keeps_owners_without_weak_references_and_lets_them_go(store: WarmBlocks) -> None:
    epoch = Epoch()
    obj = bytes(100_000)
    _, used, _ = stored(store, obj, epoch=epoch)
    assert list(epoch.owners.values()) == [obj]
    release(used)
    store.give_up_free()
    assert epoch.owners == {}


def test_a_free_block_is_given_out_again(store: WarmBlocks) -> None:
    _, used, _ = stored(store, np.zeros(N))
    release(used)
    _, used_again, _ = stored(store, np.ones(N))
    assert used_again == used
    release(used_again)


def test_a_block_in_use_or_with_readers_is_not(store: WarmBlocks) -> None:
    _, in_use, _ = stored(store, np.zeros(N))
    _, kept, _ = stored(store, np.ones(N))
    kept[0].keep()
    release(kept)
    _, third, _ = stored(store, np.full(N, 2.0))
    assert third[0] not in (*in_use, *kept)
    release(in_use + third)


def test_a_block_that_a_map_has_met_twice_stays_while_the_map_lives(store: WarmBlocks) -> None:
    array, epoch = np.zeros(N), Epoch()
    for _ in range(2):
        _, used, _ = stored(store, array, epoch=epoch)
        release(used)
    _, other, _ = stored(store, np.ones(N))
    assert other != used
    release(other)
    del epoch
    gc.collect()
    writer = BlockWriter(store)
    taken = [store.take(N * 8) for _ in range(2)]
    assert used[0] in taken
    release(taken)
    writer.close()


def test_a_block_that_one_item_has_twice_is_given_out_again(store: WarmBlocks) -> None:
    array, epoch = np.zeros(N), Epoch()
    _, used, _ = stored(store, array, epoch=epoch)
    writer = BlockWriter(store, epoch)
    writer.is_again = True
    writer.store(view(array))
    release(used + writer.detach())
    _, other, _ = stored(store, np.ones(N), epoch=epoch)
    assert other == used
    release(other)


def test_free_blocks_are_bounded_in_size_and_number() -> None:
    small = WarmBlocks(lambda: 3 * 8 * N, most=4)
    try:
        taken = [small.take(8 * N) for _ in range(10)]
        for i, block in enumerate(taken):
            block.write(0, view(np.full(N, float(i))))
        assert not any(block.is_closed for block in taken)
        release(taken)
        assert sum(not block.is_closed for block in taken) == 3
    finally:
        small.close()
    assert all(block.is_closed for block in taken)


def test_blocks_that_were_free_for_long_are_closed(store: WarmBlocks) -> None:
    _, used, _ = stored(store, np.zeros(N))
    assert store.trim(1e9) == warm.IDLE_S
    assert not used[0].is_closed
    release(used)
    assert not used[0].is_closed
    assert store.trim(used[0].freed_at + 1.0) == warm.IDLE_S - 1.0
    assert store.trim(used[0].freed_at + warm.IDLE_S) is None
    assert used[0].is_closed


def test_blocks_in_use_are_closed_with_their_last_use() -> None:
    store = WarmBlocks(lambda: 1 << 30)
    _, used, _ = stored(store, np.zeros(N))
    store.close()
    assert not used[0].is_closed
    used[0].abandon()
    assert used[0].is_closed


def test_small_buffers_stand_together(store: WarmBlocks) -> None:
    arrays = [np.full(100, float(i)) for i in range(20)]
    parts, used, nbytes = stored(store, *arrays)
    assert len(used) == 1
    assert all(offset % 64 == 0 for offset, *_ in parts)
    assert [read(part, used) for part in parts] == [array.tobytes() for array in arrays]
    assert nbytes < 20 * 900
    release(used)


def test_a_block_that_cannot_grow_keeps_its_size(store: WarmBlocks, monkeypatch: pytest.MonkeyPatch) -> None:
    block = store.take(0)
    block.write(0, view(np.zeros(N)))

    def pwrite(fd: int, data: Any, offset: int) -> int:
        if offset >= 8 * N:
            raise OSError(28, "No space left on device")
        return original(fd, data[: 8 * N - offset], offset)

    original = os.pwrite
    monkeypatch.setattr(blocks.os, "pwrite", pwrite)
    with pytest.raises(OSError, match="storing 800 bytes for a worker"):
        block.write(8 * N - 400, view(np.ones(100)))
    monkeypatch.undo()
    assert block.nbytes == blocks.size(block.fd) == 8 * N
    block.release()


@pytest.mark.parametrize("n", [65_536, 65_537, 1_000_003, 3_000_000])
@pytest.mark.parametrize("shift", [0, 1])
def test_the_whole_content_is_compared(store: WarmBlocks, n: int, shift: int) -> None:
    data = np.random.default_rng(n).integers(0, 255, n + shift, np.uint8)[shift:]
    block = store.take(n)
    block.write(0, view(data))
    assert block.holds(0, view(data))
    for i in (0, 1, n // 2, n - 2, n - 1):
        data[i] ^= 128
        assert not block.holds(0, view(data))
        data[i] ^= 128
    block.release()


@pytest.mark.parametrize(
    ("sizes", "wanted", "fitting"),
    [
        ([], 10, None),
        ([5], 10, 5),  # small ones may grow
        ([2 << 20, 8 << 20, 3 << 20], 3 << 20, 3 << 20),
        ([2 << 20, 4 << 20, 9 << 20], 3 << 20, 4 << 20),
        ([2 << 20, 20 << 20], 3 << 20, 2 << 20),
        ([20 << 20], 3 << 20, None),
        ([5 << 20], 11 << 20, None),
    ],
)
def test_the_block_that_fits_best(sizes: list[int], wanted: int, fitting: int | None) -> None:
    class Sized:
        def __init__(self, nbytes: int) -> None:
            self.nbytes = nbytes

    found = warm.best_fit([Sized(size) for size in sizes], wanted)
    assert (found.nbytes if found is not None else None) == fitting


class AnyUse(RuleBasedStateMachine):
    """Arrays that change at any time, stored, released, kept and trimmed in any order."""

    @initialize()
    def start(self) -> None:
        self.store = WarmBlocks(lambda: 4 * 8 * N, most=6)
        self.arrays = [np.full(8_192 * (i + 1), float(i)) for i in range(4)]
        self.held: list[tuple[Any, list[Block], bytes]] = []
        self.time = 0.0

    @rule(i=st.integers(0, 3))
    def store_one(self, i: int) -> None:
        parts, used, _ = stored(self.store, self.arrays[i])
        self.held.append((parts[0], used, self.arrays[i].tobytes()))

    @rule(i=st.integers(0, 3), j=st.integers(0, 8_191), value=st.floats(-1, 1))
    def change(self, i: int, j: int, value: float) -> None:
        self.arrays[i][j] = value

    @rule(i=st.integers(0, 9), is_kept=st.booleans())
    def release_one(self, i: int, is_kept: bool) -> None:
        if i < len(self.held):
            _, used, _ = self.held.pop(i)
            for block in used:
                if is_kept:
                    block.keep()
                block.release()

    @rule()
    def give_up(self) -> None:
        self.store.give_up_free()

    @invariant()
    def everyone_reads_what_was_stored(self) -> None:
        for part, used, content in getattr(self, "held", []):
            assert read(part, used) == content

    def teardown(self) -> None:
        for _, used, _ in getattr(self, "held", []):
            release(used)
        if hasattr(self, "store"):
            self.store.close()


TestAnyUse = AnyUse.TestCase
TestAnyUse.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("has_memcmp", [True, False])
@pytest.mark.parametrize("n", [1, 1_000, 3 * (1 << 20) + 5])
def test_all_bytes_are_compared(n: int, has_memcmp: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_memcmp:
        monkeypatch.setattr(warm, "_memcmp", lambda: None)
    content = np.arange(n, dtype=np.uint8)
    for other in (content.copy(), bytes(content), np.where(np.arange(n) == n, 1, content).astype(np.uint8)):
        assert warm.is_same(view(content), memoryview(other))
    for i in {0, n // 2, n - 1}:
        other = content.copy()
        other[i] ^= 1
        assert not warm.is_same(view(content), view(other))


def encoded(store: WarmBlocks, obj: Any, **how: Any) -> tuple[Any, list[Block]]:
    writer = BlockWriter(store, **how)
    return serialize.encode(obj, writer, append=writer.append), writer.detach()


def test_a_large_pickle_stands_behind_larger_buffers_so_that_their_block_is_used_again(store: WarmBlocks) -> None:
    made = []
    for i in range(3):
        _, used = encoded(store, [list(range(50_000)), np.full(100 * N, i)])
        made += [block.block_id for block in used]
        release(used)
    assert len(set(made)) == 1


def test_pickles_of_tasks_that_wait_stay_with_them_once_many_blocks_are_in_use() -> None:
    few = WarmBlocks(lambda: 1 << 30, most=4)
    waiting = [encoded(few, list(range(50_000 + i)), can_wait=True) for i in range(6)]
    assert [isinstance(entry, bytes) for entry, _ in waiting] == [False] * 4 + [True] * 2
    for _, used in waiting:
        release(used)
    few.close()


def test_a_block_that_can_neither_be_found_nor_written_again_is_given_up(store: WarmBlocks) -> None:
    _, used = encoded(store, list(range(50_000)))
    used[0].keep()
    release(used)
    assert used[0].is_closed
    assert store.nbytes == 0
