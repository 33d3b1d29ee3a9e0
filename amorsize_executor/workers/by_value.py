"""Pickling by value: what other processes cannot import, with one ``__main__`` for all functions of it.

cloudpickle gives each function that it unpickles globals of its own. Functions of a script share them, though: an
initializer sets what tasks read, and tasks fill a cache that the next ones find. So functions of ``__main__`` get one
namespace in each process that receives them. What is sent with a function is put there, unless code in that process
has bound the name anew: that stays.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import cloudpickle

_CachedFunction = type(functools.lru_cache(lambda: None))

#: Globals of all functions of the sender's ``__main__``, and what was put there with them.
_namespace: dict[str, Any] = {"__name__": "__main__"}
_sent: dict[str, Any] = {}
_MISSING = object()
#: Types whose instances are neither classes nor functions: those are pickled as ever, and are most objects of a model.
_ordinary: set[type] = set()
_MOST_ORDINARY = 1_000
_reducers = cloudpickle.Pickler.dispatch_table


class _MainNamespace:
    """Stands in a pickle for the receiver's namespace of ``__main__``."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[()]]:
        return main_namespace, ()


def main_namespace() -> dict[str, Any]:
    """The namespace of functions that came from another process's ``__main__``."""
    return _namespace


def restore_state(fn: types.FunctionType, state: tuple[Callable[..., Any], Any]) -> None:
    """Give a function of ``__main__`` its state; called when it is unpickled."""
    set_state, (attributes, slots) = state
    namespace = fn.__globals__
    sent = {
        name: value
        for name, value in slots["__globals__"].items()
        if name not in namespace or namespace[name] is _sent.get(name, _MISSING)
    }
    _sent.update(sent)
    set_state(fn, (attributes, {**slots, "__globals__": sent}))


def forget(obj: object) -> None:
    """Let go of a global that was sent."""
    for name in [name for name, value in _sent.items() if value is obj]:
        del _sent[name]
        if _namespace.get(name) is obj:
            del _namespace[name]


def restore_cached(fn: Callable[..., Any], parameters: dict[str, Any]) -> Callable[..., Any]:
    """A function of `functools.lru_cache` with an empty cache; called when it is unpickled."""
    cached: Callable[..., Any] = functools.lru_cache(**parameters)(fn)
    return cached


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # untyped
    """cloudpickle's, with one namespace for all functions of ``__main__``."""

    @property
    def dispatch_table(self) -> dict[type, Callable[[Any], Any]]:
        """The reductions of cloudpickle as a plain dictionary: its chain of two takes longer to look into."""
        return {kind: reduction for table in reversed(_reducers.maps) for kind, reduction in table.items()}

    def reducer_override(self, obj: Any) -> Any:
        """What to pickle in place of an object, as `pickle.Pickler` documents it."""
        kind = type(obj)
        if kind in _ordinary:
            return NotImplemented
        if isinstance(obj, _CachedFunction) and getattr(obj, "__module__", None) == "__main__":
            return restore_cached, (obj.__wrapped__, obj.cache_parameters())
        reduced = super().reducer_override(obj)
        if isinstance(obj, types.FunctionType) and isinstance(reduced, tuple) and len(reduced) == 6:
            make, args, state, _, _, set_state = reduced
            if obj.__globals__.get("__name__") == "__main__":
                code, _, *others = args
                return make, (code, _MainNamespace(), *others), (set_state, state), None, None, restore_state
        if reduced is NotImplemented and not issubclass(kind, (type, types.FunctionType, _CachedFunction)):
            if len(_ordinary) >= _MOST_ORDINARY:
                _ordinary.clear()
            _ordinary.add(kind)
        return reduced
