"""What workers run for `benchmarks.serving`: in a module that all kinds of workers import, whatever starts them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

_model: Any = None


def load(path: str) -> Any:
    return pickle.loads(Path(path).read_bytes())


def load_global(path: str) -> None:
    """Initialize a worker."""
    global _model
    _model = load(path)


def predict_all(model: Any, rows: list[list[float]]) -> list[int]:
    return [int(digit) for digit in model.predict(np.array(rows))]


def predict_one(model: Any, row: list[float]) -> int:
    return predict_all(model, [row])[0]


def predict_global(row: list[float]) -> int:
    return predict_all(_model, [row])[0]


def rest(_: int) -> None:
    """Have a worker start."""
