"""The pattern of a web server: in each request a closure is made afresh over the same model of 5 MB.

In an interpreter of its own: requests of a batch, which are answered where they arrive, and requests of many, which are
spread over workers. Counted is what goes to workers beyond the rows themselves, and what a request costs beyond its
compute. In the end the model is fitted again, in place, and the next requests must see it.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks._data_closure import Shipped
from benchmarks._measure import fresh_interpreter
from benchmarks._pattern_probe import ONE_THREAD

LIMIT_S = 240.0
N_REQUESTS = 300
BATCH, N_BATCHES = 50, 64
"""Rows of a batch, and batches of a large request."""
LARGE_EVERY = 10
"""Of the requests each tenth is large."""
CODE = "import sys; from benchmarks._pattern_requests import main; main(sys.argv[1], int(sys.argv[2]))"


def network() -> Any:
    """Weights in a few large arrays."""
    from sklearn.neural_network import MLPClassifier

    return MLPClassifier(hidden_layer_sizes=(380, 350), max_iter=5, random_state=0)


def forest() -> Any:
    """Hundreds of small arrays."""
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(n_estimators=86, random_state=0)


MODELS: dict[str, Callable[[], Any]] = {"network": network, "forest": forest}


@dataclass(frozen=True)
class Requests:
    """What was found.

    Attributes
    ----------
    model_nbytes
        Of the pickled model.
    first_s
        What the first request took, in seconds.
    compute_s, request_s
        Of a request of one batch: a plain call, and all of it, in seconds (medians).
    loop_s, large_s
        Of a request of many batches: a loop over them, and all of it, in seconds (medians).
    shipped
        Bytes that went to workers in a large request, without its rows (median).
    n_shipped
        Requests in which the model travelled: once for each worker.
    is_refit_seen
        Whether the requests after the model was fitted again answered as it then did.
    n_requests
        How many there were.
    """

    model_nbytes: int
    first_s: float
    compute_s: float
    request_s: float
    loop_s: float
    large_s: float
    shipped: float
    n_shipped: int
    is_refit_seen: bool
    n_requests: int = N_REQUESTS

    @property
    def over_s(self) -> float:
        """What a request of one batch costs beyond its compute, in seconds."""
        return self.request_s - self.compute_s


def measure(model: str, n_requests: int = N_REQUESTS) -> Requests:
    """Measure in a fresh interpreter.

    Raises
    ------
    ProbeError
        It failed, or took too long.
    """
    return Requests(**json.loads(fresh_interpreter("-c", CODE, model, str(n_requests), limit_s=LIMIT_S)))


def main(name: str, n_requests: int) -> None:
    """Answer requests with a model, and print what was found."""
    os.environ.update(ONE_THREAD)
    warnings.simplefilter("ignore")  # five steps are not enough for the network, and enough for us
    json.dump(asdict(_requests(MODELS[name](), n_requests)), sys.stdout)


def _requests(model: Any, n_requests: int) -> Requests:
    import numpy as np
    from sklearn.datasets import load_digits

    from amorsize_executor import execute

    digits, labels = load_digits(return_X_y=True)
    model.fit(digits, labels)
    rng = np.random.default_rng(0)

    def handle(batches: list[Any]) -> list[Any]:
        return execute(lambda batch: model.predict(batch), batches)

    def rows(n_batches: int) -> list[Any]:
        return [digits[rng.integers(0, len(digits), BATCH)] for _ in range(n_batches)]

    model_nbytes = len(pickle.dumps(model))
    shipped = Shipped()
    shipped.count()
    times: dict[int, list[tuple[float, float]]] = {1: [], N_BATCHES: []}
    sent: list[int] = []
    for number in range(n_requests):
        batches = rows(1 if number % LARGE_EVERY else N_BATCHES)
        started = perf_counter()
        plain = [model.predict(batch) for batch in batches]
        loop_s = perf_counter() - started
        before = shipped.nbytes
        started = perf_counter()
        answers = handle(batches)
        times[len(batches)].append((loop_s, perf_counter() - started))
        sent.append(max(shipped.nbytes - before - sum(batch.nbytes for batch in batches), 0))
        assert all((a == b).all() for a, b in zip(answers, plain, strict=True))
    model.fit(digits, (labels + 1) % 10)
    seen = [
        bool((np.concatenate(handle(batches)) == model.predict(np.concatenate(batches))).all())
        for batches in (rows(1), rows(N_BATCHES))
    ]
    small, large = ([[t[i] for t in times[n][2:]] for i in (0, 1)] for n in (1, N_BATCHES))
    return Requests(
        model_nbytes=model_nbytes,
        first_s=times[N_BATCHES][0][1],
        compute_s=median(small[0]),
        request_s=median(small[1]),
        loop_s=median(large[0]),
        large_s=median(large[1]),
        shipped=median(sent[::LARGE_EVERY]),
        n_shipped=sum(nbytes > model_nbytes / 2 for nbytes in sent),
        is_refit_seen=all(seen),
        n_requests=n_requests,
    )
