"""Log records of workers on their way into this process's `logging`.

The I/O thread takes them in, and a thread of their own hands them to the loggers: a handler may be slow, log or submit,
and hold its lock while another thread waits for a result; none of that must hold up the I/O thread. What comes faster
than handlers take it is dropped, counted, and told.

Workers are told what loggers and handlers here want (`look`), so that nothing else is sent. Who has configured no
handler gets no records: then a worker's logging does what this process's would, which prints warnings to stderr.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections import deque
from typing import TYPE_CHECKING

from .failures import no_lease
from .workers import protocol, serialize
from .workers.channel import Frame, make_frame
from .workers.logs import Wanted, known_loggers

if TYPE_CHECKING:
    from .workers.pools import Pool

#: Records that wait to be handled, at most, and their size in bytes.
_MOST_RECORDS = 10_000
_MOST_NBYTES = 16 << 20
#: While tasks are sent it is looked this often whether levels and handlers have changed, in seconds; less often where
#: there are so many loggers that looking would take more than this share of the time.
_PERIOD_S = 5e-3
_MOST_SHARE = 2e-3
#: A shutdown waits for handlers at most so long, in seconds: one may be stuck for good.
_JOIN_S = 5.0

_logger = logging.getLogger("amorsize_executor")


def wanted() -> Wanted | None:
    """What this process's logging takes; None if it has no handlers."""
    least: int | None = None
    levels: dict[str, int] = {}
    for name, logger in known_loggers():
        if logger.level or not name:
            levels[name] = logger.level
        for handler in logger.handlers:
            if not isinstance(handler, logging.NullHandler) and (least is None or handler.level < least):
                least = handler.level
    return None if least is None else Wanted(least, logging.getLogger().manager.disable, levels)


class WorkerLogs:
    """Those of one executor's workers.

    Attributes
    ----------
    looks_at
        When to look again (of `time.perf_counter`).
    """

    def __init__(self) -> None:
        self.looks_at = 0.0
        # Guards all that follows; held for a few operations on it.
        self._changed = threading.Condition(threading.Lock())
        self._wanted: Wanted | None = None
        self._version = 0
        self._told: dict[int, int] = {}  # by worker that is not ready: the version that it was told
        self._records: deque[bytes | logging.LogRecord] = deque()
        self._nbytes = 0
        self._n_dropped = 0
        self._thread: threading.Thread | None = None
        self._is_closed = False

    # ------------------------------------------------------------------ what workers are told

    def look(self, pool: Pool) -> None:
        """See what is wanted now, and tell workers if it is something else; any thread."""
        begun = time.perf_counter()
        now_wanted = wanted()
        ended = time.perf_counter()
        self.looks_at = ended + max(_PERIOD_S, (ended - begun) / _MOST_SHARE)
        with self._changed:
            if now_wanted == self._wanted:
                return
            self._wanted = now_wanted
            self._version += 1
        for worker_id in pool.pids():
            pool.post(worker_id, self._frame(pool))

    def greet(self, worker_id: int, pool: Pool) -> Frame:
        """What a worker is told when it starts; the I/O thread's."""
        self.look(pool)
        with self._changed:
            self._told[worker_id] = self._version
        return self._frame(pool)

    def ready(self, worker_id: int, pool: Pool) -> None:
        """A worker has become ready: tell it what has changed while it could not be told."""
        with self._changed:
            is_old = self._told.pop(worker_id, self._version) != self._version
        if is_old:
            pool.post(worker_id, self._frame(pool))

    def gone(self, worker_id: int) -> None:
        """A worker has ended."""
        with self._changed:
            self._told.pop(worker_id, None)

    def _frame(self, pool: Pool) -> Frame:
        told = None if self._wanted is None else tuple(self._wanted)
        return make_frame((protocol.LOGGING, told, pool.is_forking))

    # ------------------------------------------------------------------ what they send

    def put(self, data: bytes, n_lost: int) -> None:
        """A worker has sent a record, after it had to drop so many; the I/O thread's."""
        with self._changed:
            self._n_dropped += n_lost
            is_full = len(self._records) >= _MOST_RECORDS or self._nbytes + len(data) > _MOST_NBYTES
            if is_full and self._records:
                self._n_dropped += 1
                return
            self._nbytes += len(data)
        self._append(data)

    def warn(self, message: str) -> None:
        """Have this process's logger warn; the I/O thread's."""
        self._append(_logger.makeRecord(_logger.name, logging.WARNING, __file__, 0, message, (), None, "warn"))

    def _append(self, record: bytes | logging.LogRecord) -> None:
        with self._changed:
            self._records.append(record)
            self._changed.notify()
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="amorsize-logs", daemon=False)
            try:
                thread.start()
            except RuntimeError:  # the interpreter ends, and starts no thread any more
                self._handle_waiting()
                return
            self._thread = thread

    def close(self) -> None:
        """No more records will come; the thread ends when it has handled those that have."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def join(self) -> None:
        """Wait until all records were handled, after `close`; not for ever, and not in a handler."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN_S)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._records and not self._is_closed:
                    self._changed.wait()
            if not self._handle_waiting():
                return

    def _handle_waiting(self) -> bool:
        """Handle the records that have come; False if there were none."""
        with self._changed:
            records, self._records, self._nbytes = self._records, deque(), 0
            n_dropped, self._n_dropped = self._n_dropped, 0
        for record in records:
            _handle(record)
        if n_dropped:
            _logger.warning("%d log records of workers were dropped: handlers are slower than records come", n_dropped)
        return bool(records or n_dropped)


def _handle(data: bytes | logging.LogRecord) -> None:
    """Give a record to the logger of its name, as if it were made here."""
    try:
        record = (
            data if isinstance(data, logging.LogRecord) else logging.makeLogRecord(serialize.decode(data, no_lease))
        )
        logger = logging.getLogger(record.name if record.name != "root" else None)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)
    except Exception:  # of a class that this process cannot make, or of a handler that lets its own pass
        if logging.raiseExceptions and sys.stderr is not None:  # as handlers do
            traceback.print_exc()
