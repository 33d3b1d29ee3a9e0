"""Limits that a container is given through its environment.

`AmorsizeExecutor()` already counts the CPUs and the memory that cgroups and affinity leave to this process. Where an
operator sets limits by environment variables instead, they are read and passed on, and the smaller of both holds. The
script starts itself with other limits, as an orchestrator would.
"""

import os
import subprocess
import sys
import time

import numpy as np
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from amorsize_executor import AmorsizeExecutor

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}

images, labels = load_digits(return_X_y=True)
model = SVC(gamma=0.001).fit(images[:500], labels[:500])


def parse_bytes(text: str) -> int:
    """Read a size as Kubernetes and Docker write it.

    >>> parse_bytes("512Mi"), parse_bytes("2g"), parse_bytes("1000")
    (536870912, 2147483648, 1000)
    """
    number = text.upper().removesuffix("B").removesuffix("I")
    unit = UNITS.get(number[-1:])
    return int(float(number[:-1]) * unit) if unit else int(number)


def executor_from_environment() -> AmorsizeExecutor:
    """An executor within WORKERS, MEMORY_LIMIT and THREADS_PER_WORKER, where they are set."""
    workers, memory, threads = map(os.environ.get, ("WORKERS", "MEMORY_LIMIT", "THREADS_PER_WORKER"))
    return AmorsizeExecutor(
        max_workers=int(workers) if workers else None,
        memory_limit=parse_bytes(memory) if memory else None,
        threads_per_worker=int(threads) if threads else None,
        inline="never",  # to show the workers
    )


def predict(batch: np.ndarray) -> tuple[int, int]:
    """How many digits of a batch are even, and in which process."""
    return int((model.predict(batch) % 2 == 0).sum()), os.getpid()


def serve() -> None:
    """What runs in the container."""
    batches = np.array_split(images, 60)
    with executor_from_environment() as ex:
        for name, mapped in (("plain", map), ("cold", ex.map), ("warm", ex.map)):
            started = time.perf_counter()
            found = list(mapped(predict, batches))
            taken_s = time.perf_counter() - started
            even, processes = sum(n for n, _ in found), {pid for _, pid in found}
            where = f"{len(processes)} worker{'s' if len(processes) > 1 else ''}" if mapped is not map else "a loop"
            print(f"  {even} even digits, found by {where} in {taken_s * 1e3:.0f} ms ({name})", flush=True)


def main() -> None:
    for limits in ({"WORKERS": "1"}, {"WORKERS": "2", "MEMORY_LIMIT": "2Gi", "THREADS_PER_WORKER": "1"}):
        print(" ".join(f"{name}={value}" for name, value in limits.items()), flush=True)
        subprocess.run([sys.executable, __file__, "serve"], env=os.environ | limits, check=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        serve()
    else:
        main()
