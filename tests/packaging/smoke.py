"""What a newcomer does first. A program for an environment with nothing but the package and what it depends on."""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

#: What only extras bring. Here all has to work without.
OPTIONAL = (
    "distributed",
    "joblib",
    "matplotlib",
    "opentelemetry",
    "prometheus_client",
    "pytest",
    "setproctitle",
    "sklearn",
    "tqdm",
)
N = 1000


def double(x: int) -> int:
    return 2 * x


def check_what_is_installed() -> None:
    import amorsize_executor

    package = Path(amorsize_executor.__file__).parent
    assert package.is_relative_to(sys.prefix), package
    assert (package / "py.typed").is_file()
    assert importlib.metadata.version("amorsize_executor") == amorsize_executor.__version__
    for name in amorsize_executor.__all__:
        if name != "register_joblib_backend":
            assert getattr(amorsize_executor, name) is not None
    assert not [name for name in OPTIONAL if importlib.util.find_spec(name)]


def check_executor() -> None:
    import numpy as np

    from amorsize_executor import AmorsizeExecutor

    offset = 5
    with AmorsizeExecutor(max_workers=2) as executor:
        assert executor.submit(os.getpid).result(timeout=60) != os.getpid()
        assert executor.submit(double, 21).result(timeout=60) == 42
        assert list(executor.map(double, range(N))) == list(range(0, 2 * N, 2))
        assert list(executor.map(lambda x: x + offset, range(N), chunksize=10)) == list(range(offset, N + offset))
        array = np.arange(1_000_000.0)
        assert list(executor.map(lambda i: array[i], [3, 5], chunksize=1)) == [3, 5]
        assert asyncio.run(_double_in_a_coroutine(executor)) == 42
        assert executor.stats().tasks_failed == 0


async def _double_in_a_coroutine(executor: Any) -> Any:
    return await executor.asubmit(double, 21)


def check_optimizer() -> None:
    from amorsize_executor import default_executor, execute, optimize

    result = optimize(double, range(N))
    assert result.n_jobs >= 1
    assert result.reason
    assert execute(lambda x: -x, range(N)) == [-x for x in range(N)]
    default_executor().shutdown()


def check_command_line() -> None:
    script = os.path.join(os.path.dirname(sys.executable), "amorsize")
    for command in ([script], [sys.executable, "-m", "amorsize_executor"]):
        assert "optimize" in _output(*command, "--help")
        told = json.loads(_output(*command, "optimize", "math:sqrt", "--range", "1000", "--json"))
        assert told["n_jobs"] >= 1


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


if __name__ == "__main__":
    check_what_is_installed()
    check_executor()
    check_optimizer()
    check_command_line()
