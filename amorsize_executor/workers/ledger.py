"""Which blocks are with which worker, and until when.

A worker gets the descriptor of a block once, before the first chunk that refers to it, and is told when it may forget
the block. A block is in use by a chunk until the worker has said that the chunk is done with it, or is dead.

Results come in blocks of the worker. When nobody in this process has a view on one any more, its number goes back to
the worker with the next chunk.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from .. import machine
from . import blocks, protocol
from .channel import Frame, make_frame
from .warm import IDLE_S, Block, WarmBlocks

if TYPE_CHECKING:
    from .interfaces import Lease

#: This part of the memory limit, at most, is in blocks that are free.
_FREE_PART = 1 / 8
#: Blocks that a worker keeps, at most, as far as they are not in use: each takes two descriptors there.
_MOST_KNOWN = 24


class BlockLedger:
    """The blocks of one executor. Any thread; the lock is held for look-ups only.

    Attributes
    ----------
    store
        Where blocks for arguments come from.

    Parameters
    ----------
    memory_limit
        Bytes that the executor may use; None: what the machine allows.
    """

    def __init__(self, memory_limit: int | None) -> None:
        self._memory_limit = memory_limit
        self._free_limit: int | None = None
        self.store = WarmBlocks(self._free_nbytes)
        # Guards the attributes below.
        self._lock = threading.Lock()
        self._known: dict[int, dict[int, Block]] = {}  # by worker; the one used last is the last
        self._in_use: dict[int, dict[int, list[Block]]] = {}  # by worker and chunk
        self._freed: deque[tuple[int, int]] = deque()  # (worker, number) of results; filled by finalizers

    def _free_nbytes(self) -> int:
        if self._free_limit is None:
            self._free_limit = int((self._memory_limit or machine.memory_limit()) * _FREE_PART)
        return self._free_limit

    # ------------------------------------------------------------------ arguments

    def give(self, worker_id: int, chunk_id: int, used: Sequence[Block]) -> list[Frame]:
        """A chunk goes to a worker and refers to these blocks, one use of each; returns what must be sent before it."""
        if not used and not self._freed and not self._known:
            return []
        new: list[Block] = []
        forget: list[int] = []
        with self._lock:
            if used:
                chunks = self._in_use.setdefault(worker_id, {})
                before, chunks[chunk_id] = chunks.get(chunk_id, []), list(used)
                known = self._known.setdefault(worker_id, {})
                for block in used:
                    if known.pop(block.block_id, None) is None:
                        new.append(block)
                    known[block.block_id] = block
                forget = _forgettable(known)
            else:
                before = []
        for block in before:  # sent a second time
            block.release()
        messages: list[Frame] = [make_frame((protocol.FORGET_BLOCKS, forget))] if forget else []
        freed = self._take_freed(worker_id)
        if freed:
            messages.append(make_frame((protocol.RESULTS_FREED, freed)))
        try:
            for block in new:
                messages.append(make_frame((protocol.BLOCK, block.block_id), os.dup(block.fd)))
        except BaseException:
            for frame in messages:
                frame.close()
            self.forget_known(worker_id)
            self.done(worker_id, chunk_id)
            raise
        return messages

    def forget_known(self, worker_id: int) -> None:
        """The worker may lack any block: send all of them again."""
        with self._lock:
            self._known.pop(worker_id, None)

    def done(self, worker_id: int, chunk_id: int, kept: Iterable[int] = ()) -> None:
        """A worker needs the blocks of a chunk no more, but tasks have kept views on some."""
        with self._lock:
            used = self._in_use.get(worker_id, {}).pop(chunk_id, [])
        for block in used:
            if block.block_id in kept:
                block.keep()
            block.release()

    def worker_gone(self, worker_id: int) -> None:
        """A worker is dead; what it forked may live, and read on."""
        with self._lock:
            self._known.pop(worker_id, None)
            chunks = self._in_use.pop(worker_id, {})
        for used in chunks.values():
            for block in used:
                block.keep()
                block.release()

    # ------------------------------------------------------------------ results

    def reader(self, worker_id: int, number: int, block_fd: int) -> Lease:
        """Views of a block of results; when they are gone, the worker may use it again."""
        freed = partial(self._freed.append, (worker_id, number))
        return _reader(block_fd, freed if number else None)

    def unread(self, worker_id: int, number: int) -> None:
        """A block of results came that nobody wants."""
        if number:
            self._freed.append((worker_id, number))

    def _take_freed(self, worker_id: int) -> list[int]:
        if not self._freed:
            return []
        mine: list[int] = []
        with self._lock:
            for _ in range(len(self._freed)):
                of_worker, number = self._freed.popleft()
                if of_worker == worker_id:
                    mine.append(number)
                elif of_worker in self._known or of_worker in self._in_use:
                    self._freed.append((of_worker, number))
        return mine

    # ------------------------------------------------------------------ time, the end

    def trim(self) -> tuple[list[tuple[int, Frame]], float | None]:
        """Give up what was not used for long.

        Returns
        -------
        frames
            (worker, frame) to send.
        seconds
            When to come again; None if never.
        """
        wait = self.store.trim(time.monotonic())
        frames = []
        with self._lock:
            for worker_id, known in self._known.items():
                forget = _forgettable(known)
                if forget:
                    frames.append((worker_id, make_frame((protocol.FORGET_BLOCKS, forget))))
            if wait is None and any(self._known.values()):
                wait = IDLE_S
        return frames, wait

    def close(self) -> None:
        """The executor has ended."""
        for worker_id in list(self._in_use):
            self.worker_gone(worker_id)
        self.store.close()


def _forgettable(known: dict[int, Block]) -> list[int]:
    """Blocks that a worker need not know any longer; taken out of what it knows."""
    forget = [block_id for block_id, block in known.items() if block.is_closed]
    spare = len(known) - len(forget) - _MOST_KNOWN
    if spare > 0:
        forget += [block_id for block_id, block in known.items() if not block.is_closed and not block.n_uses][:spare]
    for block_id in forget:
        del known[block_id]
    return forget


def _reader(block_fd: int, freed: Callable[[], None] | None) -> Lease:
    view: memoryview | None = None

    def lease(block_id: int, start: int, stop: int) -> tuple[memoryview, int]:
        nonlocal view, freed
        if view is None:
            view = blocks.map_private(block_fd, blocks.size(block_fd))
            if freed is None:
                pass
            elif isinstance(view.obj, mmap.mmap):
                weakref.finalize(view.obj, freed).atexit = False
            else:
                freed()  # it was copied
        return view, 0

    return lease
