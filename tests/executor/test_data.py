"""Large arguments and results arrive as after pickling, whatever way they came."""

from __future__ import annotations

import functools
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amorsize_executor import AmorsizeExecutor, SerializationError
from amorsize_executor.inline import copy_values

from . import tasks
from .tools import LIMIT_S, beside_this_process

#: Large enough for blocks, in elements of 8 bytes.
N = 20_000


def described(obj: Any) -> Any:
    """All of an object that unpickling must keep, in comparable form."""
    if isinstance(obj, np.ndarray):
        content = np.ma.getdata(obj).tobytes() if not obj.dtype.hasobject else repr(obj.tolist()).encode()
        mask = np.ma.getmaskarray(obj).tobytes() if isinstance(obj, np.ma.MaskedArray) else b""
        flags = (obj.flags.writeable, obj.flags.c_contiguous, obj.flags.f_contiguous, obj.flags.aligned)
        return type(obj), obj.dtype, obj.shape, content, mask, flags
    if isinstance(obj, dict):
        return {key: described(value) for key, value in obj.items()}
    if isinstance(obj, (tuple, list)):
        return type(obj), [described(value) for value in obj]
    return type(obj), obj


def check_both_ways(executor: AmorsizeExecutor, obj: Any, describe: Callable[[Any], Any] = described) -> None:
    """As an argument, as one of several items, in a function, as a result, and shared: always what pickle gives."""
    expected = describe(pickle.loads(pickle.dumps(obj, 5)))
    assert executor.submit(describe, obj).result(LIMIT_S) == expected
    assert list(executor.map(describe, [obj] * 3, chunksize=1)) == [expected] * 3
    assert executor.submit(functools.partial(describe, obj)).result(LIMIT_S) == expected
    assert describe(executor.submit(tasks.identity, obj).result(LIMIT_S)) == expected
    with executor.share(obj) as shared:
        assert executor.submit(describe, shared).result(LIMIT_S) == expected
        assert describe(shared.get()) == expected


def _arrays() -> dict[str, Any]:
    base = np.arange(2.0 * N)
    read_only = base.copy()
    read_only.flags.writeable = False
    return {
        "plain": base,
        "fortran": np.asfortranarray(base.reshape(200, -1)),
        "transposed": base.reshape(200, -1).T,
        "every second": base[::2],
        "backwards": base[::-1],
        "inner part": base.reshape(200, -1)[20:180, 3:170],
        "unaligned": np.frombuffer(bytes(8 * N + 1), np.uint8)[1:].view(np.float64),
        "read-only": read_only,
        "empty": np.empty((0, N)),
        "scalar": np.array(3.0),
        "structured": np.zeros(N, [("a", "f8"), ("b", "i4", (2,)), ("c", "S3")]),
        "objects": np.array([1, "two", [3.0], None] * 5_000, object),
        "text": np.array(["abc", "defghi"] * N),
        "dates": np.arange(N).astype("M8[s]"),
        "big-endian": base.astype(">f8"),
        "complex": base * 1j,
        "masked": np.ma.masked_less(base, 100.0),
        "record": np.zeros(N, [("a", "f8"), ("b", "i4")]).view(np.recarray),
        "matrix of bools": base.reshape(100, -1) > 50,
    }


@pytest.mark.parametrize("name", _arrays())
def test_arrays(executor: AmorsizeExecutor, name: str) -> None:
    check_both_ways(executor, _arrays()[name])


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
@pytest.mark.parametrize("part", [np.s_[:], np.s_[::2], np.s_[5:10_005]], ids=["whole", "every second", "part"])
def test_memory_maps_of_files(executor: AmorsizeExecutor, tmp_path: Path, mode: Any, part: Any) -> None:
    np.arange(2.0 * N).tofile(tmp_path / "data")
    array = np.memmap(tmp_path / "data", np.float64, mode, shape=(200, N // 100))
    for view in (array.ravel()[part], array, array.T):
        check_both_ways(executor, view)


@pytest.mark.parametrize("n", [10, 65_536, 3_000_000])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_bytes(executor: AmorsizeExecutor, kind: type, n: int) -> None:
    obj = kind(b"x" * n)
    check_both_ways(executor, obj)
    check_both_ways(executor, {"deep": [(obj, obj, 1)], "array": np.ones(N)})


def test_one_object_met_twice_in_a_task_stays_one(executor: AmorsizeExecutor) -> None:
    for obj in (np.ones(N), bytearray(300_000), b"x" * 300_000):
        assert executor.submit(_are_one, obj, {"again": obj}).result(LIMIT_S)


def _are_one(a: Any, b: dict[str, Any]) -> bool:
    return a is b["again"]


def test_two_arrays_over_the_same_memory_are_two_in_a_task(executor: AmorsizeExecutor) -> None:
    array = np.zeros(N)
    assert executor.submit(_fill_first, array, array.view()).result(LIMIT_S) == (1.0, 0.0)
    assert list(executor.map(_fill_first, [array] * 3, [array.view()] * 3)) == [(1.0, 0.0)] * 3


def _fill_first(a: Any, b: Any) -> tuple[float, float]:
    a.fill(1.0)
    return float(a[5]), float(b[5])


_DTYPES = st.sampled_from(["u1", "i4", "f8", "c16", "M8[s]", "S7", "U3", "f8,i4", ">f4", "?"])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=_DTYPES,
    shape=st.lists(st.integers(0, 60), min_size=1, max_size=3),
    order=st.sampled_from("CF"),
    step=st.sampled_from([1, 2, -1]),
    is_writable=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_array(
    executor: AmorsizeExecutor, dtype: str, shape: list[int], order: Any, step: int, is_writable: bool, seed: int
) -> None:
    kind = np.dtype(dtype)
    n = int(np.prod(shape))
    array = np.random.default_rng(seed).integers(0, 2, n * kind.itemsize, np.uint8).view(kind)
    array = np.asarray(array.reshape(shape), order=order)[::step]
    array.flags.writeable = is_writable
    expected = described(pickle.loads(pickle.dumps(array, 5)))
    assert executor.submit(described, array).result(LIMIT_S) == expected
    assert list(executor.map(described, [array] * 2)) == [expected] * 2
    assert described(executor.submit(tasks.identity, array).result(LIMIT_S)) == expected


# ---------------------------------------------------------------------- what other libraries have


def test_sparse_matrices(executor: AmorsizeExecutor) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    matrix = sparse.random(2_000, 2_000, 0.02, "csr", random_state=1)
    for each in (matrix, matrix.tocsc(), matrix.tocoo()):
        check_both_ways(executor, each, _described_sparse)


def _described_sparse(matrix: Any) -> Any:
    return type(matrix), matrix.shape, matrix.dtype, matrix.toarray().tobytes()


def test_data_frames(executor: AmorsizeExecutor) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(np.arange(6.0 * N).reshape(N, 6), columns=list("abcdef"))
    frame["text"] = ["x", "yy"] * (N // 2)
    frame["kind"] = frame["text"].astype("category")
    frame["date"] = pandas.date_range("2020", periods=N, freq="s", tz="UTC")
    for each in (frame, frame["a"], frame[::2], frame.T.iloc[:4], frame.index):
        check_both_ways(executor, each, _described_frame)


def _described_frame(frame: Any) -> Any:
    return type(frame), str(getattr(frame, "dtypes", "")), str(frame.to_numpy().tolist())


def test_arrow_tables(executor: AmorsizeExecutor) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"a": np.arange(N), "b": ["x", None] * (N // 2)})
    for each in (table, table.slice(100, 15_000), table["a"].combine_chunks()):
        check_both_ways(executor, each, _described_arrow)


def _described_arrow(table: Any) -> Any:
    return type(table), str(getattr(table, "schema", "")), str(table.to_pylist())


def test_tensors(executor: AmorsizeExecutor) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(2.0 * N).reshape(200, -1)
    for each in (tensor, tensor.T, tensor[:, ::2], tensor.to(torch.float16)):
        check_both_ways(executor, each, _described_tensor)


def _described_tensor(tensor: Any) -> Any:
    return type(tensor), tensor.dtype, tensor.shape, tensor.stride(), tensor.tolist()


# ---------------------------------------------------------------------- whose is it


def _overwrite(array: Any) -> tuple[float, float]:
    """What a task finds, before it writes all over it."""
    found = float(array.min()), float(array.max())
    array[:] = -7.0
    return found


def _overwrite_second(_: int, array: Any) -> tuple[float, float]:
    return _overwrite(array)


def test_what_a_task_writes_is_seen_by_no_other_and_not_by_the_parent(executor: AmorsizeExecutor) -> None:
    array = np.ones(3 * N)
    for chunksize in (1, 3, None):
        results = set(executor.map(_overwrite_second, range(12), [array] * 12, chunksize=chunksize))
        assert results == {(1.0, 1.0)}
    futures = [executor.submit(_overwrite, array) for _ in range(6)]
    assert {future.result(LIMIT_S) for future in futures} == {(1.0, 1.0)}
    assert array.min() == array.max() == 1.0
    with executor.share(array) as shared:
        assert set(executor.map(_overwrite, [shared] * 6, chunksize=2)) == {(1.0, 1.0)}
        _overwrite(shared.get())
        assert shared.get().min() == 1.0
    buffer = bytearray(b"a" * 300_000)
    assert list(executor.map(_spoil, [buffer] * 6)) == [b"a"] * 6


def _spoil(buffer: bytearray) -> bytes:
    found = bytes(buffer[:1])
    buffer[:] = b"b" * len(buffer)
    return found


def test_what_a_function_writes_into_its_own_state_lasts_for_a_chunk_at_most(executor: AmorsizeExecutor) -> None:
    array = np.zeros(3 * N)

    def count(_: int) -> float:
        array[:] += 1
        return float(array[-1])

    assert list(executor.map(count, range(6), chunksize=1)) == [1.0] * 6
    assert list(executor.map(count, range(6), chunksize=3)) == [1.0, 2.0, 3.0] * 2
    assert [executor.submit(count, 0).result(LIMIT_S) for _ in range(3)] == [1.0] * 3
    assert array.max() == 0.0


def test_an_array_overwritten_between_two_calls_is_seen_as_it_is(executor: AmorsizeExecutor) -> None:
    array = np.zeros(5 * N)
    for i in range(12):
        array[:] = i
        array[-1 - i] = -i
        assert set(executor.map(_ends, [array] * 4)) == {(float(-i), float(i))}
        array[7] = 0.5
        assert executor.submit(_at, array, 7).result(LIMIT_S) == 0.5


def _ends(array: Any) -> tuple[float, float]:
    return float(array.min()), float(array.max())


def _at(array: Any, i: int) -> float:
    return float(array[i])


def test_tasks_that_wait_have_the_array_as_it_was_when_they_were_submitted(executor: AmorsizeExecutor) -> None:
    array = np.zeros(3 * N)
    futures = []
    for i in range(30):
        array[i] = 1.0
        futures.append(executor.submit(tasks.total, array))
    assert [future.result(LIMIT_S) for future in futures] == [float(i + 1) for i in range(30)]


class Model:
    def __init__(self) -> None:
        self.weights = np.zeros(5 * N)

    def fit(self, value: float) -> None:
        self.weights += value

    def predict(self, i: int) -> float:
        return float(self.weights[i] + self.weights[-1 - i])


def test_a_model_refitted_in_place_is_seen_as_it_is(executor: AmorsizeExecutor) -> None:
    model = Model()
    for i in range(8):
        model.fit(1.0)
        assert list(executor.map(lambda j: model.predict(j), range(4))) == [2.0 * (i + 1)] * 4
        assert list(executor.map(model.predict, range(4))) == [2.0 * (i + 1)] * 4
        model.weights[3] += 0.25
        assert executor.submit(model.predict, 3).result(LIMIT_S) == 2.0 * (i + 1) + 0.25
        model.weights[3] -= 0.25


def test_one_buffer_filled_again_for_each_item_that_is_read(executor: AmorsizeExecutor) -> None:
    buffer = np.zeros(3 * N)

    def read() -> Any:
        for i in range(20):
            buffer[:] = i
            yield buffer

    assert list(executor.map(_ends, read(), buffersize=1)) == [(float(i), float(i)) for i in range(20)]


_kept: list[Any] = []


def _keep(array: Any) -> list[float]:
    """Keep every array that was ever given, and tell what all of them hold."""
    _kept.append(array)
    return [float(each[-1]) for each in _kept]


def _forget() -> int:
    n = len(_kept)
    _kept.clear()
    return n


def test_arrays_that_tasks_keep_stay_as_they_were() -> None:
    with AmorsizeExecutor(1, inline="never") as executor:
        for i in range(20):
            kept = executor.submit(_keep, np.full(N, float(i))).result(LIMIT_S)
            assert kept == [float(j) for j in range(i + 1)]
        same = np.full(N, -1.0)
        for _ in range(5):
            assert len(list(executor.map(_keep, [same] * 3, chunksize=1))) == 3
            same -= 1.0
        kept = executor.submit(_keep, same).result(LIMIT_S)
        assert kept[20:] == [-1.0] * 3 + [-2.0] * 3 + [-3.0] * 3 + [-4.0] * 3 + [-5.0] * 3 + [-6.0]
        assert executor.submit(_forget).result(LIMIT_S) == 36


def test_results_that_the_caller_keeps_stay_as_they_were(executor: AmorsizeExecutor) -> None:
    kept = []
    for i in range(60):
        results = list(executor.map(tasks.filled, [N] * 3, [3.0 * i, 3.0 * i + 1, 3.0 * i + 2]))
        kept.append(results[i % 3])  # the others are given back
        results[0][:] = -1 if i % 3 else results[0]
    assert all((array == 3.0 * i + i % 3).all() for i, array in enumerate(kept))
    assert all(array.flags.writeable for array in kept)


def test_a_result_may_be_the_argument(executor: AmorsizeExecutor) -> None:
    arrays = [np.full(N, float(i)) for i in range(12)]
    results = list(executor.map(tasks.identity, arrays))
    again = list(executor.map(tasks.identity, results))
    assert [float(a[3]) for a in results] == [float(a[3]) for a in again] == [float(i) for i in range(12)]


# ---------------------------------------------------------------------- in the caller's thread


def test_what_the_caller_runs_gets_copies_too() -> None:
    array = np.ones(3 * N)
    with AmorsizeExecutor(2) as executor:
        for items in ([array] * 8, [(array, 1)] * 8, [{"x": [array]}] * 8):
            assert {tuple(found) for found in executor.map(_overwrite_anywhere, items)} == {(1.0, 1.0)}
        assert executor.last_plan is not None
        assert array.min() == array.max() == 1.0
        results = list(executor.map(tasks.identity, [array] * 4))
        results[0][:] = 5
        assert results[1].max() == array.max() == 1.0
        held = Holder()
        results = list(executor.map(held.give, range(4)))
        results[0][:] = 5
        assert results[1].max() == held.array.max() == 0.0


def _overwrite_anywhere(obj: Any) -> tuple[float, float]:
    if isinstance(obj, dict):
        obj = obj["x"]
    return _overwrite(obj[0] if isinstance(obj, (tuple, list)) else obj)


class Holder:
    def __init__(self) -> None:
        self.array = np.zeros(3 * N)

    def give(self, _: int) -> Any:
        return self.array


def test_a_result_that_only_the_caller_has_is_not_copied() -> None:
    seen = []

    def make(i: int) -> Any:
        array = np.full(3 * N, float(i))
        seen.append(array.__array_interface__["data"][0])
        return array

    values = [make(0), make(1)]
    kept = values[1]
    assert copy_values(values, 0, "make") is None
    assert values[0].__array_interface__["data"][0] == seen[0]
    assert values[1].__array_interface__["data"][0] != seen[1]
    assert (values[1] == kept).all()


# ---------------------------------------------------------------------- bounds


def test_tasks_that_wait_do_not_fill_the_memory(make_signal: Any) -> None:
    started, go = make_signal(), make_signal()
    before = memory_of_blocks()  # those of other executors
    limit = beside_this_process(280 << 20)  # the arrays, what is stored of them, and a worker
    with AmorsizeExecutor(1, memory_limit=limit) as executor:
        first = executor.submit(tasks.pause, started, go)
        started.take()
        arrays = [
            np.full(500_000, float(i)) for i in range(40)
        ]  # 160 MB, of which an eighth of the limit may be stored
        futures = [executor.submit(tasks.total, array) for array in arrays]
        bad = executor.submit(tasks.call, threading.Lock(), np.full(500_000, -1.0))
        small = executor.submit(tasks.total, np.ones(3_000))
        assert memory_of_blocks() - before < limit // 8 + (16 << 20)
        go.give()
        assert [future.result(LIMIT_S) for future in futures] == [500_000.0 * i for i in range(40)]
        with pytest.raises(SerializationError, match="argument 0, a 'lock' object"):
            bad.result(LIMIT_S)
        assert small.result(LIMIT_S) == 3_000.0
        assert first.result(LIMIT_S) is None


def test_what_cannot_be_pickled_and_was_left_for_later_fails_alone(make_signal: Any) -> None:
    started, go = make_signal(), make_signal()
    limit = beside_this_process(190 << 20)
    n = 4 + limit // 8 // 4_000_000  # more than may be stored
    with AmorsizeExecutor(1, memory_limit=limit) as executor:
        executor.submit(tasks.pause, started, go)
        started.take()
        futures = [executor.submit(tasks.total, np.full(500_000, float(i))) for i in range(n)]
        once = PicklableOnce()
        late = executor.submit(tasks.call, once, np.full(500_000, -1.0))
        go.give()
        assert [future.result(LIMIT_S) for future in futures] == [500_000.0 * i for i in range(n)]
        with pytest.raises(RuntimeError, match="only once"):
            late.result(LIMIT_S)


class PicklableOnce:
    """Is pickled without complaint when it is submitted, and not when it is sent."""

    count = 0

    def __reduce__(self) -> Any:
        self.count += 1
        if self.count > 1:
            raise RuntimeError("only once")
        return PicklableOnce, ()

    def __call__(self, array: Any) -> float:
        return float(array.sum())


def memory_of_blocks() -> int:
    """Bytes in this process's blocks."""
    folder = Path("/proc/self/fd")
    if not folder.exists():
        pytest.skip("no /proc")
    found = {}
    for fd in os.listdir(folder):
        try:
            if "amorsize" in os.readlink(folder / fd):
                status = os.stat(folder / fd)
                found[status.st_ino] = status.st_blocks * 512
        except FileNotFoundError:  # closed in between
            continue
    return sum(found.values())


def test_a_map_over_much_data_stores_little_at_a_time() -> None:
    before = peak = memory_of_blocks()  # those of other executors
    with AmorsizeExecutor(2, inline="never") as executor:
        arrays = [np.full(1_000_000, float(i)) for i in range(60)]
        for i, total in enumerate(executor.map(tasks.total, arrays)):
            assert total == 1e6 * i
            peak = max(peak, memory_of_blocks())
    assert peak - before < 8e6 * 35  # two workers with two chunks of 32 MB, and as much again that is free
