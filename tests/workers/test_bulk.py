"""What is seen to be bulky before anything is pickled, so that it is not pickled in vain."""

from __future__ import annotations

from typing import Any

import pytest

from amorsize_executor.workers import bulk

LARGE = bytes(bulk.BULK_NBYTES)


@pytest.mark.parametrize(
    "args",
    [(LARGE,), (1, bytearray(LARGE)), ((LARGE, [1.0]),), ([1, LARGE],), ({"model": LARGE, "rows": [1, 2]},)],
    ids=["argument", "bytearray", "tuple", "list", "dict"],
)
def test_bulky_arguments_and_those_in_records_are_found(args: Any) -> None:
    assert bulk.is_among(args)


@pytest.mark.parametrize(
    "args",
    [(), (1, "x", None), (LARGE[1:],), ((1, 2), [3], {"a": b"b"}), ([LARGE] * 100,), (((LARGE,),),)],
    ids=["nothing", "scalars", "small", "containers", "long list", "deep"],
)
def test_others_are_not_and_no_more_is_looked_at_than_a_record(args: Any) -> None:
    assert not bulk.is_among(args)


def test_what_is_deeper_is_found_where_its_pickle_is_large() -> None:
    assert bulk.is_inside({"models": [(LARGE, 1)]})
    assert not bulk.is_inside({"models": [(b"", 1)]})
