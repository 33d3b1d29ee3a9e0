"""Whole programs: functions and classes of ``__main__``, and every way in which an interpreter can end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from .tools import Script, Signal, run_script


def test_functions_and_classes_of_main_need_no_guard(tmp_path: Path) -> None:
    out = run_script(
        tmp_path,
        """
        import dataclasses, functools
        from amorsize_executor import AmorsizeExecutor

        print("main runs")
        OFFSET = 10

        class Base:
            pass

        @dataclasses.dataclass
        class Point(Base):
            x: int
            def moved(self, by):
                return Point(self.x + by + OFFSET)

        class Trouble(Exception):
            pass

        def make(x):
            return Point(helper(x))

        def helper(x):
            return x + OFFSET

        def fail(x):
            raise Trouble(x)

        for inline in ("never", "auto"):
            with AmorsizeExecutor(2, inline=inline) as ex:
                point = ex.submit(make, 1).result()
                assert type(point) is Point and point.x == 11, point
                assert ex.submit(point.moved, 1).result() == Point(22)
                assert list(ex.map(make, range(3))) == [Point(10), Point(11), Point(12)]
                assert list(ex.map(Point.moved, [Point(1)], [2])) == [Point(13)]
                assert ex.submit(isinstance, point, Base).result()
                assert ex.submit(functools.partial(make), x=5).result() == Point(15)
                assert ex.submit(Point, 4).result() == Point(4)
                error = ex.submit(fail, "x").exception()
                assert type(error) is Trouble, error
                OFFSET = 20
                assert ex.submit(helper, 1).result() == 21
                assert list(ex.map(helper, [1])) == [21]
                OFFSET = 10
        print("done")
        """,
    )
    assert out == "main runs\ndone\n"


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_functions_of_main_with_every_start_method(tmp_path: Path, method: str) -> None:
    out = run_script(
        tmp_path,
        f"""
        from amorsize_executor import AmorsizeExecutor

        class Point:
            def __init__(self, x):
                self.x = x

        def make(x):
            return Point(x + 1)

        if __name__ == "__main__":
            with AmorsizeExecutor(1, "{method}", inline="never") as ex:
                assert [type(p) is Point and p.x for p in ex.map(make, range(3))] == [1, 2, 3]
                assert type(ex.submit(make, 1).result()) is Point
            print("done")
        """,
    )
    assert out == "done\n"


def test_the_end_of_the_program_finishes_pending_work(tmp_path: Path) -> None:
    out = run_script(
        tmp_path,
        """
        from pathlib import Path
        from amorsize_executor import AmorsizeExecutor

        def work(i):
            Path(f"out-{i}").write_text("x")

        ex = AmorsizeExecutor(2)
        for i in range(100):
            ex.submit(work, i)
        ex.map(work, range(100, 150))
        unused = ex.map(work, range(150, 200), buffersize=50)
        AmorsizeExecutor(1).submit(work, 200)
        """,
    )
    assert out == ""
    assert len(list(tmp_path.glob("out-*"))) == 201


def test_the_end_of_the_program_does_not_wait_for_an_endless_input(tmp_path: Path) -> None:
    out = run_script(
        tmp_path,
        """
        import itertools
        from amorsize_executor import AmorsizeExecutor

        ex = AmorsizeExecutor(1)
        results = ex.map(abs, itertools.count(), buffersize=5)
        print(next(results))
        other = ex.map(abs, itertools.count(), buffersize=5)
        """,
    )
    assert out == "0\n"


def test_an_idle_executor_does_not_hold_up_the_end_of_the_program(tmp_path: Path) -> None:
    out = run_script(
        tmp_path,
        """
        from amorsize_executor import AmorsizeExecutor

        ex = AmorsizeExecutor(2, idle_timeout=None, min_workers=2)
        print(ex.submit(pow, 2, 3).result())
        print(list(ex.map(abs, range(3))))
        """,
    )
    assert out == "8\n[0, 1, 2]\n"


def test_submits_at_the_very_end_are_refused(tmp_path: Path) -> None:
    out = run_script(
        tmp_path,
        """
        import atexit
        from amorsize_executor import AmorsizeExecutor

        ex = AmorsizeExecutor(1)
        ex.submit(pow, 2, 3).result()

        @atexit.register
        def late():
            try:
                ex.submit(pow, 2, 3)
            except RuntimeError as error:
                print(error)
        """,
    )
    assert "cannot schedule new futures after" in out


@pytest.mark.parametrize("place", ["inside", "outside"])
def test_sys_exit_finishes_pending_work_and_keeps_its_status(tmp_path: Path, place: str) -> None:
    script = Script(
        tmp_path,
        """
        import sys
        from pathlib import Path
        from amorsize_executor import AmorsizeExecutor

        def work(i):
            Path(f"out-{i}").write_text("x")

        if sys.argv[1] == "inside":
            with AmorsizeExecutor(2) as ex:
                for i in range(50):
                    ex.submit(work, i)
                sys.exit(7)
        else:
            ex = AmorsizeExecutor(2)
            for i in range(50):
                ex.submit(work, i)
            sys.exit(7)
        """,
        place,
    )
    assert script.finish() == (7, "", "")
    assert len(list(tmp_path.glob("out-*"))) == 50


def test_an_unhandled_exception_ends_the_program_with_its_traceback_alone(tmp_path: Path) -> None:
    script = Script(
        tmp_path,
        """
        from amorsize_executor import AmorsizeExecutor

        with AmorsizeExecutor(2) as ex:
            list(ex.map(abs, range(3)))
            ex.submit(pow, 2, 3)
            raise KeyError("mine")
        """,
    )
    status, _, err = script.finish()
    assert status == 1
    assert err.count("Traceback") == 1
    assert err.rstrip().endswith("KeyError: 'mine'")


def test_main_thread_may_end_before_other_threads_that_submit(tmp_path: Path) -> None:
    out = run_script(
        tmp_path,
        """
        import threading
        from amorsize_executor import AmorsizeExecutor

        ex = AmorsizeExecutor(1)
        future = ex.submit(pow, 2, 3)

        def wait_for_it():
            print(future.result())

        threading.Thread(target=wait_for_it).start()
        """,
    )
    assert out == "8\n"


# ---------------------------------------------------------------------- globals of __main__


def test_an_initializer_sets_globals_that_functions_of_the_script_read(tmp_path: Path) -> None:
    out = run_script(
        tmp_path,
        """
        from amorsize_executor import AmorsizeExecutor

        model = None

        def load(factor):
            global model
            model = factor

        def helper(x):
            return model * x

        def predict(x):
            return helper(x)

        if __name__ == "__main__":
            with AmorsizeExecutor(2, initializer=load, initargs=(3,)) as ex:
                print(sum(ex.map(predict, range(100))), ex.submit(predict, 5).result(), model)
        """,
    )
    assert out == "14850 15 None\n"


def test_what_tasks_keep_in_globals_of_the_script_stays_in_their_worker(tmp_path: Path) -> None:
    out = run_script(
        tmp_path,
        """
        import os
        from functools import lru_cache
        from amorsize_executor import AmorsizeExecutor

        cache = {}
        n_calls = 0

        @lru_cache(maxsize=None)
        def model():
            return os.getpid(), object()

        def call(x):
            global n_calls
            n_calls += 1
            cache.setdefault("first", n_calls)
            assert model() is model()
            return os.getpid(), n_calls, cache["first"], id(model()[1])

        with AmorsizeExecutor(1, inline="never") as ex:
            results = [*ex.map(call, range(50)), *ex.map(call, range(50)), ex.submit(call, 0).result()]
        print([n for _, n, _, _ in results] == list(range(1, 102)))
        print({first for _, _, first, _ in results}, len({model for _, _, _, model in results}), n_calls, cache)
        """,
    )
    assert out == "True\n{1} 1 0 {}\n"


def test_globals_that_the_script_changes_between_calls_are_seen(tmp_path: Path) -> None:
    out = run_script(
        tmp_path,
        """
        from amorsize_executor import AmorsizeExecutor

        factor, table = 2, {"a": 1}

        def scale(x):
            return factor * x + table["a"]

        with AmorsizeExecutor(1, inline="never") as ex:
            print(list(ex.map(scale, range(3))))
            factor = 10
            print(list(ex.map(scale, range(3))))
            table["a"] = 5
            print(list(ex.map(scale, range(3))), ex.submit(scale, 1).result())
        """,
    )
    assert out == "[1, 3, 5]\n[1, 11, 21]\n[5, 15, 25] 15\n"


# ---------------------------------------------------------------------- Ctrl-C

_BUSY = """
import select, sys
sys.path.insert(0, {root!r})
from tests.executor.tools import attach_signal
from amorsize_executor import AmorsizeExecutor

started = attach_signal(sys.argv[1])

def work(i):
    started.give()
    for _ in range(3000):  # a signal just before a system call is seen behind it: so none may be long
        select.select([], [], [], 0.02)

"""


@pytest.mark.parametrize("group", [True, False], ids=["whole session", "parent only"])
@pytest.mark.parametrize(
    "main",
    [
        "with AmorsizeExecutor(2, inline='never') as ex: list(ex.map(work, range(1000)))",
        "with AmorsizeExecutor(2) as ex: list(ex.map(work, range(1000)))",
        "with AmorsizeExecutor(2) as ex: ex.submit(work, 1).result()",
        "with AmorsizeExecutor(2) as ex: futures = [ex.submit(work, i) for i in range(10)]",
        "ex = AmorsizeExecutor(2, inline='never'); list(ex.map(work, range(1000)))",
        "ex = AmorsizeExecutor(2); list(ex.map(work, range(1000), buffersize=10))",
        "ex = AmorsizeExecutor(2); ex.submit(work, 1).result()",
    ],
    ids=[
        "map in with", "inline map in with", "result in with", "end of with",
        "map", "map with buffer", "result",
    ],
)  # fmt: skip
def test_ctrl_c_ends_the_program_at_once_with_one_traceback(
    tmp_path: Path, make_signal: Callable[[], Signal], main: str, group: bool
) -> None:
    started = make_signal()
    script = Script(tmp_path, _BUSY.format(root=_ROOT) + main, started.path)
    started.take()
    script.interrupt(group=group)
    status, out, err = script.finish()
    assert status == -signal.SIGINT, err
    assert out == ""
    assert err.count("Traceback") == 1
    assert err.rstrip().endswith("KeyboardInterrupt")


_ROOT = os.fspath(Path(__file__).resolve().parents[2])


def test_a_caught_ctrl_c_leaves_the_executor_usable(tmp_path: Path, make_signal: Callable[[], Signal]) -> None:
    started = make_signal()
    source = """
with AmorsizeExecutor(1, inline='never') as ex:
    try:
        list(ex.map(wait_a_moment, range(1000), chunksize=1))
    except KeyboardInterrupt:
        print("caught")
    print(ex.submit(pow, 2, 3).result())
"""
    wait_a_moment = """
def wait_a_moment(i):
    started.give()
    select.select([], [], [], 0.05)
"""
    script = Script(tmp_path, _BUSY.format(root=_ROOT) + wait_a_moment + source, started.path)
    started.take()
    script.interrupt(group=True)
    assert script.finish() == (0, "caught\n8\n", "")


# ---------------------------------------------------------------------- fork of the parent


def test_a_forked_child_uses_the_executor_anew_and_the_parent_goes_on(tmp_path: Path) -> None:
    out = run_script(
        tmp_path,
        """
        import os, warnings
        from amorsize_executor import AmorsizeExecutor

        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads

        def pid(_=None):
            return os.getpid()

        with AmorsizeExecutor(2, inline="never") as ex:
            before = ex.submit(pid).result()
            pending = ex.submit(pow, 2, 10)
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    assert ex.submit(pow, 2, 5).result(30) == 32
                    assert ex.submit(pid).result(30) not in (before, os.getpid())
                    assert list(ex.map(abs, range(100))) == list(range(100))
                    ex.shutdown()
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitpid(child, 0)[1] == 0
            assert pending.result(30) == 1024
            assert ex.submit(pid).result(30) == before
            assert list(ex.map(abs, range(100))) == list(range(100))
        print("done")
        """,
    )
    assert out == "done\n"


def test_a_forked_child_that_leaves_the_with_block_harms_nobody(tmp_path: Path) -> None:
    script = Script(
        tmp_path,
        """
        import os, sys, warnings
        from amorsize_executor import AmorsizeExecutor

        warnings.simplefilter("ignore", DeprecationWarning)

        def fork_twice(ex):
            for _ in range(2):
                child = os.fork()
                if child == 0:
                    return
                assert os.waitpid(child, 0)[1] == 0

        main = os.getpid()
        with AmorsizeExecutor(2) as ex:
            ex.submit(pow, 2, 5).result()
            fork_twice(ex)
        if os.getpid() == main:
            print("parent")
        """,
    )
    assert script.finish() == (0, "parent\n", "")


def test_a_forked_child_may_leave_its_own_executor_to_the_end_of_the_program(tmp_path: Path) -> None:
    script = Script(
        tmp_path,
        """
        import os, warnings
        from amorsize_executor import AmorsizeExecutor

        warnings.simplefilter("ignore", DeprecationWarning)
        ex = AmorsizeExecutor(1)
        assert ex.submit(pow, 2, 5).result() == 32
        child = os.fork()
        assert ex.submit(pow, 2, 6).result(30) == 64
        if child:
            assert os.waitpid(child, 0)[1] == 0
            print("done")
        """,
    )
    assert script.finish() == (0, "done\n", "")
