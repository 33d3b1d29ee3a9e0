"""A process pool that decides by measuring how to run things. See `AmorsizeExecutor`."""

from __future__ import annotations

TYPE_CHECKING = False  # as of typing, which a worker does without (see `workers`)
if TYPE_CHECKING:
    from typing import Any

    from .batching import Batcher, BatchStats
    from .counters import MapStats
    from .decisions.cost_model import CostModel
    from .decisions.plan import Plan
    from .errors import (
        AmorsizeError,
        MemoryLimitExceeded,
        QueueFull,
        RemoteTraceback,
        SerializationError,
        TaskTimeout,
        WorkerDied,
    )
    from .executor import AmorsizeExecutor
    from .integrations.joblib_backend import register_joblib_backend
    from .optimizer import (
        OptimizationResult,
        Profile,
        StreamingOptimizationResult,
        default_executor,
        execute,
        load_config,
        optimize,
        optimize_streaming,
        save_config,
    )
    from .stats import ExecutorStats, TimeSummary, WorkerStats
    from .workers.resources import Resource
    from .workers.sharing import Shared

__version__ = "0.1.0"

__all__ = [
    "AmorsizeError",
    "AmorsizeExecutor",
    "BatchStats",
    "Batcher",
    "CostModel",
    "ExecutorStats",
    "MapStats",
    "MemoryLimitExceeded",
    "OptimizationResult",
    "Plan",
    "Profile",
    "QueueFull",
    "RemoteTraceback",
    "Resource",
    "SerializationError",
    "Shared",
    "StreamingOptimizationResult",
    "TaskTimeout",
    "TimeSummary",
    "WorkerDied",
    "WorkerStats",
    "default_executor",
    "execute",
    "load_config",
    "optimize",
    "optimize_streaming",
    "register_joblib_backend",
    "save_config",
]

#: Where names are, which are loaded at their first use: a worker imports this package, too, and needs none of the
#: executor (5 ms of its start); the exceptions derive from those of concurrent.futures.process, which takes 10 ms to
#: import; and who only wants the executor needs no optimizer.
_LAZY = {
    "AmorsizeExecutor": "executor",
    **dict.fromkeys(("BatchStats", "Batcher"), "batching"),
    "register_joblib_backend": "integrations.joblib_backend",
    "CostModel": "decisions.cost_model",
    "MapStats": "counters",
    "Plan": "decisions.plan",
    **dict.fromkeys(
        (
            "AmorsizeError",
            "MemoryLimitExceeded",
            "QueueFull",
            "RemoteTraceback",
            "SerializationError",
            "TaskTimeout",
            "WorkerDied",
        ),
        "errors",
    ),
    **dict.fromkeys(
        (
            "OptimizationResult",
            "Profile",
            "StreamingOptimizationResult",
            "default_executor",
            "execute",
            "load_config",
            "optimize",
            "optimize_streaming",
            "save_config",
        ),
        "optimizer",
    ),
    **dict.fromkeys(("ExecutorStats", "TimeSummary", "WorkerStats"), "stats"),
    "Resource": "workers.resources",
    "Shared": "workers.sharing",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        value = globals()[name] = getattr(import_module(f".{_LAZY[name]}", __name__), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
