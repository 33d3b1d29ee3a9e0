"""Functions that tests of faults run in workers, which import them from here."""

from __future__ import annotations

import collections
import ctypes
import errno
import faulthandler
import os
import select
import signal
import subprocess
import sys
import time
from types import FrameType
from typing import Any

import numpy as np

from ..executor.tools import Signal


def square(x: int) -> int:
    return x * x


def pid(_: object = None) -> int:
    return os.getpid()


def note(path: str, what: object) -> None:
    """Append a line; one `write` of a few bytes is never mixed up with another."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{what}\n".encode())
    os.close(fd)


def count_notes(path: object) -> collections.Counter[int]:
    """How often each number was noted."""
    try:
        with open(os.fspath(path)) as file:  # type: ignore[call-overload]
            return collections.Counter(map(int, file))
    except FileNotFoundError:
        return collections.Counter()


def happens_first(path: str) -> bool:
    """Whether nobody has asked this before."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def work(seconds: float) -> None:
    """Keep the CPU busy."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def die(how: str) -> None:
    """End this process, one way or another."""
    if how == "exit":
        os._exit(3)
    if how == "segfault":
        faulthandler._sigsegv()  # type: ignore[attr-defined]
    if how == "abort":
        os.abort()
    os.kill(os.getpid(), getattr(signal, how))
    select.select([], [], [], 60)  # a signal to oneself may take a moment


def noted(path: str, x: int) -> int:
    note(path, x)
    return x * x


class Deadly:
    """A function of one number that notes its calls, works, and dies at some numbers, each once if `once` is given."""

    def __init__(self, path: str, deadly: set[int], seconds: float = 0.0, how: str = "SIGKILL", once: str = "") -> None:
        self.path, self.deadly, self.seconds, self.how, self.once = path, deadly, seconds, how, once

    def __call__(self, x: int) -> int:
        note(self.path, x)
        if x in self.deadly and (not self.once or happens_first(f"{self.once}-{x}")):
            die(self.how)
        if self.seconds:
            work(self.seconds)
        return x * x


def tell_and_wait(started: Signal, go: Signal, value: Any = None) -> Any:
    """Tell that it runs, and go on when told to."""
    started.give()
    go.take()
    return value


def tell_pid_and_hang(path: str) -> None:
    note(path, os.getpid())
    select.select([], [], [], 60)


class DiesWhenUnpickled:
    """An argument, a result or an exception with a deadly copy."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __reduce__(self) -> tuple[Any, ...]:
        return die, (self.how,)


class DiesWhenPickled:
    def __reduce__(self) -> tuple[Any, ...]:
        os._exit(4)


def make(kind: type, *args: Any) -> Any:
    return kind(*args)


def identity(x: Any) -> Any:
    return x


class SlowlyPickled:
    """A large result whose process is killed while it is stored."""

    def __reduce__(self) -> tuple[Any, ...]:
        os.kill(os.getpid(), signal.SIGKILL)
        return bytes, (10_000_000,)


def large_and_deadly() -> list[Any]:
    return [np.ones(1_000_000), SlowlyPickled()]


def fork_a_long_lived_child(path: str) -> None:
    """Die, and leave a child with copies of all descriptors."""
    child = os.fork()
    if child == 0:
        select.select([], [], [], 60)
        os._exit(0)
    note(path, child)
    die("SIGKILL")


def fork_and_return(path: str, status: int | None) -> int:
    """Come back from a fork twice, once in each process."""
    child = os.fork()
    if child == 0:
        if status is not None:
            sys.exit(status)
        return -1
    note(path, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    return child


def close_all_descriptors() -> str:
    os.closerange(3, 256)
    return "done"


def hold_interpreter_lock(path: str, seconds: int) -> None:
    """Sleep in C code that never lets another thread run."""
    note(path, os.getpid())
    ctypes.PyDLL(None).sleep(seconds)


def sleep_in_c(path: str, seconds: float) -> None:
    note(path, os.getpid())
    time.sleep(seconds)


def allocate(nbytes: int) -> int:
    """Have that much memory for a moment; returns the process."""
    data = bytearray(nbytes)
    data[::4096] = b"x" * len(data[::4096])
    return os.getpid()


def hold(nbytes: int, path: str = "") -> int:
    """Take memory step by step, have it for a moment, and note beginning (1) and end (-1) of that."""
    if path:
        note(path, 1)
    steps = []
    for _ in range(nbytes >> 20):
        steps.append(bytearray(1 << 20))
        steps[-1][::4096] = b"x" * 256
    time.sleep(0.05)  # as a task does that computes with it
    if path:
        note(path, -1)
    return nbytes


def kill_like_the_kernel(path: str, times: int) -> int:
    """Be killed, and count that where the kernel's kills are counted, until there are so many; then return that."""
    if os.path.getsize(path) < times:
        with open(path, "a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)
    return times


def large(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.float64)


def total(array: np.ndarray) -> float:
    return float(array.sum())


def leave_no_room(how: str) -> None:
    """An initializer after which large results cannot be stored."""
    from amorsize_executor.workers import blocks

    if how == "create":

        def create(nbytes: int = 0) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        blocks.create = create
    else:
        original = os.write

        def write(fd: int, data: Any) -> int:
            if memoryview(data).nbytes < 4096:
                return original(fd, data)
            if memoryview(data).nbytes > 100_000:
                return original(fd, memoryview(data)[:50_000])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def pwrite(fd: int, data: Any, offset: int) -> int:
            os.lseek(fd, offset, os.SEEK_SET)
            return write(fd, data)

        blocks.os.write, blocks.os.pwrite = write, pwrite


def take_all_descriptors() -> int:
    """Leave this process no descriptor; returns how many there were."""
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    taken = []
    try:
        while True:
            taken.append(os.dup(2))
    except OSError:
        return len(taken)


def tiny(x: int) -> int:
    """As short as a task can be; deadly at -1, and forks at -2."""
    if x == -1:
        os._exit(5)
    if x == -2 and not (child := os.fork()):
        return child
    return x


def tiny_list(x: int) -> list[int]:
    return [tiny(x)]


def tiny_mixed(x: int) -> Any:
    """Results of all kinds: those that are sent as they are, pickled, and with buffers."""
    return (tiny(x), [x], {"x": x}, np.full(3, x), None, 1.5)[x % 6 if x >= 0 else 0]


def tiny_changing(x: int) -> Any:
    """Integers, between which there is now and then something that looks like one."""
    x = tiny(x)
    if x % 97 == 50:
        return (True, 1.0, 2**63, -(2**80), None)[x % 5]
    return x - 1000


def hang_with_child(path: str) -> None:
    """Start a process that would go on for long, and wait for it."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    note(path, child.pid)
    child.wait()


def note_and_hang_at(path: str, x: int, at: int) -> int:
    note(path, x)
    if x == at:
        time.sleep(60)
    return x * x


def daemonise_and_hang(path: str) -> None:
    """Start a process that leaves its ancestors, as a daemon does."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.setsid()
        if os.fork():
            os._exit(0)
        note(path, os.getpid())
        os.close(writing)
        time.sleep(60)
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    os.read(reading, 1)
    time.sleep(60)


def sleep_briefly(seconds: float) -> None:
    time.sleep(seconds)


def first_goes_ahead(path: str, go: Signal) -> None:
    """An initializer that takes long in all workers but one."""
    if not happens_first(path):
        go.take()


class AlarmError(Exception):
    """What a handler of signals raises."""


def tiny_with_alarms(x: int) -> int:
    """As short as a task can be; a signal comes again and again, whose handler raises at any moment."""
    if not x:
        signal.signal(signal.SIGALRM, _raise_alarm)
        signal.setitimer(signal.ITIMER_REAL, 1e-4, 2e-4)
    return x


def no_more_alarms() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)


def _raise_alarm(number: int, frame: FrameType | None) -> None:
    if frame is not None and frame.f_code.co_name in ("_run_to_vector", "tiny_with_alarms"):
        raise AlarmError
