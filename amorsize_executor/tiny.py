"""Maps so short that all there is to decide costs more than their items.

A map of a known function that should take less than `MOST_S` in a loop is run as one batch by its caller, with no job,
plan or scheduler. That is a bet: who has not ended (or not even come) after `PATIENCE_S` has lost it, and the I/O
thread makes an ordinary map of all that has not begun (`Maps.convert`).

States, under `TinyMap.lock`::

    waiting   --caller-->      running    --caller-->      done
    waiting   --I/O thread-->  converted                          all items are the other map's
    running   --I/O thread-->  running, with a rest               what was not begun is the other map's
    waiting   --pool broken--> failed
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from .decisions import planner
from .decisions.plan import Span
from .inline import InlineBatch, copy_values
from .results import Failed

if TYPE_CHECKING:
    from .decisions.cost_model import CostModel, FunctionCost
    from .decisions.plan import Plan
    from .decisions.planner import PoolState
    from .results import MapJob
    from .workers.functions import Function

#: A map is tiny up to this time of a loop, in seconds: below that no other plan is considered, either.
MOST_S = planner.MIN_GAIN_S
#: After this time, in seconds, it turns into an ordinary map.
PATIENCE_S = planner.INLINE_ITEM_S


class TinyMap:
    """One such map. `run` is the caller's, `give_up` the I/O thread's or that of who shuts down.

    Attributes
    ----------
    function, items, is_star
        What is called with what.
    rest
        The ordinary map of the last items, if it came to that.
    """

    __slots__ = (
        "_batch", "_error", "_is_done", "_item_s", "_ran", "created_at", "function", "is_star", "items",
        "lock", "rest",
    )  # fmt: skip

    def __init__(self, function: Function, items: list[Any], is_star: bool, item_s: float) -> None:
        self.function = function
        self.items = items
        self.is_star = is_star
        self.created_at = time.perf_counter()
        self.rest: MapJob | None = None
        # Guards the state: `_batch`, `_is_done`, `_error`, `rest`.
        self.lock = threading.Lock()
        self._batch: InlineBatch | None = None
        self._is_done = False
        self._error: BaseException | None = None
        self._item_s = item_s  # expected
        self._ran: tuple[int, float, float] | None = None  # items, start and stop in the caller

    def run(self, cost_model: CostModel, n_busy: int) -> list[Any]:
        """Run the items here; results of all that were not given to `rest`, the last of them `Failed` if one raised."""
        with self.lock:
            if self._error is not None:
                raise self._error
            if self.rest is not None:
                return []
            batch = self._batch = InlineBatch(0, self.items.copy(), self.function.local(), self.is_star)
        problem: BaseException | None = None
        try:
            problem = batch.run()
        finally:
            stopped_at = time.perf_counter()
            with self.lock:
                self._is_done = True
        values = batch.values
        n_run = len(values) + (problem is not None)
        n_rest = self.rest.n_items if self.rest is not None else 0
        if problem is None:  # who took items back may have cut one too many off
            for item in self.items[len(values) : len(self.items) - n_rest]:
                extra = InlineBatch(0, [item], self.function.local(), self.is_star)
                problem = extra.run()
                values += extra.values
                if problem is not None:
                    break
        problem = copy_values(values, 0, self.function.name) or problem
        if problem is not None:
            values.append(Failed(problem))
        self._ran = (n_run, batch.started_at, stopped_at)
        if n_run:
            elapsed_s = stopped_at - batch.started_at
            if n_busy or n_rest:
                cost_model.observe(self.function.key, n_run, elapsed_s, at_once=1 + n_busy)
                if not n_rest:
                    cost_model.observe_map(self.function.key, {1 + n_busy: (n_run, elapsed_s)})
            else:
                cost_model.observe_tiny_map(self.function.key, n_run, elapsed_s)
        return values

    def give_up(self) -> tuple[list[Any], float] | None:
        """Items that have not begun, now the taker's, and since when the caller is busy or away; under the lock."""
        if self._is_done or self.rest is not None:
            return None
        batch = self._batch
        if batch is None:
            return self.items, self.created_at
        taken = batch.take_back()
        return (self.items[taken.start :], batch.started_at) if taken else None

    def fail(self, error: BaseException) -> None:
        """The pool is broken: who has not begun never will."""
        with self.lock:
            self._error = error

    def plan(self, cost: FunctionCost | None, pool: PoolState) -> Plan:
        """What was decided, and what came of it; by what is known about the function and the pool."""
        n_items = len(self.items)
        known = cost._replace(mean_s=self._item_s) if cost is not None else None
        plan = planner.plan_map(self.function.name, n_items, known, pool, inline=True)
        if self.rest is not None:
            rest = self.rest.plan
            assert rest is not None
            return rest._replace(n_items=n_items, n_inline=n_items - self.rest.n_items + rest.n_inline)
        if self._ran is None:
            return plan
        n_run, start, stop = self._ran
        span = Span(0, start - self.created_at, stop - self.created_at, n_run)
        return plan._replace(actual_s=stop - self.created_at, n_inline=n_run, timeline=(span,))
