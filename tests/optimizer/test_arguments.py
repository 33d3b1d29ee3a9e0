"""Every bad argument is refused with what came and what is expected."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from amorsize_executor import execute, load_config, optimize, optimize_streaming, save_config

FUNCTIONS = [optimize, execute, optimize_streaming]
INPUT = {optimize: "data", execute: "data", optimize_streaming: "iterable"}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("name", "value", "error", "told"),
    [
        ("sample_size", 0, ValueError, "sample_size must be at least 1, got 0"),
        ("sample_size", None, TypeError, "sample_size must be an integer of at least 1, got None"),
        ("sample_size", 2.5, TypeError, r"sample_size must be an integer of at least 1, got 2.5 \(float\)"),
        ("max_workers", 0, ValueError, "max_workers must be at least 1, got 0"),
        ("max_workers", True, TypeError, "max_workers must be an integer"),
        ("memory_limit", 0, ValueError, "memory_limit must be at least 1 byte, got 0"),
        ("memory_limit", math.nan, ValueError, "memory_limit must be at least 1 byte, got nan"),
        ("memory_limit", "2G", TypeError, r"memory_limit must be a number of bytes or None, got '2G' \(str\)"),
        ("cache_key", 3, TypeError, "cache_key must be a name"),
        ("cache_key", " ", ValueError, "cache_key must be a name that is not empty"),
        ("profile", 1, TypeError, "profile must be True or False, got 1"),
        ("verbose", "yes", TypeError, "verbose must be True or False, got 'yes'"),
    ],
)
def test_what_all_have_in_common(
    function: Callable[..., Any], name: str, value: object, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        function(abs, [1], **{name: value})


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_that_is_none(function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=r"func must be a callable .*got 'abs' \(str\)"):
        function("abs", [1])


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("value", "told"),
    [
        (3, r"must be an iterable of items .*got 3 \(int\)"),
        ("data.csv", r"must be an iterable of items, got 'data.csv' \(str\); pass list"),
        (b"abc", ".*if its bytes are the items"),
        (np.array(1.0), "must have items, got an array of no dimension"),
    ],
)
def test_data_that_has_no_items(function: Callable[..., Any], value: object, told: str) -> None:
    with pytest.raises(TypeError, match=f"{INPUT[function]} {told}"):
        function(abs, value)


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"n_jobs": 0}, ValueError, "n_jobs must be at least 1, got 0; None leaves the choice"),
        ({"n_jobs": -1}, ValueError, "n_jobs must be at least 1, got -1"),
        ({"n_jobs": 2.0}, TypeError, "n_jobs must be an integer"),
        ({"n_jobs": 3, "max_workers": 2}, ValueError, r"n_jobs must be at most max_workers \(2\), got 3"),
        ({"chunksize": 0}, ValueError, "chunksize must be at least 1, got 0"),
        ({"progress": 3}, TypeError, "progress must be True, False, a callable or None, got 3"),
    ],
)
def test_of_execute(arguments: dict[str, Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        execute(abs, [1], **arguments)


def test_of_optimize_streaming() -> None:
    with pytest.raises(ValueError, match="buffersize must be at least 1, got 0"):
        optimize_streaming(abs, [1], buffersize=0)


def test_of_configs() -> None:
    result = optimize(abs, [])
    with pytest.raises(TypeError, match=r"result must be what optimize returns, got 3 \(int\)"):
        save_config(3, "name")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="overwrite must be True or False"):
        save_config(result, "name", overwrite=1)  # type: ignore[arg-type]
    for bad in ("", "a b", "..", "ü"):
        with pytest.raises(ValueError, match="name_or_path must be a name of letters"):
            save_config(result, bad)
    with pytest.raises(TypeError, match="name_or_path must be a name or a path, got 3"):
        load_config(3)  # type: ignore[arg-type]


def test_data_by_keyword() -> None:
    assert execute(func=abs, data=[-1]) == [1]
    assert optimize(func=abs, data=[-1]).data == [-1]
    assert list(optimize_streaming(func=abs, iterable=[-1]).stream()) == [1]


def test_objects_that_cannot_be_shown_are_refused_as_well() -> None:
    class Mute:
        def __repr__(self) -> str:
            raise RuntimeError("no words")

    with pytest.raises(TypeError, match=r"data must be an iterable of items .*Mute"):
        execute(abs, Mute())  # type: ignore[arg-type]
