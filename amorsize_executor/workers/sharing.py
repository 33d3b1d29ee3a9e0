"""`Shared`: an object that lies in shared memory as long as its user wants, for any number of executors and calls.

Its pickle and its buffers stand in a block. Where it is met while something is pickled for a worker, only the block's
number goes; unpickling gives the object itself, its buffers mapped privately, copy-on-write.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from types import GenericAlias, TracebackType

from . import mapped, serialize, warm

TYPE_CHECKING = False  # as of typing: see the package's docstring
if TYPE_CHECKING:
    from typing import Any, Generic, TypeVar

    from .interfaces import Cache, Lease, Received

    T = TypeVar("T")

    class Of(Generic[T]):
        """Base of a generic class."""

else:

    class Of:
        """The same, as far as it takes to write ``Shared[int]``."""

        __class_getitem__ = classmethod(GenericAlias)


#: Blocks of handles: closed when their last user is gone, never used again.
_store = warm.WarmBlocks(lambda: 0, is_kept_after_fork=True)
#: Handles of this process that are open, by block.
_handles: weakref.WeakValueDictionary[int, Shared[Any]] = weakref.WeakValueDictionary()
#: In a worker: what its parent has sent.
_received: Received | None = None


class _Here(threading.local):
    """In a thread that is a worker beside others of its process, or that runs items of a map: the same."""

    received: Received | None = None


_here = _Here()


class Shared(Of["T"]):
    """An object in shared memory, stored once, until it is closed.

    It may stand anywhere in the arguments of tasks and in functions; a task gets the object itself, with its own
    writable arrays. What the task writes is seen by nobody else. Made by `AmorsizeExecutor.share`; every executor of
    this process takes it.

    Parameters
    ----------
    obj
        The object. It is stored as it is now: later changes to it are not seen.

    Raises
    ------
    SerializationError
        If it cannot be pickled.
    OSError
        If there is no memory for it.

    Examples
    --------
    >>> with Shared(bytearray(b"abc")) as shared:
    ...     shared.get()
    bytearray(b'abc')
    """

    def __init__(self, obj: T) -> None:
        from .process import not_picklable

        serialize.ask_for_writers()
        self._name = type(obj).__qualname__
        self._lock = threading.Lock()  # guards _blocks between `close` and those who send
        writer = _HandleWriter(_store.take(0))
        try:
            try:
                #: What tasks get: it refers to the block, and has what is small itself.
                self._content = serialize.encode(obj, writer, append=writer.store)
            except Exception as error:
                raise not_picklable(f"the object to share, a {self._name!r} object,", error) from error.__cause__
        except BaseException:
            writer.close()
            raise
        self.nbytes = writer.nbytes + serialize.pickle_nbytes(self._content)
        self._blocks = writer.blocks  # its own, then those of handles inside the object; empty when closed
        _handles[self._blocks[0].block_id] = self
        self._finalizer = weakref.finalize(self, _abandon, self._blocks)
        self._finalizer.atexit = False

    def get(self) -> T:
        """The object, as a task gets it: private, copy-on-write.

        Returns
        -------
        object
            Equal to the one that was stored. Its arrays are views of the shared memory until they are written to.

        Raises
        ------
        ValueError
            After `close`.
        """
        with self._lock:
            self._check_open()
            for block in self._blocks:
                block.retain()
            used = list(self._blocks)
        try:
            obj: T = _load(self._content, _lease_own, None)
        finally:
            for block in used:
                block.release()
        return obj

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return not self._blocks

    def close(self) -> None:
        """Give up the memory, as soon as no task that was submitted needs it. Tasks that have the object keep it."""
        with self._lock:
            blocks, self._blocks = self._blocks, []
        self._finalizer.detach()
        for block in blocks:
            block.release()

    def __enter__(self) -> Shared[T]:
        with self._lock:
            self._check_open()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if not self._blocks:
            raise ValueError(f"{self!r} was closed before it was used; close it after its last submit or map")

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        from ..errors import SerializationError

        refer = getattr(serialize.sending.writer, "refer", None)
        with self._lock:
            self._check_open()
            if refer is None:
                raise SerializationError(
                    f"{self!r} cannot be pickled here: it goes to workers in arguments and functions of submit and "
                    "map, while it is open; to other places send what its get() gives"
                )
            for block in self._blocks:
                refer(block)
            return _resolve, (self._blocks[0].block_id, self._content)

    def __repr__(self) -> str:
        state = ", closed" if self.is_closed else ""
        return f"<Shared {self._name}, {self.nbytes:,} bytes{state}>"


class _HandleWriter:
    """Puts the buffers of a handle's object into a block of their own."""

    def __init__(self, block: warm.Block) -> None:
        self.blocks = [block]
        self.nbytes = 0

    def store(self, buffer: memoryview) -> tuple[int, int, bool, int]:
        """Store a buffer, and return what stands for it in an entry."""
        block, offset = self.blocks[0], warm.aligned(self.nbytes)
        block.write(offset, buffer)
        self.nbytes = offset + buffer.nbytes
        return offset, buffer.nbytes, buffer.readonly, block.block_id

    def serial(self, part: object) -> int:
        """A number for what was just stored."""
        return warm.new_serial()

    def refer(self, block: warm.Block) -> None:
        """The object has another handle inside."""
        if block not in self.blocks:
            block.retain()
            self.blocks.append(block)

    def close(self) -> None:
        """Give everything up."""
        for block in self.blocks:
            block.release()


def _abandon(blocks: list[warm.Block]) -> None:
    for block in blocks:
        _store.abandon(block)


def receive_with(received: Received | None, *, in_thread: bool = False) -> Received | None:
    """Tell where the blocks of handles are to be found; `in_thread`: by this thread alone. Returns where they were."""
    global _received
    if in_thread:
        before, _here.received = _here.received, received
    else:
        before, _received = _received, received
    return before


def _resolve(block_id: int, content: serialize.Entry) -> Any:
    """The object of a handle, in a worker or in the process that made it."""
    received = _here.received or _received
    if received is not None and received.has_all((block_id,)):
        if not received.is_callers:
            mapped.expect_again(serialize.stored_nbytes(content))
        return _load(content, received.lease, received.cache)
    handle = _handles.get(block_id)
    if handle is None:
        raise ValueError("a Shared object was closed, or belongs to another process")
    return handle.get()


def _load(content: serialize.Entry, lease: Lease, cache: Cache | None) -> Any:
    if not isinstance(content, bytes):  # what the entry has itself must not be given out twice
        own = tuple([bytearray(part) if isinstance(part, bytearray) else part for part in content[1]])
        content = (content[0], own) if len(content) == 2 else (content[0], own, content[2])
    return serialize.decode(content, lease, cache)


def _lease_own(block_id: int, start: int, stop: int) -> tuple[memoryview, int]:
    return _handles[block_id]._blocks[0].private_view(start, stop)
