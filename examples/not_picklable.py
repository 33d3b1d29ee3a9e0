"""Functions that plain pickle refuses, or takes only from an importable module.

A lambda, a closure over a fitted model that returns instances of a class of this script, and a bound method: what
`AmorsizeExecutor` makes of each is checked against a plain loop, and what the standard pool makes of it is shown.
"""

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from amorsize_executor import AmorsizeExecutor


@dataclass
class Verdict:
    """What is returned: an instance of a class that only this script knows."""

    wine: int
    certainty: float


class Scale:
    """Its bound method carries the state of the object."""

    def __init__(self, samples: np.ndarray) -> None:
        self.low, self.high = samples.min(axis=0), samples.max(axis=0)

    def apply(self, sample: np.ndarray) -> float:
        return float(((sample - self.low) / (self.high - self.low)).mean())


def make_taster(model: Any) -> Callable[[np.ndarray], Verdict]:
    """A closure over a fitted model."""

    def taste(sample: np.ndarray) -> Verdict:
        probabilities = model.predict_proba(sample[None])[0]
        return Verdict(int(probabilities.argmax()), round(float(probabilities.max()), 6))

    return taste


def with_standard_pool(function: Callable[[Any], Any], items: list[Any]) -> str:
    """What the standard pool makes of a function."""
    try:
        with ProcessPoolExecutor() as pool:
            list(pool.map(function, items[:2]))
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:60]}"
    return "works"


def main() -> None:
    samples, wines = load_wine(return_X_y=True)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(samples, wines)
    functions: dict[str, Callable[[Any], Any]] = {
        "lambda": lambda sample: float(sample @ sample),
        "closure over a model": make_taster(model),
        "bound method": Scale(samples).apply,
    }
    with AmorsizeExecutor(inline="never") as ex:  # so that everything really travels
        for name, function in functions.items():
            started = time.perf_counter()
            ours = list(ex.map(function, samples))
            taken_s = time.perf_counter() - started
            assert ours == [function(sample) for sample in samples], name
            print(f"{name}: the same as in a loop, in {taken_s * 1e3:.0f} ms; the first is {ours[0]}")
            print(f"  standard pool: {with_standard_pool(function, list(samples))}", flush=True)


if __name__ == "__main__":
    main()
