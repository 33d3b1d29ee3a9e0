"""The worker's side of blocks: private views for tasks, and blocks for results that are used again.

A task gets a private, copy-on-write view of the blocks that its arguments stand in. To map a block and to touch its
pages takes as long as to read it two or three times, so a mapping is kept for the next task, under two conditions that
together are what a fresh mapping gives:

* nobody has a view on it any more (an array in a global variable would see the next task's data);
* its pages are those of the block: pages that a task wrote to are the kernel's private copies, which
  ``/proc/self/pagemap`` tells apart and ``madvise`` drops. Where there is no such file, they are always dropped; where
  ``madvise`` does not drop them, a block is always mapped afresh. The first write to a page is a page fault: while the
  process had none, there is nothing to look for.

After each chunk the parent is told which blocks a task has kept a view on, since those must not be written to again.

Owned by the worker's main thread.
"""

from __future__ import annotations

import mmap
import os
import resource
import sys
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from . import blocks
from .warm import SHARE_NBYTES, best_fit

#: Parts smaller than this, in bytes, are copied: that takes less time than a mapping and its page faults.
_MAP_NBYTES = 64 << 10
#: Bits of the highest byte of a page's entry in the page map: in memory, swapped out, page of a file.
_PRESENT_OR_SWAPPED, _OF_FILE = 0xC0, 0x20
#: Bytes that stand for pages which are not private copies.
_CLEAN = bytes(b for b in range(256) if not b & _PRESENT_OR_SWAPPED or b & _OF_FILE)
#: What private pages become clean by; elsewhere it is a hint that may do nothing.
_CAN_DROP = sys.platform == "linux" and hasattr(mmap, "MADV_DONTNEED")
_ENTRY_NBYTES = 8
#: Large `bytes` that were read from blocks are kept up to this size in all, in bytes.
_CACHE_NBYTES = 256 << 20

#: Blocks with results that the parent may still read, and free ones, at most; each is a descriptor.
_MOST_RESULTS = 48
#: ... and this part of the descriptors that the process may have.
_DESCRIPTORS_PART = 1 / 8
#: This part of the machine's memory, at most, in all of them.
_RESULTS_PART = 1 / 32
_ALIGNMENT = 64


class Mapped:
    """A block, and a private mapping of it.

    Parameters
    ----------
    fd
        Its descriptor, which is this object's from now on.
    """

    __slots__ = ("clean_at", "fd", "is_used", "mapping")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.mapping: mmap.mmap | None = None
        self.is_used = False  # a task had a view on the mapping since it was last cleaned
        self.clean_at = -1  # page faults of this process when no page of the mapping was a private copy

    def close(self) -> None:
        """Forget it; views on it stay valid."""
        self.mapping = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class MappedBlocks:
    """Blocks that tasks of this process read, by number.

    Attributes
    ----------
    cache
        Large `bytes` that were read from them.
    is_callers
        Whether this process has made the blocks: its tasks are run for a map by who iterates over that.
    """

    def __init__(self, *, is_callers: bool = False) -> None:
        self.is_callers = is_callers
        self._blocks: dict[int, Mapped] = {}
        self._touched: set[int] = set()  # since the last `settle`
        self._kept: set[int] = set()  # of these, those with views on a mapping that was replaced
        self.cache = _BytesCache()
        self._page_map = _PageMap()

    def add(self, block_id: int, fd: int) -> None:
        """Take in a block; the descriptor is this object's from now on."""
        self.take_in(block_id, Mapped(fd))

    def take_in(self, block_id: int, block: Mapped) -> None:
        """Take in a block that may have a mapping already."""
        self.drop((block_id,))
        self._blocks[block_id] = block

    def give_back(self, block_id: int) -> Mapped:
        """Forget a block after `settle`; who gets it may use its mapping again."""
        block = self._blocks.pop(block_id)
        if block.mapping is not None and _has_views(block):
            block.mapping = None
        return block

    def drop(self, block_ids: Iterable[int]) -> None:
        """Forget blocks; views on them stay valid."""
        for block_id in block_ids:
            block = self._blocks.pop(block_id, None)
            if block is not None:
                block.close()
                self.cache.clear()

    def has_all(self, block_ids: Iterable[int]) -> bool:
        """Whether all of these blocks are here."""
        return self._blocks.keys() >= set(block_ids)

    def lease(self, block_id: int, start: int, stop: int) -> tuple[memoryview, int]:
        """A private, writable view that has bytes `start` to `stop` of a block, and the offset where it begins."""
        block = self._blocks[block_id]
        if stop - start < _MAP_NBYTES:
            return memoryview(blocks.read_copy(block.fd, start, stop)), start
        self._touched.add(block_id)
        if block.mapping is not None and not self._is_fresh(block, start, stop):
            if _has_views(block):  # whoever has one keeps it
                self._kept.add(block_id)
            block.mapping = None
        if block.mapping is None:
            block.mapping = blocks.try_map(block.fd, blocks.size(block.fd))
            if block.mapping is None:
                return memoryview(blocks.read_copy(block.fd, start, stop)), start
            block.clean_at = _page_faults()
        block.is_used = True
        return memoryview(block.mapping), 0

    def _is_fresh(self, block: Mapped, start: int, stop: int) -> bool:
        """Whether a part of a mapping is as good as one of a fresh mapping, after cleaning it if need be."""
        assert block.mapping is not None
        if _has_views(block) or len(block.mapping) < stop:
            return False
        return not block.is_used or self._clean(block, start, stop)

    def _clean(self, block: Mapped, start: int, stop: int) -> bool:
        """Give a part of a block's mapping the content of its file again; False if that is not possible here."""
        assert block.mapping is not None
        if block.clean_at == _page_faults():
            return True
        if not self._page_map.clean(block.mapping, start, stop):
            return False
        if start == 0 and stop == len(block.mapping):
            block.clean_at = _page_faults()
        return True

    def close(self) -> None:
        """Forget all blocks."""
        self.drop(list(self._blocks))
        self._page_map.close()

    def settle(self) -> tuple[int, ...]:
        """A chunk is done: make its mappings ready for the next; returns the blocks that somebody has a view on."""
        kept, self._kept = self._kept, set()
        for block_id in self._touched:
            block = self._blocks.get(block_id)
            if block is None or block.mapping is None:
                continue
            if _has_views(block):
                kept.add(block_id)
            elif self._clean(block, 0, len(block.mapping)):
                block.is_used = False
            else:
                block.mapping = None
        self._touched.clear()
        return tuple(kept)


class _BytesCache(OrderedDict[int, bytes]):
    """Large `bytes` of arguments: those used last, within a bound, until the parent gives up blocks."""

    def __setitem__(self, serial: int, obj: bytes) -> None:
        super().__setitem__(serial, obj)
        while len(self) > 1 and sum(map(len, self.values())) > _CACHE_NBYTES:
            self.popitem(last=False)


def _references(block: Mapped) -> int:
    return sys.getrefcount(block.mapping)


def _own_references() -> int:
    """What `_references` gives when nobody has a view; it depends on the interpreter's version."""
    block = Mapped(-1)
    block.mapping = mmap.mmap(-1, mmap.PAGESIZE)
    return _references(block)


_OWN_REFERENCES = _own_references()


def _has_views(block: Mapped) -> bool:
    """Whether somebody can still read or write the block's mapping: each view, however derived, has a reference."""
    return _references(block) > _OWN_REFERENCES


def _page_faults() -> int:
    """How often this process, or the kernel for it, met a page that it had to find or to copy."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


class _PageMap:
    """Finds and drops the pages of private mappings that were written to."""

    def __init__(self) -> None:
        self._fd = -1  # of /proc/self/pagemap

    def close(self) -> None:
        """Give up the descriptor."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def clean(self, mapping: mmap.mmap, start: int, stop: int) -> bool:
        """Give a part of a mapping the content of its file again; False if that is not possible here."""
        if not _CAN_DROP:
            return False
        first = start - start % mmap.PAGESIZE
        nbytes = min(stop + -stop % mmap.PAGESIZE, len(mapping)) - first
        if self._is_written(mapping, first, nbytes):
            mapping.madvise(mmap.MADV_DONTNEED, first, nbytes)
        return True

    def _is_written(self, mapping: mmap.mmap, first: int, nbytes: int) -> bool:
        """Whether a part of a private mapping has pages of its own; True if that cannot be told."""
        import ctypes

        address = ctypes.addressof(ctypes.c_char.from_buffer(mapping)) + first
        try:
            if self._fd < 0:
                self._fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
            n_pages = -(-nbytes // mmap.PAGESIZE)
            entries = os.pread(self._fd, n_pages * _ENTRY_NBYTES, address // mmap.PAGESIZE * _ENTRY_NBYTES)
        except OSError:  # no descriptor left, or a sandbox without it
            return True
        high = _ENTRY_NBYTES - 1 if sys.byteorder == "little" else 0
        return len(entries) < n_pages * _ENTRY_NBYTES or bool(entries[high::_ENTRY_NBYTES].translate(None, _CLEAN))


# ---------------------------------------------------------------------- objects that are made again and again

#: Options of glibc's mallopt, and the largest value of the second.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MOST_MMAP_NBYTES = -1, -3, 32 << 20
#: Objects smaller than this, in bytes, are no matter; and no more than this is kept.
_LEAST_REMADE_NBYTES, _MOST_KEPT_NBYTES = 1 << 20, 512 << 20
_kept_nbytes = 0


def expect_again(nbytes: int) -> None:
    """An object of about so many bytes is going to be unpickled for one chunk after another.

    Some objects (a forest's trees) copy their buffers into memory of their own. glibc gives such memory back to the
    kernel as it is freed, and gets it again page by page: 20 ms for 50 MB, where the copy takes 4 ms. So it is told
    to keep that much.
    """
    global _kept_nbytes
    if nbytes <= max(_kept_nbytes, _LEAST_REMADE_NBYTES):
        return
    _kept_nbytes = nbytes
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_MMAP_THRESHOLD, _MOST_MMAP_NBYTES)
    mallopt(_TRIM_THRESHOLD, min(2 * nbytes, _MOST_KEPT_NBYTES))


# ---------------------------------------------------------------------- results


class ResultBlock(blocks.File):
    """A numbered block of results."""

    __slots__ = ("block_id",)

    def __init__(self, block_id: int, fd: int) -> None:
        super().__init__(fd)
        self.block_id = block_id


class ResultBlocks:
    """Blocks for results: lent to the parent, which tells when nobody reads them any more, and used again."""

    def __init__(self) -> None:
        self._free: list[ResultBlock] = []  # the one freed last is the last
        self._lent: OrderedDict[int, ResultBlock] = OrderedDict()
        self._nbytes = 0
        self._last_id = 0
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = max(min(_MOST_RESULTS, int(soft * _DESCRIPTORS_PART)), 2)
        self._limit_nbytes = int(os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE * _RESULTS_PART)

    @property
    def is_empty(self) -> bool:
        """Whether no block is kept."""
        return not self._free and not self._lent

    def take(self, nbytes: int) -> ResultBlock:
        """A block to write so many bytes and perhaps more to."""
        block = best_fit(reversed(self._free), nbytes)
        if block is not None:
            self._free.remove(block)
            self._nbytes -= block.nbytes
            return block
        self._last_id += 1
        try:
            return ResultBlock(self._last_id, blocks.create(nbytes))
        except OSError:
            if self.is_empty:
                raise
            self.forget()
        return ResultBlock(self._last_id, blocks.create(nbytes))

    def lend(self, block: ResultBlock) -> None:
        """The parent gets a block."""
        self._lent[block.block_id] = block
        self._nbytes += block.nbytes
        self._trim()

    def put_back(self, block: ResultBlock) -> None:
        """A block that was taken is not needed."""
        self._free.append(block)
        self._nbytes += block.nbytes
        self._trim()

    def freed(self, block_ids: Sequence[int]) -> None:
        """Nobody reads these blocks any more."""
        for block_id in block_ids:
            block = self._lent.pop(block_id, None)
            if block is not None:
                self._free.append(block)

    def forget(self) -> None:
        """Keep none: free ones go now, lent ones with their last reader."""
        for block in (*self._free, *self._lent.values()):
            block.close()
        self._free.clear()
        self._lent.clear()
        self._nbytes = 0

    def _trim(self) -> None:
        while len(self._free) + len(self._lent) > self._most or self._nbytes > self._limit_nbytes:
            block = self._free.pop(0) if self._free else self._lent.popitem(last=False)[1]
            self._nbytes -= block.nbytes
            block.close()


class ResultWriter:
    """Puts the buffers of a record one behind another into a block of results."""

    __slots__ = ("_block", "_pool", "nbytes")

    def __init__(self, pool: ResultBlocks) -> None:
        self._pool = pool
        self._block: ResultBlock | None = None
        self.nbytes = 0

    def store(self, buffer: memoryview) -> tuple[int, int, bool, int]:
        """Store a buffer, and return what stands for it in an entry: offset, size, is read-only, 0 for this block."""
        if self._block is None:
            self._block = self._pool.take(buffer.nbytes)
        block, offset = self._block, self.nbytes + -self.nbytes % _ALIGNMENT
        try:
            block.write(offset, buffer)
        except OSError:
            if self._pool.is_empty:
                raise
            self._pool.forget()  # there may be room now
            block.write(offset, buffer)
        self.nbytes = offset + buffer.nbytes
        return offset, buffer.nbytes, buffer.readonly, 0

    def append(self, buffer: memoryview) -> tuple[int, int, bool, int] | None:
        """The same for a pickle; None if it fits a frame."""
        return self.store(buffer) if buffer.nbytes >= SHARE_NBYTES else None

    def serial(self, part: object) -> int:
        """None."""
        return 0

    def lend(self) -> tuple[int | None, int]:
        """A descriptor of the block for the parent (now the caller's) and its number; None if nothing was stored."""
        block, self._block = self._block, None
        if block is None:
            return None, 0
        try:
            fd = os.dup(block.fd)
        except OSError:
            self._pool.put_back(block)
            raise
        self._pool.lend(block)
        return fd, block.block_id

    def close(self) -> None:
        """Take the block back if it was not lent."""
        if self._block is not None:
            self._pool.put_back(self._block)
            self._block = None
