"""What tests of the executor share: signals between processes, scripts in a process of their own, ends of processes."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

#: Nothing here takes long; who waits longer than this, in seconds, waits for ever.
LIMIT_S = 30.0
#: Helpers of the standard library and loky that live as long as the interpreter.
_HELPERS = ("resource_tracker", "forkserver")


def beside_this_process(nbytes: int) -> int:
    """A memory limit that leaves so many bytes to workers, whatever the tests before have left in this process."""
    return psutil.Process().memory_info().rss + nbytes


class Signal:
    """A counting semaphore between processes: a named pipe whose bytes are permits. Pickled by its path."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        os.mkfifo(self.path)
        self._kept_fd = os.open(self.path, os.O_RDWR)  # keeps permits that nobody has taken yet

    def __reduce__(self) -> tuple[Any, ...]:
        return attach_signal, (self.path,)

    def give(self, n: int = 1) -> None:
        """Let `n` takers pass."""
        with self._open() as fd:
            os.write(fd, b"." * n)

    def take(self, n: int = 1) -> None:
        """Wait for `n` permits."""
        until = time.monotonic() + LIMIT_S
        with self._open() as fd:
            while n:
                ready, _, _ = select.select([fd], [], [], max(until - time.monotonic(), 0))
                if not ready:
                    raise TimeoutError(f"nobody gave {os.path.basename(self.path)}")
                with contextlib.suppress(BlockingIOError):  # another taker was faster
                    n -= len(os.read(fd, n))

    def count(self) -> int:
        """Permits that nobody has taken; takes them."""
        total = 0
        with self._open() as fd, contextlib.suppress(BlockingIOError):
            while True:
                total += len(os.read(fd, 65536))
        return total

    @contextlib.contextmanager
    def _open(self) -> Iterator[int]:
        fd = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)
        try:
            yield fd
        finally:
            os.close(fd)

    def close(self) -> None:
        """Remove it."""
        os.close(self._kept_fd)
        os.unlink(self.path)


def attach_signal(path: str) -> Signal:
    """The signal of another process."""
    attached = object.__new__(Signal)
    attached.path = path
    return attached


def wait_for_end(pid: int) -> None:
    """Wait until a process has ended, without reaping it."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ended, _, _ = select.select([fd], [], [], LIMIT_S)
    finally:
        os.close(fd)
    assert ended, f"process {pid} goes on"


def remaining_children() -> list[psutil.Process]:
    """Child processes of this one that should not be there any more."""
    children = [p for p in psutil.Process().children(recursive=True) if not _is_helper(p)]
    return psutil.wait_procs(children, timeout=LIMIT_S)[1]


def _is_helper(process: psutil.Process) -> bool:
    try:
        return any(name in part for part in process.cmdline() for name in _HELPERS)
    except psutil.Error:
        return False


@contextlib.contextmanager
def process_wide_executors_end() -> Iterator[None]:
    """End the default executor with the block, and those for other bounds, whose workers would stay for a minute."""
    import pytest  # workers import this module, and need none of these

    from amorsize_executor import AmorsizeExecutor
    from amorsize_executor.optimizer import executors

    made: list[AmorsizeExecutor] = []

    def make(*args: Any, **kwargs: Any) -> AmorsizeExecutor:
        made.append(AmorsizeExecutor(*args, **kwargs))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executors, "AmorsizeExecutor", make)
        yield
    for executor in made:
        executor.shutdown()


class Script:
    """A program in an interpreter and session of its own."""

    def __init__(self, folder: Path, source: str, *args: object) -> None:
        path = folder / "script.py"
        path.write_text(textwrap.dedent(source))
        self.process = subprocess.Popen(
            [sys.executable, str(path), *map(str, args)],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def interrupt(self, *, group: bool) -> None:
        """Ctrl-C: SIGINT to the program alone, or to all of its session as a terminal does."""
        (os.killpg if group else os.kill)(self.process.pid, signal.SIGINT)

    def finish(self) -> tuple[int, str, str]:
        """Wait for its end: exit status, output, errors. Nothing of its session may remain."""
        try:
            out, err = self.process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGABRT)
            out, err = self.process.communicate(timeout=LIMIT_S)
            raise AssertionError(f"the script does not end\n{out}\n{err}") from None
        for pid in self._session():
            wait_for_end(pid)
        return self.process.returncode, out, err

    def _session(self) -> list[int]:
        """Processes of its session that still exist."""
        found = []
        for pid in psutil.pids():
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(pid) == self.process.pid:
                    found.append(pid)
        return found


def run_script(folder: Path, source: str, *args: object) -> str:
    """Output of a program that must end well and say nothing on stderr."""
    status, out, err = Script(folder, source, *args).finish()
    assert status == 0, err
    assert err == ""
    return out
