"""Shutdowns, ends of workers, resizes, callbacks, cancels and the garbage collector, all at the worst moment."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amorsize_executor import AmorsizeExecutor, CostModel, dispatcher, logs
from amorsize_executor.decisions.actions import SendChunk
from amorsize_executor.decisions.work import Chunk
from amorsize_executor.workers import pool

from ..executor.tools import LIMIT_S, Signal, run_script
from .tasks import count_notes, noted, square, tell_and_wait, work

pytestmark = pytest.mark.timeout(60)

_ROOT = os.fspath(Path(__file__).resolve().parents[2])


def busy(x: int) -> int:
    work(2e-4)
    return x * x


def assert_settled(futures: list[Future[int]], *errors: type[BaseException]) -> int:
    """Every future has a result or one of these errors; returns how many have results."""
    assert not wait(futures, LIMIT_S).not_done
    n = 0
    for future in futures:
        if future.cancelled():
            assert CancelledError in errors
        elif (error := future.exception()) is not None:
            assert isinstance(error, errors), error
        else:
            n += 1
    return n


# ---------------------------------------------------------------------- shutdown


@pytest.mark.parametrize("cancel_futures", [False, True])
@pytest.mark.parametrize("is_warm", [False, True])
def test_shutdown_while_eight_threads_submit(notes: str, is_warm: bool, cancel_futures: bool) -> None:
    executor = AmorsizeExecutor(2)
    if is_warm:
        executor.submit(square, 1).result(LIMIT_S)
    numbers = itertools.count()
    taken: list[tuple[int, Future[int]]] = []
    refused = []
    enough = threading.Event()

    def submit_until_refused() -> None:
        while True:
            x = next(numbers)
            try:
                taken.append((x, executor.submit(noted, notes, x)))
            except RuntimeError as error:
                refused.append(error)
                return
            if len(taken) >= 200:
                enough.set()

    threads = [threading.Thread(target=submit_until_refused) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert enough.wait(LIMIT_S)
    executor.shutdown(cancel_futures=cancel_futures)
    for thread in threads:
        thread.join(LIMIT_S)
    assert len(refused) == 8
    assert all("shutdown" in str(error) for error in refused)
    done = {x for x, future in taken if not future.cancelled()}
    if not cancel_futures:
        assert len(done) == len(taken)
    assert all(future.result(0) == x * x for x, future in taken if x in done)
    assert count_notes(notes) == dict.fromkeys(done, 1)


def test_shutdown_of_an_executor_that_other_threads_just_begin_to_use() -> None:
    for _ in range(10):
        executor = AmorsizeExecutor(1)
        barrier = threading.Barrier(4)
        results: list[object] = []

        def use(
            kind: str,
            executor: AmorsizeExecutor = executor,
            barrier: threading.Barrier = barrier,
            results: list[object] = results,
        ) -> None:
            barrier.wait()
            try:
                if kind == "submit":
                    results.append(executor.submit(square, 3).result(LIMIT_S))
                elif kind == "map":
                    results.extend(executor.map(square, [3]))
                else:
                    executor.shutdown()
            except (RuntimeError, CancelledError):
                results.append(9)

        threads = [threading.Thread(target=use, args=(kind,)) for kind in ("submit", "map", "map", "shutdown")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
        assert results == [9, 9, 9]
        executor.shutdown()
    assert not [thread for thread in threading.enumerate() if thread.name == "amorsize-io"]


def test_shutdown_may_cancel_a_map_whose_worker_then_dies(make_signal: Callable[[], Signal]) -> None:
    started, go = make_signal(), make_signal()
    executor = AmorsizeExecutor(1, inline="never")
    results = executor.map(tell_wait_die, [(started, go, die_after) for die_after in (False, True, False)], chunksize=3)
    started.take()
    executor.shutdown(wait=False, cancel_futures=True)
    go.give(3)
    assert next(results) is None
    with pytest.raises((BrokenProcessPool, CancelledError)):
        next(results)
    executor.shutdown()


def tell_wait_die(item: tuple[Signal, Signal, bool]) -> None:
    started, go, dies = item
    tell_and_wait(started, go)
    if dies:
        os._exit(1)


# ---------------------------------------------------------------------- the end of workers


@pytest.mark.parametrize("end", ["kill_workers", "terminate_workers"])
@pytest.mark.parametrize("inline", ["auto", "never"])
def test_workers_are_ended_while_maps_and_submits_run(end: str, inline: str) -> None:
    for n_before in (0, 7, 70):
        _end_in_the_middle(AmorsizeExecutor(2, inline=inline), end, n_before)  # type: ignore[arg-type]


def _end_in_the_middle(executor: AmorsizeExecutor, end: str, n_before: int) -> None:
    results: list[int] = []
    told = threading.Event()

    def consume() -> None:
        try:
            for n, result in enumerate(executor.map(busy, range(3000))):
                results.append(result)
                if n == n_before:
                    told.set()
        except BrokenProcessPool:
            pass
        finally:
            told.set()

    thread = threading.Thread(target=consume)
    thread.start()
    futures = [executor.submit(busy, x) for x in range(200)]
    assert told.wait(LIMIT_S)
    getattr(executor, end)()
    thread.join(LIMIT_S)
    assert not thread.is_alive()
    assert results == [x * x for x in range(len(results))]
    assert_settled(futures, BrokenProcessPool)
    executor.shutdown()


# ---------------------------------------------------------------------- resize


def test_resizing_up_and_down_loses_and_repeats_nothing(notes: str) -> None:
    rng = random.Random(5)
    with AmorsizeExecutor(3, inline="never") as executor:
        results = executor.map(noted, itertools.repeat(notes, 400), range(400))
        futures = []
        for x in range(400):
            assert next(results) == x * x
            if x % 10 == 0:
                executor.resize(rng.randint(1, 3))
                futures.append(executor.submit(busy, len(futures)))
        assert assert_settled(futures) == len(futures)
    assert count_notes(notes) == dict.fromkeys(range(400), 1)


# ---------------------------------------------------------------------- callbacks


def test_callbacks_may_raise_whatever_they_like(caplog: pytest.LogCaptureFixture) -> None:
    def fail(kind: type[BaseException]) -> Callable[[Future[int]], None]:
        def callback(future: Future[int]) -> None:
            raise kind("of a callback")

        return callback

    with AmorsizeExecutor(1) as executor:
        futures = [executor.submit(square, x) for x in range(30)]
        for i, future in enumerate(futures):
            try:
                future.add_done_callback(fail((ValueError, RuntimeError, KeyError)[i % 3]))
            except Exception:  # done already: it ran here
                pass
        assert assert_settled(futures) == 30
        assert executor.submit(square, 3).result(LIMIT_S) == 9


def test_a_callback_may_shut_down_the_executor_and_wait() -> None:
    for _ in range(2):
        executor = AmorsizeExecutor(2)
        futures = [executor.submit(busy, x) for x in range(50)]
        futures[20].add_done_callback(lambda _, executor=executor: executor.shutdown(wait=True))
        assert assert_settled(futures) == 50
        with pytest.raises(RuntimeError, match="shutdown"):
            executor.submit(square, 1)
        executor.shutdown()


def test_a_callback_may_end_the_workers() -> None:
    executor = AmorsizeExecutor(2)
    futures = [executor.submit(busy, x) for x in range(200)]
    futures[20].add_done_callback(lambda _: executor.kill_workers())
    assert_settled(futures, BrokenProcessPool)
    executor.shutdown()


def test_a_callback_may_submit() -> None:
    settled = threading.Event()
    left = 300

    def again(_: object) -> None:
        nonlocal left
        left -= 1
        if left:
            executor.submit(square, left).add_done_callback(again)
        else:
            settled.set()

    with AmorsizeExecutor(2) as executor:
        executor.submit(square, 0).add_done_callback(again)
        assert settled.wait(LIMIT_S)


# ---------------------------------------------------------------------- cancels


def test_a_storm_of_cancels(notes: str) -> None:
    with AmorsizeExecutor(2) as executor:
        futures: list[Future[int]] = []
        stop = threading.Event()

        def cancel(seed: int) -> None:
            rng = random.Random(seed)
            while not stop.is_set():
                if futures:
                    futures[rng.randrange(len(futures))].cancel()

        threads = [threading.Thread(target=cancel, args=(seed,)) for seed in range(2)]
        for thread in threads:
            thread.start()
        try:
            for x in range(1500):
                futures.append(executor.submit(noted, notes, x))
        finally:
            stop.set()
            for thread in threads:
                thread.join(LIMIT_S)
        assert_settled(futures, CancelledError)
        assert executor.submit(square, 3).result(LIMIT_S) == 9
    assert count_notes(notes) == dict.fromkeys((x for x, f in enumerate(futures) if not f.cancelled()), 1)


# ---------------------------------------------------------------------- dropped iterators, collected executors


@pytest.mark.parametrize("inline", ["auto", "never"])
def test_iterators_are_dropped_at_any_point(inline: str) -> None:
    rng = random.Random(11)
    with AmorsizeExecutor(2, inline=inline) as executor:  # type: ignore[arg-type]
        for _ in range(60):
            options = {"buffersize": rng.choice([None, 1, 7]), "ordered": rng.random() < 0.7}
            results = executor.map(rng.choice([square, busy]), range(rng.randrange(1, 300)), **options)
            for _ in range(rng.randrange(20)):
                next(results, None)
            del results
        assert list(executor.map(square, range(100))) == [x * x for x in range(100)]


def test_the_garbage_collector_may_drop_iterators_in_any_thread() -> None:
    thresholds = gc.get_threshold()
    gc.set_threshold(20)
    try:
        with AmorsizeExecutor(2) as executor:
            for _ in range(60):
                cycle: list[object] = [executor.map(busy, range(50))]
                next(cycle[0])  # type: ignore[call-overload]
                cycle.append(cycle)
                del cycle
                futures = [executor.submit(square, x) for x in range(20)]
                assert [future.result(LIMIT_S) for future in futures] == [x * x for x in range(20)]
    finally:
        gc.set_threshold(*thresholds)


def test_the_garbage_collector_may_drop_executors_in_any_thread() -> None:
    thresholds = gc.get_threshold()
    gc.set_threshold(20)
    try:
        for _ in range(5):
            executor = AmorsizeExecutor(1)
            cycle: list[object] = [executor]
            cycle.append(cycle)
            futures = [executor.submit(square, x) for x in range(20)]
            del cycle, executor
            assert [future.result(LIMIT_S) for future in futures] == [x * x for x in range(20)]
    finally:
        gc.set_threshold(*thresholds)
        gc.collect()
    for thread in threading.enumerate():
        if thread.name == "amorsize-io":
            thread.join(LIMIT_S)


@pytest.mark.parametrize("options", [{}, {"buffersize": 5}, {"ordered": False}])
@pytest.mark.parametrize("inline", ["auto", "never"])
def test_a_map_outlives_its_executor(inline: str, options: dict[str, object]) -> None:
    executor = AmorsizeExecutor(2, inline=inline)  # type: ignore[arg-type]
    results = executor.map(busy, range(200), **options)  # type: ignore[arg-type]
    first = next(results)
    del executor
    gc.collect()
    assert sorted([first, *results]) == [x * x for x in range(200)]
    del results
    gc.collect()
    for thread in threading.enumerate():
        if thread.name == "amorsize-io":
            thread.join(LIMIT_S)


# ---------------------------------------------------------------------- nothing grows


def test_two_hundred_executors_leave_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text("def square(x): return x * x\n")
    out = run_script(
        tmp_path,
        """
        import warnings
        warnings.simplefilter("error")
        import gc, os, sys, threading
        sys.unraisablehook = lambda *args: (sys.__unraisablehook__(*args), os._exit(9))
        import psutil
        from amorsize_executor import AmorsizeExecutor
        from tasks import square

        def state():
            gc.collect()
            me = psutil.Process()
            shm = len(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else 0
            return threading.active_count(), len(os.listdir("/proc/self/fd")), len(me.children(recursive=True)), shm

        def use(i):
            with AmorsizeExecutor(1, inline="auto" if i % 40 > 4 else "never") as ex:
                kind = i % 40  # most need no worker
                if kind == 0:
                    assert ex.submit(square, 3).result(30) == 9
                elif kind == 2:
                    ex.submit(square, 3)
                elif kind == 3:
                    ex.map(square, range(10))
                elif kind == 4:
                    next(ex.map(square, range(10), buffersize=2))
                elif kind == 5:
                    ex.submit(square, b"x" * 1_000_000)
                elif kind == 6:
                    ex.submit(square, 3)
                    ex.kill_workers()
                elif kind == 7:
                    next(ex.map(square, range(10)))
                elif kind == 8:
                    ex.submit(os._exit, 1)
                elif kind < 30:
                    assert list(ex.map(square, range(10))) == [x * x for x in range(10)]

        for i in range(40):
            use(i)
        before = state()
        for i in range(160):
            use(i)
        print(before == state(), before, state())
        """,
    )
    assert out.startswith("True"), out


def test_development_mode_has_nothing_to_say(tmp_path: Path) -> None:
    import subprocess

    (tmp_path / "script.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {_ROOT!r})\n"
        "from amorsize_executor import AmorsizeExecutor\n"
        "from tests.faults.tasks import square, large, die\n"
        "with AmorsizeExecutor(2, inline='never') as ex:\n"
        "    assert len(ex.submit(large, 100_000).result(30)) == 100_000\n"
        "    assert list(ex.map(square, range(100))) == [x * x for x in range(100)]\n"
        "    assert ex.submit(die, 'SIGKILL').exception(30) is not None\n"
        "    next(ex.map(square, range(100)))\n"
        "print('done')\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", str(tmp_path / "script.py")],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


# ---------------------------------------------------------------------- threads


def test_threads_may_each_have_an_executor_and_share_another() -> None:
    problems: list[BaseException] = []

    def live(shared: AmorsizeExecutor, seed: int) -> None:
        try:
            for x in range(seed, seed + 3):
                with AmorsizeExecutor(1, inline="never") as own:
                    futures = [executor.submit(square, x) for executor in (own, shared)]
                    assert list(shared.map(busy, range(x))) == [i * i for i in range(x)]
                    assert list(own.map(square, range(x), buffersize=3)) == [i * i for i in range(x)]
                    assert [future.result(LIMIT_S) for future in futures] == [x * x] * 2
        except BaseException as error:
            problems.append(error)

    with AmorsizeExecutor(2) as shared:
        threads = [threading.Thread(target=live, args=(shared, 10 * i)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert problems == []


# ---------------------------------------------------------------------- Ctrl-C, and threads that are slow to act


@pytest.mark.parametrize("comes", ["before", "after"])
def test_ctrl_c_while_the_first_thread_starts_costs_that_submit_alone(
    monkeypatch: pytest.MonkeyPatch, comes: str
) -> None:
    original = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if comes == "after" or thread.name != "amorsize-io":
            original(thread)
        if thread.name == "amorsize-io":
            raise KeyboardInterrupt

    with AmorsizeExecutor(1, initializer=square, initargs=(np.ones(100_000),)) as executor:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            with pytest.raises(KeyboardInterrupt):
                executor.submit(square, 2)
        assert executor.submit(square, 3).result(LIMIT_S) == 9


def interrupt_once(patch: pytest.MonkeyPatch, owner: object, name: str, *, is_done: bool) -> None:
    """The next call is interrupted by Ctrl-C as it begins, or when all is done."""
    original = getattr(owner, name)

    def interrupted(*args: Any) -> Any:
        patch.setattr(owner, name, original)
        if is_done:
            original(*args)
        raise KeyboardInterrupt

    patch.setattr(owner, name, interrupted)


@pytest.mark.parametrize(
    ("owner", "name", "is_done"),
    [
        (dispatcher.Dispatcher, "_send", False),
        (logs.WorkerLogs, "look", False),
        (Future, "set_running_or_notify_cancel", False),
        (Future, "set_running_or_notify_cancel", True),
        (dispatcher, "encode_tasks", False),
        (dispatcher, "encode_tasks", True),
        (pool.WorkerPool, "post", True),
    ],
)
def test_what_ctrl_c_keeps_a_submit_from_sending_is_sent(
    notes: str, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, is_done: bool
) -> None:
    with AmorsizeExecutor(1) as executor:
        assert executor.submit(noted, notes, 1).result(LIMIT_S) == 1
        monkeypatch.setattr(executor._dispatcher._logs, "looks_at", 0.0)  # it is time to look again
        interrupt_once(monkeypatch, owner, name, is_done=is_done)
        with pytest.raises(KeyboardInterrupt):
            executor.submit(noted, notes, 2)
        assert executor.submit(noted, notes, 3).result(LIMIT_S) == 9
    assert count_notes(notes) == {1: 1, 2: 1, 3: 1}


def test_an_import_that_ctrl_c_spoils_for_the_io_thread_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    original = pool.WorkerPool.prepare
    raised = []

    def prepare(self: pool.WorkerPool) -> None:
        if not raised and threading.current_thread().name == "amorsize-io":
            raised.append(True)
            raise ImportError("cannot import name 'launch'")
        original(self)

    monkeypatch.setattr(pool.WorkerPool, "prepare", prepare)
    with AmorsizeExecutor(2, cost_model=CostModel()) as executor:
        # While the caller is in its first item, the I/O thread hands the others to workers.
        assert list(executor.map(work, [0.3, *[0.001] * 50])) == [None] * 51
        assert raised


def test_ctrl_c_does_not_send_again_what_nobody_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    with AmorsizeExecutor(1) as executor:
        assert executor.submit(square, 1).result(LIMIT_S) == 1
        monkeypatch.setattr(Future, "set_running_or_notify_cancel", lambda self: False)  # cancelled just before
        interrupt_once(monkeypatch, dispatcher.Dispatcher, "_close_chunk", is_done=True)
        with pytest.raises(KeyboardInterrupt):
            executor.submit(square, 2)
        monkeypatch.undo()
        assert executor.submit(square, 3).result(LIMIT_S) == 9


def test_shutdown_does_not_wait_for_a_worker_that_another_thread_is_about_to_start() -> None:
    executor = AmorsizeExecutor(2)
    executor.submit(square, 1).result(LIMIT_S)
    engine = executor._dispatcher
    with engine.lock:
        decided = engine.scheduler.want_workers(2, time.perf_counter())
    assert len(decided) == 1
    ended = threading.Thread(target=executor.shutdown)
    ended.start()
    ended.join(LIMIT_S)
    assert not ended.is_alive()
    engine.execute(decided)  # too late: nobody starts it


def test_tasks_of_a_dead_worker_do_not_fail_where_they_were_about_to_be_sent(
    notes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = dispatcher.encode_tasks

    def slow(chunk: Chunk, *args: Any) -> Any:
        """Its worker dies meanwhile, and others get its tasks; then there is no room for it."""
        monkeypatch.setattr(dispatcher, "encode_tasks", original)
        os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + LIMIT_S
        while engine.scheduler.chunk(chunk.worker_id, chunk.chunk_id) is chunk and time.monotonic() < until:
            time.sleep(0.001)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with AmorsizeExecutor(1) as executor:
        engine = executor._dispatcher
        pid = executor.submit(os.getpid).result(LIMIT_S)
        monkeypatch.setattr(dispatcher, "encode_tasks", slow)
        assert executor.submit(noted, notes, 2).result(LIMIT_S) == 4
    assert count_notes(notes) == {2: 1}


def test_a_chunk_that_another_thread_is_about_to_send_can_be_taken_back_later() -> None:
    with AmorsizeExecutor(1, inline="never") as executor:
        executor.submit(os.getpid).result(LIMIT_S)
        engine = executor._dispatcher
        with engine.lock:
            engine.scheduler.add_map(10**9, "f", 10)
            actions = engine.scheduler.release_map(10**9, 1, time.perf_counter())
        (chunk,) = [action.chunk for action in actions if isinstance(action, SendChunk)]
        chunk.is_exhausted = True  # an idle worker has asked for some of it
        then = engine._take_back(chunk.worker_id, chunk)
        is_exhausted = chunk.is_exhausted
        engine.execute([*actions, *then])
        with engine.lock:
            actions = engine.scheduler.cancel_map(10**9)
        engine.execute(actions)
    assert not then
    assert not is_exhausted
