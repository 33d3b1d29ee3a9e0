"""Functions that tasks run: each is pickled once and sent once to each worker, never stale.

A function that another process can import is sent by reference. One that it cannot (a lambda, a closure, a function of
``__main__``) is sent by value, and the pickle is kept only while nothing that it captured can have changed: its
code, defaults, closure and the globals that it names must still be the same immutable objects (numbers, strings,
modules, other such functions). Everything else (bound methods, partials, callable objects, functions over lists or
models) is pickled again at each call and compared as bytes: equal bytes are the same function, so nothing is sent
again.

What a function carries itself (a partial's arguments, a method's object, a closure's contents) is like its arguments:
a worker unpickles it anew for each task or chunk. Globals of ``__main__`` live in a worker as those of a module do.
"""

from __future__ import annotations

import functools
import sys
import threading
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

from . import bulk, serialize
from .warm import SHARE_NBYTES, Block, BlockWriter, WarmBlocks

if TYPE_CHECKING:
    from .resources import Resource

#: Functions remembered by identity, and by content; the least recently used goes first.
_MAX_REMEMBERED = 512
#: Contents longer than this in all, in bytes, are forgotten.
_MAX_CONTENT_NBYTES = 256 << 20

#: Large pickles of functions to compare the next ones with.
_MAX_FROZEN = 16

#: (namespace, name, value): the value that a name must still have.
_Guard = tuple[dict[str, Any], str, Any]


class Function:
    """A function as workers know it.

    A function that captured nothing mutable is pickled when it is first sent: a map that stays in the caller never pays
    for it. Any other was pickled when it was registered, which froze what it captured.

    Attributes
    ----------
    key
        What the cost model knows it by: its code, not its identity.
    name
        For people.
    resources
        Handles of the resources that it carries.
    """

    __slots__ = ("__weakref__", "_fn", "_shipped", "_table", "blocks", "key", "name", "resources")

    def __init__(
        self,
        table: FunctionTable,
        fn: Callable[..., Any],
        entry: serialize.Entry | None = None,
        blocks: Sequence[Block] = (),
        resources: Sequence[Resource[Any]] = (),
    ) -> None:
        self._table = table
        self._fn: Callable[..., Any] | None = fn if entry is None else None
        self._shipped: tuple[int, serialize.Entry] | None = None
        if entry is not None:
            # One with a resource is unpickled anew, too: the worker may have closed the object that it had.
            self._shipped = table.intern(entry, has_state=bool(resources) or _carries_state(fn))
        self.resources = resources
        self.blocks = blocks
        for block in blocks:
            weakref.finalize(self, block.abandon).atexit = False
        self.key = cost_key(fn)
        self.name = serialize.name_of(fn)

    @property
    def fn_id(self) -> int:
        """Number that stands for it in frames: the same for equal pickles.

        It is negative for a function that carries state, which a worker unpickles anew for each task or chunk of a map.
        """
        return self._ship()[0]

    @property
    def data(self) -> serialize.Entry:
        """Its pickle, which may refer to `blocks`.

        Raises
        ------
        SerializationError
            If it cannot be pickled.
        """
        return self._ship()[1]

    @property
    def store(self) -> WarmBlocks:
        """Where its executor's blocks come from."""
        return self._table.store

    def _ship(self) -> tuple[int, serialize.Entry]:
        if self._shipped is None:
            assert self._fn is not None
            self._shipped = self._table.intern(_pickled(self._fn))
        return self._shipped

    def local(self) -> Callable[..., Any]:
        """The function to call in this process: a copy, if it carries state that a call could change."""
        if self._fn is None:
            by_id = {block.block_id: block for block in self.blocks}
            self._fn = serialize.decode(self.data, lambda block_id, *extent: by_id[block_id].private_view(*extent))
        return self._fn


class FunctionTable:
    """All functions of one executor. Any thread; the lock is held for look-ups only, never while pickling."""

    def __init__(self, store: WarmBlocks | None = None) -> None:
        self.store = store if store is not None else WarmBlocks(lambda: 0)
        # Guards the attributes below.
        self._lock = threading.Lock()
        self._by_identity: OrderedDict[int, tuple[Callable[..., Any], list[_Guard], Function]] = OrderedDict()
        self._ids: OrderedDict[serialize.Entry, int] = OrderedDict()  # by content
        self._content_nbytes = 0
        self._last_id = 0
        self._latest: tuple[serialize.Entry, int] = (b"", 0)
        # The latest large pickle of each function that may change, by its cost's key: most have not.
        self._frozen: dict[Hashable, bytes] = {}

    def find(self, fn: Callable[..., Any]) -> Function | None:
        """The entry of a function that was registered and cannot have changed since; nothing is pickled."""
        found = self._by_identity.get(id(fn))
        return found[2] if found is not None and found[0] is fn and _hold(found[1]) else None

    def register(self, fn: Callable[..., Any]) -> Function:
        """The entry of a function, made now or found.

        Raises
        ------
        SerializationError
            If it cannot be pickled; an exception of its own ``__reduce__`` passes as it is.
        """
        found = self.find(fn)
        if found is not None:
            return found
        guards = _guards(fn)
        if guards is None:
            return self._freeze(fn)
        function = Function(self, fn, None)
        with self._lock:
            self._by_identity[id(fn)] = (fn, guards, function)
            self._by_identity.move_to_end(id(fn))
            if len(self._by_identity) > _MAX_REMEMBERED:
                self._by_identity.popitem(last=False)
        return function

    def _freeze(self, fn: Callable[..., Any]) -> Function:
        """The entry of a function that may change: as it is now.

        Its large buffers stand in blocks. One that is unchanged, all of it compared, stands where it stood at the last
        call: then the entries are equal, and nothing is sent again.
        """
        writer = BlockWriter(self.store)
        key = cost_key(fn)
        try:
            entry = _encoded(fn, writer, self._frozen.get(key, b""))
            function = Function(self, fn, entry, writer.detach(), tuple(writer.needs.values()))
        finally:
            writer.close()
        data = serialize.pickle_of(entry)
        if len(data) >= SHARE_NBYTES:
            with self._lock:
                if len(self._frozen) >= _MAX_FROZEN:
                    self._frozen.clear()
                self._frozen[key] = data
        return function

    def intern(self, data: serialize.Entry, *, has_state: bool = False) -> tuple[int, serialize.Entry]:
        """The number of a pickled function; equal bytes have the same."""
        with self._lock:
            if data == self._latest[0]:  # to compare megabytes takes a fifth of the time of hashing them
                return self._latest[1], data
            fn_id = self._ids.get(data)
            if fn_id is None:
                self._last_id += 1
                fn_id = self._ids[data] = -self._last_id if has_state else self._last_id
                self._content_nbytes += len(serialize.pickle_of(data))
            self._ids.move_to_end(data)
            while len(self._ids) > 1 and (
                len(self._ids) > _MAX_REMEMBERED or self._content_nbytes > _MAX_CONTENT_NBYTES
            ):
                forgotten, _ = self._ids.popitem(last=False)
                self._content_nbytes -= len(serialize.pickle_of(forgotten))
                self._frozen.clear()  # it may be among these
            self._latest = data, fn_id
        return fn_id, data


def _pickled(fn: Callable[..., Any]) -> bytes:
    try:
        return serialize.dumps(fn)
    except Exception as error:
        from .process import not_picklable

        raise not_picklable(f"the function {serialize.name_of(fn)!r}", error) from error.__cause__


def _encoded(fn: Callable[..., Any], writer: BlockWriter, like: bytes) -> serialize.Entry:
    try:
        has_bulk = bulk.is_among(_captured(fn))
        return serialize.encode(fn, writer, least_nbytes=SHARE_NBYTES, has_bulk=has_bulk, like=like)
    except Exception as error:
        from .process import not_picklable

        raise not_picklable(f"the function {serialize.name_of(fn)!r}", error) from error.__cause__


def _captured(fn: Any) -> list[Any]:
    """What a function obviously carries."""
    if isinstance(fn, functools.partial):
        return [*fn.args, *fn.keywords.values(), *_captured(fn.func)]
    if isinstance(fn, types.MethodType):
        return list(getattr(fn.__self__, "__dict__", {}).values())
    if not isinstance(fn, types.FunctionType):
        return list(getattr(fn, "__dict__", {}).values())
    captured = list(fn.__defaults__ or ())
    for cell in fn.__closure__ or ():
        try:
            captured.append(cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    return captured


def cost_key(fn: Any) -> Hashable:
    """What identifies a function's cost: the code that runs, wherever the object came from."""
    if isinstance(fn, functools.partial):
        return ("partial", cost_key(fn.func))
    if isinstance(fn, types.MethodType):
        return ("method", cost_key(fn.__func__))
    code = getattr(fn, "__code__", None)
    module, qualname = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
    if isinstance(code, types.CodeType):
        return (module, qualname, code)
    if qualname is None:
        return (type(fn).__module__, type(fn).__qualname__)
    return (module, qualname)


def _hold(guards: list[_Guard]) -> bool:
    for namespace, name, value in guards:  # a loop: most functions have none, and a generator takes 1 us
        if namespace.get(name, _MISSING) is not value:
            return False
    return True


_MISSING = object()


def is_importable(obj: Any) -> bool:
    """Whether another process finds the very same object by its module and name."""
    module_name = getattr(obj, "__module__", None)
    qualname = getattr(obj, "__qualname__", None)
    if module_name in (None, "__main__") or not isinstance(qualname, str):
        return False
    found: Any = sys.modules.get(module_name)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found is obj


def _guards(fn: Any) -> list[_Guard] | None:
    """What must stay the same for the pickle of `fn` to stay true; None when that cannot be told."""
    guards: list[_Guard] = []
    return guards if _collect(fn, guards, set()) else None


def _collect(value: Any, guards: list[_Guard], seen: set[int]) -> bool:
    """Add guards for what `value` captured; False when something in it may change unnoticed."""
    if serialize.is_scalar(value) or isinstance(value, types.ModuleType):
        return True
    if isinstance(value, (types.BuiltinFunctionType, type)):
        owner = getattr(value, "__self__", None)
        return is_importable(value) and (owner is None or isinstance(owner, (types.ModuleType, type)))
    if type(value) is not types.FunctionType:
        return False
    if is_importable(value) or id(value) in seen:
        return True
    seen.add(id(value))
    if value.__dict__ or value.__kwdefaults__ is not None:
        return False
    if not all(_collect(v, guards, seen) for v in value.__defaults__ or ()):
        return False
    attributes = _Attributes(value)
    guards.append((attributes, "__code__", value.__code__))
    guards.append((attributes, "__defaults__", value.__defaults__))
    guards.append((attributes, "__kwdefaults__", None))
    guards.append((attributes, "__dict__", None))
    for cell in value.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:  # not filled yet
            return False
        guards.append((_Attributes(cell), "cell_contents", content))
        if not _collect(content, guards, seen):
            return False
    namespace = value.__globals__
    for name in _global_names(value.__code__):
        if name not in namespace:
            guards.append((namespace, name, _MISSING))
            continue
        guards.append((namespace, name, namespace[name]))
        if not _collect(namespace[name], guards, seen):
            return False
    return True


def _carries_state(fn: Any, seen: frozenset[int] = frozenset()) -> bool:
    """Whether a call may change something that belongs to this function alone, beside globals."""
    if type(fn) is not types.FunctionType or fn.__dict__ or fn.__kwdefaults__ is not None:
        return True
    if any(_is_empty(cell) for cell in fn.__closure__ or ()):
        return True
    seen |= {id(fn)}
    for value in _captured(fn):
        if type(value) is types.FunctionType:
            if id(value) not in seen and _carries_state(value, seen):
                return True
        elif not _collect(value, [], set()):
            return True
    return False


def _is_empty(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return True
    return False


class _Attributes(dict[str, Any]):
    """Attributes of an object, looked up as in a namespace; an empty ``__dict__`` counts as None."""

    def __init__(self, obj: object) -> None:
        super().__init__()
        self._obj = obj

    def get(self, name: str, default: Any = None) -> Any:
        try:
            value = getattr(self._obj, name)
            return None if name == "__dict__" and not value else value
        except (AttributeError, ValueError):  # an emptied cell
            return default


def _global_names(code: types.CodeType) -> set[str]:
    """Names that code may look up in its globals; attribute names among them do no harm."""
    names = set(code.co_names)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            names |= _global_names(const)
    return names
