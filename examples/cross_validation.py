"""Repeated k-fold cross-validation of a random forest on scikit-learn's handwritten digits.

Each fold is an item: the rows to train on and the rows to test on. The images themselves stand in a global variable,
which goes to each worker once, together with the function.
"""

from concurrent.futures import ProcessPoolExecutor

import numpy as np
from _compare import compare
from joblib import Parallel, delayed
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import RepeatedStratifiedKFold

from amorsize_executor import AmorsizeExecutor

images, labels = load_digits(return_X_y=True)

Fold = tuple[np.ndarray, np.ndarray]


def make_folds() -> list[Fold]:
    """Five folds, twice."""
    return list(RepeatedStratifiedKFold(n_splits=5, n_repeats=2, random_state=0).split(images, labels))


def accuracy(fold: Fold) -> float:
    """Share of the fold's test images that a forest recognises after training on the others."""
    train, test = fold
    forest = RandomForestClassifier(n_estimators=200, random_state=0).fit(images[train], labels[train])
    return float(forest.score(images[test], labels[test]))


def standard_pool(folds: list[Fold]) -> list[float]:
    with ProcessPoolExecutor() as pool:
        return list(pool.map(accuracy, folds))


def main() -> None:
    folds = make_folds()
    print(f"{len(folds)} folds of {len(images)} digits", flush=True)
    with AmorsizeExecutor() as ex:
        scores = compare(
            {
                "serial loop": lambda: [accuracy(fold) for fold in folds],
                "ProcessPoolExecutor": lambda: standard_pool(folds),
                "joblib": lambda: Parallel(n_jobs=-1)(delayed(accuracy)(fold) for fold in folds),
                "AmorsizeExecutor": lambda: list(ex.map(accuracy, folds)),
                "... warm": lambda: list(ex.map(accuracy, folds)),
            }
        )
        print(f"{ex.last_plan}\n")
    print(f"Accuracy {np.mean(scores):.4f}, standard deviation {np.std(scores):.4f}")


if __name__ == "__main__":
    main()
