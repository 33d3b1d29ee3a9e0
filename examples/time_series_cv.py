"""Time series cross-validation with an expanding window, on weekly measurements of carbon dioxide on Mauna Loa.

Each fold trains on everything before a date and predicts the weeks behind it, so the folds become longer and longer:
the last one takes many times as long as the first. Handing them out in equal groups would leave one worker with most of
the work; here whoever is free takes the next.
"""

from concurrent.futures import ProcessPoolExecutor

import numpy as np
from _compare import compare
from joblib import Parallel, delayed
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.model_selection import TimeSeriesSplit
from statsmodels.datasets import co2

from amorsize_executor import AmorsizeExecutor

N_FOLDS = 30
N_LAGS = 52  # weeks that the model sees

series = co2.load_pandas().data["co2"].interpolate().to_numpy()
# The model predicts by how much the next week differs from this one, from the differences of the year before.
differences = np.lib.stride_tricks.sliding_window_view(np.diff(series), N_LAGS + 1)
past, following = differences[:, :-1], differences[:, -1]

Fold = tuple[np.ndarray, np.ndarray]


def make_folds() -> list[Fold]:
    """Windows that start at the first week and end later and later, each with the weeks behind it."""
    return list(TimeSeriesSplit(n_splits=N_FOLDS).split(past))


def error(fold: Fold) -> float:
    """Mean absolute error of the forecasts behind a window, in parts per million."""
    train, test = fold
    model = GradientBoostingRegressor(n_estimators=40, random_state=0).fit(past[train], following[train])
    return float(np.abs(model.predict(past[test]) - following[test]).mean())


def standard_pool(folds: list[Fold]) -> list[float]:
    with ProcessPoolExecutor() as pool:
        return list(pool.map(error, folds))


def main() -> None:
    folds = make_folds()
    print(f"{len(folds)} folds, of {len(folds[0][0])} to {len(folds[-1][0])} weeks", flush=True)
    with AmorsizeExecutor() as ex:
        errors = compare(
            {
                "serial loop": lambda: [error(fold) for fold in folds],
                "ProcessPoolExecutor": lambda: standard_pool(folds),
                "joblib": lambda: Parallel(n_jobs=-1)(delayed(error)(fold) for fold in folds),
                "AmorsizeExecutor": lambda: list(ex.map(error, folds)),
                "... warm": lambda: list(ex.map(error, folds)),
            }
        )
        print(f"{ex.last_plan}\n")
    print(f"Mean absolute error {np.mean(errors):.3f} ppm; of 'no change' {np.abs(following).mean():.3f} ppm")


if __name__ == "__main__":
    main()
