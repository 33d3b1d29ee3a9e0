"""What it costs to call a function that carries a fitted model, again and again.

``python -m benchmarks._data_closure HOW CALLS`` prints what it measured as JSON; HOW: "closure", "share()",
"resource", "standard, fork" or "loky".
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import sys
from collections.abc import Iterator
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

OURS = ("closure", "share()", "resource")
BATCH = 8
FEATURES = 100
MIB = 1 << 20


class Network:
    """A small model with large weights, fitted in no time: two layers over random features."""

    def __init__(self, width: int = 6_000, n_outputs: int = 1_000) -> None:
        random = np.random.default_rng(0)
        self.hidden = random.standard_normal((FEATURES, width))
        self.output = random.standard_normal((width, n_outputs))

    def predict(self, x: Any) -> Any:
        """Return the largest output for each row."""
        return (np.maximum(x @ self.hidden, 0.0) @ self.output).argmax(axis=1)


def forest() -> Any:
    """A random forest of about 50 MB."""
    from sklearn.ensemble import RandomForestRegressor

    random = np.random.default_rng(0)
    x = random.random((20_000, FEATURES))
    return (
        RandomForestRegressor(30, max_features=5, n_jobs=2, random_state=0)
        .fit(x, random.random(20_000))
        .set_params(n_jobs=1)
    )


class Shipped:
    """Counts the bytes that go to workers: frames, and what is written to blocks."""

    def __init__(self) -> None:
        self.nbytes = 0

    def count(self) -> None:
        """Begin."""
        from amorsize_executor.workers import channel, warm

        post, write = channel.Channel.post, warm.Block.write

        def counted_post(this: Any, frame: Any) -> bool:
            self.nbytes += len(frame.data)
            return post(this, frame)

        def counted_write(this: Any, offset: int, buffer: memoryview) -> None:
            self.nbytes += buffer.nbytes
            write(this, offset, buffer)

        channel.Channel.post, warm.Block.write = counted_post, counted_write  # type: ignore[method-assign]


@contextlib.contextmanager
def opened(how: str) -> Iterator[Any]:
    """An executor whose `submit` is measured."""
    if how in OURS:
        from amorsize_executor import AmorsizeExecutor

        with AmorsizeExecutor() as executor:
            yield executor
    else:
        module = importlib.import_module("loky" if how == "loky" else "concurrent.futures")
        options = {} if how == "loky" else {"mp_context": multiprocessing.get_context("fork")}
        with module.ProcessPoolExecutor(2, **options) as executor:
            yield executor


class Bound:
    """What a request handler makes afresh each time: a function over the model. The standard pool pickles no lambda."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, x: Any) -> Any:
        """Predict."""
        return self.model.predict(x)


def same(obj: Any) -> Any:
    """Return the object."""
    return obj


def measure(how: str, kind: str, n_calls: int) -> dict[str, Any]:
    """Call a model in this process and in a worker."""
    import pickle

    model = forest() if kind == "forest" else Network()
    nbytes = len(pickle.dumps(model))
    batches = [np.random.default_rng(i).random((BATCH, FEATURES)) for i in range(n_calls)]
    local = []
    for batch in batches[:50]:
        started = perf_counter()
        model.predict(batch)
        local.append(perf_counter() - started)
    shipped = Shipped()
    if how in OURS:
        shipped.count()
    times, sent = [], []
    with opened(how) as executor, contextlib.ExitStack() as handles:
        carried = model
        if how == "share()":
            carried = handles.enter_context(executor.share(model))
        elif how == "resource":
            carried = handles.enter_context(executor.resource(same, model))
        for batch in batches:
            before = shipped.nbytes
            started = perf_counter()
            if how in OURS:
                result = executor.submit(lambda x: carried.predict(x), batch).result()
            else:
                result = executor.submit(Bound(carried), batch).result()
            times.append(perf_counter() - started)
            sent.append(shipped.nbytes - before)
            del result
    return {
        "nbytes": nbytes,
        "compute_s": median(local),
        "first_s": times[0],
        "call_s": median(times[1:]),
        "shipped": max(sent[5:]) if any(sent) else None,
    }


def main() -> None:
    """Print what was asked for on the command line."""
    how, kind, n_calls = sys.argv[1:]
    print(json.dumps(measure(how, kind, int(n_calls))))


if __name__ == "__main__":
    importlib.import_module("benchmarks._data_closure").main()
