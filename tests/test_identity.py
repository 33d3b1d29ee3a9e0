"""Names of functions and machines: the same in every process, and different where times would be."""

from __future__ import annotations

import functools
import math
import operator
import os
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amorsize_executor import machine
from amorsize_executor.identity import function_key, machine_key

SOURCE = """
    import functools

    def f(x, y=3):
        table = {1: (2.5, "text", b"bytes", None, ...), 2: -0.0}
        def inner(z):
            return [z + 1j for _ in range(3)] + [table]
        return inner(x) if x in {"a", "b", "c", "d", "e", "f"} else lambda: inner(y)

    class Model:
        def predict(self, x):
            return x * 2
        def __call__(self, x):
            return x + 1
"""


def defined(source: str, module: str = "a_module", file: str = "file.py") -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": module}
    exec(compile(textwrap.dedent(source), file, "exec", dont_inherit=True), namespace)
    return namespace


def key_of(source: str) -> str | None:
    return function_key(defined(source)["f"])


# the same in every process


def test_key_is_the_same_in_another_process(tmp_path: Path) -> None:
    (tmp_path / "a_module.py").write_text(textwrap.dedent(SOURCE))
    script = """
        import functools, a_module
        from amorsize_executor.identity import function_key
        model = a_module.Model()
        for fn in (a_module.f, functools.partial(a_module.f, 1), model.predict, model):
            print(function_key(fn))
    """
    keys = set()
    for seed in ("0", "1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-c", textwrap.dedent(script)]
        keys.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    here = defined(SOURCE)
    fns = (here["f"], functools.partial(here["f"], 2), here["Model"]().predict, here["Model"]())
    assert keys == {"".join(f"{function_key(fn)}\n" for fn in fns)}


def test_key_does_not_depend_on_where_the_code_stands() -> None:
    moved = defined("\n\n# a comment\n" + textwrap.dedent(SOURCE), file="/elsewhere/other.py")["f"]
    assert function_key(moved) == function_key(defined(SOURCE)["f"])


def test_key_does_not_depend_on_calls() -> None:
    f = defined("def f(x):\n return [i * x for i in range(100)]")["f"]
    before = function_key(f)
    for _ in range(1000):
        f(2)
    assert function_key(f) == before


@pytest.mark.parametrize(
    "changed",
    [
        "def f(x): return x + 2",
        "def f(x): return x - 1",
        "def f(x): return x + 1.0",
        "def f(x): return abs(x) + 1",
        "def f(x, *, y): return x + 1",
        "def f(x): return (lambda: x + 1)()",
        "def f(x):\n  yield x + 1",
    ],
)
def test_key_changes_with_the_code(changed: str) -> None:
    assert key_of(changed) != key_of("def f(x): return x + 1")


def test_code_nested_in_a_function_counts() -> None:
    first, second = (f"def f(x):\n def inner(): return {n}\n return inner()" for n in (1, 2))
    assert key_of(first) != key_of(second)


@given(st.one_of(st.integers(), st.floats(allow_nan=False), st.text(), st.binary(), st.booleans(), st.none()))
def test_key_of_any_constant_is_well_formed(constant: object) -> None:
    key = key_of(f"def f(): return {constant!r}")
    assert key is not None
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    module, name, version, digest = key.split(":")
    assert (module, name, version) == ("a_module", "f", python)
    assert len(digest) == 16
    assert set(digest) <= set("0123456789abcdef")


# all kinds of callables


def plain(x: int) -> int:
    return x


def logged(fn: Callable[..., int]) -> Callable[..., int]:
    @functools.wraps(fn)
    def wrapper(*args: int) -> int:
        return fn(*args)

    return wrapper


@logged
def wrapped_once(x: int) -> int:
    return x


@functools.lru_cache
def cached(x: int) -> int:
    return x


class Model:
    def predict(self, x: int) -> int:
        return x

    @classmethod
    def build(cls, x: int) -> Model:
        return cls()

    @staticmethod
    def helper(x: int) -> int:
        return x

    def __call__(self, x: int) -> int:
        return x


class OtherModel(Model):
    pass


CALLABLES: list[tuple[object, str]] = [
    (plain, f"{__name__}:plain:"),
    (functools.partial(plain, 1), f"partial:{__name__}:plain:"),
    (functools.partial(Model().predict, 1), f"partial:method:{__name__}:Model.predict:"),
    (Model().predict, f"method:{__name__}:Model.predict:"),
    (Model.build, f"method:{__name__}:Model.build:"),
    (Model.helper, f"{__name__}:Model.helper:"),
    (Model(), f"{__name__}:Model:"),
    (OtherModel(), f"{__name__}:OtherModel:"),
    (Model, f"{__name__}:Model"),
    (wrapped_once, f"{__name__}:wrapped_once:"),
    (cached, f"{__name__}:cached:"),
    (lambda x: x, f"{__name__}:<lambda>:"),
    (len, "builtins:len"),
    (math.sqrt, "math:sqrt"),
    (int, "builtins:int"),
    (str.upper, "builtins:str.upper"),
    ("text".upper, "builtins:str.upper"),
    (operator.itemgetter(1), "operator:itemgetter"),
    (np.sqrt, "numpy:sqrt"),
    (np.frompyfunc(plain, 1, 1), "numpy:plain (vectorized)"),  # names no module itself, as functions of SciPy
]


@pytest.mark.parametrize(("fn", "beginning"), CALLABLES, ids=[beginning for _, beginning in CALLABLES])
def test_key_says_what_it_names(fn: object, beginning: str) -> None:
    key = function_key(fn)
    assert key is not None
    assert key == beginning if not beginning.endswith(":") else key.startswith(beginning)


def test_key_tells_what_a_wrapper_wraps() -> None:
    source = """
        import functools
        def logged(fn):
            @functools.wraps(fn)
            def wrapper(*args):
                return fn(*args)
            return wrapper
        @logged
        def f(x):
            return x + {n}
    """
    assert key_of(source.format(n=1)) != key_of(source.format(n=2))


def test_what_has_no_lasting_name_has_no_key() -> None:
    nameless = types.FunctionType(plain.__code__, {}, "f")
    nameless.__qualname__ = "<function at 0x7f00dead>"
    assert function_key(nameless) is None
    assert function_key(functools.partial(nameless)) is None
    assert function_key("no callable") is None
    assert function_key(None) is None


def test_function_that_wraps_itself_has_a_key() -> None:
    looped = defined("def f(x): return x")["f"]
    looped.__wrapped__ = looped
    assert function_key(looped) is not None


# the main module

PRINT_KEY = """
from amorsize_executor.identity import function_key
def f(x):
    return x + 1
print(function_key(f))
"""


def printed(*command: str, folder: Path, text: str | None = None) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, input=text, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_function_of_a_script_is_the_same_when_imported(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(PRINT_KEY)
    keys = {printed("train.py", folder=tmp_path), printed("-m", "train", folder=tmp_path)}
    keys.add(printed("-c", "import train", folder=tmp_path))
    (key,) = keys
    assert key.startswith("train:f:")


def test_function_without_a_file_is_of_main(tmp_path: Path) -> None:
    key = printed("-c", PRINT_KEY, folder=tmp_path)
    assert key.startswith("__main__:f:")
    assert printed("-", folder=tmp_path, text=PRINT_KEY) == key


def test_names_of_files_that_are_no_utf8_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    main = types.ModuleType("__main__")
    main.__file__ = "/jobs/\udcfcbung.py"
    monkeypatch.setitem(sys.modules, "__main__", main)
    key = function_key(defined("def f(): pass", module="__main__")["f"])
    assert key is not None
    assert key.encode().startswith(b"\\udcfcbung:f:")


# the machine


def test_machine_key_is_readable_and_the_same_each_time() -> None:
    key = machine_key()
    assert key == machine_key()
    assert machine.cpu_model() in key
    assert f"{machine.cpu_count()} CPU" in key
    assert f"{sys.version_info[0]}.{sys.version_info[1]}" in key


def test_machine_key_changes_with_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_count", lambda: 1)
    one = machine_key()
    monkeypatch.setattr(machine, "cpu_count", lambda: 64)
    assert ", 1 CPU, " in one
    assert ", 64 CPUs, " in machine_key()


CPUINFO = {
    "processor\t: 0\nmodel name\t: AMD EPYC  7B13\n\nprocessor\t: 1\nmodel name\t: another\n": "AMD EPYC 7B13",
    "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n": f"{machine.architecture()} 0x41/0xd0c",
}


@pytest.mark.parametrize("text", CPUINFO)
def test_cpu_model_is_that_of_the_first_cpu(tmp_path: Path, text: str) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(text)
    assert machine.cpu_model(tmp_path) == CPUINFO[text]


def test_cpu_model_falls_back_to_the_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert machine.cpu_model(tmp_path) == machine.architecture()
