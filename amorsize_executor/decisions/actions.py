"""What the scheduler wants done: commands for whoever owns processes and channels."""

from __future__ import annotations

from typing import NamedTuple, Union

from .work import Chunk


class StartWorker(NamedTuple):
    """Start a process and call `worker_ready` when it answers."""

    worker_id: int


class SendChunk(NamedTuple):
    """Let a worker claim the items of a chunk, if it has a slot, and send it."""

    worker_id: int
    chunk: Chunk


class TakeBack(NamedTuple):
    """Claim what a worker has not begun of a chunk and call `taken_back` with how much that was."""

    worker_id: int
    chunk: Chunk


class RetireWorker(NamedTuple):
    """Let a worker end after what it has; `worker_died` follows."""

    worker_id: int


class KillWorker(NamedTuple):
    """End a worker at once; `worker_died` follows."""

    worker_id: int


class KillRunning(NamedTuple):
    """End a worker, and the processes that it has started, if it runs this item; `worker_died` follows.

    If it runs another item, or none, nothing happens to it.
    """

    worker_id: int
    chunk_id: int
    offset: int


class LoadResources(NamedTuple):
    """Let a worker build resources ahead of tasks, and call `load_done` for each."""

    worker_id: int
    resource_ids: tuple[int, ...]


class CloseResources(NamedTuple):
    """Let a worker close resources, behind the chunks that it has."""

    worker_id: int
    resource_ids: tuple[int, ...]


class FailItems(NamedTuple):
    """These items were running when their worker died, and may not run again.

    `is_late`: it was ended for that; `excess`: it has died for want of memory, and used so many bytes when that was
    last seen (0: it was not), of so many that all may use.
    """

    job_id: int | None
    items: tuple[int, ...]
    worker_id: int
    is_late: bool = False
    excess: tuple[int, int] | None = None


class ExpireTask(NamedTuple):
    """The time of a submitted task is over, or nobody wants it any more: it waited, or a worker has it."""

    task_id: int
    worker_id: int | None


class BreakPool(NamedTuple):
    """No worker can be started: everything that waits fails."""


Action = Union[  # noqa: UP007  (3.10 at run time)
    StartWorker,
    SendChunk,
    TakeBack,
    RetireWorker,
    KillWorker,
    KillRunning,
    LoadResources,
    CloseResources,
    FailItems,
    ExpireTask,
    BreakPool,
]
