"""A process pool that decides by measuring how to run things. See `AmorsizeExecutor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .decisions.cost_model import CostModel
from .decisions.planner import Plan
from .executor import AmorsizeExecutor

if TYPE_CHECKING:
    from .errors import AmorsizeError, RemoteTraceback, SerializationError, WorkerDied
    from .workers.sharing import Shared

__version__ = "0.1.0"

__all__ = [
    "AmorsizeError",
    "AmorsizeExecutor",
    "CostModel",
    "Plan",
    "RemoteTraceback",
    "SerializationError",
    "Shared",
    "WorkerDied",
]


def __getattr__(name: str) -> Any:
    # The exceptions derive from those of concurrent.futures.process, which takes 10 ms to import.
    if name in ("AmorsizeError", "RemoteTraceback", "SerializationError", "WorkerDied"):
        from . import errors

        return getattr(errors, name)
    if name == "Shared":
        from .workers.sharing import Shared

        return Shared
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
