"""What parent and worker say to each other.

A message is a tuple whose first element is one of the codes below. The worker also writes, in memory that both
share, what it is running and the records that it has not sent yet (`StatusBlock`); so when it dies, the parent
knows the task that was running and has the results of those before it.

Parent to worker::

    (INIT, entry or None)                        initializer and its arguments; descriptors come in two frames
    (ATTACH, what)                               what: "status", "claims" (once for each slot), "faults" or "life"; the
                                                 frame's block is it
    (RUN, chunk_id, slot, functions, fn_ids, kind, items, block_ids)
                                                 slot: (whose claims are for this chunk, how it is claimed: see
                                                 SINGLY), or None if it needs none;
                                                 functions: ((fn_id, entry), ...) that the worker may not have;
                                                 fn_ids: one id for all items, or a list; a function with a negative
                                                 id has state: it is unpickled anew for the chunk, and if the ids are
                                                 a list for each item; kind: see SCALAR_ITEMS;
                                                 block_ids: blocks that the entries refer to
    (BLOCK, block_id)                            the frame's block is to be kept: entries will refer to it
    (FORGET_BLOCKS, block_ids)                   no entry will refer to them any more
    (RESULTS_FREED, numbers)                     blocks of results that nobody reads any more
    (LOAD, resource_id, entry, block_ids)        build a resource ahead of tasks; entry: of its handle; block_ids:
                                                 blocks that it refers to, in use as by a chunk of number -resource_id
    (CLOSE_RESOURCES, resource_ids)              no task that was sent needs them
    (LOGGING, wanted, is_forked)                 what the parent's logging takes (as `logs.Wanted`), or None: nothing;
                                                 is_forked: handlers that are there before INIT are the parent's
    (EXIT,)

Worker to parent::

    (READY, pid)
    (INIT_FAILED, entry)                         entry of (exception, traceback text)
    (RESULTS, chunk_id, offset, n, elapsed_ns, cpu_ns, values)      values: plain scalars; times are -1 if not known
    (OUTCOMES, chunk_id, offset, n, elapsed_ns, cpu_ns, outcomes, number)
                                                 outcomes: [(kind, entry), ...]; number: of the block that came with
                                                 them, to be told in RESULTS_FREED
    (BLOCKS_DONE, chunk_id, block_ids)           this chunk's blocks are not needed any more; tasks have kept views on
                                                 those named
    (NEED_FUNCTIONS, chunk_id)                   the worker lacks a function or a block of this chunk
    (CUT, chunk_id)                              what the parent took back of this chunk will not run here
    (MEMORY, chunk_id, offset, growth, used, peak)
                                                 by how many bytes the worker grew while it ran items of a function, up
                                                 to this one; what it uses now, but for files and blocks; and its
                                                 largest resident memory so far; before the item's result
    (LOADED, resource_id, elapsed_ns, nbytes)    a resource was built: how long that took, and by how much memory grew
    (LOAD_DONE, resource_id, entry or None)      the answer to LOAD; entry of (exception, traceback text)
    (LOG, entry, n_lost)                         entry of the fields of a log record; n_lost: records that were dropped
                                                 before it
    (TAKEN, chunk_id, n_items)                   so many of the chunk's last items were taken back where the worker is;
                                                 from pools that cannot do so at once (see `pools`)
"""

from __future__ import annotations

import io
import marshal
import mmap
import os
import sys

from .channel import FRAME_NBYTES

TYPE_CHECKING = False  # as of typing: see the package's docstring
if TYPE_CHECKING:
    from typing import Any

INIT, ATTACH, RUN, EXIT, BLOCK, FORGET_BLOCKS, RESULTS_FREED, LOAD, CLOSE_RESOURCES = 1, 2, 3, 4, 5, 6, 7, 8, 9
LOGGING = 10
READY, INIT_FAILED, RESULTS, OUTCOMES, NEED_FUNCTIONS, MEMORY, CUT, BLOCKS_DONE = 11, 12, 13, 14, 15, 16, 17, 18
LOADED, LOAD_DONE, LOG, TAKEN = 19, 20, 21, 22

#: Kinds of outcome of one item.
VALUE, ERROR, SKIPPED = 0, 1, 2

#: How items are claimed: one by one (submitted tasks, of which each may block), in groups of a short time, or all.
SINGLY, IN_GROUPS, WHOLE = 0, 1, 2

#: How the items of a chunk travel: plain values in the message (one argument each, or a tuple of arguments each), or
#: entries. An entry is None (skip this item), a 1-tuple of a tuple of scalar arguments, or what `serialize.encode`
#: makes of (arguments, keyword arguments).
SCALAR_ITEMS, SCALAR_TUPLES, ENTRIES = 0, 1, 2

#: What the journal of a group holds: values or outcomes one behind another as `marshal` writes them, or a vector.
MARSHALLED, MARSHALLED_OUTCOMES, INTEGERS, FLOATS = 0, 1, 2, 3


class StatusBlock:
    """Memory shared by the parent and one worker; written by the worker, read by the parent after its death.

    Words of 8 bytes: chunk id, offset and count of the items that run now (chunk id 0: none), bytes of records that
    are written but perhaps not sent, number of results in the journal, what it holds (`MARSHALLED` ...), and what a
    vector holds where no result is. The records follow, then the journal of the group of short items that runs.

    Results of a vector are not counted one by one, which takes long beside the shortest items: it is filled beforehand
    with a random number that no other process knows, and what still has that is no result.
    """

    HEADER_NBYTES = 64
    JOURNAL_NBYTES = 32 << 10
    NBYTES = HEADER_NBYTES + FRAME_NBYTES + JOURNAL_NBYTES

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, self.NBYTES)
        self._view = memoryview(self._map)
        self.words = self._view[: self.HEADER_NBYTES].cast("Q")
        self.records = self._view[self.HEADER_NBYTES : self.HEADER_NBYTES + FRAME_NBYTES]
        self.journal = self._view[self.HEADER_NBYTES + FRAME_NBYTES :]
        self.integers = self.journal.cast("q")
        self.floats = self.journal.cast("d")
        self._filling: memoryview | None = None

    def begin_vector(self, held: int, n: int) -> memoryview[Any]:
        """Let the journal hold up to `n` results, all `INTEGERS` or all `FLOATS`; returns where they go."""
        if self._filling is None:
            filler = self.words[6] = int.from_bytes(os.urandom(8), sys.byteorder) >> 1
            self._filling = memoryview(filler.to_bytes(8, sys.byteorder) * len(self.integers)).cast("q")
        self.integers[:n] = self._filling[:n]
        self.words[5] = held
        return self.integers if held == INTEGERS else self.floats

    @property
    def n_kept(self) -> int:
        """Results in the journal."""
        if self.words[5] not in (INTEGERS, FLOATS):
            return self.words[4]
        vector = self.integers[: self.words[2]].tolist()
        filler = self.words[6]
        return vector.index(filler) if filler in vector else len(vector)

    def running(self) -> tuple[int, int, int] | None:
        """(chunk id, offset, count) of the item that runs, or None; the count is 0 or 1."""
        chunk_id, offset, count = self.words[0], self.words[1], self.words[2]
        if not chunk_id:
            return None
        n_kept = min(self.n_kept, count)
        return (chunk_id, offset + n_kept, min(count - n_kept, 1))  # the others of a group have not begun

    def kept(self) -> tuple[Any, ...] | None:
        """The message of results that are in the journal, or None."""
        n_kept = self.n_kept
        if not self.words[0] or not n_kept:
            return None
        held = self.words[5]
        if held in (INTEGERS, FLOATS):
            values = (self.integers if held == INTEGERS else self.floats)[:n_kept].tolist()
        else:
            file = io.BytesIO(self.journal)
            values = [marshal.load(file) for _ in range(n_kept)]
        code = OUTCOMES if held == MARSHALLED_OUTCOMES else RESULTS
        return (code, self.words[0], self.words[1], n_kept, -1, -1, values)

    def release_vectors(self) -> None:
        """Let who goes on to write results in a vector fail: in a copy of the process."""
        self.integers.release()
        self.floats.release()

    def unsent(self) -> bytes:
        """Records that were written and perhaps not sent."""
        return bytes(self.records[: self.words[3]])

    def close(self) -> None:
        """Unmap."""
        self.release_vectors()
        self.words.release()
        self.records.release()
        self.journal.release()
        self._view.release()
        self._map.close()
