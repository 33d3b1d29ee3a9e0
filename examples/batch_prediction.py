"""Prediction for 100,000 samples, in two ways: with the model in each item, and with a model that each worker keeps.

Services often hand over `(model_bytes, X_batch)` pairs: self-contained, but the model is unpickled for each batch.
Kept by the worker, it is loaded once. Both are compared with their loops. The samples are scikit-learn's handwritten
digits, shifted and with noise.
"""

import pickle
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from _compare import compare
from _models import saved_model
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier

from amorsize_executor import AmorsizeExecutor

N_SAMPLES = 100_000
BATCH = 1_000


def make_model_bytes() -> bytes:
    return pickle.dumps(RandomForestClassifier(n_estimators=100, random_state=0).fit(*load_digits(return_X_y=True)))


def make_batches(n_samples: int = N_SAMPLES) -> list[np.ndarray]:
    """Digits, each moved by up to a pixel, with some noise."""
    rng = np.random.default_rng(0)
    digits = load_digits().images[rng.integers(0, 1797, n_samples)]
    moved = np.stack([np.roll(digits, (y, x), (1, 2)) for y in (-1, 0, 1) for x in (-1, 0, 1)])
    chosen = moved[rng.integers(0, len(moved), n_samples), np.arange(n_samples)].reshape(n_samples, -1)
    samples = (chosen + rng.normal(0, 0.5, chosen.shape)).astype(np.float32)
    return [samples[start : start + BATCH] for start in range(0, n_samples, BATCH)]


def predict_with_bytes(item: tuple[bytes, np.ndarray]) -> np.ndarray:
    """Unpickle the model that came with the batch, and predict."""
    model_bytes, batch = item
    return pickle.loads(model_bytes).predict(batch)


def predict_with_file(item: tuple[Path, np.ndarray]) -> np.ndarray:
    """Predict with the model that this process has loaded from a file."""
    path, batch = item
    return saved_model(path).predict(batch)


def standard_pool(function, items):
    with ProcessPoolExecutor() as pool:
        return list(pool.map(function, items))


def main() -> None:
    model_bytes, batches = make_model_bytes(), make_batches()
    with tempfile.TemporaryDirectory() as folder, AmorsizeExecutor() as ex:
        path = Path(folder) / "model.pickle"
        path.write_bytes(model_bytes)
        for title, function, items in (
            ("Model in each item", predict_with_bytes, [(model_bytes, batch) for batch in batches]),
            ("Model kept by each worker", predict_with_file, [(path, batch) for batch in batches]),
        ):
            print(f"{title}: {N_SAMPLES} samples, a model of {len(model_bytes) / 1e6:.1f} MB", flush=True)
            compare(
                {
                    "serial loop": lambda f=function, i=items: [f(item) for item in i],
                    "ProcessPoolExecutor": lambda f=function, i=items: standard_pool(f, i),
                    "AmorsizeExecutor": lambda f=function, i=items: list(ex.map(f, i)),
                    "... warm": lambda f=function, i=items: list(ex.map(f, i)),
                },
                same=np.array_equal,
            )
            print(f"{ex.last_plan}\n", flush=True)


if __name__ == "__main__":
    main()
