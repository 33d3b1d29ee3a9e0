"""Predictions of a Keras network that each worker loads once.

A small network is trained for a moment and saved to a file; workers load it from there, since a Keras model does not
travel well in a pickle, and TensorFlow must not be forked once it has run. TensorFlow is large (1.5 GB), so this
example is not part of the tests: `pip install tensorflow-cpu`, then run it.
"""

import os

# TensorFlow reads these when it is loaded, here and in the workers.
os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", TF_NUM_INTRAOP_THREADS="1", TF_NUM_INTEROP_THREADS="1")

import tempfile
from pathlib import Path

import keras
import numpy as np
from _compare import compare
from _models import keras_model
from sklearn.datasets import load_digits

from amorsize_executor import AmorsizeExecutor

N_BATCHES = 60
BATCH = 500

images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8, 1) / 16  # pixels from 0 to 1


def train(path: Path) -> None:
    """Train a convolutional network and write it to a file."""
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.layers.Conv2D(64, 3, activation="relu", padding="same"),
            keras.layers.Conv2D(64, 3, activation="relu", padding="same"),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    network.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    network.fit(images, labels, epochs=3, verbose=0)
    network.save(path)


def predict(item: tuple[Path, np.ndarray]) -> np.ndarray:
    """The digits of a batch, from the network that this process has loaded."""
    path, batch = item
    return keras_model(path).predict_on_batch(batch).argmax(axis=1)


def main() -> None:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder, AmorsizeExecutor(inline="never") as ex:
        path = Path(folder) / "network.keras"
        train(path)
        items = [(path, images[rng.integers(0, len(images), BATCH)]) for _ in range(N_BATCHES)]
        print(f"{len(items)} batches of {BATCH} digits", flush=True)
        predict(items[0])  # the loop should not be charged for loading the network
        compare(
            {
                "serial loop": lambda: [predict(item) for item in items],
                "AmorsizeExecutor": lambda: list(ex.map(predict, items)),
                "... warm": lambda: list(ex.map(predict, items)),
            },
            same=np.array_equal,
        )
        print(ex.last_plan)


if __name__ == "__main__":
    main()
