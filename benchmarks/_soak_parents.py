"""Programs with an executor get SIGKILL at a random moment: nothing of them is there after two seconds.

A program tells what it begins to do: to start workers, to map, to carry large arrays (in memory files, or where there
are none in files), to shut down. It is killed up to 150 ms after that. All that it started is in its session, so what
is left of it is found there. Blocks have no name: they are gone with the last process that has them. What has a name
(shared memory, files in its own folder for temporary files) is looked for.
"""

from __future__ import annotations

import collections
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from benchmarks._measure import ROOT
from benchmarks._soak_report import Part

N_PARENTS = 1_000
#: At once: twice the CPUs of a small machine, so that kills meet programs that wait for a CPU, too.
AT_ONCE = 4
#: What a program is killed behind, in seconds.
_LATEST_S = 0.15
#: Nothing may be left after this, in seconds ...
GRACE_S = 2.0
#: ... and a program that does not come so far in this time, in seconds, hangs.
LIMIT_S = 30.0
PHASES = ("start", "map", "arrays", "shutdown")

SOURCE = """
import os, sys, time
told = int(sys.argv[1])
def tell(phase):
    os.write(told, phase.encode() + b"\\n")
tell("start")
import numpy as np
from amorsize_executor import AmorsizeExecutor
if sys.argv[2] == "files":
    del os.memfd_create
def spin(x):
    until = time.perf_counter() + x
    while time.perf_counter() < until:
        pass
    return x
ex = AmorsizeExecutor(2, inline="never")
futures = [ex.submit(spin, 0.01) for _ in range(10)]
futures[0].result()
tell("map")
for _ in range(10):
    list(ex.map(spin, [0.001] * 40))
tell("arrays")
data = [np.arange(300_000.0) + i for i in range(6)]
with ex.share(data[0]) as shared:
    for _ in range(10):
        for total in ex.map(np.negative, data):
            pass
        ex.submit(np.sum, shared).result()
results = ex.map(spin, [0.002] * 100)
next(results)
tell("shutdown")
ex.shutdown()
tell("end")
time.sleep(0.05)
"""


@dataclass
class _Found:
    phase: str
    gone_after_s: float
    problem: str = ""


def parents(share: float, seed: int) -> Part:
    """Run the part; `share` of its full length."""
    n_parents = max(int(N_PARENTS * share), 4)
    before = _named_memory()
    with ThreadPoolExecutor(AT_ONCE) as threads:
        found = list(threads.map(_one, range(seed * n_parents, (seed + 1) * n_parents)))
    problems = [each.problem for each in found if each.problem]
    # What a stranger has made meanwhile is there as well: only names that hold what we are known by are ours.
    named = {name for name in _named_memory() - before if "amorsize" in name or "loky" in name}
    if named:
        problems.append(f"shared memory is left: {sorted(named)}")
    phases = collections.Counter(each.phase for each in found)
    counts: dict[str, float] = {f"killed in: {phase}": phases[phase] for phase in (*PHASES, "end")}
    counts["longest time until all was gone, in seconds"] = round(max(each.gone_after_s for each in found), 3)
    return Part(counts, problems)


def _named_memory() -> set[str]:
    return set(os.listdir("/dev/shm"))


def _one(seed: int) -> _Found:
    rng = random.Random(seed)
    wanted, delay_s = rng.choice(PHASES), rng.uniform(0.0, _LATEST_S)
    kind = rng.choice(["memory", "memory", "files"])
    with tempfile.TemporaryDirectory() as folder:
        reading, writing = os.pipe()
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", SOURCE, str(writing), kind],
                cwd=ROOT,
                env={**os.environ, "TMPDIR": folder, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[writing],
                start_new_session=True,
            )
        finally:
            os.close(writing)
        with process, open(reading, "rb") as told:
            phase = _wait_for(told, wanted)
            time.sleep(delay_s)
            process.kill()
            killed_at = time.monotonic()
            rest = told.read().split() if _wait_for_session(process.pid, killed_at) else []
            gone_after_s = time.monotonic() - killed_at
            phase = rest[-1].decode() if rest else phase
            left = _session(process.pid)
            problem = f"seed {seed}, killed in {phase}: processes are left: {left}" if left else ""
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            process.wait()
            assert process.stderr is not None
            said = b"" if left else process.stderr.read()
        files = os.listdir(folder)
        if files and not problem:
            problem = f"seed {seed}, killed in {phase}: files are left: {files}"
        if said and not problem and not _is_expected(said):
            problem = f"seed {seed}, killed in {phase}: said {said.decode(errors='replace')!r}"
        return _Found(phase, gone_after_s, problem)


def _is_expected(said: bytes) -> bool:
    """Whether these are words of loky in a worker whose parent ended as it started it."""
    return b"popen_loky_posix" in said and b"EOFError" in said


def _wait_for(told: object, wanted: str) -> str:
    for line in told:  # type: ignore[attr-defined]
        phase: str = line.decode().strip()
        if phase == wanted:
            return phase
    raise AssertionError(f"a program has ended before it came to {wanted}")


def _wait_for_session(session: int, since: float) -> bool:
    """Wait until no process of a session is left; False if that takes too long."""
    while time.monotonic() - since < GRACE_S:
        if not _session(session):
            return True
        time.sleep(0.005)
    return not _session(session)


def _session(session: int) -> dict[int, str]:
    """Processes of a session that have not ended."""
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            if int(fields[3]) == session and fields[0] not in (b"Z", b"X"):
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    found[int(name)] = file.read().replace(b"\0", b" ").decode(errors="replace")[:200]
        except (OSError, ValueError):
            continue
    return found
