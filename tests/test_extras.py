"""Optional extras are optional: all works without them, and what needs one says which."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from .executor.tools import Script, run_script

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
PACKAGE = PYPROJECT.parent / "amorsize_executor"
#: What the package depends on, and pytest, which loads the plugin.
REQUIRED = {"cloudpickle", "loky", "numpy", "psutil", "pytest"}
#: What only extras bring.
MODULES = (
    "tqdm",
    "matplotlib",
    "prometheus_client",
    "opentelemetry",
    "setproctitle",
    "joblib",
    "sklearn",
    "distributed",
)
#: (module that is missing, extra, how it is used): each fails with a message that names the extra.
FEATURES = [
    ("matplotlib", "plot", "executor.plan(abs, range(100)).plot()"),
    ("matplotlib", "plot", "amorsize_executor.optimize(abs, range(100)).plot()"),
    ("prometheus_client", "metrics", "from amorsize_executor.integrations import metrics"),
    ("opentelemetry", "metrics", "from amorsize_executor.integrations import tracing"),
    ("distributed", "dask", "amorsize_executor.AmorsizeExecutor(engine=object())"),
    ("joblib", "ml", "amorsize_executor.register_joblib_backend()"),
]


def without(*modules: str) -> str:
    """Code after which modules cannot be imported, in this process and in its workers."""
    return f"""
import os, sys

folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "hiding")
os.makedirs(folder, exist_ok=True)
for name in {modules!r}:
    with open(os.path.join(folder, name + ".py"), "w") as file:
        file.write("raise ModuleNotFoundError(\\"No module named '" + name + "'\\", name='" + name + "')")
sys.path.insert(0, folder)
os.environ["PYTHONPATH"] = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
"""


def test_the_package_works_without_any(tmp_path: Path) -> None:
    source = (
        without(*MODULES)
        + """
import importlib, pkgutil

import amorsize_executor
from amorsize_executor import AmorsizeExecutor, execute, optimize

for module in pkgutil.walk_packages(amorsize_executor.__path__, "amorsize_executor."):
    if ".integrations" not in module.name and not module.name.endswith(("__main__", "pytest_plugin")):
        importlib.import_module(module.name)

def hidden():
    try:
        import setproctitle
    except ImportError:
        return True

with AmorsizeExecutor(2) as executor:
    assert executor.submit(hidden).result()
    assert list(executor.map(abs, range(1000), progress=True)) == list(range(1000))
    assert executor.stats().tasks_done == 1
    print(executor.last_plan.n_items)
assert execute(abs, range(10)) == list(range(10))
assert optimize(abs, range(100)).n_jobs == 1
assert not [name for name in sys.modules if name.partition(".")[0] in {"tqdm", "matplotlib", "joblib", "opentelemetry"}]
"""
    )
    assert run_script(tmp_path, source) == "1000\n"


@pytest.mark.parametrize(("module", "extra", "use"), FEATURES)
def test_a_feature_says_which_extra_it_needs(tmp_path: Path, module: str, extra: str, use: str) -> None:
    source = (
        without(module)
        + f"""
import amorsize_executor

with amorsize_executor.AmorsizeExecutor(2) as executor:
    {use}
"""
    )
    status, _, err = Script(tmp_path, source).finish()
    assert status == 1
    last = err.strip().splitlines()[-1]
    assert f"pip install 'amorsize_executor[{extra}]'" in last, err
    assert "not installed" in last


@pytest.mark.skipif(not PYPROJECT.exists(), reason="the checkout is not here")
def test_extras_that_are_named_exist() -> None:
    text = PYPROJECT.read_text(encoding="utf-8")
    table = text.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    extras = set(re.findall(r"^([a-z-]+) = \[", table, re.MULTILINE))
    assert {"metrics", "ml", "plot", "progress", "test", "titles"} <= extras
    named = set()
    for path in [*PACKAGE.rglob("*.py"), *(PYPROJECT.parent / "docs").rglob("*.md"), PYPROJECT.parent / "README.md"]:
        named |= set(re.findall(r"amorsize_executor\[([a-z,-]+)\]", path.read_text(encoding="utf-8")))
    assert {extra for names in named for extra in names.split(",")} <= extras


def imports(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Top-level modules that are imported by name."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def test_nothing_is_imported_that_is_neither_required_nor_brought_by_an_extra() -> None:
    known = REQUIRED | {*MODULES} | sys.stdlib_module_names
    found = []
    for path in PACKAGE.rglob("*.py"):
        found += [
            f"{path.name} imports {name}"
            for name in imports(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
            if name not in known
        ]
    assert not found


def test_no_module_of_the_core_imports_an_extra_at_its_start() -> None:
    found = []
    for path in PACKAGE.rglob("*.py"):
        if "integrations" in path.relative_to(PACKAGE).parts or path.name == "pytest_plugin.py":
            continue
        body = ast.parse(path.read_text(encoding="utf-8")).body
        found += [f"{path.name} imports {name}" for name in imports(body) if name in MODULES]
    assert not found
