"""What is large and that pickle copies into its data: `bytes`, `bytearray` and NumPy's memory maps.

Pickle leaves the buffers of arrays out of its data, but not these. Where one is seen among arguments or results, a
pickler that leaves them out, too, is used instead; it asks about each object, so it is not used for others.
"""

from __future__ import annotations

import _pickle as pickle
import io
import sys
from collections.abc import Callable, Iterable, Sequence

TYPE_CHECKING = False  # as of typing: see the package's docstring
if TYPE_CHECKING:
    from typing import Any, TypeAlias

#: Smaller objects of these types, in bytes, are copied into the pickle.
BULK_NBYTES = 64 << 10
#: How deep in containers, and how many elements of each, objects are looked for.
_DEPTH = 3
_ELEMENTS = 64
#: Containers of so many elements at most are looked into before anything is pickled.
_CONTAINERS = frozenset({tuple, list, dict})
_RECORD = 8

_types: set[type] = {bytes, bytearray}
_memmap: Any = None

#: What a bulky object is to become again.
BYTES, BYTEARRAY, MEMMAP = 0, 1, 2
#: Index among the bulky objects of an entry, kind, and what else it takes to make it.
PersistentId: TypeAlias = "tuple[Any, ...]"


def is_among(objs: Iterable[object]) -> bool:
    """Whether one of these objects is bulky, or stands in a small container that is one of them; fast if none is."""
    if _memmap is None and "numpy" in sys.modules:
        _learn_numpy()
    for obj in objs:
        kind = type(obj)
        if kind in _types:
            if _nbytes(obj) >= BULK_NBYTES:
                return True
        elif kind in _CONTAINERS:
            container: Any = obj
            if len(container) <= _RECORD:
                for each in container.values() if kind is dict else container:
                    if type(each) in _types and _nbytes(each) >= BULK_NBYTES:
                        return True
    return False


def is_inside(obj: object, depth: int = _DEPTH) -> bool:
    """Whether an object is bulky, or one not far inside of it."""
    if is_among((obj,)):
        return True
    if not depth:
        return False
    if type(obj) is dict:
        inner: Iterable[object] = list(obj.values())[:_ELEMENTS]
    elif type(obj) is tuple or type(obj) is list:
        inner = obj[:_ELEMENTS]
    else:
        inner = ()
    return any(is_inside(each, depth - 1) for each in inner)


def _nbytes(obj: Any) -> int:
    return len(obj) if type(obj) is not _memmap else int(obj.nbytes)


def _learn_numpy() -> None:
    global _memmap
    _memmap = getattr(sys.modules["numpy"], "memmap", None)  # None while it is being imported
    if _memmap is not None:
        _types.add(_memmap)


class _Bulk:
    """Gives bulky objects numbers in place of pickling them."""

    def __init__(self, file: io.BytesIO, protocol: int, buffer_callback: Any) -> None:
        super().__init__(file, protocol, buffer_callback=buffer_callback)  # type: ignore[call-arg]
        self.objs: list[Any] = []
        self._indices: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> PersistentId | None:
        """What stands for a bulky object; None for any other."""
        if type(obj) not in _types or _nbytes(obj) < BULK_NBYTES:
            return None
        if type(obj) is _memmap:
            flags = obj.flags
            if not flags.c_contiguous and not flags.f_contiguous:
                return None
            details: tuple[Any, ...] = (MEMMAP, obj.dtype, obj.shape, "C" if flags.c_contiguous else "F")
        else:
            details = (BYTES if type(obj) is bytes else BYTEARRAY,)
        index = self._indices.setdefault(id(obj), len(self.objs))
        if index == len(self.objs):
            self.objs.append(obj)
        return (index, *details)


class _Pickler(_Bulk, pickle.Pickler):
    pass


def dumps(obj: object, protocol: int, buffer_callback: Any) -> tuple[bytes, list[Any]]:
    """The pickle of an object, and the bulky objects that it left out."""
    try:
        data, objs = _dumps(_Pickler, obj, protocol, buffer_callback)
        if b"__main__" not in data:
            return data, objs
        first_error = None
    except Exception as error:
        first_error = error
    from .by_value import Pickler

    class ByValue(_Bulk, Pickler):
        pass

    buffer_callback.__self__.clear()  # of the first attempt
    try:
        return _dumps(ByValue, obj, protocol, buffer_callback)
    except Exception as error:
        raise error from first_error


def _dumps(kind: Callable[..., Any], obj: object, protocol: int, buffer_callback: Any) -> tuple[bytes, list[Any]]:
    with io.BytesIO() as file:
        pickler = kind(file, protocol, buffer_callback)
        pickler.dump(obj)
        return file.getvalue(), pickler.objs


def view_of(obj: Any) -> memoryview:
    """The bytes of a bulky object."""
    if type(obj) is not _memmap:
        return memoryview(obj)
    plain = obj.view(sys.modules["numpy"].ndarray)
    return pickle.PickleBuffer(plain).raw()


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, buffers: Sequence[Any], load: Callable[[int, int], Any]) -> None:
        super().__init__(io.BytesIO(data), buffers=buffers)
        self._load = load
        self._loaded: dict[int, Any] = {}

    def persistent_load(self, pid: PersistentId) -> Any:
        index, kind, *details = pid
        if index not in self._loaded:
            loaded = self._load(index, kind)
            self._loaded[index] = loaded if kind != MEMMAP else _make_memmap(loaded, *details)
        return self._loaded[index]


def _make_memmap(buffer: Any, dtype: Any, shape: tuple[int, ...], order: Any) -> Any:
    """What unpickling a memory map gives: its content, in memory and writable, of its type."""
    import numpy as np

    return np.frombuffer(buffer, dtype).reshape(shape, order=order).view(np.memmap)


def loads(data: bytes, buffers: Sequence[Any], load: Callable[[int, int], Any]) -> Any:
    """The object of a pickle; `load` gives what a bulky object is made of, by its index and kind."""
    return _Unpickler(data, buffers, load).load()
