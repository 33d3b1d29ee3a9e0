"""Workers in the threads of a Dask cluster, with no opinion on what they should do: the cluster's `workers.pool`.

Three parties, each with its own things:

* any thread posts frames: they are queued for the Dask worker in order, and its sender is woken;
* the client's event loop owns links: one for each Dask worker, with an actor there (`host`), a task that sends what is
  queued, and one that polls; it places workers where threads are free, and follows as Dask workers come and go;
* the I/O thread reads the inbox, where the event loop puts what has come and what was lost.

A link lives while its polls are answered and the scheduler knows its Dask worker. When it is lost, what its workers had
marked is read from their folder, by this process or by another Dask worker of that machine: that names the items that
were running. Where it cannot be read, the oldest item without a result stands for them. When a Dask worker leaves
because the cluster says so, nothing is held against anybody: all that it had runs elsewhere.

A block goes to a Dask worker once, in parts, and is never written to again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
import uuid
from collections import deque
from collections.abc import Callable, Coroutine
from queue import Empty, SimpleQueue
from typing import Any

from distributed import Actor, Client, Future
from distributed.comm import get_address_host

from ...workers import blocks, protocol
from ...workers.channel import LOST, Frame, FrameReader
from ...workers.pools import Ended, Message
from ...workers.protocol import StatusBlock
from . import host

#: It is looked this often which Dask workers there are, in seconds.
_FOLLOW_S = 0.5
#: Without workers for this long, in seconds, the actors are given up, which an adaptive cluster would not retire.
_UNUSED_S = 1.0
#: Sent to a Dask worker at once, at most, in bytes.
_BATCH_NBYTES = 32 << 20
#: Others that may read what a dead worker has marked must answer within this, in seconds.
_REPORT_S = 2.0
#: A Dask worker that can be reached directly answers within this, in seconds.
_REACH_S = 2.0
#: The end of a pool waits this long for the cluster, in seconds.
_CLOSE_S = 5.0
#: Actors come before everything else that waits in a Dask worker.
_ACTOR_PRIORITY = 1000


class _Everything:
    """Contains all: a copy elsewhere does not see what is written to a block later, so none may be written to."""

    def __contains__(self, block_id: object) -> bool:
        return True


_EVERYTHING = _Everything()


class _DirectActor(Actor):  # type: ignore[misc]  # distributed has no types for it
    """An actor that is called on a connection to its Dask worker, as with the client's `direct_to_workers`."""

    @property
    def _worker_rpc(self) -> Any:
        return self._client.rpc(self._address)


class _Link:
    """A Dask worker. Owned by the event loop, but for `commands` and `block_users`, which the pool's lock guards."""

    def __init__(self, address: str, n_threads: int) -> None:
        self.address = address
        self.n_threads = n_threads
        self.workers: set[int] = set()
        self.actor_future: Future | None = None
        self.actor: Any = None
        self.about: dict[str, Any] = {}
        self.tasks: list[asyncio.Task[None]] = []
        self.has_commands = asyncio.Event()
        self.is_leaving = False
        self.is_lost = False
        self.commands: deque[tuple[Any, ...]] = deque()
        self.is_woken = False
        self.block_users: dict[int, set[int]] = {}

    @property
    def n_free(self) -> int:
        """Threads that no worker of this pool has."""
        return self.n_threads - len(self.workers)


class _Remote:
    """A worker as this process sees it."""

    def __init__(self, worker_id: int) -> None:
        self.worker_id = worker_id
        self.link: _Link | None = None  # None until it is placed
        self.future: Future | None = None
        self.known_functions: set[int] = set()


class DaskPool:
    """See the module.

    Parameters
    ----------
    client
        Stays open.
    init
        Pickle of an initializer and its arguments, or None.
    on_size
        Called by the I/O thread with the number of threads that the cluster has, when that has changed.
    """

    def __init__(self, client: Client, init: bytes | None, on_size: Callable[[int], object]) -> None:
        self.context: Any = client  # there is nothing to prepare
        self._client = client
        self._loop: asyncio.AbstractEventLoop = client.loop.asyncio_loop
        self._init = init
        self._on_size = on_size
        self._token = uuid.uuid4().hex[:16]
        self._inbox: SimpleQueue[tuple[Any, ...] | None] = SimpleQueue()
        self._is_awake = False
        self._remotes: dict[int, _Remote] = {}  # added and removed by the I/O thread
        # Guards commands and block users of links, for a few operations on them.
        self._lock = threading.Lock()
        self._is_closed = False
        # Owned by the event loop.
        self._links: dict[str, _Link] = {}
        self._unplaced: dict[int, _Remote] = {}
        self._asking: Future | None = None  # makes an adaptive cluster grow
        self._n_threads = -1
        self._unused_since: float | None = None
        self._n_actors = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._look = asyncio.Event()
        self._loop.call_soon_threadsafe(self._spawn, self._follow())

    # ------------------------------------------------------------------ any thread

    def prepare(self) -> None:
        """There is nothing to prepare."""

    @property
    def can_start(self) -> bool:
        """While the client is connected."""
        return bool(self._client.status == "running")

    @property
    def is_forking(self) -> bool:
        """No."""
        return False

    def post(self, worker_id: int, frame: Frame) -> None:
        """Send a frame to a worker; dropped if the worker is gone (its end is or will be reported)."""
        link = self._link_of(worker_id)
        if link is None:
            frame.close()
            return
        code = frame.about[0]
        with self._lock:
            if code == protocol.BLOCK:
                self._give_block(link, worker_id, frame)
            else:
                if code == protocol.FORGET_BLOCKS:
                    self._forget(link, worker_id, frame.about[1])
                link.commands.append(("frame", worker_id, frame))
        self._wake_sender(link)

    def _give_block(self, link: _Link, worker_id: int, frame: Frame) -> None:
        """Let a worker have a block, whose content goes to its Dask worker once; under the lock."""
        block_id = frame.about[1]
        users = link.block_users.get(block_id)
        if users is None:
            users = link.block_users[block_id] = set()
            link.commands.append(("part", block_id, frame))  # which owns the descriptor
        else:
            frame.close()
        users.add(worker_id)
        link.commands.append(("block", worker_id, block_id))

    def _forget(self, link: _Link, worker_id: int, block_ids: list[int] | None) -> None:
        """A worker will not meet these blocks any more, or none; under the lock."""
        for block_id in list(link.block_users) if block_ids is None else block_ids:
            users = link.block_users.get(block_id)
            if users is not None:
                users.discard(worker_id)
                if not users:
                    del link.block_users[block_id]
        link.commands.append(("forget", worker_id, block_ids))

    def _command(self, worker_id: int, name: str, *arguments: Any) -> None:
        link = self._link_of(worker_id)
        if link is not None:
            with self._lock:
                link.commands.append((name, worker_id, *arguments))
            self._wake_sender(link)

    def _link_of(self, worker_id: int) -> _Link | None:
        remote = self._remotes.get(worker_id)
        link = remote.link if remote is not None else None
        return None if link is None or link.is_lost else link

    def _wake_sender(self, link: _Link) -> None:
        if not link.is_woken:
            link.is_woken = True
            self._call(link.has_commands.set)

    def _call(self, function: Callable[..., object], *arguments: Any) -> None:
        """Have the event loop call a function; dropped if the client was closed, which the inbox tells."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)

    def offer(self, worker_id: int, slot: int, n_items: int) -> None:
        """Let a worker claim the items of the chunk that is about to be sent."""
        self._command(worker_id, "offer", slot, n_items)

    def launch(self, worker_id: int) -> None:
        """Begin nothing: a start takes nothing of this machine."""

    def is_launched(self, worker_id: int) -> bool:
        """Whether a start was begun: never."""
        return False

    def drop(self, worker_id: int) -> None:
        """Undo nothing."""

    def take_back(self, worker_id: int, slot: int, chunk_id: int) -> None:
        """Claim what is left of a worker's chunk where it is; the number comes in a message."""
        self._command(worker_id, "take", slot, chunk_id)

    def known_functions(self, worker_id: int) -> set[int]:
        """Ids of functions that were sent to a worker."""
        remote = self._remotes.get(worker_id)
        return remote.known_functions if remote is not None else set()

    def wake(self) -> None:
        """Make a running or the next `wait` return soon."""
        if not self._is_awake:
            self._is_awake = True
            self._inbox.put(None)

    def nudge(self) -> None:
        """The same, whatever happens at the same time."""
        self._inbox.put(None)

    def kill(self, worker_id: int, signum: int = signal.SIGKILL) -> None:
        """End a worker: a task that runs goes on to its end, but nobody hears of it."""
        self._command(worker_id, "end")
        self._inbox.put(("ended", worker_id, None))

    def has(self, worker_id: int) -> bool:
        """Whether a worker was started and its end was not told."""
        return worker_id in self._remotes

    def pid(self, worker_id: int) -> int | None:
        """None: its process is Dask's."""
        return None

    def running(self, worker_id: int) -> tuple[int, int, int] | None:
        """None: that is not known here."""
        return None

    def pids(self) -> dict[int, int]:
        """None of this machine."""
        return {}

    # ------------------------------------------------------------------ I/O thread

    def start(self, worker_id: int) -> Ended | None:
        """Start a worker, as soon as there is a thread for it."""
        if not self.can_start:
            error = RuntimeError(f"the Dask client is {self._client.status!r}; close it after the executor")
            return Ended(worker_id, None, None, None, "", error)
        remote = self._remotes[worker_id] = _Remote(worker_id)
        self._call(self._add, remote)
        return None

    def wait(
        self, timeout: float | None, on_message: Callable[[Message], object], on_end: Callable[[Ended], object]
    ) -> bool:
        """Wait until something happens, at most `timeout` seconds, and tell what did; False when nothing did."""
        try:
            event = self._inbox.get(timeout=timeout)
        except Empty:
            return False
        while True:
            self._is_awake = False
            if event is not None:
                self._tell(event, on_message, on_end)
            try:
                event = self._inbox.get_nowait()
            except Empty:
                return True

    def _tell(
        self, event: tuple[Any, ...], on_message: Callable[[Message], object], on_end: Callable[[Ended], object]
    ) -> None:
        kind, *arguments = event
        if kind == "messages":
            for worker_id, content, block in arguments[0]:
                if content[0] == host.GONE:
                    self._gone(worker_id, on_end)
                elif worker_id in self._remotes:
                    on_message(_message(worker_id, content, block))
        elif kind == "ended":
            self._gone(arguments[0], on_end, arguments[1])
        elif kind == "lost":
            link, worker_ids, reports, fault = arguments
            for worker_id in worker_ids:
                if worker_id in self._remotes:
                    self._lost(worker_id, link, reports.get(worker_id), fault, on_message, on_end)
        else:
            self._on_size(arguments[0])

    def _gone(self, worker_id: int, on_end: Callable[[Ended], object], error: Exception | None = None) -> None:
        """A worker has left, or did not come."""
        if self._remove(worker_id) is not None:
            exitcode = None if error is not None else 0
            on_end(Ended(worker_id, None, exitcode, None, "", error))

    def _lost(
        self,
        worker_id: int,
        link: _Link,
        report: bytes | None,
        fault: str,
        on_message: Callable[[Message], object],
        on_end: Callable[[Ended], object],
    ) -> None:
        """A worker is gone with its Dask worker."""
        running = None
        if report is not None and len(report) == StatusBlock.NBYTES and not link.is_leaving:
            running = _read_report(worker_id, report, on_message)
        self._remove(worker_id)
        is_guess = report is None and not link.is_leaving
        on_end(Ended(worker_id, link.about.get("pid"), None, running, fault, is_guess=is_guess))

    def _remove(self, worker_id: int) -> _Remote | None:
        remote = self._remotes.get(worker_id)
        if remote is not None:
            link = self._link_of(worker_id)
            if link is not None:
                with self._lock:
                    self._forget(link, worker_id, None)
                self._wake_sender(link)
            del self._remotes[worker_id]
            self._call(self._free, remote)
        return remote

    def close(self) -> None:
        """Release everything; workers must have ended."""
        self._is_closed = True
        if not self.can_start:
            return
        ending = asyncio.run_coroutine_threadsafe(self._close(), self._loop)
        try:
            ending.result(_CLOSE_S)
        except Exception:  # the cluster is in trouble: its hosts leave by themselves, as nobody polls them
            ending.cancel()

    # ------------------------------------------------------------------ event loop: Dask workers come and go

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _follow(self) -> None:
        """Know which Dask workers there are, until the pool or the client is closed."""
        while not self._is_closed:
            try:
                threads: dict[str, int] = await self._client.nthreads()
            except Exception as error:
                if self._client.status not in ("running", "connecting"):
                    self._give_up(error)
                    return
                threads = {address: link.n_threads for address, link in self._links.items()}  # it reconnects
            self._update(threads)
            self._place()
            self._disconnect_unused()
            self._look.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._look.wait(), _FOLLOW_S)

    def _update(self, threads: dict[str, int]) -> None:
        for address in self._links.keys() - threads.keys():
            self._spawn(self._lose(self._links[address], "the cluster has lost it"))
        for address, n_threads in threads.items():
            link = self._links.get(address)
            if link is None:
                self._links[address] = _Link(address, n_threads)
            else:
                link.n_threads = n_threads
        n_threads = sum(threads.values())
        if n_threads != self._n_threads:
            self._n_threads = n_threads
            self._inbox.put(("size", n_threads))

    def _give_up(self, error: Exception) -> None:
        """The client is closed."""
        for link in list(self._links.values()):
            link.is_lost = True
            self._cancel_tasks(link)
            self._inbox.put(("lost", link, tuple(link.workers), {}, f"the Dask client was closed ({error!r})"))
        for worker_id in self._unplaced:
            self._inbox.put(("ended", worker_id, RuntimeError("the Dask client was closed before the executor")))
        self._links.clear()
        self._unplaced.clear()

    def _connect(self, link: _Link) -> None:
        """Have an actor made in a Dask worker."""
        self._n_actors += 1
        link.actor_future = self._client.submit(
            host.Host,
            self._token,
            self._init,
            actor=True,
            pure=False,
            workers=[link.address],
            key=f"amorsize-host-{self._token}-{self._n_actors}",
            priority=_ACTOR_PRIORITY,
        )
        self._spawn(self._meet(link, link.actor_future))

    async def _meet(self, link: _Link, actor_future: Future) -> None:
        """Talk with an actor as soon as it is made."""
        try:
            link.actor = await actor_future
        except Exception as error:
            if not link.is_lost:
                self._refuse(link, error)
            return
        if link.is_lost or self._is_closed:
            await self._let_go(link)
            return
        link.tasks = [self._spawn(go_on(link)) for go_on in (self._ask, self._send, self._poll)]

    def _refuse(self, link: _Link, error: Exception) -> None:
        """A Dask worker cannot have workers of ours: perhaps this package is not installed there."""
        self._part_with(link)
        for worker_id in link.workers:
            self._inbox.put(("ended", worker_id, error))

    async def _ask(self, link: _Link) -> None:
        """Know where a Dask worker is, and whether it can be reached without going through the scheduler."""
        try:
            link.about = await link.actor.describe()
        except Exception as error:
            await self._lose(link, f"{type(error).__name__}: {error}")
            return
        if self._client.direct_to_workers is False:  # by the user's wish
            return
        with contextlib.suppress(Exception):  # behind a firewall, in a network of its own: the scheduler passes it on
            await asyncio.wait_for(self._client.rpc(link.address).identity(), _REACH_S)
            if link.actor is not None:
                link.actor.__class__ = _DirectActor

    async def _send(self, link: _Link) -> None:
        """Send a Dask worker what is for it."""
        try:
            while True:
                await link.has_commands.wait()
                link.has_commands.clear()
                link.is_woken = False
                while link.commands:
                    await link.actor.deliver(self._take_batch(link))
        except Exception as error:
            await self._lose(link, f"{type(error).__name__}: {error}")

    def _take_batch(self, link: _Link) -> list[tuple[Any, ...]]:
        """The next commands for a Dask worker, with the content of their descriptors."""
        batch: list[tuple[Any, ...]] = []
        nbytes = 0
        while link.commands and nbytes < _BATCH_NBYTES:
            command = link.commands[0]
            if command[0] == "part":
                name, block_id, frame, *rest = command
                start, size = (rest[0] if rest else 0), blocks.size(frame.fds[0])
                stop = min(start + _BATCH_NBYTES - nbytes, size)
                batch.append((name, block_id, _array(frame.fds[0], start, stop)))
                nbytes += stop - start
                if stop < size:
                    link.commands[0] = (name, block_id, frame, stop)
                    break
                frame.close()
            elif command[0] == "frame":
                name, worker_id, frame = command
                contents = [_array(fd, 0, blocks.size(fd)) for fd in frame.fds]
                batch.append((name, worker_id, frame.data, contents))
                nbytes += len(frame.data) + sum(map(len, contents))
                frame.close()
            else:
                batch.append(command)
            link.commands.popleft()
        return batch

    async def _poll(self, link: _Link) -> None:
        """Receive what the workers of a Dask worker send."""
        try:
            while True:
                messages = await link.actor.poll()
                for worker_id, content, _ in messages:
                    if not worker_id and content[0] == host.LEAVING:
                        link.is_leaving = True
                if messages:
                    self._inbox.put(("messages", messages))
        except Exception as error:
            await self._lose(link, f"{type(error).__name__}: {error}")

    async def _lose(self, link: _Link, reason: str) -> None:
        """A Dask worker is gone, or cannot be reached."""
        if link.is_lost:
            return
        self._part_with(link)
        if link.actor is None:  # no worker has begun there
            self._place_again(link)
        await self._release_actor(link)
        reports: dict[int, bytes] = {}
        if link.workers:
            with contextlib.suppress(Exception):  # then it counts as a crash, and there are no reports
                link.is_leaving = link.is_leaving or await asyncio.wait_for(self._has_retired(link), _REPORT_S)
                reports = await asyncio.wait_for(self._find_reports(link), _REPORT_S)
        fault = f"the Dask worker {link.address} was lost: {reason}"
        self._inbox.put(("lost", link, tuple(link.workers), reports, fault))
        self._look.set()

    def _part_with(self, link: _Link) -> None:
        link.is_lost = True
        self._links.pop(link.address, None)
        self._cancel_tasks(link)
        self._drop_commands(link)

    def _place_again(self, link: _Link) -> None:
        """The workers that a Dask worker was to have go elsewhere."""
        for worker_id in link.workers:
            remote = self._remotes.get(worker_id)
            if remote is not None:  # else it was ended
                remote.link = None
                self._release(remote)
                self._unplaced[worker_id] = remote
        link.workers.clear()

    def _cancel_tasks(self, link: _Link) -> None:
        for task in link.tasks:
            if task is not asyncio.current_task(self._loop):
                task.cancel()
        link.tasks = []

    def _drop_commands(self, link: _Link) -> None:
        with self._lock:
            commands = list(link.commands)
            link.commands.clear()
        for command in commands:
            for part in command:
                if isinstance(part, Frame):
                    part.close()

    async def _has_retired(self, link: _Link) -> bool:
        """Whether a Dask worker that is gone was told to go."""
        events = await self._client.get_events(link.address) or ()
        told = False
        for _, event in events:
            if event["action"] == "add-worker":
                told = False  # that was another one at the same address
            told = told or str(event.get("status")).startswith("closing") or bool(event.get("expected"))
        return told

    async def _find_reports(self, link: _Link) -> dict[int, bytes]:
        """What the workers of a lost Dask worker had marked, if its machine is there."""
        paths = {i: host.report_path(link.about["folder"], self._token, i) for i in link.workers}
        if link.about["host"] == socket.gethostname():
            found = host.read_reports(paths)
            if found:
                return found
        machine = get_address_host(link.address)
        for address in self._links:
            if get_address_host(address) == machine:
                answers = await self._client.run(host.read_reports, paths, workers=[address])
                reports: dict[int, bytes] = answers[address]
                return reports
        return {}

    def _disconnect_unused(self) -> None:
        """Give up actors while there are no workers."""
        if self._unplaced or any(link.workers for link in self._links.values()):
            self._unused_since = None
            return
        now = self._loop.time()
        if self._unused_since is None:
            self._unused_since = now
        elif now - self._unused_since > _UNUSED_S:
            for link in self._links.values():
                if link.actor is not None:
                    self._spawn(self._disconnect(link))

    async def _disconnect(self, link: _Link) -> None:
        """Give up an actor; another one may come."""
        self._links[link.address] = _Link(link.address, link.n_threads)
        link.is_lost = True
        self._cancel_tasks(link)
        self._drop_commands(link)
        await self._let_go(link)

    async def _let_go(self, link: _Link) -> None:
        with contextlib.suppress(Exception):  # it is gone already
            await link.actor.close()
        await self._release_actor(link)

    async def _release_actor(self, link: _Link) -> None:
        """Let the cluster forget an actor; a mere release would wait until cycles with it are collected here."""
        future, link.actor, link.actor_future = link.actor_future, None, None
        if future is not None:
            with contextlib.suppress(Exception):  # the scheduler forgets it with the client
                await self._client.cancel([future])

    async def _close(self) -> None:
        self._look.set()
        if self._asking is not None:
            self._asking.release()
        await asyncio.gather(*[self._disconnect(link) for link in list(self._links.values()) if link.actor is not None])

    # ------------------------------------------------------------------ event loop: workers

    def _add(self, remote: _Remote) -> None:
        self._unplaced[remote.worker_id] = remote
        self._place()

    def _place(self) -> None:
        """Give workers to Dask workers that have threads for them."""
        if not self._unplaced:
            return
        for remote in list(self._unplaced.values()):
            free = [k for k in self._links.values() if not k.is_leaving and k.n_free > 0]
            if not free:
                break
            link = max(free, key=lambda k: (k.n_free, k.actor_future is not None))
            if link.actor_future is None:
                self._connect(link)
            del self._unplaced[remote.worker_id]
            link.workers.add(remote.worker_id)
            remote.link = link
            remote.future = self._client.submit(
                host.serve,
                self._token,
                remote.worker_id,
                pure=False,
                workers=[link.address],
                key=f"amorsize-worker-{self._token}-{remote.worker_id}",
            )
            self._spawn(self._watch(remote))
        if self._unplaced and self._asking is None:
            self._spawn(self._ask_for_room())

    async def _ask_for_room(self) -> None:
        """Have a task wait for a thread: so an adaptive cluster sees that there are too few."""
        self._asking = self._client.submit(host.make_room, pure=False, key=f"amorsize-room-{uuid.uuid4().hex}")
        with contextlib.suppress(Exception):  # of no matter: the cluster is looked at all the same
            await self._asking
        self._asking = None
        self._look.set()

    async def _watch(self, remote: _Remote) -> None:
        """Hear of a worker's Dask task that fails, or finds no host."""
        future, link = remote.future, remote.link
        assert future is not None
        assert link is not None
        try:
            if not await future:
                raise RuntimeError(f"the Dask worker {link.address} has made no host for workers of this executor")
        except Exception as error:
            if not link.is_lost:
                self._inbox.put(("ended", remote.worker_id, error))

    def _free(self, remote: _Remote) -> None:
        """A worker is gone."""
        self._unplaced.pop(remote.worker_id, None)
        if remote.link is not None:
            remote.link.workers.discard(remote.worker_id)
        self._release(remote)
        self._place()

    def _release(self, remote: _Remote) -> None:
        if remote.future is not None:
            remote.future.release()
            remote.future = None


def _array(fd: int, start: int, stop: int) -> Any:
    """A part of a block, as an array, since its memory travels as it is."""
    import numpy as np

    return np.frombuffer(blocks.read_copy(fd, start, stop), np.uint8)


def _message(worker_id: int, content: tuple[Any, ...], block: Any) -> Message:
    """A worker's message, as it would have come from a process of this machine."""
    if content[0] == protocol.BLOCKS_DONE:
        content = (*content[:2], _EVERYTHING)
    if block is None:
        return Message(worker_id, content, None)
    fd = LOST
    try:
        fd = blocks.create(len(block))
        blocks.write_all(fd, memoryview(block))
    except OSError:  # no room: its items fail
        if fd != LOST:
            os.close(fd)
        fd = LOST
    return Message(worker_id, content, fd)


def _read_report(worker_id: int, report: bytes, on_message: Callable[[Message], object]) -> tuple[int, int, int] | None:
    """Hand on the results that a dead worker had not sent; what it was running."""
    fd = blocks.create()
    try:
        blocks.write_all(fd, report)
        status = StatusBlock(fd)
    finally:
        os.close(fd)
    try:
        for content, _ in FrameReader().feed(memoryview(status.unsent())):
            on_message(Message(worker_id, content, None))
        kept = status.kept()
        if kept is not None:
            on_message(Message(worker_id, kept, None))
        return status.running()
    finally:
        status.close()
