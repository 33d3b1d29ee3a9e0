"""What running one item of a workload costs, in numbers that can be planned with, shown, and kept under a name."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from ..decisions.cost_model import CostModel, FunctionCost
from ..identity import function_key, machine_key
from ..store import Record, Store, default_path

#: A first call this many times as long as the others, and longer than the next number of seconds, was a warm-up.
_WARM_UP_FACTOR, _WARM_UP_S = 3.0, 1e-3
#: What is known under a name is written again when the time of an item has changed by this share.
_NEWS = 0.1


class Workload(NamedTuple):
    """Measurements for one item of a function.

    Attributes
    ----------
    function
        Name of the function.
    n_measured
        Items that were measured.
    item_s, item_std_s
        Time of one item, and its standard deviation, in seconds.
    first_s
        Time of the first call in a process, in seconds; 0 if not known.
    cpu_share
        CPU time over elapsed time; more than 1 if the function uses several CPUs.
    pickle_s, carry_s
        Seconds to pickle an item and its result, and what the caller spends to send the one and take the other.
    nbytes_in, nbytes_out
        Bytes of an item and of its result.
    peak_nbytes
        Peak resident memory of a worker, in bytes; 0 if not known.
    round_trip_s
        Seconds from the submission of an empty task to its result; 0 if not known.
    """

    function: str
    n_measured: int
    item_s: float
    item_std_s: float = 0.0
    first_s: float = 0.0
    cpu_share: float = 1.0
    pickle_s: float = 0.0
    carry_s: float = 0.0
    nbytes_in: float = 0.0
    nbytes_out: float = 0.0
    peak_nbytes: int = 0
    round_trip_s: float = 0.0

    @property
    def warm_up_s(self) -> float:
        """What the first call in a process takes beyond a later one, in seconds, where that is worth a word."""
        extra = self.first_s - self.item_s
        return extra if self.first_s > _WARM_UP_FACTOR * self.item_s and extra > _WARM_UP_S else 0.0

    def cost(self) -> FunctionCost:
        """As the planner wants it."""
        model = CostModel()
        self.teach(model, None)
        cost = model.lookup(None)
        assert cost is not None
        return cost._replace(std_s=self.item_std_s)

    def teach(self, model: CostModel, key: Hashable) -> None:
        """Tell a cost model."""
        n = self.n_measured
        model.observe(key, n, n * self.item_s, min(self.cpu_share, 1.0) * n * self.item_s)
        spent = n * self.carry_s + 0.5 * CostModel.CHUNK_OVERHEAD_S
        model.observe_carriage(key, n, spent, int(n * self.nbytes_in))


# Guards the two below.
_lock = threading.Lock()
_store: Store | None = None
_kept: dict[str, tuple[str | None, float]] = {}  # the code, and the time of an item as last read or written, by name


def recall(cache_key: str, func: Callable[..., Any]) -> Workload | None:
    """What is known under a name on this machine; None when nothing is, or when it is about other code.

    Parameters
    ----------
    cache_key
        The name.
    func
        The function that is to run; what was measured of another one, or of an earlier version of its code, is no help.
    """
    value = _get_store().read("workload", cache_key, machine_key())
    if value is None or value.get("code") != function_key(func):
        return None
    numbers: dict[str, Any] = {}
    for name in Workload._fields[1:]:
        number = value.get(name)
        if not isinstance(number, (int, float)) or not 0 <= number < math.inf:
            return None
        numbers[name] = number
    if numbers["n_measured"] < 1:
        return None
    workload = Workload(str(value.get("function")), **numbers)
    with _lock:
        _kept[cache_key] = (function_key(func), workload.item_s)
    return workload


def remember(cache_key: str, func: Callable[..., Any], workload: Workload) -> None:
    """Keep what is known under a name, for this machine; a no-op when it is no news."""
    code = function_key(func)
    with _lock:
        known_code, known_s = _kept.get(cache_key, (None, math.inf))
    if known_code == code and abs(workload.item_s - known_s) <= _NEWS * known_s < math.inf:
        return
    known = recall(cache_key, func)
    if known is not None:  # a map measures less than a sample: keep what it does not know
        unknown = {name: number for name, number in known._asdict().items() if not workload._asdict()[name]}
        workload = workload._replace(**unknown)
    value: dict[str, float | int | str | None] = {**workload._asdict(), "code": code}
    _get_store().write_many([Record("workload", cache_key, machine_key(), value, workload.n_measured)])
    with _lock:
        _kept[cache_key] = (code, workload.item_s)


def _get_store() -> Store:
    """The user's store; another one if the environment names another."""
    global _store
    path = default_path()
    with _lock:
        if _store is None or _store.path != path.absolute():
            _store = Store(path)
            _kept.clear()
        return _store


def _renew_lock() -> None:
    """In the child of a fork: a thread that it has not may have held the lock."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
