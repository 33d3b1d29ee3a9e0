"""Results on disk: which numbers were chosen, for another process or another day, as JSON that a person can read.

A file is complete or not there: it is written beside its place and then moved. Loading trusts nothing in it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import re
import sys
import time
import warnings
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from .. import machine
from .arguments import check_flag, shown
from .results import OptimizationResult, Profile, StreamingOptimizationResult, format_nbytes

_FORMAT = "amorsize_executor.config"
#: Raised when a file could be misread by what knew only the version before.
_VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
#: A config has less than a kilobyte for each line of a profile's report; what is larger is something else.
_MOST_NBYTES = 1 << 20


def save_config(result: OptimizationResult, name_or_path: str | os.PathLike[str], *, overwrite: bool = True) -> Path:
    """Save what was chosen, without the data.

    Parameters
    ----------
    result
        Of `optimize` or `optimize_streaming`.
    name_or_path
        A name (letters, digits, ``._-``), kept in the user's configuration folder, or a path: what has a separator or
        ends with ``.json``, or any `os.PathLike`. Folders are made as needed.
    overwrite
        Whether an existing file is replaced.

    Returns
    -------
    Path
        Of the file, readable by its owner only.

    Raises
    ------
    FileExistsError
        If it exists and `overwrite` is False.
    IsADirectoryError, NotADirectoryError
        If it is a folder; if it lies in something that is none.
    TypeError, ValueError
        For a parameter of the wrong type, or a name with other characters.

    Examples
    --------
    >>> import tempfile
    >>> from amorsize_executor import load_config, optimize, save_config
    >>> result = optimize(abs, range(100))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save_config(result, f"{folder}/absolute.json")
    ...     load_config(path).n_jobs == result.n_jobs
    True
    """
    if not isinstance(result, OptimizationResult):
        raise TypeError(f"result must be what optimize returns, got {shown(result)}")
    check_flag("overwrite", overwrite)
    path = config_path(name_or_path)
    if path.is_dir():
        raise _is_folder(path)
    content: dict[str, Any] = {
        "format": _FORMAT,
        "version": _VERSION,
        "kind": "streaming" if isinstance(result, StreamingOptimizationResult) else "batch",
        "saved_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": _this_machine(),
        "n_jobs": result.n_jobs,
        "chunksize": result.chunksize,
        "estimated_speedup": result.estimated_speedup,
        "estimated_time": None if math.isnan(result.estimated_time) else result.estimated_time,
        "reason": result.reason,
        "warnings": list(result.warnings),
        "n_items": result.n_items,
        "profile": asdict(result.profile),
    }
    if isinstance(result, StreamingOptimizationResult):
        content["buffersize"] = result.buffersize
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise NotADirectoryError(f"name_or_path must lie in a folder, and part of {path.parent} is a file") from None
    _write(path, json.dumps(content, indent=2) + "\n", overwrite=overwrite)
    return path


def load_config(name_or_path: str | os.PathLike[str]) -> OptimizationResult:
    """A result that `save_config` saved: the same numbers, without the data.

    Parameters
    ----------
    name_or_path
        As for `save_config`.

    Returns
    -------
    OptimizationResult
        A `StreamingOptimizationResult` if one was saved. If this machine has another number of CPUs than the one that
        saved it, or too little memory for so many workers, `warnings` says so, and so does a Python warning.

    Raises
    ------
    FileNotFoundError
        If there is none.
    IsADirectoryError
        If it is a folder.
    TypeError, ValueError
        If it is damaged, no config at all, or was written by a newer version; or for a name of the wrong type or with
        other characters.

    Examples
    --------
    >>> load_config("/nowhere/nightly.json")
    Traceback (most recent call last):
    FileNotFoundError: there is no config '/nowhere/nightly.json' (looked for /nowhere/nightly.json)
    """
    path = config_path(name_or_path)
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST_NBYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        where = path.absolute()
        raise FileNotFoundError(f"there is no config {os.fspath(name_or_path)!r} (looked for {where})") from None
    except IsADirectoryError:
        raise _is_folder(path) from None
    try:
        content = json.loads(data) if len(data) <= _MOST_NBYTES else None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the config {path} is damaged: it is no JSON ({error})") from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f"{path} is no config of amorsize_executor")
    version = content.get("version")
    if type(version) is int and version > _VERSION:  # what else it may be is up to _decode
        raise ValueError(
            f"the config {path} was written by a newer version of amorsize_executor (format {version}, this one reads "
            f"up to {_VERSION}): upgrade, or run optimize again"
        )
    try:
        result = _decode(content)
    except (KeyError, TypeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"the config {path} is damaged: {what}; run optimize again") from None
    for text in result.warnings[len(content["warnings"]) :]:
        warnings.warn(text, stacklevel=2)
    return result


def _decode(content: dict[str, Any]) -> OptimizationResult:
    """The result in a config; anything that does not fit raises."""
    _field(content, "version", int, 1)
    types = {f.name: {"str": str, "int": int}.get(str(f.type), float) for f in fields(Profile)}
    profile = Profile(**{name: _field(content["profile"], name, kind) for name, kind in types.items()})
    estimated_time = content["estimated_time"]
    n_items = content["n_items"]
    told = content["warnings"]
    if not isinstance(told, list) or not all(isinstance(text, str) for text in told):
        raise ValueError(f"warnings must be texts, got {shown(told)}")
    common: dict[str, Any] = {
        "n_jobs": _field(content, "n_jobs", int, 1),
        "chunksize": _field(content, "chunksize", int, 1),
        "estimated_speedup": _field(content, "estimated_speedup", float),
        "estimated_time": math.nan if estimated_time is None else _field(content, "estimated_time", float),
        "reason": _field(content, "reason", str),
        "n_items": None if n_items is None else _field(content, "n_items", int),
        "profile": profile,
    }
    then = _field(_field(content, "machine", dict), "cpu_count", int, 1)
    now = machine.cpu_count()
    if then != now:
        there = f"a machine with {then} CPU{'s' if then > 1 else ''}"
        told = [*told, f"this config was saved on {there}, and this one has {now}: its numbers may not fit here"]
    n, limit = common["n_jobs"], machine.memory_limit()
    needed = n * profile.peak_worker_memory
    if n > 1 and needed > limit:
        here = f"this machine has {format_nbytes(limit)}"
        told = [*told, f"{n} workers of this config take {format_nbytes(needed)}, and {here}"]
    common["warnings"] = tuple(told)
    kind = content["kind"]
    if kind == "streaming":
        return StreamingOptimizationResult(**common, buffersize=_field(content, "buffersize", int, 1))
    if kind != "batch":
        raise ValueError(f"kind must be 'batch' or 'streaming', got {shown(kind)}")
    return OptimizationResult(**common)


def _field(content: Any, name: str, kind: type, least: float = 0) -> Any:
    value = content[name]
    is_fitting = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
    if not is_fitting or (kind in (int, float) and not least <= value < math.inf):
        expected = f"{kind.__name__} of at least {least}" if kind in (int, float) else kind.__name__
        raise ValueError(f"{name} must be a value of type {expected}, got {shown(value)}")
    return value


def _this_machine() -> dict[str, Any]:
    return {
        "cpu_count": machine.cpu_count(),
        "memory": machine.memory_limit(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def _is_folder(path: Path) -> IsADirectoryError:
    return IsADirectoryError(f"name_or_path must be a file, got the folder {path}; name a file in it")


def config_path(name_or_path: Any) -> Path:
    """Where a config lies.

    Raises
    ------
    TypeError, ValueError
        If it is neither a name nor a path.
    """
    if isinstance(name_or_path, os.PathLike):
        return Path(name_or_path).expanduser()
    if not isinstance(name_or_path, str):
        raise TypeError(f"name_or_path must be a name or a path, got {shown(name_or_path)}")
    separators = {os.sep, os.altsep or os.sep}
    if name_or_path.endswith(".json") or any(separator in name_or_path for separator in separators):
        return Path(name_or_path).expanduser()
    if not _NAME.fullmatch(name_or_path):
        raise ValueError(
            f"name_or_path must be a name of letters, digits and '._-', or a path with a separator or '.json' at its "
            f"end, got {name_or_path!r}"
        )
    return config_folder() / f"{name_or_path}.json"


def config_folder() -> Path:
    """Where configs with a plain name lie: "amorsize_executor" in $XDG_CONFIG_HOME or ~/.config.

    On macOS in ~/Library/Application Support.
    """
    base = os.environ.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(base):  # the specification: a relative path is to be ignored
        base = os.path.expanduser("~/Library/Application Support" if sys.platform == "darwin" else "~/.config")
    return Path(base, "amorsize_executor")


def _write(path: Path, text: str, *, overwrite: bool) -> None:
    """Put a file in its place as a whole."""
    import tempfile

    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # for its owner only
    try:
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            os.replace(temporary, path)
        else:
            _link(temporary, path)
    except FileExistsError:
        raise FileExistsError(f"the config {path} exists; overwrite=True replaces it") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _link(temporary: str, path: Path) -> None:
    """Give a file its name unless that exists: atomically, as no check before could be."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: claim the name first
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        os.replace(temporary, path)
