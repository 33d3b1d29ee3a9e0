"""An executor on a Dask cluster beside `client.map`, with the best of some batch sizes chosen by hand.

``python -m benchmarks.dask_engine [--rounds N] [--parts long,tiny,crossover] [--markdown FILE [--append]]``

The cluster is `LocalCluster(n_workers=2, threads_per_worker=1)` on the machine of the benchmark. Contenders take turns,
in another order each round; medians are quoted. Workloads are shapes of `benchmarks.regret`, stretched to tasks of more
than 50 ms. For each run a new executor is made, which knows nothing about the function and has no worker; its making
and its end are not timed, as those of the client are not. Needs distributed.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from statistics import median
from time import perf_counter, sleep
from typing import Any

from distributed import Client, LocalCluster

from amorsize_executor import AmorsizeExecutor
from benchmarks._measure import loops_for
from benchmarks._regret_tasks import rest
from benchmarks._regret_workloads import build
from benchmarks._report import Table, machine, ratio, seconds
from benchmarks._tasks import spin

#: (workload of benchmarks.regret, times as long, every so manieth item)
STRETCHED = (
    ("few-long", 1, 1),
    ("constant-3ms", 20, 4),
    ("lognormal-1ms", 60, 12),
    ("pareto", 800, 160),
    ("sorted-up", 60, 12),
    ("sorted-down", 60, 12),
)
SLEEPING = [60e-3] * 24
TINY_S = 10e-6
TINY_COUNTS = (1_000, 4_000)
ITEM_S = 2e-3
CROSSOVER_COUNTS = (1, 3, 10, 30, 100, 300)
DATA_NBYTES = 1_000_000
DATA_S = (1e-3, 3e-3, 10e-3, 30e-3)
DATA_COUNT = 20

Function = Callable[[Any], Any]


def call_all(function: Function, items: Sequence[Any]) -> list[Any]:
    return [function(item) for item in items]


def by_client(client: Client, function: Function, items: Sequence[Any], size: int) -> list[Any]:
    if size == 1:
        return client.gather(client.map(function, items, pure=False))
    batches = [items[i : i + size] for i in range(0, len(items), size)]
    return list(chain.from_iterable(client.gather(client.map(partial(call_all, function), batches, pure=False))))


def timed(action: Callable[[], object]) -> float:
    started = perf_counter()
    action()
    return perf_counter() - started


def by_executor(client: Client, function: Function, items: Sequence[Any], **options: Any) -> float:
    with AmorsizeExecutor(engine=client, **options) as executor:
        return timed(lambda: list(executor.map(function, items)))


def take_turns(contenders: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Median of each contender."""
    names = list(contenders)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            times[name].append(contenders[name]())
    return {name: median(each) for name, each in times.items()}


def workloads(loops_per_s: float) -> dict[str, tuple[Function, list[Any]]]:
    found: dict[str, tuple[Function, list[Any]]] = {}
    for name, factor, step in STRETCHED:
        (part,) = build(name, loops_per_s * factor).parts
        found[f"{name}, x{factor}" if factor > 1 else name] = part.function, list(part.make_items())[::step]
    found["sleeping, 60 ms"] = rest, SLEEPING
    return found


def long_tasks(client: Client, rounds: int, loops_per_s: float) -> Table:
    rows = []
    for name, (function, items) in workloads(loops_per_s).items():
        n = len(items)
        sizes = sorted({size for size in (1, 2, 4, n // 4, n // 2) if size})
        contenders: dict[str, Callable[[], float]] = {
            str(size): partial(timed, partial(by_client, client, function, items, size)) for size in sizes
        }
        contenders["ours"] = partial(by_executor, client, function, items)
        times = take_turns(contenders, rounds)
        ours = times.pop("ours")
        best = min(times, key=lambda size: times[size])
        told = ", ".join(f"{size}: {seconds(times[size])}" for size in times)
        rows.append((name, str(n), seconds(ours), seconds(times[best]), best, ratio(ours / times[best]), told))
        print(*rows[-1], sep="  ", flush=True)
    header = ("work", "tasks", "executor", "best of client.map", "its batches", "ratio", "all batch sizes")
    return Table("Long tasks (target: at most 1.1 times the best)", header, rows)


def tiny_tasks(client: Client, rounds: int, loops_per_s: float) -> Table:
    rows = []
    items = max(int(TINY_S * loops_per_s), 1)
    for n in TINY_COUNTS:
        work = [items] * n
        contenders = {
            "client": lambda work=work: timed(lambda: by_client(client, spin, work, 1)),
            "ours": lambda work=work: by_executor(client, spin, work),
            "there": lambda work=work: by_executor(client, spin, work, inline="never"),
        }
        times = take_turns(contenders, rounds if n <= 1_000 else 1)
        rows.append(
            (
                f"{n:,} tasks of {seconds(TINY_S)}",
                seconds(times["client"]),
                seconds(times["ours"]),
                ratio(times["client"] / times["ours"]),
                seconds(times["there"]),
                ratio(times["client"] / times["there"]),
            )
        )
        print(*rows[-1], sep="  ", flush=True)
    header = ("work", "client.map", "executor", "times faster", 'executor, inline="never"', "times faster")
    return Table("Tiny tasks, one by one (target: at least 10 times faster)", header, rows)


def turn(loops: int, data: bytes) -> int:
    return spin(loops) + len(data)


def crossover(client: Client, rounds: int, loops_per_s: float) -> list[Table]:
    loops = int(ITEM_S * loops_per_s)
    rows = []
    with AmorsizeExecutor(engine=client) as known, AmorsizeExecutor(engine=client, inline="never") as there:
        for _ in range(3):
            list(known.map(spin, [loops] * 20))
        for n in CROSSOVER_COUNTS:
            items = [loops] * n

            def warm(items: list[int] = items) -> float:
                there.warm_up()
                return timed(lambda: list(there.map(spin, items)))

            sleep(0.5)  # until the executors' workers have left
            contenders = {
                "loop": lambda items=items: timed(lambda: call_all(spin, items)),
                "warm": warm,
            }
            times = take_turns(contenders, rounds)
            sleep(0.5)
            cold = {"cold": lambda items=items: by_executor(client, spin, items, inline="never")}
            times.update(take_turns(cold, rounds))
            plan = known.plan(spin, items)
            chosen = "loop" if plan.is_serial else f"{plan.n_workers} workers"
            rows.append((f"{n} x {seconds(ITEM_S)}", *[seconds(times[k]) for k in ("loop", "cold", "warm")], chosen))
            print(*rows[-1], sep="  ", flush=True)
    header = ("work", "loop", "cluster, workers to start", "cluster, workers ready", "plan, workers to start")
    work = Table("From how much work on is the cluster worth it?", header, rows)

    rows = []
    for item_s in DATA_S:
        function = partial(turn, int(item_s * loops_per_s))
        with AmorsizeExecutor(engine=client, inline="never") as there, AmorsizeExecutor(engine=client) as known:

            def data() -> list[bytes]:
                return [bytes([i]) * DATA_NBYTES for i in range(DATA_COUNT)]

            def warm(function: Function = function, there: AmorsizeExecutor = there) -> float:
                there.warm_up()
                items = data()
                return timed(lambda: list(there.map(function, items)))

            contenders: dict[str, Callable[[], float]]
            contenders = {"loop": lambda function=function: timed(lambda: call_all(function, data())), "warm": warm}
            times = take_turns(contenders, rounds)
            list(known.map(function, data()))
            known.warm_up()
            plan = known.plan(function, data())
            chosen = "loop" if plan.is_serial else f"{plan.n_workers} workers"
            rows.append(
                (f"{DATA_COUNT} x {seconds(item_s)}, 1 MB each", seconds(times["loop"]), seconds(times["warm"]), chosen)
            )
            print(*rows[-1], sep="  ", flush=True)
    header = ("work", "loop", "cluster, workers ready", "plan")
    return [work, Table("From how much work for its data on?", header, rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", default="long,tiny,crossover")
    parser.add_argument("--markdown")
    parser.add_argument("--append", action="store_true", help="add to the file what other parts have found")
    given = parser.parse_args()
    logging.getLogger("distributed").setLevel(logging.ERROR)
    loops_per_s = loops_for(0.1) / 0.1
    tables: list[Table] = []
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        by_client(client, spin, [1] * 10, 1)
        by_executor(client, spin, [1] * 10, inline="never")
        parts: dict[str, Callable[[], list[Table]]] = {
            "long": lambda: [long_tasks(client, given.rounds, loops_per_s)],
            "tiny": lambda: [tiny_tasks(client, given.rounds, loops_per_s)],
            "crossover": lambda: crossover(client, given.rounds, loops_per_s),
        }
        for name in given.parts.split(","):
            tables += parts[name]()
    if given.markdown:
        introduction = (__doc__ or "").partition("\n\n")[2].strip()
        page = [] if given.append else [f"# Tasks on a Dask cluster\n\n{introduction}\n\nMeasured on: {machine()}."]
        with open(given.markdown, "a" if given.append else "w", encoding="utf-8") as file:
            file.write("\n" * given.append + "\n\n".join([*page, *(table.markdown() for table in tables)]) + "\n")


if __name__ == "__main__":
    main()
