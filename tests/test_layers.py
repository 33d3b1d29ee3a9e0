"""Who may import whom. Deciding is pure, doing is not, and nothing imports upward."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

NAME = "amorsize_executor"
SPEC = importlib.util.find_spec(NAME)
assert SPEC is not None
assert SPEC.origin is not None
PACKAGE = Path(SPEC.origin).parent

#: Rooms from the ground up; each imports only itself, and from floors below its own.
FLOORS = (
    {"cgroups"},
    {"errors", "decisions", "machine", "lifecycle", "counters"},
    {"workers", "identity"},
    {"store"},
    {"learned"},
    {"inline", "failures", "stats", "options", "health", "overtime", "memory", "switching"},
    {"results", "logs"},
    {"encoding"},
    {"residency"},
    {"tiny"},
    {"maps"},
    {"dispatcher"},
    {"batching", "aio", "serial"},
    {"executor"},
    {"views", "pytest_plugin"},
    {"integrations"},
    {"optimizer"},
    {""},  # the package's own __init__: names of all that people import
    {"cli"},
    {"__main__"},
)
#: Looked up when a progress bar, or a view, is asked for, so that nobody else pays for it.
LAZY_EXCEPTIONS = {("executor", "integrations"), ("executor", "views")}
#: What decisions may not touch: processes, clocks, files, the machine.
IMPURE = {
    "asyncio", "concurrent", "ctypes", "datetime", "io", "mmap", "multiprocessing", "os", "pathlib", "queue", "random",
    "resource", "select", "selectors", "shutil", "signal", "socket", "subprocess", "tempfile", "time",
}  # fmt: skip


class Import(NamedTuple):
    """One name that a module imports."""

    module: str
    target: str
    is_at_start: bool
    is_for_types: bool


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join([NAME, *(part for part in parts if part != "__init__")]), path


def imports_of(module: str, path: Path) -> Iterator[Import]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]

    def visit(node: ast.AST, is_at_start: bool, is_for_types: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, is_at_start, is_for_types)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                yield Import(module, f"{base}.{alias.name}", is_at_start, is_for_types)
        is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        is_type_block = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, is_at_start and not is_function, is_for_types or is_type_block)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), True, False)


ALL = [found for module, path in modules() for found in imports_of(module, path)]
OWN = [found for found in ALL if found.target.split(".")[0] == NAME]
FOREIGN = [found for found in ALL if found.target.split(".")[0] != NAME]


def room_of(name: str) -> str:
    """The room that a module, or a name in it, belongs to; the package's own names belong to ''."""
    parts = name.split(".")
    room = parts[1] if len(parts) > 1 else ""
    return room if any(room in floor for floor in FLOORS) or (PACKAGE / f"{room}.py").exists() else ""


def floor_of(room: str) -> int:
    for height, floor in enumerate(FLOORS):
        if room in floor:
            return height
    raise AssertionError(f"{room}: on which floor is it? Say so in FLOORS")


def told(found: list[Import]) -> list[str]:
    return [f"{one.module} imports {one.target}" for one in found]


def test_every_room_has_its_floor() -> None:
    for path in PACKAGE.iterdir():
        if path.suffix == ".py" or (path / "__init__.py").exists():
            floor_of("" if path.stem == "__init__" else path.stem)


def test_nothing_imports_upward() -> None:
    upward = [
        found
        for found in OWN
        if not found.is_for_types
        and room_of(found.target) != room_of(found.module)
        and floor_of(room_of(found.target)) >= floor_of(room_of(found.module))
        and (found.is_at_start or (room_of(found.module), room_of(found.target)) not in LAZY_EXCEPTIONS)
    ]
    assert not told(upward)


def test_not_even_types_come_from_above_the_results() -> None:
    """Types from a neighbour are harmless; those from the rooms that drive a module would make a circle."""
    drivers = {"dispatcher", "executor", "integrations"}
    upward = [
        found
        for found in OWN
        if found.is_for_types
        and room_of(found.target) in drivers
        and floor_of(room_of(found.target)) > floor_of(room_of(found.module))
        and (room_of(found.module), room_of(found.target)) not in LAZY_EXCEPTIONS
    ]
    assert not told(upward)


def test_decisions_know_nobody_else() -> None:
    others = [found for found in OWN if room_of(found.module) == "decisions" and room_of(found.target) != "decisions"]
    assert not told(others)


def test_decisions_are_pure() -> None:
    allowed = sys.stdlib_module_names - IMPURE | {"numpy"}
    impure = [
        found for found in FOREIGN if room_of(found.module) == "decisions" and found.target.split(".")[0] not in allowed
    ]
    assert not told(impure)


def test_decisions_have_one_lock_and_no_thread() -> None:
    users = [found for found in FOREIGN if room_of(found.module) == "decisions" and "threading" in found.target]
    assert {found.module for found in users} <= {f"{NAME}.decisions.cost_model"}
    tree = ast.parse((PACKAGE / "decisions" / "cost_model.py").read_text(encoding="utf-8"))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "threading"
    }
    assert used <= {"Lock"}


def test_workers_know_neither_decisions_nor_who_drives_them() -> None:
    others = [
        found
        for found in OWN
        if room_of(found.module) == "workers" and room_of(found.target) not in {"workers", "machine", "errors"}
    ]
    assert not told(others)


def test_loky_is_taken_in_one_module() -> None:
    takers = {found.module for found in FOREIGN if found.target.split(".")[0] == "loky"}
    assert takers == {f"{NAME}.workers.launch"}


@pytest.mark.parametrize(
    "name", ["numpy", "loky", "cloudpickle", "psutil", "multiprocessing", "subprocess", "sqlite3", "matplotlib"]
)
def test_import_is_light(name: str, loaded_by_import: set[str]) -> None:
    assert name not in loaded_by_import


@pytest.fixture(scope="module")
def loaded_by_import() -> set[str]:
    """Top-level modules that a fresh interpreter has after an import of the executor."""
    code = (
        f"import sys; from {NAME} import AmorsizeExecutor; print(*{{name.partition('.')[0] for name in sys.modules}})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_a_map_in_its_caller_imports_nothing_that_starts_processes() -> None:
    code = (
        f"import sys; from {NAME} import AmorsizeExecutor\n"
        "with AmorsizeExecutor() as executor:\n"
        "    assert list(executor.map(abs, [-1, 2])) == [1, 2]\n"
        "print(sys.modules.keys() & {'multiprocessing', 'loky', 'numpy', 'psutil', 'cloudpickle'})"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == "set()"


def test_the_plugin_of_pytest_loads_nothing_before_it_is_used() -> None:
    code = f"import {NAME}.pytest_plugin, sys; print(*[name for name in sys.modules if name.startswith({NAME!r})])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [NAME, f"{NAME}.pytest_plugin"]


@pytest.mark.parametrize("name", ["store", "integrations.plots"])
def test_optional_parts_load_what_they_need_when_used(name: str) -> None:
    code = f"import {NAME}.{name}, sys; print(sys.modules.keys() & {{'sqlite3', 'matplotlib', 'numpy', 'psutil'}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
