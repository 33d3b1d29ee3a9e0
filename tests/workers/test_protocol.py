from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator

import pytest

from amorsize_executor.workers import blocks
from amorsize_executor.workers.protocol import FLOATS, INTEGERS, MARSHALLED, RESULTS, StatusBlock

CHUNK = 7


@pytest.fixture
def sides() -> Iterator[tuple[StatusBlock, StatusBlock]]:
    """The worker's view of its status, and the parent's."""
    fd = blocks.create_sized(StatusBlock.NBYTES)
    found = StatusBlock(fd), StatusBlock(fd)
    os.close(fd)
    yield found
    for side in found:
        side.close()


def begin(status: StatusBlock, offset: int, count: int) -> None:
    words = status.words
    words[1], words[2], words[4], words[5] = offset, count, 0, MARSHALLED
    words[0] = CHUNK


@pytest.mark.parametrize(
    ("held", "values"),
    [
        (INTEGERS, [0, -1, 2**63 - 1, -(2**63)]),
        (FLOATS, [0.0, -0.0, math.inf, 5e-324, math.nan]),
    ],
)
def test_the_parent_sees_how_many_results_a_vector_has(
    sides: tuple[StatusBlock, StatusBlock], held: int, values: list[float]
) -> None:
    worker, parent = sides
    begin(worker, 100, len(values))
    vector = worker.begin_vector(held, len(values))
    assert parent.kept() is None
    for n, value in enumerate(values):
        assert parent.running() == (CHUNK, 100 + n, 1)
        vector[n] = value
        kept = parent.kept()
        assert kept is not None
        assert kept[:4] == (RESULTS, CHUNK, 100, n + 1)
        assert repr(kept[6]) == repr(values[: n + 1])
    assert parent.running() == (CHUNK, 100 + len(values), 0)


def test_a_group_has_no_result_of_the_one_before(sides: tuple[StatusBlock, StatusBlock]) -> None:
    worker, parent = sides
    for n in (3, 2, 5):
        begin(worker, 0, n)
        assert (parent.kept(), parent.running()) == (None, (CHUNK, 0, 1))
        vector = worker.begin_vector(INTEGERS, n)
        assert (parent.kept(), parent.running()) == (None, (CHUNK, 0, 1))
        vector[:n] = memoryview(bytes(8 * n)).cast("q")


def test_each_process_fills_its_vectors_with_something_else() -> None:
    fillings = set()
    for _ in range(3):
        fd = blocks.create_sized(StatusBlock.NBYTES)
        status = StatusBlock(fd)
        os.close(fd)
        begin(status, 0, 1)
        fillings.add(status.begin_vector(INTEGERS, 1)[0])
        status.close()
    assert len(fillings) == 3


def test_a_copy_of_the_process_writes_no_result(sides: tuple[StatusBlock, StatusBlock]) -> None:
    worker, parent = sides
    begin(worker, 0, 2)
    vector = worker.begin_vector(INTEGERS, 2)
    child = os.fork()
    if not child:
        worker.release_vectors()
        try:
            vector[0] = 5
        except ValueError:
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert parent.kept() is None
    vector[0] = 6
    assert parent.running() == (CHUNK, 1, 1)
