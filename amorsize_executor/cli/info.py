"""``amorsize info``: what this machine offers, and what a pool costs on it, measured now."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import time
from importlib import metadata
from statistics import median
from typing import Any

from .. import __version__, machine
from ..decisions.cost_model import CostModel
from ..decisions.planner import format_time
from ..executor import AmorsizeExecutor
from ..optimizer.configs import config_folder
from ..optimizer.results import format_nbytes
from ..store import default_path
from . import Output, table

#: Round trips and tasks of a flood that are timed.
_ROUND_TRIPS, _FLOOD = 200, 5_000


def run(args: argparse.Namespace) -> Output:
    """Look and measure."""
    data = {"machine": _machine(), "versions": _versions(), "paths": _paths(), "measured": _measure()}
    return Output(_text(data), data)


def _machine() -> dict[str, Any]:
    import psutil

    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "cpus_by_affinity": affinity,
        "cpus_usable": machine.cpu_count(),
        "memory": int(psutil.virtual_memory().total),
        "memory_available": int(psutil.virtual_memory().available),
        "memory_limit": machine.memory_limit(),
        "start_methods": ["loky", *multiprocessing.get_all_start_methods()],
    }


def _versions() -> dict[str, str]:
    names = ("loky", "cloudpickle", "numpy", "psutil")
    return {"amorsize_executor": __version__, "python": platform.python_version()} | {
        n: metadata.version(n) for n in names
    }


def _paths() -> dict[str, str]:
    return {"store": str(default_path()), "configs": str(config_folder())}


def _measure() -> dict[str, float]:
    """Times in seconds, with one worker."""
    began = time.perf_counter()
    with AmorsizeExecutor(max_workers=1, inline="never", cost_model=CostModel()) as executor:
        executor.submit(_nothing).result()
        first_s = time.perf_counter() - began
        trips = []
        for _ in range(_ROUND_TRIPS):
            began = time.perf_counter()
            executor.submit(_nothing).result()
            trips.append(time.perf_counter() - began)
        began = time.perf_counter()
        for future in [executor.submit(_nothing) for _ in range(_FLOOD)]:
            future.result()
        flood_s = time.perf_counter() - began
        return {
            "first_result_s": first_s,
            "worker_start_s": executor.cost_model.worker_start_s,
            "round_trip_s": median(trips),
            "submits_per_s": _FLOOD / flood_s,
        }


def _nothing() -> None:
    """The empty task."""


def _text(data: dict[str, Any]) -> str:
    here, measured = data["machine"], data["measured"]
    limits = [f"{here['cpus_usable']} usable of {here['cpus']}"]
    if here["cpus_by_affinity"] != here["cpus"]:
        limits.append(f"{here['cpus_by_affinity']} by affinity")
    if here["cpus_usable"] != here["cpus_by_affinity"]:
        limits.append("bounded by a quota of the container")
    memory = f"{format_nbytes(here['memory_limit'])} usable of {format_nbytes(here['memory'])}"
    rows = [
        ("system", here["system"]),
        ("CPUs", ", ".join(limits)),
        ("memory", f"{memory}, {format_nbytes(here['memory_available'])} available now"),
        ("start methods", ", ".join(here["start_methods"])),
        ("versions", ", ".join(f"{name} {version}" for name, version in data["versions"].items())),
        ("store", data["paths"]["store"]),
        ("configs", data["paths"]["configs"]),
        ("first result", f"{format_time(measured['first_result_s'])} after the executor was made"),
        ("worker start", format_time(measured["worker_start_s"])),
        ("round trip", f"{format_time(measured['round_trip_s'])} from submit to result"),
        ("submits", f"{measured['submits_per_s']:,.0f} a second"),
    ]
    return table(rows)
