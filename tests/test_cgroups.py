"""What a container allows, on made-up trees of /proc and /sys/fs/cgroup."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from amorsize_executor import AmorsizeExecutor, cgroups, machine

NO_LIMIT_V1 = "9223372036854771712"
GIB = 1 << 30
MEMINFO = (
    "MemTotal:       16777216 kB\nMemFree:         1 kB\nMemAvailable:    8388608 kB\nSwapFree:        1048576 kB\n"
)


@pytest.fixture
def grow(tmp_path: Path):
    """Makes a tree from contents by path, and returns its root."""

    def make(files: Mapping[str, object], own: str) -> str:
        for path, content in {"proc/self/cgroup": own, "proc/meminfo": MEMINFO, **files}.items():
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{content}\n")
        return str(tmp_path)

    return make


def v1(group: str, **contents: object) -> dict[str, object]:
    return {f"sys/fs/cgroup/memory/{group}/memory.{name}": content for name, content in contents.items()}


def v2(group: str, **contents: object) -> dict[str, object]:
    return {f"sys/fs/cgroup/{group}/memory.{name}": content for name, content in contents.items()}


# ---------------------------------------------------------------------- limits


def test_without_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert cgroups.memory_limits(str(tmp_path)) == []
    assert cgroups.free_nbytes(str(tmp_path)) is None
    assert cgroups.cpu_quota(str(tmp_path)) is None
    assert machine.memory_limit(tmp_path) == machine.memory_limit(tmp_path / "nowhere") > 0


@pytest.mark.parametrize(
    ("contents", "limit"),
    [
        ({"max": "max"}, None),
        ({"max": GIB}, GIB),
        ({"max": GIB, "high": GIB // 2}, GIB // 2),
        ({"max": "max", "high": 3 * GIB}, 3 * GIB),
        ({"max": GIB, "high": "max"}, GIB),
    ],
)
def test_version_2_has_max_and_high(grow, contents: dict[str, object], limit: int | None) -> None:
    root = grow(v2("app", **contents), "0::/app")
    assert min(cgroups.memory_limits(root), default=None) == limit


def test_the_tightest_of_all_ancestors_binds(grow) -> None:
    files = {**v2("a/b/c", max="max"), **v2("a/b", max=2 * GIB), **v2("a", max=4 * GIB, high=3 * GIB)}
    root = grow(files, "0::/a/b/c")
    assert sorted(cgroups.memory_limits(root)) == [2 * GIB, 3 * GIB, 4 * GIB]
    assert machine.memory_limit(root) <= 2 * GIB


def test_version_1_writes_no_limit_as_a_number(grow) -> None:
    own = "11:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n1:name=systemd:/"
    files = {**v1("docker/x", limit_in_bytes=GIB), **v1("docker", limit_in_bytes=NO_LIMIT_V1)}
    assert cgroups.memory_limits(grow(files, own)) == [GIB]


def test_version_1_tells_limits_of_ancestors_that_cannot_be_seen(grow) -> None:
    stat = f"cache 0\nhierarchical_memory_limit {GIB // 2}\nhierarchical_memsw_limit {NO_LIMIT_V1}"
    files = v1("", limit_in_bytes=NO_LIMIT_V1, stat=stat)  # the group's folder is mounted as the root
    assert cgroups.memory_limits(grow(files, "4:memory:/kubepods/pod1/x")) == [GIB // 2]


def test_a_group_with_the_name_that_the_host_gives_it_is_the_mount(grow) -> None:
    root = grow(v2("", max=GIB), "0::/system.slice/docker-0123.scope")
    assert cgroups.memory_limits(root) == [GIB]


def test_a_group_outside_of_the_namespace_is_not_looked_for_elsewhere(grow) -> None:
    files = {**v2("", max=GIB), "sys/fs/other/memory.max": 5}
    assert cgroups.memory_limits(grow(files, "0::/../other")) == [GIB]


def test_both_versions_side_by_side(grow) -> None:
    own = "5:memory:/here\n4:cpu:/here\n0::/here"
    files = {
        **v1("here", limit_in_bytes=GIB),
        "sys/fs/cgroup/unified/here/cgroup.procs": "",
        "sys/fs/cgroup/cpu/here/cpu.cfs_quota_us": 150_000,
        "sys/fs/cgroup/cpu/here/cpu.cfs_period_us": 100_000,
    }
    root = grow(files, own)
    assert cgroups.memory_limits(root) == [GIB]
    assert cgroups.cpu_quota(root) == 1.5


def test_quota_of_version_2(grow) -> None:
    root = grow({"sys/fs/cgroup/a/cpu.max": "max 100000", "sys/fs/cgroup/cpu.max": "50000 100000"}, "0::/a")
    assert cgroups.cpu_quota(root) == 0.5
    assert machine.cpu_count(root) == 1


# ---------------------------------------------------------------------- what is free


def test_pages_of_files_are_free_in_version_2(grow) -> None:
    stat = f"anon 5\nfile 7\ninactive_file {100 << 20}\nactive_file {20 << 20}\nslab_reclaimable {4 << 20}"
    root = grow(v2("a", max=GIB, current=600 << 20, stat=stat), "0::/a")
    assert cgroups.free_nbytes(root) == GIB - (600 << 20) + (124 << 20)
    assert machine.free_memory(root) == (cgroups.free_nbytes(root),) * 2


def test_pages_of_files_are_free_in_version_1(grow) -> None:
    stat = f"inactive_file 1\ntotal_inactive_file {100 << 20}\ntotal_active_file {50 << 20}"
    root = grow(v1("a", limit_in_bytes=GIB, usage_in_bytes=600 << 20, stat=stat), "2:memory:/a")
    assert cgroups.free_nbytes(root) == GIB - (600 << 20) + (150 << 20)


def test_the_group_with_the_least_left_counts(grow) -> None:
    files = {**v2("a/b", max=GIB, current=GIB // 2), **v2("a", max=2 * GIB, current=2 * GIB - 1000)}
    assert cgroups.free_nbytes(grow(files, "0::/a/b")) == 1000


def test_a_limit_below_what_is_used_leaves_less_than_nothing(grow) -> None:
    assert cgroups.free_nbytes(grow(v2("a", max=GIB, current=2 * GIB), "0::/a")) == -GIB


def test_the_machine_may_have_less_than_the_group(grow) -> None:
    root = grow(v2("a", max=64 * GIB, current=0), "0::/a")
    assert machine.free_memory(root) == (8 * GIB, 9 * GIB)


# ---------------------------------------------------------------------- killed


def test_kills_of_version_2(grow) -> None:
    files = {**v2("a", events="low 0\nhigh 3\nmax 40\noom 2\noom_kill 2"), "proc/vmstat": "oom_kill 9"}
    assert cgroups.oom_kills(grow(files, "0::/a")) == 2


def test_kills_of_version_1(grow) -> None:
    files = v1("a", oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 3")
    assert cgroups.oom_kills(grow(files, "2:memory:/a")) == 3


def test_kills_of_the_machine_where_no_group_tells(grow) -> None:
    assert cgroups.oom_kills(grow({"proc/vmstat": "pgfault 7\noom_kill 9\noom_killer 1"}, "0::/")) == 9


# ---------------------------------------------------------------------- this process


def _peaks() -> tuple[machine.MemoryUse, machine.MemoryUse | None]:
    """Use of memory after a peak of 64 MB, and after that was forgotten, if it can be."""
    data = bytearray(64 << 20)
    data[::4096] = b"x" * len(data[::4096])
    del data
    before = machine.memory_use()
    return before, machine.memory_use() if machine.forget_peak() else None


def test_peak_is_measured_anew_when_it_is_forgotten() -> None:
    with AmorsizeExecutor(1) as executor:  # a young process: this one may have had a higher peak
        before, after = executor.submit(_peaks).result(30)
    assert before.peak_private_nbytes >= before.private_nbytes + (48 << 20)
    if after is None:
        pytest.skip("this system does not let a process forget its peak (/proc/self/clear_refs)")
    assert after.peak_private_nbytes < before.peak_private_nbytes - (32 << 20)
