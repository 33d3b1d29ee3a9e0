"""What this machine offers: CPUs and memory, with the limits of a container taken into account.

Files below /proc and /sys are read when asked, never at import. `root` arguments exist so that the parsers can be
tested on made-up trees.
"""

from __future__ import annotations

import math
import os
import sys

from . import cgroups
from .cgroups import read as _read

TYPE_CHECKING = False  # as of typing, which a worker does without (see `workers`)
if TYPE_CHECKING:
    from pathlib import Path

_UNREAD = -1.0
#: This process's CPU quota; read once, since that takes longer than a small map.
_quota: float | None = _UNREAD
#: The CPUs' name; None until it is asked for.
_model: str | None = None


#: Environment variable of workers, and of what they start.
CPU_SHARE = "AMORSIZE_CPU_SHARE"


def cpu_count(root: str | Path = "/") -> int:
    """CPUs that this process may use: its affinity and its cgroup's quota, at least 1.

    Parameters
    ----------
    root
        Root of the file system to read cgroup files from.
    """
    if hasattr(os, "sched_getaffinity"):
        n = len(os.sched_getaffinity(0))
    else:
        n = os.cpu_count() or 1
    global _quota
    if root != "/":
        quota = cgroups.cpu_quota(os.fspath(root))
    else:
        if _quota == _UNREAD:
            _quota = cgroups.cpu_quota()
        quota = _quota
    if quota is not None:
        n = min(n, max(math.ceil(quota), 1))
    return max(n, 1)


def cpu_share() -> int:
    """CPUs that this process should use: of a worker, its share of those of the executor that it belongs to."""
    n = cpu_count()
    try:
        return max(min(int(os.environ[CPU_SHARE]), n), 1)
    except (KeyError, ValueError):  # no worker's, nor a process that one has started
        return n


def architecture() -> str:
    """The CPUs' instruction set, such as "x86_64" or "arm64"."""
    return os.uname().machine


def cpu_model(root: str | Path = "/") -> str:
    """The CPUs' name, such as "AMD EPYC 7B13"; the architecture's where the system tells none.

    Parameters
    ----------
    root
        Root of the file system to read "proc/cpuinfo" from.
    """
    if root != "/":
        return _cpu_model(os.fspath(root))
    global _model
    if _model is None:
        _model = _cpu_model("/")
    return _model


def memory_limit(root: str | Path = "/") -> int:
    """Bytes of memory that this process and its workers may use: the smallest of host and cgroup limits."""
    return min([host_memory(root), *cgroups.memory_limits(os.fspath(root))])


def free_memory(root: str | Path = "/", *, has_groups: bool = True) -> tuple[int, int]:
    """Bytes that may still be taken before the machine's memory, or what its cgroup allows, is used up.

    Parameters
    ----------
    root
        Root of the file system to read files from.
    has_groups
        Whether any cgroup may limit it.

    Returns
    -------
    tuple[int, int]
        Without swapping, and where the machine's swap counts as memory.
    """
    free = cgroups.free_nbytes(os.fspath(root)) if has_groups else None
    available, swap = _available_memory(os.fspath(root))
    if free is None:
        return available, available + swap
    return min(available, free), min(available + swap, free)


def resident_nbytes(pid: int) -> int | None:
    """Resident memory of a process in bytes; None when it is gone."""
    if sys.platform == "linux":
        text = _read(f"/proc/{pid}/statm")
        return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE") if text else None
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


def private_nbytes(pid: int) -> int | None:
    """Resident memory in bytes that a process shares with no file and no block; None when it is gone."""
    if sys.platform != "linux":
        return resident_nbytes(pid)
    text = _read(f"/proc/{pid}/statm").split()
    return max(int(text[1]) - int(text[2]), 0) * os.sysconf("SC_PAGE_SIZE") if text else None


def waited_s(pid: int) -> float:
    """How long the first thread of a process has waited for a CPU, in seconds; 0 where that is not told."""
    fields = _read(f"/proc/{pid}/schedstat").split() if sys.platform == "linux" else []
    return int(fields[1]) * 1e-9 if len(fields) > 1 else 0.0


def cpu_s(pid: int) -> float:
    """CPU time that a process has used in its life, in seconds; 0 when it is gone."""
    import psutil

    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


class MemoryUse:
    """Memory of this process, in bytes.

    Attributes
    ----------
    private_nbytes
        Resident memory that it shares with no file and no block.
    peak_private_nbytes
        The largest that this has been, since the process began or `forget_peak` was called.
    peak_nbytes
        The same, with the pages of files.
    """

    __slots__ = ("peak_nbytes", "peak_private_nbytes", "private_nbytes")

    def __init__(self, private_nbytes: int, peak_private_nbytes: int, peak_nbytes: int) -> None:
        self.private_nbytes = private_nbytes
        self.peak_private_nbytes = peak_private_nbytes
        self.peak_nbytes = peak_nbytes


def memory_use() -> MemoryUse:
    """What this process uses, and has used at most.

    Notes
    -----
    Not ``ru_maxrss`` on Linux: that starts from the memory of the process which this one was forked from. Shared memory
    that it has now is taken off there: several processes have the same.
    """
    found = {"VmHWM": 0, "VmRSS": 0, "RssFile": 0, "RssShmem": 0}
    for line in _read("/proc/self/status").splitlines():
        name, _, value = line.partition(":")
        if name in found:
            found[name] = int(value.split()[0]) * 1024
    if found["VmHWM"]:
        shared = found["RssFile"] + found["RssShmem"]
        private = max(found["VmRSS"] - shared, 0)
        return MemoryUse(private, max(found["VmHWM"] - shared, private), max(found["VmHWM"] - found["RssShmem"], 0))
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return MemoryUse(resident_nbytes(os.getpid()) or peak, peak, peak)


def peak_nbytes() -> int:
    """Largest resident memory that this process has had, in bytes, as in `MemoryUse`."""
    return memory_use().peak_nbytes


def forget_peak() -> bool:
    """Let the peak of this process start from what it uses now; False where the system does not allow that."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return False
    return True


def host_memory(root: str | Path = "/") -> int:
    """Bytes of memory of this machine."""
    found = _memory_info(os.fspath(root), "MemTotal")
    if found:
        return found["MemTotal"]
    import psutil

    return int(psutil.virtual_memory().total)


def _available_memory(root: str) -> tuple[int, int]:
    """Bytes that processes can take without swapping, and free swap."""
    found = _memory_info(root, "MemAvailable", "SwapFree")
    if "MemAvailable" in found:
        return found["MemAvailable"], found.get("SwapFree", 0)
    import psutil

    return int(psutil.virtual_memory().available), int(psutil.swap_memory().free)


def _memory_info(root: str, *names: str) -> dict[str, int]:
    """What Linux tells of its memory, in bytes; empty elsewhere."""
    found: dict[str, int] = {}
    for line in _read(os.path.join(root, "proc/meminfo")).splitlines():
        name, _, value = line.partition(":")
        if name in names:
            found[name] = int(value.split()[0]) * 1024
    return found


def _cpu_model(root: str) -> str:
    facts: dict[str, str] = {}  # of the first CPU
    for line in _read(os.path.join(root, "proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), " ".join(value.split()))
    if facts.get("model name"):
        return facts["model name"]
    if facts.get("CPU part"):  # ARM: numbers of the designer and of the core
        return f"{architecture()} {facts.get('CPU implementer', '?')}/{facts['CPU part']}"
    return (_apple_model() if sys.platform == "darwin" else "") or architecture()


def _apple_model() -> str:
    import subprocess

    command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
