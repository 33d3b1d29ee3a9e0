"""What was learned about functions, kept in one SQLite file that many processes share.

Purpose: a process starts from what earlier ones measured. Guarantees: no fault of the file (missing, locked, read-only,
damaged, written by a newer version, something else altogether, on a full disk) stops the work or raises: it is told in
one warning, and the store goes on with what is left of it, in the worst case as an empty one. No file that was there
before is deleted or replaced. The file holds text and numbers only, never pickles.

Each call opens the file, does one short transaction, and closes it again. So there is no connection that a fork could
copy, a thread share, or the end of the interpreter cut off. A read takes about 0.15 ms, a write 1 to 25 ms, nearly all
of it the wait until the disk has it: without that wait a power failure could damage the file. So writes belong beside
the work, many records at a time.

What became of the file decides what a store does:

===========  ========================  ==================================================================
state        reads give                writes
===========  ========================  ==================================================================
fine         what is in the file       go into the file
busy         own writes that wait      wait in memory; tried again by each write, at once, and by `Store.close`
unwritable   what is in the file       are dropped
unusable     nothing                   are dropped
===========  ========================  ==================================================================

The journal is SQLite's default, a rollback journal beside the file while a write goes on. Write-ahead logging would
let readers pass a writer, but needs memory shared by all users of the file: on the network file systems where home
folders of clusters lie, it damages the file. Of two writers of the same record, the last one wins.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from .identity import function_key, machine_key

if TYPE_CHECKING:
    import sqlite3
    from types import TracebackType
    from typing import TypeAlias

__all__ = ["Kind", "Record", "Store", "Value", "default_path", "function_key", "machine_key"]

#: What a record is about.
Kind: TypeAlias = "Literal['function', 'workload', 'machine']"
#: What a record says: numbers and texts by name.
Value: TypeAlias = "dict[str, float | int | str | None]"
_T = TypeVar("_T")

KINDS = ("function", "workload", "machine")
#: Records in a file; the ones written longest ago go first. About 300 bytes each, so 3 MB.
MAX_RECORDS = 10_000
#: A call waits at most this long for another process's transaction, in seconds. One takes 1 ms on a fast disk,
#: 25 ms on a busy one.
BUSY_S = 1.0
#: For this long SQLite itself waits for a lock, before it is asked anew, in seconds.
_LOOK_S = 0.005
#: Environment variable that names the user's store.
ENVIRONMENT = "AMORSIZE_STORE"
#: Raised whenever an older version could not read the file any more.
_SCHEMA_VERSION = 1
#: Marks the file as ours ("AMOR"), so that no table is ever added to another program's database.
_APPLICATION_ID = 0x414D4F52
#: `id` counts writes, so the oldest records are known though clocks are set back.
_SCHEMA = """
CREATE TABLE records (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    machine TEXT NOT NULL,
    value TEXT NOT NULL,  -- a flat JSON object
    n REAL NOT NULL,
    updated REAL NOT NULL,  -- seconds since 1970
    UNIQUE (kind, key, machine)
)
"""

#: Held while SQLite runs, and taken around a fork: a child that copied a transaction of another thread would take the
#: file for locked, or wait for ever for a lock inside SQLite. Guards what waits in a store, too. No code of users runs
#: under it. Reentrant for a fork out of a signal handler.
_file_lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_file_lock.acquire, after_in_parent=_file_lock.release, after_in_child=_file_lock.release
    )


class Record(NamedTuple):
    """One thing that was learned.

    Attributes
    ----------
    kind
        What it is about: "function", "workload" (a name that the user gave) or "machine".
    key
        Which one, as stable text; for a function that of `identity.function_key`.
    machine
        Where it was measured, as text of `identity.machine_key`.
    value
        What is known: numbers and texts by name.
    n
        Weight, such as the number of items measured; at least 0.
    updated
        Seconds since 1970 when it was written; set by the store.
    """

    kind: Kind
    key: str
    machine: str
    value: Value
    n: float = 1.0
    updated: float = 0.0


class _Fault(Exception):
    """What is wrong with the file, and what to do about it."""

    def __init__(self, what: str, advice: str, *, is_unusable: bool = True, is_busy: bool = False) -> None:
        super().__init__(what)
        self.advice = advice
        self.is_unusable = is_unusable
        self.is_busy = is_busy


class Store:
    """Records in a SQLite file, shared by many processes. Any thread; safe across forks.

    Parameters
    ----------
    path
        The file. It is created by the first write, for its user only (mode 0600), with its folders (0700).

    Attributes
    ----------
    path
        Absolute path of the file.
    problem
        What the one warning said; None while all is well.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = Store(folder + "/store.sqlite3")
    ...     store.write_many([Record("function", "module:f", "this machine", {"mean_s": 0.5}, n=12)])
    ...     store.read("function", "module:f", "this machine")
    {'mean_s': 0.5}
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if "\0" in os.fspath(path):
            raise ValueError(f"the path of a store may not contain a null character, got {path!r}")
        self.path = Path(path).absolute()
        self.problem: str | None = None
        # All guarded by `_file_lock`.
        self._waiting: dict[tuple[str, str, str], tuple[str, float, float]] = {}  # by identity: value, n, updated
        self._unsaid: str | None = None  # the warning, until it is given
        self._patience_s = BUSY_S
        self._can_read = True
        self._can_write = True

    def __repr__(self) -> str:
        return f"Store({os.fspath(self.path)!r})"

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def read(self, kind: Kind, key: str, machine: str) -> Value | None:
        """What is known about one thing; None when nothing is.

        Raises
        ------
        ValueError
            If `kind` is none of the three.
        """
        identity = (_checked(kind), key, machine)
        sql = "SELECT value FROM records WHERE kind = ? AND key = ? AND machine = ?"
        with _file_lock:
            waiting = self._waiting.get(identity)
        rows = [waiting] if waiting else self._run(lambda c: c.execute(sql, identity).fetchall(), [])
        return _decode(rows[0][0]) if rows else None

    def read_all(self, kind: Kind, machine: str) -> dict[str, Value]:
        """All records of a kind that were measured on a machine, by key.

        Raises
        ------
        ValueError
            If `kind` is none of the three.
        """
        _checked(kind)
        sql = "SELECT key, value FROM records WHERE kind = ? AND machine = ? ORDER BY id"
        found: dict[str, str] = dict(self._run(lambda c: c.execute(sql, (kind, machine)).fetchall(), []))
        with _file_lock:
            found.update({k[1]: v[0] for k, v in self._waiting.items() if (k[0], k[2]) == (kind, machine)})
        decoded = {key: _decode(text) for key, text in found.items()}
        return {key: value for key, value in decoded.items() if value is not None}

    def write_many(self, records: Iterable[Record]) -> None:
        """Write records in one transaction; each takes the place of an earlier one of the same kind, key and machine.

        Raises
        ------
        TypeError, ValueError
            If a record does not fit its description. Then nothing is written.
        """
        now = time.time()
        fresh = {(_checked(r.kind), r.key, r.machine): _encode(r, now) for r in records}
        if not fresh:
            return
        with _file_lock:
            if not self._can_write:
                return
            for identity, row in fresh.items():
                self._waiting.pop(identity, None)  # to the end: the oldest stand first
                self._waiting[identity] = row
            for identity in list(self._waiting)[:-MAX_RECORDS]:
                del self._waiting[identity]
        self._flush()

    def entries(self) -> list[Record]:
        """All records of the file, for people to look at; the ones written last come first."""
        sql = "SELECT kind, key, machine, value, n, updated FROM records ORDER BY id DESC"
        nothing: list[tuple[Kind, str, str, str, float, float]] = []
        rows = self._run(lambda c: c.execute(sql).fetchall(), nothing)
        return [Record(kind, key, where, _decode(text) or {}, n, at) for kind, key, where, text, n, at in rows]

    def clear(self) -> int:
        """Forget everything, so that no name is left in the file; the number of records that it had.

        Returns
        -------
        int
            0 also when the file cannot be used; then `problem` tells why.
        """
        with _file_lock:
            self._waiting.clear()
        if not os.path.exists(self.path):
            return 0
        return self._run(lambda c: c.execute("DELETE FROM records").rowcount, 0, is_write=True)

    def close(self) -> None:
        """Write what still waits for a file that was busy. The store may be used again."""
        with _file_lock:
            self._patience_s = BUSY_S
        self._flush()

    def _flush(self) -> None:
        with _file_lock:  # around all: what another thread adds meanwhile must not be taken for written
            batch = [(*identity, *row) for identity, row in self._waiting.items()]
            if batch:
                is_written = self._run(lambda c: _insert(c, batch), False, is_write=True, may_warn=False)
                if is_written:
                    self._waiting.clear()
        self._warn()

    def _run(
        self, job: Callable[[sqlite3.Connection], _T], instead: _T, *, is_write: bool = False, may_warn: bool = True
    ) -> _T:
        """Do a job on the file in one transaction; `instead` when that cannot be."""
        with _file_lock:
            if not (self._can_write if is_write else self._can_read and os.path.exists(self.path)):
                return instead
            try:
                done = self._transact(job, is_write)
                self._patience_s = BUSY_S
                return instead if done is None else done
            except _Fault as fault:
                self._take_note(fault)
        if may_warn:
            self._warn()
        return instead

    def _transact(self, job: Callable[[sqlite3.Connection], _T], is_write: bool) -> _T | None:
        """The job's result; None where the file is empty."""
        try:
            import sqlite3
        except ImportError as error:
            raise _Fault(f"this Python has no sqlite3 ({error})", "install a Python that has it") from error
        try:
            if is_write and not os.path.exists(self.path):
                _create(self.path)
            if not self.path.is_file():
                raise _Fault("it is not a regular file", "name another path")
        except OSError as error:
            raise _Fault(f"it cannot be created ({error.strerror})", "name a path that can be written") from error
        try:
            uri = f"{self.path.as_uri()}?mode=rw"  # never creates; falls back to reading only
            with closing(sqlite3.connect(uri, uri=True, timeout=_LOOK_S, isolation_level=None)) as connection:
                # Without a COMMIT, closing rolls back.
                _begin(connection, is_write, self._patience_s)
                if _is_empty(connection):
                    if not is_write:
                        return None
                    connection.execute(_SCHEMA)
                    connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                    connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
                done = job(connection)
                connection.execute("COMMIT")
                return done
        except sqlite3.Error as error:
            raise _fault_of(error, is_write) from error

    def _take_note(self, fault: _Fault) -> None:
        if fault.is_busy:
            self._patience_s = 0.0  # who waited once does not wait at every call
        elif fault.is_unusable:
            self._can_read = self._can_write = False
        else:
            self._can_write = False
        if not self._can_write:
            self._waiting.clear()
        if self.problem is None:
            self.problem = f"what was learned cannot be kept in {self.path}: {fault}; {fault.advice}"
            self._unsaid = self.problem

    def _warn(self) -> None:
        """Say what is wrong, once, outside of the lock: a warning may run code of users."""
        with _file_lock:
            message, self._unsaid = self._unsaid, None
        if message is not None:
            warnings.warn(message, RuntimeWarning, stacklevel=_first_foreign_level())


def default_path() -> Path:
    """The user's store: $AMORSIZE_STORE, or "store.sqlite3" in the folder "amorsize_executor" of the user's caches.

    Caches lie in $XDG_CACHE_HOME or ~/.cache, on macOS in ~/Library/Caches; without a home folder, in the one for
    temporary files.
    """
    named = os.environ.get(ENVIRONMENT)
    if named:
        return Path(named).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(caches):  # the specification: a relative path is to be ignored
        caches = os.path.expanduser("~/Library/Caches" if sys.platform == "darwin" else "~/.cache")
    if not os.path.isabs(caches):
        import tempfile

        caches = os.path.join(tempfile.gettempdir(), f"user-{os.getuid()}")
    return Path(caches, "amorsize_executor", "store.sqlite3")


def _checked(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    return kind


def _encode(record: Record, now: float) -> tuple[str, float, float]:
    """Value, weight and time of a record as the file has them."""
    for name, content in record.value.items():
        if not isinstance(name, str) or not (content is None or isinstance(content, (int, float, str))):
            raise TypeError(f"{record.key!r}: a value maps names to numbers or texts, got {name!r}: {content!r}")
    if not record.n >= 0:
        raise ValueError(f"n of {record.key!r} must be at least 0, got {record.n!r}")
    for text in (record.key, record.machine):
        text.encode()  # what is no UTF-8 raises here, not amid a transaction
    return json.dumps(record.value), float(record.n), now


def _decode(text: str) -> Value | None:
    """A value of the file; None when somebody else wrote what is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_flat = isinstance(value, dict) and not any(isinstance(content, (dict, list)) for content in value.values())
    return value if is_flat else None


def _create(path: Path) -> None:
    """Make an empty file for this user only, and its folders."""
    _make_folder(path.parent)
    # Exclusively: to open and close a file that SQLite has open in this process would drop SQLite's locks.
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        return  # another process was faster


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def _is_empty(connection: sqlite3.Connection) -> bool:
    """Whether the file has just been created, and nobody has written to it.

    Raises
    ------
    _Fault
        If it is somebody else's.
    """
    ((application,),) = connection.execute("PRAGMA application_id").fetchall()
    ((version,),) = connection.execute("PRAGMA user_version").fetchall()
    if application != _APPLICATION_ID:
        ((n_objects,),) = connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
        if application or version or n_objects:
            raise _Fault("it is a database of another program", "name another path")
        return True
    if version > _SCHEMA_VERSION:
        raise _Fault(
            f"a newer version of amorsize_executor wrote it (schema {version}, this one knows {_SCHEMA_VERSION})",
            "upgrade, or name another path",
        )
    return False


def _begin(connection: sqlite3.Connection, is_write: bool, patience_s: float) -> None:
    """Begin a transaction and take its lock.

    SQLite itself looks less and less often, at last every 100 ms, so it would hardly ever find the file free between
    the transactions of a process that writes without a pause. Asked anew, it begins with 1 ms again.
    """
    import sqlite3

    give_up_at = time.monotonic() + patience_s
    connection.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten, not only taken out of the index
    if not is_write:
        connection.execute("BEGIN")  # takes no lock before it reads
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE" if is_write else "PRAGMA user_version")
            break
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() >= give_up_at:
                raise
    # What is left to wait for are readers, which let a writer pass.
    connection.execute(f"PRAGMA busy_timeout = {int(BUSY_S * 1000)}")


def _insert(connection: sqlite3.Connection, rows: Iterable[tuple[str, str, str, str, float, float]]) -> bool:
    connection.executemany(
        "INSERT OR REPLACE INTO records (kind, key, machine, value, n, updated) VALUES (?, ?, ?, ?, ?, ?)", rows
    )
    connection.execute(
        "DELETE FROM records WHERE id IN (SELECT id FROM records ORDER BY id DESC LIMIT -1 OFFSET ?)", (MAX_RECORDS,)
    )
    return True


def _fault_of(error: sqlite3.Error, is_write: bool) -> _Fault:
    """SQLite's error in words for people. Its texts are the only thing that tells them apart before Python 3.11."""
    text = str(error)
    if "locked" in text:
        return _Fault(
            f"another process has locked it for longer than {BUSY_S:g} s",
            "it is written as soon as the lock is gone" if is_write else "end that process, or name another path",
            is_busy=True,
        )
    if "not a database" in text or "malformed" in text or "no such" in text:
        return _Fault(f"it is damaged ({text})", "it was left as it is: move or delete it to start anew")
    if "readonly" in text:
        return _Fault("it can be read only", "make it and its folder writable, or name another path", is_unusable=False)
    if "full" in text:
        return _Fault(f"there is no room ({text})", "make room, or name another path", is_unusable=False)
    return _Fault(text, "see to it that file and folder can be written, or name another path", is_unusable=not is_write)


def _first_foreign_level() -> int:
    """The `stacklevel` with which `_warn` points at the line that called this package."""
    level, package = 0, __name__.partition(".")[0]
    frame = sys._getframe(1)
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == package:
        level, frame = level + 1, frame.f_back  # type: ignore[assignment]  # None at the bottom of the stack
    return level + 1
