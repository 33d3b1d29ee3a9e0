"""`Resource`: an object that each worker builds for itself, once, and keeps for the tasks that need it.

A handle is pickled as its number and what it is built from. Where that is unpickled in a worker, the object itself
comes out: the one that the worker has, or else a new one.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType

from . import bulk, serialize
from .sharing import Of, Shared

TYPE_CHECKING = False  # as of typing: see the package's docstring
if TYPE_CHECKING:
    from typing import Any, TypeVar

    from .interfaces import Residents, User
    from .warm import Block

    T = TypeVar("T")

#: Handles that are pickled while nobody can resolve them where they are going.
_NOWHERE = (
    "{!r} cannot be pickled here: it goes to workers in arguments and functions of submit and map, and each builds the "
    "object for itself"
)
_numbers = itertools.count(1)
#: In a worker: what it has built.
_residents: Residents | None = None


class _Here(threading.local):
    """Where this thread finds objects, if it has a place of its own for them."""

    residents: Residents | None = None


_here = _Here()


class NeedsWorker(Exception):
    """Something needs a resource, so that it cannot run in this process."""


class Resource(Of["T"]):
    """A handle for an object that each worker builds at its first use, and keeps.

    It may stand anywhere in the arguments of tasks and in functions; a task gets the object of its worker, always the
    same one. Made by `AmorsizeExecutor.resource`; every executor of this process takes it. When it is closed, or the
    handle is gone, workers close their objects as soon as no task that was submitted needs them.

    An object is kept as by a ``with`` statement: if it has a ``close`` method, that is called at the end. Else, if it
    is a context manager, it is entered when it has been built, tasks get what entering gives, and it is exited at the
    end. The end comes when the handle is closed, when the worker leaves, or when others need its memory.
    """

    def __init__(self, factory: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        from .process import not_picklable

        serialize.ask_for_writers()
        self.resource_id = os.getpid() << 32 | next(_numbers)
        self.name = serialize.name_of(factory)
        self._lock = threading.Lock()  # guards _is_closed and _users
        self._is_closed = False
        self._users: weakref.WeakSet[Any] = weakref.WeakSet()
        recipe = (factory, args, kwargs)
        writer = _RecipeWriter()
        self._shared: Shared[Any] | None = None
        self._recipe: serialize.Entry = b""
        try:
            self._recipe = serialize.encode(recipe, writer, has_bulk=bulk.is_among((*args, *kwargs.values())))
            is_small = serialize.pickle_nbytes(self._recipe) <= serialize.INLINE_NBYTES
        except Exception as error:
            if not writer.is_large:
                what = f"the factory {self.name!r} of a resource, or one of its arguments,"
                raise not_picklable(what, error) from error.__cause__
            is_small = False
        if not is_small:
            self._shared = Shared(recipe)
        #: The resources that it is built from.
        self._inner = tuple(writer.needs.values())
        self._finalizer = weakref.finalize(self, _abandon, self.resource_id, self._users)
        self._finalizer.atexit = False

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self._is_closed

    def warm(self) -> Resource[T]:
        """Let workers build it ahead of tasks: those that run now, and each that starts from now on.

        Returns
        -------
        Resource
            Itself. It does not wait; `AmorsizeExecutor.warm_up` does.

        Raises
        ------
        ValueError
            After `close`.
        """
        self.check_open()
        for user in self._known_users():
            user.warm_resource(self)
        return self

    def close(self) -> None:
        """Let workers close their objects, as soon as no task that was submitted needs them. Does not wait."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        self._finalizer.detach()
        for user in self._known_users():
            user.close_resource(self.resource_id)
        if self._shared is not None:
            self._shared.close()

    def __enter__(self) -> Resource[T]:
        self.check_open()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def check_open(self) -> None:
        """Raise the ValueError of a use after `close`."""
        if self._is_closed:
            raise ValueError(f"{self!r} was closed before it was used; close it after its last submit or map")

    def used_by(self, user: User) -> None:
        """An executor is to hear when it is closed."""
        with self._lock:
            self._users.add(user)

    def _known_users(self) -> list[User]:
        with self._lock:
            return list(self._users)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        from ..errors import SerializationError

        self.check_open()
        need = getattr(serialize.sending.writer, "need", None)
        if need is None:
            raise SerializationError(_NOWHERE.format(self))
        need(self)
        for inner in self._inner:
            need(inner)
        recipe = self._recipe if self._shared is None else serialize.dumps(self._shared)
        return _resolve, (self.resource_id, self.name, recipe)

    def __repr__(self) -> str:
        return f"<Resource {self.name}{', closed' if self._is_closed else ''}>"


class _RecipeWriter:
    """Finds out whether what an object is built from is small enough to be sent with each task."""

    def __init__(self) -> None:
        self.is_large = False
        self.needs: dict[int, Resource[Any]] = {}

    def store(self, buffer: memoryview) -> serialize.Part:
        """There is a large buffer."""
        self.is_large = True
        raise ValueError("it needs a block")

    def serial(self, part: object) -> int:
        """None."""
        return 0

    def refer(self, block: Block) -> None:
        """There is a `Shared`, which has to be kept."""
        self.is_large = True
        raise ValueError("it refers to a block")

    def need(self, resource: Resource[Any]) -> None:
        """It is built from another resource."""
        self.needs[resource.resource_id] = resource


def _abandon(resource_id: int, users: weakref.WeakSet[Any]) -> None:
    for user in list(users):
        user.abandon_resource(resource_id)


def receive_with(residents: Residents | None, *, in_thread: bool = False) -> None:
    """In a worker: where its objects are; `in_thread`: those of this thread alone."""
    global _residents
    if in_thread:
        _here.residents = residents
    else:
        _residents = residents


@contextlib.contextmanager
def resolving_with(residents: Residents) -> Iterator[None]:
    """What this thread unpickles meanwhile has objects from there."""
    before, _here.residents = _here.residents, residents
    try:
        yield
    finally:
        _here.residents = before


def _resolve(resource_id: int, name: str, recipe: serialize.Entry) -> Any:
    """The object of a resource, in a worker, or where there is a place for it."""
    residents = _here.residents or _residents
    if residents is None:
        raise NeedsWorker(f"the resource {name!r} is built in workers only")
    return residents.resolve(resource_id, name, recipe)
