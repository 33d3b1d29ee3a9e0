"""``amorsize store``: what has been learned and is kept for later processes."""

from __future__ import annotations

import argparse
import time

from ..decisions.planner import format_time
from ..store import Record, Store, default_path
from . import Output, UserError


def run(args: argparse.Namespace) -> Output:
    """List the records, or forget them with ``--clear``."""
    store = Store(default_path())
    path = str(store.path)
    if args.clear:
        n = store.clear()
        _check(store)
        return Output(f"{_records(n)} deleted from {path}", {"path": path, "deleted": n})
    records = store.entries()
    _check(store)
    text = "\n".join([f"{path}: {_records(len(records))}", *map(_line, records)])
    return Output(text, {"path": path, "records": [record._asdict() for record in records]})


def _check(store: Store) -> None:
    if store.problem is not None:
        raise UserError(store.problem)


def _records(n: int) -> str:
    return f"{n:,} record{'' if n == 1 else 's'}"


def _line(record: Record) -> str:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.updated))
    item_s = record.value.get("item_s", record.value.get("mean_s"))
    one = f", one item {format_time(item_s)}" if isinstance(item_s, (int, float)) else ""
    return f"  {when}  {record.kind:<9} {record.key}: {record.n:,.0f} measured{one} ({record.machine})"
