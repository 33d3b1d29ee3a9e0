"""The worker's views of blocks: each as good as a fresh mapping."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amorsize_executor.workers import blocks, mapped
from amorsize_executor.workers.mapped import MappedBlocks, ResultBlocks, ResultWriter

N = 50_000


@pytest.fixture
def fd() -> Iterator[int]:
    fd = blocks.create()
    blocks.write_all(fd, memoryview(np.arange(float(N))).cast("B"))
    yield fd
    os.close(fd)


@pytest.fixture
def known(fd: int) -> Iterator[MappedBlocks]:
    known = MappedBlocks()
    known.add(7, os.dup(fd))
    yield known
    known.drop([7])
    known.close()


def array_of(known: MappedBlocks, start: int = 0, stop: int = N) -> Any:
    view, base = known.lease(7, 8 * start, 8 * stop)
    return np.frombuffer(view, np.float64, stop - start, 8 * start - base)


def address(array: Any) -> int:
    found: int = array.__array_interface__["data"][0]
    return found


def test_a_view_has_the_blocks_content_and_can_be_written(known: MappedBlocks, fd: int) -> None:
    array = array_of(known)
    assert (array == np.arange(N)).all()
    array[:] = -1
    assert blocks.read_copy(fd, 0, 8) == bytes(8)


def test_a_mapping_is_used_again_when_nobody_has_it(known: MappedBlocks) -> None:
    where = address(array_of(known))
    assert address(array_of(known)) == where
    assert known.settle() == ()
    assert address(array_of(known)) == where


def test_what_was_written_before_is_gone(known: MappedBlocks) -> None:
    for settle in (known.settle, tuple):
        for i in (0, 511, 512, N // 2, N - 1):
            array = array_of(known)
            assert (array == np.arange(N)).all()
            array[i] = -1
            del array
            settle()
        array = array_of(known)
        array[:] = -2
        del array
        settle()
        assert (array_of(known) == np.arange(N)).all()


def test_pages_are_looked_at_only_if_there_was_a_page_fault(
    known: MappedBlocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    clean = mapped._PageMap.clean
    monkeypatch.setattr(
        mapped._PageMap, "clean", lambda self, *arguments: looked.append(arguments[1:]) or clean(self, *arguments)
    )
    n_faults = [10]
    monkeypatch.setattr(mapped, "_page_faults", lambda: n_faults[0])
    array_of(known)
    array_of(known)
    assert known.settle() == ()
    assert not looked
    array_of(known)
    n_faults[0] += 1
    array_of(known)
    assert len(looked) == 1
    array_of(known)  # known to be clean again
    assert len(looked) == 1
    n_faults[0] += 1
    array_of(known, 10_000, 20_000)
    array_of(known)  # of the other pages that is not known
    assert len(looked) == 3


def test_a_view_that_is_kept_is_nobody_elses(known: MappedBlocks) -> None:
    kept = array_of(known)[5:]
    kept[:] = -1
    other = array_of(known)
    assert (other == np.arange(N)).all()
    other[:] = -2
    assert (kept == -1).all()


@pytest.mark.parametrize(
    "derived",
    [lambda a: a[3:4], lambda a: memoryview(a), lambda a: a.reshape(2, -1), lambda a: [a], lambda a: a.data],
    ids=["part", "memoryview", "reshaped", "in a list", "its buffer"],
)
def test_any_derived_view_counts_as_kept(known: MappedBlocks, derived: Any) -> None:
    kept = derived(array_of(known))
    assert known.settle() == (7,)
    del kept
    array_of(known)
    assert known.settle() == ()


def test_a_view_that_an_earlier_task_of_the_chunk_has_kept_is_told_too(known: MappedBlocks) -> None:
    kept = array_of(known)
    array_of(known)
    assert known.settle() == (7,)
    array_of(known)
    assert known.settle() == ()  # it was told
    assert (kept == np.arange(N)).all()


def test_later_content_of_the_block_is_seen_by_the_next_view(known: MappedBlocks, fd: int) -> None:
    for i in range(5):
        array = array_of(known)
        assert (array[1:] == np.arange(N)[1:]).all()
        assert array[0] == i
        array[0] = 99.0
        del array
        known.settle()
        os.pwrite(fd, np.array([i + 1.0]).tobytes(), 0)


def test_a_block_that_has_grown_is_mapped_again(known: MappedBlocks, fd: int) -> None:
    array_of(known)
    blocks.write_all(fd, memoryview(np.full(N, 5.0)).cast("B"))
    assert (array_of(known, N, 2 * N) == 5.0).all()


def test_small_parts_are_copied(known: MappedBlocks) -> None:
    array = array_of(known, 10, 20)
    array[:] = -1
    assert known.settle() == ()
    assert array_of(known, 10, 20)[0] == 10.0


@pytest.mark.parametrize("lack", ["page map", "dropping", "mappings"])
def test_it_works_without(known: MappedBlocks, lack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if lack == "page map":
        original = os.open

        def refuse(path: Any, *args: Any, **kwargs: Any) -> int:
            if path == "/proc/self/pagemap":
                raise PermissionError
            return original(path, *args, **kwargs)

        monkeypatch.setattr(mapped.os, "open", refuse)
    elif lack == "dropping":
        monkeypatch.setattr(mapped, "_CAN_DROP", False)
    else:
        monkeypatch.setattr(blocks, "_MOST_MAPPED", 0)
    for _ in range(3):
        array = array_of(known)
        assert (array == np.arange(N)).all()
        array[5:] = -1
        del array
        assert known.settle() == ()


@pytest.mark.skipif(sys.platform != "linux", reason="pages are looked at by /proc")
@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, N - 1), st.integers(1, 2_000)), max_size=5), st.integers(0, N - 10_000))
def test_written_pages_are_found_wherever_they_are(spans: list[tuple[int, int]], start: int) -> None:
    content = np.arange(float(N))
    fd = blocks.create()
    known = MappedBlocks()
    try:
        blocks.write_all(fd, memoryview(content).cast("B"))
        known.add(7, os.dup(fd))
        array = array_of(known)
        for first, length in spans:
            array[first : first + length] = -1.0
        del array
        part = array_of(known, start, start + 10_000)
        assert (part == content[start : start + 10_000]).all()
        del part
        assert known.settle() == ()
        assert (array_of(known) == content).all()
    finally:
        known.drop([7])
        known.close()
        os.close(fd)


# ---------------------------------------------------------------------- results


def result(pool: ResultBlocks, n: int, value: float) -> tuple[int, int]:
    """Store a result; its descriptor (the caller's) and number."""
    writer = ResultWriter(pool)
    assert writer.store(memoryview(np.full(n, value)).cast("B")) == (0, 8 * n, False, 0)
    fd, number = writer.lend()
    writer.close()
    assert fd is not None
    return fd, number


def test_a_block_of_results_is_used_again_when_nobody_reads_it() -> None:
    pool = ResultBlocks()
    fd, number = result(pool, N, 1.0)
    other_fd, other = result(pool, N, 2.0)
    assert number != other
    pool.freed([number])
    again_fd, again = result(pool, N, 3.0)
    assert again == number
    assert os.fstat(again_fd).st_ino == os.fstat(fd).st_ino
    assert blocks.read_copy(other_fd, 0, 8) == np.float64(2.0).tobytes()
    blocks.close_all([fd, other_fd, again_fd])
    pool.forget()
    assert pool.is_empty


def test_blocks_of_results_are_bounded_and_what_was_lent_stays_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "_MOST_RESULTS", 3)
    pool = ResultBlocks()
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    lent = [result(pool, N, float(i)) for i in range(10)]
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 10 + 3
    assert [np.frombuffer(blocks.read_copy(fd, 0, 8))[0] for fd, _ in lent] == list(range(10))
    pool.freed([number for _, number in lent])
    blocks.close_all([fd for fd, _ in lent])
    pool.forget()


def test_a_writer_that_was_not_asked_for_its_block_gives_it_back() -> None:
    pool = ResultBlocks()
    writer = ResultWriter(pool)
    assert writer.lend() == (None, 0)
    writer.store(memoryview(bytes(100_000)))
    writer.close()
    writer.close()
    assert not pool.is_empty
    pool.forget()


def test_a_pickle_goes_into_the_block_of_results_if_it_is_too_large_for_a_frame() -> None:
    pool = mapped.ResultBlocks()
    writer = mapped.ResultWriter(pool)
    assert writer.append(memoryview(bytes(60_000))) is None
    part = writer.append(memoryview(bytes(70_000)))
    assert part is not None
    assert part[1] == writer.nbytes == 70_000
    writer.close()
    pool.forget()
