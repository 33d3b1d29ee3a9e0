"""Log records of workers arrive in this process's logging, as far as that wants them."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from amorsize_executor import AmorsizeExecutor, WorkerDied
from amorsize_executor.logs import WorkerLogs
from amorsize_executor.workers import serialize
from amorsize_executor.workers.logs import packed

from .tools import LIMIT_S, Signal, run_script

NAME = "tests.of.logging"


class Kept(logging.Handler):
    """Keeps records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.records]


@pytest.fixture
def kept() -> Iterator[Kept]:
    """What a logger of this process got, whose level is INFO."""
    handler, logger = Kept(), logging.getLogger(NAME)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def log(level: int, message: str, *args: object, **kwargs: object) -> int:
    logging.getLogger(NAME).log(level, message, *args, **kwargs)  # type: ignore[arg-type]
    return os.getpid()


def log_and_go_on(message: str, logged: Signal, go: Signal) -> None:
    log(logging.INFO, message)
    logged.give()
    go.take()


def is_enabled(level: int, name: str = NAME) -> bool:
    return logging.getLogger(name).isEnabledFor(level)


def log_exception() -> None:
    try:
        raise ValueError("so it is")
    except ValueError:
        logging.getLogger(NAME).exception("caught")


def log_and_end(message: str) -> None:
    log(logging.INFO, message)
    os._exit(3)


def log_from_threads(n_threads: int, n_records: int) -> None:
    def log_all(number: int) -> None:
        for i in range(n_records):
            log(logging.INFO, "%d", number * n_records + i)

    threads = [threading.Thread(target=log_all, args=(number,)) for number in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def log_from_a_fork() -> None:
    child = os.fork()
    if not child:
        log(logging.INFO, "of a child")
        os._exit(0)
    os.waitpid(child, 0)


def configure(path: str) -> None:
    logging.basicConfig(filename=path, level=logging.DEBUG, format="%(message)s")


def add_handler(path: str) -> None:
    logging.getLogger(NAME).addHandler(logging.FileHandler(path))


def be_silent() -> None:
    logging.getLogger().addHandler(logging.NullHandler())


class Unpicklable:
    def __reduce__(self) -> str:
        raise TypeError("no")

    def __repr__(self) -> str:
        return "<Unpicklable>"


def log_extra() -> None:
    log(logging.INFO, "with", extra={"order": 7, "thing": Unpicklable()})


@pytest.mark.parametrize("method", ["loky", "spawn", "fork"])
def test_a_record_arrives_as_it_was_made(kept: Kept, method: str) -> None:
    with AmorsizeExecutor(1, method) as executor:
        pid = executor.submit(log, logging.INFO, "%s of %d", "one", 2).result(LIMIT_S)
    (record,) = kept.records
    assert (record.name, record.levelno, record.getMessage()) == (NAME, logging.INFO, "one of 2")
    assert record.process == pid != os.getpid()
    assert record.processName.startswith("AmorsizeWorker-")
    assert (record.funcName, record.pathname) == ("log", __file__)


def test_a_traceback_arrives(kept: Kept) -> None:
    with AmorsizeExecutor(1) as executor:
        executor.submit(log_exception).result(LIMIT_S)
    (record,) = kept.records
    told = logging.Formatter("%(message)s").format(record)
    assert told.startswith("caught\nTraceback (most recent call last):")
    assert told.endswith("ValueError: so it is")


def test_what_cannot_be_pickled_arrives_as_text(kept: Kept) -> None:
    with AmorsizeExecutor(1) as executor:
        executor.submit(log_extra).result(LIMIT_S)
    fields = vars(kept.records[0])
    assert (fields["order"], fields["thing"]) == (7, "<Unpicklable>")


def test_a_record_arrives_while_its_task_goes_on(make_signal: Callable[[], Signal]) -> None:
    arrived = threading.Event()
    logger = logging.getLogger(NAME)
    logger.addFilter(lambda record: arrived.set() or True)  # type: ignore[func-returns-value]
    logger.setLevel(logging.INFO)
    handler = Kept()
    logger.addHandler(handler)
    logged, go = make_signal(), make_signal()
    try:
        with AmorsizeExecutor(1) as executor:
            future = executor.submit(log_and_go_on, "half-way", logged, go)
            assert arrived.wait(LIMIT_S)
            assert not future.done()
            go.give()
    finally:
        logger.filters.clear()
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


def test_records_of_maps_and_threads_arrive_in_their_order(kept: Kept) -> None:
    with AmorsizeExecutor(2, inline="never") as executor:
        executor.submit(log_from_threads, 4, 250).result(LIMIT_S)
    numbers = [int(message) for message in kept.messages()]
    assert sorted(numbers) == list(range(1000))
    for start in range(0, 1000, 250):
        of_one = [number for number in numbers if start <= number < start + 250]
        assert of_one == sorted(of_one)


def test_the_last_words_of_a_worker_arrive(kept: Kept) -> None:
    with AmorsizeExecutor(1) as executor, pytest.raises(WorkerDied):
        executor.submit(log_and_end, "farewell").result(LIMIT_S)
    assert kept.messages() == ["farewell"]


def test_what_nobody_wants_is_not_even_made(kept: Kept) -> None:
    with AmorsizeExecutor(1) as executor:
        assert not executor.submit(is_enabled, logging.DEBUG).result(LIMIT_S)
        assert executor.submit(is_enabled, logging.INFO).result(LIMIT_S)
        executor.submit(log, logging.DEBUG, "a detail").result(LIMIT_S)
    assert kept.messages() == []


def test_workers_follow_a_change_of_levels(kept: Kept) -> None:
    logger = logging.getLogger(NAME)
    with AmorsizeExecutor(1) as executor:
        assert not executor.submit(is_enabled, logging.DEBUG).result(LIMIT_S)
        logger.setLevel(logging.DEBUG)
        while not executor.submit(is_enabled, logging.DEBUG).result(LIMIT_S):
            pass  # within milliseconds
        logger.setLevel(logging.NOTSET)
        while executor.submit(is_enabled, logging.DEBUG).result(LIMIT_S):
            pass
        logging.disable(logging.CRITICAL)
        try:
            while executor.submit(is_enabled, logging.CRITICAL).result(LIMIT_S):
                pass
        finally:
            logging.disable(logging.NOTSET)


def test_a_worker_that_configures_logging_has_it_to_itself(kept: Kept, tmp_path: Path) -> None:
    path = tmp_path / "log"
    with AmorsizeExecutor(1, initializer=configure, initargs=(str(path),)) as executor:
        executor.submit(log, logging.DEBUG, "mine").result(LIMIT_S)
    assert path.read_text() == "mine\n"
    assert kept.messages() == []


def test_a_record_with_a_handler_in_the_worker_stays_there(kept: Kept, tmp_path: Path) -> None:
    path = tmp_path / "log"
    with AmorsizeExecutor(1) as executor:
        executor.submit(add_handler, str(path)).result(LIMIT_S)
        executor.submit(log, logging.INFO, "here").result(LIMIT_S)
    assert path.read_text() == "here\n"
    assert kept.messages() == []


def test_a_null_handler_in_the_initializer_keeps_records_to_the_worker(kept: Kept) -> None:
    with AmorsizeExecutor(1, initializer=be_silent) as executor:
        executor.submit(log, logging.INFO, "unheard").result(LIMIT_S)
    assert kept.messages() == []


def test_records_of_an_initializer_arrive(kept: Kept) -> None:
    with AmorsizeExecutor(1, initializer=log, initargs=(logging.INFO, "ready")) as executor:
        executor.submit(is_enabled, 0).result(LIMIT_S)
    assert kept.messages() == ["ready"]


def test_a_child_of_a_task_sends_nothing(kept: Kept) -> None:
    with AmorsizeExecutor(1) as executor:
        executor.submit(log_from_a_fork).result(LIMIT_S)
        executor.submit(log, logging.INFO, "of the worker").result(LIMIT_S)
    assert kept.messages() == ["of the worker"]


def test_a_handler_may_submit_and_wait(kept: Kept) -> None:
    answers: list[int] = []

    class Asking(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == "ask":
                logging.getLogger(NAME).info("asked")
                answers.append(executor.submit(log, logging.INFO, "answered").result(LIMIT_S))

    asking = Asking()
    logging.getLogger(NAME).addHandler(asking)
    try:
        with AmorsizeExecutor(1) as executor:
            first = executor.submit(log, logging.INFO, "ask").result(LIMIT_S)
            logging.getLogger(NAME).info("ask")  # with the handler's lock, which a record of the worker needs, too
    finally:
        logging.getLogger(NAME).removeHandler(asking)
    assert answers[-1] == first
    assert set(kept.messages()) == {"ask", "asked", "answered"}


def test_a_handler_that_raises_does_no_harm(kept: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    class Raising(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("a broken handler")

    raising = Raising()
    logging.getLogger(NAME).addHandler(raising)
    try:
        with AmorsizeExecutor(1) as executor:
            for i in range(3):
                executor.submit(log, logging.INFO, "%d", i).result(LIMIT_S)
    finally:
        logging.getLogger(NAME).removeHandler(raising)
    assert kept.messages() == ["0", "1", "2"]
    assert capsys.readouterr().err.count("a broken handler") >= 3


def test_more_records_than_handlers_take_are_dropped_and_counted(
    kept: Kept, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amorsize_executor.logs._MOST_RECORDS", 3)
    entered, go = threading.Event(), threading.Event()

    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            entered.set()
            assert go.wait(LIMIT_S)

    slow = Slow()
    logging.getLogger(NAME).addHandler(slow)
    logs = WorkerLogs()
    try:
        logs.put(entry("0"), 0)
        assert entered.wait(LIMIT_S)
        for i in range(1, 6):
            logs.put(entry(str(i)), 2 if i == 1 else 0)
        go.set()
        logs.close()
        logs.join()
    finally:
        logging.getLogger(NAME).removeHandler(slow)
    assert kept.messages() == ["0", "1", "2", "3"]
    assert "4 log records of workers were dropped" in caplog.text


def entry(message: str) -> bytes:
    return packed(logging.LogRecord(NAME, logging.INFO, __file__, 1, message, None, None))


def test_a_record_that_cannot_be_unpickled_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    logs = WorkerLogs()
    logs.put(serialize.dumps(7), 0)
    logs.close()
    logs.join()
    assert "Traceback" in capsys.readouterr().err


def test_without_handlers_a_worker_logs_as_ever(tmp_path: Path) -> None:
    source = """
        import logging, sys
        from amorsize_executor import AmorsizeExecutor

        def task():
            logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(processName).6s %(message)s")
            logging.info("in the task")

        with AmorsizeExecutor(1) as executor:
            executor.submit(task).result()
            logging.getLogger().addHandler(logging.NullHandler())
            executor.submit(task).result()
        """
    assert run_script(tmp_path, source) == "Amorsi in the task\n" * 2


def test_threads_that_handle_records_end_with_the_executor(kept: Kept) -> None:
    with AmorsizeExecutor(1) as executor:
        executor.submit(log, logging.INFO, "one").result(LIMIT_S)
    assert not [thread for thread in threading.enumerate() if thread.name == "amorsize-logs"]


def test_records_are_handled_before_the_program_ends(tmp_path: Path) -> None:
    source = """
        import logging, sys
        from amorsize_executor import AmorsizeExecutor

        def task():
            logging.info("at the very end")

        logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
        executor = AmorsizeExecutor(1)
        executor.submit(task)
        """
    assert run_script(tmp_path, source) == "at the very end\n"
