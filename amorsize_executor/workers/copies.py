"""Copies for items that the caller of a map runs itself: what a worker would have got, without a worker.

An array that one item has is copied. One that another item of the map has had, or that the next one has, too, is stored
in a block, where workers will find it, and each item gets a private, copy-on-write view, as in a worker.
"""

from __future__ import annotations

import os
import sys
import weakref
from typing import Any

from . import bulk, serialize, sharing
from .mapped import Mapped, MappedBlocks
from .resources import NeedsWorker, Resource
from .warm import SHARE_NBYTES, Block, BlockWriter, Epoch, Key, WarmBlocks, key_of, owners

#: Buffers of at least this size, in bytes, are copied into memory from NumPy, which asks for large pages: that is three
#: times as fast as into a `bytearray`.
_LARGE_NBYTES = 1 << 20


class CallerCopies:
    """Makes the copies of one map. Owned by the thread that iterates over its results.

    Parameters
    ----------
    store
        Where blocks come from.
    epoch
        The life of the map; None if items may share memory that changes, so that each is copied.
    """

    def __init__(self, store: WarmBlocks, epoch: Epoch | None) -> None:
        self._store = store
        self._epoch = epoch
        self._met: set[Key] = set()
        self._expected: set[int] = set()  # identities of what the next item has, too
        self._mapped: MappedBlocks | None = None
        self._blocks: dict[int, Block] = {}  # in use here, until this object is gone

    def copy(self, obj: Any, following: Any = None) -> Any:
        """What a worker would get for an item: the item itself if it cannot change, else its pickled copy.

        Parameters
        ----------
        obj
            The item: one argument, or a tuple of them.
        following
            The item behind it; None if there is none.
        """
        if serialize.is_immutable(obj):
            return obj
        mine, others = (obj, following) if type(obj) is type(following) is tuple else ((obj,), (following,))
        self._expected = {id(a) for a, b in zip(mine, others, strict=False) if a is b}
        writer = _Writer(self)
        entry = serialize.encode(obj, writer, has_bulk=bulk.is_among((obj,)))
        if not writer.has_handles:
            return serialize.decode(entry, self._lease)
        before = sharing.receive_with(self._mapped, in_thread=True)
        try:
            return serialize.decode(entry, self._lease)
        finally:
            sharing.receive_with(before, in_thread=True)

    def find(self, buffer: memoryview) -> serialize.Part | None:
        """Where a buffer stands that several items have; None if no earlier one nor the next has."""
        if self._epoch is None or buffer.nbytes < SHARE_NBYTES:
            return None
        key = key_of(buffer)
        if key is None:
            return None
        if key not in self._met:
            self._met.add(key)
            is_expected = not self._expected.isdisjoint(map(id, owners(buffer)))
            if not is_expected and not self._store.knows(key, self._epoch):
                return None
        writer = BlockWriter(self._store, self._epoch)
        try:
            try:
                part = writer.store(buffer)
            except OSError:  # no room for a block, though perhaps for a copy
                return None
            for block in writer.detach():
                self.take_in(block)
        finally:
            writer.close()
        return part

    def take_in(self, block: Block) -> None:
        """Make a block readable here; one use of it is this object's from now on."""
        if self._mapped is None:
            self._mapped = MappedBlocks(is_callers=True)
            weakref.finalize(self, _let_go, self._mapped, self._blocks).atexit = False
        if block.block_id in self._blocks:
            block.release()
            return
        try:
            private = block.privates.pop()
        except IndexError:
            try:
                private = Mapped(os.dup(block.fd))
            except BaseException:
                block.release()
                raise
        self._mapped.take_in(block.block_id, private)
        self._blocks[block.block_id] = block

    def _lease(self, block_id: int, start: int, stop: int) -> tuple[memoryview, int]:
        assert self._mapped is not None
        return self._mapped.lease(block_id, start, stop)


def _let_go(mapped: MappedBlocks, blocks: dict[int, Block]) -> None:
    kept = mapped.settle()
    for block in blocks.values():
        if block.block_id in kept:
            block.is_kept = True  # without the lock, but while it is in use here
        block.privates.append(mapped.give_back(block.block_id))  # for the next map
        block.abandon()
    mapped.close()


class _Writer:
    """Copies buffers, or finds them in blocks.

    Attributes
    ----------
    has_handles
        Whether a handle was met.
    """

    def __init__(self, copies: CallerCopies) -> None:
        self.has_handles = False
        self._copies = copies

    def store(self, buffer: memoryview) -> Any:
        """What is to stand in an entry for a buffer."""
        part = self._copies.find(buffer)
        return part if part is not None else copied(buffer)

    def serial(self, part: object) -> int:
        """None."""
        return 0

    def refer(self, block: Block) -> None:
        """A handle was met, which has a block."""
        self.has_handles = True
        block.retain()
        self._copies.take_in(block)

    def need(self, resource: Resource[Any]) -> None:
        """Resources are not."""
        raise NeedsWorker(f"{resource!r} is built in workers only")


def copied(buffer: memoryview) -> Any:
    """A copy of a buffer, read-only if it is."""
    numpy = sys.modules.get("numpy")
    if numpy is None or buffer.nbytes < _LARGE_NBYTES:
        return bytes(buffer) if buffer.readonly else bytearray(buffer)
    copy = memoryview(numpy.frombuffer(buffer, numpy.uint8).copy())
    return copy.toreadonly() if buffer.readonly else copy


# ---------------------------------------------------------------------- results


def is_nobody_elses(values: list[Any], index: int) -> bool:
    """Whether a result is a plain array that nothing but the list has: then a copy of it could not be told from it."""
    numpy = sys.modules.get("numpy")
    if numpy is None or type(values[index]) is not numpy.ndarray or _references(values, index) > _OWN_REFERENCES:
        return False
    array = values[index]
    flags = array.flags
    return array.base is None and flags.owndata and flags.writeable and flags.c_contiguous and not array.dtype.hasobject


def _references(values: list[Any], index: int) -> int:
    return sys.getrefcount(values[index])


_OWN_REFERENCES = _references([object()], 0)
