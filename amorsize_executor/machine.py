"""What this machine offers: CPUs and memory, with the limits of a container taken into account.

Files below /proc and /sys are read when asked, never at import. `root` arguments exist so that the parsers can be tested on
made-up trees.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

#: cgroup v1 writes "no limit" as the largest page-aligned int64.
_NO_LIMIT_V1 = 1 << 62


def cpu_count(root: Path | str = "/") -> int:
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
    quota = _cpu_quota(Path(root))
    if quota is not None:
        n = min(n, max(math.ceil(quota), 1))
    return max(n, 1)


def memory_limit(root: Path | str = "/") -> int:
    """Bytes of memory that this process and its workers may use: the smallest of host and cgroup limits."""
    limits = [_host_memory()]
    limits += [limit for limit in _memory_limits(Path(root)) if limit < _NO_LIMIT_V1]
    return min(limits)


def resident_nbytes(pid: int) -> int | None:
    """Resident memory of a process in bytes; None when it is gone."""
    if sys.platform == "linux":
        try:
            pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
        except (OSError, IndexError):
            return None
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


def _host_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().total)


def _cgroup_folders(root: Path, controller: str) -> list[Path]:
    """Folders of this process's group and its ancestors, for cgroup v2 and the v1 controller, innermost first."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            base = root / "sys/fs/cgroup"
            if (base / "unified").is_dir():
                base = base / "unified"
        elif controller in controllers.split(","):
            base = root / "sys/fs/cgroup" / controllers
            if not base.is_dir():
                base = root / "sys/fs/cgroup" / controller
        else:
            continue
        here = base / path.lstrip("/")
        # Inside a container the path may be the host's: then the mount itself is our group.
        while True:
            if here.is_dir():
                folders.append(here)
            if here == base or base not in here.parents:
                break
            here = here.parent
    return folders


def _read_number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.lstrip("-").isdigit() else None


def _cpu_quota(root: Path) -> float | None:
    """CPUs that the tightest cgroup quota grants; None without a quota."""
    quotas = []
    for folder in _cgroup_folders(root, "cpu"):
        try:
            quota, period = (folder / "cpu.max").read_text().split()
            if quota != "max":
                quotas.append(int(quota) / int(period))
        except (OSError, ValueError):
            pass  # not cgroup v2, or the controller is off here
        q = _read_number(folder / "cpu.cfs_quota_us")
        p = _read_number(folder / "cpu.cfs_period_us")
        if q is not None and q > 0 and p:
            quotas.append(q / p)
    return min(quotas) if quotas else None


def _memory_limits(root: Path) -> list[int]:
    """Every memory limit in bytes that applies to this process by cgroup."""
    limits = []
    for folder in _cgroup_folders(root, "memory"):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            limit = _read_number(folder / name)
            if limit is not None and limit > 0:
                limits.append(limit)
    return limits
