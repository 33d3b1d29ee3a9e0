"""Objects to bytes and back, by value where the other process could not import them.

Plain pickle first (it is C), cloudpickle for what it refuses (lambdas, closures) and for what it would accept only
because this process happens to have it in ``__main__``. Large contiguous buffers (NumPy arrays and whatever else
supports protocol 5) leave the pickle and travel in a block; a receiver maps them privately, so it has its own, writable
copy without copying.

An object becomes an *entry*, which is small enough for a frame or refers to blocks:

* ``bytes``: a pickle;
* ``(pickle, buffers)``: buffers are `bytearray` or `bytes` (read-only) inside, or ``(offset, nbytes, is_readonly,
  block_id)`` in a block; 0 is the block that came with the frame.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from typing import TypeAlias

PROTOCOL = 5
#: Buffers of an object that are larger than this in all, in bytes, travel in a block.
INLINE_NBYTES = 16 << 10

#: Types whose instances cannot change and that any process can unpickle: they need no copy and cannot fail.
SCALARS = frozenset({int, float, complex, bool, str, bytes, type(None), range, type(Ellipsis)})
#: A tuple of scalars counts as one up to this length, and so does a tuple of such tuples.
_TUPLE_LENGTH = 64

Part: TypeAlias = "tuple[int, int, bool, int]"
_Buffer: TypeAlias = "bytes | bytearray | Part"
Entry: TypeAlias = "bytes | tuple[bytes, tuple[_Buffer, ...]]"


def is_scalar(obj: object) -> bool:
    """Whether an object is immutable through and through, and certain to pickle small enough to be copied freely."""
    if type(obj) is not tuple:
        return _is_plain(obj)
    if len(obj) > _TUPLE_LENGTH:
        return False
    for item in obj:
        if type(item) not in _NUMBERS and not _is_flat(item):
            return False
    return True


def _is_flat(obj: object) -> bool:
    """Whether an object is a scalar or a tuple of scalars: a limit, as tuples may be nested without end."""
    if type(obj) is tuple:
        return len(obj) <= _TUPLE_LENGTH and all(map(_is_plain, obj))
    return _is_plain(obj)


def _is_plain(obj: object) -> bool:
    kind = type(obj)
    if kind is str or kind is bytes:
        return len(obj) <= 4096  # type: ignore[arg-type]  # exact type checked above
    return kind in SCALARS


def are_scalars(objs: Sequence[object]) -> bool:
    """Whether `is_scalar` holds for all; fast for plain numbers."""
    kinds = set(map(type, objs))
    if kinds <= _NUMBERS:
        return True
    return (kinds - {tuple}) <= SCALARS and all(map(is_scalar, objs))


_NUMBERS = frozenset({int, float, bool, type(None)})


def dumps(obj: object, buffer_callback: Callable[[pickle.PickleBuffer], Any] | None = None) -> bytes:
    """Pickle by reference what can be imported elsewhere, by value what cannot."""
    try:
        data = pickle.dumps(obj, PROTOCOL, buffer_callback=buffer_callback)
    except Exception as error:
        return _dumps_by_value(obj, buffer_callback, error)
    if b"__main__" in data:  # by reference to a module that is another one in the other process
        return _dumps_by_value(obj, buffer_callback, None)
    return data


def _dumps_by_value(
    obj: object, buffer_callback: Callable[[pickle.PickleBuffer], Any] | None, first_error: Exception | None
) -> bytes:
    import cloudpickle

    owner = getattr(buffer_callback, "__self__", None)
    if isinstance(owner, list):
        owner.clear()  # of the attempt with plain pickle
    try:
        data: bytes = cloudpickle.dumps(obj, PROTOCOL, buffer_callback=buffer_callback)
    except Exception as error:
        raise error from first_error
    return data


class Writer(Protocol):
    """Where the large buffers of an object go."""

    def store(self, buffer: memoryview, /) -> Part:
        """Store a buffer and return what stands for it in an entry."""


class _Sending(threading.local):
    """What this thread is pickling for."""

    writer: Writer | None = None


sending = _Sending()


def encode(obj: object, writer: Writer, *, least_nbytes: int = 0) -> Entry:
    """Make an entry of an object.

    Parameters
    ----------
    obj
        What to pickle.
    writer
        Takes its large buffers.
    least_nbytes
        Buffers below this size, in bytes, stay in the pickle.
    """
    buffers = _Buffers(least_nbytes)
    before, sending.writer = sending.writer, writer
    try:
        data = dumps(obj, buffers.take)
    finally:
        sending.writer = before
    if not buffers:
        return data
    views = [b.raw() for b in buffers]
    if sum(v.nbytes for v in views) <= INLINE_NBYTES:
        return data, tuple(bytes(v) if v.readonly else bytearray(v) for v in views)
    return data, tuple([writer.store(v) for v in views])


class _Buffers(list[pickle.PickleBuffer]):
    """Buffers that pickle offers to leave out of its data."""

    def __init__(self, least_nbytes: int) -> None:
        super().__init__()
        self._least_nbytes = least_nbytes

    def take(self, buffer: pickle.PickleBuffer) -> bool:
        """Take a buffer; True if it is to stay in the pickle."""
        if self._least_nbytes and buffer.raw().nbytes < self._least_nbytes:
            return True
        self.append(buffer)
        return False


class Lease(Protocol):
    """How a receiver gets at what stands in blocks."""

    def __call__(self, block_id: int, start: int, stop: int, /) -> tuple[memoryview, int]:
        """A private view that has these bytes of a block, and the offset in the block where the view begins.

        Each call gives another one: what is written to one is not seen in others.
        """


def decode(entry: Entry, lease: Lease) -> Any:
    """The object of an entry.

    Parameters
    ----------
    entry
        As made by `encode`.
    lease
        Gives private views of the blocks that it refers to.
    """
    if isinstance(entry, bytes):
        return pickle.loads(entry)
    data, parts = entry
    return pickle.loads(data, buffers=_leased(parts, lease))


def decode_whole(parts: Sequence[_Buffer], lease: Lease) -> Any:
    """The object of an entry whose pickle stands behind its buffers, as the last of them."""
    *buffers, data = _leased(parts, lease)
    return pickle.loads(data, buffers=buffers)


def _leased(parts: Sequence[_Buffer], lease: Lease) -> list[Any]:
    """The buffers of an entry, each block leased once, but what stands there twice as often."""
    extents: dict[int, tuple[int, int]] = {}
    for part in parts:
        if isinstance(part, tuple):
            offset, nbytes, _, block_id = part
            start, stop = extents.get(block_id, (offset, offset))
            extents[block_id] = (min(start, offset), max(stop, offset + nbytes))
    views: dict[int, tuple[memoryview, int]] = {}
    seen: set[tuple[int, int]] = set()
    buffers: list[Any] = []
    for part in parts:
        if not isinstance(part, tuple):
            buffers.append(part)
            continue
        offset, nbytes, is_readonly, block_id = part
        if (block_id, offset) in seen:  # two objects over the same memory: no longer, after pickling
            view, base = lease(block_id, offset, offset + nbytes)
        else:
            seen.add((block_id, offset))
            if block_id not in views:
                views[block_id] = lease(block_id, *extents[block_id])
            view, base = views[block_id]
        buffer = view[offset - base : offset - base + nbytes]
        buffers.append(buffer.toreadonly() if is_readonly else buffer)
    return buffers


def pickle_nbytes(entry: Entry) -> int:
    """Size of what an entry carries itself, blocks not counted, in bytes."""
    if isinstance(entry, bytes):
        return len(entry)
    data, parts = entry
    return len(data) + sum(len(p) for p in parts if not isinstance(p, tuple))


def copy(obj: Any) -> Any:
    """What a worker would get: the object itself if it cannot change, else its pickled copy."""
    if type(obj) in SCALARS or is_scalar(obj):  # of any size
        return obj
    return decode(encode(obj, _COPIER), _no_lease)


class _Copier:
    """Copies buffers: what is pickled stays in this process."""

    def store(self, buffer: memoryview) -> Any:
        """A copy of the buffer."""
        return bytes(buffer) if buffer.readonly else bytearray(buffer)

    def refer(self, block: object) -> None:
        """Blocks of this process are at hand."""


_COPIER = _Copier()


def _no_lease(block_id: int, start: int, stop: int) -> tuple[memoryview, int]:
    raise AssertionError("nothing was put in a block")


class _Checker(_Copier):
    def store(self, buffer: memoryview) -> Any:
        return b""


def check(obj: object) -> None:
    """Raise what an attempt to send an object raises, if anything."""
    encode(obj, _Checker())


def name_of(obj: object) -> str:
    """A short name of an object for a message."""
    name = getattr(obj, "__qualname__", None)
    if isinstance(name, str):
        return name
    inner = getattr(obj, "func", None)  # functools.partial
    if inner is not None and inner is not obj:
        return f"partial of {name_of(inner)}"
    return type(obj).__qualname__
