"""One worker process, driven by hand."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import select
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from amorsize_executor.workers import blocks, protocol, serialize
from amorsize_executor.workers.channel import make_frame
from amorsize_executor.workers.pool import Ended, WorkerPool

_LIMIT_S = 20.0


class Driver:
    """A pool with one worker, and what has come from it."""

    def __init__(self, context: str, initializer: tuple[Any, ...] | None = None) -> None:
        self.pool = WorkerPool(context, {"AMORSIZE_TEST": "here"})
        entry = None if initializer is None else serialize.dumps(initializer)
        self.pool.init_message = lambda: make_frame((protocol.INIT, entry))
        self.messages: list[tuple[Any, ...]] = []
        self._fn_id = 1
        self.end: Ended | None = None
        assert self.pool.start(1) is None
        (self.pid,) = self.pool.pids().values()

    def wait_until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            assert self.pool.wait(_LIMIT_S, self._on_message, self._on_end), "nothing happens"

    def _on_message(self, message: Any) -> None:
        content = message.content
        if content[0] == protocol.OUTCOMES:
            content = (*content[:6], [self._outcome(outcome, message.block_fd) for outcome in content[6]])
        if message.block_fd is not None:
            os.close(message.block_fd)
        if content[0] != protocol.MEMORY:
            self.messages.append(content)

    def _outcome(self, outcome: tuple[int, Any], block_fd: int | None) -> Any:
        kind, entry = outcome
        if kind == protocol.SKIPPED:
            return "skipped"
        value = serialize.decode(entry, lambda *_: (blocks.map_private(block_fd, blocks.size(block_fd)), 0))
        return value if kind == protocol.VALUE else value[0]

    def _on_end(self, end: Ended) -> None:
        self.end = end

    def ready(self) -> Driver:
        self.wait_until(lambda: bool(self.messages))
        assert self.messages.pop(0) == (protocol.READY, self.pid)
        return self

    def run(self, chunk_id: int, fn: Any, items: list[Any], kind: int = protocol.SCALAR_ITEMS) -> None:
        """Send a chunk; without a function it is that of the chunk before."""
        functions: tuple[Any, ...] = ()
        if fn is not None:
            self._fn_id += 1
            functions = ((self._fn_id, serialize.dumps(fn)),)
        self.pool.post(1, make_frame((protocol.RUN, chunk_id, None, functions, self._fn_id, kind, items, ())))

    def values(self, chunk_id: int, n: int) -> list[Any]:
        """Results of a chunk, in order."""

        def got() -> dict[int, Any]:
            found: dict[int, Any] = {}
            for message in self.messages:
                if message[0] in (protocol.RESULTS, protocol.OUTCOMES) and message[1] == chunk_id:
                    _, _, offset, count, elapsed_ns, _, values, *_ = message
                    assert len(values) == count
                    assert elapsed_ns >= -1, "unknown for what was recovered from the journal"
                    found.update(zip(range(offset, offset + count), values, strict=True))
            return found

        self.wait_until(lambda: len(got()) >= n or self.end is not None)
        found = got()
        assert sorted(found) == list(range(n))
        return [found[i] for i in range(n)]

    def ended(self) -> Ended:
        self.wait_until(lambda: self.end is not None)
        assert self.end is not None
        return self.end

    def close(self) -> None:
        if self.end is None:
            self.pool.kill(1)
            self.ended()
        self.pool.close()


@pytest.fixture
def driver() -> Iterator[Driver]:
    made = Driver("loky").ready()
    yield made
    made.close()


@pytest.fixture(params=["loky", "spawn", "forkserver", "fork"])
def any_driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    made = Driver(request.param).ready()
    yield made
    made.close()


def test_a_worker_runs_a_chunk_and_leaves_when_told_to(any_driver: Driver) -> None:
    any_driver.run(5, abs, [-1, -2, -3])
    assert any_driver.values(5, 3) == [1, 2, 3]
    any_driver.pool.post(1, make_frame((protocol.EXIT,)))
    end = any_driver.ended()
    assert (end.worker_id, end.pid, end.exitcode, end.running) == (1, any_driver.pid, 0, None)
    assert any_driver.pool.pids() == {}


def test_a_worker_has_the_environment_that_was_asked_for(any_driver: Driver) -> None:
    any_driver.run(1, os.getenv, ["AMORSIZE_TEST"])
    assert any_driver.values(1, 1) == ["here"]


def test_a_function_is_sent_once(driver: Driver) -> None:
    driver.run(1, lambda x: x + 1, [1])
    assert driver.values(1, 1) == [2]
    driver.run(2, None, [2, 3])
    assert driver.values(2, 2) == [3, 4]


def test_an_unknown_function_is_asked_for(driver: Driver) -> None:
    driver.run(7, None, [1])
    driver.wait_until(lambda: bool(driver.messages))
    assert driver.messages == [(protocol.NEED_FUNCTIONS, 7)]
    driver.messages.clear()
    driver.run(7, abs, [-1])
    assert driver.values(7, 1) == [1]


def test_a_forgotten_function_is_asked_for(driver: Driver) -> None:
    functions = tuple((i, serialize.dumps(abs)) for i in range(1, 400))
    driver.pool.post(1, make_frame((protocol.RUN, 1, None, functions, 399, protocol.SCALAR_ITEMS, [-1], ())))
    assert driver.values(1, 1) == [1]
    driver.messages.clear()
    driver.run(2, None, [-2])  # number 1
    driver.wait_until(lambda: bool(driver.messages))
    assert driver.messages == [(protocol.NEED_FUNCTIONS, 2)]


def test_all_kinds_of_items(driver: Driver) -> None:
    driver.run(1, pow, [(2, 3), (2, 4)], protocol.SCALAR_TUPLES)
    assert driver.values(1, 2) == [8, 16]
    entry = serialize.dumps((([3, 1, 2],), {"reverse": True}))
    driver.run(2, sorted, [entry, None, ((((2, 1),)),)], protocol.ENTRIES)
    assert driver.values(2, 3) == [[3, 2, 1], "skipped", [1, 2]]


def test_items_that_nobody_wants_are_skipped(driver: Driver) -> None:
    driver.run(1, abs, [None, None], protocol.ENTRIES)
    assert driver.values(1, 2) == ["skipped", "skipped"]


def test_each_item_may_have_its_own_function(driver: Driver) -> None:
    functions = ((1, serialize.dumps(abs)), (2, serialize.dumps(str)))
    driver.pool.post(
        1, make_frame((protocol.RUN, 1, None, functions, [1, 2, 1], protocol.SCALAR_TUPLES, [(-1,), (-2,), (-3,)], ()))
    )
    assert driver.values(1, 3) == [1, "-2", 3]


def test_large_items_and_results_travel_in_blocks(driver: Driver) -> None:
    writer = blocks.BlockWriter()
    entries = [serialize.encode(((np.full(50_000, float(i)),), {}), writer) for i in range(3)]
    fn = ((1, serialize.dumps(np.negative)),)
    driver.pool.post(1, make_frame((protocol.BLOCK, 0), writer.detach()))
    driver.pool.post(1, make_frame((protocol.RUN, 1, None, fn, 1, protocol.ENTRIES, entries, (0,))))
    results = driver.values(1, 3)
    assert [result[0] for result in results] == [0, -1, -2]
    assert all(result.flags.writeable for result in results)
    del results
    driver.messages.clear()  # and with them the mappings


def test_exceptions_stand_among_results(driver: Driver) -> None:
    driver.run(1, lambda x: 6 // x, [1, 0, 2])
    first, second, third = driver.values(1, 3)
    assert (first, third) == (6, 3)
    assert isinstance(second, ZeroDivisionError)


def test_twenty_thousand_short_items_come_in_few_messages(driver: Driver) -> None:
    driver.run(1, abs, list(range(20_000)))
    assert driver.values(1, 20_000) == list(range(20_000))
    assert len(driver.messages) < 5_000


def test_a_result_is_sent_while_the_next_item_of_the_chunk_runs(driver: Driver) -> None:
    reader, writer = os.pipe()
    path = f"/proc/{os.getpid()}/fd/{reader}"

    def work(i: int) -> int:
        if i == 3:
            with open(path, "rb") as pipe:
                assert select.select([pipe], [], [], 20)[0]
        else:
            end = time.perf_counter() + 3e-3  # results wait up to 2 ms for others
            while time.perf_counter() < end:
                pass
        return i

    import time

    driver.run(1, work, [0, 1, 2, 3])
    assert driver.values(1, 3) == [0, 1, 2]
    os.write(writer, b"x")
    driver.messages.clear()
    os.close(reader)
    os.close(writer)


# ---------------------------------------------------------------------- deaths


def test_a_death_tells_which_item_ran_and_results_before_it_are_recovered(any_driver: Driver) -> None:
    def work(i: int) -> int:
        if i == 5:
            os._exit(9)
        return i

    any_driver.run(3, work, list(range(10)))
    end = any_driver.ended()
    assert end.exitcode == 9
    assert end.running == (3, 5, 1)
    assert any_driver.values(3, 5) == [0, 1, 2, 3, 4]


def test_a_death_while_a_large_result_was_before_it(driver: Driver) -> None:
    def work(i: int) -> bytes:
        if i == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return bytes([i]) * 300_000

    driver.run(3, work, [0, 1, 2, 3])
    end = driver.ended()
    assert (end.exitcode, end.running) == (-signal.SIGKILL, (3, 2, 1))
    assert driver.values(3, 2) == [b"\0" * 300_000, b"\1" * 300_000]


def test_an_idle_workers_death_was_no_items_fault(driver: Driver) -> None:
    driver.run(1, abs, [-1])
    assert driver.values(1, 1) == [1]
    # A function that it has not:
    driver.pool.post(1, make_frame((protocol.RUN, 2, None, (), 99, protocol.SCALAR_ITEMS, [1], ())))
    driver.wait_until(lambda: driver.messages[-1] == (protocol.NEED_FUNCTIONS, 2))
    driver.pool.kill(1)
    end = driver.ended()
    assert (end.exitcode, end.running) == (-signal.SIGKILL, None)


def test_a_crash_leaves_a_traceback(driver: Driver) -> None:
    def crash(_: int) -> None:
        import faulthandler

        faulthandler._sigsegv()

    driver.run(1, crash, [0])
    end = driver.ended()
    assert end.exitcode == -signal.SIGSEGV
    assert end.running == (1, 0, 1)
    assert "Segmentation fault" in end.fault
    assert "crash" in end.fault


def test_an_argument_that_kills_is_the_culprit(driver: Driver) -> None:
    entries = [serialize.dumps(((1,), {})), serialize.dumps(((Deadly(),), {})), serialize.dumps(((3,), {}))]
    driver.run(1, str, entries, protocol.ENTRIES)
    end = driver.ended()
    assert end.running == (1, 1, 1)
    assert driver.values(1, 1) == ["1"]


class Deadly:
    def __reduce__(self) -> Any:
        return os._exit, (4,)


def test_a_function_that_kills_where_it_is_loaded_counts_as_the_first_item(driver: Driver) -> None:
    functions = ((1, pickle.dumps(Deadly())),)
    driver.pool.post(1, make_frame((protocol.RUN, 2, None, functions, 1, protocol.SCALAR_ITEMS, [1, 2], ())))
    assert driver.ended().running == (2, 0, 1)


def test_the_death_of_a_worker_that_forked_is_seen_at_once(driver: Driver) -> None:
    reader, writer = os.pipe()
    path = f"/proc/{os.getpid()}/fd/{reader}"

    def work(_: int) -> None:
        pipe = open(path, "rb")  # noqa: SIM115
        if os.fork() == 0:
            select.select([pipe], [], [], 60)  # holds a copy of the channel
            os._exit(0)
        os._exit(5)

    driver.run(1, work, [0])
    end = driver.ended()
    assert (end.exitcode, end.running) == (5, (1, 0, 1))
    os.close(writer)
    os.close(reader)


def test_messages_to_a_worker_that_is_gone_are_dropped(driver: Driver) -> None:
    driver.pool.kill(1)
    driver.ended()
    fd = blocks.create()
    driver.pool.post(1, make_frame((protocol.RUN, 1), fd))
    driver.pool.post(99, make_frame((protocol.EXIT,)))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    driver.pool.kill(1)


# ---------------------------------------------------------------------- initializers, waiting


def test_a_failed_initializer_is_told_and_ends_the_worker() -> None:
    driver = Driver("loky", (int, ("not a number",)))
    try:
        end = driver.ended()
        ((code, entry),) = driver.messages
        error, text = pickle.loads(entry)
        assert code == protocol.INIT_FAILED
        assert isinstance(error, ValueError)
        assert "not a number" in text
        assert end.running is None
    finally:
        driver.close()


def test_an_initializer_runs_before_the_first_chunk() -> None:
    driver = Driver("loky", (exec, ("import os; os.environ['AMORSIZE_TEST'] = 'changed'",))).ready()
    try:
        driver.run(1, os.getenv, ["AMORSIZE_TEST"])
        assert driver.values(1, 1) == ["changed"]
    finally:
        driver.close()


def test_waiting_ends_when_woken_or_when_time_is_up(driver: Driver) -> None:
    assert driver.pool.wait(0, driver._on_message, driver._on_end) is False
    driver.pool.wake()
    driver.pool.wake()
    assert driver.pool.wait(_LIMIT_S, driver._on_message, driver._on_end) is True
    assert driver.pool.wait(0, driver._on_message, driver._on_end) is False
    driver.pool.nudge()
    assert driver.pool.wait(_LIMIT_S, driver._on_message, driver._on_end) is True


def test_a_worker_ends_when_its_channel_is_closed() -> None:
    driver = Driver("loky").ready()
    pidfd = os.pidfd_open(driver.pid)
    driver.pool.close()
    try:
        assert select.select([pidfd], [], [], _LIMIT_S)[0]
    finally:
        os.close(pidfd)
        os.waitpid(driver.pid, 0)


def test_a_process_that_another_thread_has_launched_is_taken_in(driver: Driver) -> None:
    pool = driver.pool
    pool.launch(2)
    assert pool.is_launched(2)
    assert not pool.has(2)
    assert pool.start(2) is None
    assert pool.has(2)
    assert not pool.is_launched(2)
    (pid,) = set(pool.pids().values()) - {driver.pid}
    driver.wait_until(lambda: (protocol.READY, pid) in driver.messages)
    pool.kill(2)
    driver.ended()
    driver.end = None


@pytest.mark.parametrize("end", [lambda pool: pool.drop(2), lambda pool: pool.close()], ids=["dropped", "closed"])
def test_a_process_that_was_launched_for_nothing_ends(end: Callable[[WorkerPool], None]) -> None:
    pool = WorkerPool("loky", {})
    pool.prepare()
    pool.launch(2)
    (process,) = [child for child in multiprocessing.active_children() if child.name == "AmorsizeWorker-2"]
    end(pool)
    assert process.exitcode == -signal.SIGKILL
    assert not pool.is_launched(2)
    pool.drop(2)  # nothing
    pool.close()


def test_after_its_end_a_pool_launches_nothing() -> None:
    pool = WorkerPool("loky", {})
    pool.prepare()
    pool.close()
    pool.launch(2)
    assert not pool.is_launched(2)
    assert not [child for child in multiprocessing.active_children() if child.name == "AmorsizeWorker-2"]


def test_no_wake_up_is_lost_beside_others(driver: Driver) -> None:
    pool = driver.pool
    for _ in range(300):
        waker = threading.Thread(target=lambda: [pool.wake() for _ in range(50)])
        waker.start()
        while waker.is_alive():
            pool.wait(0, lambda message: None, lambda end: None)
        waker.join()
        while pool.wait(0, lambda message: None, lambda end: None):
            pass  # those on their way
        pool.wake()
        assert pool.wait(5.0, lambda message: None, lambda end: None), "this one came alone"
