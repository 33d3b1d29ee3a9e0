"""The worker's side of `AmorsizeExecutor.batch`: one call of a function over many items, timed and checked.

A class and not a partial, so that the executor names the function itself in what it says about it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any, NamedTuple


class BatchResult(NamedTuple):
    """What a batch has given.

    Attributes
    ----------
    run_s
        Seconds that the function took.
    values
        One result for each item; None if it gave something else.
    problem
        What it gave instead, in words.
    """

    run_s: float
    values: Any
    problem: str = ""


class BatchCall:
    """Calls a function with a list of items.

    Parameters
    ----------
    fn
        Takes a list, and returns as many results in the same order.
    name
        Of the function, for messages.
    """

    def __init__(self, fn: Callable[[list[Any]], Iterable[Any]], name: str) -> None:
        self.fn = fn
        self.__qualname__ = name

    def __call__(self, items: list[Any]) -> BatchResult:
        """Run a batch; an exception of the function is the batch's."""
        n_items = len(items)  # the function may change the list
        begun = time.perf_counter()
        results = self.fn(items)
        values, problem = _one_for_each(results, n_items, self.__qualname__)
        return BatchResult(time.perf_counter() - begun, values, problem)


def _one_for_each(results: Any, n_items: int, name: str) -> tuple[Any, str]:
    """The results as a list or an array of the right length, or what is wrong with them."""
    # What iterates over something else than its rows would give wrong results where the number fits by chance.
    is_otherwise = isinstance(results, (str, bytes, bytearray, Mapping, Set)) or hasattr(results, "iterrows")
    if is_otherwise or not isinstance(results, Iterable) or getattr(results, "ndim", 1) == 0:
        return None, (
            f"{name} was called with a list of {n_items} items and must return one result for each of them, as a list "
            f"or an array; it returned {type(results).__qualname__}"
        )
    if not isinstance(results, (list, tuple)) and not hasattr(results, "__array_interface__"):
        results = list(results)
    if len(results) != n_items:
        return None, (
            f"{name} returned {len(results)} results for a batch of {n_items} items: it must return one for each, in "
            "the same order"
        )
    return results, ""
