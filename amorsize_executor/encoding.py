"""Tasks, items and results on their way: from objects to frames, and back.

An item that cannot be pickled is left out of its chunk (its place holds None), so it fails alone; its error is kept
with the map. Results that cannot be unpickled fail alone, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any

from .failures import culprit, no_descriptors, with_cause
from .results import Failed, MapJob
from .workers import blocks, protocol, serialize
from .workers.channel import LOST, Frame, make_frame
from .workers.process import add_note, not_picklable

if TYPE_CHECKING:
    from .decisions.work import Chunk
    from .workers.functions import Function


class Task:
    """A submitted call that is not settled; its arguments are as they were when it was submitted.

    Raises
    ------
    SerializationError
        From the constructor, if an argument cannot be pickled.
    """

    __slots__ = ("args", "block_fd", "entry", "function", "future", "has_begun")

    def __init__(self, future: Future[Any], function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.future = future
        self.function = function
        self.args: tuple[Any, ...] | None = None  # scalars, sent as they are
        self.entry: serialize.Entry | None = None  # else: pickled
        self.block_fd = -1  # what `entry` refers to; owned by this task
        self.has_begun = False  # the future is running
        if not kwargs and serialize.is_scalar(args):
            self.args = args
        else:
            what = f"an argument of {function.name}"
            self.entry, block_fd = encode_one((args, kwargs), lambda: f"{what} ({culprit(args, kwargs)})")
            self.block_fd = -1 if block_fd is None else block_fd

    def close(self) -> None:
        """Give up the block."""
        if self.block_fd >= 0:
            os.close(self.block_fd)
            self.block_fd = -1


def encode_one(obj: object, what: Callable[[], str]) -> tuple[serialize.Entry, int | None]:
    """Entry of an object and the block that it refers to (the caller's to close); `what` names it in an error."""
    block = blocks.BlockWriter()
    try:
        return serialize.encode(obj, block), block.detach()
    except Exception as error:
        raise not_picklable(what(), error) from error.__cause__
    finally:
        block.close()


def encode_tasks(chunk: Chunk, tasks: Sequence[Task | None], known: set[int]) -> Frame | None:
    """The frame of submitted tasks; None if all were cancelled.

    Parameters
    ----------
    chunk
        The chunk.
    tasks
        In its order; None stands for one that was cancelled. At most one has a block.
    known
        Functions that the worker should have; those that are sent along are added.
    """
    kept = [task for task in tasks if task is not None]
    if not kept:
        return None
    functions: dict[int, bytes] = {}
    for task in kept:
        function = task.function
        if function.fn_id not in known:
            functions[function.fn_id] = function.data
    are_plain = len(kept) == len(tasks) and all(task.args is not None for task in kept)
    items: list[Any]
    if are_plain:
        kind, items = protocol.SCALAR_TUPLES, [task.args for task in kept]
    else:
        kind, items = protocol.ENTRIES, [_entry_of(task) for task in tasks]
    fn_ids = [(task or kept[0]).function.fn_id for task in tasks]
    block_fd = next((os.dup(task.block_fd) for task in kept if task.block_fd >= 0), None)
    known.update(functions)
    same = fn_ids[0] if len(set(fn_ids)) == 1 and fn_ids[0] > 0 else fn_ids
    return make_frame(
        (protocol.RUN, chunk.chunk_id, chunk.claims, tuple(functions.items()), same, kind, items), block_fd
    )


def _entry_of(task: Task | None) -> Any:
    if task is None:
        return None
    return task.entry if task.args is None else (task.args,)


def encode_items(chunk: Chunk, job: MapJob, known: set[int]) -> tuple[Frame, float | None]:
    """The frame of items of a map, and the mean size of what they carry in bytes (None: small)."""
    function = job.function
    functions = () if function.fn_id in known else ((function.fn_id, function.data),)
    items = job.take_items(chunk.items)
    nbytes = None
    if serialize.are_scalars(items):
        kind = protocol.SCALAR_TUPLES if job.is_star else protocol.SCALAR_ITEMS
        frame = make_frame((protocol.RUN, chunk.chunk_id, chunk.claims, functions, function.fn_id, kind, items))
    else:
        block = blocks.BlockWriter()
        try:
            entries = [_encode_item(job, i, item, block) for i, item in zip(chunk.items, items, strict=True)]
            nbytes = sum(serialize.entry_nbytes(e) for e in entries if e is not None) / len(entries)
            message = (protocol.RUN, chunk.chunk_id, chunk.claims, functions, function.fn_id, protocol.ENTRIES, entries)
            frame = make_frame(message, block.detach())
        finally:
            block.close()
    known.add(function.fn_id)
    job.n_chunks += 1
    return frame, nbytes


def _encode_item(job: MapJob, index: int, item: Any, block: blocks.BlockWriter) -> serialize.Entry | None:
    args = item if job.is_star else (item,)
    try:
        return serialize.encode((args, {}), block)
    except Exception as error:
        what = f"item {index} of map({job.function.name}) ({culprit(args, {})})"
        job.local_errors[index] = not_picklable(what, error)
        return None


def decode_outcomes(
    job: MapJob | None, items: Sequence[int], outcomes: list[tuple[int, Any]], block_fd: int | None
) -> tuple[list[Any], int]:
    """Results of items (`Failed` where there is none), and how many of them did not run.

    Parameters
    ----------
    job
        The map; None for submitted tasks.
    items
        Indices or task ids.
    outcomes
        What the worker sent for each.
    block_fd
        The block that they refer to; `LOST` if it could not be received.
    """
    values: list[Any] = []
    n_skipped = 0
    mapped: memoryview | None = None

    def view() -> memoryview:
        nonlocal mapped
        if block_fd is None or block_fd == LOST:
            raise no_descriptors()
        if mapped is None:
            mapped = blocks.map_private(block_fd, blocks.size(block_fd))
        return mapped

    for index, (kind, entry) in zip(items, outcomes, strict=True):
        if kind == protocol.SKIPPED:
            n_skipped += 1
            error = job.local_errors.get(index) if job is not None else None
            values.append(Failed(error or CancelledError()))
            continue
        try:
            value = serialize.decode(entry, view)
            values.append(Failed(with_cause(*value)) if kind == protocol.ERROR else value)
        except BaseException as error:  # whatever the unpickled code raises
            values.append(Failed(add_note(error, "raised while the result of the task was unpickled")))
    return values, n_skipped
