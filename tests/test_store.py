"""What was learned survives processes, and no state of its file stops anybody."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amorsize_executor import store as store_module
from amorsize_executor.store import Kind, Record, Store, Value, default_path

HERE = "a machine"


def record(key: str = "f", mean_s: float = 0.5, kind: Kind = "function", machine: str = HERE) -> Record:
    return Record(kind, key, machine, {"mean_s": mean_s}, n=3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite3"


@pytest.fixture
def store(path: Path) -> Store:
    return Store(path)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests in which a lock is held on purpose."""
    monkeypatch.setattr(store_module, "BUSY_S", 0.05)


@pytest.fixture
def mortal() -> Iterator[None]:
    """Without the superuser's power over read-only files."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that others may enter, unlike pytest's."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def use(store: Store) -> None:
    """Every method, twice."""
    for _ in range(2):
        store.write_many([record()])
        store.read("function", "f", HERE)
        store.read_all("function", HERE)
        store.entries()
        store.close()


def warnings_of(action: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    assert all(one.category is RuntimeWarning for one in caught)
    return [str(one.message) for one in caught]


# what is written can be read


def test_record_is_read_by_another_store(store: Store, path: Path) -> None:
    store.write_many([record()])
    assert Store(path).read("function", "f", HERE) == {"mean_s": 0.5}


def test_nothing_is_known_at_first_and_looking_creates_no_file(store: Store, path: Path) -> None:
    assert store.read("function", "f", HERE) is None
    assert store.read_all("function", HERE) == {}
    assert store.entries() == []
    assert store.clear() == 0
    store.write_many([])
    assert not path.exists()


def test_kind_key_and_machine_tell_records_apart(store: Store) -> None:
    store.write_many([record(mean_s=1), record(mean_s=2, kind="workload"), record(mean_s=3, machine="another")])
    store.write_many([record("g", mean_s=4)])
    assert store.read_all("function", HERE) == {"f": {"mean_s": 1}, "g": {"mean_s": 4}}
    assert store.read_all("workload", HERE) == {"f": {"mean_s": 2}}
    assert store.read("function", "f", "another") == {"mean_s": 3}


def test_last_write_of_a_record_wins(store: Store, path: Path) -> None:
    store.write_many([record(mean_s=1), record(mean_s=2)])
    Store(path).write_many([record(mean_s=3)])
    assert store.read("function", "f", HERE) == {"mean_s": 3}


def test_entries_tell_all_last_written_first(store: Store) -> None:
    store.write_many([record("a")])
    store.write_many([record("b")])
    store.write_many([record("a")])
    entries = store.entries()
    assert [entry.key for entry in entries] == ["a", "b"]
    assert entries[0]._replace(updated=0.0) == record("a")
    assert entries[0].updated > 1.7e9


def test_clear_forgets_all_and_leaves_no_name_in_the_file(store: Store, path: Path) -> None:
    store.write_many([record("secret_function"), record("g")])
    assert b"secret_function" in path.read_bytes()
    store.write_many([record("secret_function", mean_s=i) for i in range(20)])
    assert store.clear() == 2
    assert store.entries() == []
    assert b"secret_function" not in path.read_bytes()


def test_oldest_records_go_when_there_are_too_many(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_RECORDS", 3)
    for key in "abcab":
        store.write_many([record(key)])
    store.write_many([record("d")])
    assert set(store.read_all("function", HERE)) == {"a", "b", "d"}
    store.write_many([record(key) for key in "efghi"])
    assert set(store.read_all("function", HERE)) == {"g", "h", "i"}


_VALUES = st.dictionaries(
    st.text(max_size=8), st.none() | st.integers() | st.floats(allow_nan=False) | st.text() | st.booleans(), max_size=5
)
_KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(store_module.KINDS), _KEYS, _KEYS, _VALUES), max_size=8))
def test_store_behaves_as_a_dictionary(tmp_path: Path, written: list[tuple[Kind, str, str, Value]]) -> None:
    with Store(tmp_path / "property.sqlite3") as store:
        store.clear()
        half = len(written) // 2
        store.write_many(Record(*one) for one in written[:half])
        store.write_many(Record(*one) for one in written[half:])
        expected = {(kind, key, machine): value for kind, key, machine, value in written}
        for (kind, key, machine), value in expected.items():
            assert store.read(kind, key, machine) == value
            assert store.read_all(kind, machine)[key] == value
        assert {(r.kind, r.key, r.machine): r.value for r in store.entries()} == expected
        assert store.problem is None


@pytest.mark.parametrize("wrong", [{"a": [1]}, {"a": {"b": 1}}, {"a": b"bytes"}, {1: 2}])
def test_value_that_is_not_flat_is_refused_and_nothing_is_written(store: Store, wrong: Value) -> None:
    with pytest.raises(TypeError, match="'g'"):
        store.write_many([record(), Record("function", "g", HERE, wrong)])
    assert store.read("function", "f", HERE) is None


@pytest.mark.parametrize("text", ["no JSON", "[1]", '{"a": [1]}', "[" * 100_000, ""])
def test_record_that_somebody_else_spoilt_is_passed_over(store: Store, path: Path, text: str) -> None:
    store.write_many([record("f"), record("g")])
    change(path, f"UPDATE records SET value = '{text}' WHERE key = 'f'")
    assert store.read("function", "f", HERE) is None
    assert store.read_all("function", HERE) == {"g": {"mean_s": 0.5}}
    assert [(entry.key, entry.value) for entry in store.entries()] == [("g", {"mean_s": 0.5}), ("f", {})]


def test_nonsense_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="kind must be one of function, workload, machine, got 'model'"):
        store.read("model", "f", HERE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 0, got nan"):
        store.write_many([record()._replace(n=float("nan"))])
    with pytest.raises(ValueError, match="surrogates"):
        store.write_many([record("\udc80")])
    with pytest.raises(ValueError, match="null character"):
        Store("a\0b")
    store.write_many([record()])
    assert store.problem is None


# the file


def test_file_and_its_folders_are_for_their_user_only(tmp_path: Path) -> None:
    path = tmp_path / "caches" / "amorsize" / "store.sqlite3"
    Store(path).write_many([record()])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["store.sqlite3"]


def test_path_may_hold_characters_that_mean_something_in_addresses(tmp_path: Path) -> None:
    path = tmp_path / "100%?mode=memory#ü &.db"
    Store(path).write_many([record()])
    assert Store(os.fspath(path)).read("function", "f", HERE) == {"mean_s": 0.5}
    assert path.is_file()


def test_relative_path_stays_the_same_file_when_the_process_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store("store.sqlite3")
    monkeypatch.chdir("/")
    store.write_many([record()])
    assert (tmp_path / "store.sqlite3").is_file()


def test_default_path_follows_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AMORSIZE_STORE", "~/learned.db")
    assert default_path() == tmp_path / "learned.db"
    monkeypatch.setenv("AMORSIZE_STORE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    monkeypatch.setattr(sys, "platform", "linux")
    assert default_path() == tmp_path / ".cache/amorsize_executor/store.sqlite3"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert default_path() == tmp_path / "Library/Caches/amorsize_executor/store.sqlite3"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_path() == tmp_path / "xdg/amorsize_executor/store.sqlite3"


def test_default_path_is_absolute_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AMORSIZE_STORE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert default_path().is_absolute()


# faults of the file: one warning, and work goes on


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(5000))


def few_bytes(path: Path) -> None:
    path.write_bytes(b"hello")


def truncated(path: Path) -> None:
    Store(path).write_many([record(str(i)) for i in range(200)])
    os.truncate(path, path.stat().st_size // 2)


def overwritten(path: Path) -> None:
    Store(path).write_many([record(str(i)) for i in range(200)])
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 8192)


def without_table(path: Path) -> None:
    Store(path).write_many([record()])
    change(path, "DROP TABLE records")


def newer(path: Path) -> None:
    Store(path).write_many([record()])
    change(path, "PRAGMA user_version = 999")


def of_another_program(path: Path) -> None:
    change(path, "CREATE TABLE customers (name TEXT)")


def folder(path: Path) -> None:
    path.mkdir()


def file_in_place_of_folder(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_text("a file")


def device(path: Path) -> None:
    path.symlink_to("/dev/null")


def dangling_link(path: Path) -> None:
    path.symlink_to(path.parent / "missing" / "file")


def change(path: Path, sql: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(sql)
    connection.commit()
    connection.close()


FAULTS = {
    garbage: "damaged",
    few_bytes: "damaged",
    truncated: "damaged",
    overwritten: "damaged",
    without_table: "damaged",
    newer: "schema 999, this one knows 1",
    of_another_program: "another program",
    folder: "not a regular file",
    file_in_place_of_folder: "cannot be created",
    device: "not a regular file",
    dangling_link: "not a regular file",
}


@pytest.mark.parametrize("spoil", FAULTS, ids=lambda spoil: spoil.__name__)
def test_faulty_file_costs_one_warning_and_is_left_as_it_is(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "folder" / "store.sqlite3"
    path.parent.mkdir()
    spoil(path)
    before = path.read_bytes() if path.is_file() else None
    store = Store(path)
    (message,) = warnings_of(lambda: use(store))
    assert FAULTS[spoil] in message
    assert str(path) in message
    assert message == store.problem
    assert store.read("function", "f", HERE) is None
    assert store.entries() == []
    assert store.clear() == 0
    assert (path.read_bytes() if path.is_file() else None) == before


def test_each_store_warns_for_itself_and_names_the_callers_line(path: Path) -> None:
    garbage(path)
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="move or delete it") as caught:
            Store(path).write_many([record()])
        assert [one.filename for one in caught] == [__file__]


def test_python_without_sqlite_costs_one_warning(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sqlite3", None)
    (message,) = warnings_of(lambda: use(store))
    assert "no sqlite3" in message


def test_read_only_file_is_still_read(open_folder: Path, request: pytest.FixtureRequest) -> None:
    path = open_folder / "store.sqlite3"
    Store(path).write_many([record()])
    path.chmod(0o444)
    request.getfixturevalue("mortal")
    store = Store(path)
    (message,) = warnings_of(lambda: store.write_many([record("g")]) or use(store))  # type: ignore[func-returns-value]
    assert "read only" in message
    assert store.read_all("function", HERE) == {"f": {"mean_s": 0.5}}


def test_missing_right_to_create_or_enter_costs_one_warning(open_folder: Path, request: pytest.FixtureRequest) -> None:
    (open_folder / "closed").mkdir(mode=0o700)
    open_folder.chmod(0o555)
    request.getfixturevalue("mortal")
    for path in (open_folder / "store.sqlite3", open_folder / "new" / "store.sqlite3", open_folder / "closed" / "s.db"):
        (message,) = warnings_of(lambda path=path: use(Store(path)))  # type: ignore[misc]
        assert str(path) in message


def test_full_disk_drops_writes_and_keeps_what_was_there(path: Path) -> None:
    script = """
        import resource, sys, warnings
        from amorsize_executor.store import Record, Store
        first, second = (Record("function", key, "here", {"text": "x" * 50_000}) for key in "ab")
        Store(sys.argv[1]).write_many([first])
        resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, 70_000))
        store = Store(sys.argv[1])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            store.write_many([second])
            store.write_many([second])
        assert len(caught) == 1, caught
        assert list(store.read_all("function", "here")) == ["a"]
        assert [entry.key for entry in Store(sys.argv[1]).entries()] == ["a"]
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script), path], check=True)


# a file that is busy


@pytest.mark.usefixtures("impatient")
def test_write_to_a_locked_file_waits_in_memory_until_it_is_free(store: Store, path: Path) -> None:
    store.write_many([record("earlier")])
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    (message,) = warnings_of(lambda: use(store))
    assert "another process has locked it" in message
    assert store.read("function", "f", HERE) == {"mean_s": 0.5}  # its own
    assert store.read_all("function", HERE) == {"f": {"mean_s": 0.5}}
    holder.execute("COMMIT")
    holder.close()
    store.write_many([record("g")])
    assert set(Store(path).read_all("function", HERE)) == {"earlier", "f", "g"}


@pytest.mark.usefixtures("impatient")
def test_close_writes_what_waits(store: Store, path: Path) -> None:
    store.write_many([record("earlier")])
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    assert len(warnings_of(lambda: store.write_many([record()]))) == 1
    holder.execute("ROLLBACK")
    holder.close()
    store.close()
    assert Store(path).read("function", "f", HERE) == {"mean_s": 0.5}


def test_what_waits_is_bounded(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None) -> None:
    store.write_many([record("earlier")])
    monkeypatch.setattr(store_module, "MAX_RECORDS", 2)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    warnings_of(lambda: [store.write_many([record(key)]) for key in "abca"])
    assert list(store.read_all("function", HERE)) == ["c", "a"]
    holder.close()


# many at once

WRITER = """
import sys
from amorsize_executor.store import Record, Store
path, name, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
store = Store(path)
print("ready", flush=True)
sys.stdin.readline()
for i in range(n):
    keys = ("function", f"{name}-{i}"), ("machine", "shared")
    store.write_many(Record(kind, key, "here", {"i": i}) for kind, key in keys)
store.close()
"""


def start_writers(path: Path, n_writers: int, n_writes: int) -> list[subprocess.Popen[str]]:
    """Processes that write as soon as all are ready."""
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(i), str(n_writes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(n_writers)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    return writers


def test_nothing_is_lost_when_eight_processes_write_at_once(path: Path) -> None:
    for writer in start_writers(path, 8, 50):
        writer.communicate()
        assert writer.returncode == 0
    store = Store(path)
    expected = {f"{name}-{i}": {"i": i} for name in range(8) for i in range(50)}
    assert store.read_all("function", "here") == expected
    assert store.read("machine", "shared", "here") == {"i": 49}
    assert os.listdir(path.parent) == [path.name]


def test_writers_that_are_killed_leave_a_sound_file(path: Path) -> None:
    for n_seen in (1, 20, 60):
        writers = start_writers(path, 2, 100_000)
        while len(Store(path).read_all("function", "here")) < n_seen:
            pass
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.communicate()
    store = Store(path)
    store.write_many([record()])
    assert store.read("function", "f", HERE) == {"mean_s": 0.5}
    assert store.problem is None
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


def test_threads_share_a_store(store: Store) -> None:
    def write(name: int) -> None:
        for i in range(20):
            store.write_many([record(f"{name}-{i}")])
            assert store.read("function", f"{name}-{i}", HERE) is not None

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.read_all("function", HERE)) == 80
    assert store.problem is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_child_of_a_fork_amid_writes_of_another_thread_goes_on(store: Store, path: Path) -> None:
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            store.write_many([record("parent")])

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for i in range(20):
            pid = os.fork()
            if pid == 0:
                exitcode = 1
                try:
                    store.write_many([record(f"child-{i}")])
                    store.close()
                    exitcode = 0 if store.problem is None else 2
                finally:
                    os._exit(exitcode)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        stop.set()
        thread.join()
    assert set(store.read_all("function", HERE)) == {"parent", *(f"child-{i}" for i in range(20))}
