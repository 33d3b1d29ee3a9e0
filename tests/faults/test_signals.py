"""Workers that are stopped, signals to the parent, clocks that jump, forks in the middle: results do not change."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from amorsize_executor import AmorsizeExecutor, TaskTimeout
from amorsize_executor.workers import trees

from ..executor.tools import LIMIT_S, Signal, run_script, wait_for_end
from .tasks import count_notes, daemonise_and_hang, noted, square, tell_and_wait, work

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes as Linux shows them"),
]

_ROOT = os.fspath(Path(__file__).resolve().parents[2])


def spin(x: int) -> int:
    work(1e-3)
    return x * x


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    until = time.monotonic() + LIMIT_S
    while not trees.is_stopped(pid):
        assert time.monotonic() < until


def worker_pids(executor: AmorsizeExecutor) -> list[int]:
    return [worker.pid for worker in executor.stats().workers if worker.pid is not None]


def busy_pid(executor: AmorsizeExecutor) -> int:
    """Process of the only worker that is busy, when the others have told that they are done."""
    until = time.monotonic() + LIMIT_S
    while True:
        pids = [worker.pid for worker in executor.stats().workers if worker.state == "busy"]
        if len(pids) == 1:
            assert pids[0] is not None
            return pids[0]
        assert time.monotonic() < until


# ---------------------------------------------------------------------- stopped workers


def test_what_waits_behind_a_stopped_worker_runs_elsewhere_and_once(
    notes: str, make_signal: Callable[[], Signal]
) -> None:
    started, go = make_signal(), make_signal()
    with AmorsizeExecutor(2, inline="never") as executor:
        assert list(executor.map(noted, [notes] * 4, range(4))) == [0, 1, 4, 9]  # 100 us each
        blocked = executor.submit(tell_and_wait, started, go, os.getpid())
        started.take()
        stopped = busy_pid(executor)
        stop(stopped)
        futures = [executor.submit(noted, notes, x) for x in range(4, 100)]
        assert [future.result(LIMIT_S) for future in futures] == [x * x for x in range(4, 100)]
        assert list(executor.map(noted, [notes] * 100, range(100, 200))) == [x * x for x in range(100, 200)]
        os.kill(stopped, signal.SIGCONT)
        go.give()
        assert blocked.result(LIMIT_S) == os.getpid()
    assert count_notes(notes) == dict.fromkeys(range(200), 1)


def test_a_map_goes_on_when_its_workers_are_stopped_for_a_while(notes: str) -> None:
    with AmorsizeExecutor(2, inline="never") as executor:
        executor.warm_up()
        for chunksize in (None, 1, 10):
            results = executor.map(noted, [notes] * 300, range(300), chunksize=chunksize)
            assert next(results) == 0
            for pid in worker_pids(executor):
                stop(pid)
            for pid in worker_pids(executor):
                os.kill(pid, signal.SIGCONT)
            assert list(results) == [x * x for x in range(1, 300)]
    assert set(count_notes(notes).values()) == {3}


def test_a_task_of_a_stopped_worker_can_time_out() -> None:
    with AmorsizeExecutor(1) as executor:
        pid = executor.submit(os.getpid).result(LIMIT_S)
        stop(pid)
        late = executor.options(timeout=0.3).submit(square, 2)
        assert isinstance(late.exception(LIMIT_S), TaskTimeout)
        assert executor.submit(square, 3).result(LIMIT_S) == 9


def test_a_stopped_worker_may_be_killed() -> None:
    with AmorsizeExecutor(1) as executor:
        stop(executor.submit(os.getpid).result(LIMIT_S))
        executor.kill_workers()


# ---------------------------------------------------------------------- what a task leaves behind when it is killed


def test_a_daemon_that_a_task_has_started_outlives_the_end_of_its_worker(notes: str) -> None:
    with AmorsizeExecutor(1) as executor:
        pid = executor.submit(os.getpid).result(LIMIT_S)
        for _ in range(3):
            late = executor.options(timeout=1.0).submit(daemonise_and_hang, notes)
            assert isinstance(late.exception(LIMIT_S), TaskTimeout)
            wait_for_end(pid)
            pid = executor.submit(os.getpid).result(LIMIT_S)
    daemons = list(count_notes(notes))
    assert len(daemons) == 3
    for daemon in daemons:
        assert psutil.Process(daemon).status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
        os.kill(daemon, signal.SIGKILL)


# ---------------------------------------------------------------------- the parent


def test_signals_that_the_program_handles_disturb_nothing() -> None:
    seen = []
    before = signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
    signal.setitimer(signal.ITIMER_REAL, 1e-3, 1e-3)
    try:
        with AmorsizeExecutor(2) as executor:
            for _ in range(3):
                assert list(executor.map(spin, range(100))) == [x * x for x in range(100)]
                futures = [executor.submit(square, x) for x in range(100)]
                assert [future.result(LIMIT_S) for future in futures] == [x * x for x in range(100)]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen


def test_a_handler_that_reaps_every_child_costs_exit_statuses_alone(tmp_path: Path) -> None:
    out = run_script(
        tmp_path,
        f"""
        import os, signal, sys
        sys.path.insert(0, {_ROOT!r})
        from amorsize_executor import AmorsizeExecutor, WorkerDied

        def reap(*_):
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                pass

        signal.signal(signal.SIGCHLD, reap)
        with AmorsizeExecutor(1) as ex:
            for _ in range(3):
                print(type(ex.submit(os._exit, 3).exception(20)).__name__)
                print(ex.submit(pow, 2, 3).result(20))
        """,
    )
    assert out == "WorkerDied\n8\n" * 3


def test_the_wall_clock_may_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = iter(range(0, 10**9, 10**5))
    monkeypatch.setattr(time, "time", lambda: float(next(jumps) * (-1) ** next(jumps)))
    with AmorsizeExecutor(2, idle_timeout=5.0) as executor:
        assert list(executor.map(spin, range(100), timeout=LIMIT_S)) == [x * x for x in range(100)]
        quick = executor.options(timeout=LIMIT_S)
        assert [quick.submit(square, x).result(LIMIT_S) for x in range(20)] == [x * x for x in range(20)]


@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)", "list(ex.map(spin, range(50))); sys.exit(0)"])
def test_a_fork_in_the_middle_of_a_map_costs_the_parent_nothing(tmp_path: Path, end: str) -> None:
    out = run_script(
        tmp_path,
        f"""
        import os, sys, warnings
        sys.path.insert(0, {_ROOT!r})
        from amorsize_executor import AmorsizeExecutor
        from tests.faults.test_signals import spin

        warnings.simplefilter("ignore", DeprecationWarning)
        children = []
        with AmorsizeExecutor(2, inline="never") as ex:
            for options in ({{}}, {{"chunksize": 3}}, {{"buffersize": 10}}, {{"ordered": False}}):
                got = []
                for value in ex.map(spin, range(60), **options):
                    got.append(value)
                    if len(got) == 20:
                        child = os.fork()
                        if not child:
                            {end}
                        children.append(child)
                assert sorted(got) == [x * x for x in range(60)]
        print([os.waitpid(child, 0)[1] for child in children])
        """,
    )
    assert out == "[0, 0, 0, 0]\n"
