"""How a worker's process ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import os, socket
from amorsize_executor.workers import protocol
from amorsize_executor.workers.channel import make_frame
from amorsize_executor.workers.process import worker_main

ours, theirs = socket.socketpair()
ours.sendall(make_frame({message}).data)
worker_main(theirs, os.getppid(), {{}}, "1")
"""


@pytest.mark.parametrize(
    ("message", "status", "error"),
    [("(protocol.EXIT,)", 0, ""), ("(protocol.RUN, 'not a chunk')", 1, "ValueError")],
    ids=["told to leave", "failed"],
)
def test_the_exit_status_tells_whether_a_worker_has_failed(message: str, status: int, error: str) -> None:
    code = SCRIPT.format(message=message)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    assert ended.returncode == status
    assert error in ended.stderr


PAUSES = """
import os, socket
from amorsize_executor.workers import process, protocol
from amorsize_executor.workers.channel import Receiver, make_frame

ours, theirs = socket.socketpair()
worker = process.Worker(theirs, "1")
receiver = Receiver()
for process._PAUSE_NS in (60_000_000_000, 0):
    ours.sendall(make_frame((protocol.EXIT,)).data)
    worker._is_brisk, before = False, worker._busy_since_ns
    worker._receive(receiver)
    print(worker._busy_since_ns == before, flush=True)
os._exit(0)
"""


def test_a_worker_that_waits_a_moment_for_its_next_chunk_has_been_busy_all_the_time() -> None:
    ended = subprocess.run([sys.executable, "-c", PAUSES], capture_output=True, text=True, timeout=50, check=True)
    assert ended.stdout.split() == ["True", "False"]
