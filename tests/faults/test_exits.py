"""The process that owns an executor ends, one way or another: no worker, block or file is left, and nothing is said."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from ..executor.tools import LIMIT_S, Script, run_script, wait_for_end

pytestmark = pytest.mark.timeout(60)

_ROOT = os.fspath(Path(__file__).resolve().parents[2])

_HEAD = f"""
import os, signal, sys, threading, time
sys.path.insert(0, {_ROOT!r})
import numpy as np
from amorsize_executor import AmorsizeExecutor
from tests.faults.tasks import *

notes = sys.argv[1]
"""


def started(folder: Path, source: str, n: int) -> tuple[Script, list[int]]:
    """A script, and its workers once `n` of them have noted their process ids."""
    notes = folder / "pids"
    script = Script(folder, _HEAD + source, notes)
    until = time.monotonic() + LIMIT_S
    while not (notes.exists() and notes.read_text().count("\n") >= n):
        assert time.monotonic() < until, script.process.communicate()
        assert script.process.poll() is None, script.process.communicate()
    return script, [int(line) for line in notes.read_text().split()]


def shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process that holds the interpreter lock")
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("task", ["hold_interpreter_lock", "sleep_in_c"])
def test_workers_end_with_their_parent_even_in_the_middle_of_c_code(
    tmp_path: Path, signum: signal.Signals, task: str
) -> None:
    before = shared_memory()
    script, workers = started(
        tmp_path,
        f"""
ex = AmorsizeExecutor(2)
futures = [ex.submit({task}, notes, 60) for _ in range(2)]
futures += [ex.submit(total, np.ones(100_000)) for _ in range(20)]
futures[0].result()
""",
        2,
    )
    script.process.send_signal(signum)
    for worker in workers:
        wait_for_end(worker)
    status, out, err = script.finish()
    assert (status, out, err) == (-signum, "", "")
    assert shared_memory() <= before


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_workers_of_any_start_method_end_with_their_parent(tmp_path: Path, method: str) -> None:
    script, workers = started(
        tmp_path,
        f"""
if __name__ == "__main__":
    ex = AmorsizeExecutor(2, mp_context={method!r})
    futures = [ex.submit(sleep_in_c, notes, 60) for _ in range(2)]
    futures[0].result()
""",
        2,
    )
    script.process.kill()
    for worker in workers:
        wait_for_end(worker)
    script.process.communicate()


@pytest.mark.parametrize(
    ("end", "status", "last"),
    [
        ("sys.exit(7)", 7, ""),
        ("raise KeyError('mine')", 1, "KeyError: 'mine'"),
        ("os._exit(8)", 8, ""),
        ("pass", 0, ""),
    ],
)
@pytest.mark.parametrize(
    "work",
    [
        "futures = [ex.submit(noted, notes, i) for i in range(50)]",
        "results = ex.map(noted, [notes] * 50, range(50))",
        "results = ex.map(noted, [notes] * 50, range(50)); next(results)",
        "results = ex.map(noted, [notes] * 50, range(50), buffersize=4); next(results)",
        "futures = [ex.submit(total, np.ones(50_000)) for i in range(20)]",
    ],
)
def test_program_ends_with_work_pending(tmp_path: Path, work: str, end: str, status: int, last: str) -> None:
    before = shared_memory()
    notes = tmp_path / "notes"
    script = Script(tmp_path, f"{_HEAD}\nex = AmorsizeExecutor(2)\n{work}\n{end}\n", notes)
    told, out, err = script.finish()
    assert (told, out) == (status, "")
    assert err.count("Traceback") == bool(last), err
    assert err.rstrip().endswith(last)
    if not last:
        assert err == ""
    if "submit(noted" in work and "_exit" not in end:  # what was submitted is done, and once
        assert sorted(notes.read_text().split(), key=int) == [str(i) for i in range(50)]
    elif notes.exists():
        done = notes.read_text().split()
        assert len(done) == len(set(done))
    assert shared_memory() <= before


def test_nothing_is_left_behind_in_the_folder_for_temporary_files(tmp_path: Path) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    script, workers = started(
        tmp_path,
        f"""
import tempfile
del os.memfd_create
tempfile.tempdir = {str(folder)!r}
ex = AmorsizeExecutor(2)
futures = [ex.submit(total, np.ones(100_000)) for _ in range(20)] + [ex.submit(sleep_in_c, notes, 60)]
futures[-1].result()
""",
        1,
    )
    script.process.kill()
    for worker in workers:
        wait_for_end(worker)
    script.process.communicate()
    assert os.listdir(folder) == []


_INTERRUPTED = """
def bang():
    import random
    rng = random.Random(int(sys.argv[2]))
    threading.Event().wait(rng.uniform(0.0, 0.5))
    os.kill(os.getpid(), signal.SIGINT) if sys.argv[3] == "alone" else os.killpg(0, signal.SIGINT)

def spin(x):
    work(0.002)
    return x

threading.Thread(target=bang, daemon=True).start()
try:
    while True:
        with AmorsizeExecutor(2) as ex:
            futures = [ex.submit(square, i) for i in range(200)]
            assert sum(ex.map(spin, range(30), chunksize=3)) == 435
            assert list(ex.map(square, range(300))) == [x * x for x in range(300)]
            assert [f.result(20) for f in futures] == [x * x for x in range(200)]
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("whom", ["alone", "group"])
@pytest.mark.parametrize("seed", range(int(os.environ.get("AMORSIZE_INTERRUPTS", "4"))))
def test_ctrl_c_at_any_moment_ends_the_program_quietly(tmp_path: Path, seed: int, whom: str) -> None:
    script = Script(tmp_path, _HEAD + _INTERRUPTED, "", seed, whom)
    status, out, err = script.finish()
    assert err == ""
    assert (status, out) == (0, "interrupted\n")


_SWALLOWED = """
import itertools, random
rng = random.Random(int(sys.argv[2]))
go = threading.Event()

def bang():
    for _ in range(10):
        go.wait()
        threading.Event().wait(rng.uniform(0.0, 0.02))
        os.kill(os.getpid(), signal.SIGINT)
        go.clear()

with AmorsizeExecutor(2) as ex:
    ex.submit(square, 1).result(20)
    banger = threading.Thread(target=bang)
    banger.start()
    while banger.is_alive():
        try:
            go.set()
            [ex.submit(square, i) for i in range(100)]
            ex.submit(square, 1).result(20)
        except KeyboardInterrupt:
            pass
    assert [f.result(20) for f in [ex.submit(square, i) for i in range(100)]] == [x * x for x in range(100)]
print("done")
"""


def test_a_pool_survives_ctrl_c_that_is_caught_in_the_middle_of_submits(tmp_path: Path) -> None:
    assert run_script(tmp_path, _HEAD + _SWALLOWED, "", 1) == "done\n"
