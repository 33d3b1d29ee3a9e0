"""Short programs with an executor end in each of the ways there are: none hangs, leaves anything, or prints too much.

Each way is a program with the exit status and the output that it must have. Everything it has started is in its
session, and must be gone when it has ended.
"""

from __future__ import annotations

import collections
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from benchmarks._measure import ROOT
from benchmarks._soak_parents import _is_expected, _session
from benchmarks._soak_report import Part

N_RUNS = 2_000
AT_ONCE = 4
#: Who does not end in this time, in seconds, hangs.
LIMIT_S = 30.0
#: Workers must be gone so long after their program, in seconds.
GRACE_S = 2.0
#: Told of a program that has not heard a Ctrl-C, but the next one. Python runs the handler in the main thread, and if
#: the signal comes as that is about to wait for a lock, it is not interrupted. In a terminal one presses it again.
_SECOND = "took a second Ctrl-C"
#: A signal comes up to so many seconds after the program says that it is ready for it.
_LATEST_S = 0.2


@dataclass(frozen=True)
class Way:
    """A program, and how it must end.

    Attributes
    ----------
    source
        Behind `HEAD`.
    status, out, err
        Exit status, or several that are right, and patterns that match all that it may print.
    signum
        Sent to it, or to its whole group, a moment after it called `ready()`.
    """

    source: str
    status: int | tuple[int, ...] = 0
    out: str = ""
    err: str = ""
    signum: signal.Signals | None = None
    to_group: bool = False


HEAD = """
import faulthandler, os, signal, sys, threading, time, warnings
faulthandler.register(signal.SIGUSR1)  # who hangs tells where
warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)  # Python's, from 3.12 on, about forks
from amorsize_executor import AmorsizeExecutor, WorkerDied
def spin(x):
    until = time.perf_counter() + 0.002
    while time.perf_counter() < until:
        pass
    return x
def ready():
    os.write(int(sys.argv[1]), b".")
def hang(x):
    time.sleep(60)
"""

_TRACEBACK = r"Traceback \(most recent call last\):\n(  .*\n|\n)+"
_INTERRUPTED = rf"({_TRACEBACK}KeyboardInterrupt\n)?"
#: Python forgets why it ends, and ends with 1, if its exit imports a module that defines a named tuple.
_BY_CTRL_C = (-signal.SIGINT, 1)
_REFUSED = "cannot schedule new futures after (interpreter )?shutdown"

WAYS: dict[str, Way] = {
    "with block": Way(
        """
        with AmorsizeExecutor(2) as ex:
            print(sum(ex.map(spin, range(30))))
        """,
        out="435\n",
    ),
    "submits pending": Way(
        """
        ex = AmorsizeExecutor(2)
        futures = [ex.submit(spin, i) for i in range(30)]
        """,
    ),
    "map that nobody iterates": Way(
        """
        ex = AmorsizeExecutor(2)
        results = ex.map(spin, range(50))
        """,
    ),
    "map half iterated": Way(
        """
        ex = AmorsizeExecutor(2, inline='never')
        results = ex.map(spin, range(200))
        print(next(results))
        """,
        out="0\n",
    ),
    "lazy map half iterated": Way(
        """
        import itertools
        ex = AmorsizeExecutor(2)
        results = ex.map(spin, itertools.count(), buffersize=8)
        print(next(results))
        """,
        out="0\n",
    ),
    "unordered lazy map half iterated": Way(
        """
        import itertools
        ex = AmorsizeExecutor(2)
        results = ex.map(spin, itertools.count(), buffersize=8, ordered=False)
        print(next(results) < 8)
        """,
        out="True\n",
    ),
    "sys.exit in the middle of a map": Way(
        """
        ex = AmorsizeExecutor(2)
        for x in ex.map(spin, range(100)):
            if x == 30:
                sys.exit(7)
        """,
        status=7,
    ),
    "sys.exit in a with block": Way(
        """
        with AmorsizeExecutor(2) as ex:
            futures = [ex.submit(spin, i) for i in range(30)]
            sys.exit(7)
        """,
        status=7,
    ),
    "exception in a with block": Way(
        """
        with AmorsizeExecutor(2) as ex:
            for x in ex.map(spin, range(100)):
                if x == 30:
                    raise KeyError(x)
        """,
        status=1,
        err=f"{_TRACEBACK}KeyError: 30\\n",
    ),
    "exception with work pending": Way(
        """
        ex = AmorsizeExecutor(2)
        futures = [ex.submit(spin, i) for i in range(30)]
        raise KeyError('mine')
        """,
        status=1,
        err=f"{_TRACEBACK}KeyError: 'mine'\\n",
    ),
    "os._exit with work pending": Way(
        """
        ex = AmorsizeExecutor(2)
        futures = [ex.submit(hang, i) for i in range(3)]
        ex.submit(spin, 1)
        os._exit(8)
        """,
        status=8,
    ),
    "os._exit with warm workers": Way(
        """
        ex = AmorsizeExecutor(2)
        print(ex.submit(spin, 1).result(), flush=True)
        ex.submit(hang, 1)
        os._exit(8)
        """,
        status=8,
        out="1\n",
    ),
    "Ctrl-C in a with block": Way(
        """
        with AmorsizeExecutor(2) as ex:
            ex.submit(spin, 1).result()
            ready()
            while True:
                list(ex.map(spin, range(20)))
        """,
        status=_BY_CTRL_C,
        err=_INTERRUPTED,
        signum=signal.SIGINT,
    ),
    "Ctrl-C in a terminal": Way(
        """
        ex = AmorsizeExecutor(2, inline='never')
        ready()
        while True:
            list(ex.map(spin, range(20)))
        """,
        status=_BY_CTRL_C,
        err=_INTERRUPTED,
        signum=signal.SIGINT,
        to_group=True,
    ),
    "Ctrl-C while a long task runs": Way(
        """
        with AmorsizeExecutor(2) as ex:
            ready()
            ex.submit(hang, 1).result()
        """,
        status=_BY_CTRL_C,
        err=_INTERRUPTED,
        signum=signal.SIGINT,
        to_group=True,
    ),
    "Ctrl-C that is caught": Way(
        """
        try:
            ready()
            while True:
                with AmorsizeExecutor(2) as ex:
                    list(ex.map(spin, range(20)))
                    ex.submit(spin, 1).result()
        except KeyboardInterrupt:
            print('caught')
        """,
        # The second where Ctrl-C came while a string was executed, as named tuples and data classes are made: Python
        # ends itself by the signal then, though it was caught.
        status=(0, -signal.SIGINT),
        out="caught\n",
        signum=signal.SIGINT,
    ),
    "SIGTERM": Way(
        """
        ex = AmorsizeExecutor(2)
        ready()
        while True:
            ex.submit(spin, 1).result()
            list(ex.map(spin, range(20)))
        """,
        status=-signal.SIGTERM,
        signum=signal.SIGTERM,
    ),
    "SIGTERM with a handler that exits": Way(
        """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))
        with AmorsizeExecutor(2) as ex:
            ready()
            while True:
                ex.submit(spin, 1).result()
        """,
        status=9,
        signum=signal.SIGTERM,
    ),
    "SIGHUP to the group": Way(
        """
        ex = AmorsizeExecutor(2)
        ready()
        while True:
            ex.submit(spin, 1).result()
        """,
        status=-signal.SIGHUP,
        signum=signal.SIGHUP,
        to_group=True,
    ),
    "SIGKILL": Way(
        """
        ex = AmorsizeExecutor(2)
        ready()
        while True:
            list(ex.map(spin, range(20)))
        """,
        status=-signal.SIGKILL,
        signum=signal.SIGKILL,
    ),
    "executor in a thread that goes on": Way(
        """
        def work():
            with AmorsizeExecutor(2) as ex:
                print(ex.submit(spin, 3).result())
                print(sum(ex.map(spin, range(30))))
        threading.Thread(target=work).start()
        """,
        out="(3\\n)?(435\\n)?",
        err=f"(Exception in thread .*:\\n({_TRACEBACK}[^ ].*\\n)?)?",
    ),
    "executor of a thread that has ended": Way(
        """
        kept = []
        def work():
            ex = AmorsizeExecutor(2)
            kept.append((ex, [ex.submit(spin, i) for i in range(9)]))
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        print(kept[0][1][8].result())
        """,
        out="8\n",
    ),
    "a daemon thread in a map": Way(
        """
        ex = AmorsizeExecutor(2, inline='never')
        def work():
            for _ in ex.map(spin, range(100_000)):
                pass
        threading.Thread(target=work, daemon=True).start()
        ex.submit(spin, 1).result()
        ex.shutdown(wait=False, cancel_futures=True)
        """,
        err="(Exception in thread(.*\\n)+)?",
    ),
    "a forked child with an executor of its own": Way(
        """
        ex = AmorsizeExecutor(2)
        ex.submit(spin, 1).result()
        child = os.fork()
        print(ex.submit(spin, 2).result(), flush=True)
        if child:
            print(os.waitpid(child, 0)[1])
        """,
        out="2\\n2\\n0\\n",
    ),
    "a forked child that does nothing": Way(
        """
        ex = AmorsizeExecutor(2)
        futures = [ex.submit(spin, i) for i in range(9)]
        child = os.fork()
        if child:
            print(os.waitpid(child, 0)[1], futures[8].result())
        """,
        out="0 8\n",
    ),
    "a fork in the middle of a map": Way(
        """
        ex = AmorsizeExecutor(2, inline='never')
        for x in ex.map(spin, range(60)):
            if x == 20:
                child = os.fork()
                if not child:
                    os._exit(0)
        print(x, os.waitpid(child, 0)[1])
        """,
        out="59 0\n",
    ),
    "a daemon that outlives its parent": Way(
        """
        ex = AmorsizeExecutor(2)
        ex.submit(spin, 1).result()
        if os.fork():
            os._exit(0)
        print(ex.submit(spin, 2).result(), sum(ex.map(spin, range(30))))
        """,
        out="2 435\n",
    ),
    "submits in atexit": Way(
        """
        import atexit
        ex = AmorsizeExecutor(1)
        ex.submit(spin, 1).result()
        @atexit.register
        def late():
            try:
                ex.submit(spin, 2)
            except RuntimeError as error:
                print(error)
        """,
        out=f"{_REFUSED}\\n",
    ),
    "shutdown in atexit": Way(
        """
        import atexit
        ex = AmorsizeExecutor(2)
        atexit.register(ex.shutdown)
        futures = [ex.submit(spin, i) for i in range(9)]
        """,
    ),
    "executor collected with work pending": Way(
        """
        import gc
        ex = AmorsizeExecutor(2)
        future = ex.submit(spin, 5)
        del ex
        gc.collect()
        print(future.result())
        """,
        out="5\n",
    ),
    "executor in a circle of references": Way(
        """
        class Node:
            pass
        node = Node()
        node.self, node.ex = node, AmorsizeExecutor(2)
        node.futures = [node.ex.submit(spin, i) for i in range(9)]
        del node
        """,
    ),
    "executor that was never used": Way(
        """
        ex = AmorsizeExecutor(2, min_workers=2)
        """,
    ),
    "shutdown that does not wait": Way(
        """
        ex = AmorsizeExecutor(2)
        futures = [ex.submit(spin, i) for i in range(30)]
        ex.shutdown(wait=False)
        """,
    ),
    "shutdown that cancels": Way(
        """
        ex = AmorsizeExecutor(2)
        futures = [ex.submit(spin, i) for i in range(300)]
        ex.shutdown(wait=False, cancel_futures=True)
        print(futures[-1].cancelled())
        """,
        out="True\n",
    ),
    "kill_workers": Way(
        """
        ex = AmorsizeExecutor(2)
        futures = [ex.submit(hang, i) for i in range(9)]
        ex.submit(spin, 1)
        ex.kill_workers()
        print(type(futures[0].exception()).__name__)
        """,
        out="BrokenProcessPool\n",
    ),
    "terminate_workers": Way(
        """
        ex = AmorsizeExecutor(2)
        futures = [ex.submit(hang, i) for i in range(9)]
        ex.terminate_workers()
        print(type(futures[0].exception()).__name__)
        """,
        out="BrokenProcessPool\n",
    ),
    "a worker dies as the program ends": Way(
        """
        ex = AmorsizeExecutor(2)
        futures = [ex.submit(spin, i) for i in range(30)]
        ex.submit(os._exit, 3)
        """,
    ),
    "sys.exit in a callback": Way(
        """
        ex = AmorsizeExecutor(1)
        future = ex.submit(spin, 1)
        future.add_done_callback(lambda future: os._exit(5))
        ex.submit(hang, 1)
        """,
        status=5,
    ),
    "the program becomes another one": Way(
        """
        ex = AmorsizeExecutor(2)
        ex.submit(spin, 1).result()
        ex.submit(hang, 1)
        os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(0.2); print(3)'])
        """,
        out="3\n",
    ),
    "in asyncio": Way(
        """
        import asyncio
        async def main():
            with AmorsizeExecutor(2) as ex:
                loop = asyncio.get_running_loop()
                return await asyncio.gather(*[loop.run_in_executor(ex, spin, i) for i in range(9)])
        print(asyncio.run(main()))
        """,
        out="\\[0, 1, 2, 3, 4, 5, 6, 7, 8\\]\\n",
    ),
    "an executor in a worker": Way(
        """
        def nested(n):
            with AmorsizeExecutor(2, inline='never') as ex:
                return sum(ex.map(spin, range(n)))
        ex = AmorsizeExecutor(2)
        futures = [ex.submit(nested, 9) for _ in range(3)]
        print(futures[1].result())
        """,
        out="36\n",
    ),
    "an initializer that raises": Way(
        """
        def init():
            raise KeyError('mine')
        ex = AmorsizeExecutor(2, initializer=init)
        print(type(ex.submit(spin, 1).exception()).__name__)
        """,
        out="BrokenProcessPool\n",
    ),
    "a task whose time is over": Way(
        """
        ex = AmorsizeExecutor(1)
        print(type(ex.options(timeout=0.5).submit(hang, 1).exception()).__name__)
        """,
        out="TaskTimeout\n",
    ),
    "resources and shared objects": Way(
        """
        ex = AmorsizeExecutor(2)
        handle, shared = ex.resource(dict, a=1), ex.share(b'x' * 1_000_000)
        print(ex.submit(len, handle).result(), ex.submit(len, shared).result())
        """,
        out="1 1000000\n",
    ),
}


def exits(share: float, seed: int) -> Part:
    """Run the part; `share` of its full length."""
    n_runs = max(int(N_RUNS * share), len(WAYS))
    names = list(WAYS)
    order = [(names[i % len(names)], seed * n_runs + i) for i in range(n_runs)]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        found = list(threads.map(lambda pair: _one(*pair), order))
    problems = [problem for problem, _ in found if problem and problem != _SECOND]
    slowest = max(took_s for problem, took_s in found if problem != _SECOND)
    hung = sum("does not end" in problem for problem in problems)
    counts: dict[str, float] = {
        "programs": n_runs,
        "programs that hung": hung,
        "programs that took a second Ctrl-C": sum(problem == _SECOND for problem, _ in found),
        "programs with another problem": len(problems) - hung,
        "longest time of a program, in seconds": round(slowest, 2),
    }
    failing = collections.Counter(problem.partition(":")[0] for problem in problems)
    return Part(counts, [*(f"{n} times: {name}" for name, n in failing.items()), *problems])


def _ends_at_second(process: subprocess.Popen[str]) -> bool:
    """Whether another Ctrl-C is heard."""
    process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=GRACE_S)
    except subprocess.TimeoutExpired:
        return False
    return not _session(process.pid)


def _one(name: str, seed: int) -> tuple[str, float]:
    """What is wrong with a run of this way, and how long it took in seconds."""
    way, rng = WAYS[name], random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        reading, writing = os.pipe()
        with open(reading, "rb") as told:
            begun = time.monotonic()
            process = subprocess.Popen(
                [sys.executable, "-c", HEAD + textwrap.dedent(way.source), str(writing)],
                cwd=ROOT,
                env={**os.environ, "TMPDIR": folder, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                pass_fds=[writing],
                start_new_session=True,
            )
            os.close(writing)
            with process:
                if way.signum is not None:
                    told.read(1)
                    time.sleep(rng.uniform(0.0, _LATEST_S))
                    (os.killpg if way.to_group else os.kill)(process.pid, way.signum)
                try:
                    out, err = process.communicate(timeout=LIMIT_S)
                except subprocess.TimeoutExpired:
                    left = _session(process.pid)
                    if way.signum == signal.SIGINT and _ends_at_second(process):
                        return _SECOND, LIMIT_S
                    process.send_signal(signal.SIGUSR1)
                    time.sleep(0.5)
                    for pid in left:
                        os.kill(pid, signal.SIGKILL)
                    out, err = process.communicate()
                    return f"{name}: does not end; {left}; said {out!r} {err!r}", LIMIT_S
                took_s = time.monotonic() - begun
                until = time.monotonic() + GRACE_S
                while (left := _session(process.pid)) and time.monotonic() < until:
                    time.sleep(0.005)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        files = os.listdir(folder)
    problem = ""
    if left:
        problem = f"processes are left: {left}"
    elif files:
        problem = f"files are left: {files}"
    elif process.returncode not in (way.status if isinstance(way.status, tuple) else (way.status,)):
        problem = f"exit status {process.returncode} instead of {way.status}; said {out!r} {err!r}"
    elif not re.fullmatch(way.out, out) or not (re.fullmatch(way.err, err) or _is_expected(err.encode())):
        problem = f"said {out!r} {err!r}"
    return (f"{name}: {problem}" if problem else ""), took_s
