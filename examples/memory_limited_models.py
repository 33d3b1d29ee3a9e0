"""Several large models trained at once, with a limit on the memory that all of them together may use.

Each training expands its features to all products of three, which takes a few hundred megabytes. How many of them fit
side by side depends on the machine, or here on `memory_limit`: workers are added only while their measured peak fits.
The peak of all processes together is printed for both, without a limit and with one.
"""

import numpy as np
from _compare import compare
from _memory import PeakMemory
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from amorsize_executor import AmorsizeExecutor

LIMIT = 900e6  # bytes, for this process and all workers

samples, labels = load_breast_cancer(return_X_y=True)
samples = np.tile(samples, (8, 1)) * np.random.default_rng(0).normal(1, 0.02, (8 * len(samples), samples.shape[1]))
labels = np.tile(labels, 8)


def accuracy(seed: int) -> float:
    """Of a linear model on all products of three of the 30 measurements: 5,456 features."""
    train, test, train_labels, test_labels = train_test_split(samples, labels, random_state=seed, train_size=0.5)
    model = make_pipeline(StandardScaler(), PolynomialFeatures(3), RidgeClassifier(solver="lsqr", max_iter=20))
    return round(float(model.fit(train, train_labels).score(test, test_labels)), 4)


def main() -> None:
    seeds = list(range(8))
    peaks = {}

    def with_limit(limit: float | None) -> list[float]:
        with PeakMemory(children=True) as peaks[limit], AmorsizeExecutor(memory_limit=limit, inline="never") as ex:
            found = list(ex.map(accuracy, seeds))
            print(f"\n{ex.last_plan}")
        return found

    compare(
        {
            "serial loop": lambda: [accuracy(seed) for seed in seeds],
            "no limit": lambda: with_limit(None),
            f"limit of {LIMIT / 1e6:.0f} MB": lambda: with_limit(LIMIT),
        }
    )
    for limit, peak in peaks.items():
        print(f"{'no limit' if limit is None else f'limit of {limit / 1e6:.0f} MB':22} peak {peak.peak / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
