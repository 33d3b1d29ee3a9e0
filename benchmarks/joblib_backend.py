"""scikit-learn and plain joblib loops on this package's backend, beside joblib's own.

``python -m benchmarks.joblib_backend [--processes N] [--rounds N] [--markdown FILE]``

Both backends take turns in a fresh process, in another order each round, and the medians of its rounds are its times;
workers are warm from a first round that is not timed. Processes differ more from one another than the rounds of one do,
so there are several, and their medians are quoted: of the times, and of the ratios, with the least and the most of
these. Needs scikit-learn.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from math import exp, log
from statistics import median
from time import perf_counter
from typing import Any

import joblib
import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.inspection import permutation_importance
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.svm import SVC

from amorsize_executor import register_joblib_backend
from benchmarks._measure import fresh_interpreter
from benchmarks._report import machine

BACKENDS = ("loky", "amorsize")
X, y = load_digits(return_X_y=True)
LARGE = np.random.default_rng(0).random((2_500, 1_000))


def square(x: int) -> int:
    return x * x


def column_mean(array: Any, i: int) -> float:
    return float(np.sort(array[:, i]).mean())


def grid_search() -> Any:
    search = GridSearchCV(SVC(), {"C": [0.1, 1, 10], "gamma": [1e-4, 1e-3, 1e-2]}, cv=3, n_jobs=-1)
    return search.fit(X, y).cv_results_["mean_test_score"].tolist()


def cross_validation() -> Any:
    return cross_val_score(RandomForestClassifier(30, random_state=0), X, y, cv=5, n_jobs=-1).tolist()


def forest() -> Any:
    model = RandomForestClassifier(100, random_state=0, n_jobs=-1).fit(X, y)
    return model.predict_proba(X[:5]).tolist()


def importance() -> Any:
    model = SVC(gamma=1e-3).fit(X[:600], y[:600])
    found = permutation_importance(model, X[600:900], y[600:900], n_repeats=2, random_state=0, n_jobs=-1)
    return found.importances_mean.tolist()


def tiny_calls() -> Any:
    return joblib.Parallel(n_jobs=-1)(joblib.delayed(square)(x) for x in range(20_000))


def large_array() -> Any:
    return joblib.Parallel(n_jobs=-1)(joblib.delayed(column_mean)(LARGE, i) for i in range(200))


WORK: dict[str, Callable[[], Any]] = {
    "GridSearchCV, SVC, 27 fits": grid_search,
    "cross_val_score, forest, 5 folds": cross_validation,
    "RandomForest, 100 trees": forest,
    "permutation_importance, 64 features": importance,
    "20,000 calls of nothing": tiny_calls,
    "200 calls that share 20 MB": large_array,
}


#: The first of these are scikit-learn's.
N_SKLEARN = 4


def run(backend: str, work: Callable[[], Any]) -> tuple[float, Any]:
    with joblib.parallel_config(backend=backend):
        started = perf_counter()
        found = work()
        return perf_counter() - started, found


def measure(rounds: int) -> dict[str, Any]:
    """Medians of this process's rounds in seconds, by work and backend, and whether the results are the same."""
    register_joblib_backend()
    found: dict[str, Any] = {}
    for name, work in WORK.items():
        times: dict[str, list[float]] = {backend: [] for backend in BACKENDS}
        results = [run(backend, work)[1] for backend in BACKENDS]
        for number in range(rounds):
            for backend in BACKENDS if number % 2 else reversed(BACKENDS):
                times[backend].append(run(backend, work)[0])
        found[name] = {backend: median(each) for backend, each in times.items()}
        found[name]["same"] = all(result == results[0] for result in results)
    return found


def line(name: str, found: list[dict[str, Any]]) -> tuple[str, float]:
    """A work's line of the table, from what each process found, and its ratio."""
    ratios = sorted(process["amorsize"] / process["loky"] for process in found)
    theirs, ours = (median(process[backend] for process in found) for backend in BACKENDS)
    same = "yes" if all(process["same"] for process in found) else "NO"
    times = f"{theirs * 1e3:.0f} ms | {ours * 1e3:.0f} ms"
    spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
    return f"| {name} | {times} | {median(ratios):.2f} | {spread} | {same} |", median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--markdown")
    parser.add_argument("--json", action="store_true", help="only the times of this process")
    given = parser.parse_args()
    if given.json:
        print(json.dumps(measure(given.rounds)))
        return
    command = ("-m", "benchmarks.joblib_backend", "--json", "--rounds", str(given.rounds))
    found = [json.loads(fresh_interpreter(*command)) for _ in range(given.processes)]
    lines = [
        "| work | loky | amorsize | ratio | in each process | same results |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    ratios = []
    for name in WORK:
        text, ratio = line(name, [process[name] for process in found])
        lines.append(text)
        ratios.append(ratio)
    for what, some in (("scikit-learn's", ratios[:N_SKLEARN]), ("all", ratios)):
        mean = exp(sum(map(log, some)) / len(some))
        lines.append(f"| geometric mean, {what} | | | {mean:.2f} | | |")
    print("\n".join(lines))
    if given.markdown:
        with open(given.markdown, "w", encoding="utf-8") as file:
            introduction = (__doc__ or "").split("\n", 1)[1]
            file.write(f"# joblib's loops on this backend and on joblib's own\n{introduction}\n")
            file.write(f"Measured on: {machine()}; {given.processes} processes of {given.rounds} rounds.\n\n")
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
