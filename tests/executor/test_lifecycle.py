"""Who is told that the interpreter ends."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from amorsize_executor import lifecycle


class Executor:
    """What stands for one with an I/O thread."""

    is_foreign = kill_at_exit = False

    def abandon_all(self) -> None:
        raise AssertionError("nothing ends here")


@pytest.fixture
def _threads_switch_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_threads_switch_often")
def test_all_are_told_though_others_begin_and_end_meanwhile() -> None:
    those = [Executor() for _ in range(3_000)]
    is_over = threading.Event()

    def begin_and_end() -> None:
        while not is_over.is_set():
            others = [Executor() for _ in range(100)]
            for other in others:
                lifecycle.add(other)
            for other in others:
                lifecycle.discard(other)

    for executor in those:
        lifecycle.add(executor)
    threads = [threading.Thread(target=begin_and_end) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(200):
            assert set(those) <= set(lifecycle.living())
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
        for executor in those:
            lifecycle.discard(executor)
