"""Workers that cannot be started, or end before they are ready."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from amorsize_executor import AmorsizeExecutor, lifecycle

from ..executor.tools import LIMIT_S, Signal, run_script
from .tasks import (
    count_notes,
    die,
    first_goes_ahead,
    happens_first,
    note,
    noted,
    pid,
    square,
    take_all_descriptors,
    total,
)

pytestmark = pytest.mark.timeout(60)


def fail(kind: type[BaseException]) -> None:
    raise kind("no luck")


def die_first(path: str) -> None:
    if happens_first(path):
        die("SIGKILL")


def fail_after_first(path: str, how: str) -> None:
    if not happens_first(path):
        die(how)


def noted_death(path: str, how: str) -> None:
    note(path, os.getpid())
    die(how)


class NeedsTwo(Exception):
    """An exception that the parent cannot make."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__("one")


def fail_strangely() -> None:
    raise NeedsTwo(1, 2)


# ---------------------------------------------------------------------- initializers


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
def test_initializer_that_raises_breaks_the_pool_and_is_the_cause(kind: type[BaseException]) -> None:
    with AmorsizeExecutor(2, initializer=fail, initargs=(kind,)) as executor:
        futures = [executor.submit(square, x) for x in range(10)]
        for future in futures:
            error = future.exception(LIMIT_S)
            assert isinstance(error, BrokenProcessPool)
            assert isinstance(error.__cause__, kind)
            assert "initializer" in str(error)
        with pytest.raises(BrokenProcessPool, match="initializer"):
            executor.submit(square, 1)
        with pytest.raises(BrokenProcessPool, match="initializer"):
            executor.map(square, [1])


def test_initializer_whose_exception_cannot_be_pickled_breaks_the_pool() -> None:
    with AmorsizeExecutor(2, initializer=fail_strangely) as executor:
        error = executor.submit(square, 1).exception(LIMIT_S)
    assert isinstance(error, BrokenProcessPool)
    assert "NeedsTwo" in str(error)


def test_map_is_told_that_the_initializer_raised() -> None:
    with (
        AmorsizeExecutor(2, initializer=fail, initargs=(ValueError,)) as executor,
        pytest.raises(BrokenProcessPool, match="no luck"),
    ):
        list(executor.map(square, range(10)))


_kept: list[np.ndarray] = []


def keep(array: np.ndarray) -> None:
    _kept.append(array)


def kept_sum() -> float:
    return float(_kept[0].sum())


def test_initializer_gets_large_arguments() -> None:
    with AmorsizeExecutor(2, initializer=keep, initargs=(np.ones(100_000),)) as executor:
        assert executor.submit(kept_sum).result(LIMIT_S) == 1e5


@pytest.mark.parametrize(("how", "told"), [("SIGKILL", "SIGKILL"), ("exit", "exit status 3"), ("segfault", "SIGSEGV")])
def test_initializer_that_ends_its_process_breaks_the_pool_after_few_attempts(notes: str, how: str, told: str) -> None:
    with AmorsizeExecutor(2, initializer=noted_death, initargs=(notes, how)) as executor:
        futures = [executor.submit(square, x) for x in range(10)]
        assert not wait(futures, LIMIT_S).not_done
        for future in futures:
            assert isinstance(future.exception(), BrokenProcessPool)
            assert told in str(future.exception())
    assert len(count_notes(notes)) <= 5


def test_a_worker_that_dies_while_it_starts_is_replaced(tmp_path: Path) -> None:
    with AmorsizeExecutor(1, initializer=die_first, initargs=(str(tmp_path / "first"),)) as executor:
        assert executor.submit(square, 3).result(LIMIT_S) == 9


def test_workers_that_run_carry_on_when_others_cannot_start(tmp_path: Path, notes: str) -> None:
    path = str(tmp_path / "first")
    with AmorsizeExecutor(3, initializer=fail_after_first, initargs=(path, "SIGKILL")) as executor:
        executor.submit(pid).result(LIMIT_S)
        futures = [executor.submit(noted, notes, x) for x in range(30)]
        assert [future.result(LIMIT_S) for future in futures] == [x * x for x in range(30)]
        assert len({executor.submit(pid).result(LIMIT_S) for _ in range(5)}) == 1
    assert count_notes(notes) == dict.fromkeys(range(30), 1)


# ---------------------------------------------------------------------- starts


class BrokenContext:
    """A multiprocessing context whose processes do not start."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.n_starts = 0

    def get_start_method(self, allow_none: bool = False) -> str:
        return "spawn"

    def Process(self, *args: Any, **kwargs: Any) -> BrokenContext:
        return self

    def start(self) -> None:
        self.n_starts += 1
        raise self.error


@pytest.mark.parametrize("error", [FileNotFoundError("no such interpreter"), MemoryError(), RuntimeError("no")])
def test_processes_that_cannot_be_started_break_the_pool_with_the_reason(error: Exception) -> None:
    context = BrokenContext(error)
    with AmorsizeExecutor(2, mp_context=context) as executor:  # type: ignore[arg-type]
        told = executor.submit(square, 3).exception(LIMIT_S)
        assert isinstance(told, BrokenProcessPool)
        assert told.__cause__ is error
        with pytest.raises(BrokenProcessPool, match="workers cannot be started"):
            executor.submit(square, 3)
    assert context.n_starts <= 5


@pytest.mark.parametrize("n_started", [0, 1])
def test_threads_that_cannot_be_started_are_the_callers_error_and_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch, n_started: int
) -> None:
    original = threading.Thread.start
    n_left = n_started

    def refuse(self: threading.Thread) -> None:
        nonlocal n_left
        if not n_left:
            raise RuntimeError("can't start new thread")
        n_left -= 1
        original(self)

    monkeypatch.setattr(lifecycle, "_watch", None)  # as in a program that has no executor yet
    with AmorsizeExecutor(1, inline="never") as executor:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                executor.submit(square, 3)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                executor.map(square, [3])
        assert executor.submit(square, 3).result(LIMIT_S) == 9
        assert list(executor.map(square, [3])) == [9]


_EXHAUST = """
import os, resource, sys
from concurrent.futures.process import BrokenProcessPool
from amorsize_executor import AmorsizeExecutor

resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))

def take(leave):
    taken = []
    try:
        while True:
            taken.append(os.dup(2))
    except OSError:
        pass
    for _ in range(leave):
        os.close(taken.pop())
    return taken

def give(taken):
    while taken:
        os.close(taken.pop())

def n_fds():
    return len(os.listdir("/proc/self/fd"))
"""


@pytest.mark.parametrize("leave", [0, 1, 2, 3, 5, 10, 20])
def test_lack_of_descriptors_is_told_and_a_new_executor_works_when_there_are_some(tmp_path: Path, leave: int) -> None:
    out = run_script(
        tmp_path,
        _EXHAUST
        + f"""
import numpy, psutil, loky.backend
with AmorsizeExecutor(1) as warm:
    warm.submit(pow, 2, 3).result()
before = n_fds()
taken = take({leave})
ex = AmorsizeExecutor(1)
try:
    ex.submit(pow, 2, 3).result(20)
except OSError as error:
    reason = error
except BrokenProcessPool as error:
    reason = error.__cause__
give(taken)
print(isinstance(reason, OSError) and reason.errno == 24)
ex.shutdown()
with AmorsizeExecutor(1) as ex:
    print(ex.submit(pow, 2, 3).result(20))
del ex, reason
print(n_fds() - before)
""",
    )
    assert out.split() == ["True", "8", "0"]


def test_a_pool_with_workers_survives_a_lack_of_descriptors(tmp_path: Path) -> None:
    out = run_script(
        tmp_path,
        _EXHAUST
        + """
import numpy as np

def slow(x):
    for _ in range(1000): x += 1
    return x

with AmorsizeExecutor(1, inline="never") as ex:
    ex.submit(pow, 2, 3).result()
    taken = take(0)
    ex.submit(pow, 2, 3).result()  # by then the executor has closed what it read after the first
    taken += take(0)
    ex.resize(3)  # not before: a start that goes on would give descriptors back
    futures = [ex.submit(pow, x, 2) for x in range(300)]
    print([f.result(20) for f in futures] == [x * x for x in range(300)])
    large = ex.submit(np.ones, 100_000)
    print(type(large.exception(20)).__name__, large.exception().errno)
    text = ex.submit(str.__mul__, "x", 1_000_000)
    print(type(text.exception(20)).__name__, text.exception().errno)
    print(list(ex.map(slow, range(100))) == list(range(1000, 1100)))
    try:
        argument = ex.submit(np.sum, np.ones(100_000)).result(20)
    except OSError as error:
        print("OSError", error.errno)
    give(taken)
    print(ex.submit(np.sum, np.ones(100_000)).result(20))
    print(ex.submit(np.ones, 100_000).result(20).sum())
""",
    )
    assert out.split() == ["True", "OSError", "24", "OSError", "24", "True", "OSError", "24", "100000.0", "100000.0"]


def test_a_worker_without_descriptors_is_replaced() -> None:
    with AmorsizeExecutor(1) as executor:
        assert executor.submit(take_all_descriptors).result(LIMIT_S) > 10
        assert executor.submit(square, 3).result(LIMIT_S) == 9
        assert executor.submit(total, np.ones(100_000)).result(LIMIT_S) == 1e5


_FEW_PROCESSES = """
import os, resource
from concurrent.futures.process import BrokenProcessPool
from amorsize_executor import AmorsizeExecutor

with AmorsizeExecutor(1, "fork", inline="never") as warm:  # whatever is to be imported is, and helpers are there
    warm.submit(pow, 2, 3).result()
    list(warm.map(abs, range(3)))

if not os.geteuid():  # the limit does not bind root; others cannot read the interpreter, perhaps: so workers are forked
    os.setgid(65534)
    os.setuid(65534)

def limit(more):
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    resource.setrlimit(resource.RLIMIT_NPROC, (more and 4096, hard))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit counts processes otherwise elsewhere")
def test_lack_of_processes_is_told_and_a_new_executor_works_when_there_are_some(tmp_path: Path) -> None:
    out = run_script(
        tmp_path,
        _FEW_PROCESSES
        + """
ex = AmorsizeExecutor(1, "fork")
limit(False)
for _ in range(3):
    try:
        ex.submit(pow, 2, 3).result(20)
    except (RuntimeError, OSError) as error:  # no thread, or no process; the first time, or that it was so
        print("told")
limit(True)
ex.shutdown()
with AmorsizeExecutor(1, "fork") as ex:
    print(ex.submit(pow, 2, 3).result(20))
""",
    )
    assert out == "told\ntold\ntold\n8\n"


@pytest.mark.skipif(sys.platform != "linux", reason="the limit counts processes otherwise elsewhere")
def test_a_pool_with_workers_survives_a_lack_of_processes(tmp_path: Path) -> None:
    out = run_script(
        tmp_path,
        _FEW_PROCESSES
        + """
with AmorsizeExecutor(1, "fork", inline="never") as ex:
    ex.submit(pow, 2, 3).result()
    limit(False)
    ex.resize(3)
    print([f.result(20) for f in [ex.submit(pow, x, 2) for x in range(300)]] == [x * x for x in range(300)])
    print(list(ex.map(abs, range(300), chunksize=3)) == list(range(300)))
    limit(True)
    ex.submit(os._exit, 3).exception(20)
    print(ex.submit(pow, 2, 3).result(20))
""",
    )
    assert out == "True\nTrue\n8\n"


def test_a_worker_that_starts_slowly_holds_up_nobody(make_signal: Callable[[], Signal], tmp_path: Path) -> None:
    go = make_signal()
    with AmorsizeExecutor(
        2, initializer=first_goes_ahead, initargs=(str(tmp_path / "first"), go), inline="never"
    ) as executor:
        futures = [executor.submit(square, x) for x in range(300)]
        assert [future.result(LIMIT_S) for future in futures] == [x * x for x in range(300)]
        assert list(executor.map(square, range(300), chunksize=7)) == [x * x for x in range(300)]
        go.give()


def test_shutdown_does_not_wait_for_a_worker_that_starts_slowly(
    make_signal: Callable[[], Signal], tmp_path: Path
) -> None:
    go = make_signal()
    executor = AmorsizeExecutor(2, initializer=first_goes_ahead, initargs=(str(tmp_path / "first"), go))
    assert executor.submit(square, 3).result(LIMIT_S) == 9
    executor.submit(square, 4), executor.submit(square, 5)
    executor.shutdown()  # nobody has let the other one go


def test_workers_may_be_killed_while_they_start() -> None:
    with AmorsizeExecutor(2) as executor:
        before = {p.pid for p in psutil.Process().children()}
        futures = [executor.submit(square, x) for x in range(10)]
        while not (young := [p for p in psutil.Process().children() if p.pid not in before and _is_worker(p)]):
            pass  # bounded by the test's limit
        for process in young[:2]:
            os.kill(process.pid, signal.SIGKILL)
        assert [future.result(LIMIT_S) for future in futures] == [x * x for x in range(10)]


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "amorsize worker" in " ".join(process.cmdline()).lower().replace("amorsizeworker", "amorsize worker")
    except psutil.Error:
        return False
