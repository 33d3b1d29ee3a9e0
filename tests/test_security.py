"""What docs/security.md promises."""

from __future__ import annotations

import ast
import os
import sqlite3
import stat
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

import amorsize_executor
from amorsize_executor import AmorsizeExecutor, load_config
from amorsize_executor.workers import blocks

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

_PACKAGE = Path(amorsize_executor.__file__).parent
#: Who turns bytes into objects: messages of channels, entries of messages and blocks, an exception's own pickle.
_UNPICKLERS = {
    "workers/channel.py",  # messages of the own channel
    "workers/serialize.py",  # entries: what stands in messages, and in blocks whose descriptor came with one
    "workers/bulk.py",  # the same for large buffers, called by serialize
    "workers/process.py",  # in a worker: what it has just pickled itself, to see that it can be loaded
    "integrations/dask_engine/host.py",  # in a Dask worker: the initializer, which came with the host over Dask
    "workers/protocol.py",  # the memory that a worker shares with its parent: marshal, of its own records
}


def total(array: np.ndarray) -> float:
    return float(array.sum())


def descriptors(_: object = None) -> list[tuple[str, int]]:
    """Targets and modes of the descriptors of this process."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append((os.readlink(f"/proc/self/fd/{name}"), os.stat(int(name)).st_mode))
        except OSError:
            continue
    return found


def addresses() -> list[object]:
    """Where somebody could connect to a process of this family."""
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return [
        connection.laddr
        for process in family
        for connection in process.net_connections("all")
        if connection.laddr and connection.status in (psutil.CONN_LISTEN, psutil.CONN_NONE)
    ]


@linux
@pytest.mark.parametrize("method", ["loky", "spawn", "fork"])
def test_nobody_can_connect_to_an_executor_or_its_workers(method: str) -> None:
    before = addresses()
    with AmorsizeExecutor(2, method) as executor:
        executor.warm_up()
        assert executor.submit(total, np.ones(100_000)).result() == 100_000
        assert [found for found in addresses() if found not in before] == []


@linux
def test_memory_for_data_has_no_name_and_is_its_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = set(os.listdir(blocks.SHARED_MEMORY))
    with AmorsizeExecutor(1) as executor, executor.share(np.ones(100_000)) as shared:
        assert executor.submit(total, shared).result() == 100_000
        assert len(executor.submit(np.ones, 100_000).result()) == 100_000
        own, workers = descriptors(), executor.submit(descriptors).result()
        assert os.listdir(tmp_path) == []
        named = set(os.listdir(blocks.SHARED_MEMORY)) - before
        assert [name for name in named if "amorsize" in name] == []
    for found in (own, workers):
        memory = [mode for target, mode in found if "amorsize_executor" in target and "claims" not in target]
        assert memory
        assert {stat.S_IMODE(mode) for mode in memory} == {0o600}


def test_files_in_place_of_memory_are_unlinked_and_their_users_alone(tmp_path: Path) -> None:
    fd = blocks.create_in_folder()
    try:
        status = os.fstat(fd)
        assert status.st_nlink == 0
        assert stat.S_IMODE(status.st_mode) == 0o600
    finally:
        os.close(fd)


def test_only_what_came_over_a_channel_is_unpickled() -> None:
    found = set()
    for path in _PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
                continue
            owner, name = node.value.id, node.attr
            if owner in ("pickle", "cloudpickle", "marshal", "dill", "shelve") and name in (
                "load",
                "loads",
                "Unpickler",
            ):
                found.add(path.relative_to(_PACKAGE).as_posix())
            assert owner not in ("dill", "shelve", "yaml"), path
    assert found <= _UNPICKLERS, "a new unpickler: docs/security.md must tell where its data comes from"


def test_what_was_learned_is_kept_as_numbers_and_text_for_its_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "learned.sqlite"
    with AmorsizeExecutor(1, cost_model=path, inline="never") as executor:
        assert list(executor.map(abs, range(-100, 0)))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    with sqlite3.connect(path) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        values = [value for table in tables for row in connection.execute(f"SELECT * FROM {table}") for value in row]
    connection.close()
    assert values
    assert {type(value) for value in values} <= {int, float, str, type(None)}


def test_a_configuration_that_is_a_pickle_is_refused(tmp_path: Path) -> None:
    class Deadly:
        def __reduce__(self) -> object:
            return os._exit, (9,)

    import pickle

    path = tmp_path / "config.json"
    path.write_bytes(pickle.dumps(Deadly()))
    with pytest.raises(ValueError):
        load_config(path)


@linux
def test_workers_have_the_rights_of_their_parent() -> None:
    with AmorsizeExecutor(1) as executor:
        assert executor.submit(os.getresuid).result() == os.getresuid()
        assert executor.submit(os.getresgid).result() == os.getresgid()
