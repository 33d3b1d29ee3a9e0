"""A Flask endpoint that predicts with `execute` and a closure over the model.

Each request makes its closure anew, as handlers do. What it captured is the same model, so workers keep what they have:
nothing of the model travels again until it is fitted again, and then the next request sees it. A small request is
answered where it arrived, a large one is spread over warm workers. The server is called through Flask's test client.
"""

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from _compare import compare
from flask import Flask, Response, jsonify, request
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier

from amorsize_executor import default_executor, execute

BATCH = 100  # rows
ROUTES = ("/serial", "/predict")

images, labels = load_digits(return_X_y=True)
model = RandomForestClassifier(n_estimators=200, random_state=0).fit(images, labels)

Mapped = Callable[[Callable[[Any], Any], list[Any]], list[Any]]


def make_app() -> Flask:
    app = Flask(__name__)

    @app.post("/predict")
    def predict() -> tuple[Response, int]:
        return answer(execute)

    @app.post("/serial")
    def predict_in_a_loop() -> tuple[Response, int]:
        return answer(lambda function, items: [function(item) for item in items])

    return app


def answer(mapped: Mapped) -> tuple[Response, int]:
    """Predict what the request asks for, a batch at a time."""
    rows = np.array((request.get_json(silent=True) or {}).get("rows", []), dtype=float)
    if rows.ndim != 2 or rows.shape[1] != images.shape[1]:
        return jsonify(error=f"rows must be lists of {images.shape[1]} numbers"), 400

    def predict_batch(batch: np.ndarray) -> np.ndarray:
        return model.predict_proba(batch).argmax(axis=1)

    batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    return jsonify(digits=np.concatenate(mapped(predict_batch, batches)).tolist()), 200


def main() -> None:
    client = make_app().test_client()

    def ask(route: str, rows: np.ndarray) -> list[int]:
        response = client.post(route, json={"rows": rows.astype(int).tolist()})
        assert response.status_code == 200, response.data
        return response.get_json()["digits"]

    large = images[:1500]
    print(f"10 requests of {len(large)} rows", flush=True)
    compare(
        {
            "serial loop": lambda: [ask("/serial", large) for _ in range(10)],
            "execute": lambda: [ask("/predict", large) for _ in range(10)],
            "... warm": lambda: [ask("/predict", large) for _ in range(10)],
        }
    )
    print(default_executor().last_plan)

    print("\nMedian of 30 requests of 1 row:")
    for route in ROUTES:
        times = []
        for row in images[:30]:
            started = perf_counter()
            ask(route, row[None])
            times.append(perf_counter() - started)
        print(f"  {route:10} {median(times) * 1e3:6.1f} ms")

    assert client.post("/predict", json={"rows": [[1, 2]]}).status_code == 400
    assert client.post("/predict", data="no JSON").status_code == 400

    model.fit(images, (labels + 1) % 10)  # in place
    assert ask("/predict", large) == ask("/serial", large)
    assert ask("/predict", large)[:3] == [1, 2, 3]
    print("\nAfter fitting again, the next request saw the new model.")


if __name__ == "__main__":
    main()
