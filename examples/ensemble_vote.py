"""An ensemble of different classifiers that vote: each is trained in a worker, and the majority decides.

The items are unfitted estimators, and they take very different times, from milliseconds to seconds. Each worker fits
one, and sends back its votes rather than the fitted model, which would be much larger.
"""

from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
from _compare import compare
from joblib import Parallel, delayed
from sklearn.datasets import load_digits
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from amorsize_executor import AmorsizeExecutor

images, labels = load_digits(return_X_y=True)
train_images, test_images, train_labels, test_labels = train_test_split(
    images, labels, test_size=0.5, random_state=0, stratify=labels
)


def make_members() -> list[Any]:
    """Estimators, not fitted yet."""
    return [
        HistGradientBoostingClassifier(max_iter=100, random_state=0),
        make_pipeline(StandardScaler(), MLPClassifier(hidden_layer_sizes=(200,), max_iter=300, random_state=0)),
        RandomForestClassifier(n_estimators=1000, random_state=0),
        ExtraTreesClassifier(n_estimators=1000, random_state=0),
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        SVC(gamma=0.001),
        KNeighborsClassifier(3),
        GaussianNB(),
    ]


def votes(member: Any) -> np.ndarray:
    """What an estimator takes the test images for, after training."""
    return member.fit(train_images, train_labels).predict(test_images)


def majority(ballots: list[np.ndarray]) -> np.ndarray:
    """The digit with most votes, for each image."""
    counts = np.array([(np.array(ballots) == digit).sum(axis=0) for digit in range(10)])
    return counts.argmax(axis=0)


def standard_pool(members: list[Any]) -> list[np.ndarray]:
    with ProcessPoolExecutor() as pool:
        return list(pool.map(votes, members))


def main() -> None:
    members = make_members()
    print(f"{len(members)} members, {len(train_images)} images to learn from", flush=True)
    with AmorsizeExecutor() as ex:
        ballots = compare(
            {
                "serial loop": lambda: [votes(member) for member in members],
                "ProcessPoolExecutor": lambda: standard_pool(members),
                "joblib": lambda: Parallel(n_jobs=-1)(delayed(votes)(member) for member in members),
                "AmorsizeExecutor": lambda: list(ex.map(votes, members)),
                "... warm": lambda: list(ex.map(votes, members)),
            },
            same=np.array_equal,
        )
        print(f"{ex.last_plan}\n")
    alone = [np.mean(ballot == test_labels) for ballot in ballots]
    print(
        f"Members alone {min(alone):.4f} to {max(alone):.4f}, together {np.mean(majority(ballots) == test_labels):.4f}"
    )


if __name__ == "__main__":
    main()
