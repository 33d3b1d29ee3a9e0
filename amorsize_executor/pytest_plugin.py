"""Fixtures for suites that test code which uses executors, and a way to run all of it in the caller.

Loaded by pytest wherever this package is installed, so it imports nothing of it before a fixture is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import psutil

    from .executor import AmorsizeExecutor

_VARIABLE = "AMORSIZE_INLINE"
#: Processes have so long to end after their executor, in seconds.
_GRACE_S = 5.0
_before: pytest.StashKey[str | None] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the command line and of the ini file."""
    help = "run all tasks of amorsize executors in the calling thread, for debuggers and coverage"
    parser.getgroup("amorsize_executor").addoption("--amorsize-inline", action="store_true", help=help)
    parser.addini("amorsize_inline", help, type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    """Tell all executors by the environment, wherever they are made."""
    if config.getoption("--amorsize-inline") or config.getini("amorsize_inline"):
        config.stash[_before] = os.environ.get(_VARIABLE)
        os.environ[_VARIABLE] = "1"


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave the environment as it was."""
    if _before not in config.stash:
        return
    before = config.stash[_before]
    if before is None:
        os.environ.pop(_VARIABLE, None)
    else:
        os.environ[_VARIABLE] = before


@pytest.fixture
def make_amorsize_executor() -> Iterator[Callable[..., AmorsizeExecutor]]:
    """Makes executors as `AmorsizeExecutor` does.

    After the test they are shut down, what waits is cancelled, and the test fails if one of their workers, or a process
    that a task has started, is left behind.
    """
    from .executor import AmorsizeExecutor

    made: list[AmorsizeExecutor] = []

    def make(*args: Any, **kwargs: Any) -> AmorsizeExecutor:
        made.append(AmorsizeExecutor(*args, **kwargs))
        return made[-1]

    yield make
    processes: dict[int, psutil.Process] = {}
    for executor in reversed(made):
        for process in _processes_of(executor):
            processes[process.pid] = process
        executor.shutdown(cancel_futures=True)
    _check_ended(list(processes.values()))


@pytest.fixture
def amorsize_executor(make_amorsize_executor: Callable[..., AmorsizeExecutor]) -> AmorsizeExecutor:
    """An executor with two workers at most; it ends with the test, as those of `make_amorsize_executor` do."""
    return make_amorsize_executor(max_workers=2)


def _processes_of(executor: AmorsizeExecutor) -> list[psutil.Process]:
    """Workers that run, and all that descends from them."""
    import psutil

    found: list[psutil.Process] = []
    for worker in executor.stats().workers:
        try:
            process = psutil.Process(worker.pid) if worker.pid is not None else None
            if process is not None:
                found += [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue  # it has left in between
    return found


def _check_ended(processes: list[psutil.Process]) -> None:
    """Fail for processes that do not end, and end them: the next test shall not find them."""
    import psutil

    _, left = psutil.wait_procs(processes, timeout=_GRACE_S)
    told = []
    for process in left:
        try:
            told.append(f"  {process.pid}: {' '.join(process.cmdline())}")
            process.kill()
        except psutil.NoSuchProcess:
            continue
    if told:
        pytest.fail(
            "processes of the test's executors were left behind (they are killed now); let tasks wait for those that "
            "they start:\n" + "\n".join(told),
            pytrace=False,
        )
