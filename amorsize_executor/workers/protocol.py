"""What parent and worker say to each other.

A message is a tuple whose first element is one of the codes below. The worker also writes, in memory that both
share, what it is running and the records that it has not sent yet (`StatusBlock`); so when it dies, the parent
knows the task that was running and has the results of those before it.

Parent to worker::

    (INIT, entry or None)                        initializer and its arguments; descriptors come in two frames
    (ATTACH, what)                               what: "status" or "faults"; the frame's block is it
    (RUN, chunk_id, functions, fn_ids, kind, items)
                                                 functions: ((fn_id, entry), ...) that the worker may not have;
                                                 fn_ids: one id for all items, or a list; kind: see SCALAR_ITEMS
    (EXIT,)

Worker to parent::

    (READY, pid)
    (INIT_FAILED, entry)                         entry of (exception, traceback text)
    (RESULTS, chunk_id, offset, n, elapsed_ns, cpu_ns, values)      values: plain scalars
    (OUTCOMES, chunk_id, offset, n, elapsed_ns, cpu_ns, outcomes)   outcomes: [(kind, entry), ...]
    (NEED_FUNCTIONS, chunk_id)                   the worker has forgotten a function of this chunk
    (MEMORY, nbytes)                             peak resident memory has grown
"""

from __future__ import annotations

import mmap

from .channel import FRAME_NBYTES

INIT, ATTACH, RUN, EXIT = 1, 2, 3, 4
READY, INIT_FAILED, RESULTS, OUTCOMES, NEED_FUNCTIONS, MEMORY = 11, 12, 13, 14, 15, 16

#: Kinds of outcome of one item.
VALUE, ERROR, SKIPPED = 0, 1, 2

#: How the items of a chunk travel: plain values in the message (one argument each, or a tuple of arguments each), or
#: entries. An entry is None (skip this item), a 1-tuple of a tuple of scalar arguments, or what `serialize.encode`
#: makes of (arguments, keyword arguments).
SCALAR_ITEMS, SCALAR_TUPLES, ENTRIES = 0, 1, 2


class StatusBlock:
    """Memory shared by the parent and one worker; written by the worker, read by the parent after its death.

    Words of 8 bytes: chunk id, offset and count of the items that run now (chunk id 0: none), bytes of records that
    are written but perhaps not sent. The records follow.
    """

    HEADER_NBYTES = 64
    NBYTES = HEADER_NBYTES + FRAME_NBYTES

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, self.NBYTES)
        self._view = memoryview(self._map)
        self.words = self._view[: self.HEADER_NBYTES].cast("Q")
        self.records = self._view[self.HEADER_NBYTES :]

    def running(self) -> tuple[int, int, int] | None:
        """(chunk id, offset, count) of the items that run, or None."""
        chunk_id, offset, count = self.words[0], self.words[1], self.words[2]
        return (chunk_id, offset, count) if chunk_id else None

    def unsent(self) -> bytes:
        """Records that were written and perhaps not sent."""
        return bytes(self.records[: self.words[3]])

    def close(self) -> None:
        """Unmap."""
        self.words.release()
        self.records.release()
        self._view.release()
        self._map.close()
