"""Results of a sample that `execute` takes over instead of running their items again.

This must never give a wrong result, so it happens only where all of this holds; otherwise everything runs:

* The data is the very object `OptimizationResult.data`, so the caller asks to go on from where the sample ended. The
  list or array that went into `optimize` is another object.
* The result object still exists.
* The function's code, what it captured, and each measured item pickle to the same bytes as when they were measured.
* Nobody has taken these results before: a second `execute` runs all items, as a second loop would.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from ..workers.functions import cost_key
from .sampling import Sample, fingerprint

#: By the identity of the data, which an entry holds, so that no other object can have it.
_entries: weakref.WeakValueDictionary[int, Takeover] = weakref.WeakValueDictionary()


class Takeover:
    """Results of the measured items of one input. Any thread.

    Parameters
    ----------
    func
        The function that was measured.
    data
        All items.
    sample
        What came out.
    """

    def __init__(self, func: Callable[..., Any], data: Sequence[Any], sample: Sample) -> None:
        self._data = data
        self._function = (cost_key(func), fingerprint(func))
        self._items = {i: sample.digests.get(i) for i in sample.results}
        self._lock = threading.Lock()  # guards the results, which one caller gets
        self._results: dict[int, Any] | None = sample.results
        _entries[id(data)] = self

    def __deepcopy__(self, memo: object) -> Takeover:
        """Itself, for `dataclasses.asdict` of a result: what can be taken once is not doubled."""
        return self

    def take(self, func: Callable[..., Any], data: Any) -> dict[int, Any]:
        """Results by index of their item, once; empty unless they are certain to be those of `func` over `data`."""
        if data is not self._data or self._results is None:
            return {}
        if cost_key(func) != self._function[0] or not self._has_not_changed(func):
            return {}
        with self._lock:
            results, self._results = self._results, None
        return results or {}

    def _has_not_changed(self, func: Callable[..., Any]) -> bool:
        try:
            if fingerprint(func) != self._function[1]:
                return False
            return all(fingerprint(self._data[i]) == digest for i, digest in self._items.items())
        except Exception:  # it cannot be indexed or pickled any more, so it has changed
            return False


def take_over(func: Callable[..., Any], data: Any) -> dict[int, Any]:
    """Results of a sample of `func` over `data` that need not be computed again, by index; often none."""
    entry = _entries.get(id(data))
    return entry.take(func, data) if entry is not None else {}
