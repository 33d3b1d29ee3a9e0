"""What a worker finds of its parent when it begins, and what it does not bring with it."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import pytest

from amorsize_executor import AmorsizeExecutor
from tests.executor.tools import LIMIT_S, Script, run_script


def _surroundings() -> dict[str, Any]:
    parent = multiprocessing.parent_process()
    current = multiprocessing.current_process()
    return {
        "path": sys.path,
        "argv": sys.argv,
        "folder": os.getcwd(),
        "authkey": bytes(current.authkey),
        "parent": (parent.name, parent.pid) if parent is not None else None,
        "name": current.name,
        "variable": os.environ.get("AMORSIZE_TEST_VARIABLE"),
    }


def test_a_worker_resembles_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setattr(sys, "argv", ["program", "--option"])
    monkeypatch.setenv("AMORSIZE_TEST_VARIABLE", "here")
    monkeypatch.chdir(tmp_path)
    with AmorsizeExecutor(1) as executor:
        found = executor.submit(_surroundings).result(LIMIT_S)
    current = multiprocessing.current_process()
    assert found == {
        "path": [path for path in sys.path if path],
        "argv": ["program", "--option"],
        "folder": str(tmp_path),
        "authkey": bytes(current.authkey),
        "parent": (current.name, os.getpid()),
        "name": "AmorsizeWorker-1",
        "variable": "here",
    }


@pytest.mark.skipif(
    (3, 13, 0) <= sys.version_info < (3, 13, 3),
    reason="these versions of Python import no module there (python/cpython#130932)",
)
def test_a_worker_starts_in_a_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with AmorsizeExecutor(1) as executor:
        assert executor.submit(pow, 2, 3).result(LIMIT_S) == 8


def test_a_worker_imports_nothing_that_its_tasks_do_not_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "setproctitle.py").write_text("raise ImportError", "utf-8")  # which logs
    monkeypatch.syspath_prepend(tmp_path)
    heavy = {"loky", "numpy", "psutil", "cloudpickle", "concurrent.futures", "asyncio"}
    heavy |= {"typing", "re", "enum", "logging", "traceback", "pickle", "signal", "socket", "multiprocessing"}
    with AmorsizeExecutor(1) as executor:
        assert not heavy & executor.submit(eval, "set(__import__('sys').modules)").result(LIMIT_S)


def test_no_other_process_than_workers_is_started(tmp_path: Path) -> None:
    script = """
        import psutil
        from amorsize_executor import AmorsizeExecutor
        with AmorsizeExecutor(2) as executor:
            executor.warm_up(2)
            print(len(psutil.Process().children(recursive=True)))
        """
    assert run_script(tmp_path, script) == "2\n"


def _create_memory(content: int) -> str:
    memory = shared_memory.SharedMemory(create=True, size=1)
    memory.buf[0] = content
    memory.close()
    return memory.name


def _read_memory(name: str) -> int:
    memory = shared_memory.SharedMemory(name)
    content: int = memory.buf[0]
    memory.close()
    return content


def test_shared_memory_outlives_the_worker_that_created_or_opened_it() -> None:
    of_parent = shared_memory.SharedMemory(create=True, size=1)
    of_parent.buf[0] = 5
    with AmorsizeExecutor(1) as executor:
        name = executor.submit(_create_memory, 7).result(LIMIT_S)
        assert executor.submit(_read_memory, of_parent.name).result(LIMIT_S) == 5
    of_worker = shared_memory.SharedMemory(name)
    again = shared_memory.SharedMemory(of_parent.name)
    try:
        assert (of_worker.buf[0], again.buf[0]) == (7, 5)
    finally:
        for memory in (of_worker, again, of_parent):
            memory.close()
        of_worker.unlink()
        of_parent.unlink()


def test_shared_memory_of_a_worker_is_removed_when_its_parent_ends(tmp_path: Path) -> None:
    script = """
        from multiprocessing import shared_memory
        from amorsize_executor import AmorsizeExecutor

        def create():
            from multiprocessing import shared_memory
            memory = shared_memory.SharedMemory(create=True, size=1)
            memory.close()
            return memory.name

        with AmorsizeExecutor(1) as executor:
            print(executor.submit(create).result())
        """
    status, out, err = Script(tmp_path, script).finish()  # its tracker has ended, too: that holds stderr
    assert status == 0
    assert "leaked shared_memory" in err  # as the tracker says of anything that was left
    with pytest.raises(FileNotFoundError):
        shared_memory.SharedMemory(out.strip())


def test_multiprocessing_has_its_default_start_method_in_a_worker() -> None:
    with AmorsizeExecutor(1) as executor:
        assert executor.submit(multiprocessing.get_start_method).result(LIMIT_S) == multiprocessing.get_start_method()


def _fork_and_ask() -> int:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(os.getppid)


def test_a_task_may_use_multiprocessing() -> None:
    with AmorsizeExecutor(1) as executor:
        pid = executor.submit(os.getpid).result(LIMIT_S)
        assert executor.submit(_fork_and_ask).result(LIMIT_S) == pid
