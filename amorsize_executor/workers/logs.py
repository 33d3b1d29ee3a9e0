"""The worker's side of logging: records go to the parent, whose loggers of the same names handle them.

What is sent is what the parent asks for (`Wanted`): its levels hold here, too, so that a record which nobody there
wants is not even made. A record that a handler of this worker's own gets (but for a `NullHandler` below the root) is
not sent. So who configures logging in a worker, say in an initializer, has it to himself, and nothing is told twice.

Records may come from any thread, and from signal handlers and finalizers at any point of one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from . import serialize

#: Types that any process can unpickle.
_PLAIN_TYPES = frozenset({bool, bytes, complex, float, int, str, type(None)})


class Wanted(NamedTuple):
    """What the parent's logging takes.

    Attributes
    ----------
    least
        Lowest level of its handlers.
    disabled
        What `logging.disable` was told.
    levels
        Levels that were set, by name of the logger; the root's name is empty.
    """

    least: int
    disabled: int
    levels: dict[str, int]


def known_loggers() -> Iterator[tuple[str, logging.Logger]]:
    """Loggers of this process with their names; the root's is empty."""
    root = logging.getLogger()
    yield "", root
    for name, logger in list(root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger):
            yield name, logger


def packed(record: logging.LogRecord) -> bytes:
    """A record that another process can unpickle, as a dictionary: message and traceback as text, the rest as it is."""
    fields = dict(record.__dict__)
    fields["msg"] = record.getMessage()
    fields["args"] = None
    fields.pop("message", None)
    if record.exc_info and not record.exc_text:
        fields["exc_text"] = logging.Formatter().formatException(record.exc_info)
    fields["exc_info"] = None
    try:
        return serialize.dumps(fields)
    except Exception:  # of what was given as `extra`
        return serialize.dumps({k: v if type(v) in _PLAIN_TYPES else repr(v) for k, v in fields.items()})


class _Sender(logging.Handler):
    """Hands records on."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        super().__init__()
        self._send = send
        self._is_packing = False

    def emit(self, record: logging.LogRecord) -> None:
        if self._is_packing or self._is_handled_here(record):  # what is pickled may log, and so on without end
            return
        try:
            self._is_packing = True
            try:
                data = packed(record)
            finally:
                self._is_packing = False
            self._send(data)
        except OSError:
            pass  # the parent is gone, and this process soon is
        except Exception:
            self.handleError(record)

    def _is_handled_here(self, record: logging.LogRecord) -> bool:
        logger: logging.Logger | None = logging.getLogger(record.name)
        while logger is not None:
            for handler in logger.handlers:
                if handler is not self and (logger.parent is None or not isinstance(handler, logging.NullHandler)):
                    return True
            logger = logger.parent if logger.propagate else None
        return False


class LogForwarding:
    """Logging of this process; owned by its main thread.

    Parameters
    ----------
    send
        Sends a packed record; may be called by any thread.
    """

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._handler = _Sender(send)
        self._wanted: Wanted | None = None
        self._last_resort = logging.lastResort
        self._is_settled = False
        self._levels: dict[str, tuple[int, int]] = {}  # of loggers that have theirs from the parent: before, and now

    def receive(self, told: tuple[Any, ...] | None, *, is_forked: bool) -> None:
        """The parent has told what it wants (the elements of `Wanted`); nothing if that is None."""
        wanted = None if told is None else Wanted(*told)
        if is_forked and wanted is not None and not self._is_settled:  # inherited: they are the parent's
            for _, logger in known_loggers():
                for handler in logger.handlers[:]:
                    logger.removeHandler(handler)
        self._wanted = wanted
        if self._is_settled:
            self.settle()
        elif wanted is not None:
            # So the initializer's records are sent, and yet it finds no handler that it has not made.
            logging.lastResort = self._handler
            self._set_levels(wanted)

    def settle(self) -> None:
        """The initializer has run, and with it whatever configures logging here."""
        self._is_settled = True
        logging.lastResort = self._last_resort
        root = logging.getLogger()
        if any(handler is not self._handler for handler in root.handlers):
            self._give_levels_back(self._levels)  # this worker's own affair
        elif self._wanted is None:
            root.removeHandler(self._handler)
        else:
            self._set_levels(self._wanted)
            root.addHandler(self._handler)

    def stop(self) -> None:
        """Nothing can be sent any more: in a child that a task has forked, and at the end."""
        logging.lastResort = self._last_resort
        logging.getLogger().removeHandler(self._handler)

    def _set_levels(self, wanted: Wanted) -> None:
        self._handler.setLevel(wanted.least)
        logging.disable(wanted.disabled)
        self._give_levels_back(self._levels.keys() - wanted.levels.keys())
        for name, level in wanted.levels.items():
            logger = logging.getLogger(name or None)
            before, _ = self._levels.get(name, (logger.level, 0))
            self._levels[name] = before, level
            logger.setLevel(level)

    def _give_levels_back(self, names: Iterable[str]) -> None:
        for name in list(names):
            before, level = self._levels.pop(name)
            logger = logging.getLogger(name or None)
            if logger.level == level:  # else it was set here since
                logger.setLevel(before)
