"""A memory group of version 1 for tests and benchmarks: a sibling of this process's own, removed in the end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

_MOUNT = Path("/sys/fs/cgroup/memory")


class NoGroup(Exception):
    """No group can be made here, and why."""


class MemoryGroup:
    """A group with a limit."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def run(
        self, command: Sequence[str], timeout_s: float, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in it, which ends with its children, and return what it wrote."""
        # Joined by a shell that then becomes the command: code between fork and exec may not run Python's.
        join = ["/bin/sh", "-c", f'echo $$ > "{self._folder}/cgroup.procs" && exec "$@"', "sh"]
        return subprocess.run(
            [*join, *command], cwd=cwd, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def n_kills(self) -> int:
        """Processes that the kernel has killed in it for want of memory."""
        fields = dict(line.split() for line in (self._folder / "memory.oom_control").read_text().splitlines())
        return int(fields["oom_kill"])

    def most_nbytes(self) -> int:
        """What it has used at most, in bytes, with pages of files."""
        return int((self._folder / "memory.max_usage_in_bytes").read_text())


@contextlib.contextmanager
def memory_group(limit_nbytes: int) -> Iterator[MemoryGroup]:
    """A group with so much memory.

    Raises
    ------
    NoGroup
        If none can be made here.
    """
    folder = _make(limit_nbytes)
    try:
        yield MemoryGroup(folder)
    finally:
        until = time.monotonic() + 10
        while True:
            try:
                os.rmdir(folder)
                break
            except OSError:  # a process that was killed is not gone yet
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)


def _make(limit_nbytes: int) -> Path:
    lines = Path("/proc/self/cgroup").read_text().splitlines() if _MOUNT.is_dir() else []
    own = [line.split(":", 2)[2] for line in lines if line.split(":")[1] == "memory"]
    if not own:
        raise NoGroup("this machine has no memory controller of cgroup version 1")
    folder = _MOUNT / os.path.dirname(own[0].rstrip("/")).lstrip("/") / f"amorsize-test-{uuid.uuid4().hex[:8]}"
    try:
        os.mkdir(folder)
    except OSError as error:
        raise NoGroup(f"this user may make no memory group: {error}") from error
    try:
        (folder / "memory.limit_in_bytes").write_text(str(limit_nbytes))
    except OSError as error:
        os.rmdir(folder)
        raise NoGroup(f"this user may limit no memory group: {error}") from error
    return folder
