"""The worker's side of resources: builds them, keeps them, closes them.

Which of them a worker has is decided elsewhere: it builds what a task needs and it lacks, and closes what it is told
to, between tasks.

Owned by the worker's main thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from .. import machine
from . import protocol, serialize

_logger = logging.getLogger(__name__)


class Residents:
    """The resources that this worker has built.

    Attributes
    ----------
    loading_ns
        Time that was spent to build resources, in nanoseconds.
    n_failed
        Times that a factory has raised.

    Parameters
    ----------
    tell
        Sends a message to the parent.
    """

    def __init__(self, tell: Callable[[tuple[Any, ...]], None]) -> None:
        self._tell = tell
        self._built: dict[int, tuple[str, Any, contextlib.ExitStack]] = {}  # name, object, and how it ends
        self.loading_ns = 0
        self.n_failed = 0

    def resolve(self, resource_id: int, name: str, recipe: serialize.Entry) -> Any:
        """The object of a resource, built if it is not there."""
        found = self._built.get(resource_id)
        if found is not None:
            return found[1]
        others_ns, begun = self.loading_ns, time.perf_counter_ns()
        nbytes = machine.resident_nbytes(os.getpid()) or 0
        ending = contextlib.ExitStack()
        try:
            factory, args, kwargs = serialize.decode(recipe, _no_lease)
            obj = _entered(factory(*args, **kwargs), ending)
        except BaseException:
            self.n_failed += 1
            raise
        finally:
            elapsed_ns = time.perf_counter_ns() - begun
            inner_ns, self.loading_ns = self.loading_ns - others_ns, others_ns + elapsed_ns
        self._built[resource_id] = name, obj, ending
        nbytes = max((machine.resident_nbytes(os.getpid()) or 0) - nbytes, 0)
        self._tell((protocol.LOADED, resource_id, elapsed_ns - inner_ns, nbytes))
        return obj

    def close(self, resource_ids: Iterable[int]) -> None:
        """Close resources, as far as they are here. Nothing but globals of ``__main__`` must refer to them."""
        for resource_id in resource_ids:
            found = self._built.pop(resource_id, None)
            if found is None:
                continue
            name, obj, ending = found
            by_value = sys.modules.get(f"{__package__}.by_value")
            if by_value is not None:
                by_value.forget(obj)
            try:
                ending.close()
            except Exception:  # the worker works on: the object is given up all the same
                _logger.exception("the resource %r could not be closed", name)

    def close_all(self) -> None:
        """Close all, the latest first: it may be built from those before it."""
        self.close(list(reversed(self._built)))


def _entered(obj: Any, ending: contextlib.ExitStack) -> Any:
    """What tasks get of an object; how it ends is put on `ending`."""
    if callable(getattr(obj, "close", None)):
        ending.callback(obj.close)
        return obj
    if hasattr(type(obj), "__enter__") and hasattr(type(obj), "__exit__"):
        return ending.enter_context(obj)
    return obj


def _no_lease(block_id: int, start: int, stop: int) -> tuple[memoryview, int]:
    raise AssertionError("what a resource is built from stands in the pickle, or in a Shared")
