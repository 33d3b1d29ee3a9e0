"""What the dispatcher asks of a pool of workers, wherever they run, and of an engine, which makes such a pool.

`pool.WorkerPool` has processes of this machine; engines for clusters are in `integrations`.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from .channel import Frame


class Message(NamedTuple):
    """A worker has sent something; `block_fd` is now the receiver's to close."""

    worker_id: int
    content: tuple[Any, ...]
    block_fd: int | None


class Ended(NamedTuple):
    """A worker is gone (or could not be started: `error`).

    Attributes
    ----------
    worker_id
        Its number.
    pid, exitcode
        Its process, and how that ended; None where that is not known.
    running
        (chunk id, offset, number) of the items that it was running; None when it ran nothing.
    fault
        What is known about the reason, for people.
    error
        Why it could not be started.
    is_guess
        What it was running is not known: its oldest item without a result has to stand for it.
    is_killed
        `Pool.kill` has sent it SIGKILL.
    """

    worker_id: int
    pid: int | None
    exitcode: int | None
    running: tuple[int, int, int] | None
    fault: str
    error: Exception | None = None
    is_guess: bool = False
    is_killed: bool = False


class Pool(Protocol):
    """Workers with a channel each. Owned by the I/O thread; methods above `start` may be called by any thread."""

    #: None until `prepare` was called.
    context: Any

    @property
    def is_forking(self) -> bool:
        """Whether workers have what this process had in memory when they started."""

    def prepare(self) -> None:
        """Import what the start of a worker takes, if that was not done."""

    @property
    def can_start(self) -> bool:
        """Whether workers can be started even while the interpreter ends."""

    def post(self, worker_id: int, frame: Frame) -> None:
        """Send a frame to a worker; dropped if the worker is gone (its end is or will be reported)."""

    def offer(self, worker_id: int, slot: int, n_items: int) -> None:
        """Let a worker claim the items of the chunk that is about to be sent."""

    def take_back(self, worker_id: int, slot: int, chunk_id: int) -> int | None:
        """Claim what is left of a worker's chunk: that many of its last items will not run there. Does not block.

        Returns
        -------
        int or None
            None if the number comes later, in a message `protocol.TAKEN`.
        """

    def known_functions(self, worker_id: int) -> set[int]:
        """Ids of functions that were sent to a worker. A hint: the worker may have forgotten some."""

    def wake(self) -> None:
        """Make a running or the next `wait` return soon."""

    def nudge(self) -> None:
        """Like `wake`, without a lock: for code that may run at any point of any thread (finalizers)."""

    def kill(self, worker_id: int, signum: int = signal.SIGKILL) -> None:
        """End a worker now."""

    def has(self, worker_id: int) -> bool:
        """Whether a worker was started and its end was not told."""

    def pid(self, worker_id: int) -> int | None:
        """Process id of a worker of this machine; None if it has ended."""

    def running(self, worker_id: int) -> tuple[int, int, int] | None:
        """What a worker says it runs: (chunk id, offset, count), the count being 0 or 1; by the I/O thread."""

    def pids(self) -> dict[int, int]:
        """Process ids of this machine, by worker."""

    def launch(self, worker_id: int) -> None:
        """Begin the start of a worker in this thread, if that can be; `start` is to follow."""

    def is_launched(self, worker_id: int) -> bool:
        """Whether the start of a worker was begun, and neither `start` nor `drop` has followed."""

    def drop(self, worker_id: int) -> None:
        """Undo what `launch` has begun: nobody wants the worker any more."""

    def start(self, worker_id: int) -> Ended | None:
        """Start a worker; `Ended` with the error if that is not possible."""

    def wait(
        self, timeout: float | None, on_message: Callable[[Message], object], on_end: Callable[[Ended], object]
    ) -> bool:
        """Wait until something happens, at most `timeout` seconds, and tell what did; False when nothing did."""

    def close(self) -> None:
        """Release everything; workers must have ended."""


class Engine(Protocol):
    """Where workers run, if not as processes of this machine.

    Attributes
    ----------
    carry_s_a_byte
        Seconds that a byte takes on its way to a worker.
    resource_nbytes
        Bytes that the resources of one worker may take; None: no bound.
    """

    carry_s_a_byte: float
    resource_nbytes: int | None

    def make_pool(
        self, initializer: Callable[..., object] | None, initargs: tuple[Any, ...], on_size: Callable[[int], object]
    ) -> Pool:
        """A pool of such workers.

        Parameters
        ----------
        initializer, initargs
            To be called in each process that has workers, before their first task.
        on_size
            Called from `Pool.wait` with the number of workers that have room at once, whenever it has changed.
        """
