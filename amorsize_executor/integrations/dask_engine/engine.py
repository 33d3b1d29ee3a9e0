"""What a cluster has for an executor: threads, memory, and the way to it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from distributed import Client

from ...decisions.cost_model import CostModel
from ...workers.process import not_picklable
from ...workers.serialize import dumps, name_of
from .network import measure
from .pool import DaskPool

#: Part of a Dask worker's memory that resources may take, in all its threads: Dask pauses a worker at 0.8.
_RESOURCES_PART = 0.6
#: A worker comes up in about this time, in seconds, where a Dask worker has a thread for it.
WORKER_START_S = 0.02


class DaskEngine:
    """A Dask cluster as a place for workers.

    Attributes
    ----------
    n_threads
        Threads that the cluster has now.
    network
        What the way there costs.
    idle_timeout_s
        After which idle workers leave, in seconds, if nothing else was asked for: they hold threads that others may
        want, and come back soon.
    carry_s_a_byte, resource_nbytes
        See `workers.pools.Engine`.

    Parameters
    ----------
    client
        A client that is connected. It stays the user's: nothing here closes it.

    Raises
    ------
    TypeError
        If it is no client.
    ValueError
        If it is asynchronous, or closed.
    """

    idle_timeout_s = 0.25

    def __init__(self, client: Client) -> None:
        if not isinstance(client, Client):
            raise TypeError(
                f"engine must be a distributed.Client, or None for processes of this machine; got {client!r}"
            )
        if client.asynchronous:
            raise ValueError(
                "engine must be a synchronous client: an iterator of results would block the event loop that brings "
                "them. Connect a second one, Client(address), outside of the event loop"
            )
        if client.status != "running":
            raise ValueError(f"engine must be a client that is connected; this one is {client.status!r}")
        self.client = client
        self._pid = os.getpid()
        workers = client.scheduler_info()["workers"].values()
        self.n_threads = sum(worker["nthreads"] for worker in workers)
        rooms = [worker["memory_limit"] / worker["nthreads"] for worker in workers if worker["memory_limit"]]
        self.resource_nbytes: int | None = int(min(rooms) * _RESOURCES_PART) if rooms else None
        self.network = measure(client)
        self.carry_s_a_byte = self.network.s_a_byte

    def make_cost_model(self) -> CostModel:
        """One that knows the network and nothing else: functions take other times there than here."""
        return CostModel(worker_start_s=WORKER_START_S, chunk_overhead_s=self.network.round_trip_s)

    def make_pool(
        self, initializer: Callable[..., object] | None, initargs: tuple[Any, ...], on_size: Callable[[int], object]
    ) -> DaskPool:
        """A pool of workers on the cluster."""
        if os.getpid() != self._pid:
            raise RuntimeError("a Dask client does not survive a fork: connect another one in the child process")
        init: bytes | None = None
        if initializer is not None:
            try:
                init = dumps((initializer, initargs))
            except Exception as error:
                what = f"the initializer {name_of(initializer)} or one of its arguments"
                raise not_picklable(what, error) from error.__cause__
        return DaskPool(self.client, init, on_size)
