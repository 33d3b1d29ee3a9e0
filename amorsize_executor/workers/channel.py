"""Frames over a socket, with descriptors.

A frame is a header (body length, number of descriptors, whether the body is in a block) and a pickled message. Bodies
above `FRAME_NBYTES` travel in a block whose descriptor comes with the frame, so what is in a socket's buffer stays
small.

`Channel` is the parent's side: sending never blocks. What the socket does not take at once waits in order, and the
I/O thread goes on when the socket can take more; so two processes that send each other much cannot block each other.
The worker's side sends with plain blocking calls (see `process`): the parent always reads.
"""

from __future__ import annotations

import _pickle as pickle
import _socket as socket
import array
import os
import struct
import threading
from collections import deque
from collections.abc import Sequence

from . import blocks

TYPE_CHECKING = False  # as of typing: see the package's docstring
if TYPE_CHECKING:
    from typing import Any

HEADER = struct.Struct("<IBB")
#: Largest body that travels inside a frame, in bytes.
FRAME_NBYTES = 64 << 10
#: Read at most this much at once, in bytes.
READ_NBYTES = 128 << 10
#: Stands for descriptors that this process had no room for.
LOST = -1
#: Descriptors in one frame at most; far below the kernel's 253.
_MAX_FDS = 16
_CMSG_NBYTES = socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize) if hasattr(socket, "CMSG_SPACE") else 0
_RECV_FLAGS = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


def rights(fds: Sequence[int]) -> list[tuple[int, int, array.array[int]]]:
    """What lets a message carry descriptors, as of ``sendmsg``."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]


class Frame:
    """Bytes to send and the descriptors that go with them; owns the descriptors until they are sent.

    Attributes
    ----------
    about
        The message's code and first argument, for pools that do more with some messages than to send them.
    """

    __slots__ = ("about", "data", "fds")

    def __init__(self, data: bytes, fds: tuple[int, ...], about: tuple[Any, ...]) -> None:
        self.data = data
        self.fds = fds
        self.about = about

    def close(self) -> None:
        """Close descriptors that were not sent."""
        blocks.close_all(self.fds)
        self.fds = ()


def make_frame(message: tuple[Any, ...], block_fd: int | None = None, *, head: int = 2) -> Frame:
    """Frame of a message.

    Parameters
    ----------
    message
        What to send.
    block_fd
        The block that it refers to; the frame owns it from now on.
    head
        Elements of the message that its receiver gets even if it has no room for the descriptor of the message's body.
    """
    fds = () if block_fd is None else (block_fd,)
    try:
        body = pickle.dumps(message, 5)
        if len(body) <= FRAME_NBYTES:
            return Frame(HEADER.pack(len(body), len(fds), 0) + body, fds, message[:2])
        spill = blocks.create()
        fds = (*fds, spill)
        blocks.write_all(spill, body)
        stub = pickle.dumps(message[:head], 5)
    except BaseException:
        blocks.close_all(fds)
        raise
    return Frame(HEADER.pack(len(stub), len(fds), 1) + stub, fds, message[:2])


class Receiver:
    """Reads from sockets into one buffer, again and again (fresh memory for each read costs more than the read)."""

    def __init__(self) -> None:
        self._buffer = bytearray(READ_NBYTES)
        self._view = memoryview(self._buffer)
        self._target = [self._view]

    def receive(self, sock: socket.socket, flags: int = 0) -> tuple[memoryview, list[int]]:
        """One read: bytes (none at the end of the stream; valid until the next read) and descriptors.

        A read ends behind the bytes that descriptors came with, so they are those of one frame. When this process has
        no room for them all, they are [LOST].
        """
        nbytes, ancillary, what, _ = sock.recvmsg_into(self._target, _CMSG_NBYTES, _RECV_FLAGS | flags)
        fds: list[int] = []
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
                fds.extend(received)
        if what & socket.MSG_CTRUNC:
            blocks.close_all(fds)
            fds = [LOST]
        return self._view[:nbytes], fds


class FrameReader:
    """Puts messages together from what was received. Owned by the reading thread."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._fds: deque[int] = deque()

    def feed(self, data: memoryview, fds: Sequence[int] = ()) -> list[tuple[Any, int | None]]:
        """Take in bytes and give the complete messages, each with its block's descriptor (now the caller's)."""
        if fds:
            self._fds.extend(fds)
        if self._buffer:
            self._buffer += data
            data = memoryview(bytes(self._buffer))
            self._buffer.clear()
        messages: list[tuple[Any, int | None]] = []
        start, length = 0, len(data)
        while length - start >= HEADER.size:
            nbytes, n_fds, is_spilled = HEADER.unpack_from(data, start)
            end = start + HEADER.size + nbytes
            if length < end:
                break
            if not n_fds:
                messages.append((pickle.loads(data[start + HEADER.size : end]), None))
            else:
                messages.append(self._claim(data[start + HEADER.size : end], n_fds, is_spilled))
            start = end
        if start < length:
            self._buffer += data[start:]
        return messages

    def _claim(self, body: memoryview, n_fds: int, is_spilled: int) -> tuple[Any, int | None]:
        """A message that came with descriptors: its block, and a body too large for a frame."""
        fds = [self._fds.popleft()]
        if fds[0] == LOST:
            return pickle.loads(body), LOST
        fds += [self._fds.popleft() for _ in range(n_fds - 1)]
        if not is_spilled:
            return pickle.loads(body), fds[0]
        spill = fds.pop()
        try:
            message = pickle.loads(blocks.read_all(spill, blocks.size(spill)))
        finally:
            os.close(spill)
        return message, fds[0] if fds else None

    def close(self) -> None:
        """Close descriptors that no complete frame claimed."""
        blocks.close_all([fd for fd in self._fds if fd != LOST])
        self._fds.clear()


class Channel:
    """The parent's end of a worker's channel.

    `post` may be called by any thread: frames are appended to a queue, and whoever gets the sending lock without
    waiting empties it. `receive` belongs to the I/O thread.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._out: deque[Frame] = deque()
        self._rest = b""  # of the frame being sent; guarded by _sending
        # Held by the thread that sends, which never blocks; waited for by `close` alone.
        self._sending = threading.Lock()
        self._is_closed = False

    def post(self, frame: Frame) -> bool:
        """Send a frame, or queue it.

        Returns
        -------
        bool
            False when something is left that waits for the socket: call `flush` when it can take more.
        """
        self._out.append(frame)
        return self.flush()

    def flush(self) -> bool:
        """Send what is queued; False when the socket took not all of it."""
        while (self._out or self._rest) and self._sending.acquire(blocking=False):
            try:
                if not self._drain():
                    return False
            finally:
                self._sending.release()
        return True

    def _drain(self) -> bool:
        while True:
            if self._rest:
                data, frame = self._rest, None
            elif self._out:
                frame = self._out.popleft()
                data = frame.data
            else:
                return True
            if self._is_closed:
                self._rest = b""
                if frame is not None:
                    frame.close()
                continue
            try:
                if frame is not None and frame.fds:
                    sent = self.sock.sendmsg([data], rights(frame.fds))
                    frame.close()
                else:
                    sent = self.sock.send(data)
            except BlockingIOError:
                if frame is not None:
                    self._out.appendleft(frame)
                return False
            except OSError:
                # The worker is gone; its death is noticed by the I/O thread, which recovers what was sent.
                self._is_closed = True
                self._rest = b""
                if frame is not None:
                    frame.close()
                continue
            self._rest = data[sent:] if sent < len(data) else b""

    def close(self) -> None:
        """Close the socket and drop what was not sent."""
        self._is_closed = True
        with self._sending:  # a sender is done in no time; else it might write to another file with the same descriptor
            self._drain()
            self.sock.close()
