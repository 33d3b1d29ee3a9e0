"""What is mapped: functions, items and their order, the same in every process.

Busy tasks are given as turns of a loop; the caller says how many turns make a second. Sizes are chosen for a serial
time of 0.05 to 2 s.
"""

from __future__ import annotations

import importlib
import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks import _regret_tasks as tasks
from benchmarks._tasks import spin

Function = Callable[[Any], Any]

SEED = 20_240_607
SIGMA = 1.0
"""Of the logarithm of lognormal durations."""
PARETO_ALPHA = 1.5
PARETO_MOST = 50.0
"""Times the mean: a longer task than this would be a workload of its own, the giant's."""
MEDIAN_NBYTES = 24_000


@dataclass(frozen=True)
class Part:
    """One map of a workload.

    Attributes
    ----------
    function
        Importable by every worker.
    make_items
        Builds the items anew, equal to those before: no contender meets the same objects twice.
    n_items
        How many it makes.
    """

    function: Function
    make_items: Callable[[], Iterable[Any]]
    n_items: int


@dataclass(frozen=True)
class Prepared:
    """A part with its items built, or with a fresh generator of them."""

    function: Function
    items: Iterable[Any]
    n_items: int


@dataclass(frozen=True)
class Workload:
    """Maps that one executor runs one after the other; most have one."""

    parts: list[Part]

    @property
    def lengths(self) -> list[int]:
        """Items of each map."""
        return [part.n_items for part in self.parts]

    def prepare(self) -> list[Prepared]:
        """Build the items of all parts; not timed."""
        return [Prepared(part.function, part.make_items(), part.n_items) for part in self.parts]


def build(name: str, loops_per_s: float) -> Workload:
    """Build a workload by its name in `NAMES`."""
    return Workload(_MAKERS[name](loops_per_s))


def _busy(durations_s: Iterable[float], loops_per_s: float) -> list[int]:
    return [max(1, round(duration_s * loops_per_s)) for duration_s in durations_s]


def _one(function: Function, items: list[Any]) -> list[Part]:
    return [Part(function, lambda: list(items), len(items))]


def _constant(duration_s: float, n_items: int) -> Callable[[float], list[Part]]:
    return lambda loops_per_s: _one(spin, _busy([duration_s] * n_items, loops_per_s))


def _lognormal_s(mean_s: float, n_items: int) -> list[float]:
    rng = random.Random(SEED)
    mu = math.log(mean_s) - SIGMA**2 / 2
    return [rng.lognormvariate(mu, SIGMA) for _ in range(n_items)]


def _lognormal(mean_s: float, n_items: int) -> Callable[[float], list[Part]]:
    return lambda loops_per_s: _one(spin, _busy(_lognormal_s(mean_s, n_items), loops_per_s))


def _sorted(mean_s: float, n_items: int, *, longest_first: bool) -> Callable[[float], list[Part]]:
    durations_s = sorted(_lognormal_s(mean_s, n_items), reverse=longest_first)
    return lambda loops_per_s: _one(spin, _busy(durations_s, loops_per_s))


def _pareto(mean_s: float, n_items: int) -> Callable[[float], list[Part]]:
    def make(loops_per_s: float) -> list[Part]:
        rng = random.Random(SEED)
        scale = 1 - 1 / PARETO_ALPHA
        shares = (min(rng.paretovariate(PARETO_ALPHA) * scale, PARETO_MOST) for _ in range(n_items))
        return _one(spin, _busy((share * mean_s for share in shares), loops_per_s))

    return make


def _stages(*stages: tuple[float, int]) -> Callable[[float], list[Part]]:
    """Tasks whose duration changes: pairs of seconds and how many."""
    durations_s = [duration_s for duration_s, count in stages for _ in range(count)]
    return lambda loops_per_s: _one(spin, _busy(durations_s, loops_per_s))


def _nbytes(n_items: int, most: int) -> list[int]:
    rng = random.Random(SEED)
    return [min(int(rng.lognormvariate(math.log(MEDIAN_NBYTES), SIGMA)), most) for _ in range(n_items)]


def _byte_strings(n_items: int) -> Callable[[float], list[Part]]:
    def make(_: float) -> list[Part]:
        def items() -> list[bytes]:
            rng = random.Random(SEED)
            letters = bytes(rng.choices(b"abcdefgh", k=20 * MEDIAN_NBYTES))
            return [letters[:nbytes] for nbytes in _nbytes(n_items, len(letters))]

        return [Part(tasks.compress, items, n_items)]

    return make


def _texts(n_items: int) -> Callable[[float], list[Part]]:
    def make(_: float) -> list[Part]:
        def items() -> list[str]:
            rng = random.Random(SEED)
            text = " ".join(f"word{rng.randrange(5_000)}" for _ in range(2 * MEDIAN_NBYTES))
            return [text[:length] for length in _nbytes(n_items, len(text))]

        return [Part(tasks.count_words, items, n_items)]

    return make


def _large_items(nbytes: int, n_items: int) -> Callable[[float], list[Part]]:
    def make(_: float) -> list[Part]:
        def items() -> list[bytes]:
            rng = random.Random(SEED)
            return [rng.randbytes(nbytes) for _ in range(n_items)]

        return [Part(tasks.digest, items, n_items)]

    return make


def _arrays(function: str, size: int, n_items: int) -> Callable[[float], list[Part]]:
    def make(_: float) -> list[Part]:
        return _one(getattr(importlib.import_module("benchmarks._regret_arrays"), function), [size] * n_items)

    return make


def _generator(duration_s: float, making_s: float, n_items: int) -> Callable[[float], list[Part]]:
    def make(loops_per_s: float) -> list[Part]:
        (loops,) = _busy([duration_s], loops_per_s)
        (making,) = _busy([making_s], loops_per_s)

        def items() -> Iterator[int]:
            for _ in range(n_items):
                spin(making)
                yield loops

        return [Part(spin, items, n_items)]

    return make


def _many_maps(duration_s: float, n_items: int, n_maps: int) -> Callable[[float], list[Part]]:
    return lambda loops_per_s: _one(spin, _busy([duration_s] * n_items, loops_per_s)) * n_maps


def _two_functions(loops_per_s: float) -> list[Part]:
    tiny = _one(spin, _busy([3e-6] * 2_000, loops_per_s))
    long = _one(tasks.turn, _busy([1e-3] * 20, loops_per_s))
    return (tiny + long) * 10


def _plain(function: Function, items: list[Any]) -> Callable[[float], list[Part]]:
    return lambda _: _one(function, items)


_MAKERS: dict[str, Callable[[float], list[Part]]] = {
    "constant-0.3us": _constant(0.3e-6, 300_000),
    "constant-3us": _constant(3e-6, 50_000),
    "constant-30us": _constant(30e-6, 10_000),
    "constant-300us": _constant(300e-6, 1_000),
    "constant-3ms": _constant(3e-3, 100),
    "constant-30ms": _constant(30e-3, 15),
    "few-long": _constant(400e-3, 5),
    "short-map": _constant(1e-3, 50),
    "lognormal-20us": _lognormal(20e-6, 10_000),
    "lognormal-1ms": _lognormal(1e-3, 300),
    "pareto": _pareto(100e-6, 4_000),
    "sized-bytes": _byte_strings(150),
    "sized-text": _texts(600),
    "large-items": _large_items(512 * 1024, 200),
    "large-results": _plain(tasks.produce, [400_000] * 400),
    "drifting": _stages((100e-6, 400), (1e-3, 400)),
    "giant-last": _stages((1e-3, 200), (150e-3, 1)),
    "cheap-first": _stages((2e-6, 20), (1e-3, 250)),
    "dear-first": _stages((30e-3, 1), (5e-6, 20_000)),
    "sorted-up": _sorted(1e-3, 300, longest_first=False),
    "sorted-down": _sorted(1e-3, 300, longest_first=True),
    "sleeping": _plain(tasks.rest, [5e-3] * 60),
    "memory-bound": _arrays("copy_memory", 16, 48),
    "blas": _arrays("multiply", 400, 60),
    "generator": _generator(100e-6, 10e-6, 3_000),
    "many-tiny-maps": _many_maps(50e-6, 4, 1_000),
    "two-functions": _two_functions,
}

NAMES = tuple(_MAKERS)
QUICK_NAMES = (
    "constant-0.3us",
    "constant-30us",
    "constant-3ms",
    "lognormal-1ms",
    "sized-bytes",
    "drifting",
    "giant-last",
    "sleeping",
    "many-tiny-maps",
)
