from __future__ import annotations

import os
from collections.abc import Iterator

import psutil
import pytest


@pytest.fixture(scope="package", autouse=True)
def _no_process_is_left_behind() -> Iterator[None]:
    before = set(psutil.Process().children(recursive=True))
    yield
    left = [p for p in set(psutil.Process().children(recursive=True)) - before if not _is_helper(p)]
    assert psutil.wait_procs(left, timeout=20)[1] == []


def _is_helper(process: psutil.Process) -> bool:
    """Whether a process belongs to the standard library or loky and lives as long as the interpreter."""
    try:
        return any(name in part for part in process.cmdline() for name in ("resource_tracker", "forkserver"))
    except psutil.Error:
        return False


@pytest.fixture(autouse=True)
def _no_descriptor_is_left_open() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    yield
    if before:
        left = {fd for fd in os.listdir("/proc/self/fd") if fd not in before}
        opened = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in left if os.path.lexists(f"/proc/self/fd/{fd}")}
        # loky's resource tracker keeps a pipe for as long as this process lives
        assert not {fd: target for fd, target in opened.items() if not target.startswith("pipe:")}
