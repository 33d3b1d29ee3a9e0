"""The worker's side of resources: builds them, keeps them, closes them.

Which of them a worker has is decided elsewhere: it builds what a task needs and it lacks, and closes what it is told
to, between tasks.

Owned by the worker's main thread; where threads of one process are workers, each has its own, over the same `Objects`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable

from .. import machine
from . import protocol, serialize

TYPE_CHECKING = False  # as of typing: see the package's docstring
if TYPE_CHECKING:
    from typing import Any


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
                import logging

                logging.getLogger(__name__).exception("the resource %r could not be closed", name)

    def close_all(self) -> None:
        """Close all, the latest first: it may be built from those before it."""
        self.close(list(reversed(self._built)))


class Objects:
    """What the workers of one process, which are threads, have built together."""

    def __init__(self) -> None:
        # Held while one of them is built: others that need the same wait for it. Resources may need each other.
        self.lock = threading.RLock()
        #: By resource: what a worker knows it by, how its building was told, and how many workers count on it.
        self.kept: dict[int, tuple[tuple[str, Any, contextlib.ExitStack], tuple[Any, ...], int]] = {}


class SharedResidents(Residents):
    """The resources of a worker that is a thread: each is built once in its process, and closed by the last user.

    Parameters
    ----------
    tell
        Sends a message to the parent.
    objects
        Those of the process.
    """

    def __init__(self, tell: Callable[[tuple[Any, ...]], None], objects: Objects) -> None:
        super().__init__(self._tell_and_note)
        self._send = tell
        self._objects = objects
        self._told: tuple[Any, ...] = ()

    def _tell_and_note(self, message: tuple[Any, ...]) -> None:
        self._told = message
        self._send(message)

    def resolve(self, resource_id: int, name: str, recipe: serialize.Entry) -> Any:
        """The object of a resource, built if no worker of the process has it."""
        if resource_id in self._built:
            return self._built[resource_id][1]
        begun, objects = time.perf_counter_ns(), self._objects
        with objects.lock:
            self.loading_ns += time.perf_counter_ns() - begun  # until another one had built it
            found = objects.kept.get(resource_id)
            if found is not None:
                built, told, n_users = found
                objects.kept[resource_id] = built, told, n_users + 1
                self._built[resource_id] = built
                self._send(told)
                return built[1]
            obj = super().resolve(resource_id, name, recipe)
            objects.kept[resource_id] = self._built[resource_id], self._told, 1
            return obj

    def close(self, resource_ids: Iterable[int]) -> None:
        """Let go of resources, and close those that no other worker of the process has."""
        for resource_id in list(resource_ids):
            with self._objects.lock:
                found = self._objects.kept.get(resource_id)
                if resource_id not in self._built or found is None:
                    continue
                built, told, n_users = found
                if n_users > 1:
                    self._objects.kept[resource_id] = built, told, n_users - 1
                    del self._built[resource_id]
                else:
                    del self._objects.kept[resource_id]
                    super().close((resource_id,))


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
