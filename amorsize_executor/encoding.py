"""Tasks, items and results on their way: from objects to frames, and back.

An item that cannot be pickled is left out of its chunk (its place holds None), so it fails alone; its error is kept
with the map. Results that cannot be unpickled fail alone, too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, NamedTuple

from .failures import culprit, with_cause
from .results import Failed, MapJob
from .workers import blocks, bulk, protocol, serialize
from .workers.channel import Frame, make_frame
from .workers.process import add_note, not_picklable
from .workers.warm import Block, BlockWriter, StoreFull, WarmBlocks

if TYPE_CHECKING:
    from .decisions.work import Chunk
    from .workers.functions import Function
    from .workers.interfaces import Lease
    from .workers.resources import Resource


#: Libraries whose objects tell their size by an attribute that costs nothing.
_SIZED_BY_NBYTES = frozenset({"numpy", "pandas", "pyarrow"})


class Task:
    """A submitted call that is not settled; its arguments are as they were when it was submitted.

    When tasks that wait have filled the memory for blocks, a task with large arguments keeps them as they are, and
    stores them when it is sent.

    Raises
    ------
    SerializationError
        From the constructor, if an argument cannot be pickled.
    """

    __slots__ = (
        "args", "blocks", "entry", "error", "function", "future", "has_begun", "resources", "submitted_at", "timeout_s",
        "unstored",
    )  # fmt: skip

    def __init__(
        self,
        future: Future[Any],
        function: Function,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        store: WarmBlocks,
    ) -> None:
        self.future = future
        self.function = function
        self.args: tuple[Any, ...] | None = None  # scalars, sent as they are
        self.entry: serialize.Entry | None = None  # else: pickled
        self.blocks: Sequence[Block] = ()  # what `entry` refers to, one use of each
        self.unstored: tuple[tuple[Any, ...], dict[str, Any]] | None = None  # else: for later
        self.resources = function.resources  # handles of those that it needs
        self.error: Exception | None = None  # why they could not be stored later
        self.has_begun = False  # the future is running
        self.submitted_at = 0.0  # in seconds
        self.timeout_s: float | None = None  # what it may take from its submission on
        if not kwargs and serialize.is_scalar(args):
            self.args = args
        else:
            try:
                self._store(args, kwargs, BlockWriter(store, can_wait=True))
            except StoreFull:
                self.unstored = args, kwargs

    @property
    def is_large(self) -> bool:
        """Whether its arguments stand in blocks, or will."""
        return bool(self.blocks) or self.unstored is not None

    def _store(self, args: tuple[Any, ...], kwargs: dict[str, Any], writer: BlockWriter) -> None:
        try:
            has_bulk = bulk.is_among(args) or bulk.is_among(kwargs.values())
            self.entry = serialize.encode((args, kwargs), writer, append=writer.append, has_bulk=has_bulk)
            self.blocks = writer.detach()
            if writer.needs:
                self.resources = (*self.resources, *writer.needs.values())
        except StoreFull:
            self.resources = (*self.resources, *writer.needs.values())  # those that were met
            raise
        except Exception as error:
            what = f"an argument of {self.function.name} ({culprit(args, kwargs)})"
            raise not_picklable(what, error) from error.__cause__
        finally:
            writer.close()

    def store_now(self, store: WarmBlocks) -> None:
        """It is about to be sent: store what was left for later."""
        assert self.unstored is not None
        args, kwargs = self.unstored
        try:
            self._store(args, kwargs, BlockWriter(store))
            self.unstored = None
        except Exception as error:  # it is sent as one to skip, and gets this for its result
            self.error = error

    def close(self) -> None:
        """Give up the blocks."""
        blocks, self.blocks = self.blocks, ()
        for block in blocks:
            block.release()


class Parcel(NamedTuple):
    """A chunk to send.

    Attributes
    ----------
    frame
        The message.
    used
        The blocks that it refers to, one use of each.
    item_nbytes
        What an item of it carries, in bytes, on the average; None: little.
    resources
        Handles of the resources that its items were found to need.
    """

    frame: Frame
    used: Sequence[Block] = ()
    item_nbytes: float | None = None
    resources: Sequence[Resource[Any]] = ()


def encode_one(obj: object, what: Callable[[], str]) -> tuple[serialize.Entry, int | None]:
    """Entry of an object and the block that it refers to (the caller's to close); `what` names it in an error."""
    block = blocks.BlockWriter()
    try:
        return serialize.encode(obj, block), block.detach()
    except Exception as error:
        raise not_picklable(what(), error) from error.__cause__
    finally:
        block.close()


def encode_tasks(chunk: Chunk, tasks: Sequence[Task | None], known: set[int], store: WarmBlocks) -> Parcel | None:
    """The parcel of submitted tasks; None if all were cancelled.

    Parameters
    ----------
    chunk
        The chunk.
    tasks
        In its order; None stands for one that was cancelled.
    known
        Functions that the worker should have; those that are sent along are added.
    store
        Where blocks come from.
    """
    kept = [task for task in tasks if task is not None]
    if not kept:
        return None
    functions: dict[int, serialize.Entry] = {}
    fn_ids: list[int] = []
    for task in tasks:
        function = (task or kept[0]).function
        if task is not None and task.unstored is not None:
            task.store_now(store)
        fn_id = function.fn_id
        fn_ids.append(fn_id)
        if fn_id not in known:
            functions[fn_id] = function.data
    items: list[Any] = [task.args for task in kept]
    if len(kept) == len(tasks) and None not in items:
        kind = protocol.SCALAR_TUPLES
    else:
        kind, items = protocol.ENTRIES, [_entry_of(task) for task in tasks]
    same = fn_ids[0] if len(set(fn_ids)) == 1 and fn_ids[0] > 0 else fn_ids
    used: dict[int, Block] = {}
    for task in kept:
        if task.blocks or task.function.blocks:
            used.update((block.block_id, block) for block in (*task.blocks, *task.function.blocks))
    sent = tuple(functions.items())
    frame = make_frame((protocol.RUN, chunk.chunk_id, _claims(chunk), sent, same, kind, items, tuple(used)))
    known.update(functions)
    for block in used.values():
        block.retain()
    return Parcel(frame, list(used.values()))


def _entry_of(task: Task | None) -> Any:
    if task is None:
        return None
    return task.entry if task.args is None else (task.args,)


def encode_items(chunk: Chunk, indices: Sequence[int], job: MapJob, known: set[int], store: WarmBlocks) -> Parcel:
    """The parcel of items of a map."""
    function = job.function
    functions = () if function.fn_id in known else ((function.fn_id, function.data),)
    items = job.take_items(indices)
    if serialize.are_scalars(items):
        kind = protocol.SCALAR_TUPLES if job.is_star else protocol.SCALAR_ITEMS
        parcel = _parcel(chunk, function, functions, kind, items)
    else:
        # Items that were read as others were taken may be one array, filled again and again.
        epoch = job.epoch if job.source is None else None
        writer = BlockWriter(store, epoch)
        try:
            entries = [_encode_item(job, i, item, writer) for i, item in zip(indices, items, strict=True)]
            nbytes = writer.own_nbytes + sum([serialize.pickle_nbytes(e) for e in entries if e is not None])
            parcel = _parcel(chunk, function, functions, protocol.ENTRIES, entries, writer)
            resources = tuple(writer.needs.values())
            parcel = parcel._replace(item_nbytes=nbytes / len(entries), resources=resources)
        finally:
            writer.close()
    known.add(function.fn_id)
    job.n_chunks += 1
    return parcel


def own_nbytes(items: Sequence[Any], is_star: bool) -> int:
    """Bytes of what the first item obviously has for itself, for the size of a map's first chunks."""
    first = items[0] if is_star else (items[0],)
    second: Sequence[Any] = ()
    if len(items) > 1:
        second = items[1] if is_star else (items[1],)
    total = 0
    for i, arg in enumerate(first):
        if i < len(second) and second[i] is arg:
            continue  # shared: it is stored once
        if isinstance(arg, (bytes, bytearray)):
            total += len(arg)
        elif type(arg).__module__.partition(".")[0] in _SIZED_BY_NBYTES:
            total += int(getattr(arg, "nbytes", 0))
    return total


def obvious_resources(items: Sequence[Any], is_star: bool) -> list[Resource[Any]]:
    """Handles that stand as arguments in the first item of a map; others are met when they are pickled."""
    resources = sys.modules.get("amorsize_executor.workers.resources")
    if resources is None:  # nobody has made one
        return []
    return [arg for arg in (items[0] if is_star else (items[0],)) if isinstance(arg, resources.Resource)]


def _claims(chunk: Chunk) -> tuple[int, int] | None:
    """How a chunk's worker claims its items."""
    if chunk.slot is None:
        return None
    if chunk.is_whole:
        return chunk.slot, protocol.WHOLE
    return chunk.slot, protocol.SINGLY if chunk.job_id is None else protocol.IN_GROUPS


def _parcel(
    chunk: Chunk,
    function: Function,
    functions: tuple[tuple[int, serialize.Entry], ...],
    kind: int,
    items: list[Any],
    writer: BlockWriter | None = None,
) -> Parcel:
    if writer is None and not function.blocks:
        return Parcel(
            make_frame((protocol.RUN, chunk.chunk_id, _claims(chunk), functions, function.fn_id, kind, items, ()))
        )
    used = {} if writer is None else writer.used
    for block in function.blocks:
        if block.block_id not in used:
            block.retain()
            used[block.block_id] = block
    message = (protocol.RUN, chunk.chunk_id, _claims(chunk), functions, function.fn_id, kind, items, tuple(used))
    frame = make_frame(message)
    return Parcel(frame, list(used.values()) if writer is None else writer.detach())


def _encode_item(job: MapJob, index: int, item: Any, writer: BlockWriter) -> serialize.Entry | None:
    args = item if job.is_star else (item,)
    n_large, writer.is_again = writer.n_large, index in job.stored
    try:
        entry = serialize.encode((args, {}), writer, append=writer.append, has_bulk=bulk.is_among(args))
        if writer.n_large > n_large:
            job.stored.add(index)
        return entry
    except Exception as error:
        what = f"item {index} of map({job.function.name}) ({culprit(args, {})})"
        job.local_errors[index] = not_picklable(what, error)
        return None


def decode_outcomes(
    job: MapJob | None, items: Sequence[int], outcomes: list[tuple[int, Any]], lease: Lease
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
    lease
        Gives views of the block that they refer to.
    """
    values: list[Any] = []
    n_skipped = 0
    for index, (kind, entry) in zip(items, outcomes, strict=True):
        if kind == protocol.SKIPPED:
            n_skipped += 1
            error = job.local_errors.get(index) if job is not None else None
            values.append(Failed(error or CancelledError()))
            continue
        try:
            value = serialize.decode(entry, lease)
            values.append(Failed(with_cause(*value)) if kind == protocol.ERROR else value)
        except BaseException as error:  # whatever the unpickled code raises
            values.append(Failed(add_note(error, "raised while the result of the task was unpickled")))
    return values, n_skipped
