"""Frames over a socket: whole, in order, with their descriptors, whatever the socket does."""

from __future__ import annotations

import itertools
import os
import pickle
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amorsize_executor.workers import blocks
from amorsize_executor.workers.channel import FRAME_NBYTES, HEADER, Channel, FrameReader, Receiver, make_frame


class Reader:
    """The other end: reads messages and gives each with the content of its block."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._receiver = Receiver()
        self._frames = FrameReader()

    def read(self) -> list[tuple[Any, bytes | None]]:
        """What one read brings."""
        data, fds = self._receiver.receive(self.sock)
        return [(message, _content(fd)) for message, fd in self._frames.feed(data, fds)]

    def read_n(self, n: int) -> list[tuple[Any, bytes | None]]:
        messages: list[tuple[Any, bytes | None]] = []
        while len(messages) < n:
            messages += self.read()
        return messages

    def close(self) -> None:
        self._frames.close()
        self.sock.close()


def _content(fd: int | None) -> bytes | None:
    if fd is None:
        return None
    try:
        return blocks.read_all(fd, blocks.size(fd))
    finally:
        os.close(fd)


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Reader]]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(20)
    channel, reader = Channel(ours), Reader(theirs)
    yield channel, reader
    channel.close()
    reader.close()


def _block(data: bytes) -> int:
    fd = blocks.create()
    blocks.write_all(fd, data)
    return fd


def _fill(channel: Channel) -> list[tuple[int, bytes]]:
    """Post until the socket is full; gives what was posted."""
    posted = []
    while True:
        message = (len(posted), b"x" * 10_000)
        posted.append(message)
        if not channel.post(make_frame(message)):
            return posted


def test_a_message_arrives(ends: tuple[Channel, Reader]) -> None:
    channel, reader = ends
    assert channel.post(make_frame((1, "two", None)))
    assert reader.read() == [((1, "two", None), None)]


def test_several_frames_may_come_in_one_read(ends: tuple[Channel, Reader]) -> None:
    channel, reader = ends
    for i in range(100):
        assert channel.post(make_frame((i,)))
    assert reader.read() == [((i,), None) for i in range(100)]


@given(
    messages=st.lists(st.tuples(st.integers(), st.binary(max_size=200)), min_size=1, max_size=8),
    cuts=st.lists(st.integers(0, 2000), max_size=12),
)
def test_frames_may_be_split_anywhere(messages: list[tuple[int, bytes]], cuts: list[int]) -> None:
    stream = b"".join(make_frame(message).data for message in messages)
    places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    reader = FrameReader()
    got = [m for a, b in itertools.pairwise(places) for m in reader.feed(memoryview(stream[a:b]))]
    assert got == [(message, None) for message in messages]


def test_a_frame_may_come_byte_by_byte() -> None:
    data = make_frame(("slow", 1)).data
    reader = FrameReader()
    for i in range(len(data) - 1):
        assert reader.feed(memoryview(data[i : i + 1])) == []
    assert reader.feed(memoryview(data[-1:])) == [(("slow", 1), None)]


@pytest.mark.parametrize("nbytes", [FRAME_NBYTES - 200, FRAME_NBYTES, FRAME_NBYTES + 1, 5 << 20])
def test_bodies_of_any_size_arrive_and_frames_stay_small(ends: tuple[Channel, Reader], nbytes: int) -> None:
    channel, reader = ends
    message = (1, 2, os.urandom(nbytes))
    frame = make_frame(message)
    assert len(frame.data) <= HEADER.size + FRAME_NBYTES
    channel.post(frame)
    channel.post(make_frame(("next",)))
    assert reader.read_n(2) == [(message, None), (("next",), None)]


def test_a_block_travels_with_its_frame(ends: tuple[Channel, Reader]) -> None:
    channel, reader = ends
    channel.post(make_frame((1, 2), _block(b"content")))
    assert reader.read_n(1) == [((1, 2), b"content")]


def test_a_block_and_a_large_body_travel_together(ends: tuple[Channel, Reader]) -> None:
    channel, reader = ends
    body = os.urandom(200_000)
    channel.post(make_frame((1, 2, body), _block(b"content")))
    assert reader.read_n(1) == [((1, 2, body), b"content")]


def test_blocks_stay_with_their_frames(ends: tuple[Channel, Reader]) -> None:
    channel, reader = ends
    for i in range(60):
        body = os.urandom(70_000) if i % 3 == 2 else b""
        channel.post(make_frame((i, 0, len(body), body), _block(str(i).encode()) if i % 2 else None))
    got = reader.read_n(60)
    assert [message[0] for message, _ in got] == list(range(60))
    assert [len(message[3]) == message[2] for message, _ in got] == [True] * 60
    assert [content for _, content in got] == [str(i).encode() if i % 2 else None for i in range(60)]


def test_the_sender_keeps_no_descriptor_that_was_sent(ends: tuple[Channel, Reader]) -> None:
    channel, reader = ends
    fd = _block(b"content")
    channel.post(make_frame((1, 2), fd))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    reader.read_n(1)


def test_a_frame_that_is_not_sent_can_be_closed() -> None:
    fd = _block(b"content")
    frame = make_frame((1, 2), fd)
    frame.close()
    frame.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_message_that_cannot_be_pickled_takes_its_block_along() -> None:
    fd = _block(b"content")
    with pytest.raises((TypeError, pickle.PicklingError)):
        make_frame((1, threading.Lock()), fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


# ---------------------------------------------------------------------- full sockets


def test_posting_to_a_full_socket_says_so_and_does_not_block(ends: tuple[Channel, Reader]) -> None:
    channel, reader = ends
    posted = _fill(channel)
    assert not channel.post(make_frame((len(posted), b"")))
    posted.append((len(posted), b""))
    assert not channel.flush()
    got: list[tuple[Any, bytes | None]] = []
    while len(got) < len(posted):
        got += reader.read()
        channel.flush()
    assert [message for message, _ in got] == posted
    assert channel.flush()


def test_descriptors_wait_with_their_frames_for_a_full_socket(ends: tuple[Channel, Reader]) -> None:
    channel, reader = ends
    posted = _fill(channel)
    assert not channel.post(make_frame(("block", 1), _block(b"late")))
    got: list[tuple[Any, bytes | None]] = []
    while len(got) < len(posted) + 1:
        got += reader.read()
        channel.flush()
    assert got[-1] == (("block", 1), b"late")


def test_posting_to_a_closed_peer_drops_frames_and_their_descriptors(ends: tuple[Channel, Reader]) -> None:
    channel, reader = ends
    reader.sock.close()
    for _ in range(3):
        fd = _block(b"content")
        assert channel.post(make_frame((1, 2), fd))
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_closing_drops_what_waits(ends: tuple[Channel, Reader]) -> None:
    channel, _ = ends
    _fill(channel)
    fd = _block(b"content")
    channel.post(make_frame((1, 2), fd))
    channel.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert channel.post(make_frame((1,)))


def test_a_reader_that_is_closed_closes_descriptors_that_no_frame_claimed() -> None:
    fd = _block(b"content")
    reader = FrameReader()
    assert reader.feed(memoryview(b"\x01"), [fd]) == []
    reader.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_the_end_of_the_stream_is_no_bytes(ends: tuple[Channel, Reader]) -> None:
    channel, reader = ends
    channel.close()
    data, fds = Receiver().receive(reader.sock)
    assert (len(data), fds) == (0, [])


def test_frames_posted_by_many_threads_at_once_stay_whole_and_in_each_threads_order(
    ends: tuple[Channel, Reader],
) -> None:
    channel, reader = ends
    n_threads, n_frames = 8, 300

    def post(number: int) -> None:
        for i in range(n_frames):
            body = bytes([number]) * (i * 37 % 5000)
            block = _block(b"%d-%d" % (number, i)) if i % 10 == 0 else None
            channel.post(make_frame((number, i, body), block))

    threads = [threading.Thread(target=post, args=(number,)) for number in range(n_threads)]
    for thread in threads:
        thread.start()
    got: list[tuple[Any, bytes | None]] = []
    while len(got) < n_threads * n_frames:
        channel.flush()
        try:
            data, fds = reader._receiver.receive(reader.sock, socket.MSG_DONTWAIT)
        except BlockingIOError:
            continue
        got += [(message, _content(fd)) for message, fd in reader._frames.feed(data, fds)]
    for thread in threads:
        thread.join(20)
    for number in range(n_threads):
        mine = [(message, content) for message, content in got if message[0] == number]
        assert [message[1] for message, _ in mine] == list(range(n_frames))
        assert all(message[2] == bytes([number]) * (message[1] * 37 % 5000) for message, _ in mine)
        assert [c for m, c in mine if m[1] % 10 == 0] == [b"%d-%d" % (number, i) for i in range(0, n_frames, 10)]
