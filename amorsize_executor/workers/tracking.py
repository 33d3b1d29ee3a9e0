"""Lets workers use multiprocessing's resource tracker of their parent, which is started when one of them does.

What a task creates or opens by name (``multiprocessing.shared_memory``, semaphores) is registered with a tracker, a
process that removes it at the end. That must be the parent's: one of a worker's own would remove it when the worker
leaves. To start it for each parent would take as long as to start a worker, and few ever need it. So workers get the
end of a pipe in place of the tracker, and what comes from there is handed on, byte by byte.
"""

from __future__ import annotations

import os


class TrackerRelay:
    """A pipe from workers to the parent's resource tracker. Owned by the I/O thread."""

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe()
        os.set_blocking(self.read_fd, False)
        self._begun = b""  # a line that was read in part

    def forward(self) -> None:
        """Hand on what has come."""
        while True:
            try:
                received = os.read(self.read_fd, 1 << 16)
            except BlockingIOError:
                return
            lines, end, self._begun = (self._begun + received).rpartition(b"\n")
            if end:
                _tell_tracker(lines + end)

    def close(self) -> None:
        """Hand on what is left; workers must have ended."""
        self.forward()
        self.drop_after_fork()

    def drop_after_fork(self) -> None:
        """In the child of a fork."""
        os.close(self.read_fd)
        os.close(self.write_fd)


def _tell_tracker(lines: bytes) -> None:
    from multiprocessing import resource_tracker

    fd = resource_tracker.getfd()
    assert fd is not None
    # Lines of this process come between: each is written at once, and pipes keep writes of this size whole.
    for line in lines.splitlines(keepends=True):
        os.write(fd, line)
