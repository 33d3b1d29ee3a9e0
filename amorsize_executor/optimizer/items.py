"""Data as people have it, as a sequence of items.

A list, a range or an array stays what it is; whatever else can be iterated over becomes a list.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .arguments import shown


def as_items(data: Any, name: str = "data") -> Sequence[Any]:
    """The items of `data`.

    Parameters
    ----------
    data
        A list, NumPy array (items are its rows), range, pandas object (the values of a Series or Index; the rows of a
        DataFrame, each a Series as in ``DataFrame.apply(func, axis=1)``), generator or other iterable.
    name
        Of the parameter, for errors.

    Returns
    -------
    Sequence
        A list, range or array as it came; anything else as a list.

    Raises
    ------
    TypeError
        For what is no iterable of items.
    """
    if isinstance(data, (list, range)):
        return data
    if is_array(data):
        if data.ndim == 0:
            raise TypeError(f"{name} must have items, got an array of no dimension: {data!r}")
        array: Sequence[Any] = data
        return array
    return list(iterate(data, name))


def own_items(data: Any) -> Sequence[Any]:
    """The same as an object of its own, equal to `data` and told apart from it by identity; items are not copied."""
    items: Any = as_items(data)
    if items is data:
        items = data.view() if is_array(data) else data[:]
    return items  # type: ignore[no-any-return]  # of as_items' kinds


def iterate(data: Any, name: str = "data") -> Iterator[Any]:
    """An iterator over the items of `data`, as `as_items` sees them; reads no item yet."""
    if isinstance(data, (str, bytes, bytearray)):
        what = "characters" if isinstance(data, str) else "bytes"
        raise TypeError(
            f"{name} must be an iterable of items, got {shown(data)}; pass list(...) of it if its {what} are the items"
        )
    if _is_frame(data):
        return (row for _, row in data.iterrows())
    try:
        return iter(data)
    except TypeError:
        raise TypeError(
            f"{name} must be an iterable of items (a list, array, range, pandas object, generator, ...), "
            f"got {shown(data)}"
        ) from None


def is_array(data: Any) -> bool:
    """Whether it is a NumPy array; NumPy is not imported to find out."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(data, numpy.ndarray)


def _is_frame(data: Any) -> bool:
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(data, pandas.DataFrame)


def spread(n_items: int, n_wanted: int) -> list[int]:
    """Indices that stand for all: even steps through the items, in an order in which each beginning is spread, too.

    Items are often sorted, so the first ones of a list tell little about the last ones; and a sample may have to stop
    early. The order is that of van der Corput (1935): the first, the middle, then the quarters, ...

    >>> spread(100, 4)
    [0, 50, 25, 75]
    >>> spread(3, 30)
    [0, 1, 2]
    """
    if n_wanted >= n_items:
        return list(range(n_items))
    bits = max((n_wanted - 1).bit_length(), 0)
    order = sorted(range(n_wanted), key=lambda i: int(f"{i:0{bits}b}"[::-1], 2) if bits else 0)
    return [i * n_items // n_wanted for i in order]


def note_index(error: BaseException, index: int, n_items: int | None, name: str) -> None:
    """Say in an exception which item raised it, as a note that tracebacks show (its ``__notes__`` before 3.11)."""
    of = f" of {n_items:,}" if n_items is not None else ""
    note = f"raised by {name} for item {index:,}{of} (counted from 0)"
    try:
        if hasattr(error, "add_note"):
            error.add_note(note)
        else:
            BaseException.__setattr__(error, "__notes__", [*getattr(error, "__notes__", []), note])
    except Exception:  # of a class that takes no attributes: the note is a help, no need
        pass


def is_of_item(error: BaseException) -> bool:
    """Whether an error that came in place of a result is that item's, and not the pool's or the user's Ctrl-C."""
    from concurrent.futures import BrokenExecutor

    if isinstance(error, BrokenExecutor):
        # Who raises it has imported its module. At the end of the interpreter, that cannot be imported any more.
        errors = sys.modules.get("amorsize_executor.errors")
        return errors is not None and isinstance(error, errors.WorkerDied)
    return not isinstance(error, (KeyboardInterrupt, GeneratorExit))


def item_count(data: Iterable[Any]) -> int | None:
    """How many items there are, if `data` knows."""
    try:
        return len(data)  # type: ignore[arg-type]
    except TypeError:
        return None
