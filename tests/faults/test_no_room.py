"""No room for what is large: the tasks concerned fail with OSError, and nothing else is lost."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amorsize_executor import AmorsizeExecutor
from amorsize_executor.workers import blocks

from ..executor.tools import LIMIT_S, run_script
from .tasks import count_notes, large, leave_no_room, noted, pid, square, total

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def fill(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Let blocks of this process have no room, from their creation or from some size on."""

    def fill(how: str) -> None:
        def create(nbytes: int = 0) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        original = os.write

        def write(fd: int, data: Any) -> int:
            if memoryview(data).nbytes < 4096:
                return original(fd, data)
            if memoryview(data).nbytes > 100_000:
                return original(fd, memoryview(data)[:50_000])  # some of it goes in
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def pwrite(fd: int, data: Any, offset: int) -> int:
            os.lseek(fd, offset, os.SEEK_SET)
            return write(fd, data)

        if how == "create":
            monkeypatch.setattr(blocks, "create", create)
        else:
            monkeypatch.setattr(blocks.os, "write", write)
            monkeypatch.setattr(blocks.os, "pwrite", pwrite)

    return fill


@pytest.mark.parametrize("how", ["create", "write"])
def test_only_tasks_with_large_arguments_fail_when_there_is_no_room(
    fill: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    with AmorsizeExecutor(2, min_workers=2) as executor:
        assert executor.submit(total, np.ones(10)).result(LIMIT_S) == 10
        with monkeypatch.context():
            fill(how)
            futures = [executor.submit(total, np.ones(n)) for n in (10, 100_000, 20, 100_000, 30)]
            results = [future.exception(LIMIT_S) or future.result() for future in futures]
            monkeypatch.undo()
        assert [results[i] for i in (0, 2, 4)] == [10.0, 20.0, 30.0]
        for i in (1, 3):
            error = results[i]
            assert isinstance(error, OSError)
            assert error.errno == errno.ENOSPC
        assert executor.submit(total, np.ones(100_000)).result(LIMIT_S) == 1e5


def test_a_chunk_loses_only_the_items_that_found_no_room(fill: Callable[[str], None], monkeypatch: pytest.MonkeyPatch):
    sizes = [10, 5_000, 40_000, 20, 5_000]  # 40_000 floats are partly written before the failure
    arrays = [np.full(n, 2.0) for n in sizes]
    with AmorsizeExecutor(1, inline="never") as executor:
        executor.submit(square, 1).result(LIMIT_S)
        fill("write")
        results = executor.map(total, [*arrays[:2], *arrays[3:4], arrays[2], arrays[4]], chunksize=5)
        assert next(results) == 20.0
        with pytest.raises(OSError, match="No space left"):
            next(results)
        monkeypatch.undo()
        assert list(executor.map(total, arrays, chunksize=5)) == [2.0 * n for n in sizes]


def test_buffers_behind_one_without_room_are_not_shifted(
    fill: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = blocks.BlockWriter()
    first = writer.add(memoryview(np.full(100, 1.0)).cast("B"))
    fill("write")
    with pytest.raises(OSError, match="No space left"):
        writer.add(memoryview(np.full(100_000, 2.0)).cast("B"))
    monkeypatch.undo()
    second = writer.add(memoryview(np.full(100, 3.0)).cast("B"))
    fd = writer.detach()
    assert fd is not None
    try:
        view = blocks.map_private(fd, blocks.size(fd))
        assert set(np.frombuffer(view[first : first + 800])) == {1.0}
        assert set(np.frombuffer(view[second : second + 800])) == {3.0}
    finally:
        os.close(fd)


@pytest.mark.parametrize("how", ["create", "write"])
def test_only_large_results_fail_when_a_worker_has_no_room(how: str, notes: str) -> None:
    with AmorsizeExecutor(1, initializer=leave_no_room, initargs=(how,)) as executor:
        futures = [executor.submit(large, n) for n in (10, 100_000, 20, 100_000)]
        assert [len(futures[i].result(LIMIT_S)) for i in (0, 2)] == [10, 20]
        for i in (1, 3):
            error = futures[i].exception(LIMIT_S)
            assert isinstance(error, OSError)
            assert error.errno == errno.ENOSPC
        results = executor.map(large, [10, 20, 100_000, 30], chunksize=4)
        assert [len(next(results)), len(next(results))] == [10, 20]
        with pytest.raises(OSError, match="No space left"):
            next(results)
        text = executor.submit(str.__mul__, "x", 1_000_000).exception(LIMIT_S)
        assert isinstance(text, OSError)
        assert executor.submit(noted, notes, 3).result(LIMIT_S) == 9
        assert executor.submit(pid).result(LIMIT_S) == executor.submit(pid).result(LIMIT_S)
    assert count_notes(notes) == {3: 1}


def test_worker_cannot_start_without_room_for_its_status(fill: Callable[[str], None]) -> None:
    fill("write")
    with AmorsizeExecutor(1) as executor:
        error = executor.submit(square, 1).exception(LIMIT_S)
        assert error is not None
        assert isinstance(error.__cause__, OSError)


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with room for half a megabyte."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root may mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_under_temporary_files_costs_the_large_tasks_alone(tmp_path: Path, tiny_folder: Path) -> None:
    out = run_script(
        tmp_path,
        f"""
        import os, sys, tempfile
        del os.memfd_create
        tempfile.tempdir = {str(tiny_folder)!r}

        import numpy as np
        from amorsize_executor import AmorsizeExecutor
        from amorsize_executor.workers import blocks
        blocks.SHARED_MEMORY = "/nonexistent"

        def without_memfd():
            import os, tempfile
            from amorsize_executor.workers import blocks
            del os.memfd_create
            tempfile.tempdir = {str(tiny_folder)!r}
            blocks.SHARED_MEMORY = "/nonexistent"

        with AmorsizeExecutor(2, initializer=without_memfd) as ex:
            futures = [ex.submit(np.sum, np.ones(n)) for n in (10, 10_000, 100_000, 20)]
            print([f.exception(20) and f.exception().errno or float(f.result()) for f in futures])
            futures = [ex.submit(np.ones, n) for n in (10, 10_000, 100_000, 20)]
            print([f.exception(20) and f.exception().errno or len(f.result()) for f in futures])
            print(os.listdir({str(tiny_folder)!r}))
        """,
    )
    assert out.splitlines() == ["[10.0, 10000.0, 28, 20.0]", "[10, 10000, 28, 20]", "[]"]
