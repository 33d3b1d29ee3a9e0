"""A worker as the scheduler sees it: its state, its chunks, and what it has loaded.

Pure: the scheduler owns all of this.
"""

from __future__ import annotations

from collections.abc import Hashable
from enum import Enum
from typing import NamedTuple

from .planner import MAX_CHUNK_S, longest_chunk_s
from .work import Chunk

#: A chunk waits behind another one if what is left of that lasts at most so many times, by prediction, what the planner
#: makes the longest chunk: whoever has such chunks needs the next one in time, and behind longer ones the round trip
#: that this hides is under 1 %.
_PREFETCH_CHUNKS = 1.2


class State(Enum):
    """Where a worker is in its life."""

    STARTING = "starting"
    SPARE = "spare"
    READY = "ready"
    RETIRING = "retiring"


class Worker:
    """A worker that exists."""

    __slots__ = (
        "ahead", "asked_at", "chunks", "has_answered", "has_run", "has_successor", "held", "idle_since", "is_leaving",
        "known", "leaked_nbytes", "n_given", "state", "unloaded",
    )  # fmt: skip

    def __init__(self, now: float) -> None:
        self.state = State.STARTING
        self.asked_at = now
        self.chunks: dict[int, Chunk] = {}  # by chunk id, in the order given; one runs, the others wait
        self.n_given = 0  # items in its life, for max_tasks_per_child
        self.has_run = False  # some item of it was settled
        self.has_answered = False
        self.is_leaving = False  # it gets no more work, and leaves after what it has
        self.leaked_nbytes = 0  # by which its memory grew, if it leaves for that
        self.has_successor = False  # another worker was started to take its place
        self.idle_since = now
        self.known: set[Hashable] = set()  # functions of which it has given results
        self.held: dict[int, int] = {}  # bytes by resource, what was used last at the end; what it will have counts
        self.unloaded: set[int] = set()  # those of `held` that it has not told to have
        self.ahead: set[int] = set()  # those that it builds ahead of tasks: meanwhile it gets none


class WorkerView(NamedTuple):
    """What a worker looks like from outside.

    Attributes
    ----------
    worker_id
        Its number.
    state
        "starting", "spare" (it waits for the place of one that leaves), "loading" (resources, ahead of tasks), "idle",
        "busy" or "leaving".
    n_given
        Items that it was given in its life.
    held
        Bytes of the resources that it has.
    since
        When that state began, or the item that it runs, or the group of items, in seconds.
    item
        The item that it runs, or will next: (map or None, item or task); None if it has none.
    expected_s
        How long that, or its start, takes by prediction, in seconds; None if nobody knows.
    leaves_because
        Why it gets no more work; None if it does, or if there is no work for it.
    """

    worker_id: int
    state: str
    n_given: int
    held: dict[int, int]
    since: float
    item: tuple[int | None, int] | None
    expected_s: float | None
    leaves_because: str | None


def ends_soon(chunk: Chunk, overhead_s: float) -> bool:
    """Whether another chunk may wait behind this one, where a chunk costs `overhead_s` seconds beyond its items."""
    if chunk.loads:
        return False
    rest_s = chunk.rest_s
    if rest_s is None:
        return False
    return rest_s <= _PREFETCH_CHUNKS * MAX_CHUNK_S or rest_s <= _PREFETCH_CHUNKS * longest_chunk_s(overhead_s)


def rest(worker: Worker) -> list[tuple[Chunk, int]]:
    """Chunks of a worker that have items which can perhaps be taken back, and how many."""
    found = []
    running = 1  # the item that the first chunk is at
    for chunk in worker.chunks.values():
        if chunk.first_of is not None and not chunk.is_whole:
            running = 0  # it still loads the function
        n_items = chunk.n_left - (chunk.n_left if chunk.is_whole and running else running)
        running = 0
        if n_items > 0 and chunk.slot is not None and not chunk.is_exhausted:
            found.append((chunk, n_items))
    return found
