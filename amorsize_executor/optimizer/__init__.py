"""The functions for people with a function and its items, and all that they need: see `functions`."""

from __future__ import annotations

from .configs import load_config, save_config
from .executors import default_executor
from .functions import execute, optimize
from .results import OptimizationResult, Profile, StreamingOptimizationResult
from .streaming import optimize_streaming

__all__ = [
    "OptimizationResult",
    "Profile",
    "StreamingOptimizationResult",
    "default_executor",
    "execute",
    "load_config",
    "optimize",
    "optimize_streaming",
    "save_config",
]
