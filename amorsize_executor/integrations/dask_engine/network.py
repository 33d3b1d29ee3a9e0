"""What the way to the workers of a cluster costs: measured once for each cluster, in some 20 ms."""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from .host import echo

if TYPE_CHECKING:
    from distributed import Client

#: How often a message is sent to and fro.
_N_TRIPS = 5
#: Size of the large message, in bytes, and how often it is sent.
_LARGE_NBYTES, _N_LARGE = 2 << 20, 3


class Network(NamedTuple):
    """The way from this process to a worker.

    Attributes
    ----------
    round_trip_s
        A message and its answer, in seconds.
    s_a_byte
        What each byte takes more, in seconds.
    """

    round_trip_s: float = 2e-3
    s_a_byte: float = 1e-9


_known: dict[str, Network] = {}


def measure(client: Client) -> Network:
    """The network of a cluster; what is usual as long as it has no workers."""
    info = client.scheduler_info()
    cluster = str(info["id"])
    if cluster in _known:
        return _known[cluster]
    addresses = list(info["workers"])
    if not addresses:
        return Network()

    def trip(nbytes: int) -> float:
        begun = time.perf_counter()
        client.run(echo, bytes(nbytes), 0, workers=addresses[:1])
        return time.perf_counter() - begun

    trip(0)  # the first one imports
    round_trip_s = median(trip(0) for _ in range(_N_TRIPS))
    large_s = median(trip(_LARGE_NBYTES) for _ in range(_N_LARGE))
    _known[cluster] = Network(round_trip_s, max(large_s - round_trip_s, 0.0) / _LARGE_NBYTES)
    return _known[cluster]
