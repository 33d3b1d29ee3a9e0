"""Bayesian optimisation with parallel candidates: Optuna proposes, the pool evaluates.

In each round the sampler is asked for several candidates before any of them is scored. `constant_liar` makes it assume
a bad score for those that are under way, so that they differ from each other. The executor stays open over all rounds:
its workers are warm after the first, and what an evaluation takes is known.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import optuna
from _compare import compare
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_score
from sklearn.svm import SVC

from amorsize_executor import AmorsizeExecutor

N_ROUNDS = 6
N_CANDIDATES = 6  # of a round

images, labels = load_digits(return_X_y=True)
images = images / 16  # pixels from 0 to 1

Params = dict[str, float]


def accuracy(params: Params) -> float:
    """Mean accuracy of five-fold cross-validation with these parameters."""
    return float(cross_val_score(SVC(**params), images, labels, cv=5).mean())


def propose(trial: optuna.Trial) -> Params:
    return {
        "C": trial.suggest_float("C", 1e-1, 1e3, log=True),
        "gamma": trial.suggest_float("gamma", 1e-3, 1, log=True),
    }


def search(evaluate: Callable[[Callable[[Params], float], list[Params]], Iterable[float]]) -> list[tuple[Any, ...]]:
    """Run all rounds; `evaluate` maps a function over the candidates of a round."""
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=6, constant_liar=True)
    )
    for _ in range(N_ROUNDS):
        trials = [study.ask() for _ in range(N_CANDIDATES)]
        candidates = [propose(trial) for trial in trials]
        for trial, score in zip(trials, evaluate(accuracy, candidates), strict=True):
            study.tell(trial, score)
    return sorted(((trial.value, trial.params) for trial in study.trials), key=lambda found: found[0])


def with_standard_pool() -> list[tuple[Any, ...]]:
    with ProcessPoolExecutor() as pool:
        return search(pool.map)


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    print(f"{N_ROUNDS} rounds of {N_CANDIDATES} candidates, of 5 fits each", flush=True)
    with AmorsizeExecutor() as ex:
        found = compare(
            {
                "serial loop": lambda: search(map),
                "ProcessPoolExecutor": with_standard_pool,
                "AmorsizeExecutor": lambda: search(ex.map),
                "... warm": lambda: search(ex.map),
            }
        )
        print(f"The last round:\n{ex.last_plan}\n")
    accuracy_of_best, best = found[-1]
    print(f"Best accuracy {accuracy_of_best:.4f} with C={best['C']:.3g}, gamma={best['gamma']:.3g}")


if __name__ == "__main__":
    main()
