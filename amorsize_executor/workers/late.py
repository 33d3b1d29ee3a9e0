"""Does what a module of the standard library needs in a worker when it is first imported there, if it ever is.

`multiprocessing` must know what the worker's process is, and `logging` where records go. To import them for that at the
start of each worker would take as long as the interpreter does to start, and few tasks need them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

TYPE_CHECKING = False  # as of typing: see the package's docstring
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any


def when_imported(name: str, then: Callable[[ModuleType], object]) -> None:
    """Call a function with a module when it has been imported, before whoever imports it has it; now if it has been.

    Parameters
    ----------
    name
        Full name of the module; asked for once.
    then
        What to call, in the thread that imports it. What it raises is raised by the import.
    """
    module = sys.modules.get(name)
    if module is not None:
        then(module)
        return
    _finder.waiting[name] = then
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


class _Finder:
    """Finds, by way of all other finders, the modules that somebody waits for.

    Attributes
    ----------
    waiting
        What to call, by module.
    """

    def __init__(self) -> None:
        self.waiting: dict[str, Callable[[ModuleType], object]] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As for any finder; None for what nobody waits for."""
        then = self.waiting.get(name)
        if then is None:
            return None
        for finder in sys.meta_path:
            find_spec = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find_spec(name, path, target) if find_spec and finder is not self else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, then)  # type: ignore[assignment]  # as far as imports use it
                return spec
        return None


class _Loader:
    """Loads a module as its own loader does, and tells that it has been."""

    def __init__(self, loader: Any, then: Callable[[ModuleType], object]) -> None:
        self._loader = loader
        self._then = then

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> Any:
        """As its own loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """As its own loader, which is all that is seen of it afterwards."""
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        if _finder.waiting.pop(module.__name__, None) is not None:
            self._then(module)


_finder = _Finder()
