"""The exceptions that this package raises beyond the standard ones."""

from __future__ import annotations

import pickle
import queue
import sys
from concurrent.futures import TimeoutError as FuturesTimeoutError
from concurrent.futures.process import BrokenProcessPool


class AmorsizeError(Exception):
    """Base of the exceptions of this package."""


class WorkerDied(AmorsizeError, BrokenProcessPool):
    """The worker process of a task ended while it was running the task.

    Only this task is lost; the pool stays usable.

    Attributes
    ----------
    pid
        Process id of the worker.
    exitcode
        Exit status; minus the signal's number if a signal ended it; None if unknown.
    """

    def __init__(self, message: str, pid: int | None = None, exitcode: int | None = None) -> None:
        super().__init__(message)
        self.pid = pid
        self.exitcode = exitcode

    def __reduce__(self) -> tuple[type[WorkerDied], tuple[str, int | None, int | None]]:
        return type(self), (str(self), self.pid, self.exitcode)


class MemoryLimitExceeded(AmorsizeError, MemoryError):
    """A task needs more memory than there is: its worker was ended, by this package or by the kernel.

    It was the only task that took much; or it was run twice, the second time with no other beside it that takes much.

    Attributes
    ----------
    used_nbytes
        What its worker used when that was last seen, in bytes; None if it was not seen.
    limit_nbytes
        What this process and all workers may use, in bytes.
    """

    def __init__(self, message: str, used_nbytes: int | None = None, limit_nbytes: int | None = None) -> None:
        super().__init__(message)
        self.used_nbytes = used_nbytes
        self.limit_nbytes = limit_nbytes

    def __reduce__(self) -> tuple[type[MemoryLimitExceeded], tuple[str, int | None, int | None]]:
        return type(self), (str(self), self.used_nbytes, self.limit_nbytes)


if sys.version_info >= (3, 11):
    _TimeoutErrors = TimeoutError
else:

    class _TimeoutErrors(FuturesTimeoutError, TimeoutError):
        """Before Python 3.11, futures had a `TimeoutError` of their own."""


class TaskTimeout(AmorsizeError, _TimeoutErrors):
    """A task was not done within its ``timeout``, and was given up.

    If it was running, its worker was ended, and with it the processes that it had started.
    """


class QueueFull(AmorsizeError, queue.Full):
    """As many tasks as ``max_pending`` allows are waiting for a worker; this one was not accepted."""


class SerializationError(AmorsizeError, pickle.PicklingError, TypeError):
    """A function, argument or result cannot be sent to or from a worker.

    It is a `TypeError` too, because that is what pickle raises for most such objects; the original is its
    ``__cause__``.
    """


class RemoteTraceback(Exception):
    """The traceback of an exception in a worker, as text; the ``__cause__`` of what the caller sees."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'
