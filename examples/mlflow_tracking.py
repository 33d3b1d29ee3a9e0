"""A plan that is found once, kept in a file, tracked with MLflow, and used by another process.

The first process measures the work with `optimize`, keeps the decision with `save_config`, and logs it. The second one,
tomorrow's job for example, takes it up with `load_config`, measures nothing, and logs what it really took. The store is
an SQLite file. The work is a permutation test of which of its measurements a classifier of wines relies on.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlflow
import numpy as np
from sklearn.datasets import load_wine
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_score

from amorsize_executor import execute, load_config, optimize, save_config

N_PERMUTATIONS = 60

samples, wines = load_wine(return_X_y=True)


def accuracy_without_order(seed: int) -> float:
    """Accuracy of a forest when one of the 13 measurements is shuffled."""
    rng = np.random.default_rng(seed)
    shuffled = samples.copy()
    rng.shuffle(shuffled[:, seed % samples.shape[1]])
    forest = RandomForestClassifier(n_estimators=40, random_state=0)
    return round(float(cross_val_score(forest, shuffled, wines, cv=3).mean()), 6)


def plan(folder: Path) -> None:
    """The first process: measure and decide."""
    result = optimize(accuracy_without_order, range(N_PERMUTATIONS))
    print(result, flush=True)
    with mlflow.start_run(run_name="plan"):
        mlflow.log_params({"n_jobs": result.n_jobs, "chunksize": result.chunksize, "reason": result.reason})
        mlflow.log_metrics({"estimated_speedup": result.estimated_speedup, "estimated_time_s": result.estimated_time})
        mlflow.log_artifact(str(save_config(result, folder / "permutations.json")))


def run(folder: Path) -> None:
    """The second process: do it as decided, and beside it as a loop."""
    config = load_config(folder / "permutations.json")
    with mlflow.start_run(run_name="job"):
        mlflow.log_params({"n_jobs": config.n_jobs, "chunksize": config.chunksize})
        started = time.perf_counter()
        found = execute(accuracy_without_order, range(N_PERMUTATIONS), n_jobs=config.n_jobs, chunksize=config.chunksize)
        took_s = time.perf_counter() - started
        started = time.perf_counter()
        in_a_loop = [accuracy_without_order(seed) for seed in range(N_PERMUTATIONS)]
        serial_s = time.perf_counter() - started
        assert found == in_a_loop
        mlflow.log_metrics({"time_s": took_s, "speedup": serial_s / took_s, "mean_accuracy": float(np.mean(found))})


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:///{folder}/runs.db"
        for step in ("plan", "run"):
            subprocess.run([sys.executable, __file__, step, folder], env=os.environ | {"STORE": store}, check=True)
        open_store(store, Path(folder))
        print("\nWhat MLflow knows:")
        for tracked in reversed(mlflow.search_runs(output_format="list")):
            print(f"  {tracked.info.run_name}: n_jobs={tracked.data.params['n_jobs']}")
            for name, value in sorted(tracked.data.metrics.items()):
                print(f"    {name:18} {value:8.3f}")


def open_store(uri: str, folder: Path) -> None:
    mlflow.set_tracking_uri(uri)
    if mlflow.get_experiment_by_name("permutations") is None:
        mlflow.create_experiment("permutations", artifact_location=(folder / "artifacts").as_uri())
    mlflow.set_experiment("permutations")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        step, folder = sys.argv[1], Path(sys.argv[2])
        open_store(os.environ["STORE"], folder)
        plan(folder) if step == "plan" else run(folder)
    else:
        main()
