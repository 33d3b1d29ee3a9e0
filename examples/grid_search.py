"""Grid search over a support vector classifier on scikit-learn's handwritten digits.

54 combinations of parameters are scored by five-fold cross-validation: first with
`AmorsizeExecutor`, which also shows its progress and its plan, then in a serial loop and
with `concurrent.futures.ProcessPoolExecutor`. All three must find the same scores.

Both pools are used as they come, nothing tuned, and their times include starting and
stopping the workers. The standard pool forks before Python 3.14, so its workers begin with
scikit-learn loaded; those of `AmorsizeExecutor` import it themselves.
"""

import os

# One thread for each fit, in this process and in all workers, so that only the number of
# processes differs between the three runs. Libraries read these when they are loaded.
os.environ.update(
    OMP_NUM_THREADS="1",
    OPENBLAS_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    VECLIB_MAXIMUM_THREADS="1",
)

import sys
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from sklearn.datasets import load_digits
from sklearn.model_selection import ParameterGrid, cross_val_score
from sklearn.svm import SVC

from amorsize_executor import AmorsizeExecutor

GRID = {
    "kernel": ["rbf", "poly"],
    "C": [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000],
    "gamma": [0.01, 0.03, 0.1],
}

images, labels = load_digits(return_X_y=True)
images = images / 16  # pixels from 0 to 1


def evaluate(params: dict[str, Any]) -> float:
    """Mean accuracy of five cross-validation fits with these parameters."""
    return float(cross_val_score(SVC(**params), images, labels, cv=5).mean())


def make_candidates() -> list[dict[str, Any]]:
    return list(ParameterGrid(GRID))


def main() -> int:
    candidates = make_candidates()
    print(f"Digits: {len(images)} images, {len(candidates)} candidates of 5 fits each\n", flush=True)

    started = time.perf_counter()
    with AmorsizeExecutor() as ex:
        scores = list(ex.map(evaluate, candidates, progress=True))
    amorsize_s = time.perf_counter() - started

    print(f"\n{ex.last_plan}\n")
    best = max(range(len(candidates)), key=scores.__getitem__)
    print(f"Best: {candidates[best]} with accuracy {scores[best]:.4f}\n", flush=True)

    started = time.perf_counter()
    serial_scores = [evaluate(params) for params in candidates]
    serial_s = time.perf_counter() - started

    started = time.perf_counter()
    with ProcessPoolExecutor() as pool:
        pool_scores = list(pool.map(evaluate, candidates))
    pool_s = time.perf_counter() - started

    for name, seconds in (
        ("serial loop", serial_s),
        ("ProcessPoolExecutor", pool_s),
        ("AmorsizeExecutor", amorsize_s),
    ):
        print(f"{name:20} {seconds:6.2f} s   {serial_s / seconds:4.2f} x serial")

    if not scores == serial_scores == pool_scores:
        print("The three runs disagree about the scores.", file=sys.stderr)
        return 1
    print("\nAll three runs found the same scores.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
