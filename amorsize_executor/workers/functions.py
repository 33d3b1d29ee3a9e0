"""Functions that tasks run: each is pickled once and sent once to each worker, never stale.

A function that another process can import is sent by reference. One that it cannot (a lambda, a closure, a function of
``__main__``) is sent by value, and the pickle is kept only while nothing that it captured can have changed: its
code, defaults, closure and the globals that it names must still be the same immutable objects (numbers, strings, modules,
other such functions). Everything else (bound methods, partials, callable objects, functions over lists or models) is
pickled again at each call and compared as bytes: equal bytes are the same function, so nothing is sent again.
"""

from __future__ import annotations

import builtins
import functools
import sys
import threading
import types
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from . import serialize

#: Functions remembered by identity, and by content; the least recently used goes first.
_MAX_REMEMBERED = 512
#: Contents longer than this in all, in bytes, are forgotten.
_MAX_CONTENT_NBYTES = 256 << 20

#: (namespace, name, value): the value that a name must still have.
_Guard = tuple[dict[str, Any], str, Any]


class Function:
    """A function as workers know it.

    Attributes
    ----------
    fn_id
        Number that stands for it in frames.
    data
        Its pickle.
    key
        What the cost model knows it by: its code, not its identity.
    name
        For people.
    """

    __slots__ = ("_is_mutable", "_local", "data", "fn_id", "key", "name")

    def __init__(
        self, fn_id: int, data: bytes, key: Hashable, name: str, local: Callable[..., Any], is_mutable: bool
    ) -> None:
        self.fn_id = fn_id
        self.data = data
        self.key = key
        self.name = name
        self._local: Callable[..., Any] | None = None if is_mutable else local
        self._is_mutable = is_mutable

    def local(self) -> Callable[..., Any]:
        """The function to call in this process: a copy, if it carries state that a call could change."""
        if self._local is None:
            import pickle

            self._local = pickle.loads(self.data)
        return self._local


class FunctionTable:
    """All functions of one executor. Any thread; the lock is held for look-ups only, never while pickling."""

    def __init__(self) -> None:
        # Guards the three attributes below.
        self._lock = threading.Lock()
        self._by_identity: OrderedDict[int, tuple[Callable[..., Any], list[_Guard], Function]] = OrderedDict()
        self._by_content: OrderedDict[bytes, Function] = OrderedDict()
        self._content_nbytes = 0
        self._next_id = 0

    def register(self, fn: Callable[..., Any]) -> Function:
        """The entry of a function, made now or found.

        Raises
        ------
        SerializationError
            If it cannot be pickled; an exception of its own ``__reduce__`` passes as it is.
        """
        found = self._by_identity.get(id(fn))
        if found is not None and found[0] is fn and _hold(found[1]):
            return found[2]
        try:
            data = serialize.dumps(fn)
        except Exception as error:
            from .process import not_picklable

            raise not_picklable(f"the function {serialize.name_of(fn)!r}", error) from error.__cause__
        guards = _guards(fn)
        with self._lock:
            function = self._by_content.get(data)
            if function is None:
                self._next_id += 1
                name = serialize.name_of(fn)
                function = Function(self._next_id, data, cost_key(fn), name, fn, guards is None)
                self._by_content[data] = function
                self._content_nbytes += len(data)
            else:
                self._by_content.move_to_end(data)
            while len(self._by_content) > _MAX_REMEMBERED or (
                self._content_nbytes > _MAX_CONTENT_NBYTES and len(self._by_content) > 1
            ):
                forgotten, _ = self._by_content.popitem(last=False)
                self._content_nbytes -= len(forgotten)
            if guards is not None:
                self._by_identity[id(fn)] = (fn, guards, function)
                if len(self._by_identity) > _MAX_REMEMBERED:
                    self._by_identity.popitem(last=False)
        return function


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
    return all(namespace.get(name, _MISSING) is value for namespace, name, value in guards)


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
    if value.__dict__ or value.__kwdefaults__:
        return False
    if not all(_collect(v, guards, seen) for v in value.__defaults__ or ()):
        return False
    attributes = _Attributes(value)
    guards.append((attributes, "__code__", value.__code__))
    guards.append((attributes, "__defaults__", value.__defaults__))
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
            if not hasattr(builtins, name):
                guards.append((namespace, name, _MISSING))
            continue
        guards.append((namespace, name, namespace[name]))
        if not _collect(namespace[name], guards, seen):
            return False
    return True


class _Attributes(dict[str, Any]):
    """Attributes of an object, looked up as in a namespace."""

    def __init__(self, obj: object) -> None:
        super().__init__()
        self._obj = obj

    def get(self, name: str, default: Any = None) -> Any:
        try:
            return getattr(self._obj, name)
        except (AttributeError, ValueError):  # an emptied cell
            return default


def _global_names(code: types.CodeType) -> set[str]:
    """Names that code may look up in its globals; attribute names among them do no harm."""
    names = set(code.co_names)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            names |= _global_names(const)
    return names
