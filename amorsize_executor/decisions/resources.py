"""Resources in workers: what they cost, who should have them, and which go when memory is short.

A resource is an object that a worker builds once and keeps for its tasks, a model for example. Loading it may take
seconds, so a task that needs it rather goes to a worker that has it, and even waits for one: as long as the queue
promises that this is shorter than to load it once more, and never longer than that took. So no task is later than twice
what it would have been by the better choice (the ski-rental rule), and a backlog worth a loading time gets another
worker.

Pure: the scheduler owns all of this.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

#: The latest loading time counts for this much beside those before it.
_LATEST_WEIGHT = 0.5
#: An idle worker is kept at most this many times `idle_timeout` for the resources that it has.
_MOST_TIMEOUTS = 60.0

Needs = frozenset[int]
"""The numbers of the resources that a task needs."""
NOTHING: Needs = frozenset()


class Resource:
    """What the scheduler knows of a resource.

    Attributes
    ----------
    load_s
        Time that a worker takes to build it, in seconds; None while no one has.
    nbytes
        Memory of a worker that it takes, in bytes, as last measured.
    is_warm
        Whether workers build it as they start.
    is_closing
        Whether it goes as soon as no task that has come needs it.
    """

    __slots__ = ("is_closing", "is_warm", "load_s", "nbytes")

    def __init__(self) -> None:
        self.load_s: float | None = None
        self.nbytes = 0
        self.is_warm = False
        self.is_closing = False

    def observe(self, load_s: float, nbytes: int) -> None:
        """A worker has built it."""
        self.load_s = load_s if self.load_s is None else self.load_s + _LATEST_WEIGHT * (load_s - self.load_s)
        self.nbytes = nbytes


def load_s(resources: Mapping[int, Resource], needs: Iterable[int]) -> float | None:
    """Seconds to build all of these; None if one was never built."""
    total_s = 0.0
    for resource_id in needs:
        resource = resources.get(resource_id)
        if resource is None or resource.load_s is None:
            return None
        total_s += resource.load_s
    return total_s


def pays_to_load(loading_s: float | None, wait_s: float | None, waited_s: float) -> bool:
    """Whether a task goes to a worker that must load what it needs, rather than wait for one that has it.

    Parameters
    ----------
    loading_s
        What loading takes, in seconds; None if that was never measured.
    wait_s
        How long those that wait will wait for a worker that has it, in seconds; None if that cannot be told.
    waited_s
        How long the first of them has waited, in seconds.
    """
    return loading_s is None or wait_s is None or waited_s + wait_s >= loading_s


def evictions(held: Mapping[int, int], needed: Collection[int], nbytes: int, budget_nbytes: int | None) -> list[int]:
    """Which resources a worker gives up, so that all fit into its budget as far as that is possible.

    Parameters
    ----------
    held
        Sizes of those that it has, in bytes; the one used least recently is the first.
    needed
        Those that stay.
    nbytes
        What is to be loaded beside them, in bytes.
    budget_nbytes
        Memory for all of a worker's resources, in bytes; None: no bound.

    Examples
    --------
    >>> evictions({1: 400, 2: 300, 3: 200}, needed=[1], nbytes=300, budget_nbytes=1000)
    [2]
    """
    if budget_nbytes is None:
        return []
    excess = sum(held.values()) + nbytes - budget_nbytes
    gone = []
    for resource_id, size in held.items():
        if excess <= 0:
            break
        if size and resource_id not in needed:
            gone.append(resource_id)
            excess -= size
    return gone


def budget_nbytes(room_nbytes: float, n_workers: int, bare_nbytes: int) -> int:
    """Memory for the resources of one worker, in bytes.

    Parameters
    ----------
    room_nbytes
        What all workers together may use, in bytes.
    n_workers
        Workers that share it.
    bare_nbytes
        What a worker uses without resources, in bytes.
    """
    return max(int(room_nbytes / max(n_workers, 1)) - bare_nbytes, 0)


def idle_limit_s(idle_timeout_s: float, start_s: float, loading_s: float) -> float:
    """How long an idle worker is kept, in seconds: in proportion to what it takes to have its like again.

    Parameters
    ----------
    idle_timeout_s
        How long one is kept that has no resources, in seconds.
    start_s
        What the start of a worker takes, in seconds.
    loading_s
        What it has taken to load its resources, in seconds.
    """
    return idle_timeout_s * min(1.0 + loading_s / start_s, _MOST_TIMEOUTS)
