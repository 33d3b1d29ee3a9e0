"""The reference has all that is public, and each docstring in it tells what its signature takes and gives."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import amorsize_executor

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
#: Fields that serve `execute` and `stream`, not people.
INTERNAL_FIELDS = {"kept", "start"}

pytestmark = pytest.mark.skipif(not REFERENCE.exists(), reason="the documentation is not installed")


class Entry(NamedTuple):
    """An object of the reference, and which of its members are shown (None: all that are public).

    `obj` is None where the extra that it needs is not installed.
    """

    path: str
    obj: Any
    members: list[str] | None

    def functions(self) -> Iterator[tuple[str, Any]]:
        """The object, if it is a function, or its methods and properties that are shown."""
        if self.obj is None:
            return
        if not inspect.isclass(self.obj):
            yield self.path, self.obj
            return
        for name, value in vars(self.obj).items():
            is_shown = not name.startswith("_") if self.members is None else name in self.members
            if is_shown and (inspect.isfunction(value) or isinstance(value, (classmethod, property))):
                yield f"{self.path}.{name}", value


def _entries() -> Iterator[Entry]:
    for page in sorted(REFERENCE.glob("*.md")):
        for block in page.read_text("utf-8").split("\n::: amorsize_executor.")[1:]:
            path = block.split("\n", 1)[0]
            module, _, name = f"amorsize_executor.{path}".rpartition(".")
            members = re.search(r"members: \[(.*)\]", block)
            names = None if members is None else [m.strip() for m in members[1].split(",")]
            yield Entry(path, _load(module, name), names)


def _load(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if "pip install 'amorsize_executor[" not in str(error):
            raise
        return None


ENTRIES = list(_entries())
CLASSES = [pytest.param(entry.obj, id=entry.path) for entry in ENTRIES if inspect.isclass(entry.obj)]
OBJECTS = [pytest.param(obj, id=path) for entry in ENTRIES for path, obj in entry.functions()]
FUNCTIONS = [param for param in OBJECTS if not isinstance(param.values[0], property)]


def test_the_reference_has_every_public_name() -> None:
    assert {*amorsize_executor.__all__} <= {entry.path for entry in ENTRIES}
    assert len(ENTRIES) == len({entry.path for entry in ENTRIES})


@pytest.mark.parametrize("obj", [*CLASSES, *OBJECTS])
def test_everything_in_it_has_a_docstring(obj: Any) -> None:
    assert obj.__doc__
    assert not obj.__doc__.startswith(f"{getattr(obj, '__name__', '')}(")  # what Python makes up for dataclasses


@pytest.mark.parametrize("cls", CLASSES)
def test_fields_are_told(cls: Any) -> None:
    inherited = {name for base in cls.__mro__[1:] for name in getattr(base, "__dataclass_fields__", ())}
    fields = {*getattr(cls, "__dataclass_fields__", ()), *getattr(cls, "_fields", ())} - inherited - INTERNAL_FIELDS
    assert fields == {*_names(cls.__doc__, "Attributes")} - {"args"} if fields else True


@pytest.mark.parametrize("function", FUNCTIONS)
def test_parameters_are_told_in_their_order(function: Any) -> None:
    parameters = [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]
    assert _names(function.__doc__, "Parameters") == parameters


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_is_returned_is_told(function: Any) -> None:
    is_told = re.search(r"^ *Returns\n *-------\n", function.__doc__, re.MULTILINE) is not None
    assert is_told == (inspect.signature(function).return_annotation not in ("None", None))


def _names(doc: str, section: str) -> list[str]:
    """What a section of a NumPy docstring tells, by name."""
    doc = inspect.cleandoc(doc)
    found = re.search(rf"^{section}\n-+\n(.*?)(?:\n\n\S[^\n]*\n---|\Z)", doc, re.DOTALL | re.MULTILINE)
    lines = found[1].splitlines() if found else []
    return [name.strip(" *") for line in lines if line and line[0] != " " for name in line.split(",")]
