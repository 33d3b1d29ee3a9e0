"""Where a worker process begins, if it was started by `launch`.

The process is made to resemble its parent as much as a task may expect: module search path, working folder, arguments,
authentication key, and multiprocessing's idea of what the current and the parent process are. It imports no more than
that takes, since each worker pays for it: least of all loky or the parent's main module, and multiprocessing only if a
task does.
"""

from __future__ import annotations

import _socket as socket
import os
import sys

from .late import when_imported
from .process import worker_main

TYPE_CHECKING = False  # as of typing: see the package's docstring
if TYPE_CHECKING:
    from typing import Any


def main(state: dict[str, Any]) -> None:
    """Run a worker to its end.

    Parameters
    ----------
    state
        What `launch` has told of the parent; the module search path stands already.
    """
    sys.argv = state["argv"]
    _close_stdin()
    when_imported("multiprocessing.process", lambda process: _introduce(process, state))
    when_imported("multiprocessing.resource_tracker", lambda tracker: _use_tracker(tracker, state["tracker_fd"]))
    if state["mp_log_level"] is not None:
        from multiprocessing import util

        util.log_to_stderr(state["mp_log_level"])
    try:
        channel = socket.socket(fileno=state["channel_fd"])
        worker_main(channel, state["parent_pid"], {}, state["name"].rpartition("-")[2])
    finally:
        loaded: Any = sys.modules.get("multiprocessing.util")
        if loaded is not None:
            loaded._exit_function()  # before threads are joined, as any process of multiprocessing does


def _introduce(process: Any, state: dict[str, Any]) -> None:
    """Tell multiprocessing what this process is, as each of its start methods does in the new one."""

    class WorkerProcess(process.BaseProcess):  # type: ignore[misc]
        """The worker's own process, as ``multiprocessing.current_process()`` tells it."""

        def __init__(self) -> None:
            super().__init__(name=state["name"])
            self._parent_name = state["parent_name"]
            self._parent_pid = state["parent_pid"]
            self._identity = tuple(state["identity"])

    process.ORIGINAL_DIR = state["original_dir"]
    worker = WorkerProcess()
    worker.authkey = state["authkey"]
    process._current_process = worker
    process._parent_process = process._ParentProcess(state["parent_name"], state["parent_pid"], None)
    process._process_counter = type(process._process_counter)(1)
    process._children = set()


def _use_tracker(resource_tracker: Any, fd: int) -> None:
    resource_tracker._resource_tracker._fd = fd  # as in spawned processes


def _close_stdin() -> None:
    """Tasks read nothing from the terminal."""
    if sys.stdin is None:
        return
    try:
        sys.stdin.close()
        sys.stdin = os.fdopen(os.open(os.devnull, os.O_RDONLY), encoding="utf-8", closefd=False)
    except (OSError, ValueError):
        pass  # as in multiprocessing's processes
