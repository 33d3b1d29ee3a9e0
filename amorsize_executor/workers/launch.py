"""Starts loky's processes, but lets them begin in a module of ours that does not import loky.

A loky process is a fresh interpreter: no lock that another thread holds is copied, and the main module is not imported
again. What it costs is the imports in it: loky's own entry takes several times as long as the interpreter and all that
a worker needs, and there are two resource trackers besides, whose imports the parent would pay for, too. So `_Popen`
takes the place of loky's: the same call starts the process, which begins in `entry`.

No resource tracker is started, either: see `tracking`.
"""

from __future__ import annotations

import logging
import marshal
import os
import sys
from multiprocessing import popen_fork, process, util
from typing import TYPE_CHECKING, Any

from loky.backend import get_context
from loky.backend.fork_exec import fork_exec
from loky.backend.process import LokyProcess

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

#: The first thing a worker runs. Only the search path is set here: it takes that to find this package.
_BOOTSTRAP = f"""\
import marshal, os, sys
try:
    with os.fdopen(int(sys.argv[1]), "rb") as file:
        state = marshal.load(file)
except EOFError:
    os._exit(1)  # the parent has ended
sys.path[:] = state["path"]
from {__package__}.entry import main
main(state)
"""


def loky_context() -> BaseContext:
    """The multiprocessing context of loky."""
    context: BaseContext = get_context("loky")
    return context


class WorkerProcess(LokyProcess):  # type: ignore[misc]
    """A worker's process, not started yet.

    Parameters
    ----------
    channel_fd
        The worker's end of its channel.
    tracker_fd
        What stands for multiprocessing's resource tracker there.
    name
        Name of the process.
    env
        Environment variables to set for it.
    """

    def __init__(self, channel_fd: int, tracker_fd: int, *, name: str, env: dict[str, str]) -> None:
        super().__init__(name=name, env=env)
        self.channel_fd = channel_fd
        self.tracker_fd = tracker_fd

    @staticmethod
    def _Popen(process_obj: WorkerProcess) -> _Popen:
        return _Popen(process_obj)

    def state(self) -> dict[str, Any]:
        """What the new process has to know of this one."""
        parent = process.current_process()
        original_dir = process.ORIGINAL_DIR  # type: ignore[attr-defined]
        return {
            "name": self.name,
            "identity": self._identity,
            "parent_name": parent.name,
            "parent_pid": os.getpid(),
            "authkey": bytes(parent.authkey),
            "argv": [str(argument) for argument in getattr(sys, "argv", [])],
            "path": [path if path != "" else original_dir for path in sys.path if isinstance(path, str)],
            "original_dir": original_dir,
            "mp_log_level": _mp_log_level(),
            "channel_fd": self.channel_fd,
            "tracker_fd": self.tracker_fd,
        }


class _Popen(popen_fork.Popen):
    """A process that was started; waits for it and ends it as the standard library's do."""

    method = "loky"

    def _launch(self, process_obj: WorkerProcess) -> None:
        state = marshal.dumps(process_obj.state())
        state_r, state_w = os.pipe()
        self.sentinel, alive_w = os.pipe()  # its other end is closed by the end of the process
        try:
            self.pid = fork_exec(
                [sys.executable, "-c", _BOOTSTRAP, str(state_r), process_obj.name],
                [state_r, alive_w, process_obj.channel_fd, process_obj.tracker_fd],
                env=process_obj.env,
            )
        except BaseException:
            os.close(self.sentinel)
            os.close(state_w)
            raise
        finally:
            os.close(state_r)
            os.close(alive_w)
        self.finalizer = util.Finalize(self, os.close, (self.sentinel,))
        try:
            with os.fdopen(state_w, "wb") as file:
                file.write(state)
        except BrokenPipeError:
            pass  # it has ended already, which whoever watches it is told


def _mp_log_level() -> int | None:
    """Level of multiprocessing's own log, if it goes to the terminal (``multiprocessing.log_to_stderr``)."""
    logger = logging.getLogger("multiprocessing")
    return logger.getEffectiveLevel() if logger.handlers else None
