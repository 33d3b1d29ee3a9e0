"""Ten workers are killed each second while tens of thousands of tasks run: nothing else is lost, and nothing left.

Two threads give the executor work without a pause: one submits, some tasks with ``retries=1``; the other maps, in order
or not, in fixed chunks or not, lazily or not. Each task appends its number and process to a file before it works, so
that the file tells how often it ran, and where. Every 100 ms a random worker gets SIGKILL.

Of workers that start, no third one is killed before another became ready: there the pool is to give up, and does.
"""

from __future__ import annotations

import collections
import os
import random
import signal
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from amorsize_executor import AmorsizeExecutor, WorkerDied
from benchmarks._soak_report import Part
from benchmarks.churn import Snapshot, take_snapshot

N_TASKS = 50_000
SECONDS = 60.0
KILLS_A_SECOND = 10
#: Seconds after which nobody can be waiting for anything but for ever.
LIMIT_S = 60.0
MAX_WORKERS = 4
_AHEAD = 400
_RECORD = struct.Struct("<II")
#: How maps are asked for.
_FORMS: tuple[dict[str, Any], ...] = (
    {},
    {"chunksize": 1},
    {"chunksize": 16},
    {"buffersize": 64},
    {"ordered": False},
    {"ordered": False, "buffersize": 32},
    {"ordered": False, "chunksize": 7},
)


def run_noted(path: str, number: int) -> int:
    """Note that the task runs here, work for up to 2 ms, return what can be checked."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, _RECORD.pack(number, os.getpid()))
    os.close(fd)
    until = time.perf_counter() + number % 5 * 5e-4
    while time.perf_counter() < until:
        pass
    return answer(number)


def answer(number: int) -> int:
    return number * number + 1


@dataclass
class _Tally:
    """What came of the tasks; each thread has its own."""

    done: set[int] = field(default_factory=set)
    lost: dict[int, int | None] = field(default_factory=dict)  # task -> process that died with it
    retried: set[int] = field(default_factory=set)  # those that may run twice
    n_cut_off: int = 0  # items behind the culprit of a map, which ends it
    problems: list[str] = field(default_factory=list)

    def settle(self, number: int, value: object, error: BaseException | None) -> None:
        if number in self.done or number in self.lost:
            self.problems.append(f"task {number} has two outcomes")
        elif error is None:
            self.done.add(number)
            if value != answer(number):
                self.problems.append(f"task {number} gave {value!r}")
        elif isinstance(error, WorkerDied):
            self.lost[number] = error.pid
        else:
            self.problems.append(f"task {number} failed with {error!r}")

    @property
    def n_settled(self) -> int:
        return len(self.done) + len(self.lost)


class _Killer(threading.Thread):
    def __init__(self, executor: AmorsizeExecutor, seed: int) -> None:
        super().__init__(name="killer")
        self._executor = executor
        self._rng = random.Random(seed)
        self._over = threading.Event()
        self.killed: list[int] = []
        self.by_state: collections.Counter[str] = collections.Counter()

    def run(self) -> None:
        has_hit_young = False
        seen_ready: set[int] = set()
        due = time.perf_counter()
        while not self._over.is_set():
            due += 1 / KILLS_A_SECOND
            self._over.wait(max(due - time.perf_counter(), 0.0))
            stats = self._executor.stats()
            found = [worker for worker in stats.workers if worker.pid is not None and worker.pid not in self.killed]
            ready = {worker.worker_id for worker in stats.workers if worker.state != "starting"}
            if not ready <= seen_ready:  # perhaps it was before the kill: so this may be one too many, but not two
                seen_ready |= ready
                has_hit_young = False
            if has_hit_young:
                found = [worker for worker in found if worker.state != "starting"]
            if not found:
                continue
            victim = self._rng.choice(found)
            assert victim.pid is not None
            try:
                os.kill(victim.pid, signal.SIGKILL)  # not reaped, if it is in the statistics: or gone by now
            except ProcessLookupError:
                continue
            has_hit_young = has_hit_young or victim.state == "starting"
            self.killed.append(victim.pid)
            self.by_state[victim.state] += 1

    def stop(self) -> None:
        self._over.set()
        self.join()


def kills(share: float, seed: int) -> Part:
    """Run the part; `share` of its full length."""
    n_tasks, seconds = max(int(N_TASKS * share), 100), SECONDS * share
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "runs")
        path.touch()
        with AmorsizeExecutor(MAX_WORKERS, inline="never") as warm:
            warm.submit(pow, 2, 3).result(LIMIT_S)  # process-wide helpers start
        before = take_snapshot()
        tallies = [_Tally(), _Tally()]
        begun = time.perf_counter()
        with AmorsizeExecutor(MAX_WORKERS, inline="never") as executor:
            killer = _Killer(executor, seed)
            killer.start()
            numbers = [iter(range(kind, 1 << 31, 2)) for kind in range(2)]

            def goes_on() -> bool:
                return time.perf_counter() - begun < seconds or sum(t.n_settled for t in tallies) < n_tasks

            threads = [
                threading.Thread(target=_guarded(work, tally), args=(executor, str(path), own, tally, goes_on, seed))
                for work, own, tally in zip((_submits, _maps), numbers, tallies, strict=True)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            killer.stop()
            alive = executor.submit(answer, 3).result(LIMIT_S) == answer(3)
            stats = executor.stats()
        elapsed = time.perf_counter() - begun
        after = take_snapshot()
        runs = _read_runs(path)
    problems = [*tallies[0].problems, *tallies[1].problems, *_judge(tallies, runs, killer.killed)]
    problems += _left(before, after)
    if not alive:
        problems.append("the executor did not outlive the kills")
    n_done, n_lost = (sum(map(len, each)) for each in zip(*((t.done, t.lost) for t in tallies), strict=True))
    counts = {
        "tasks with their right result": n_done,
        "tasks lost with their worker (`WorkerDied`)": n_lost,
        "items behind such a one in a map, not asked for": sum(t.n_cut_off for t in tallies),
        "workers killed": len(killer.killed),
        **{f"... while {state}": n for state, n in sorted(killer.by_state.items())},
        "workers started": stats.workers_started,
        "seconds": round(elapsed),
    }
    return Part(counts, problems)


def _guarded(work: Callable[..., None], tally: _Tally) -> Callable[..., None]:
    """A thread that fails must not look like one that has nothing to tell."""

    def run(*args: Any) -> None:
        try:
            work(*args)
        except BaseException as error:
            tally.problems.append(f"{work.__name__} ended by {error!r}")

    return run


def _submits(
    executor: AmorsizeExecutor, path: str, numbers: Iterator[int], tally: _Tally, goes_on: Callable[[], bool], seed: int
) -> None:
    rng = random.Random(seed + 1)
    again = executor.options(retries=1)
    ahead: collections.deque[tuple[int, Future[int]]] = collections.deque()
    while goes_on() or ahead:
        if goes_on() and len(ahead) < _AHEAD:
            number = next(numbers)
            if rng.random() < 0.3:
                tally.retried.add(number)
                ahead.append((number, again.submit(run_noted, path, number)))
            else:
                ahead.append((number, executor.submit(run_noted, path, number)))
            continue
        number, future = ahead.popleft()
        error = future.exception(LIMIT_S)
        tally.settle(number, None if error else future.result(), error)


def _maps(
    executor: AmorsizeExecutor, path: str, numbers: Iterator[int], tally: _Tally, goes_on: Callable[[], bool], seed: int
) -> None:
    rng = random.Random(seed + 2)
    again = executor.options(retries=1)
    while goes_on():
        items = [next(numbers) for _ in range(rng.choice([20, 200, 600]))]
        form = rng.choice(_FORMS)
        is_retried = rng.random() < 0.6
        if is_retried:
            tally.retried.update(items)
        results = (again if is_retried else executor).map(partial(run_noted, path), items, timeout=LIMIT_S, **form)
        _take(results, items, is_ordered=form.get("ordered", True), tally=tally)


def _take(results: Iterator[int], items: list[int], *, is_ordered: bool, tally: _Tally) -> None:
    """Results of one map, up to the item that was lost if one was."""
    left = dict.fromkeys(items)
    by_answer = {answer(number): number for number in items}
    try:
        for value in results:
            number = next(iter(left), None) if is_ordered else by_answer.get(value)
            if number is None or number not in left:
                tally.problems.append(f"a map of {len(items)} items gave {value!r}, which is nobody's or came twice")
                return
            del left[number]
            tally.settle(number, value, None)
    except WorkerDied as error:
        if is_ordered:
            culprit = next(iter(left))
            del left[culprit]
            tally.settle(culprit, None, error)
        tally.n_cut_off += len(left)
        left.clear()
    if left:
        tally.problems.append(f"a map of {len(items)} items lost {len(left)}")


def _read_runs(path: Path) -> dict[int, list[int]]:
    """By task: the processes that ran it."""
    runs: dict[int, list[int]] = collections.defaultdict(list)
    for number, pid in _RECORD.iter_unpack(path.read_bytes()):
        runs[number].append(pid)
    return runs


def _judge(tallies: list[_Tally], runs: dict[int, list[int]], killed: list[int]) -> list[str]:
    problems = []
    culprits: collections.Counter[int | None] = collections.Counter()
    dead = set(killed)
    for tally in tallies:
        culprits.update(tally.lost.values())
        for number in tally.done:
            n_runs = len(runs[number])
            if not 1 <= n_runs <= 1 + (number in tally.retried):
                problems.append(f"task {number} has a result and ran {n_runs} times, in {runs[number]}")
            elif n_runs > 1 and runs[number][0] not in dead:
                problems.append(f"task {number} ran twice, though process {runs[number][0]} was not killed")
        for number in tally.lost:
            if len(runs[number]) > 1 + (number in tally.retried):
                problems.append(f"task {number} was lost and ran {len(runs[number])} times")
            if not set(runs[number]) <= dead:
                problems.append(f"task {number} was lost, but ran in {runs[number]}, which were not all killed")
    for pid, n in culprits.items():
        if n > 1:
            problems.append(f"process {pid} took {n} tasks with it")
        if pid not in dead:
            problems.append(f"process {pid} is said to have died, but was not killed")
    return problems


def _left(before: Snapshot, after: Snapshot) -> list[str]:
    """What there is now and was not before."""
    problems = []
    for name in ("threads", "descriptors", "shared_memory", "children"):
        old, new = getattr(before, name), getattr(after, name)
        if len(new) > len(old):
            problems.append(f"left behind, of {name.replace('_', ' ')}: {sorted({*new} - {*old})}")
    return problems
