"""``amorsize demo``: one real job, three ways.

With scikit-learn: a grid search on its handwritten digits, five-fold cross-validation of each candidate. Without: the
complexity of every function in the standard library's own sources, file by file. Both pools are used as they come, and
their times include starting and stopping the workers.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import os
import sys
import sysconfig
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from ..decisions.plan import format_time
from ..executor import AmorsizeExecutor
from ..integrations.progress import is_watched
from . import Output, UserError

_GRID = ([0.1, 1.0, 10.0, 100.0, 1000.0], [0.001, 0.003, 0.01, 0.03, 0.1, 0.3])
#: Source files of the standard library that are analysed.
_MOST_FILES = 300
#: One thread for each fit, here and in all workers, so that only the number of processes differs.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class _Job(NamedTuple):
    """What is run, and what came out in words."""

    title: str
    func: Callable[[Any], Any]
    items: list[Any]
    conclusion: Callable[[list[Any], list[Any]], str]


def run(args: argparse.Namespace) -> Output:
    """Run the job and compare."""
    has_sklearn = importlib.util.find_spec("sklearn") is not None
    if args.job == "digits" and not has_sklearn:
        raise UserError("this job needs scikit-learn: pip install 'amorsize_executor[ml]', or use --job sources")
    job = _digits() if args.job == "digits" or (args.job == "auto" and has_sklearn) else _sources()
    items = job.items[: args.items]
    print(f"{job.title}: {len(items)} items", file=sys.stderr)
    job.func(items[0])  # imports what it needs, for all three alike
    times: dict[str, float] = {}

    began = time.perf_counter()
    with AmorsizeExecutor() as executor:
        results = list(executor.map(job.func, items, progress=is_watched()))
    times["AmorsizeExecutor"] = time.perf_counter() - began
    plan = executor.last_plan

    began = time.perf_counter()
    with ProcessPoolExecutor(executor.max_workers) as pool:
        pool_results = list(pool.map(job.func, items))
    times["ProcessPoolExecutor"] = time.perf_counter() - began

    began = time.perf_counter()
    serial_results = [job.func(item) for item in items]
    serial_s = times["serial loop"] = time.perf_counter() - began

    if not results == pool_results == serial_results:
        raise UserError("the three runs disagree about the results")
    lines = [str(plan), ""]
    for name in ("serial loop", "ProcessPoolExecutor", "AmorsizeExecutor"):
        lines.append(f"  {name:<20}{format_time(times[name]):>9}   {serial_s / times[name]:.2f} times serial")
    lines += ["", f"All three agree. {job.conclusion(items, results)}"]
    data = {
        "job": job.title,
        "n_items": len(items),
        "seconds": times,
        "speedup": serial_s / times["AmorsizeExecutor"],
        "n_workers": plan.n_workers if plan is not None else 0,
        "plan": str(plan),
    }
    return Output("\n".join(lines), data)


# ---------------------------------------------------------------------- scikit-learn's digits


def _digits() -> _Job:
    os.environ.update(dict.fromkeys(_THREADS, "1"))  # before the libraries are loaded
    candidates = [{"C": c, "gamma": gamma} for c, gamma in product(*_GRID)]
    return _Job("Grid search on handwritten digits, five fits each", score, candidates, _best)


def score(params: dict[str, float]) -> float:
    """Mean accuracy of five cross-validation fits with these parameters."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import cross_val_score
    from sklearn.svm import SVC

    images, labels = load_digits(return_X_y=True)
    return float(cross_val_score(SVC(**params), images / 16, labels, cv=5).mean())


def _best(items: list[Any], scores: list[Any]) -> str:
    best = max(range(len(items)), key=scores.__getitem__)
    return f"Best: {items[best]}, accuracy {scores[best]:.4f}."


# ---------------------------------------------------------------------- the standard library's sources


def _sources() -> _Job:
    folder = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(str(path) for path in (*folder.glob("*.py"), *folder.glob("*/*.py")) if "site-" not in str(path))
    return _Job("Complexity of the standard library's sources", complexity, paths[:_MOST_FILES], _most_complex)


_BRANCHES = (ast.If, ast.For, ast.While, ast.Try, ast.With, ast.BoolOp, ast.IfExp, ast.comprehension)


def complexity(path: str) -> tuple[int, str]:
    """The largest number of branches in a function of a file, and that function's name."""
    with open(path, "rb") as file:
        tree = ast.parse(file.read())
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    counted = [(sum(isinstance(n, _BRANCHES) for n in ast.walk(node)), node.name) for node in functions]
    return max(counted, default=(0, ""))


def _most_complex(items: list[Any], results: list[Any]) -> str:
    worst = max(range(len(items)), key=results.__getitem__)
    n, name = results[worst]
    return f"Most branches: {n} in {name}() of {Path(items[worst]).name}."
