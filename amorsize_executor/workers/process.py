"""The worker's side: receive a chunk, run its items one after another, send what came out.

One thread does all this, the process's main thread, so a task may use signals and a short task waits for no
hand-over. A second thread only waits for the parent's death.

Results leave when a chunk is done, and before that when some have waited for `_FLUSH_S`. Until they leave they stand
in memory shared with the parent, so that they survive this process. Items much shorter than `_GROUP_NS` are run and
recorded in groups of about that length; while a group runs its results stand in a journal, as cheap as can be.

Before an item or group runs it is claimed (`claims`), because the parent may have taken the rest of a chunk back.
"""

from __future__ import annotations

import _pickle as pickle
import _signal as signal  # type: ignore[import-not-found]
import _socket as socket
import atexit
import faulthandler
import fcntl
import marshal
import os
import select
import struct
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice, starmap

from .. import machine
from . import blocks, bulk, mapped, protocol, resources, serialize, sharing, warm
from .channel import LOST, FrameReader, Receiver, make_frame, rights
from .claims import ClaimFile
from .late import when_imported
from .protocol import (
    ENTRIES,
    ERROR,
    FLOATS,
    IN_GROUPS,
    INTEGERS,
    MARSHALLED,
    MARSHALLED_OUTCOMES,
    SCALAR_ITEMS,
    SCALAR_TUPLES,
    SKIPPED,
    VALUE,
    WHOLE,
    StatusBlock,
)
from .residents import Objects, Residents, SharedResidents
from .title import IDLE_S, Title

TYPE_CHECKING = False  # as of typing: see the package's docstring
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, NoReturn

    from .interfaces import Lease
    from .logs import LogForwarding

#: Results wait for others of their chunk, for as long as their worker has been busy, within these bounds, in
#: nanoseconds. To receive some takes the parent 0.1 ms of the CPU time that workers could use.
_LEAST_FLUSH_NS, _MOST_FLUSH_NS = 4_000_000, 32_000_000
#: A worker that waits for a chunk no longer than this has been busy all the time.
_PAUSE_NS = 2_000_000
#: Those of items that took so long, in nanoseconds, leave at once: who knows how long the next will take.
_LONG_NS = 2_500_000
#: Short items run in groups of about this time, in nanoseconds, and later of one part in so many of how long results
#: wait: a record takes about 5 us here and 30 us in the parent.
_GROUP_NS = 1_000_000
_GROUP_SHARE = 4
#: Items of a map are claimed together, for one part in so many of what is left of their chunk, within these bounds, in
#: nanoseconds: a claim takes some us, and what has not been claimed can be taken back.
_CLAIM_SHARE = 8
_LEAST_CLAIM_NS, _MOST_CLAIM_NS = 100_000, 1_000_000
#: Items in a group at most, and at most this many times the items that the function has run before.
_GROUP_ITEMS = 4_000
_GROUP_GROWTH = 2
#: Results that the journal takes: `marshal` gives them back as they were, and fast.
_JOURNAL_TYPES = frozenset({int, float, complex, bool, str, bytes, type(None)})
#: CPU time is read around items longer than this, in nanoseconds (the reading costs 1 us).
_CPU_WORTH_NS = 500_000
#: Blocks for results are kept for this long after the last message, in seconds.
_KEEP_RESULTS_S = 2.0
#: How long to look for a message before going to sleep, in nanoseconds: about what a wake-up costs on both sides ...
_SPIN_NS = 150_000
#: ... if it took no longer than this, the wake-up included, until the latest one came. On a machine with few CPUs, who
#: looks in vain may keep the one from running who is to send or to receive (`benchmarks.dispatch`, latency).
_BRISK_NS = 250_000
_give_way: Callable[[], object] = getattr(os, "sched_yield", lambda: time.sleep(0))
#: Functions kept; the parent sends one again when it is asked.
_MAX_FUNCTIONS = 256
#: Memory is measured behind each item that took so long, and behind shorter ones this often, in nanoseconds: to measure
#: takes about 30 us, and what does not last long cannot need much.
_MEMORY_WORTH_NS = 10_000_000
_MEMORY_PERIOD_NS = 50_000_000
#: A change that is worth a message: so many bytes, and this share of what was told.
_MEMORY_STEP = 1 << 20
_MEMORY_SHARE = 1 / 8
#: What the latest item needed counts for this much beside those before it, if it needed less.
_MEMORY_WEIGHT = 1 / 8
#: The kernel ends workers before other processes that have up to so many thousandths of memory more: so the parent
#: lives, and can tell.
_OOM_SCORE = 300
#: Log records that wait while something else is sent, at most.
_MOST_LATE = 1_000


def worker_main(sock: socket.socket, parent_pid: int, env: dict[str, str], worker_id: str) -> None:
    """Run a worker until its channel ends.

    Parameters
    ----------
    sock
        The worker's end of its channel.
    parent_pid
        The process that owns this worker.
    env
        Environment to set, where it could not be set before this process began.
    worker_id
        The worker's number, for its process's title.
    """
    os.environ.update(env)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # blocked by the parent, for what came before this
    is_told: list[bool] = []  # filled when the worker leaves because it was told to, and in peace
    atexit.register(_leave, os.getpid(), is_told)  # before any task can register anything: so it runs after all that
    sock.setblocking(True)
    _be_killed_first()
    _watch_parent(parent_pid)
    warm.close_inherited()  # by a forked worker
    worker = Worker(sock, worker_id)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=worker.become_copy)
    try:
        worker.serve()
        worker.close()
        is_told.append(True)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the parent is gone, and nobody is left to tell
    finally:
        sock.detach()  # closed by the end of this process: what runs at its exit is not cut short


def _leave(pid: int, is_told: list[bool]) -> None:
    """End this process without taking the interpreter apart, which takes 10 ms, or half a second with large libraries.

    By now threads were joined and exit handlers of tasks have run. A process that a task forked ends in its own way,
    and so does a worker that has failed: its exit status tells.
    """
    if os.getpid() != pid or not is_told:
        return
    logging = sys.modules.get("logging")
    if logging is not None:
        logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            pass  # closed, by a task or at the other end: nobody is left to tell
    os._exit(0)


def _watch_parent(parent_pid: int) -> None:
    """End this process when the parent ends, also in the middle of a task."""

    def wait_and_exit() -> None:
        if pidfd is not None:
            select.select([pidfd], [], [])
        else:
            while os.getppid() == start_ppid:
                time.sleep(1.0)  # no descriptor to wait on here
        os._exit(1)

    start_ppid = os.getppid()
    pidfd: int | None = None
    if hasattr(os, "pidfd_open"):
        try:
            pidfd = os.pidfd_open(parent_pid)
        except ProcessLookupError:
            os._exit(1)
        except OSError:
            pidfd = None  # a kernel or sandbox without it
    threading.Thread(target=wait_and_exit, name="amorsize-parent-watch", daemon=True).start()


def _be_killed_first() -> None:
    """Let the kernel rather end this process than its parent where memory is short."""
    try:
        with open("/proc/self/oom_score_adj", "r+") as file:
            score = min(int(file.read()) + _OOM_SCORE, 1000)
            file.seek(0)
            file.write(str(score))
    except OSError:  # no such file, or not to be written here
        pass


def _die_with(fd: int) -> None:
    """Let the kernel kill this process when the other end of a pipe closes, which the parent holds and never writes to.

    A thread cannot: C code of a task may hold the interpreter lock for as long as it likes.
    """
    try:
        fd = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK)  # all workers share the settings of the other
    except OSError:  # without /proc
        return
    if hasattr(fcntl, "F_SETSIG"):  # Linux
        fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)


def _set_patience(sock: socket.socket, timeout_s: float) -> None:
    """Let reads raise BlockingIOError after a while; 0: never. Nothing else is paid for it: no call more for a read."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, int(timeout_s * 1e6)))


class _Function:
    """A function in this worker, and how long its items take."""

    __slots__ = ("_entry", "call", "gives_plain", "growth", "item_ns", "kept_type", "n_seen", "told_growth")

    def __init__(self, entry: serialize.Entry) -> None:
        self._entry = entry
        self.call: Callable[..., Any] = _unloaded
        self.item_ns = 0.0
        self.n_seen = 0
        self.gives_plain = True  # its results are such as the journal takes as they are
        self.kept_type: type | None = None  # int or float, where the latest results were all of that type
        self.growth = 0.0  # bytes that its items need, by and large
        self.told_growth = -1.0  # the same as the parent was told; below zero: it was not

    def load(self, blocks: mapped.MappedBlocks, residents: Residents) -> None:
        """Unpickle it, anew if calls may have changed it."""
        self.call = _unloaded  # first give back what it has of blocks
        mapped.expect_again(serialize.stored_nbytes(self._entry))
        self.call = _decode_function(self._entry, blocks, residents)

    def unload(self) -> None:
        """Forget what calls have changed in it."""
        self.call = _unloaded

    def group_size(self, group_ns: int) -> int:
        if self.item_ns * 2 > group_ns:
            return 1
        return max(min(int(group_ns / max(self.item_ns, 50.0)), _GROUP_ITEMS, _GROUP_GROWTH * self.n_seen), 1)

    def claim_size(self, n_left: int) -> int:
        item_ns = max(self.item_ns, 50.0)
        claim_ns = min(max(n_left * item_ns / _CLAIM_SHARE, _LEAST_CLAIM_NS), _MOST_CLAIM_NS)
        return max(int(claim_ns / item_ns), 1)

    def observe_growth(self, nbytes: int) -> bool:
        """An item, or some short ones, let this process grow; returns whether the parent should know."""
        if nbytes >= self.growth or self.told_growth < 0:
            self.growth = nbytes
        else:
            self.growth += _MEMORY_WEIGHT * (nbytes - self.growth)
        step = max(_MEMORY_STEP, _MEMORY_SHARE * self.told_growth)
        if self.told_growth >= 0 and abs(self.growth - self.told_growth) < step:
            return False
        self.told_growth = self.growth
        if self.n_seen <= 1:  # the next need not import what this one has
            self.growth = 0.0
        return True

    def observe(self, n_items: int, elapsed_ns: int) -> None:
        x = elapsed_ns / n_items
        self.item_ns = x if not self.n_seen else self.item_ns + 0.25 * (x - self.item_ns)
        self.n_seen += n_items


class Worker:
    """Runs what comes over a socket until it is told to leave.

    Parameters
    ----------
    sock
        The worker's end of its channel; blocking.
    worker_id
        Its number, for its process's title; None if that is not its own.
    objects
        Given where the worker is a thread beside others: the resources of their process.
    """

    def __init__(self, sock: socket.socket, worker_id: str | None, objects: Objects | None = None) -> None:
        self._sock = sock
        self._reader = FrameReader()
        self._functions: OrderedDict[int, _Function] = OrderedDict()
        self._status: StatusBlock | None = None
        self._claims: list[ClaimFile] = []  # by slot
        self._slot: tuple[int, int] | None = None  # of the chunk that runs, and how it is claimed
        self._n_items = 0  # of the chunk that runs here
        self._n_claimed = 0  # of these: it will run them
        self._used = 0  # bytes of records in the status block
        self._is_brisk = False  # the latest message came soon after it was waited for
        self._busy_since_ns = time.perf_counter_ns()
        self._flush_due_ns = 0
        self._group_ns = _GROUP_NS
        is_thread = objects is not None
        self._measures_memory = not is_thread  # else it is that of others, too
        self._used_nbytes = machine.memory_use().private_nbytes
        self._told_nbytes = 0  # what of that the parent knows
        self._peak_nbytes = 0
        self._has_peak = not is_thread and machine.forget_peak()  # what is measured next is of what runs next
        self._memory_due_ns = time.perf_counter_ns() + _MEMORY_PERIOD_NS
        self._cpu_ns = 0
        self._is_copy = False  # a fork of the worker
        self._journal_used = 0  # bytes
        self._blocks = mapped.MappedBlocks()
        self._results = mapped.ResultBlocks()
        # Held while something is sent, which is done by the main thread and by those that log.
        self._sending = threading.Lock()
        self._late: deque[bytes] = deque()  # log records that came while something was sent
        self._n_lost = 0  # those that came while too many waited
        self._logging = _LateLogging(self._send_log)
        self._title = Title(worker_id)
        self._residents = Residents(self._send) if objects is None else SharedResidents(self._send, objects)
        sharing.receive_with(self._blocks, in_thread=is_thread)
        resources.receive_with(self._residents, in_thread=is_thread)

    def become_copy(self) -> None:
        """In a child that a task forked: the channel belongs to the parent of it."""
        self._is_copy = True
        if self._status is not None:
            self._status.release_vectors()
        self._logging.become_copy()

    def close(self) -> None:
        """The worker leaves, told to and in peace."""
        self._unload_functions()
        self._residents.close_all()
        self._logging.stop()

    def release(self) -> None:
        """Of a worker that is a thread, after `close`: give up all that the end of a process would give up."""
        sharing.receive_with(None, in_thread=True)
        resources.receive_with(None, in_thread=True)
        self._functions.clear()
        self._blocks.close()
        self._results.forget()
        for claim_file in self._claims:
            claim_file.close()
        if self._status is not None:
            self._status.close()
        self._reader.close()
        self._sock.close()

    # ------------------------------------------------------------------ messages in

    def serve(self) -> None:
        """Handle messages until one says to leave, or the channel ends."""
        receiver = Receiver()
        while True:
            data, fds = self._receive(receiver)
            if not data:
                return
            for message, block_fd in self._reader.feed(data, fds):
                if block_fd == LOST:
                    return  # tasks have left no descriptors: others can do what this process cannot
                try:
                    if not self._handle(message, block_fd):
                        return
                finally:
                    if block_fd is not None and message[0] != protocol.BLOCK:
                        os.close(block_fd)

    def _receive(self, receiver: Receiver) -> tuple[memoryview, list[int]]:
        """Wait for messages: awake for a moment if the latest came at once, since to be woken takes as long.

        Whoever else wants this CPU has it meanwhile.
        """
        begun = now = time.perf_counter_ns()
        try:
            while self._is_brisk and now - begun < _SPIN_NS:
                try:
                    return receiver.receive(self._sock, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    _give_way()
                    now = time.perf_counter_ns()
            try:
                return self._sleep(receiver)
            finally:
                now = time.perf_counter_ns()
                if now - begun > _PAUSE_NS:
                    self._busy_since_ns = now
        finally:
            self._is_brisk = time.perf_counter_ns() - begun < _BRISK_NS

    def _sleep(self, receiver: Receiver) -> tuple[memoryview, list[int]]:
        if not self._results.is_empty and not select.select([self._sock], [], [], _KEEP_RESULTS_S)[0]:
            self._results.forget()
        try:
            return receiver.receive(self._sock)
        except BlockingIOError:  # see `_show`
            _set_patience(self._sock, 0.0)
            self._title.idle()
            return receiver.receive(self._sock)

    def _show(self, what: object, name: str) -> None:
        """Let the title of this process tell what it does, and wait for it to become idle."""
        if self._title.is_idle:
            _set_patience(self._sock, IDLE_S)
        self._title.show(what, name)

    def _handle(self, message: tuple[Any, ...], block_fd: int | None) -> bool:
        code = message[0]
        if code == protocol.RUN:
            _, chunk_id, slot, functions, fn_ids, kind, items, block_ids = message
            self._slot = slot
            self._run(chunk_id, functions, fn_ids, kind, items, block_ids)
        elif code == protocol.BLOCK:
            assert block_fd is not None
            self._blocks.add(message[1], block_fd)  # which owns it now
        elif code == protocol.FORGET_BLOCKS:
            self._blocks.drop(message[1])
        elif code == protocol.RESULTS_FREED:
            self._results.freed(message[1])
        elif code == protocol.ATTACH:
            assert block_fd is not None
            if message[1] == "status":
                self._status = StatusBlock(block_fd)
            elif message[1] == "claims":
                self._claims.append(ClaimFile(os.dup(block_fd)))
            elif message[1] == "faults":
                faulthandler.enable(os.dup(block_fd))
            else:
                _die_with(block_fd)
        elif code == protocol.LOAD:
            self._load_resource(*message[1:])
        elif code == protocol.CLOSE_RESOURCES:
            self._unload_functions()
            self._residents.close(message[1])
        elif code == protocol.LOGGING:
            self._logging.receive(message[1], is_forked=message[2])
        elif code == protocol.INIT:
            return self._initialize(message[1], block_fd)
        elif code == protocol.EXIT:
            return False
        return True

    def _initialize(self, entry: serialize.Entry | None, block_fd: int | None) -> bool:
        try:
            if entry is not None:
                initializer, initargs = serialize.decode(entry, _lease_of(block_fd))
                initializer(*initargs)
        except BaseException as error:  # told to the parent, which breaks the pool
            self._send((protocol.INIT_FAILED, encode_error(error)))
            return False
        self._logging.settle()
        self._title.idle()
        self._send((protocol.READY, os.getpid()))
        return True

    def _load_resource(self, resource_id: int, entry: serialize.Entry, block_ids: tuple[int, ...]) -> None:
        """Build a resource ahead of tasks."""
        self._show(None, "loads a resource")
        problem: bytes | None = None
        try:
            serialize.decode(entry, self._blocks.lease, self._blocks.cache)
        except BaseException as error:  # told to the parent
            problem = encode_error(error)
        self._send((protocol.LOAD_DONE, resource_id, problem))
        if block_ids:
            self._send((protocol.BLOCKS_DONE, -resource_id, self._blocks.settle()))

    def _unload_functions(self) -> None:
        """Let go of what functions with state refer to."""
        for fn_id, function in self._functions.items():
            if fn_id < 0:
                function.unload()

    def _learn(self, functions: tuple[tuple[int, serialize.Entry], ...]) -> None:
        for fn_id, entry in functions:
            if fn_id not in self._functions:
                function = self._functions[fn_id] = _Function(entry)
                if fn_id > 0:  # else it is loaded for each use
                    function.load(self._blocks, self._residents)
                if len(self._functions) > _MAX_FUNCTIONS:
                    self._functions.popitem(last=False)

    # ------------------------------------------------------------------ a chunk

    def _run(
        self,
        chunk_id: int,
        functions: tuple[tuple[int, serialize.Entry], ...],
        fn_ids: int | list[int],
        kind: int,
        items: list[Any],
        block_ids: tuple[int, ...],
    ) -> None:
        self._mark(chunk_id, 0, 1)  # a function or argument may end this process while it is unpickled
        if functions:
            self._learn(functions)
        known = self._functions
        has_blocks = not block_ids or self._blocks.has_all(block_ids)
        for fn_id in (fn_ids,) if isinstance(fn_ids, int) else set(fn_ids):
            if fn_id not in known or not has_blocks:
                self._mark(0, 0, 0)
                self._send((protocol.NEED_FUNCTIONS, chunk_id))
                return
            known.move_to_end(fn_id)
        if isinstance(fn_ids, int) and fn_ids < 0:
            known[fn_ids].load(self._blocks, self._residents)
        self._put_off_flush(time.perf_counter_ns())
        self._cpu_ns = -1
        offset, n = 0, len(items)
        self._n_items, self._n_claimed = n, n if self._slot is None else 0
        if self._slot is not None and self._slot[1] == WHOLE:
            self._n_claimed = self._claims[self._slot[0]].take(n)
        while offset < n:
            if isinstance(fn_ids, int):
                function = known[fn_ids]
                size = min(function.group_size(self._group_ns), n - offset)
            else:
                function, size = known[fn_ids[offset]], 1
            if offset == self._n_claimed and not self._claim(size, function):  # the parent has taken the rest back
                if block_ids:
                    self._settle_blocks(chunk_id, fn_ids)
                self._flush()
                self._mark(0, 0, 0)
                self._send((protocol.CUT, chunk_id))
                return
            if offset or size > 1:
                self._mark(chunk_id, offset, size)
            if not isinstance(fn_ids, int) and fn_ids[offset] < 0:
                function.load(self._blocks, self._residents)
            if function is not self._title.shown:
                self._show(function, serialize.name_of(function.call))
            offset += self._run_group(chunk_id, offset, function, kind, items[offset : offset + size])
        if block_ids:
            self._settle_blocks(chunk_id, fn_ids)
        self._flush()
        self._mark(0, 0, 0)

    def _settle_blocks(self, chunk_id: int, fn_ids: int | list[int]) -> None:
        """Tell the parent which of the chunk's blocks are in use even now."""
        self._flush()  # to look at the pages takes time that results need not wait for
        for fn_id in (fn_ids,) if isinstance(fn_ids, int) else set(fn_ids):
            if fn_id < 0:
                self._functions[fn_id].unload()
        self._append(make_frame((protocol.BLOCKS_DONE, chunk_id, self._blocks.settle())))

    def _claim(self, most: int, function: _Function) -> int:
        """Claim the next items of the chunk; returns how many."""
        assert self._slot is not None
        slot, how = self._slot
        size = function.claim_size(self._n_items - self._n_claimed) if how == IN_GROUPS else 1
        n = self._claims[slot].take(min(most, size))
        self._n_claimed += n
        return n

    def _run_group(self, chunk_id: int, offset: int, function: _Function, kind: int, items: list[Any]) -> int:
        """Run items until one raises; record what came out, and return how many were settled."""
        call = function.call
        values: list[Any] = []
        error: BaseException | None = None
        is_skipped = False
        n_items = len(items)
        is_group = n_items > 1
        outcomes: list[tuple[int, Any]] | None = None  # those of `values`, where the journal needs them at once
        block = mapped.ResultWriter(self._results)
        if is_group:
            outcomes = None if function.gives_plain else []
            self._begin_journal(MARSHALLED if outcomes is None else MARSHALLED_OUTCOMES)
        residents = self._residents
        loading_ns = residents.loading_ns
        start = time.perf_counter_ns()
        try:
            n_claimed = self._n_claimed - offset
            if is_group and outcomes is None and kind != ENTRIES:
                apply: Callable[..., Iterator[Any]] = map if kind == SCALAR_ITEMS else starmap
                more: Iterable[Any] = items
                if n_claimed < len(items):
                    more = chain.from_iterable(self._claimed(items, n_claimed, function))
                is_over = self._run_plain(apply(call, more), values, function)
                if is_over and len(values) < min(self._n_claimed - offset, len(items)):
                    raise StopIteration  # of the function: map() passes it on, for its own end
                items = []
            for item in islice(items, n_claimed):
                if kind == SCALAR_ITEMS:
                    value = call(item)
                elif kind == SCALAR_TUPLES:
                    value = call(*item)
                elif item is None:  # failed or cancelled in the parent
                    is_skipped = True
                    break
                elif type(item) is tuple and len(item) == 1:  # scalars
                    value = call(*item[0])
                else:
                    begun, before_ns = time.perf_counter_ns(), residents.loading_ns
                    args, kwargs = serialize.decode(item, self._blocks.lease, self._blocks.cache)
                    start += time.perf_counter_ns() - begun  # unpickling is no task time
                    loading_ns += residents.loading_ns - before_ns
                    value = call(*args, **kwargs)
                    del args, kwargs  # views on blocks
                values.append(value)
                if is_group:
                    begun = time.perf_counter_ns() if outcomes is not None else 0
                    goes_on = self._keep(value, len(values), outcomes, block, function)
                    if begun:
                        start += time.perf_counter_ns() - begun  # nor is pickling
                    if not goes_on:
                        break
        except BaseException as e:  # sent to the caller, whatever it is
            error = e
            # It is of one of these items, even if a signal handler has raised it behind the last of them.
            most = min(self._n_claimed - offset, n_items) - 1
            if outcomes is not None:
                most = min(most, len(outcomes))
                del outcomes[most:]
            del values[most:]
        elapsed = time.perf_counter_ns() - start
        elapsed -= residents.loading_ns - loading_ns  # nor is the time to build what it needs
        if self._is_copy:
            _end_copy(error)
        n = len(values) + (error is not None or is_skipped)
        if n > is_skipped:
            function.observe(n, elapsed)
        try:
            self._record(chunk_id, offset, n, elapsed, values, outcomes, block, error, is_skipped, function)
        finally:
            block.close()
            error = None  # its traceback has this frame, and views on blocks
        return n

    def _record(
        self,
        chunk_id: int,
        offset: int,
        n: int,
        elapsed_ns: int,
        values: list[Any],
        outcomes: list[tuple[int, Any]] | None,
        block: mapped.ResultWriter,
        error: BaseException | None,
        is_skipped: bool,
        function: _Function,
    ) -> None:
        cpu_ns = -1
        if elapsed_ns > _CPU_WORTH_NS:
            if elapsed_ns > _MEMORY_WORTH_NS or time.perf_counter_ns() > self._memory_due_ns:
                self._measure(chunk_id, offset, function)
            now = time.thread_time_ns()
            if self._cpu_ns >= 0:  # else the time before this item was not taken
                cpu_ns = now - self._cpu_ns
            self._cpu_ns = now
        else:
            self._cpu_ns = -1
        if outcomes is None and error is None and not is_skipped and serialize.are_scalars(values):
            message = (protocol.RESULTS, chunk_id, offset, n, elapsed_ns, cpu_ns, values)
            self._append(make_frame(message, head=6), is_urgent=elapsed_ns > n * _LONG_NS)
            return
        if outcomes is None:
            outcomes = [self._outcome(value, block, function) for value in values]
        if error is not None:
            outcomes.append((ERROR, encode_error(error)))
        elif is_skipped:
            outcomes.append((SKIPPED, None))
        outcome = (protocol.OUTCOMES, chunk_id, offset, n, elapsed_ns, cpu_ns, outcomes)
        try:
            block_fd, number = block.lend()
            frame = make_frame((*outcome, number), block_fd, head=6)
        except OSError as no_room:
            lost = [(ERROR, encode_error(no_room))] * n
            frame = make_frame((protocol.OUTCOMES, chunk_id, offset, n, elapsed_ns, cpu_ns, lost))
        self._append(frame, is_urgent=elapsed_ns > n * _LONG_NS)

    def _outcome(self, value: object, block: mapped.ResultWriter, function: _Function) -> tuple[int, Any]:
        try:
            return VALUE, serialize.encode(value, block, append=block.append, has_bulk=bulk.is_among((value,)))
        except Exception as error:
            what = f"the result of {serialize.name_of(function.call)}, a {type(value).__qualname__!r} object,"
            return ERROR, encode_error(not_picklable(what, error))
        except BaseException as error:  # whatever the object's own code raises
            return ERROR, encode_error(error)

    def _claimed(self, items: list[Any], n_claimed: int, function: _Function) -> Iterator[list[Any]]:
        """Parts of a group as they are claimed."""
        start = 0
        while n_claimed:
            yield items[start : start + n_claimed]
            start += n_claimed
            n_claimed = self._claim(len(items) - start, function) if start < len(items) else 0

    def _run_plain(self, calls: Iterator[Any], values: list[Any], function: _Function) -> bool:
        """Run a group whose results need no pickling; False if it ends early, behind one that does.

        For results of one type, int or float, the journal is a vector: that takes a quarter of `marshal`'s time.
        """
        if function.kept_type is not None:
            return self._run_to_vector(calls, values, function, function.kept_type)
        status = self._status
        assert status is not None
        append, words = values.append, status.words
        journal, size, used, dumps = status.journal, status.JOURNAL_NBYTES, 0, marshal.dumps
        for n, value in enumerate(calls, 1):
            if self._is_copy:
                _end_copy(None)
            append(value)
            if type(value) not in _JOURNAL_TYPES:
                function.gives_plain = False
                return False
            data = dumps(value)
            end = used + len(data)
            if end > size:
                return False
            journal[used:end] = data
            used = end
            words[4] = n
        kinds = set(map(type, values))
        if len(kinds) == 1:
            (kind,) = kinds
            function.kept_type = kind if kind is int or kind is float else None
        return True

    def _run_to_vector(self, calls: Iterator[Any], values: list[Any], function: _Function, kept_type: type) -> bool:
        """The same of results that were all of one type, int or float.

        For the shortest items these few lines are most of what they cost beyond their run.
        """
        status = self._status
        assert status is not None
        vector = status.begin_vector(INTEGERS if kept_type is int else FLOATS, status.words[2])
        n, n_kept = -1, 0
        others: list[Any] = []
        try:
            value: Any
            for n, value in enumerate(calls):
                if type(value) is kept_type:
                    try:
                        vector[n] = value
                        continue
                    except ValueError:  # more than 64 bits; or this is a copy
                        pass
                function.kept_type = None
                others.append(value)
                break
            n_kept = n + 1 - len(others)
        except BaseException:
            if not self._is_copy:
                n_kept = status.n_kept  # a signal handler may raise before a result is written
                others.clear()
            raise
        finally:
            if not self._is_copy:
                values.extend(vector[:n_kept].tolist())
                values.extend(others)
        if self._is_copy:
            _end_copy(None)
        return not others

    def _begin_journal(self, how: int) -> None:
        assert self._status is not None
        self._journal_used = 0
        self._status.words[5] = how

    def _keep(
        self,
        value: object,
        n_kept: int,
        outcomes: list[tuple[int, Any]] | None,
        block: mapped.ResultWriter,
        function: _Function,
    ) -> bool:
        """Let a result of a group outlive this process until the group is recorded; False if the group must end."""
        if self._is_copy:
            _end_copy(None)
        status = self._status
        assert status is not None
        if outcomes is None:
            if type(value) not in _JOURNAL_TYPES:
                function.gives_plain = False
                return False
            data = marshal.dumps(value)  # type: ignore[arg-type]  # one of these types
        else:
            outcome = self._outcome(value, block, function)
            outcomes.append(outcome)
            if type(outcome[1]) is not bytes:  # with buffers
                return False
            data = marshal.dumps(outcome)
        end = self._journal_used + len(data)
        if end > status.JOURNAL_NBYTES:
            return False
        status.journal[self._journal_used : end] = data
        self._journal_used = end
        status.words[4] = n_kept
        return True

    # ------------------------------------------------------------------ messages out

    def _append(self, frame: Any, *, is_urgent: bool = False) -> None:
        """Put a record where it survives this process, and send what has waited long enough."""
        status = self._status
        assert status is not None
        nbytes = len(frame.data)
        if frame.fds or nbytes > len(status.records):
            self._flush()
            self._send_frame(frame)
            return
        if self._used + nbytes > len(status.records):
            self._flush()
        status.records[self._used : self._used + nbytes] = frame.data
        self._used += nbytes
        status.words[3] = self._used
        if is_urgent or time.perf_counter_ns() > self._flush_due_ns:
            self._flush()

    def _flush(self) -> None:
        status = self._status
        assert status is not None
        if self._used:
            with self._sending:
                self._sock.sendall(status.records[: self._used])
            self._used = 0
            status.words[3] = 0
            if self._late:
                self._send_late()
        now = time.perf_counter_ns()
        self._put_off_flush(now)
        if now > self._memory_due_ns:
            self._measure(0, 0, None)

    def _put_off_flush(self, now: int) -> None:
        patience = min(max(now - self._busy_since_ns, _LEAST_FLUSH_NS), _MOST_FLUSH_NS)
        self._flush_due_ns = now + patience
        self._group_ns = max(patience // _GROUP_SHARE, _GROUP_NS)

    def _measure(self, chunk_id: int, offset: int, function: _Function | None) -> None:
        """Measure what items of a function have needed, and tell the parent, which must know before they are settled.

        Without a function, what was run was short.
        """
        self._memory_due_ns = time.perf_counter_ns() + _MEMORY_PERIOD_NS
        if not self._measures_memory:
            return
        use = machine.memory_use()
        before, self._used_nbytes = self._used_nbytes, use.private_nbytes
        top = use.peak_private_nbytes
        if not self._has_peak and use.peak_nbytes <= self._peak_nbytes:
            top = use.private_nbytes  # the peak is of something before
        if self._has_peak and top > use.private_nbytes + _MEMORY_STEP:
            machine.forget_peak()
        has_risen = use.peak_nbytes > self._peak_nbytes + _MEMORY_STEP
        self._peak_nbytes = max(self._peak_nbytes, use.peak_nbytes)
        has_changed = abs(use.private_nbytes - self._told_nbytes) >= _MEMORY_STEP
        is_news = function is not None and function.observe_growth(max(top - before, 0))
        if is_news or has_changed or has_risen:
            self._told_nbytes = use.private_nbytes
            growth = 0 if function is None else int(function.told_growth)
            self._send((protocol.MEMORY, chunk_id, offset, growth, use.private_nbytes, self._peak_nbytes))

    def _send(self, message: tuple[Any, ...]) -> None:
        self._send_frame(make_frame(message))

    def _send_frame(self, frame: Any) -> None:
        with self._sending:
            self._send_now(frame)
        if self._late:
            self._send_late()

    def _send_now(self, frame: Any) -> None:
        if frame.fds:
            try:
                sent = self._sock.sendmsg([frame.data], rights(frame.fds))
            finally:
                frame.close()
            if sent < len(frame.data):
                self._sock.sendall(frame.data[sent:])
        else:
            self._sock.sendall(frame.data)

    def _send_log(self, data: bytes) -> None:
        """Send a log record; any thread, also while the very same sends something.

        It leaves at once: the task may end this process next.
        """
        if len(self._late) >= _MOST_LATE:
            self._n_lost += 1
            return
        self._late.append(data)
        self._send_late()

    def _send_late(self) -> None:
        """Send the log records that wait, unless somebody sends something, who will do so."""
        while self._late and self._sending.acquire(blocking=False):
            try:
                while self._late:
                    n_lost, self._n_lost = self._n_lost, 0
                    self._send_now(make_frame((protocol.LOG, self._late.popleft(), n_lost)))
            finally:
                self._sending.release()

    def _mark(self, chunk_id: int, offset: int, count: int) -> None:
        if self._status is not None:
            words = self._status.words
            words[0] = 0
            words[1], words[2], words[4], words[5] = offset, count, 0, MARSHALLED
            words[0] = chunk_id


class _LateLogging:
    """What this process's `logging` has to do, as soon as something imports it.

    Parameters
    ----------
    send
        Sends a packed record; may be called by any thread.
    """

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        # Guards all that follows, and is held while it is handed on.
        self._lock = threading.RLock()
        self._told: tuple[tuple[Any, ...] | None, bool] | None = None  # the latest
        self._is_settled = False
        self._is_over = False
        self._forwarding: LogForwarding | None = None
        when_imported("logging", self._begin)

    def _begin(self, logging: ModuleType) -> None:
        import multiprocessing  # noqa: F401  # records have the name of the process only where this was imported

        from .logs import LogForwarding

        with self._lock:
            if self._is_over:
                return
            self._forwarding = LogForwarding(self._send)
            if self._told is not None:
                self._forwarding.receive(self._told[0], is_forked=self._told[1])
            if self._is_settled:
                self._forwarding.settle()

    def receive(self, wanted: tuple[Any, ...] | None, *, is_forked: bool) -> None:
        """The parent has told what it wants."""
        with self._lock:
            if self._forwarding is not None:
                self._forwarding.receive(wanted, is_forked=is_forked)
            else:
                self._told = wanted, is_forked

    def settle(self) -> None:
        """The initializer has run, and with it whatever configures logging here."""
        with self._lock:
            self._is_settled = True
            if self._forwarding is not None:
                self._forwarding.settle()

    def stop(self) -> None:
        """Nothing can be sent any more."""
        with self._lock:
            self._is_over = True
            if self._forwarding is not None:
                self._forwarding.stop()

    def become_copy(self) -> None:
        """In a child that a task has forked: a thread that it has not may have held the lock."""
        self._lock = threading.RLock()
        self.stop()


def _end_copy(error: BaseException | None) -> NoReturn:
    """End a child that a task forked and that came back out of the task: its result is not the worker's."""
    status = 0
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    os._exit(status)


def _unloaded(*args: Any, **kwargs: Any) -> NoReturn:
    raise AssertionError("the function is loaded before it is called")


def _lease_of(block_fd: int | None) -> Lease:
    """Views of the block that came with a frame."""

    def lease(block_id: int, start: int, stop: int) -> tuple[memoryview, int]:
        assert block_fd is not None
        return blocks.map_private(block_fd, blocks.size(block_fd)), 0

    return lease


def _decode_function(entry: serialize.Entry, blocks: mapped.MappedBlocks, residents: Residents) -> Callable[..., Any]:
    """The function of an entry; one that raises for every call if it cannot be unpickled here."""
    n_failed = residents.n_failed
    try:
        function: Callable[..., Any] = serialize.decode(entry, blocks.lease, blocks.cache)
    except BaseException as error:
        if residents.n_failed > n_failed:
            return _try_again(error, lambda: serialize.decode(entry, blocks.lease, blocks.cache))
        if not isinstance(error, Exception):
            raise
        broken = add_note(error, "raised while the function of the task was unpickled in the worker")
        where = broken.__traceback__

        def function(*args: Any, **kwargs: Any) -> Any:
            raise broken.with_traceback(where)  # which would grow from call to call

    return function


def _try_again(error: BaseException, load: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    """For a function whose resource could not be built: raises that for its first call, and tries for each other."""
    problem: BaseException | None = error

    def function(*args: Any, **kwargs: Any) -> Any:
        nonlocal problem
        if problem is not None:
            first, problem = problem, None
            raise first
        return load()(*args, **kwargs)

    return function


def add_note(error: BaseException, note: str) -> BaseException:
    """Attach a line to an exception (shown in tracebacks from Python 3.11 on)."""
    if hasattr(error, "add_note"):
        try:
            error.add_note(note)
        except Exception:  # of a class that takes no attributes: the note is a help, no need
            pass
    return error


def not_picklable(what: str, error: Exception) -> Exception:
    """The error to raise for something that could not be pickled: the user's own, or one that names the object."""
    from ..errors import SerializationError

    if isinstance(error, (pickle.PicklingError, TypeError, AttributeError, RecursionError)):
        wrapped = SerializationError(f"{what} cannot be pickled: {error}")
        wrapped.__cause__ = error
        return wrapped
    add_note(error, f"raised while {what} was pickled")
    return error


def _traceback_of(error: BaseException) -> str:
    try:
        from traceback import format_exception
    except Exception as problem:  # tasks have left no descriptors, or changed where modules are looked for
        return f"No traceback: {problem!r}\n{type(error).__qualname__}\n"
    return "".join(format_exception(type(error), error, error.__traceback__))


def encode_error(error: BaseException) -> bytes:
    """Entry of (exception, traceback text); an exception that cannot be pickled is replaced by one that says so."""
    text = _traceback_of(error)
    try:
        data = serialize.dumps((error, text))
        loaded, _ = pickle.loads(data)
        if isinstance(loaded, BaseException):
            return data
        problem: object = f"unpickling gives a {type(loaded).__qualname__!r} object"
    except BaseException as e:  # whatever the code of what it holds raises
        problem = e
    from ..errors import SerializationError

    try:
        shown = f"{type(error).__qualname__}({str(error)!r})"
    except Exception:  # its own __str__ raises
        shown = type(error).__qualname__
    told = SerializationError(f"the task raised {shown}, an exception that cannot be pickled: {problem}")
    return serialize.dumps((told, text))
