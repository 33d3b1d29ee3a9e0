"""A classifier behind HTTP: the same server on this package, on the standard pool, on loky's, and on LitServe.

    python -m benchmarks.serving [--seconds 8] [--rounds 3] [--markdown docs/benchmarks/serving.md]
    python -m benchmarks.serving --chaos [--seconds 60] [--markdown docs/benchmarks/serving.md]

Without ``--chaos``: 32 clients in a closed loop on loopback, in a process of their own that checks the status and body
of every answer (`examples/_load.py`). All servers run at the same time, loaded in turn, in another order each round;
medians of the rounds count. Then the same number of requests a second is sent to each: six tenths of what the standard
pool could do.

With ``--chaos``: one worker a second is killed (SIGKILL) under that load, with ``retries=0`` and ``retries=1``. Only
requests that were with killed workers may fail, none with a retry; the others' p99 stays under three times the calm
one; memory, threads and descriptors of the server stay flat.

Exit status: how many checks failed. Needs scikit-learn and uvicorn; LitServe takes part where it is installed. Use
``--seconds 5 --rounds 1`` to try it out.
"""

from __future__ import annotations

import argparse
import gc
import json
import pickle
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier

from benchmarks._measure import ROOT
from benchmarks._report import Table, machine
from benchmarks._serving_model import predict_one
from benchmarks._serving_server import POOLS

N_CLIENTS = 32
N_TREES = 100
WORKERS = 2
#: Under kills, two workers more than the machine has CPUs: while one starts and one loads, there are others.
CHAOS_WORKERS = 4
EQUAL_SHARE = 0.6
LEAST_GAIN = 2.0
MOST_P99 = 3.0
#: Noise that is allowed where two figures should be equal.
TOLERANCE = 1.1
MOST_GROWTH_NBYTES = 20_000_000
START_S = 120.0
LOAD = ROOT / "examples" / "_load.py"
CHAOS_TITLE = "## One worker killed a second"
#: What a failed request tells: the error, and the process that it was with.
_DIED = re.compile(r'"error": "WorkerDied", "pid": (\d+)')


@dataclass
class Server:
    """A server that runs."""

    name: str
    url: str
    process: subprocess.Popen[str]


def make_model(folder: Path) -> tuple[Path, Path]:
    """Files of a fitted model, and of requests with the answers of a plain loop."""
    images, digits = load_digits(return_X_y=True)
    model = RandomForestClassifier(n_estimators=N_TREES, random_state=0).fit(images, digits)
    rows = [[float(pixel) for pixel in image] for image in images[:200]]
    requests = [{"body": {"pixels": row}, "answer": {"digit": predict_one(model, row)}} for row in rows]
    model_path, requests_path = folder / "model.pickle", folder / "requests.json"
    model_path.write_bytes(pickle.dumps(model))
    requests_path.write_text(json.dumps(requests))
    return model_path, requests_path


@contextmanager
def running(name: str, model: Path, *options: str) -> Iterator[Server]:
    """Start a server and wait until it has its workers; end it afterwards."""
    if name == "litserve":
        port = free_port()
        command = [sys.executable, "-m", "benchmarks._serving_litserve", str(model), str(port), *options]
    else:
        command = [sys.executable, "-m", "benchmarks._serving_server", name, str(model), *options]
    pipe = subprocess.PIPE if name != "litserve" else subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=ROOT, stdout=pipe, text=True, start_new_session=True)
    try:
        if process.stdout is not None:
            port = int(process.stdout.readline())
        server = Server(name, f"http://127.0.0.1:{port}", process)
        await_answer(server)
        yield server
    finally:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.send_signal(signal.SIGINT)
        _, left = psutil.wait_procs(family, timeout=10)
        for one in left:  # LitServe leaves its workers
            one.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def await_answer(server: Server) -> None:
    """Wait until a server answers anything."""
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        try:
            urllib.request.urlopen(f"{server.url}/health", timeout=5).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            if server.process.poll() is not None:
                raise RuntimeError(f"the server on {server.name} ended with {server.process.returncode}") from None
            time.sleep(0.1)
    raise TimeoutError(f"the server on {server.name} does not answer")


def start_load(server: Server, requests: Path, seconds: float, rate: float = 0.0) -> subprocess.Popen[str]:
    command = [sys.executable, str(LOAD), f"{server.url}/classify", str(requests)]
    command += [f"--seconds={seconds}", f"--clients={N_CLIENTS}", f"--rate={rate}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def end_load(load: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = load.communicate()
    found: dict[str, Any] = json.loads(out)
    return found


def loaded(server: Server, requests: Path, seconds: float, rate: float = 0.0) -> dict[str, Any]:
    """What clients saw of a server that nobody kills: every answer must be right."""
    found = end_load(start_load(server, requests, seconds, rate))
    if found["problems"]:
        raise RuntimeError(f"the server on {server.name} gave wrong answers: {found['problems']}")
    return found


# ---------------------------------------------------------------------- calm


def calm(seconds: float, n_rounds: int) -> tuple[Table, list[str]]:
    """All servers in turn; the table, and the checks that failed."""
    names = [*POOLS, *(["litserve"] if find_spec("litserve") else [])]
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    equal: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        model, requests = make_model(Path(folder))
        servers = [stack.enter_context(running(name, model, f"--workers={WORKERS}")) for name in names]
        for server in servers:
            loaded(server, requests, min(seconds, 2.0))
        for number in range(n_rounds):
            for server in servers[number % len(servers) :] + servers[: number % len(servers)]:
                seen[server.name].append(loaded(server, requests, seconds))
                print(f"round {number}: {server.name}: {seen[server.name][-1]}", flush=True)
        rate = EQUAL_SHARE * median(found["per_second"] for found in seen["standard"])
        for number in range(n_rounds):
            for server in servers[number % len(servers) :] + servers[: number % len(servers)]:
                equal[server.name].append(loaded(server, requests, seconds, rate))
                print(f"{rate:.0f} a second: {server.name}: {equal[server.name][-1]}", flush=True)
    figures = {
        name: (
            middle(seen[name], "per_second"),
            middle(seen[name], "p50_ms"),
            middle(seen[name], "p99_ms"),
            middle(equal[name], "p50_ms"),
            middle(equal[name], "p99_ms"),
        )
        for name in names
    }
    standard = figures["standard"]
    table = Table(
        "Throughput and latency",
        ("pool", "requests a second", "over standard", "p50", "p99", f"p50 at {rate:.0f}/s", f"p99 at {rate:.0f}/s"),
        [
            (LABELS[name], f"{f[0]:.0f}", f"{f[0] / standard[0]:.2f}", *[f"{ms:.1f} ms" for ms in f[1:]])
            for name, f in figures.items()
        ],
    )
    batches = figures["batches"]
    checks = {
        f"at least {LEAST_GAIN:g} times the standard pool's throughput": batches[0] >= LEAST_GAIN * standard[0],
        "p99 under full load no worse than the standard pool's": batches[2] <= TOLERANCE * standard[2],
        "p99 at equal load no worse than the standard pool's": batches[4] <= TOLERANCE * standard[4],
    }
    return table, told(checks)


LABELS = {
    "batches": "AmorsizeExecutor, `batch`",
    "one by one": "AmorsizeExecutor, `asubmit`",
    "standard": "ProcessPoolExecutor",
    "loky": "loky's ProcessPoolExecutor",
    "litserve": "LitServe",
}


def middle(found: list[dict[str, Any]], name: str) -> float:
    return float(median(one[name] for one in found))


def told(checks: dict[str, bool]) -> list[str]:
    for what, holds in checks.items():
        print(f"{'holds' if holds else 'BROKEN'}: {what}", flush=True)
    return [what for what, holds in checks.items() if not holds]


# ---------------------------------------------------------------------- chaos


def chaos(seconds: float) -> tuple[Table, list[str]]:
    """One worker killed a second; the table, and the checks that failed."""
    rows, failed = [], []
    for retries in (0, 1):
        row, broken = killed_under_load(seconds, retries)
        rows.append(row)
        failed += [f"retries={retries}: {what}" for what in broken]
    header = (
        "retries", "killed", "right", "failed", "p99 calm", "p99", "over calm", "memory", "threads", "descriptors"
    )  # fmt: skip
    return Table("One worker killed a second", header, rows), failed


def killed_under_load(seconds: float, retries: int) -> tuple[tuple[str, ...], list[str]]:
    options = (f"--workers={CHAOS_WORKERS}", f"--retries={retries}", "--preload")
    killed: list[int] = []
    chance = random.Random(retries)
    with tempfile.TemporaryDirectory() as folder:
        model, requests = make_model(Path(folder))
        with running("batches", model, *options) as server:
            loaded(server, requests, 2.0)
            calm_load = loaded(server, requests, min(seconds, 10.0))
            kill_one(server, killed, chance)  # what the first death allocates is no growth
            await_workers(server)
            loaded(server, requests, 1.0)
            before = held_by(server)
            load = start_load(server, requests, seconds)
            begun = time.monotonic()
            while load.poll() is None and time.monotonic() < begun + seconds - 0.5:
                time.sleep(1.0)
                kill_one(server, killed, chance)
            found = end_load(load)
            await_workers(server)
            loaded(server, requests, 1.0)
            after = held_by(server)
    victims = {int(pid) for problem in found["problems"] for pid in _DIED.findall(problem)}
    n_failed = sum(found["problems"].values())
    n_told = sum(n for problem, n in found["problems"].items() if _DIED.search(problem))
    print(f"retries={retries}: calm {calm_load}\nkilled {len(killed)}: {found}\n{before} -> {after}", flush=True)
    ratio = found["p99_ms"] / calm_load["p99_ms"]
    checks = {
        "only requests that were with killed workers fail": n_told == n_failed and victims <= set(killed),
        "none fails with a retry": not retries or not n_failed,
        f"p99 stays under {MOST_P99:g} times the calm one": ratio < MOST_P99,
        "memory is flat": after[0] - before[0] < MOST_GROWTH_NBYTES,
        "threads are flat": after[1] <= before[1],
        "descriptors are flat": after[2] <= before[2],
    }
    row = (
        str(retries),
        str(len(killed) - 1),
        str(found["right"]),
        str(n_failed),
        f"{calm_load['p99_ms']:.1f} ms",
        f"{found['p99_ms']:.1f} ms",
        f"{ratio:.2f}",
        *[
            f"{old:,} → {new:,}"
            for old, new in zip((before[0] >> 20, *before[1:]), (after[0] >> 20, *after[1:]), strict=True)
        ],
    )
    return row, told(checks)


def workers_of(server: Server) -> list[tuple[int, str]]:
    with urllib.request.urlopen(f"{server.url}/workers", timeout=30) as answer:
        return [(pid, state) for pid, state in json.load(answer)["workers"]]


def kill_one(server: Server, killed: list[int], chance: random.Random) -> None:
    """Kill a worker, in whatever state it is."""
    pids = [pid for pid, _ in workers_of(server) if pid is not None]
    if pids:
        killed.append(chance.choice(pids))
        psutil.Process(killed[-1]).kill()


def await_workers(server: Server) -> None:
    """Wait until all workers are there again."""
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if [state for _, state in workers_of(server)] == ["idle"] * CHAOS_WORKERS:
            return
        time.sleep(0.1)
    raise TimeoutError(f"workers do not come back: {workers_of(server)}")


def held_by(server: Server) -> tuple[int, int, int]:
    """Resident memory in bytes, threads and descriptors of a server, without its workers."""
    gc.collect()
    process = psutil.Process(server.process.pid)
    return process.memory_info().rss, process.num_threads(), process.num_fds()


# ---------------------------------------------------------------------- the page


def write(page: Path, table: Table, failed: list[str], *, is_chaos: bool) -> None:
    """Put a part into the page, and leave the other one."""
    old = page.read_text(encoding="utf-8") if page.exists() else ""
    calm_part, _, chaos_part = old.partition(CHAOS_TITLE)
    verdict = "All checks hold." if not failed else f"Broken: {'; '.join(failed)}."
    section = f"{table.markdown()}\n\n{verdict} Measured on: {machine()}, scikit-learn {version('scikit-learn')}.\n"
    if is_chaos:
        calm_part, chaos_part = calm_part or f"{INTRODUCTION}\n", section.removeprefix(CHAOS_TITLE)
        chaos_part = f"\n\n{CHAOS_NOTE}{chaos_part}"
    else:
        calm_part = f"{INTRODUCTION}\n{section}\n"
    page.write_text(calm_part + (CHAOS_TITLE + chaos_part if chaos_part else ""), encoding="utf-8")


INTRODUCTION = f"""# Serving a classifier

``python -m benchmarks.serving`` and ``python -m benchmarks.serving --chaos``

A random forest of {N_TREES} trees over scikit-learn's digits, one image a request, behind the same small ASGI
application under uvicorn; LitServe has its own. {WORKERS} workers; {N_CLIENTS} clients in a closed loop on loopback, in
a process of their own that checks each status and body. Server, workers and clients share the CPUs. Medians of rounds
in which the servers take turns; the last two columns are for requests at the same rate for all.
"""

CHAOS_NOTE = f"""The same server with `batch` and {CHAOS_WORKERS} workers, started from a fork server that has
scikit-learn loaded already. A random worker, in whatever state, is killed each second. Latencies are those of all right
answers, those that needed a retry included; memory (MiB), threads and descriptors are the server's, before and after.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, help="of each load; 8, or 60 with --chaos")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chaos", action="store_true")
    parser.add_argument("--markdown", type=Path, help="page to write")
    args = parser.parse_args()
    if args.chaos:
        table, failed = chaos(args.seconds or 60.0)
    else:
        table, failed = calm(args.seconds or 8.0, args.rounds)
    print(table.text())
    if args.markdown is not None:
        write(args.markdown, table, failed, is_chaos=args.chaos)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
