"""Objects to bytes and back, by value where the other process could not import them.

Plain pickle first (it is C), cloudpickle for what it refuses (lambdas, closures) and for what it would accept only
because this process happens to have it in ``__main__``. Large contiguous buffers (NumPy arrays and whatever else
supports protocol 5) leave the pickle and travel in a block; a receiver maps them privately, so it has its own, writable
copy without copying.

An object becomes an *entry*, which is small enough for a frame or refers to blocks:

* ``bytes``: a pickle;
* ``(pickle, buffers)``: buffers are `bytearray` or `bytes` (read-only) inside, or ``(offset, nbytes, is_readonly,
  block_id)`` in a block; 0 is the block that came with the frame; a large pickle may stand in one, too;
* ``(pickle, buffers, bulk)``: bulk has (buffer, serial number) for each bulky object that the pickle leaves out (see
  `bulk`).
"""

from __future__ import annotations

import _pickle as pickle
import threading
from collections.abc import Callable, Sequence
from itertools import groupby

from . import bulk

TYPE_CHECKING = False  # as of typing: see the package's docstring
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    from .interfaces import Cache, Lease, Writer

PROTOCOL = 5
#: Buffers of an object that are larger than this in all, in bytes, travel in a block; a pickle may.
INLINE_NBYTES = 16 << 10

#: Where bulky objects were not expected, they are looked for in pickles of this size, in bytes.
_SEARCH_NBYTES = 1 << 20

#: Types whose instances cannot change and that any process can unpickle: they need no copy and cannot fail.
SCALARS = frozenset({int, float, complex, bool, str, bytes, type(None), range, type(Ellipsis)})
#: Longer strings and bytes are no scalars.
_TEXT_LENGTH = 4096
_TEXTS = frozenset({str, bytes})
#: A tuple of scalars counts as one up to this length, and so does a tuple of such tuples.
_TUPLE_LENGTH = 64

Part: TypeAlias = "tuple[int, int, bool, int]"
_Buffer: TypeAlias = "bytes | bytearray | Part"
Bulk: TypeAlias = "tuple[_Buffer, int]"
_Pickle: TypeAlias = "bytes | Part"
Entry: TypeAlias = "bytes | tuple[_Pickle, tuple[_Buffer, ...]] | tuple[_Pickle, tuple[_Buffer, ...], tuple[Bulk, ...]]"


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
        return len(obj) <= _TEXT_LENGTH  # type: ignore[arg-type]  # exact type checked above
    return kind in SCALARS


def are_scalars(objs: Sequence[object]) -> bool:
    """Whether `is_scalar` holds for all; fast for plain numbers."""
    kinds = set()
    for n_runs, (kind, _) in enumerate(groupby(objs, type)):  # of one kind: half of the time that a set of all takes
        kinds.add(kind)
        if n_runs >= _MANY_RUNS:
            kinds.update(map(type, objs))
            break
    if kinds <= _NUMBERS:
        return True
    if kinds <= _TEXTS:
        return max(map(len, objs)) <= _TEXT_LENGTH  # type: ignore[arg-type]  # exact types checked above
    return (kinds - {tuple}) <= SCALARS and all(map(is_scalar, objs))


_NUMBERS = frozenset({int, float, bool, type(None)})
_MANY_RUNS = 8


def dumps(obj: object, buffer_callback: Callable[[pickle.PickleBuffer], Any] | None = None, like: bytes = b"") -> bytes:
    """Pickle by reference what can be imported elsewhere, by value what cannot.

    `like` is what this function gave before, for what may not have changed since. If the pickle is the same, it is
    `like` itself, and no memory was taken for it.
    """
    try:
        if like:
            file = _LikeFile(like)
            pickle.Pickler(file, PROTOCOL, buffer_callback=buffer_callback).dump(obj)
            data = file.content()
        else:
            data = pickle.dumps(obj, PROTOCOL, buffer_callback=buffer_callback)
    except Exception as error:
        return _dumps_by_value(obj, buffer_callback, error, like)
    if data is not like and b"__main__" in data:  # by reference to a module that is another one in the other process
        return _dumps_by_value(obj, buffer_callback, None, like)
    return data


class _LikeFile:
    """A file for a pickle that may be the same as another one: nothing is copied as long as it is."""

    def __init__(self, like: bytes) -> None:
        self._like = like
        self._n_same = 0
        self._other: list[bytes] = []

    def write(self, part: bytes | bytearray) -> None:
        """Take a part: some 64 kB that the pickler has made, or a large object itself."""
        if not self._other and self._like.startswith(part, self._n_same):
            self._n_same += len(part)
        else:
            self._other.append(bytes(part))  # the same object, if it is bytes

    def content(self) -> bytes:
        """What was written."""
        if not self._other and self._n_same == len(self._like):
            return self._like
        return b"".join([memoryview(self._like)[: self._n_same], *self._other])


def _dumps_by_value(
    obj: object,
    buffer_callback: Callable[[pickle.PickleBuffer], Any] | None,
    first_error: Exception | None,
    like: bytes,
) -> bytes:
    from . import by_value  # cloudpickle takes 10 ms to import

    owner = getattr(buffer_callback, "__self__", None)
    if isinstance(owner, list):
        owner.clear()  # of the attempt with plain pickle
    try:
        file = _LikeFile(like or b"")
        by_value.Pickler(file, protocol=PROTOCOL, buffer_callback=buffer_callback).dump(obj)
        return file.content()
    except Exception as error:
        raise error from first_error


class _Sending(threading.local):
    """What this thread is pickling for; for objects that are sent in a way of their own."""

    #: Whether there is any such object in this process: else nobody asks for the writer, and it is not told.
    is_asked_for = False
    writer: Writer | None = None


sending = _Sending()


def ask_for_writers() -> None:
    """From now on, say in `sending` what is pickled for whom."""
    _Sending.is_asked_for = True


def encode(
    obj: object,
    writer: Writer,
    *,
    append: Callable[[memoryview], Part | None] | None = None,
    least_nbytes: int = 0,
    has_bulk: bool = False,
    like: bytes = b"",
) -> Entry:
    """Make an entry of an object.

    Parameters
    ----------
    obj
        What to pickle.
    writer
        Takes its large buffers.
    append
        Takes its pickle if that is larger than `INLINE_NBYTES`; gives None if it should stay in the entry.
    least_nbytes
        Buffers below this size, in bytes, stay in the pickle.
    has_bulk
        There are bulky objects inside. Else, they are looked for if the pickle is large, though not everywhere.
    like
        A pickle that the object may have again, or an empty one; see `dumps`.
    """
    buffers: list[pickle.PickleBuffer]
    take: Callable[[pickle.PickleBuffer], Any]
    if least_nbytes:
        buffers = large = _LargeBuffers(least_nbytes)
        take = large.take
    else:
        buffers = []
        take = buffers.append
    objs: Sequence[Any] = ()
    before = sending.writer
    if _Sending.is_asked_for:
        sending.writer = writer
    try:
        if not has_bulk:
            data = dumps(obj, take, like)
            if len(data) >= _SEARCH_NBYTES and bulk.is_inside(obj):
                has_bulk = True
                buffers.clear()
        if has_bulk:
            data, objs = bulk.dumps(obj, PROTOCOL, take)
    finally:
        sending.writer = before
    views = [b.raw() for b in buffers]
    parts: tuple[_Buffer, ...]
    if not objs and sum([v.nbytes for v in views]) <= INLINE_NBYTES:
        parts = tuple([_copied(v) for v in views])
    else:
        parts = tuple([writer.store(v) for v in views])
    bulky = tuple([_store_bulk(bulk.view_of(each), writer) for each in objs])
    # Behind the others: a block is chosen by the size of the first.
    place = append(memoryview(data)) if append is not None and len(data) > INLINE_NBYTES else None
    pickled: _Pickle = data if place is None else place
    if bulky:
        return pickled, parts, bulky
    return (pickled, parts) if parts or place is not None else data


def _copied(view: memoryview) -> bytes | bytearray:
    return bytes(view) if view.readonly else bytearray(view)


def _store_bulk(view: memoryview, writer: Writer) -> Bulk:
    part = writer.store(view)
    if not isinstance(part, tuple):  # a copy, for this process
        return part, 0
    offset, nbytes, _, block_id = part
    return (offset, nbytes, False, block_id), writer.serial(part)


class _LargeBuffers(list[pickle.PickleBuffer]):
    """Buffers that pickle offers to leave out of its data, as far as they are large."""

    def __init__(self, least_nbytes: int) -> None:
        super().__init__()
        self._least_nbytes = least_nbytes

    def take(self, buffer: pickle.PickleBuffer) -> bool:
        """Take a buffer; True if it is to stay in the pickle."""
        if buffer.raw().nbytes < self._least_nbytes:
            return True
        self.append(buffer)
        return False


def decode(entry: Entry, lease: Lease, cache: Cache | None = None) -> Any:
    """The object of an entry.

    Parameters
    ----------
    entry
        As made by `encode`.
    lease
        Gives private views of the blocks that it refers to.
    cache
        Keeps large `bytes`: they cannot change, so that several entries may have the same.
    """
    if isinstance(entry, bytes):
        return pickle.loads(entry)
    data, *buffers = _leased((entry[0], *entry[1]), lease)
    if len(entry) == 2:
        return pickle.loads(data, buffers=buffers)
    bulky = entry[2]

    def load(index: int, kind: int) -> Any:
        part, serial = bulky[index]
        if kind == bulk.BYTES and cache is not None and serial in cache:
            return cache[serial]
        (buffer,) = _leased((part,), lease)
        if kind == bulk.MEMMAP:
            return bytearray(buffer) if isinstance(buffer, bytes) else buffer
        obj = bytes(buffer) if kind == bulk.BYTES else bytearray(buffer)
        if kind == bulk.BYTES and cache is not None and serial:
            cache[serial] = obj
        return obj

    return bulk.loads(data, buffers, load)


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


def pickle_of(entry: Entry) -> bytes:
    """The pickle in an entry that was made without `append`."""
    data = entry if isinstance(entry, bytes) else entry[0]
    assert isinstance(data, bytes)
    return data


def pickle_nbytes(entry: Entry) -> int:
    """Size of what an entry carries itself, blocks not counted, in bytes."""
    if isinstance(entry, bytes):
        return len(entry)
    return sum([len(p) for p in (entry[0], *entry[1]) if not isinstance(p, tuple)])


def stored_nbytes(entry: Any) -> int:
    """Size of the buffers that an entry has in blocks, in bytes; neither of its pickle nor of bulky objects."""
    return sum([p[1] for p in entry[1] if isinstance(p, tuple)]) if not isinstance(entry, bytes) and entry[1:] else 0


def is_immutable(obj: object) -> bool:
    """Whether an object cannot change, of whatever size it is."""
    return type(obj) in SCALARS or is_scalar(obj)


def copy(obj: Any) -> Any:
    """What a worker would get: the object itself if it cannot change, else its pickled copy."""
    if is_immutable(obj):
        return obj
    return decode(encode(obj, _COPIER), _no_lease)


class _Copier:
    """Copies buffers: what is pickled stays in this process."""

    def store(self, buffer: memoryview) -> Any:
        """A copy of the buffer."""
        return _copied(buffer)

    def serial(self, part: Any) -> int:
        """None."""
        return 0

    def refer(self, block: object) -> None:
        """Blocks of this process are at hand."""


_COPIER = _Copier()


def _no_lease(block_id: int, start: int, stop: int) -> tuple[memoryview, int]:
    raise AssertionError("nothing was put in a block")


class _Checker(_Copier):
    def store(self, buffer: memoryview) -> Any:
        return b""

    def need(self, resource: object) -> None:
        """A worker will have it."""


def check(obj: object) -> None:
    """Raise what an attempt to send an object raises, if anything."""
    encode(obj, _Checker())


def dumps_to_compare(obj: object, buffer_callback: Callable[[pickle.PickleBuffer], Any]) -> bytes:
    """Pickle what is not sent anywhere; a handle of a `Shared` or `Resource` inside stands for itself."""
    before, sending.writer = sending.writer, _Checker()
    try:
        return dumps(obj, buffer_callback)
    finally:
        sending.writer = before


class _Finder(_Checker):
    """Finds handles."""

    has_found = False

    def refer(self, block: object) -> None:
        """Of a `Shared`."""
        self.has_found = True

    def need(self, resource: object) -> None:
        """Of a `Resource`."""
        self.has_found = True


def has_handle(obj: object) -> bool:
    """Whether a handle of a `Shared` or `Resource` is inside, so that only a worker has what it stands for."""
    if not _Sending.is_asked_for or is_immutable(obj):
        return False
    finder = _Finder()
    try:
        encode(obj, finder, has_bulk=bulk.is_among((obj,)))
    except Exception:  # it cannot be sent: what was found until then counts
        pass
    return finder.has_found


def name_of(obj: object) -> str:
    """A short name of an object for a message."""
    name = getattr(obj, "__qualname__", None)
    if isinstance(name, str):
        return name
    inner = getattr(obj, "func", None)  # functools.partial
    if inner is not None and inner is not obj:
        return f"partial of {name_of(inner)}"
    return type(obj).__qualname__
