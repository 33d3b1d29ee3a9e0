"""Objects to bytes and back, by value where the other process could not import them.

Plain pickle first (it is C), cloudpickle for what it refuses (lambdas, closures) and for what it would accept only
because this process happens to have it in ``__main__``. Large contiguous buffers (NumPy arrays and whatever else
supports protocol 5) leave the pickle and travel in a block; a receiver maps them privately, so it has its own, writable
copy without copying.

An object becomes an *entry*, which is small enough for a frame or refers to the frame's block:

* ``bytes``: a pickle;
* ``(pickle, buffers)``: buffers are `bytearray` or `bytes` (read-only) inside, or ``(offset, nbytes, is_readonly)``
  in the block.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .blocks import BlockWriter

if TYPE_CHECKING:
    from typing import TypeAlias

PROTOCOL = 5
#: Buffers of an object that are larger than this in all, in bytes, travel in a block.
INLINE_NBYTES = 16 << 10

#: Types whose instances cannot change and that any process can unpickle: they need no copy and cannot fail.
SCALARS = frozenset({int, float, complex, bool, str, bytes, type(None), range, type(Ellipsis)})
#: A tuple of scalars counts as one up to this length, and so does a tuple of such tuples.
_TUPLE_LENGTH = 64

_Buffer: TypeAlias = "bytes | bytearray | tuple[int, int, bool]"
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

    if buffer_callback is not None:
        owner = getattr(buffer_callback, "__self__", None)
        if isinstance(owner, list):
            owner.clear()  # of the attempt with plain pickle
    try:
        data: bytes = cloudpickle.dumps(obj, PROTOCOL, buffer_callback=buffer_callback)
    except Exception as error:
        raise error from first_error
    return data


def encode(obj: object, block: BlockWriter) -> Entry:
    """Make an entry of an object; large buffers go into `block`."""
    buffers: list[pickle.PickleBuffer] = []
    data = dumps(obj, buffers.append)
    if not buffers:
        return data
    views = [b.raw() for b in buffers]
    if sum(v.nbytes for v in views) <= INLINE_NBYTES:
        return data, tuple(bytes(v) if v.readonly else bytearray(v) for v in views)
    return data, tuple((block.add(v), v.nbytes, v.readonly) for v in views)


def decode(entry: Entry, mapped: Callable[[], memoryview]) -> Any:
    """The object of an entry.

    Parameters
    ----------
    entry
        As made by `encode`.
    mapped
        Gives a private mapping of the frame's block, a fresh one at each call.
    """
    if isinstance(entry, bytes):
        return pickle.loads(entry)
    data, parts = entry
    view: memoryview | None = None
    buffers: list[Any] = []
    for part in parts:
        if isinstance(part, tuple):
            if view is None:
                view = mapped()
            offset, nbytes, is_readonly = part
            buffer = view[offset : offset + nbytes]
            buffers.append(buffer.toreadonly() if is_readonly else buffer)
        else:
            buffers.append(part)
    return pickle.loads(data, buffers=buffers)


def entry_nbytes(entry: Entry) -> int:
    """Size of what an entry carries, block included, in bytes."""
    if isinstance(entry, bytes):
        return len(entry)
    data, parts = entry
    return len(data) + sum(p[1] if isinstance(p, tuple) else len(p) for p in parts)


def copy(obj: Any) -> Any:
    """What a worker would get: the object itself if it cannot change, else its pickled copy."""
    if type(obj) in SCALARS or is_scalar(obj):  # of any size
        return obj
    return pickle.loads(dumps(obj))


def name_of(obj: object) -> str:
    """A short name of an object for a message."""
    name = getattr(obj, "__qualname__", None)
    if isinstance(name, str):
        return name
    inner = getattr(obj, "func", None)  # functools.partial
    if inner is not None and inner is not obj:
        return f"partial of {name_of(inner)}"
    return type(obj).__qualname__
