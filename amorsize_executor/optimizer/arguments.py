"""Checks of what users pass: each error names the parameter, what came, and what is expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


def shown(obj: object) -> str:
    """An object in an error message: its beginning and its type."""
    try:
        text = repr(obj)
    except Exception:  # of its own __repr__
        text = "an object that cannot be shown"
    text = text if len(text) <= 60 else text[:57] + "..."
    return f"{text} ({type(obj).__qualname__})"


def check_callable(func: Any) -> Callable[..., Any]:
    """`func`, if it can be called.

    Raises
    ------
    TypeError
        If not.
    """
    if not callable(func):
        raise TypeError(f"func must be a callable that takes one item, got {shown(func)}")
    return func  # type: ignore[no-any-return]


def check_count(name: str, value: Any, *, hint: str = "", is_optional: bool = True) -> int | None:
    """`value` as an int of at least 1; or None, where that is allowed.

    Raises
    ------
    TypeError, ValueError
        If it is neither; `hint` ends the message.
    """
    if value is None and is_optional:
        return None
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        allowed = " or None" if is_optional else ""
        raise TypeError(f"{name} must be an integer of at least 1{allowed}, got {shown(value)}{hint}")
    if value.__index__() < 1:
        raise ValueError(f"{name} must be at least 1, got {value!r}{hint}")
    return int(value.__index__())


def check_nbytes(name: str, value: Any) -> float | None:
    """`value` as a number of bytes of at least 1, or None.

    Raises
    ------
    TypeError, ValueError
        If it is neither.
    """
    if value is None:
        return None
    is_number = isinstance(value, (int, float)) or hasattr(value, "__index__")
    if isinstance(value, bool) or not is_number:
        raise TypeError(f"{name} must be a number of bytes or None, got {shown(value)}")
    if not value >= 1:  # not a number is not
        raise ValueError(f"{name} must be at least 1 byte, got {value!r}")
    return float(value)


def check_flag(name: str, value: Any) -> bool:
    """`value`, if it is True or False.

    Raises
    ------
    TypeError
        If not.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")
    return value


def check_progress(value: Any) -> None:
    """Accept a bool, a callable or None.

    Raises
    ------
    TypeError
        For anything else.
    """
    if value is not None and not isinstance(value, bool) and not callable(value):
        raise TypeError(f"progress must be True, False, a callable or None, got {shown(value)}")


class Bounds(NamedTuple):
    """Checked bounds of a call; None where there is none."""

    max_workers: int | None
    memory_limit: float | None


def check_common(
    func: Any, sample_size: Any, max_workers: Any, memory_limit: Any, cache_key: Any, profile: Any, verbose: Any
) -> Bounds:
    """Check what the optimizer's functions have in common.

    Raises
    ------
    TypeError, ValueError
        For a parameter of the wrong type or out of range.
    """
    check_callable(func)
    check_count("sample_size", sample_size, is_optional=False)
    if cache_key is not None and not isinstance(cache_key, str):
        raise TypeError(f"cache_key must be a name (str) or None, got {shown(cache_key)}")
    if cache_key is not None and not cache_key.strip():
        raise ValueError(f"cache_key must be a name that is not empty, got {cache_key!r}")
    check_flag("profile", profile)
    check_flag("verbose", verbose)
    return Bounds(check_count("max_workers", max_workers), check_nbytes("memory_limit", memory_limit))
