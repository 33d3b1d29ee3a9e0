"""``amorsize optimize``: measure a function from the command line."""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..optimizer import OptimizationResult, optimize, save_config
from ..optimizer.configs import config_path
from . import Output, UserError


def run(args: argparse.Namespace) -> Output:
    """Measure, and save if asked to."""
    func = find_function(args.function)
    items = range(args.range) if args.data is None else read_items(Path(args.data))
    if args.save is not None:
        try:
            config_path(args.save)
        except ValueError as error:
            raise UserError(f"--save: {error}") from error
    try:
        result = optimize(
            func,
            items,
            sample_size=args.sample_size,
            max_workers=args.max_workers,
            memory_limit=args.memory_limit,
            cache_key=args.cache_key,
            profile=args.profile,
        )
    except (Exception, SystemExit) as error:  # of the function, or of a parameter
        notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
        raise UserError(f"{type(error).__name__}: {error}{notes}") from error
    text = str(result)
    if result.profile.report:
        text += f"\n\n{result.profile.report}"
    if args.save is not None:
        try:
            text += f"\n\nsaved as {save_config(result, args.save)}"
        except OSError as error:
            raise UserError(f"{text}\nthe result cannot be saved: {error}") from error
    return Output(text, _data(result))


def _data(result: OptimizationResult) -> dict[str, Any]:
    return {
        "n_jobs": result.n_jobs,
        "chunksize": result.chunksize,
        "estimated_speedup": result.estimated_speedup,
        "estimated_time": result.estimated_time,
        "n_items": result.n_items,
        "reason": result.reason,
        "warnings": list(result.warnings),
        "profile": asdict(result.profile),
    }


def find_function(name: str) -> Callable[[Any], Any]:
    """The function of a ``MODULE:FUNC``; modules of the working directory are found, too.

    Raises
    ------
    UserError
        If there is none.
    """
    module_name, _, path = name.partition(":")
    if not module_name or not path:
        raise UserError(f"MODULE:FUNC is expected, such as math:sqrt, got {name!r}")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(f"there is no module {error.name!r} (for {name!r})") from error
    except Exception as error:
        raise UserError(f"the module {module_name!r} cannot be imported: {type(error).__name__}: {error}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise UserError(f"the module {module_name!r} has no {path!r}")
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"{name} is no function, but of type {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def read_items(path: Path) -> Sequence[Any]:
    """The items of a file, by its suffix.

    Raises
    ------
    UserError
        If it cannot be read, or is not what its suffix says.
    """
    try:
        return _READERS.get(path.suffix.lower(), _read_lines)(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _read_lines(path: Path) -> Sequence[Any]:
    return path.read_text(encoding="utf-8").splitlines()


def _read_json(path: Path) -> Sequence[Any]:
    items = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(items, list):
        raise ValueError(f"a list of items is expected, got a value of type {type(items).__name__}")
    return items


def _read_csv(path: Path) -> Sequence[Any]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _read_array(path: Path) -> Sequence[Any]:
    import numpy

    array: Any = numpy.load(path, allow_pickle=False)
    if array.ndim == 0:
        raise ValueError("an array with rows is expected, got one of no dimension")
    return array  # type: ignore[no-any-return]


_READERS: dict[str, Callable[[Path], Sequence[Any]]] = {".json": _read_json, ".csv": _read_csv, ".npy": _read_array}
