"""The command line: ``amorsize`` and ``python -m amorsize_executor``.

Each command is a module with a function that takes the parsed arguments and returns what to show: a text for people,
or with ``--json`` the same as data. What a user can get wrong ends with one line on stderr, not with a traceback.

======  ===========================================
status  meaning
======  ===========================================
0       done
1       it failed, for a reason told on stderr
2       the command line is wrong
130     Ctrl-C
======  ===========================================
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .. import __version__


class UserError(Exception):
    """What the user can put right."""


class Output(NamedTuple):
    """What a command has to say."""

    text: str
    data: Any


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Parameters
    ----------
    argv
        Arguments without the program's name. None: those of the process.

    Returns
    -------
    int
        The exit status.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    run: Callable[[argparse.Namespace], Output] | None = args.run
    if run is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        output = run(args)
        print(json.dumps(output.data, indent=2) if args.json else output.text)
        sys.stdout.flush()
    except UserError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader has seen enough, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="amorsize", description="A process pool that decides by measuring how to run things."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], Output], told: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=told, description=told[0].upper() + told[1:] + ".")
        command.add_argument("--json", action="store_true", help="print data for programs")
        command.set_defaults(run=run)
        return command

    demo = add("demo", _demo, "run a real job serially, with ProcessPoolExecutor and with this package, and compare")
    demo.add_argument(
        "--job",
        choices=("auto", "digits", "sources"),
        default="auto",
        help="grid search on scikit-learn's digits, or complexity of the standard library's sources; "
        "auto: the first if scikit-learn is installed (default)",
    )
    demo.add_argument("--items", type=_positive, metavar="N", help="run only the first N items of the job")
    add("info", _info, "show CPUs, quotas, memory limits and start methods, and measure overheads")

    optimize = add("optimize", _optimize, "measure a function on some items and say how to run it over all of them")
    optimize.add_argument("function", metavar="MODULE:FUNC", help="an importable function of one argument")
    source = optimize.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--data",
        metavar="FILE",
        help="items: rows of a .npy array, elements of a .json list, rows of a .csv file with a header (as dicts); "
        "of any other file its lines",
    )
    source.add_argument("--range", type=_count, metavar="N", help="items: the numbers from 0 to N - 1")
    optimize.add_argument(
        "--sample-size", type=_positive, default=30, metavar="N", help="items to measure (default 30)"
    )
    optimize.add_argument("--max-workers", type=_positive, metavar="N", help="upper bound on processes")
    optimize.add_argument(
        "--memory-limit", type=_nbytes, metavar="BYTES", help="for all processes; 2e9 or 2G work, too"
    )
    optimize.add_argument("--cache-key", metavar="NAME", help="keep the measurements under a name, and use them")
    optimize.add_argument("--profile", action="store_true", help="profile half of the sample and show the report")
    optimize.add_argument("--save", metavar="NAME", help="save the result as a config of this name or path")

    store = add("store", _store, "list what has been learned and is kept for later processes")
    store.add_argument("--clear", action="store_true", help="forget all of it")
    return parser


# Commands are imported when they run: each needs other things, and --help none of them.


def _demo(args: argparse.Namespace) -> Output:
    from .demo import run

    return run(args)


def _info(args: argparse.Namespace) -> Output:
    from .info import run

    return run(args)


def _optimize(args: argparse.Namespace) -> Output:
    from .optimize import run

    return run(args)


def _store(args: argparse.Namespace) -> Output:
    from .store import run

    return run(args)


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {text}")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def _nbytes(text: str) -> float:
    """Bytes, with an optional k, M, G or T (powers of 1,000) or Ki, Mi, ... (of 1,024).

    >>> _nbytes("2G"), _nbytes("1.5MiB"), _nbytes("3e6")
    (2000000000.0, 1572864.0, 3000000.0)
    """
    number, factor = text.strip().lower().removesuffix("b"), 1
    for base, ending in ((1024, "i"), (1000, "")):
        for power, letter in enumerate("kmgt", 1):
            if number.endswith(letter + ending):
                number, factor = number.removesuffix(letter + ending), base**power
    value = float(number) * factor
    if not 1 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be at least 1 byte, got {text}")
    return value


for _type, _name in ((_count, "number"), (_positive, "number"), (_nbytes, "number of bytes")):
    _type.__name__ = _name  # argparse says "invalid <name> value"


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Two columns."""
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:<{width}}{text}" for name, text in rows)
