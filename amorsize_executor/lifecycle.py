"""How executors learn that their process ends or was forked.

The interpreter waits for threads that are no daemons, and an I/O thread would wait for work. So a thread of this module
waits for the end of the main thread and then tells every executor to finish what it has; all that by public means of
`threading`. A process of multiprocessing, as workers are, waits for its children before that: there, its finalizers
tell.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from typing import Protocol

#: Priority among multiprocessing's finalizers; those from 0 on run before it waits for child processes.
_BEFORE_CHILDREN_ARE_JOINED = 100
#: Where a process of multiprocessing begins, or a worker. A process without them is neither.
_BEGINNINGS = ("multiprocessing.process", f"{__package__}.workers.entry")


class Living(Protocol):
    """What has an I/O thread that must be told."""

    #: Set in the child of a fork: threads and workers are the parent's.
    is_foreign: bool
    #: Set before `abandon_all` if nobody waits for results any more.
    kill_at_exit: bool

    def abandon_all(self) -> None:
        """Finish what came, then end. Called without a lock, at any point of any thread."""


_live: weakref.WeakSet[Living] = weakref.WeakSet()
_live_lock = threading.Lock()  # guards it: who goes through it must not meet one that comes or goes
_is_ending = False
_watch: threading.Thread | None = None
_watch_lock = threading.Lock()  # guards the start of the thread


def is_interpreter_ending() -> bool:
    """Whether the main thread has ended."""
    return _is_ending


def add(living: Living) -> None:
    """Tell this one, too."""
    with _live_lock:
        _live.add(living)


def discard(living: Living) -> None:
    """Its I/O thread has ended."""
    with _live_lock:
        _live.discard(living)


def living() -> list[Living]:
    """Those to be told."""
    with _live_lock:
        return list(_live)


def ensure_watch() -> None:
    """Start the thread that waits for the end of the main thread."""
    global _watch
    if _watch is None or not _watch.is_alive():
        may_be_child = any(name in sys.modules for name in _BEGINNINGS)
        if may_be_child:
            from multiprocessing import process, util
        with _watch_lock:
            if _watch is None or not _watch.is_alive():
                _watch = threading.Thread(target=_wait_for_end, name="amorsize-exit-watch", daemon=False)
                _watch.start()
                if may_be_child and process.parent_process() is not None:
                    util.Finalize(None, _tell_all, exitpriority=_BEFORE_CHILDREN_ARE_JOINED)


def _wait_for_end() -> None:
    threading.main_thread().join()
    _tell_all()


def _tell_all() -> None:
    global _is_ending
    _is_ending = True
    # After an unhandled Ctrl-C nobody waits for results: end at once.
    kill = issubclass(getattr(sys, "last_type", None) or Exception, KeyboardInterrupt)
    for each in living():
        each.kill_at_exit = kill
        each.abandon_all()


def _after_fork_in_child() -> None:
    global _watch, _watch_lock, _live_lock
    _live_lock = threading.Lock()  # another thread may have held it
    for each in living():
        each.is_foreign = True
    _live.clear()
    _watch = None
    _watch_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
