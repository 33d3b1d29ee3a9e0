"""What this machine offers: CPUs and memory, with the limits of a container taken into account.

Files below /proc and /sys are read when asked, never at import. `root` arguments exist so that the parsers can be
tested on made-up trees.
"""

from __future__ import annotations

import math
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

#: cgroup v1 writes "no limit" as the largest page-aligned int64.
_NO_LIMIT_V1 = 1 << 62


_UNREAD = -1.0
#: This process's CPU quota; read once, since that takes longer than a small map.
_quota: float | None = _UNREAD
#: The CPUs' name; None until it is asked for.
_model: str | None = None


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
        quota = _cpu_quota(os.fspath(root))
    else:
        if _quota == _UNREAD:
            _quota = _cpu_quota("/")
        quota = _quota
    if quota is not None:
        n = min(n, max(math.ceil(quota), 1))
    return max(n, 1)


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
    limits = [limit for limit in _memory_limits(os.fspath(root)) if limit < _NO_LIMIT_V1]
    return min([_host_memory(), *limits])


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


def peak_nbytes() -> int:
    """Largest resident memory that this process has had, in bytes.

    Notes
    -----
    Not ``ru_maxrss`` on Linux: that starts from the memory of the process which this one was forked from. Shared memory
    that it has now is taken off there: several processes have the same.
    """
    peak = shared = 0
    for line in _read("/proc/self/status").splitlines():
        if line.startswith("VmHWM:"):
            peak = int(line.split()[1]) * 1024
        elif line.startswith("RssShmem:"):
            shared = int(line.split()[1]) * 1024
    if peak:
        return max(peak - shared, 0)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _host_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().total)


def _read(path: str) -> str:
    """Content of a small file; empty when it cannot be read (a controller that is off, a process that is gone)."""
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def _read_number(path: str) -> int | None:
    text = _read(path).strip()
    return int(text) if text.lstrip("-").isdigit() else None


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


def _cgroup_folders(root: str, controller: str) -> list[str]:
    """Folders of this process's group and its ancestors, for cgroup v2 and the v1 controller, innermost first."""
    folders = []
    mount = os.path.join(root, "sys/fs/cgroup")
    for line in _read(os.path.join(root, "proc/self/cgroup")).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            base = os.path.join(mount, "unified")
            base = base if os.path.isdir(base) else mount
        elif controller in controllers.split(","):
            base = os.path.join(mount, controllers)
            base = base if os.path.isdir(base) else os.path.join(mount, controller)
        else:
            continue
        # Inside a container the path may be the host's: then only the mount itself exists, and it is our group.
        parts = [part for part in path.split("/") if part]
        for depth in range(len(parts), -1, -1):
            folder = os.path.join(base, *parts[:depth])
            if os.path.isdir(folder):
                folders.append(folder)
    return folders


def _cpu_quota(root: str) -> float | None:
    """CPUs that the tightest cgroup quota grants; None without a quota."""
    quotas = []
    for folder in _cgroup_folders(root, "cpu"):
        v2 = _read(os.path.join(folder, "cpu.max")).split()
        if len(v2) == 2 and v2[0].isdigit():
            quotas.append(int(v2[0]) / int(v2[1]))
        quota = _read_number(os.path.join(folder, "cpu.cfs_quota_us"))
        period = _read_number(os.path.join(folder, "cpu.cfs_period_us"))
        if quota is not None and quota > 0 and period:
            quotas.append(quota / period)
    return min(quotas) if quotas else None


def _memory_limits(root: str) -> list[int]:
    """Every memory limit in bytes that applies to this process by cgroup."""
    limits = []
    for folder in _cgroup_folders(root, "memory"):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            limit = _read_number(os.path.join(folder, name))
            if limit is not None and limit > 0:
                limits.append(limit)
    return limits
