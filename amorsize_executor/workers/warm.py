"""Blocks that are used again and again, and what they hold.

To write into fresh shared memory takes three to ten times as long as to write into memory that is there already
(``benchmarks/data.py`` measures both), so a block that nobody needs any more is kept for a moment and given out again.
Until then it remembers which buffers it holds. When one of these is met again, it need not be stored again:

* within one map (an `Epoch`) the same buffer is known by its address, while its owner is alive;
* in any other call its whole content is compared with what the block holds. That runs at the speed of memory, as a
  copy would, and stale data never passes.

A block's life::

    take -> in use (n_uses > 0) -> release -> free -> take (its content is forgotten) -> in use ...
                ^                               |
                +------------- find ------------+--> closed: too old, or too many

The content of a block is written while it has one user, who only appends; it is never changed while anyone uses it,
nor when a task has kept a view on it (`keep`): private mappings show later writes in pages that were not touched yet.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import resource
import sys
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator

from . import blocks

TYPE_CHECKING = False  # as of typing: see the package's docstring
if TYPE_CHECKING:
    from typing import Any, TypeVar

    from .interfaces import Sized
    from .mapped import Mapped
    from .resources import Resource

    _Any = TypeVar("_Any", bound=Sized)

#: Buffers of at least this size, in bytes, are looked for in blocks: below, to look (about 5 us) is not much faster
#: than to copy.
SHARE_NBYTES = 64 << 10
#: A block is given out again for at least this part of its size, or if it is no larger than so many bytes.
_LEAST_FILL = 1 / 4
#: ... and it may have to grow from this part of what it is to hold: else blocks of all sizes would gather.
_LEAST_SIZE = 1 / 2
_SMALL_NBYTES = 1 << 20
#: A free block is closed after this long, in seconds.
IDLE_S = 5.0
#: Blocks at most; each takes a descriptor, or two once it was compared with.
_MOST_BLOCKS = 64
#: ... and this part of the descriptors that the process may have.
_DESCRIPTORS_PART = 1 / 16
#: Contents are compared in steps of this size, in bytes: the intermediate result stays in the cache.
_STEP = 1 << 20
_ALIGNMENT = 64

Key = tuple[int, int]
_numbers = itertools.count(1)
#: Of this process; the child of a fork has copies of their descriptors, which would keep their memory.
_blocks: weakref.WeakSet[Block] = weakref.WeakSet()
_stores: weakref.WeakSet[WarmBlocks] = weakref.WeakSet()


class Epoch:
    """The life of one map, in which a buffer that has not moved counts as unchanged.

    Attributes
    ----------
    owners
        Owners of buffers that allow no weak references; alive while the epoch is, so that no other buffer can get
        their address.
    """

    __slots__ = ("__weakref__", "owners")

    def __init__(self) -> None:
        self.owners: dict[Key, object] = {}


class Block(blocks.File):
    """A numbered block. Its attributes are guarded by the lock of its store.

    Attributes
    ----------
    block_id
        Unique among all processes that are alive.
    nbytes
        Size of the file; what is in use of it is the writer's to know.
    n_uses
        Chunks, tasks, functions and handles that need its content.
    is_kept
        A task has kept a view on it, so it must not be written to any more.
    privates
        Private mappings of it that callers of maps have used, for the next ones. Any thread appends or pops.
    """

    __slots__ = (
        "__weakref__",
        "block_id",
        "epochs",
        "freed_at",
        "is_kept",
        "keys",
        "n_uses",
        "privates",
        "store",
    )

    def __init__(self, store: WarmBlocks, fd: int) -> None:
        super().__init__(fd)
        self.store = store
        self.block_id = os.getpid() << 32 | next(_numbers)
        self.n_uses = 1
        self.is_kept = False
        self.freed_at = 0.0
        self.keys: list[Key] = []
        self.epochs: weakref.WeakSet[Epoch] = weakref.WeakSet()  # maps that have met its content more than once
        self.privates: list[Mapped] = []
        _blocks.add(self)

    def write(self, offset: int, buffer: memoryview) -> None:
        """Store a buffer; only the one user of a block that was just taken does."""
        before = self.nbytes
        super().write(offset, buffer)
        if self.nbytes > before:
            self.store.grew(self.nbytes - before)

    def holds(self, offset: int, buffer: memoryview) -> bool:
        """Whether the block holds the very same bytes, all of them compared."""
        return is_same(self.view()[offset : offset + buffer.nbytes], buffer)

    def private_view(self, start: int, stop: int) -> tuple[memoryview, int]:
        """A private, copy-on-write view of its content, for this process; and the offset where it begins."""
        if stop - start >= SHARE_NBYTES:
            return blocks.map_private(self.fd, self.nbytes), 0
        return memoryview(blocks.read_copy(self.fd, start, stop)), start

    def retain(self) -> None:
        """Count one more user."""
        self.store.retain(self)

    def release(self) -> None:
        """One user less."""
        self.store.release(self)

    def abandon(self) -> None:
        """One user less; for finalizers."""
        self.store.abandon(self)

    def keep(self) -> None:
        """A task has kept a view on it: it may be read again, but never written to."""
        self.store.keep(self)

    def close(self) -> None:
        """Let go of the memory; by its store."""
        while self.privates:
            self.privates.pop().close()
        super().close()

    @property
    def is_closed(self) -> bool:
        """Whether its memory was given up here; a worker that knows it should forget it."""
        return self.fd < 0


class _Extent:
    """Where a buffer stands, and how its owner is seen to be alive."""

    __slots__ = ("block", "epoch", "offset", "owner", "serial")

    def __init__(
        self,
        block: Block,
        offset: int,
        epoch: weakref.ref[Epoch] | None,
        owner: weakref.ref[Any] | None,
        serial: int,
    ) -> None:
        self.block = block
        self.offset = offset
        self.epoch = epoch
        self.owner = owner
        self.serial = serial

    def is_of(self, epoch: Epoch) -> bool:
        """Whether it was stored in this epoch, and its owner is alive: then it cannot be another buffer."""
        return self.epoch is not None and self.epoch() is epoch and (self.owner is None or self.owner() is not None)


class WarmBlocks:
    """Blocks of one executor. Any thread; the lock is held for look-ups only, never while something is written.

    Parameters
    ----------
    limit_nbytes
        Gives what free blocks may take in all, in bytes, and what waiting tasks may; asked when it matters.
    most
        Blocks at most, as far as free ones can be given up.
    is_kept_after_fork
        Whether the child of a fork may use the blocks, too.
    """

    def __init__(
        self, limit_nbytes: Callable[[], int], most: int | None = None, *, is_kept_after_fork: bool = False
    ) -> None:
        self._limit_nbytes = limit_nbytes
        self._most = most
        self.is_kept_after_fork = is_kept_after_fork
        _stores.add(self)
        # Guards everything below and the attributes of blocks.
        self._lock = threading.Lock()
        self._has_stored = threading.Condition(self._lock)
        self._free: OrderedDict[int, Block] = OrderedDict()  # the one freed last is the last
        self._extents: dict[Key, _Extent] = {}
        self._storing: set[Key] = set()  # by some thread just now
        self._n_blocks = 0
        self._nbytes = 0  # of all blocks
        self._free_nbytes = 0
        self._is_closed = False
        self._abandoned: deque[Block] = deque()  # released by finalizers

    def renew_lock(self) -> None:
        """In the child of a fork: another thread of the parent may have held the lock."""
        self._lock = threading.Lock()
        self._has_stored = threading.Condition(self._lock)
        self._storing.clear()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock:
            yield
            while self._abandoned:
                self._unuse(self._abandoned.popleft())

    # ------------------------------------------------------------------ blocks

    def take(self, nbytes: int) -> Block:
        """A block for about so many bytes, with one user, who may write to it."""
        with self._locked():
            writable = [b for b in reversed(self._free.values()) if not b.is_kept and not b.epochs]
            block = best_fit(writable, nbytes)
            if block is not None:
                self._unfree(block)
                self._forget_content(block)
                block.n_uses = 1
                return block
            while self._free and self._n_blocks >= self._most_blocks():
                self._drop(self._victim())
            self._n_blocks += 1
        try:
            return Block(self, self._create(nbytes))
        except BaseException:
            with self._locked():
                self._n_blocks -= 1
            raise

    def _create(self, nbytes: int) -> int:
        try:
            return blocks.create(nbytes)
        except OSError:
            if not self.give_up_free():
                raise
        return blocks.create(nbytes)

    def give_up_free(self) -> bool:
        """Close the free blocks, since there is no room; False if there were none."""
        with self._locked():
            had_any = bool(self._free)
            while self._free:
                self._drop(self._victim())
        return had_any

    def grew(self, nbytes: int) -> None:
        """A block has become larger."""
        with self._locked():
            self._nbytes += nbytes

    def is_full(self, nbytes: int) -> bool:
        """Whether so many bytes more than are in use now would be over the limit."""
        with self._locked():
            return self._nbytes - self._free_nbytes + nbytes > self._limit_nbytes()

    @property
    def has_many(self) -> bool:
        """Whether so many blocks are in use that none should be taken for what has another place."""
        with self._locked():
            return self._n_blocks - len(self._free) >= self._most_blocks()

    @property
    def nbytes(self) -> int:
        """Memory of all blocks in bytes, free ones included."""
        return self._nbytes

    def retain(self, block: Block) -> None:
        """Count one more user of a block that is in use."""
        with self._locked():
            block.n_uses += 1

    def release(self, block: Block) -> None:
        """One user less; a block without users is free."""
        with self._locked():
            self._unuse(block)

    def abandon(self, block: Block) -> None:
        """Like `release`, for finalizers, which may run at any point of any thread: never waits for the lock."""
        self._abandoned.append(block)
        if self._lock.acquire(blocking=False):
            try:
                while self._abandoned:
                    self._unuse(self._abandoned.popleft())
            finally:
                self._lock.release()

    def keep(self, block: Block) -> None:
        """A task has kept a view on a block: it may be read again, but never written to."""
        with self._locked():
            block.is_kept = True

    def _unuse(self, block: Block) -> None:
        block.n_uses -= 1
        if block.n_uses:
            return
        block.freed_at = time.monotonic()
        self._free[block.block_id] = block
        self._free_nbytes += block.nbytes
        if self._is_closed or (block.is_kept and not block.keys):  # neither to be written again, nor found
            self._drop(block)
            return
        limit = self._limit_nbytes()
        while self._free and (self._free_nbytes > limit or self._n_blocks > self._most_blocks()):
            self._drop(self._victim())

    def _victim(self) -> Block:
        """The free block that will be missed least."""
        return next((b for b in self._free.values() if not b.epochs), next(iter(self._free.values())))

    def _unfree(self, block: Block) -> None:
        del self._free[block.block_id]
        self._free_nbytes -= block.nbytes

    def _drop(self, block: Block) -> None:
        self._unfree(block)
        self._forget_content(block)
        self._n_blocks -= 1
        self._nbytes -= block.nbytes
        block.close()

    def _forget_content(self, block: Block) -> None:
        for key in block.keys:
            extent = self._extents.get(key)
            if extent is not None and extent.block is block:
                del self._extents[key]
                epoch = extent.epoch() if extent.epoch is not None else None
                if epoch is not None:
                    epoch.owners.pop(key, None)
        block.keys.clear()
        block.epochs.clear()

    def _most_blocks(self) -> int:
        if self._most is None:
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            room = int(soft * _DESCRIPTORS_PART) if soft != resource.RLIM_INFINITY else _MOST_BLOCKS
            self._most = max(min(_MOST_BLOCKS, room), 4)
        return self._most

    # ------------------------------------------------------------------ time, the end

    def trim(self, now: float) -> float | None:
        """Close what has been free for long (of `time.monotonic`); returns when to come again, None if never."""
        with self._locked():
            for block in list(self._free.values()):
                if now - block.freed_at >= IDLE_S and not block.epochs:
                    self._drop(block)
            oldest = next(iter(self._free.values()), None)
            if oldest is not None:
                return max(oldest.freed_at + IDLE_S - now, 1.0)
            return IDLE_S if self._n_blocks else None

    def close(self) -> None:
        """Close free blocks now, and the others when they become free."""
        with self._locked():
            self._is_closed = True
            while self._free:
                self._drop(next(iter(self._free.values())))

    # ------------------------------------------------------------------ contents

    def find(
        self, key: Key, buffer: memoryview, epoch: Epoch | None, *, is_again: bool = False
    ) -> tuple[Block, int, int, bool] | None:
        """Where a buffer stands already; None if nowhere.

        Returns
        -------
        block
            In use once more.
        offset, serial
            Where it stands there, and its content's number.
        is_shared
            Whether another item of the same map has it.
        """
        with self._locked():
            extent = self._extents.get(key)
            if extent is None:
                return None
            block = extent.block
            if not block.n_uses:
                self._unfree(block)
            block.n_uses += 1
            is_known = epoch is not None and extent.is_of(epoch)
            if is_known and epoch is not None and not is_again:
                block.epochs.add(epoch)  # several items have it, and more may come
        if is_known:
            return block, extent.offset, extent.serial, not is_again
        try:
            is_same = block.holds(extent.offset, buffer)
        except BaseException:
            self.release(block)
            raise
        if not is_same:
            self.release(block)
            return None
        self.note(key, buffer, block, extent.offset, epoch, extent.serial)
        return block, extent.offset, extent.serial, False

    @contextlib.contextmanager
    def storing(self, key: Key) -> Iterator[None]:
        """Look for a buffer and store it, while other threads that come with the same one wait: once is enough."""
        with self._locked():
            while key in self._storing:
                self._has_stored.wait()
            self._storing.add(key)
        try:
            yield
        finally:
            with self._locked():
                self._storing.discard(key)
                self._has_stored.notify_all()

    def knows(self, key: Key, epoch: Epoch) -> bool:
        """Whether another item of a map has a buffer, which was stored for it."""
        with self._locked():
            extent = self._extents.get(key)
            return extent is not None and extent.is_of(epoch)

    def note(self, key: Key, buffer: memoryview, block: Block, offset: int, epoch: Epoch | None, serial: int) -> None:
        """A block holds a buffer now; `serial` is its content's own."""
        owner: weakref.ref[Any] | None = None
        if epoch is not None:
            *_, held = owners(buffer)
            try:
                owner = weakref.ref(held)
            except TypeError:
                epoch.owners[key] = held
        with self._locked():
            self._extents[key] = _Extent(
                block, offset, weakref.ref(epoch) if epoch is not None else None, owner, serial
            )
            if key not in block.keys:
                block.keys.append(key)


def is_same(a: memoryview, b: memoryview) -> bool:
    """Whether two buffers of one size have the very same bytes; other threads run meanwhile."""
    import numpy as np

    x, y = np.frombuffer(a, np.uint8), np.frombuffer(b, np.uint8)
    compare = _memcmp()
    if compare is not None:
        return compare(x.ctypes.data, y.ctypes.data, len(x)) == 0
    return all(bool((x[i : i + _STEP] == y[i : i + _STEP]).all()) for i in range(0, len(x), _STEP))


@functools.cache
def _memcmp() -> Callable[[int, int, int], int] | None:
    """That of the C library, which needs no memory and is faster than NumPy; None where it is not to be had."""
    import ctypes

    try:
        function = ctypes.CDLL(None).memcmp
    except (OSError, AttributeError, TypeError):  # Windows has no such name for it
        return None
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t), ctypes.c_int
    return function


def new_serial() -> int:
    """A number for some content."""
    return next(_numbers)


def aligned(offset: int) -> int:
    """The next offset at which a buffer may begin: what SIMD code and NumPy like."""
    return offset + -offset % _ALIGNMENT


def best_fit(candidates: Iterable[_Any], nbytes: int) -> _Any | None:
    """The smallest block that takes so many bytes, else the largest that takes them if it grows; None if none suits."""
    best: _Any | None = None
    for block in candidates:
        size = block.nbytes
        if size > _SMALL_NBYTES and not nbytes * _LEAST_SIZE <= size <= nbytes / _LEAST_FILL:
            continue
        if best is None or (best.nbytes > size >= nbytes) or (best.nbytes < min(size, nbytes)):
            best = block
    return best


def key_of(buffer: memoryview) -> Key | None:
    """What identifies a buffer while its owner lives: where it stands and its size; None if it is not to be had."""
    obj = buffer.obj
    if type(obj) is bytes or type(obj) is bytearray:
        return id(obj), buffer.nbytes
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    return numpy.frombuffer(buffer, numpy.uint8).__array_interface__["data"][0], buffer.nbytes


def owners(buffer: memoryview) -> Iterator[object]:
    """What a buffer is a view on: arrays are often views on others, made for a moment only. The last has the memory."""
    obj: Any = buffer.obj
    numpy = sys.modules.get("numpy")
    while True:
        yield obj
        if isinstance(obj, memoryview):
            obj = obj.obj
        elif numpy is not None and isinstance(obj, numpy.ndarray) and obj.base is not None:
            obj = obj.base
        else:
            return


class StoreFull(Exception):
    """So much is in use that a buffer that can wait should not be stored."""


class BlockWriter:
    """Puts the buffers of a frame into blocks, or finds the blocks that hold them. Owned by one thread.

    With `can_wait`, `store` raises `StoreFull` when blocks in use have reached their limit.

    Attributes
    ----------
    used
        The blocks that the frame refers to, one use of each; the caller's after `detach`.
    nbytes
        What had to be written, in bytes.
    own_nbytes
        What is not shared with other items, in bytes, written or not.
    n_large
        Buffers that were looked for.
    is_again
        What is stored now was stored before for the same item, which comes a second time: it is not shared for that.
    needs
        Handles of the resources that the frame refers to, by number.
    """

    __slots__ = (
        "_can_wait",
        "_epoch",
        "_own",
        "_serials",
        "_store",
        "is_again",
        "n_large",
        "nbytes",
        "needs",
        "own_nbytes",
        "used",
    )

    def __init__(self, store: WarmBlocks, epoch: Epoch | None = None, *, can_wait: bool = False) -> None:
        self._store = store
        self._epoch = epoch
        self._can_wait = can_wait
        self.is_again = False
        self.n_large = 0
        self.own_nbytes = 0
        self._own: Block | None = None
        self._serials: dict[tuple[int, int], int] = {}
        self.used: dict[int, Block] = {}
        self.needs: dict[int, Resource[Any]] = {}
        self.nbytes = 0

    def store(self, buffer: memoryview) -> tuple[int, int, bool, int]:
        """Store a buffer, and return what stands for it in an entry: offset, size, is read-only, block id."""
        key = key_of(buffer) if buffer.nbytes >= SHARE_NBYTES else None
        if key is None:
            return self._append(buffer)
        self.n_large += 1
        with self._store.storing(key):
            return self._store_large(key, buffer)

    def _store_large(self, key: Key, buffer: memoryview) -> tuple[int, int, bool, int]:
        nbytes = buffer.nbytes
        found = self._store.find(key, buffer, self._epoch, is_again=self.is_again)
        if found is not None:
            block, offset, serial, is_shared = found
            self.own_nbytes += 0 if is_shared else nbytes
            self._serials[block.block_id, offset] = serial
            if block.block_id in self.used:
                block.release()
            self.used[block.block_id] = block
            return offset, nbytes, buffer.readonly, block.block_id
        if self._can_wait and self._store.is_full(nbytes):
            raise StoreFull
        part = self._append(buffer)
        offset, _, _, block_id = part
        serial = self._serials[block_id, offset] = new_serial()
        self._store.note(key, buffer, self.used[block_id], offset, self._epoch, serial)
        return part

    def append(self, buffer: memoryview) -> tuple[int, int, bool, int] | None:
        """The same for a pickle, which need not be looked for; None if it should stay in its entry.

        That is if it fits a frame, and where many tasks wait: each has a block of its own, which is a descriptor.
        """
        if buffer.nbytes < SHARE_NBYTES:
            return None
        if self._can_wait and self._own is None and (self._store.has_many or self._store.is_full(buffer.nbytes)):
            return None
        return self._append(buffer)

    def _append(self, buffer: memoryview) -> tuple[int, int, bool, int]:
        nbytes = buffer.nbytes
        if self._own is None:
            self._own = self._store.take(nbytes)
            self.used[self._own.block_id] = self._own
        block, offset = self._own, aligned(self.nbytes)
        try:
            block.write(offset, buffer)
        except OSError:
            if not self._store.give_up_free():
                raise
            block.write(offset, buffer)
        self.nbytes = offset + nbytes
        self.own_nbytes += nbytes
        return offset, nbytes, buffer.readonly, block.block_id

    def serial(self, part: tuple[int, int, bool, int]) -> int:
        """The serial number of the content of a large buffer, 0 of a small one."""
        return self._serials.get((part[3], part[0]), 0)

    def refer(self, block: Block) -> None:
        """The frame refers to a block that somebody else has stored."""
        if block.block_id not in self.used:
            block.retain()
            self.used[block.block_id] = block

    def need(self, resource: Resource[Any]) -> None:
        """The frame refers to a resource."""
        self.needs[resource.resource_id] = resource

    def detach(self) -> list[Block]:
        """The blocks that the frame refers to; to release them is the caller's task now."""
        used, self.used = list(self.used.values()), {}
        return used

    def close(self) -> None:
        """Release what was not detached."""
        for block in self.detach():
            block.release()


def close_inherited(*, all_of_them: bool = True) -> None:
    """In the child of a fork: give up the parent's blocks.

    Parameters
    ----------
    all_of_them
        Those of handles, too, which another program would want to use on.
    """
    for store in list(_stores):
        store.renew_lock()
    for block in list(_blocks):
        if all_of_them or not block.store.is_kept_after_fork:
            block.close()


def _after_fork_in_child() -> None:
    close_inherited(all_of_them=False)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
