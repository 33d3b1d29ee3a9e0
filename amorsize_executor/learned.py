"""What a cost model has learned, kept in a store from one process to the next.

A function is recalled when an executor meets it for the first time, and what was learned is written when the executor
ends or has had nothing to do for a while: never while a caller waits. What the store cannot do (a file that is
corrupt, locked, read-only or newer) costs one warning, and learning goes on in memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

from .identity import function_key, machine_key
from .store import Record, Store

if TYPE_CHECKING:
    import os

    from .decisions.cost_model import CostModel

#: Key of the machine's own record.
_MACHINE = "workers"


class LearnedCosts:
    """A cost model's memory in a store. Any thread."""

    def __init__(self, path: str | os.PathLike[str], model: CostModel) -> None:
        self._store = Store(path)
        self._model = model
        # Guards _names and _kept.
        self._lock = threading.Lock()
        self._names: dict[Hashable, str | None] = {}  # by the model's key: the name that outlives the process
        self._kept: dict[str, int] = {}  # items that were measured when a function was last written
        self._is_begun = False

    def begin(self) -> None:
        """Recall what is known of this machine."""
        if not self._is_begun:
            self._is_begun = True
            found = self._store.read("machine", _MACHINE, machine_key())
            if found is not None:
                self._model.restore_machine(found)

    def recall(self, key: Hashable, fn: Callable[..., Any]) -> None:
        """Tell the model what was learned about a function, if it is new here."""
        if key in self._names:
            return
        name = function_key(fn)
        found = None
        if name is not None and self._model.lookup(key) is None:
            found = self._store.read("function", name, machine_key())
        with self._lock:
            self._names[key] = name
        if found is not None:
            self._model.restore(key, found)

    def keep(self) -> None:
        """Write what has been learned since the last time."""
        machine = machine_key()
        with self._lock:
            names = list(self._names.items())
        records = []
        for key, name in names:
            cost = self._model.lookup(key)
            if name is None or cost is None or cost.n_items <= self._kept.get(name, 0):
                continue
            value = self._model.export(key)
            if value is not None:
                records.append(Record("function", name, machine, value, n=cost.n_items))
                self._kept[name] = cost.n_items
        if records:
            records.append(Record("machine", _MACHINE, machine, self._model.export_machine()))
            self._store.write_many(records)

    def close(self) -> None:
        """Write, and let go of the file."""
        self.keep()
        self._store.close()
