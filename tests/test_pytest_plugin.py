"""The fixtures that users' suites get, in a pytest of its own."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import textwrap
from pathlib import Path

PLUGIN = "amorsize_executor.pytest_plugin"


def run_pytest(folder: Path, source: str, *args: str, ini: str = "") -> str:
    """Output of pytest over one file of tests."""
    (folder / "test_it.py").write_text(textwrap.dedent(source))
    (folder / "pytest.ini").write_text(f"[pytest]\n{ini}\n")
    is_installed = any(found.value == PLUGIN for found in importlib.metadata.entry_points(group="pytest11"))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        *([] if is_installed else ["-p", PLUGIN]),
        *args,
    ]
    env = {name: value for name, value in os.environ.items() if name != "AMORSIZE_INLINE"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=50)
    return done.stdout + done.stderr


def test_an_executor_for_each_test(tmp_path: Path) -> None:
    source = """
        import os

        seen = []

        def test_one(amorsize_executor):
            seen.append(amorsize_executor)
            assert amorsize_executor.submit(os.getpid).result() != os.getpid()

        def test_two(amorsize_executor, make_amorsize_executor):
            assert not seen[0].is_open
            other = make_amorsize_executor(1, initializer=len, initargs=("x",))
            assert list(other.map(abs, [-1])) == list(amorsize_executor.map(abs, [1]))
            assert other.max_workers == 1
        """
    assert "2 passed" in run_pytest(tmp_path, source)


def test_a_process_that_is_left_behind_fails_the_test(tmp_path: Path) -> None:
    source = """
        import subprocess, sys

        def leave_one():
            return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True).pid

        def test_it(amorsize_executor):
            assert amorsize_executor.submit(leave_one).result()
        """
    out = run_pytest(tmp_path, source)
    assert "1 passed, 1 error" in out
    assert "processes of the test's executors were left behind" in out
    assert "import time; time.sleep(60)" in out


def test_all_in_the_caller(tmp_path: Path) -> None:
    source = """
        import os
        from amorsize_executor import AmorsizeExecutor

        def test_it(amorsize_executor):
            assert amorsize_executor.submit(os.getpid).result() == os.getpid()
            with AmorsizeExecutor(1, inline="never") as own:
                assert own.submit(os.getpid).result() == os.getpid()
        """
    assert "1 passed" in run_pytest(tmp_path, source, "--amorsize-inline")
    assert "1 passed" in run_pytest(tmp_path, source, ini="amorsize_inline = true")
    assert "1 failed" in run_pytest(tmp_path, source)
