"""The command line: what people see, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amorsize_executor import __version__, load_config
from amorsize_executor.cli import main
from amorsize_executor.cli.demo import complexity
from amorsize_executor.cli.optimize import read_items

from .executor.tools import process_wide_executors_end


@pytest.fixture(autouse=True)
def _no_file_of_the_user_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMORSIZE_STORE", str(tmp_path / "store.sqlite3"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture(scope="module", autouse=True)
def _end_the_process_wide_executors() -> Iterator[None]:
    with process_wide_executors_end():
        yield


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*args: str) -> tuple[int, str, str]:
        try:
            status = main(args)
        except SystemExit as error:  # argparse's
            status = int(error.code or 0)
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return run


def test_version_and_help(run: Any) -> None:
    assert run("--version") == (0, f"amorsize {__version__}\n", "")
    status, out, _ = run("--help")
    assert status == 0
    for command in ("demo", "info", "optimize", "store"):
        assert command in out
        assert run(command, "--help")[0] == 0


def test_no_command_is_an_error_that_helps(run: Any) -> None:
    status, out, err = run()
    assert (status, out) == (2, "")
    assert "demo" in err


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["nothing"], "invalid choice: 'nothing'"),
        (["optimize", "math:sqrt"], "one of the arguments --data --range is required"),
        (["optimize", "math:sqrt", "--range", "3", "--data", "x"], "not allowed with argument"),
        (["optimize", "math:sqrt", "--range", "-1"], "must be at least 0, got -1"),
        (["optimize", "math:sqrt", "--range", "many"], "invalid number value: 'many'"),
        (["optimize", "math:sqrt", "--range", "3", "--sample-size", "0"], "must be at least 1, got 0"),
        (["optimize", "math:sqrt", "--range", "3", "--memory-limit", "2X"], "invalid number of bytes value: '2X'"),
        (["optimize", "math:sqrt", "--range", "3", "--memory-limit", "inf"], "must be at least 1 byte"),
    ],
)
def test_a_wrong_command_line_has_status_2(run: Any, args: list[str], told: str) -> None:
    status, out, err = run(*args)
    assert (status, out) == (2, "")
    assert told in err


# ---------------------------------------------------------------------- optimize


def test_optimize_says_how_to_run(run: Any) -> None:
    status, out, err = run("optimize", "math:sqrt", "--range", "100")
    assert (status, err) == (0, "")
    assert out.startswith("sqrt over 100 items\n")
    assert "n_jobs=1" in out


def test_optimize_for_programs(run: Any) -> None:
    status, out, _ = run("optimize", "math:sqrt", "--range", "0", "--json")
    assert status == 0
    assert json.loads(out)["n_jobs"] == 1
    out = run("optimize", "math:sqrt", "--range", "50", "--json", "--max-workers", "2", "--memory-limit", "4G")[1]
    data = json.loads(out)
    assert data["profile"]["n_measured"] == 30
    assert data["n_items"] == 50


def test_optimize_options(run: Any, tmp_path: Path) -> None:
    status, out, _ = run(
        "optimize", "math:sqrt", "--range", "100", "--sample-size", "5", "--profile", "--cache-key", "roots",
        "--save", "roots",
    )  # fmt: skip
    assert status == 0
    assert "5 measured" in out
    assert "cumulative" in out
    assert "saved as" in out
    assert load_config("roots").profile.n_measured == 5
    assert "what is kept as 'roots'" in run("optimize", "math:sqrt", "--range", "10", "--cache-key", "roots")[1]


def test_optimize_a_function_of_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "own_tasks.py").write_text("class Shop:\n    def price(row):\n        return float(row['net']) * 1.2\n")
    (tmp_path / "rows.csv").write_text("name,net\na,1\nb,2\n")
    script = Path(sys.executable).with_name("amorsize")  # which does not put the directory on the path
    program = [str(script)] if script.exists() else [sys.executable, "-m", "amorsize_executor"]
    done = subprocess.run(
        [*program, "optimize", "own_tasks:Shop.price", "--data", "rows.csv"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Shop.price over 2 items" in done.stdout


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("sqrt", "MODULE:FUNC is expected, such as math:sqrt, got 'sqrt'"),
        ("math:", "MODULE:FUNC is expected"),
        ("nowhere.at.all:f", "there is no module 'nowhere'"),
        ("math:cube", "the module 'math' has no 'cube'"),
        ("math:pi", "math:pi is no function, but of type float"),
        ("broken_tasks:f", "the module 'broken_tasks' cannot be imported: ZeroDivisionError"),
    ],
)
def test_functions_that_are_none(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, told: str
) -> None:
    (tmp_path / "broken_tasks.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    status, out, err = run("optimize", function, "--range", "3")
    assert (status, out) == (1, "")
    assert err.startswith("amorsize: error: ")
    assert told in err
    assert "Traceback" not in err


def test_what_the_function_raises_is_told(run: Any) -> None:
    status, out, err = run("optimize", "math:sqrt", "--data", "/dev/null", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["n_items"] == 0
    status, out, err = run("optimize", "builtins:abs", "--data", __file__)
    assert (status, out) == (1, "")
    assert "TypeError: bad operand" in err
    assert "item 0 of" in err


def test_a_function_that_exits_is_told(run: Any) -> None:
    status, out, err = run("optimize", "sys:exit", "--range", "20")
    assert (status, out) == (1, "")
    assert "SystemExit: 0\n  raised by exit for item 0 of 20" in err


def test_a_config_that_cannot_be_saved_is_told_before_or_with_the_result(run: Any) -> None:
    status, out, err = run("optimize", "math:sqrt", "--range", "3", "--save", "a b")
    assert (status, out) == (1, "")
    assert "--save: name_or_path must be a name" in err
    assert "over 3 items" not in err
    status, out, err = run("optimize", "math:sqrt", "--range", "3", "--save", "/dev/null/x.json")
    assert (status, out) == (1, "")
    assert "sqrt over 3 items" in err
    assert "the result cannot be saved: name_or_path must lie in a folder" in err


@pytest.mark.parametrize(
    ("name", "content", "items"),
    [
        ("x.txt", b"a\nb c\n", ["a", "b c"]),
        ("x", "\u00fc\n".encode(), ["\u00fc"]),
        ("x.json", b'[1, {"a": 2}]', [1, {"a": 2}]),
        ("x.csv", b'a,b\n1,"x, y"\n', [{"a": "1", "b": "x, y"}]),
        ("x.JSON", b"[]", []),
    ],
)
def test_files_of_items(tmp_path: Path, name: str, content: bytes, items: list[Any]) -> None:
    (tmp_path / name).write_bytes(content)
    assert read_items(tmp_path / name) == items


def test_rows_of_an_array(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(6).reshape(3, 2))
    assert [list(row) for row in read_items(tmp_path / "x.npy")] == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("x.json", b'{"a": 1}', "a list of items is expected, got a value of type dict"),
        ("x.json", b"[1,", "cannot be read"),
        ("x.txt", b"\xff\xfe\xff", "cannot be read"),
        ("x.npy", b"no array", "cannot be read"),
        ("missing.txt", None, "No such file"),
    ],
)
def test_files_that_are_none(run: Any, tmp_path: Path, name: str, content: bytes | None, told: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    status, out, err = run("optimize", "builtins:repr", "--data", str(path))
    assert (status, out) == (1, "")
    assert told in err
    assert "Traceback" not in err


# ---------------------------------------------------------------------- store, info, demo


def test_store_lists_and_forgets(run: Any, tmp_path: Path) -> None:
    assert run("store")[1].endswith("store.sqlite3: 0 records\n")
    run("optimize", "math:sqrt", "--range", "100", "--cache-key", "roots")
    out = run("store")[1]
    assert ": 1 record\n" in out
    assert "workload  roots: 30 measured, one item" in out
    (record,) = json.loads(run("store", "--json")[1])["records"]
    assert record["key"] == "roots"
    assert json.loads(run("store", "--clear", "--json")[1])["deleted"] == 1
    assert json.loads(run("store", "--json")[1])["records"] == []


@pytest.mark.filterwarnings("ignore:what was learned cannot be kept")
def test_a_store_that_cannot_be_used_is_an_error(run: Any, tmp_path: Path) -> None:
    (tmp_path / "store.sqlite3").write_text("this is no database, but long enough to be looked at by SQLite" * 20)
    status, out, err = run("store")
    assert (status, out) == (1, "")
    assert "amorsize: error: what was learned cannot be kept in" in err


def test_info(run: Any) -> None:
    status, out, err = run("info")
    assert (status, err) == (0, "")
    for name in ("CPUs", "memory", "start methods", "worker start", "round trip"):
        assert name in out
    data = json.loads(run("info", "--json")[1])
    assert data["machine"]["cpus_usable"] >= 1
    assert data["machine"]["start_methods"][0] == "loky"
    assert all(value > 0 for value in data["measured"].values())


def test_demo_without_scikit_learn(run: Any) -> None:
    status, out, err = run("demo", "--job", "sources", "--items", "6")
    assert status == 0, err
    for name in ("Plan for complexity over 6 items", "serial loop", "ProcessPoolExecutor", "All three agree"):
        assert name in out
    assert err.startswith("Complexity of the standard library's sources: 6 items\n")


@pytest.mark.slow
def test_demo_with_scikit_learn() -> None:
    """In a process of its own: it limits the threads of libraries before they are loaded."""
    pytest.importorskip("sklearn")
    done = command("demo", "--items", "2", "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["n_items"] == 2
    assert set(data["seconds"]) == {"AmorsizeExecutor", "ProcessPoolExecutor", "serial loop"}


def test_the_demo_asks_for_what_it_needs(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status, _, err = run("demo", "--job", "digits")
    assert status == 1
    assert "pip install 'amorsize_executor[ml]'" in err


def test_complexity_counts_branches(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        "def f(x):\n    return 1 if x else 2\n\ndef g(x):\n    for i in x:\n        if i and x:\n            pass\n"
    )
    assert complexity(str(path)) == (3, "g")
    path.write_text("x = 1\n")
    assert complexity(str(path)) == (0, "")


# ---------------------------------------------------------------------- the process


def command(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "amorsize_executor", *args], capture_output=True, text=True, timeout=50
    )


def test_as_a_module() -> None:
    done = command("optimize", "math:sqrt", "--range", "100")
    assert (done.returncode, done.stderr) == (0, "")
    assert "sqrt over 100 items" in done.stdout
    done = command("optimize", "math:sqrt", "--range", "-1")
    assert done.returncode == 2


def test_a_reader_that_has_seen_enough() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "amorsize_executor", "store", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(30) == 1
    process.stderr.close()


def test_help_loads_little() -> None:
    code = (
        "import sys\nfrom amorsize_executor.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'numpy', 'loky', 'sklearn', 'sqlite3', 'psutil'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
