"""The errors that futures and maps get when something went wrong beside the task itself, in words for people."""

from __future__ import annotations

import errno
import signal
import sys
from concurrent.futures import BrokenExecutor
from typing import TYPE_CHECKING, Any

from . import lifecycle
from .workers import serialize
from .workers.process import add_note

if TYPE_CHECKING:
    from .workers.pools import Ended


def worker_died(event: Ended) -> BaseException:
    """What a task gets whose worker ended while it ran."""
    from .errors import RemoteTraceback, WorkerDied

    error = WorkerDied(
        f"worker process {event.pid} died while it was running this task ({_describe_exit(event.exitcode)}); "
        "the other tasks are not affected. retries=1 runs such a task once more",
        event.pid,
        event.exitcode,
    )
    if event.fault:
        error.__cause__ = RemoteTraceback(event.fault)
    return error


def memory_exceeded(event: Ended, used_nbytes: int, limit_nbytes: int) -> BaseException:
    """What a task gets that needs more memory than there is."""
    from .errors import MemoryLimitExceeded

    used = f"when it used {used_nbytes / 1e6:,.0f} MB" if used_nbytes else "before anybody saw how much it used"
    return MemoryLimitExceeded(
        f"worker process {event.pid} was ended while it was running this task, {used}: this process and its workers "
        f"have {limit_nbytes / 1e6:,.0f} MB (memory_limit, or what the container or machine has). No other task that "
        "needs memory ran beside it, so fewer workers would not help: give the task less to do, or the pool more "
        "memory",
        used_nbytes or None,
        limit_nbytes,
    )


def task_timeout(name: str, timeout_s: float, *, pid: int | None, was_waiting: bool) -> BaseException:
    """What a task gets that was not done in time; `pid`: of the worker that had it."""
    from .errors import TaskTimeout

    if was_waiting:
        what = "it was still waiting for a worker; more workers, or fewer tasks at a time (max_pending), would help"
    else:
        what = f"worker process {pid} is ended if it runs it, with the processes that it has started, and replaced"
    return TaskTimeout(f"{name} was not done within its timeout of {timeout_s:g} s: {what}")


def batch_timeout(name: str, timeout_s: float, *, was_waiting: bool) -> BaseException:
    """What a call gets that was to be run in a batch and was not done in time."""
    from .errors import TaskTimeout

    if was_waiting:
        what = "it was still waiting to be sent; more workers, or fewer calls at a time (max_pending), would help"
    else:
        what = "its batch goes on while another call of it has time left; then the worker is ended, and replaced"
    return TaskTimeout(f"a call of {name} was not done within its timeout of {timeout_s:g} s: {what}")


def queue_full(max_pending: int | None) -> BaseException:
    """What a submit raises that is one too many."""
    from .errors import QueueFull

    return QueueFull(
        f"{max_pending} or more tasks are waiting for a worker (max_pending={max_pending}): submit later, or with "
        'when_full="block"'
    )


def start_failure(event: Ended) -> BaseException:
    """Why workers cannot be started, told by the last one that could not."""
    if event.error is not None:
        return event.error
    return RuntimeError(
        f"three workers in a row ended before they were ready, the last one with {_describe_exit(event.exitcode)}"
        + (f"\n{event.fault}" if event.fault else "")
    )


def broken_pool() -> type[BrokenExecutor]:
    """`BrokenProcessPool`; its base if its module was not imported before the interpreter ends, which forbids it."""
    if lifecycle.is_interpreter_ending() and "concurrent.futures.process" not in sys.modules:
        return BrokenExecutor
    from concurrent.futures.process import BrokenProcessPool

    return BrokenProcessPool


def init_error(entry: Any) -> BaseException:
    """What an initializer raised in a worker."""
    try:
        return with_cause(*serialize.decode(entry, no_lease))
    except Exception as error:  # of a class that this process cannot make
        return add_note(error, "raised while the initializer's exception was unpickled")


def no_lease(block_id: int, start: int, stop: int) -> tuple[memoryview, int]:
    """For entries whose block could not be received."""
    raise no_descriptors()


def no_descriptors() -> OSError:
    """The error of a result that could not be received."""
    return OSError(
        errno.EMFILE,
        "too many open files: this process had no descriptor left to receive a result; raise its limit (ulimit -n)",
    )


def chained(error: BaseException, cause: BaseException) -> BaseException:
    """`error`, caused by `cause`."""
    error.__cause__ = cause
    return error


def with_cause(error: BaseException, text: str) -> BaseException:
    """`error` as it came from a worker, with the traceback it had there."""
    from .errors import RemoteTraceback

    # Past a __setattr__ that allows no changes, as that of a frozen dataclass.
    BaseException.__setattr__(error, "__cause__", RemoteTraceback(text))
    return error


def culprit(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Names the argument that cannot be pickled."""
    named = [(f"argument {i}", value) for i, value in enumerate(args)] + [(f"{k}=", v) for k, v in kwargs.items()]
    for name, value in named:
        try:
            serialize.check(value)
        except Exception:  # the error itself is raised by the caller; this only finds the place
            return f"{name}, a {type(value).__qualname__!r} object"
    return "its arguments"


def _describe_exit(exitcode: int | None) -> str:
    if exitcode is None:
        return "its exit status is unknown"
    if exitcode < 0:
        try:
            name = signal.Signals(-exitcode).name
        except ValueError:
            name = f"signal {-exitcode}"
        hint = ": perhaps the system's out-of-memory killer" if name == "SIGKILL" else ""
        return f"ended by {name}{hint}"
    return f"exit status {exitcode}"
