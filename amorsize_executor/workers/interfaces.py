"""What modules of this package ask of objects that others give them. For type checkers: nothing imports it to run."""

from __future__ import annotations

from typing import Any, Protocol

from . import serialize
from .resources import Resource


class Writer(Protocol):
    """Where the large buffers of an object go."""

    def store(self, buffer: memoryview, /) -> serialize.Part:
        """Store a buffer and return what stands for it in an entry."""

    def serial(self, part: serialize.Part, /) -> int:
        """A number that no other content that is stored in this process will get; 0 if it has none."""


class Lease(Protocol):
    """How a receiver gets at what stands in blocks."""

    def __call__(self, block_id: int, start: int, stop: int, /) -> tuple[memoryview, int]:
        """A private view that has these bytes of a block, and the offset in the block where the view begins.

        Each call gives another one: what is written to one is not seen in others.
        """


class Cache(Protocol):
    """`bytes` by the serial numbers of their content."""

    def __contains__(self, serial: object, /) -> bool:
        """Whether they are here."""

    def __getitem__(self, serial: int, /) -> bytes:
        """They themselves."""

    def __setitem__(self, serial: int, obj: Any, /) -> None:
        """Keep them, perhaps."""


class Received(Protocol):
    """Blocks that came from another process, or that the caller of a map reads as workers do."""

    @property
    def is_callers(self) -> bool:
        """Whether this process has made them."""

    @property
    def cache(self) -> Cache:
        """For large `bytes`."""

    def has_all(self, block_ids: tuple[int, ...], /) -> bool:
        """Whether these blocks have come."""

    def lease(self, block_id: int, start: int, stop: int, /) -> tuple[memoryview, int]:
        """A private view, as of `Lease`."""


class Residents(Protocol):
    """The objects that a worker has built from resources."""

    def resolve(self, resource_id: int, name: str, recipe: serialize.Entry, /) -> Any:
        """The object of a resource, built if it is not there."""


class User(Protocol):
    """An executor whose tasks were given a handle of a resource."""

    def close_resource(self, resource_id: int, /) -> None:
        """The handle was closed."""

    def abandon_resource(self, resource_id: int, /) -> None:
        """The handle is gone; called at any point of any thread, so it takes no lock."""

    def warm_resource(self, resource: Resource[Any], /) -> None:
        """All workers are to build it ahead of tasks, now and later."""


class Sized(Protocol):
    """Something that takes memory."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
