"""Worker processes and their channels, with no opinion on what they should do.

`WorkerPool` starts processes, carries frames, and tells what happened: a message came, a worker ended. It waits on one
persistent selector for channels, ends of processes and its own wake-up.

The end of a process is taken from a pidfd where there is one: end-of-file on the channel and the sentinel of the
process object come late when the dead worker had forked a child that keeps their descriptors. The channel is read to
its end before a death is reported, so no result that was sent is lost.

Owned by the I/O thread, except `post`, `wake`, `kill`, `pid` and `pids` (any thread).
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from . import blocks, claims, protocol
from .channel import Channel, Frame, FrameReader, Receiver, make_frame
from .claims import ClaimFile
from .pools import Ended, Message
from .process import worker_main
from .protocol import StatusBlock
from .tracking import TrackerRelay

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

#: Frames of one worker handled in a row before others get a turn, in reads.
_READS_PER_TURN = 8
#: Chunks that a worker has at most: one runs, one waits. Each has its own claims.
SLOTS = 2
#: Descriptors that the start of a process takes for a moment; counted with strace, and doubled.
_START_DESCRIPTORS = 32
#: At most this much of a crash report is kept, in bytes.
_FAULT_NBYTES = 16 << 10

#: Pools of this process, for the child of a fork to let go of.
_pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()


class _Process(Protocol):
    """What is used of a process object of any context."""

    pid: int | None
    sentinel: int
    exitcode: int | None
    join: Callable[..., object]

    def start(self) -> None: ...


class _Worker:
    """One worker process as the parent sees it."""

    def __init__(self, worker_id: int, process: _Process, channel: Channel, memory: _SharedMemory) -> None:
        self.worker_id = worker_id
        self.process = process
        self.pid = process.pid
        self.channel = channel
        self.reader = FrameReader()
        self.known_functions: set[int] = set()
        self.is_reaped = self.is_killed = False
        self.pidfd = -1
        if hasattr(os, "pidfd_open") and self.pid is not None:
            try:
                self.pidfd = os.pidfd_open(self.pid)
            except OSError:
                self.pidfd = -1  # a kernel or sandbox without it: the sentinel has to do
        self.end_fd = self.pidfd if self.pidfd >= 0 else process.sentinel
        self.memory = memory
        self.status = memory.status
        self.claims = memory.claims

    def exitcode(self) -> int | None:
        """Exit status of a process that has ended; None if it is not to be had."""
        # Asked before `join`, which waits for the sentinel: a child that the worker forked may keep that open. Only the
        # fork server's answer may still be on its way.
        if self.process.exitcode is None:
            self.process.join(timeout=5)
        self.process.join(timeout=0)
        return self.process.exitcode

    def close(self) -> None:
        self.channel.close()
        self.reader.close()
        self.memory.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def drop_after_fork(self) -> None:
        """In the child of a fork: close the copies of the descriptors, touch nothing that is shared."""
        self.process.join = _join_nobody  # as multiprocessing wants to when this child exits: it is not its process
        self.channel.sock.close()
        self.memory.drop_after_fork()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class _SharedMemory:
    """What parent and worker share: its status and faulthandler's report, which outlive it, and claims on items."""

    def __init__(self) -> None:
        with contextlib.ExitStack() as undo:
            self.status_fd = blocks.create_sized(StatusBlock.NBYTES)
            undo.callback(os.close, self.status_fd)
            self.status = StatusBlock(self.status_fd)
            undo.callback(self.status.close)
            self.fault_fd = blocks.create()
            undo.callback(os.close, self.fault_fd)
            self.claims: list[ClaimFile] = []
            for _ in range(SLOTS):
                self.claims.append(claims.create())
                undo.callback(self.claims[-1].close)
            undo.pop_all()

    def fault(self) -> str:
        """What faulthandler wrote as the process ended."""
        nbytes = min(blocks.size(self.fault_fd), _FAULT_NBYTES)
        return blocks.read_all(self.fault_fd, nbytes).decode(errors="replace") if nbytes else ""

    def close(self) -> None:
        self.status.close()
        self.drop_after_fork()

    def drop_after_fork(self) -> None:
        """In the child of a fork."""
        blocks.close_all([self.status_fd, self.fault_fd, *(c.fd for c in self.claims)])


class WorkerPool:
    """Processes with a channel each.

    Parameters
    ----------
    context
        Multiprocessing context to start processes from.
    env
        Environment for workers.
    init_entry
        Entry of (initializer, initargs), or None; `init_fd` is the block it refers to.
    """

    def __init__(self, context: BaseContext | str | None, env: dict[str, str]) -> None:
        self._context_or_name = context
        self.context: BaseContext | None = None  # set by `prepare`
        self._env = env
        self.init_message: Any = None  # called for each worker: gives the frame of INIT
        self.greeting: Callable[[int], Frame] | None = None  # called for each worker: gives a frame to send before that
        self._workers: dict[int, _Worker] = {}
        self._launched: dict[int, _Worker] = {}  # for `start` to take in
        self._wake_r, self._wake_w = socket.socketpair()
        try:
            self._selector = selectors.DefaultSelector()
        except BaseException:
            self._wake_r.close()
            self._wake_w.close()
            raise
        for sock in (self._wake_r, self._wake_w):
            sock.setblocking(False)
        self._selector.register(self._wake_r, selectors.EVENT_READ, None)
        self._receiver: Receiver | None = None  # made by the I/O thread: its memory takes time
        self._want_write: set[int] = set()
        self._life_pipe: tuple[int, int] | None = None
        self._tracker_relay: TrackerRelay | None = None
        # Guards _to_watch, _is_awake, workers' is_reaped, and their claims; held for a few operations on them.
        self._lock = threading.Lock()
        self._to_watch: set[int] = set()  # workers whose socket was full when another thread sent
        self._is_awake = False
        self._is_closed = False
        _pools.add(self)

    # ------------------------------------------------------------------ any thread

    def prepare(self) -> None:
        """Import what the start of a process takes, if that was not done."""
        # While that is possible: not at the interpreter's end, nor without descriptors.
        from .. import errors  # noqa: F401
        from . import by_value  # noqa: F401

        self.context = resolve_context(self._context_or_name)

    @property
    def can_start(self) -> bool:
        """Whether processes can be started even while the interpreter ends."""
        return self.context is not None

    @property
    def is_forking(self) -> bool:
        """Whether workers are forks of this process, with all that is in its memory."""
        return self.context is not None and self.context.get_start_method() == "fork"

    def post(self, worker_id: int, frame: Frame) -> None:
        """Send a frame to a worker; dropped if the worker is gone (its end is or will be reported)."""
        worker = self._workers.get(worker_id)
        if worker is None:
            frame.close()
        elif not worker.channel.post(frame):
            with self._lock:
                self._to_watch.add(worker_id)
            self.wake()

    def offer(self, worker_id: int, slot: int, n_items: int) -> None:
        """Let a worker claim the items of the chunk that is about to be sent."""
        with self._lock:  # after its end the descriptor may be another file's
            worker = self._workers.get(worker_id)
            if worker is not None:
                worker.claims[slot].offer(n_items)

    def take_back(self, worker_id: int, slot: int, chunk_id: int) -> int:
        """Claim what is left of a worker's chunk: that many of its last items will not run there. Does not block."""
        with self._lock:
            worker = self._workers.get(worker_id)
            return worker.claims[slot].take(claims.MOST_TICKETS) if worker is not None else 0

    def known_functions(self, worker_id: int) -> set[int]:
        """Ids of functions that were sent to a worker. A hint: the worker may have forgotten some."""
        worker = self._workers.get(worker_id)
        return worker.known_functions if worker is not None else set()

    def wake(self) -> None:
        """Make a running or the next `wait` return soon."""
        with self._lock:
            if not self._is_awake and not self._is_closed:
                self.nudge()  # does not block
                self._is_awake = True  # last: else a Ctrl-C in between would leave it asleep for ever

    def nudge(self) -> None:
        """Like `wake`, without a lock: for code that may run at any point of any thread (finalizers)."""
        try:
            self._wake_w.send(b"\0")
        except OSError:
            pass  # full of wake-ups, or closed: either way there is nothing to wake

    def kill(self, worker_id: int, signum: int = signal.SIGKILL) -> None:
        """Send a signal to a worker that was not reaped yet."""
        worker = self._workers.get(worker_id)
        with self._lock:  # its number may soon be another's
            if worker is None or worker.is_reaped or worker.pid is None:
                return
            worker.is_killed = worker.is_killed or signum == signal.SIGKILL
            try:
                if worker.pidfd >= 0 and hasattr(signal, "pidfd_send_signal"):
                    signal.pidfd_send_signal(worker.pidfd, signum)
                else:
                    os.kill(worker.pid, signum)
            except OSError:
                pass  # it ended in between: the I/O thread is told by the kernel

    def has(self, worker_id: int) -> bool:
        """Whether a worker was started and its end was not told."""
        return worker_id in self._workers

    def pid(self, worker_id: int) -> int | None:
        """Process id of a worker; None if it has ended."""
        worker = self._workers.get(worker_id)
        return worker.pid if worker is not None and not worker.is_reaped else None

    def running(self, worker_id: int) -> tuple[int, int, int] | None:
        """What a worker says it runs: (chunk id, offset, count), the count being 0 or 1; by the I/O thread."""
        worker = self._workers.get(worker_id)
        return worker.status.running() if worker is not None else None

    def pids(self) -> dict[int, int]:
        """Process ids by worker."""
        return {i: w.pid for i, w in list(self._workers.items()) if w.pid is not None}

    def launch(self, worker_id: int) -> None:
        """Start a process in this thread, which `start` is to take in; if that is not possible, it tries again.

        Where the caller of a map goes on with it, the kernel leaves it its CPU and gives the process another. Beside a
        caller that waits for another thread to do it, the process gets the caller's, for some milliseconds.
        """
        if not self.starts_loky:
            return
        try:
            worker = self._launch(worker_id)
        except Exception:
            return
        with self._lock:
            if not self._is_closed:
                self._launched[worker_id] = worker
                return
        _drop_launched(worker)

    @property
    def starts_loky(self) -> bool:
        """Whether all is there to start loky's processes."""
        return self.context is not None and self.context.get_start_method() == "loky"

    def is_launched(self, worker_id: int) -> bool:
        """Whether a process was started that `start` has not taken in yet."""
        return worker_id in self._launched

    def _launch(self, worker_id: int) -> _Worker:
        with contextlib.ExitStack() as undo:  # what must not stay if a later step fails
            _check_descriptors(self._wake_r.fileno())
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            with theirs:
                memory = _SharedMemory()
                undo.callback(memory.close)
                process = self._make_process(worker_id, theirs)
                self._start_process(process)
            undo.callback(_kill_process, process)
            worker = _Worker(worker_id, process, Channel(ours), memory)
            undo.pop_all()
        return worker

    # ------------------------------------------------------------------ I/O thread

    def drop(self, worker_id: int) -> None:
        """End a process that was launched, and that nobody wants any more."""
        with self._lock:
            worker = self._launched.pop(worker_id, None)
        if worker is not None:
            _drop_launched(worker)

    def start(self, worker_id: int) -> Ended | None:
        """Start a process, or take in one that was launched; `Ended` with the error if that is not possible."""
        with self._lock:
            launched = self._launched.pop(worker_id, None)
        with contextlib.ExitStack() as undo:
            try:
                worker = launched or self._launch(worker_id)
                undo.callback(_drop_launched, worker)
                memory, ours = worker.memory, worker.channel.sock
                frames = [
                    make_frame((protocol.ATTACH, "status"), os.dup(memory.status_fd)),
                    make_frame((protocol.ATTACH, "faults"), os.dup(memory.fault_fd)),
                    *(make_frame((protocol.ATTACH, "claims"), os.dup(c.fd)) for c in memory.claims),
                    make_frame((protocol.ATTACH, "life"), os.dup(self._life()[0])),
                    *([] if self.greeting is None else [self.greeting(worker_id)]),
                    self.init_message(),
                ]
                self._selector.register(ours, selectors.EVENT_READ, (worker, "channel"))
                self._selector.register(worker.end_fd, selectors.EVENT_READ, (worker, "end"))
            except Exception as error:
                return Ended(worker_id, None, None, None, "", error)
            undo.pop_all()
        self._workers[worker_id] = worker
        if False in [worker.channel.post(frame) for frame in frames]:
            self._watch_writes(worker_id)
        return None

    def _life(self) -> tuple[int, int]:
        """The pipe whose write end only this process has: when it closes, the kernel ends the workers."""
        if self._life_pipe is None:
            self._life_pipe = os.pipe()
        return self._life_pipe

    def _close_life(self) -> None:
        if self._life_pipe is not None:
            blocks.close_all(self._life_pipe)
            self._life_pipe = None

    def _relay(self) -> TrackerRelay:
        with self._lock:
            if self._tracker_relay is None:
                self._tracker_relay = TrackerRelay()
                self._selector.register(self._tracker_relay.read_fd, selectors.EVENT_READ, self._tracker_relay)
            return self._tracker_relay

    def _start_process(self, process: Any) -> None:
        """Start a process that Ctrl-C does not reach until it can ignore it."""
        method = self.context.get_start_method() if self.context is not None else None
        if method == "fork":
            with warnings.catch_warnings():
                # Forking beside threads was the caller's explicit choice.
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
        elif method == "forkserver":
            process.start()  # its server is not ours alone, and ignores Ctrl-C
        else:
            if method != "loky":
                from multiprocessing import resource_tracker

                resource_tracker.ensure_running()  # its start would unblock what is blocked here
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited
            try:
                process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def _make_process(self, worker_id: int, theirs: socket.socket) -> Any:
        if self.context is None:
            self.prepare()
        context: Any = self.context
        name = f"AmorsizeWorker-{worker_id}"
        if context.get_start_method() == "loky":
            from .launch import WorkerProcess

            return WorkerProcess(theirs.fileno(), self._relay().write_fd, name=name, env=self._env)
        return context.Process(target=worker_main, args=(theirs, os.getpid(), self._env, str(worker_id)), name=name)

    def wait(
        self, timeout: float | None, on_message: Callable[[Message], object], on_end: Callable[[Ended], object]
    ) -> bool:
        """Wait until something happens, at most `timeout` seconds, and tell what did; False when nothing did."""
        if self._to_watch:
            with self._lock:
                to_watch, self._to_watch = self._to_watch, set()
            for worker_id in to_watch:
                self._watch_writes(worker_id)
        ready = self._selector.select(timeout)
        for key, mask in ready:
            if key.data is None:
                self._clear_wake()
                continue
            if isinstance(key.data, TrackerRelay):
                key.data.forward()
                continue
            worker, what = key.data
            if worker.worker_id not in self._workers:
                continue
            if what == "end":
                self._ended(worker, on_message, on_end)
                continue
            if mask & selectors.EVENT_WRITE and worker.channel.flush():
                self._want_write.discard(worker.worker_id)
                self._selector.modify(worker.channel.sock, selectors.EVENT_READ, key.data)
            if mask & selectors.EVENT_READ and not self._read(worker, _READS_PER_TURN, on_message):
                # Closed by the worker: it ends now, or a task has closed descriptors that were not its own.
                self._selector.unregister(worker.channel.sock)
                self._want_write.discard(worker.worker_id)
                worker.channel.close()
                self.kill(worker.worker_id, signal.SIGTERM)
        return bool(ready)

    def _clear_wake(self) -> None:
        with self._lock:  # else a wake-up that comes in between would be read, and yet count as on its way for ever
            try:
                while self._wake_r.recv(4096):
                    pass
            except BlockingIOError:
                pass  # emptied
            self._is_awake = False

    def _watch_writes(self, worker_id: int) -> None:
        worker = self._workers.get(worker_id)
        if worker is not None and worker_id not in self._want_write and worker.channel.sock.fileno() >= 0:
            self._want_write.add(worker_id)
            events = selectors.EVENT_READ | selectors.EVENT_WRITE
            self._selector.modify(worker.channel.sock, events, (worker, "channel"))

    def _read(self, worker: _Worker, reads: int | None, on_message: Callable[[Message], object]) -> bool:
        """Hand on messages that have come; False when the channel is closed."""
        if self._receiver is None:
            self._receiver = Receiver()
        while reads is None or reads > 0:
            try:
                data, fds = self._receiver.receive(worker.channel.sock)
            except BlockingIOError:
                return True
            except OSError:
                return False
            nbytes = len(data)
            if not nbytes:
                return False
            for content, block_fd in worker.reader.feed(data, fds):
                on_message(Message(worker.worker_id, content, block_fd))
            if reads is not None:
                reads -= 1
                if nbytes < 4096:
                    return True  # most likely all: a wrong guess costs one more round
        return True

    def _ended(
        self, worker: _Worker, on_message: Callable[[Message], object], on_end: Callable[[Ended], object]
    ) -> None:
        """Read what a dead worker sent, then what it had written but not sent, then report its end."""
        if worker.channel.sock.fileno() >= 0:
            self._read(worker, None, on_message)
            self._selector.unregister(worker.channel.sock)
            self._want_write.discard(worker.worker_id)
        self._selector.unregister(worker.end_fd)
        with self._lock:
            worker.is_reaped = True
        exitcode = worker.exitcode()
        worker.reader.close()
        fault = worker.memory.fault()
        try:
            for content, block_fd in FrameReader().feed(memoryview(worker.status.unsent())):
                on_message(Message(worker.worker_id, content, block_fd))
            kept = worker.status.kept()
            if kept is not None:
                on_message(Message(worker.worker_id, kept, None))
        except Exception as error:  # a record cut short by the death: its item counts as running
            fault = f"{fault}(unreadable record: {error!r})"
        running = worker.status.running()
        with self._lock:
            del self._workers[worker.worker_id]
        worker.close()
        on_end(Ended(worker.worker_id, worker.pid, exitcode, running, fault, is_killed=worker.is_killed))

    def close(self) -> None:
        """Release everything; workers must have ended."""
        with self._lock:
            self._is_closed = True
        self._selector.close()
        self._wake_r.close()
        self._wake_w.close()
        self._close_life()
        if self._tracker_relay is not None:
            self._tracker_relay.close()
            self._tracker_relay = None
        with self._lock:
            workers, launched = list(self._workers.values()), list(self._launched.values())
            self._workers.clear()
            self._launched.clear()
        for worker in workers:
            worker.close()
        for worker in launched:
            _drop_launched(worker)

    def drop_after_fork(self) -> None:
        """In the child of a fork: let go of the parent's workers without touching them."""
        self._is_closed = True
        self._selector.close()
        self._wake_r.close()
        self._wake_w.close()
        self._close_life()
        if self._tracker_relay is not None:
            self._tracker_relay.drop_after_fork()
            self._tracker_relay = None
        for worker in (*self._workers.values(), *self._launched.values()):
            worker.drop_after_fork()
        self._workers.clear()
        self._launched.clear()


def _check_descriptors(fd: int) -> None:
    """Raise the OSError of a lack of descriptors before a start begins, which would leak some and hide the reason."""
    spare: list[int] = []
    try:
        for _ in range(_START_DESCRIPTORS):
            spare.append(os.dup(fd))
    finally:
        blocks.close_all(spare)


def _join_nobody(timeout: float | None = None) -> None:
    """For a process that is another's child."""


def _drop_launched(worker: _Worker) -> None:
    _kill_process(worker.process)
    worker.close()


def _kill_process(process: Any) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def resolve_context(context: BaseContext | str | None) -> BaseContext:
    """The multiprocessing context for a name, a context, or None (loky's).

    Raises
    ------
    ValueError
        For an unknown name.
    """
    if context is None or context == "loky":
        from . import launch

        return launch.loky_context()
    if isinstance(context, str):
        import multiprocessing

        return multiprocessing.get_context(context)
    return context


def _drop_pools_after_fork() -> None:
    for pool in list(_pools):
        pool.drop_after_fork()
    _pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_pools_after_fork)

if sys.platform == "win32":  # pragma: no cover
    raise ImportError("amorsize_executor needs a POSIX system: it passes file descriptors between processes")
