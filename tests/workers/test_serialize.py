"""Objects to entries and back."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import functools
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amorsize_executor.workers import blocks, serialize

_atoms = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.text() | st.binary()
    | st.dates() | st.decimals() | st.fractions() | st.uuids()
)  # fmt: skip
_objects = st.recursive(
    _atoms,
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner) | st.sets(st.integers())
    ),
    max_leaves=20,
)


def round_trip(obj: Any) -> Any:
    """The object as a receiver gets it."""
    writer = blocks.BlockWriter()
    try:
        entry = serialize.encode(obj, writer, append=writer.store)
        fd = writer.detach()
    finally:
        writer.close()
    entry = pickle.loads(pickle.dumps(entry))  # in a frame
    if fd is None:
        return serialize.decode(entry, _no_block)
    try:
        return serialize.decode(entry, lambda block_id, start, stop: (blocks.map_private(fd, blocks.size(fd)), 0))
    finally:
        os.close(fd)


def _no_block(block_id: int, start: int, stop: int) -> tuple[memoryview, int]:
    raise AssertionError("there is no block")


@given(_objects)
def test_objects_come_back_as_pickle_would_give_them(obj: Any) -> None:
    assert repr(round_trip(obj)) == repr(pickle.loads(pickle.dumps(obj)))


@dataclasses.dataclass
class Point:
    x: int
    y: Any = None


_Pair = collections.namedtuple("_Pair", "a b")


@pytest.mark.parametrize(
    "obj",
    [
        Point(1, [2]),
        _Pair(1, 2),
        collections.OrderedDict(a=1),
        collections.deque([1, 2]),
        collections.Counter("abca"),
        datetime.datetime(2020, 2, 29, tzinfo=datetime.timezone.utc),
        decimal.Decimal("1.10"),
        functools.partial(int, base=2).args,
        Path("a/b"),
        ValueError("x"),
        range(3),
        np.float64(1.5),
        np.datetime64("2020-01-01"),
        int,
        len,
        Point,
    ],
    ids=lambda o: type(o).__name__,
)
def test_objects_of_many_types_come_back(obj: Any) -> None:
    assert repr(round_trip(obj)) == repr(obj)
    assert type(round_trip(obj)) is type(obj)


@pytest.mark.parametrize("dtype", ["f8", "i4", "c16", "?", "S5", "M8[s]", "i4,f8"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (100, 100), (20, 30, 40)])
def test_arrays_come_back_equal_and_writable(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.ones(shape, dtype)
    result = round_trip(array)
    assert result.dtype == array.dtype
    assert result.shape == shape
    assert (result == array).all()
    assert result.flags.writeable


@pytest.mark.parametrize("n", [10, 5_000, 500_000])
def test_a_decoded_array_is_the_receivers_own(n: int) -> None:
    array = np.ones(n)
    first, second = round_trip(array), round_trip(array)
    first *= 5
    assert array.sum() == second.sum() == n


@pytest.mark.parametrize("n", [10, 5_000, 500_000])
def test_read_only_arrays_stay_read_only(n: int) -> None:
    array = np.ones(n)
    array.flags.writeable = False
    assert not round_trip(array).flags.writeable


def test_large_buffers_leave_the_pickle() -> None:
    writer = blocks.BlockWriter()
    try:
        entry = serialize.encode([np.zeros(100_000), np.ones(100_000)], writer)
        assert len(pickle.dumps(entry)) < 2_000
        assert writer.nbytes >= 1_600_000
    finally:
        writer.close()


@pytest.mark.parametrize(
    "obj",
    [
        [float(i) for i in range(20_000)],
        "x" * 100_000,
        np.ones((1_000, 41))[:, :-1],
        [np.ones((1_000, 41))[:, :-1], np.zeros(100_000), np.arange(5)],
        {"rows": list(range(50_000)), "model": bytes(100_000), "array": np.arange(9)},
    ],
    ids=["list", "text", "view", "view and arrays", "bulk and array"],
)
def test_large_pickles_leave_the_frame(obj: Any) -> None:
    writer = blocks.BlockWriter()
    try:
        entry = serialize.encode(obj, writer, append=writer.store)
        assert len(pickle.dumps(entry)) < 2_000
    finally:
        writer.close()
    np.testing.assert_equal(round_trip(obj), obj)


def test_small_buffers_need_no_block() -> None:
    writer = blocks.BlockWriter()
    entry = serialize.encode(np.zeros(10), writer)
    assert writer.detach() is None
    assert serialize.pickle_nbytes(entry) >= 80


def test_bytearrays_keep_their_type() -> None:
    for n in (3, 100_000):
        result = round_trip({"a": bytearray(n), "b": bytes(n)})
        assert type(result["a"]) is bytearray
        assert type(result["b"]) is bytes


def test_lambdas_closures_and_local_classes_come_back() -> None:
    n = 5

    class Local:
        value = n

    assert round_trip(lambda x: x + n)(1) == 6
    assert round_trip(Local).value == 5
    assert round_trip(functools.partial(lambda x, y: x * y, 3))(4) == 12


def test_a_lambda_beside_large_buffers_stores_the_buffers_once() -> None:
    writer = blocks.BlockWriter()
    try:
        serialize.encode((lambda: 1, np.zeros(100_000)), writer)
        assert writer.nbytes == 800_000
    finally:
        writer.close()


@pytest.mark.parametrize(
    "obj", [threading.Lock(), [1, threading.Lock()], sys._getframe()], ids=["lock", "list", "frame"]
)
def test_what_cannot_be_pickled_raises(obj: Any) -> None:
    writer = blocks.BlockWriter()
    with pytest.raises((TypeError, pickle.PicklingError)):
        serialize.encode(obj, writer)
    writer.close()


# ---------------------------------------------------------------------- scalars


@pytest.mark.parametrize(
    "obj",
    [None, True, 5, 10**50, 1.5, 1j, "text", b"x", range(3), ..., (), (1, "a"), ((1, 2), (3, 4)), (None, (1.5,))],
    ids=repr,
)
def test_immutable_things_are_scalars_and_are_not_copied(obj: Any) -> None:
    assert serialize.is_scalar(obj)
    assert serialize.are_scalars([obj, obj])
    assert serialize.copy(obj) is obj


class _Int(int):
    pass


@pytest.mark.parametrize(
    "obj",
    [
        [], {}, {1}, bytearray(b"x"), ([],), (1, (2, [3])), _Int(3), np.float64(1), np.ones(2), "x" * 5000, b"x" * 5000,
        tuple(range(1000)), len, int, object(), (1, (2, (3, (4, (5,))))),
    ],
    ids=lambda o: repr(o)[:20],
)  # fmt: skip
def test_what_may_change_or_be_large_or_deep_is_no_scalar(obj: Any) -> None:
    assert not serialize.is_scalar(obj)
    assert not serialize.are_scalars([1, obj])


def test_endless_tuples_are_looked_at_in_no_time() -> None:
    nested: tuple[Any, ...] = ()
    for _ in range(100_000):
        nested = (nested,)
    assert not serialize.is_scalar(nested)
    doubled: tuple[Any, ...] = ()
    for _ in range(100):
        doubled = (doubled, doubled)
    assert not serialize.is_scalar(doubled)
    assert not serialize.are_scalars([nested, doubled])


@given(st.lists(_objects))
def test_are_scalars_is_is_scalar_of_all(objects: list[Any]) -> None:
    assert serialize.are_scalars(objects) == all(map(serialize.is_scalar, objects))


@given(_objects)
def test_a_scalar_survives_pickling_unchanged(obj: Any) -> None:
    if serialize.is_scalar(obj):
        assert repr(pickle.loads(pickle.dumps(obj, 5))) == repr(obj)


def test_copies_are_independent() -> None:
    original = {"a": [1, 2]}
    copied = serialize.copy(original)
    copied["a"].append(3)
    assert original == {"a": [1, 2]}


# ---------------------------------------------------------------------- names, __main__


def test_names_for_messages() -> None:
    assert serialize.name_of(len) == "len"
    assert serialize.name_of(Point) == "Point"
    assert serialize.name_of(Point(1)) == "Point"
    assert serialize.name_of(functools.partial(len)) == "partial of len"
    assert serialize.name_of(lambda: 1).endswith("<lambda>")


def test_what_belongs_to_main_travels_by_value(tmp_path: Path) -> None:
    (tmp_path / "writer.py").write_text(
        textwrap.dedent(
            """
            import sys
            from amorsize_executor.workers import serialize

            class Base:
                def hello(self):
                    return "hello " + helper()

            class Point(Base):
                def __init__(self, x):
                    self.x = x

            def helper():
                return "from main"

            data = serialize.dumps([Point(3), Point, helper, Point(4).hello, ValueError, len])
            sys.stdout.buffer.write(data)
            """
        )
    )
    reader = textwrap.dedent(
        """
        import pickle, sys
        point, cls, helper, hello, error, length = pickle.load(sys.stdin.buffer)
        assert (point.x, point.hello(), type(point) is cls) == (3, "hello from main", True)
        assert helper() == "from main"
        assert hello() == "hello from main"
        assert (error, length) == (ValueError, len)
        """
    )
    written = subprocess.run([sys.executable, "writer.py"], cwd=tmp_path, capture_output=True, check=True, timeout=30)
    subprocess.run([sys.executable, "-c", reader], input=written.stdout, check=True, timeout=30)
