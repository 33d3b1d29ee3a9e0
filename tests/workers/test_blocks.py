"""Anonymous shared memory."""

from __future__ import annotations

import os
import resource

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amorsize_executor.workers import blocks


def test_a_block_holds_what_was_written() -> None:
    fd = blocks.create()
    try:
        blocks.write_all(fd, b"abc")
        blocks.write_all(fd, memoryview(b"def"))
        assert blocks.size(fd) == 6
        assert blocks.read_all(fd, 6) == b"abcdef"
        assert blocks.read_all(fd, 3) == b"abc"
        assert blocks.read_all(fd, 0) == b""
    finally:
        os.close(fd)


def test_a_block_of_a_given_size_is_zero() -> None:
    fd = blocks.create_sized(10_000)
    try:
        assert blocks.read_all(fd, 10_000) == bytes(10_000)
    finally:
        os.close(fd)


def test_a_block_has_no_name_and_is_not_inherited() -> None:
    fd = blocks.create()
    try:
        assert os.fstat(fd).st_nlink == 0
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_reading_more_than_there_is_raises() -> None:
    fd = blocks.create_sized(10)
    try:
        with pytest.raises(OSError, match="holds 10 of the expected 11 bytes"):
            blocks.read_all(fd, 11)
    finally:
        os.close(fd)


@pytest.mark.parametrize("n", [1, 1000, 1_000_000])
def test_writes_to_a_private_view_stay_in_it(n: int) -> None:
    fd = blocks.create()
    try:
        blocks.write_all(fd, b"abc" * n)
        first, second = blocks.map_private(fd, 3 * n), blocks.map_private(fd, 3 * n)
        first[0] = ord("x")
        assert bytes(first) == b"xbc" + b"abc" * (n - 1)
        assert bytes(second) == b"abc" * n
        assert blocks.read_all(fd, 3) == b"abc"
    finally:
        os.close(fd)


@pytest.mark.parametrize("n", [1, 1000, 1_000_000])
def test_a_private_view_outlives_its_descriptor(n: int) -> None:
    fd = blocks.create()
    blocks.write_all(fd, b"abc" * n)
    view = blocks.map_private(fd, 3 * n)
    os.close(fd)
    assert bytes(view) == b"abc" * n


def test_very_many_private_views_may_live_at_once() -> None:
    fd = blocks.create()
    try:
        blocks.write_all(fd, b"abc" * 50_000)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        n_open = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 100
        resource.setrlimit(resource.RLIMIT_NOFILE, (n_open + 50, hard))
        try:
            views = [blocks.map_private(fd, 150_000) for _ in range(500)]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert all(view[149_999] == ord("c") for view in views)
    finally:
        os.close(fd)


def test_a_view_of_more_than_there_is_raises() -> None:
    fd = blocks.create_sized(10)
    try:
        with pytest.raises(OSError, match="holds 10 of the expected 11 bytes"):
            blocks.map_private(fd, 11)
    finally:
        os.close(fd)


@given(st.lists(st.binary(max_size=300), max_size=10))
def test_buffers_stand_aligned_one_behind_another(buffers: list[bytes]) -> None:
    writer = blocks.BlockWriter()
    try:
        offsets = [writer.add(memoryview(data)) for data in buffers]
        fd = writer.detach()
    finally:
        writer.close()
    if fd is None:
        assert not buffers
        return
    try:
        content = blocks.read_all(fd, blocks.size(fd))
    finally:
        os.close(fd)
    assert all(offset % 64 == 0 for offset in offsets)
    assert [content[o : o + len(data)] for o, data in zip(offsets, buffers, strict=True)] == buffers
    assert writer.nbytes == len(content)


def test_a_writer_that_stored_nothing_has_no_block() -> None:
    writer = blocks.BlockWriter()
    assert writer.detach() is None
    writer.close()


def test_a_closed_writer_drops_its_block_unless_it_was_handed_over() -> None:
    writer = blocks.BlockWriter()
    writer.add(memoryview(b"abc"))
    writer.close()
    writer.close()
    writer = blocks.BlockWriter()
    writer.add(memoryview(b"abc"))
    fd = writer.detach()
    writer.close()
    assert fd is not None
    assert blocks.read_all(fd, 3) == b"abc"
    os.close(fd)


def test_a_write_without_room_tells_how_much_was_asked_for() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="while storing 5,000 bytes for a worker"):
            blocks.write_all(fd, bytes(5000))
    finally:
        os.close(fd)
