"""What `ps` and `top` show of a worker: its number, and what it does.

setproctitle changes the command line, where it is installed; elsewhere Linux lets a process change its name, of 15
characters. It costs microseconds, so a title changes only with the function that runs, has a budget, and becomes
"several functions" where that is spent: what it says is always true. Between tasks it waits before it says "idle".

A task that sets a title of its own with setproctitle keeps it.

Owned by the worker's main thread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

#: Changes a second in the long run, and at once.
_RATE = 10.0
_BURST = 20.0
#: A worker without work for so long counts as idle, in seconds.
IDLE_S = 0.1
_COMM = "/proc/self/comm"


class Title:
    """The title of this process.

    Parameters
    ----------
    worker_id
        Number of the worker; None if the title of this process is not its own, and so stays as it is.

    Attributes
    ----------
    shown
        What runs according to the title: what `show` was given; None for nothing, or several.
    is_idle
        Whether it says so.
    """

    def __init__(self, worker_id: str | None) -> None:
        self.shown: object = None
        self._write = None if worker_id is None else _writer(worker_id)
        self._budget = _BURST
        self._at = time.perf_counter()
        self.is_idle = True
        self._set("starting")

    def show(self, what: object, name: str) -> None:
        """Something runs that has a name."""
        now = time.perf_counter()
        self._budget = min(self._budget + _RATE * (now - self._at), _BURST)
        self._at = now
        if self._budget >= 1:
            self._budget -= 1
            self.shown, self.is_idle = what, False
            self._set(name)
        elif self.shown is not None or self.is_idle:
            self.shown, self.is_idle = None, False
            self._set("several functions")

    def idle(self) -> None:
        """Nothing has run for a while."""
        self.shown, self.is_idle = None, True
        self._set("idle")

    def _set(self, text: str) -> None:
        if self._write is not None and not self._write(text):
            self._write = None


def _writer(worker_id: str) -> Callable[[str], bool] | None:
    """What sets the title; it returns False when the title is not ours to change any more."""
    noenv = "SPT_NOENV"  # else it takes the memory that /proc/PID/environ shows
    is_told = noenv in os.environ
    try:
        os.environ.setdefault(noenv, "1")
        from setproctitle import getproctitle, setproctitle

        ours = getproctitle()
    except ImportError:
        return _comm_writer(worker_id) if os.access(_COMM, os.W_OK) else None
    finally:
        if not is_told:
            del os.environ[noenv]

    def write(text: str) -> bool:
        nonlocal ours
        if getproctitle() != ours:
            return False
        setproctitle(f"amorsize worker {worker_id}: {text}")
        ours = getproctitle()  # as far as there was room
        return True

    return write


def _comm_writer(worker_id: str) -> Callable[[str], bool]:
    def write(text: str) -> bool:
        try:
            fd = os.open(_COMM, os.O_WRONLY)
        except OSError:  # no descriptor left
            return False
        try:
            os.write(fd, f"amor-{worker_id} {text}".encode())
        finally:
            os.close(fd)
        return True

    return write
