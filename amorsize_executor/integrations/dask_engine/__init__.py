"""Workers on a Dask cluster: `AmorsizeExecutor(engine=client)`.

The scheduler, the plans and the worker's loop are those of processes on this machine. What is here is a second pool
(`pool`), which carries frames to workers in threads of Dask workers (`host`), over Dask's own connections: a Dask actor
in each Dask worker takes what is for its workers, and is polled for what they have sent. So it works wherever the
client does, through TLS and gateways.

    this process                                         a Dask worker

    dispatcher -- DaskPool -- event loop  == actor ==>   Host -- serve, serve, ...   (Dask tasks, one a thread)

Why not a Dask task for each chunk: its results would come when it is done, nothing of it could be taken back, a death
would not tell what ran, and each would cost the Dask scheduler some 0.3 ms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import DaskEngine


def engine_of(client: Any) -> DaskEngine:
    """The engine of a Dask client.

    Raises
    ------
    ImportError
        If Dask's distributed is not installed.
    TypeError, ValueError
        If it is no client, or one that cannot be used.
    """
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "engine= runs tasks on a Dask cluster; distributed is not installed: pip install 'amorsize_executor[dask]'"
        ) from error
    from .engine import DaskEngine

    return DaskEngine(client)
