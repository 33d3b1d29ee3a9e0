"""Where a worker process begins, if it was started by `launch`.

The process is made to resemble its parent as much as a task may expect: module search path, working folder, arguments,
authentication key, and multiprocessing's idea of what the current and the parent process are. It imports no more than
that takes, since each worker pays for it; least of all loky or the parent's main module.
"""

from __future__ import annotations

import multiprocessing
import socket
import sys
from multiprocessing import process, resource_tracker
from typing import Any

from .process import worker_main


class WorkerProcess(multiprocessing.Process):
    """The worker's own process, as ``multiprocessing.current_process()`` tells it."""

    def __init__(self, parent: tuple[str, int], identity: tuple[int, ...], **arguments: Any) -> None:
        super().__init__(**arguments)
        self._parent_name, self._parent_pid = parent
        self._identity = identity


def main(state: dict[str, Any]) -> None:
    """Run a worker to its end.

    Parameters
    ----------
    state
        What `launch` has told of the parent; the module search path stands already.
    """
    sys.argv = state["argv"]
    process.ORIGINAL_DIR = state["original_dir"]  # type: ignore[attr-defined]
    process.current_process().authkey = state["authkey"]
    if state["mp_log_level"] is not None:
        from multiprocessing import util

        util.log_to_stderr(state["mp_log_level"])
    resource_tracker._resource_tracker._fd = state["tracker_fd"]  # type: ignore[attr-defined]  # as spawned ones do
    channel = socket.socket(fileno=state["channel_fd"])
    worker = WorkerProcess(
        (state["parent_name"], state["parent_pid"]),
        tuple(state["identity"]),
        name=state["name"],
        target=worker_main,
        args=(channel, state["parent_pid"], {}),
    )
    sys.exit(worker._bootstrap())  # type: ignore[attr-defined]  # what each start method calls in the new process
