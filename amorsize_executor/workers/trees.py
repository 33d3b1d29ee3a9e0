"""A process and those that descend from it.

What a process forks while it is looked at would be missed; so it, and each one that is found, is stopped first.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys


def is_stopped(pid: int) -> bool:
    """Whether a process stands still by a signal, or is gone."""
    if sys.platform == "linux":
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                state = file.read().rpartition(b")")[2].split()[0]
        except OSError:
            return not os.path.exists(f"/proc/{pid}")
        return state in (b"T", b"t", b"Z", b"X")
    import psutil

    try:
        return bool(psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE))
    except psutil.NoSuchProcess:
        return True


def is_gone(pid: int) -> bool:
    """Whether a process has ended, though nobody may have asked yet how."""
    import psutil

    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def children(pid: int) -> list[int]:
    """Processes that a process has started and that have not ended."""
    if sys.platform == "linux":
        found: list[int] = []
        try:
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/children") as file:
                    found += map(int, file.read().split())
            return found
        except FileNotFoundError:
            if not os.path.exists(f"/proc/{pid}"):
                return []  # and not a kernel without these files
    import psutil

    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except psutil.NoSuchProcess:
        return []


def stop_descendants(pid: int) -> list[int]:
    """Stop all that descend from a process which stands still; returns them.

    One that has left its ancestors, as a daemon does, is not found.
    """
    found: list[int] = []
    known = {pid}
    is_new = True
    while is_new:  # a child may have forked before it came to a stop
        is_new = False
        for parent in [pid, *found]:
            for child in children(parent):
                if child not in known:
                    known.add(child)
                    found.append(child)
                    is_new = True
                    _send(child, signal.SIGSTOP)
    return found


def kill(pids: list[int]) -> None:
    """Kill processes that `stop_descendants` has stopped: nobody can have reaped them, so their numbers are theirs."""
    for pid in pids:
        _send(pid, signal.SIGKILL)


def _send(pid: int, signum: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # gone, or of another user by now
        os.kill(pid, signum)
