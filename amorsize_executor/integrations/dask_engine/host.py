"""The side of the Dask engine that runs in a Dask worker.

    event loop of the Dask worker                            threads of the Dask worker

    Host.deliver  -- frames --> socket of worker 7 ------->  Dask task `serve`: runs chunks, as a process would
    Host.poll     <-- outbox <-- its results    <----------

A `Host` is a Dask actor: one for each executor and Dask worker. A worker of the executor is a Dask task that lasts
until it is told to leave, so that Dask counts its thread as taken. It runs the loop that worker processes run, over a
socket pair, so all that holds for them holds here: private views of shared data, the marks of what runs, the claims
that let items be taken back.

What it marks stands in a file beside the Dask worker's folder, so that it can be read after the worker's death, when
Dask clears the folder away.

Each message takes a millisecond of processors that tasks could use. So results wait for others as long as their worker
has enough to do, and not for long.

If nobody polls any more, the executor is gone: all its workers leave.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import socket
import threading
from collections.abc import Sequence
from typing import Any

from distributed import get_worker

from ...workers import blocks, claims, protocol
from ...workers.channel import LOST, Channel, Frame, FrameReader, Receiver, make_frame
from ...workers.pool import SLOTS
from ...workers.process import Worker, encode_error
from ...workers.protocol import StatusBlock
from ...workers.residents import Objects

#: Longest wait of a poll, in seconds.
POLL_S = 10.0
#: It is looked at this often, in seconds, whether the Dask worker closes and whether anybody polls ...
_WATCH_S = 0.2
#: ... and after so long without a poll, in seconds, the workers leave.
_LEASE_S = 60.0
#: Results wait for others at most this long, in seconds, while what their worker has not begun will take so long.
_HOLD_S = 0.2
_HOLD_REST_S = 0.05
#: A worker waits this long for its host, which the scheduler has run before it, in seconds.
_HOST_S = 10.0
#: Messages of a host, beside those of workers.
GONE, LEAVING = -1, -2

#: Hosts in this process, by executor and Dask worker.
_hosts: dict[tuple[str, str], Host] = {}
_has_host = threading.Condition()  # guards them


def serve(token: str, worker_id: int) -> bool:
    """Be a worker of an executor until it is told to leave; a Dask task. False if there is no host for it."""
    key = token, get_worker().address
    with _has_host:  # which may be made in another thread just now
        _has_host.wait_for(lambda: key in _hosts, _HOST_S)
        host = _hosts.get(key)
    if host is None:  # the executor has left this Dask worker, or its host was not made
        return False
    host.serve(worker_id)
    return True


def make_room() -> None:
    """Do nothing: that this waits to be run tells an adaptive cluster that there is a lack of threads."""


def echo(data: bytes, size: int) -> bytes:
    """So many bytes, for measurements."""
    return bytes(size)


def report_path(folder: str, token: str, worker_id: int) -> str:
    """Where a worker marks what it runs."""
    return os.path.join(folder, f"amorsize-{token}-{worker_id}")


def read_reports(paths: dict[int, str]) -> dict[int, bytes]:
    """What workers had marked before they died, by number; those whose files are there."""
    found = {}
    for worker_id, path in paths.items():
        try:
            with open(path, "rb") as file:
                found[worker_id] = file.read()
            os.unlink(path)
        except OSError:
            continue  # gone with its machine, or cleared away by Dask
    return found


class _Agent:
    """A worker as its host sees it; owned by the event loop."""

    def __init__(self, worker_id: int, sock: socket.socket, path: str) -> None:
        self.worker_id = worker_id
        self.path = path
        self.channel = Channel(sock)
        self.reader = FrameReader()
        self.claims: list[claims.ClaimFile] = []
        self.wants_write = False

    def has_rest(self, message: tuple[Any, ...]) -> bool:
        """Whether, by results that it sends, the worker has enough to do for now."""
        if message[0] not in (protocol.RESULTS, protocol.OUTCOMES):
            return False
        n_items, elapsed_s = int(message[3]), message[4] * 1e-9
        n_left = sum([claim_file.n_left for claim_file in self.claims]) - 1  # it is about to begin one of them
        return n_items > 0 and n_left * elapsed_s / n_items >= _HOLD_REST_S

    def close(self) -> None:
        self.channel.close()
        self.reader.close()
        for claim_file in self.claims:
            claim_file.close()
        self.claims.clear()
        with contextlib.suppress(OSError):  # gone already
            os.unlink(self.path)


class Host:
    """Carries messages between an executor and its workers in this Dask worker; a Dask actor.

    Parameters
    ----------
    token
        Of the executor.
    init
        Pickle of the initializer and its arguments, to be called before the first task; or None.
    """

    def __init__(self, token: str, init: bytes | None) -> None:
        self._dask_worker = get_worker()
        self._loop: asyncio.AbstractEventLoop = self._dask_worker.loop.asyncio_loop
        self._folder = os.path.dirname(self._dask_worker.local_directory)
        self._token = token
        self._init = init
        self._init_lock = threading.Lock()  # held while the initializer runs; guards the next two
        self._is_initialized = False
        self._init_error: bytes | None = None
        self._objects = Objects()
        # Owned by the event loop.
        self._agents: dict[int, _Agent] = {}
        self._unwanted: set[int] = set()
        self._blocks: dict[int, int] = {}  # descriptors
        self._block_users: dict[int, set[int]] = {}
        self._outbox: list[tuple[int, tuple[Any, ...], Any]] = []
        self._has_news = asyncio.Event()  # something in the outbox should not wait
        self._holding: asyncio.TimerHandle | None = None
        self._receiver = Receiver()
        self._unpolled_s = 0.0
        self._is_leaving = False
        self._is_closed = False
        with _has_host:
            _hosts[token, self._dask_worker.address] = self
            _has_host.notify_all()
        self._loop.call_soon_threadsafe(self._watch)

    # ------------------------------------------------------------------ called by the executor, in the event loop

    async def describe(self) -> dict[str, Any]:
        """Where this is."""
        return {"host": socket.gethostname(), "pid": os.getpid(), "folder": self._folder}

    async def poll(self) -> list[tuple[int, tuple[Any, ...], Any]]:
        """What workers have sent, as soon as there is something: (worker, message, content of its block or None)."""
        self._unpolled_s = 0.0
        if not self._has_news.is_set() and not self._is_closed:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._has_news.wait(), POLL_S)
        self._unpolled_s = 0.0
        self._has_news.clear()
        if self._holding is not None:
            self._holding.cancel()
            self._holding = None
        sent, self._outbox = self._outbox, []
        return sent

    async def deliver(self, commands: Sequence[tuple[Any, ...]]) -> None:
        """Carry out what the executor says, in this order; see `pool`."""
        for name, *arguments in commands:
            getattr(self, f"_do_{name}")(*arguments)

    async def close(self) -> None:
        """The executor leaves."""
        self._close()

    # ------------------------------------------------------------------ commands

    def _do_frame(self, worker_id: int, data: bytes, contents: Sequence[Any]) -> None:
        agent = self._agents.get(worker_id)
        if agent is None:
            return
        fds: list[int] = []
        try:
            fds += [_block_of(content) for content in contents]
        except BaseException:
            blocks.close_all(fds)
            raise
        self._post(agent, Frame(data, tuple(fds), ()))

    def _do_part(self, block_id: int, part: Any) -> None:
        """A part of the content of a block."""
        fd = self._blocks.get(block_id)
        if fd is None:
            fd = self._blocks[block_id] = blocks.create()
        blocks.write_all(fd, memoryview(part))

    def _do_block(self, worker_id: int, block_id: int) -> None:
        """A worker will meet a block."""
        self._block_users.setdefault(block_id, set()).add(worker_id)
        agent = self._agents.get(worker_id)
        if agent is not None:
            self._post(agent, make_frame((protocol.BLOCK, block_id), os.dup(self._blocks[block_id])))

    def _do_forget(self, worker_id: int, block_ids: Sequence[int] | None) -> None:
        """A worker will not meet these blocks any more, or none."""
        for block_id in list(self._block_users) if block_ids is None else block_ids:
            users = self._block_users.get(block_id)
            if users is not None:
                users.discard(worker_id)
                if not users:
                    del self._block_users[block_id]
                    os.close(self._blocks.pop(block_id))

    def _do_offer(self, worker_id: int, slot: int, n_items: int) -> None:
        agent = self._agents.get(worker_id)
        if agent is not None:
            agent.claims[slot].offer(n_items)

    def _do_take(self, worker_id: int, slot: int, chunk_id: int) -> None:
        """Take back what a worker has not begun of a chunk; no other was offered in this slot since."""
        agent = self._agents.get(worker_id)
        n_items = agent.claims[slot].take(claims.MOST_TICKETS) if agent is not None else 0
        self._tell(worker_id, (protocol.TAKEN, chunk_id, n_items))

    def _do_end(self, worker_id: int) -> None:
        """A worker is to leave now: if it runs a task, when that is done; nobody hears of it any more."""
        agent = self._agents.get(worker_id)
        if agent is not None:
            self._end(agent)
        else:
            self._unwanted.add(worker_id)  # it may come yet

    # ------------------------------------------------------------------ in the event loop

    def _tell(self, worker_id: int, message: tuple[Any, ...], content: Any = None, *, can_wait: bool = False) -> None:
        self._outbox.append((worker_id, message, content))
        if not can_wait:
            self._has_news.set()
        elif self._holding is None:
            self._holding = self._loop.call_later(_HOLD_S, self._has_news.set)

    def _attach(self, agent: _Agent) -> None:
        if agent.worker_id in self._unwanted or self._is_closed:
            agent.close()
            return
        self._agents[agent.worker_id] = agent
        self._loop.add_reader(agent.channel.sock, self._read, agent)

    def _read(self, agent: _Agent) -> None:
        try:
            data, fds = self._receiver.receive(agent.channel.sock)
        except BlockingIOError:
            return
        except OSError:
            data, fds = memoryview(b""), []
        if not data:
            self._end(agent)
            return
        for message, block_fd in agent.reader.feed(data, fds):
            self._forward(agent, message, block_fd)

    def _forward(self, agent: _Agent, message: tuple[Any, ...], block_fd: int | None) -> None:
        if message[0] == protocol.MEMORY:  # that of the whole Dask worker, which Dask looks after
            return
        content = None
        if block_fd is not None and block_fd != LOST:
            import numpy as np

            try:
                # An array, since its memory travels as it is.
                content = np.frombuffer(blocks.read_copy(block_fd, 0, blocks.size(block_fd)), np.uint8)
            finally:
                os.close(block_fd)
            message = (*message[:7], 0) if message[0] == protocol.OUTCOMES else message  # its block is not used again
        self._tell(agent.worker_id, message, content, can_wait=agent.has_rest(message))

    def _post(self, agent: _Agent, frame: Frame) -> None:
        if not agent.channel.post(frame) and not agent.wants_write:
            agent.wants_write = True
            self._loop.add_writer(agent.channel.sock, self._flush, agent)

    def _flush(self, agent: _Agent) -> None:
        if agent.channel.flush():
            agent.wants_write = False
            self._loop.remove_writer(agent.channel.sock)

    def _end(self, agent: _Agent) -> None:
        """A worker has left, or its socket is closed so that it does."""
        if self._agents.pop(agent.worker_id, None) is None:
            return
        self._loop.remove_reader(agent.channel.sock)
        self._loop.remove_writer(agent.channel.sock)
        agent.close()
        self._tell(agent.worker_id, (GONE,))

    def _watch(self) -> None:
        """See whether the Dask worker closes, and whether the executor is there."""
        if self._is_closed:
            return
        status = self._dask_worker.status.name
        if status not in ("running", "paused") and not self._is_leaving:
            self._is_leaving = True
            self._tell(0, (LEAVING,))
        # Counted by looks, not by the clock: a task may have held the interpreter lock, and polls are still unread.
        self._unpolled_s += _WATCH_S
        if self._unpolled_s > _LEASE_S or status in ("closing", "closed", "failed"):
            self._close()
        else:
            self._loop.call_later(_WATCH_S, self._watch)

    def _close(self) -> None:
        self._is_closed = True
        self._has_news.set()  # the poll that waits is the last one
        _hosts.pop((self._token, self._dask_worker.address), None)
        for agent in list(self._agents.values()):
            self._end(agent)
        blocks.close_all(list(self._blocks.values()))
        self._blocks.clear()
        self._block_users.clear()

    # ------------------------------------------------------------------ in a thread of the Dask worker

    def serve(self, worker_id: int) -> None:
        """Be a worker."""
        ours, theirs = socket.socketpair()
        path = report_path(self._folder, self._token, worker_id)
        try:
            agent = _Agent(worker_id, ours, path)
            frames: list[Frame] = []
            for _ in range(SLOTS):
                agent.claims.append(claims.create())
                frames.append(make_frame((protocol.ATTACH, "claims"), os.dup(agent.claims[-1].fd)))
            status_fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            frames.append(make_frame((protocol.ATTACH, "status"), status_fd))
            blocks.write_all(status_fd, bytes(StatusBlock.NBYTES))
            frames.append(make_frame((protocol.INIT, None)))  # answered when the initializer has run
        except BaseException:
            ours.close()
            theirs.close()
            raise
        worker = Worker(theirs, None, self._objects)
        try:
            for frame in frames:
                agent.channel.post(frame)
            self._loop.call_soon_threadsafe(self._attach, agent)
            problem = self._initialize()
            if problem is not None:
                theirs.sendall(make_frame((protocol.INIT_FAILED, problem)).data)
                return
            worker.serve()
            worker.close()
        except (BrokenPipeError, ConnectionResetError):
            pass  # it was ended
        finally:
            worker.release()
            with contextlib.suppress(OSError):
                os.unlink(path)

    def _initialize(self) -> bytes | None:
        """Call the initializer, if that was not done; what it raised."""
        with self._init_lock:
            if not self._is_initialized and self._init is not None:
                try:
                    initializer, initargs = pickle.loads(self._init)
                    initializer(*initargs)
                except BaseException as error:  # told to the executor, which breaks
                    self._init_error = encode_error(error)
            self._is_initialized = True
            return self._init_error


def _block_of(content: Any) -> int:
    fd = blocks.create()
    try:
        blocks.write_all(fd, memoryview(content))
    except BaseException:
        os.close(fd)
        raise
    return fd
