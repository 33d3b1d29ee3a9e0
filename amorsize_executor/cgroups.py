"""Control groups of this process: what a container allows, what is in use, and whom the kernel has killed.

Version 1, version 2, and both side by side. Limits of all ancestors that can be seen count, since the tightest one
binds. Files that are missing (a controller that is off) mean no limit. `root` arguments exist so that all this can be
tested on made-up trees.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

#: Version 1 writes "no limit" as the largest page-aligned int64.
_NO_LIMIT = 1 << 62
_MOUNT = "sys/fs/cgroup"
_READ_NBYTES = 1 << 16


def read(path: str) -> str:
    """Content of a small file; empty when it cannot be read (a controller that is off, a process that is gone)."""
    # With half the calls of `open`: while another thread computes, it may take 5 ms to come back from each.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    parts = []
    try:
        while part := os.read(fd, _READ_NBYTES):
            parts.append(part)
    except OSError:
        return ""
    finally:
        os.close(fd)
    return b"".join(parts).decode()


def cpu_quota(root: str = "/") -> float | None:
    """CPUs that the tightest quota grants; None without a quota."""
    quotas = []
    for folder in folders(root, "cpu"):
        v2 = read(os.path.join(folder, "cpu.max")).split()
        if len(v2) == 2 and v2[0].isdigit():
            quotas.append(int(v2[0]) / int(v2[1]))
        quota = _number(folder, "cpu.cfs_quota_us")
        period = _number(folder, "cpu.cfs_period_us")
        if quota is not None and quota > 0 and period:
            quotas.append(quota / period)
    return min(quotas) if quotas else None


def memory_limits(root: str = "/") -> list[int]:
    """Every memory limit in bytes that applies to this process."""
    return [limit for folder in folders(root, "memory") for limit in _limits_of(folder)]


def free_nbytes(root: str = "/") -> int | None:
    """Bytes that may still be taken before the first limit is reached; None where no group has a limit.

    Pages of files count as free: the kernel drops them first. Negative when a limit was lowered below what is in use.
    """
    frees = []
    for folder in folders(root, "memory"):
        own = list(_own_limits(folder))
        if own and (used := _used(folder)) is not None:
            frees.append(min(own) - used)
    return min(frees) if frees else None


def oom_kills(root: str = "/") -> int:
    """Processes of this group that the kernel has killed for want of memory; of the machine, where no group tells."""
    for folder in folders(root, "memory"):
        for name in ("memory.events", "memory.oom_control"):
            n = _field(os.path.join(folder, name), "oom_kill")
            if n is not None:
                return n
    return _field(os.path.join(root, "proc/vmstat"), "oom_kill") or 0


def folders(root: str, controller: str) -> Iterator[str]:
    """Folders of this process's group and its ancestors, for version 2 and the controller's of 1, innermost first."""
    mount = os.path.join(root, _MOUNT)
    for line in read(os.path.join(root, "proc/self/cgroup")).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            base = os.path.join(mount, "unified")
            base = base if os.path.isdir(base) else mount
        elif controller in controllers.split(","):
            base = os.path.join(mount, controllers)
            base = base if os.path.isdir(base) else os.path.join(mount, controller)
        else:
            continue
        # Inside a container the path may be the host's: then only the mount itself exists, and it is our group. Or the
        # group is none that this namespace shows: then the path begins with "..".
        parts = [part for part in path.split("/") if part]
        if ".." in parts:
            parts = []
        for depth in range(len(parts), -1, -1):
            folder = os.path.join(base, *parts[:depth])
            if os.path.isdir(folder):
                yield folder


def _limits_of(folder: str) -> Iterator[int]:
    yield from _own_limits(folder)
    # Version 1 tells what ancestors allow, also where they are not to be seen.
    inherited = _field(os.path.join(folder, "memory.stat"), "hierarchical_memory_limit")
    if inherited is not None and 0 < inherited < _NO_LIMIT:
        yield inherited


def _own_limits(folder: str) -> Iterator[int]:
    for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
        limit = _number(folder, name)
        if limit is not None and 0 < limit < _NO_LIMIT:
            yield limit


def _used(folder: str) -> int | None:
    """Bytes in use but for what the kernel can drop at once."""
    used = _number(folder, "memory.current")
    names = {"inactive_file", "active_file", "slab_reclaimable"}
    if used is None:
        used = _number(folder, "memory.usage_in_bytes")
        names = {"total_inactive_file", "total_active_file"}
    if used is None:
        return None
    for line in read(os.path.join(folder, "memory.stat")).splitlines():
        name, _, value = line.partition(" ")
        if name in names:
            used -= int(value)
    return max(used, 0)


def _number(folder: str, name: str) -> int | None:
    text = read(os.path.join(folder, name)).strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _field(path: str, name: str) -> int | None:
    """The value of one line of a file with a name and a number on each."""
    for line in read(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return None
