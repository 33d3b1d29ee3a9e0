"""An executor on a Dask cluster of real processes: the same promises as on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import operator
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
import pytest

distributed = pytest.importorskip("distributed")

from distributed import Client, LocalCluster, get_worker  # noqa: E402

from amorsize_executor import AmorsizeExecutor, CostModel, WorkerDied  # noqa: E402
from amorsize_executor.integrations.dask_engine import host  # noqa: E402
from amorsize_executor.integrations.dask_engine.pool import DaskPool, _DirectActor  # noqa: E402
from amorsize_executor.workers import claims, protocol  # noqa: E402

pytestmark = [
    # Dask's own, when workers are killed or clusters closed.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@contextlib.contextmanager
def cluster(n_workers: int, threads: int = 1, **options: Any) -> Iterator[Client]:
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with (
        LocalCluster(
            n_workers=n_workers, threads_per_worker=threads, dashboard_address=":0", processes=True, **options
        ) as local,
        Client(local) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with cluster(2) as found:
        yield found


@pytest.fixture
def executor(client: Client) -> Iterator[AmorsizeExecutor]:
    """One whose maps run on the cluster."""
    with AmorsizeExecutor(engine=client, inline="never") as found:
        yield found


@pytest.fixture(scope="module")
def threads() -> Iterator[Client]:
    """A cluster of one process with two threads."""
    with cluster(1, threads=2) as found:
        yield found


@pytest.fixture(scope="module")
def mortal() -> Iterator[Client]:
    """A cluster whose workers are killed, and come back."""
    with cluster(2) as found:
        yield found


def wait_for_file(path: str) -> str:
    if path:
        until(lambda: os.path.exists(path), host.POLL_S / 2)  # else results come since a poll has ended
    else:
        time.sleep(0.06)  # as a long item does
    return path


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for what happens elsewhere, and tells nobody."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def square(x: int) -> int:
    return x * x


def address(_: object = None) -> str:
    return str(get_worker().address)


def pid(_: object = None) -> int:
    return os.getpid()


def pause(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def fail(x: int) -> int:
    raise ValueError(f"{x} is bad")


def exit_at(bad: int, x: int) -> int:
    time.sleep(0.005)
    if x == bad:
        os._exit(3)
    return x


def total(array: np.ndarray, x: int) -> float:
    array[0] += 1  # of this task's own copy
    return float(array.sum()) + x


def filled(x: int) -> np.ndarray:
    return np.full(100_000, x)


def once(folder: str, x: int) -> int:
    """Exit where this was not run before."""
    try:
        with open(os.path.join(folder, str(x)), "x"):
            os._exit(1)
    except FileExistsError:
        return x


class Model:
    """Tells where and when it was built."""

    def __init__(self, folder: str = "") -> None:
        self.pid = os.getpid()
        if folder:
            with open(os.path.join(folder, f"{os.getpid()}-{time.monotonic_ns()}"), "x"):
                pass

    def use(self, x: int) -> tuple[int, int, int]:
        time.sleep(0.01)
        return self.pid, os.getpid(), x


# ---------------------------------------------------------------------- the same API


def test_a_task_runs_in_a_dask_worker(client: Client, executor: AmorsizeExecutor) -> None:
    assert executor.submit(address).result() in client.nthreads()
    assert executor.submit(int, "11", base=2).result() == 3


def test_as_many_workers_as_the_cluster_has_threads(client: Client, executor: AmorsizeExecutor) -> None:
    assert executor.max_workers == 2
    executor.warm_up()
    assert set(executor.map(address, range(2), chunksize=1)) <= client.nthreads().keys()
    assert executor.stats().n_workers("idle") == 2


@pytest.mark.parametrize("chunksize", [None, 1, 7])
def test_results_come_in_order(executor: AmorsizeExecutor, chunksize: int | None) -> None:
    assert list(executor.map(square, range(200), chunksize=chunksize)) == [x * x for x in range(200)]


def test_results_come_as_they_are_ready(executor: AmorsizeExecutor) -> None:
    assert sorted(executor.map(square, range(50), ordered=False)) == [x * x for x in range(50)]


def test_items_are_read_as_results_are_taken(executor: AmorsizeExecutor) -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for x in range(100):
            read.append(x)
            yield x

    results = executor.map(square, items(), buffersize=10)
    assert next(results) == 0
    assert len(read) <= 22
    assert list(results) == [x * x for x in range(1, 100)]


@pytest.mark.parametrize(
    ("n_items", "elapsed_s", "n_left", "is_enough"),
    [
        (1, 0.1, 2, True),  # one that it is about to begin, and one that waits
        (1, 0.1, 1, False),
        (100, 0.1, 60, True),
        (100, 0.1, 50, False),  # 49 ms
        (1, 30.0, 2, True),
        (0, 0.1, 10, False),
    ],
)
def test_results_may_wait_while_their_worker_has_enough_to_do(
    n_items: int, elapsed_s: float, n_left: int, is_enough: bool, tmp_path: pathlib.Path
) -> None:
    ours, theirs = socket.socketpair()
    agent = host._Agent(1, ours, str(tmp_path / "report"))
    try:
        agent.claims += [claims.create(), claims.create()]
        agent.claims[1].offer(n_left)
        results = (protocol.RESULTS, 7, 0, n_items, int(elapsed_s * 1e9), -1, [])
        assert agent.has_rest(results) is is_enough
        assert not agent.has_rest((protocol.CUT, 7))
    finally:
        agent.close()
        theirs.close()


def test_what_may_wait_goes_with_the_next_that_may_not_or_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "POLL_S", 1e6)
    monkeypatch.setattr(host, "_HOLD_S", 0.01)

    async def tell_and_poll() -> None:
        teller = object.__new__(host.Host)  # without a Dask worker
        teller._loop, teller._has_news = asyncio.get_running_loop(), asyncio.Event()
        teller._outbox, teller._holding, teller._is_closed = [], None, False
        first, second, urgent = (1, ("first",), None), (1, ("second",), None), (2, ("urgent",), None)
        teller._tell(*first, can_wait=True)
        poll = asyncio.ensure_future(teller.poll())
        await asyncio.sleep(0)
        assert not poll.done()
        teller._tell(*second, can_wait=True)
        assert await poll == [first, second]
        teller._tell(*first, can_wait=True)
        teller._tell(*urgent)
        assert await teller.poll() == [first, urgent]
        assert teller._holding is None

    asyncio.run(tell_and_poll())


def test_a_result_does_not_wait_for_a_long_item_behind_it(executor: AmorsizeExecutor, tmp_path: pathlib.Path) -> None:
    go = tmp_path / "go"
    results = executor.map(wait_for_file, [""] * 12 + [str(go)] * 12)
    assert [next(results) for _ in range(12)] == [""] * 12  # while the others run, in both workers
    go.touch()
    assert list(results) == [str(go)] * 12


@pytest.mark.parametrize("direct", [None, False])
def test_dask_workers_are_reached_directly_where_that_is_possible(client: Client, direct: bool | None) -> None:
    with (
        Client(client.scheduler.address, direct_to_workers=direct) as other,
        AmorsizeExecutor(engine=other, inline="never") as executor,
    ):
        executor.warm_up()
        assert list(executor.map(square, range(50))) == [x * x for x in range(50)]
        (pool,) = (found for found in gc.get_objects() if type(found) is DaskPool and found._client is other)
        links = list(pool._links.values())
        until(lambda: all(link.about for link in links))
        if direct is None:
            until(lambda: all(isinstance(link.actor, _DirectActor) for link in links))
        assert list(executor.map(square, range(50))) == [x * x for x in range(50)]
        assert {isinstance(link.actor, _DirectActor) for link in links} == {direct is None}


def test_dask_workers_that_cannot_be_reached_work_through_the_scheduler(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(address: str) -> Any:
        raise OSError(f"no route to {address}")

    with Client(client.scheduler.address) as other, monkeypatch.context() as patch:
        patch.setattr(other, "rpc", refuse)
        with AmorsizeExecutor(engine=other, inline="never") as executor:
            assert list(executor.map(square, range(50))) == [x * x for x in range(50)]


def test_several_iterables(executor: AmorsizeExecutor) -> None:
    assert list(executor.map(pow, [2, 3], [10, 4])) == [1024, 81]


def test_functions_that_nobody_can_import(executor: AmorsizeExecutor) -> None:
    factor = 3
    assert list(executor.map(lambda x: factor * x, range(5))) == [0, 3, 6, 9, 12]


def test_an_error_tells_where_it_came_from(executor: AmorsizeExecutor) -> None:
    with pytest.raises(ValueError, match="7 is bad") as caught:
        executor.submit(fail, 7).result()
    assert "in fail" in str(caught.value.__cause__)
    with pytest.raises(ValueError, match="0 is bad"):
        list(executor.map(fail, range(3)))


def test_a_short_map_stays_with_its_caller(client: Client) -> None:
    with AmorsizeExecutor(engine=client) as executor:
        assert set(executor.map(pid, range(10))) != {os.getpid()}  # nobody knows yet that it is short
        assert executor.plan(pid, range(1000)).is_serial
        assert list(executor.map(pid, range(1000))) == [os.getpid()] * 1000


def test_the_plan_says_from_when_on_the_cluster_pays(client: Client) -> None:
    with AmorsizeExecutor(engine=client) as executor:
        for _ in range(3):
            executor.submit(pause, 0.02).result()
        assert executor.plan(pause, [0.02]).is_serial
        plan = executor.plan(pause, [0.02] * 50)
        assert plan.n_workers == 2
        assert plan.predicted_s is not None
        assert plan.serial_s is not None
        assert plan.predicted_s < 0.7 * plan.serial_s


def test_the_plan_counts_what_travels(client: Client) -> None:
    """Items that are quickly done, but take long to carry, stay here."""
    with AmorsizeExecutor(engine=client) as executor:
        arrays = [np.ones(500_000) for _ in range(8)]
        assert list(executor.map(np.max, arrays)) == [1.0] * 8
        assert executor.plan(np.max, arrays).is_serial


def test_costs_are_learned_for_each_cluster(client: Client) -> None:
    with AmorsizeExecutor(engine=client) as one, AmorsizeExecutor(engine=client) as other:
        list(one.map(square, range(10)))
        assert len(one.cost_model) == 1
        assert len(other.cost_model) == 0
        assert 1e-4 < one.pool_state().chunk_overhead_s < 0.1


def test_priorities_and_room_in_the_queue(executor: AmorsizeExecutor) -> None:
    view = executor.options(priority=1, max_pending=2)
    assert [future.result() for future in [view.submit(square, x) for x in range(10)]] == [x * x for x in range(10)]


def test_many_tasks_at_once(executor: AmorsizeExecutor) -> None:
    futures = [executor.submit(square, x) for x in range(2000)]
    assert [future.result() for future in futures] == [x * x for x in range(2000)]


def test_tasks_of_many_threads(executor: AmorsizeExecutor) -> None:
    found: dict[int, list[int]] = {}

    def use(i: int) -> None:
        found[i] = list(executor.map(functools.partial(operator.add, i), range(100)))

    users = [threading.Thread(target=use, args=(i,)) for i in range(4)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert found == {i: [i + x for x in range(100)] for i in range(4)}


def meet(folder: str, x: int) -> int:
    """Short; but the items 40 and 41 wait for each other."""
    if x < 40:
        time.sleep(0.002)
        return x
    pathlib.Path(folder, str(x)).touch()
    until(pathlib.Path(folder, str(81 - x)).exists)
    return x


def test_an_idle_worker_takes_what_another_has_not_begun(executor: AmorsizeExecutor, tmp_path: pathlib.Path) -> None:
    executor.warm_up()
    list(executor.map(functools.partial(meet, str(tmp_path)), range(40)))
    # Going by the short ones, both long ones go to one worker.
    assert list(executor.map(functools.partial(meet, str(tmp_path)), range(42))) == list(range(42))


def test_resize_while_work_goes_on(executor: AmorsizeExecutor) -> None:
    results = executor.map(pause, [0.005] * 40)
    executor.resize(1)
    assert len(list(results)) == 40
    until(lambda: executor.stats().n_workers("idle") <= 1)
    executor.resize(2)
    assert len(list(executor.map(pause, [0.005] * 40))) == 40


def test_what_the_executor_did_is_counted(executor: AmorsizeExecutor) -> None:
    list(executor.map(square, range(10)))
    executor.submit(square, 1).result()
    stats = executor.stats(memory=True)
    assert (stats.items_done, stats.tasks_done, stats.workers_died) == (10, 1, 0)
    assert "at most 2" in str(stats)


# ---------------------------------------------------------------------- the cluster is the user's


def test_shutdown_leaves_the_client_open(client: Client) -> None:
    with AmorsizeExecutor(engine=client, inline="never") as executor:
        assert list(executor.map(square, range(5))) == [0, 1, 4, 9, 16]
    assert client.status == "running"
    assert client.submit(square, 3).result() == 9
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(square, 1)


def test_nothing_stays_on_the_cluster(client: Client) -> None:
    def files() -> set[str]:
        folders = client.run(lambda dask_worker: os.listdir(os.path.dirname(dask_worker.local_directory)))
        return {name for names in folders.values() for name in names if name.startswith("amorsize")}

    before = files()
    with AmorsizeExecutor(engine=client, inline="never") as executor:
        list(executor.map(square, range(100)))

    def ours(dask_scheduler: Any) -> list[str]:
        return [str(key) for key in dask_scheduler.tasks if "amorsize" in str(key)]

    until(lambda: not client.run_on_scheduler(ours))
    hosts = client.run(lambda: len(sys.modules["amorsize_executor.integrations.dask_engine.host"]._hosts))
    assert set(hosts.values()) == {0}
    assert files() <= before


def test_idle_workers_give_their_threads_back(client: Client) -> None:
    with AmorsizeExecutor(engine=client, idle_timeout=0.1) as executor:
        assert executor.submit(square, 3).result() == 9
        assert client.submit(square, 4).result(timeout=10) == 16
        until(lambda: not executor.stats().workers)
        assert executor.submit(square, 5).result() == 25


def test_an_executor_that_is_dropped_frees_the_cluster(client: Client) -> None:
    executor = AmorsizeExecutor(engine=client, idle_timeout=None)
    executor.warm_up()
    del executor
    assert client.submit(square, 4, pure=False).result(timeout=20) == 16


def test_killing_workers_breaks_the_executor_and_nothing_else(client: Client) -> None:
    executor = AmorsizeExecutor(engine=client)
    futures = [executor.submit(pause, 0.2) for _ in range(4)]
    until(lambda: futures[0].running())
    executor.kill_workers()
    for future in futures:
        with pytest.raises(Exception, match=r"kill_workers\(\)"):
            future.result(timeout=10)
    executor.shutdown()
    assert client.submit(square, 4, pure=False).result(timeout=10) == 16


def test_a_worker_without_a_host_breaks_the_executor(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def wait_for_hosts(most_s: float) -> float:
        from amorsize_executor.integrations.dask_engine import host

        host._HOST_S, before_s = most_s, host._HOST_S
        return before_s

    before_s = next(iter(client.run(wait_for_hosts, 0.01).values()))
    monkeypatch.setattr(DaskPool, "_connect", lambda pool, link: setattr(link, "actor_future", object()))
    try:
        with AmorsizeExecutor(engine=client, inline="never") as executor:
            error = executor.submit(abs, -1).exception(timeout=30)
        assert isinstance(error, BrokenProcessPool)
        assert "has made no host" in f"{error} {error.__cause__!r}"
    finally:
        client.run(wait_for_hosts, before_s)


def test_cancelled_tasks_do_not_run(executor: AmorsizeExecutor) -> None:
    executor.warm_up()
    futures = [executor.submit(pause, 0.05) for _ in range(50)]
    executor.shutdown(wait=False, cancel_futures=True)
    assert any(future.cancelled() for future in futures)


# ---------------------------------------------------------------------- data and state


def test_large_arrays_are_writable_copies(executor: AmorsizeExecutor) -> None:
    array = np.ones(200_000)
    assert list(executor.map(total, [array] * 6, range(6))) == [200_001.0 + x for x in range(6)]
    assert array[0] == 1


def test_large_results_are_arrays_of_ones_own(executor: AmorsizeExecutor) -> None:
    for x, result in enumerate(executor.map(filled, range(10))):
        assert (result == x).all()
        result[0] = -1


def test_changed_data_is_seen(executor: AmorsizeExecutor) -> None:
    array = np.zeros(200_000)
    for x in range(4):
        array[:] = x
        assert executor.submit(np.sum, array).result() == 200_000 * x


def sent_nbytes(client: Client) -> int:
    """Bytes that the blocks of hosts have."""

    def size() -> int:
        hosts = sys.modules["amorsize_executor.integrations.dask_engine.host"]._hosts.values()
        return sum(os.fstat(fd).st_size for host in hosts for fd in host._blocks.values())

    return sum(client.run(size).values())


def test_what_items_share_goes_to_each_dask_worker_once(threads: Client) -> None:
    with AmorsizeExecutor(engine=threads, inline="never") as executor:
        executor.warm_up()
        array = np.ones(1_000_000)
        assert len(list(executor.map(total, [array] * 20, range(20), chunksize=1))) == 20
        with executor.share(np.ones(500_000)) as shared:
            assert len(list(executor.map(total, [shared] * 20, range(20), chunksize=1))) == 20
            assert sent_nbytes(threads) <= 12_000_000 + 100_000
    until(lambda: not sent_nbytes(threads))


def test_large_blocks_go_in_parts(executor: AmorsizeExecutor) -> None:
    array = np.arange(9_000_000)  # 72 MB: three parts
    assert executor.submit(operator.itemgetter(slice(None, None, 1_000_000)), array).result().tolist() == list(
        range(0, 9_000_000, 1_000_000)
    )


def test_a_resource_is_built_once_in_each_dask_worker(threads: Client, tmp_path: pathlib.Path) -> None:
    with AmorsizeExecutor(engine=threads) as executor:
        executor.warm_up()
        with executor.resource(Model, str(tmp_path)) as model:
            used = list(executor.map(Model.use, [model] * 20, range(20), chunksize=1))
    assert [x for _, _, x in used] == list(range(20))
    assert {built for built, _, _ in used} == {here for _, here, _ in used}
    assert len(list(tmp_path.iterdir())) == 1


def test_resources_are_warm_where_they_were_asked_for(client: Client, executor: AmorsizeExecutor) -> None:
    model = executor.resource(Model)
    executor.warm_up(resources=[model], timeout=20)
    assert [worker.resources for worker in executor.stats().workers] == [("Model",), ("Model",)]


def count_calls(name: str) -> None:
    setattr(sys, name, getattr(sys, name, 0) + 1)


def calls(name: str, _: object = None) -> int:
    time.sleep(0.01)
    return int(getattr(sys, name, 0))


def test_the_initializer_runs_once_in_each_dask_worker(threads: Client) -> None:
    name = f"_amorsize_calls_{time.monotonic_ns()}"
    with AmorsizeExecutor(engine=threads, initializer=count_calls, initargs=(name,)) as executor:
        executor.warm_up()
        assert set(executor.map(functools.partial(calls, name), range(10), chunksize=1)) == {1}


def test_an_initializer_that_fails_breaks_the_executor(client: Client) -> None:
    executor = AmorsizeExecutor(engine=client, initializer=fail, initargs=(7,))
    with pytest.raises(Exception, match="7 is bad"):
        executor.submit(square, 1).result()
    executor.shutdown()


# ---------------------------------------------------------------------- workers come and go


def test_the_culprit_alone_fails_when_a_dask_worker_dies(mortal: Client) -> None:
    with AmorsizeExecutor(engine=mortal) as executor:
        futures = [executor.submit(exit_at, 7, x) for x in range(20)]
        with pytest.raises(WorkerDied, match="died while it was running this task") as caught:
            futures[7].result(timeout=30)
        assert "was lost" in str(caught.value.__cause__)
        del futures[7]
        assert [future.result(timeout=30) for future in futures] == [x for x in range(20) if x != 7]
        assert executor.stats().workers_died == 1


def test_retries_run_the_culprit_again(mortal: Client, tmp_path: pathlib.Path) -> None:
    with AmorsizeExecutor(engine=mortal, inline="never", retries=1) as executor:
        assert list(executor.map(functools.partial(once, str(tmp_path)), [1])) == [1]


def test_a_worker_killed_from_outside_costs_what_it_ran(mortal: Client) -> None:
    with AmorsizeExecutor(engine=mortal, inline="never") as executor:
        executor.warm_up(1)
        results = [executor.submit(pause, 0.3 if x == 0 else 0.01) for x in range(10)]
        until(lambda: results[0].running())
        time.sleep(0.05)
        (state,) = [s for s in mortal.processing().items() if s[1] and "worker" in str(s[1])][:1]
        os.kill(mortal.run(os.getpid, workers=[state[0]])[state[0]], signal.SIGKILL)
        failed = [future for future in results if future.exception(timeout=30) is not None]
        assert len(failed) <= 1
        assert all(isinstance(future.exception(), WorkerDied) for future in failed)


def test_workers_that_come_and_go_are_followed() -> None:
    with cluster(1) as client, AmorsizeExecutor(engine=client, inline="never") as executor:

        def items() -> Iterator[float]:
            """Work for as long as the worker takes to come, and some more."""
            end = time.monotonic() + 30
            while executor.stats().workers_started < 2 and time.monotonic() < end:
                yield 0.01
            yield from [0.01] * 20

        results = executor.map(pause, items(), buffersize=10)
        next(results)
        client.cluster.scale(2)
        assert set(results) == {0.01}
        assert executor.stats().workers_started == 2  # by the very map that ran when there was one
        results = executor.map(pause, [0.01] * 100)
        next(results)
        client.cluster.scale(1)
        assert len(list(results)) == 99  # those of the worker that left run again
        until(lambda: executor.max_workers == 1)


def test_an_adaptive_cluster_without_workers_gets_some() -> None:
    with cluster(0) as client:
        client.cluster.adapt(minimum=0, maximum=1, interval="100ms")
        with AmorsizeExecutor(engine=client, inline="never") as executor:
            assert list(executor.map(square, range(5))) == [0, 1, 4, 9, 16]


def test_a_client_that_is_closed_too_early_breaks_the_executor() -> None:
    with cluster(1) as client:
        other = Client(client.scheduler.address)
        executor = AmorsizeExecutor(engine=other)
        assert executor.submit(square, 2).result() == 4
        future = executor.submit(pause, 30)
        until(lambda: future.running())
        other.close()
        with pytest.raises(Exception, match="client"):
            executor.submit(square, 3).result(timeout=20)
        executor.shutdown()


# ---------------------------------------------------------------------- scheduler and workers as commands


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_scheduler_and_workers_as_separate_commands(tmp_path: pathlib.Path) -> None:
    port = free_port()
    where = f"tcp://127.0.0.1:{port}"
    path = os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])
    options: dict[str, Any] = {
        "env": {**os.environ, "PYTHONPATH": path},
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
        "cwd": tmp_path,
    }
    commands = [
        [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", str(port), "--host", "127.0.0.1"],
        *[
            [sys.executable, "-m", "distributed.cli.dask_worker", where, "--nthreads", "1", "--no-nanny", *more]
            for more in (["--name", "one"], ["--name", "two"])
        ],
    ]
    with contextlib.ExitStack() as stack:
        processes = []
        for command in commands:
            process = stack.enter_context(subprocess.Popen([*command, "--no-dashboard"], **options))
            stack.callback(process.kill)
            processes.append(process)
        client = stack.enter_context(Client(where, timeout=30))
        client.wait_for_workers(2, timeout=30)
        with AmorsizeExecutor(engine=client, inline="never") as executor:
            assert executor.max_workers == 2
            executor.warm_up()
            assert list(executor.map(square, range(100))) == [x * x for x in range(100)]
            futures = [executor.submit(exit_at, 5, x) for x in range(20)]
            assert isinstance(futures[5].exception(timeout=30), WorkerDied)  # without a nanny it does not come back
            assert [f.result(timeout=30) for x, f in enumerate(futures) if x != 5] == [x for x in range(20) if x != 5]
            until(lambda: executor.max_workers == 1)


# ---------------------------------------------------------------------- what does not make sense is refused


@pytest.mark.parametrize(
    "options",
    [
        {"mp_context": "spawn"},
        {"max_tasks_per_child": 5},
        {"memory_limit": 1e9},
        {"threads_per_worker": 2},
        {"cost_model": "costs.db"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_processes_are_refused(client: Client, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be .* with an engine"):
        AmorsizeExecutor(engine=client, **options)


def test_tasks_in_threads_have_no_time_limit(executor: AmorsizeExecutor) -> None:
    with pytest.raises(ValueError, match="timeout must be None with an engine"):
        executor.options(timeout=1)


def test_a_cost_model_of_ones_own(client: Client) -> None:
    model = CostModel()
    with AmorsizeExecutor(engine=client, cost_model=model) as executor:
        assert executor.cost_model is model


@pytest.mark.parametrize("engine", ["dask", 3, LocalCluster], ids=str)
def test_an_engine_is_a_client(engine: Any) -> None:
    with pytest.raises(TypeError, match="engine must be a distributed"):
        AmorsizeExecutor(engine=engine)


def test_a_closed_client_is_refused(client: Client) -> None:
    other = Client(client.scheduler.address)
    other.close()
    with pytest.raises(ValueError, match="closed"):
        AmorsizeExecutor(engine=other)


GUIDE = pathlib.Path(__file__).parents[2] / "docs" / "dask.md"


@pytest.mark.skipif(not GUIDE.exists(), reason="the guide is not installed")
def test_the_snippets_of_the_guide_run(tmp_path: pathlib.Path) -> None:
    snippets = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(snippets) > 5
    script = "if __name__ == '__main__':\n" + textwrap.indent("\n\n".join(snippets), "    ")
    path = tmp_path / "guide.py"
    path.write_text(script)
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=55)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Plan for evaluate over 100 items\n")
    assert "True 2\n" in done.stdout
    assert done.stdout.endswith("{13: 'WorkerDied'}\n")
