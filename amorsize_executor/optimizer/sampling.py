"""Measuring a function on a sample of its items, in a worker.

A crash, a leak or changed globals stay in that worker. The items go there by maps of the executor, like any items: the
first one alone, since the first call in a process imports and fills caches and may take a hundred times as long as the
next, and then as many others as time allows, in one chunk. Pickling is timed apart from that. Results are kept: an item
that was measured need not run again.

A sample ends after `BUDGET_S`, of which the first item leaves at least half to the others. It has at least one item,
and two unless the first took longer than `LONE_ITEM_S` and imported nothing large.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import machine
from ..workers import serialize
from ..workers.process import not_picklable
from .items import is_of_item, note_index
from .workload import Workload

if TYPE_CHECKING:
    import cProfile

    from ..executor import AmorsizeExecutor

#: No further item of a sample begins after this, in seconds; a first one that takes long counts for half of it.
BUDGET_S = 1.0
#: A second item is run only if the first took at most this long, in seconds. It may have been imports: a model that
#: loads in 2 s tells nothing about the 10 ms of each later call.
LONE_ITEM_S = 5.0
#: Or as long as it likes, if it imported this many modules: no small library has so many, and its import or the model
#: that was loaded next may be what took so long.
_MANY_MODULES = 100
#: Items, and results, of a sample are at most this large in all (one of each is always taken), in bytes.
MOST_NBYTES = 64 << 20
#: Longest and shortest of items this short, in seconds, are the machine's doing more than the function's ...
_NOISY_ITEM_S = 100e-6
#: ... and count for at most this many times the median.
_NOISY_CLIP = 10.0
#: What it takes to carry plain values, in seconds an item: in groups, many times cheaper than the single pickles that
#: are timed here. A few short items tell little, so it is more than maps find later.
_SCALAR_CARRY_S = 0.25e-6
#: Round trips of an empty task that are timed.
_ROUND_TRIPS = 5
#: Lines of a cProfile report.
_PROFILE_LINES = 15


@dataclass
class Sample:
    """What was measured of a function, and the results that came out.

    Attributes
    ----------
    name
        Of the function.
    results
        By index of the item.
    read_s
        Seconds to read each item from the input.
    first_s
        Time of the first call, in seconds.
    times_s
        Times of the other calls, in seconds; of the first if there was no other.
    cpu_s
        CPU time of all those, with threads and child processes of the function, in seconds.
    pickle_in_s, pickle_out_s
        Seconds to pickle all items that were pickled (`n_pickled`), and all results.
    nbytes_in, nbytes_out
        Bytes of them.
    peak_nbytes
        Peak resident memory of the worker, in bytes.
    round_trip_s
        Seconds from the submission of an empty task to its result.
    report
        Of cProfile; empty if it was not asked for.
    are_scalars
        Whether all items and results are numbers, short strings and the like.
    n_imported
        Modules that the calls imported.
    digests
        Fingerprints of the items by index, where they can be told.
    not_run
        Pairs (index, item) that were taken from the input and not run.
    """

    name: str
    results: dict[int, Any] = field(default_factory=dict)
    first_s: float = 0.0
    times_s: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    pickle_in_s: float = 0.0
    pickle_out_s: float = 0.0
    nbytes_in: int = 0
    nbytes_out: int = 0
    peak_nbytes: int = 0
    round_trip_s: float = 0.0
    report: str = ""
    are_scalars: bool = True
    read_s: list[float] = field(default_factory=list)
    n_pickled: int = 0
    n_imported: int = 0
    digests: dict[int, bytes] = field(default_factory=dict)
    not_run: list[tuple[int, Any]] = field(default_factory=list)

    @property
    def n_items(self) -> int:
        """Items that ran."""
        return len(self.results)

    @property
    def robust_times_s(self) -> list[float]:
        """`times_s`, with the machine's noise cut off from times that are short."""
        if not self.times_s or median(self.times_s) > _NOISY_ITEM_S:
            return self.times_s
        limit = _NOISY_CLIP * median(self.times_s)
        return [min(t, limit) for t in self.times_s]

    def workload(self) -> Workload:
        """In numbers for one item; of a sample with at least one."""
        n, times = self.n_items, self.robust_times_s
        pickle_s = self.pickle_in_s / max(self.n_pickled, 1) + self.pickle_out_s / n
        mean_s = math.fsum(times) / len(times)
        # To read the CPU's clock takes about a microsecond of its time.
        cpu_share = self.cpu_s / math.fsum(self.times_s) if mean_s > _NOISY_ITEM_S else 1.0
        return Workload(
            function=self.name,
            n_measured=n,
            item_s=mean_s,
            item_std_s=stdev(times) if len(times) > 1 else 0.0,
            first_s=self.first_s,
            cpu_share=cpu_share,
            pickle_s=pickle_s,
            carry_s=_SCALAR_CARRY_S if self.are_scalars else pickle_s,
            nbytes_in=self.nbytes_in / max(self.n_pickled, 1),
            nbytes_out=self.nbytes_out / n,
            peak_nbytes=self.peak_nbytes,
            round_trip_s=self.round_trip_s,
        )


class Sampler:
    """Measures one function over one input.

    Parameters
    ----------
    executor
        Whose worker is used.
    func
        Called with one item.
    items
        Pairs (index, item) in the order in which to run them; read as far as needed.
    n_items
        All items that there are, for messages; None if unknown.
    """

    def __init__(
        self,
        executor: AmorsizeExecutor,
        func: Callable[..., Any],
        items: Iterable[tuple[int, Any]],
        n_items: int | None,
    ) -> None:
        self._executor = executor
        self._func = func
        self._source = iter(items)
        self._n_items = n_items
        self._sample = Sample(serialize.name_of(func))

    def run(self, *, is_profiled: bool = False) -> Sample:
        """Measure.

        Parameters
        ----------
        is_profiled
            Whether the second half of the items, without the first one, runs under `cProfile`. Their times then count
            only if there are no others.

        Raises
        ------
        Exception
            What the function raises, with the index of the item in a note; `WorkerDied` if it ends its process.
        """
        sample = self._sample
        first = self._pull(1, MOST_NBYTES, math.inf)
        if not first:
            return sample
        self._measure(first, 0.0, MOST_NBYTES, is_profiled=False)
        sample.first_s, first_cpu_s = sample.times_s.pop(), sample.cpu_s
        sample.cpu_s = 0.0
        # The start of a worker does not count, and imports leave half of the time to the others.
        until = time.perf_counter() + BUDGET_S - min(sample.first_s, BUDGET_S / 2)
        if sample.first_s <= LONE_ITEM_S or sample.n_imported >= _MANY_MODULES:
            self._run_others(until, is_profiled)
        if not sample.times_s:
            sample.times_s, sample.cpu_s = [sample.first_s], first_cpu_s
        trips = []
        for _ in range(_ROUND_TRIPS):
            began = time.perf_counter()
            self._executor.submit(_nothing).result()
            trips.append(time.perf_counter() - began)
        sample.round_trip_s = median(trips)
        return sample

    def _run_others(self, until: float, is_profiled: bool) -> None:
        sample = self._sample
        room = max(MOST_NBYTES - max(sample.nbytes_in, sample.nbytes_out), 1)
        left_s = max(until - time.perf_counter(), 0.0)
        # Not all that fits into the budget is known yet: the first call may have been a hundred times too long.
        pulled = self._pull(None if left_s else 1, room, until)
        if not pulled:
            return
        n_plain = (len(pulled) + 1) // 2 if is_profiled else len(pulled)
        is_split = n_plain < len(pulled)
        n_run = self._measure(
            pulled[:n_plain], left_s / 2 if is_split else left_s, room, is_profiled=is_profiled and not is_split
        )
        if is_split:
            times_s, cpu_s = sample.times_s, sample.cpu_s
            left_s = max(until - time.perf_counter(), 0.0)
            n_run += self._measure(pulled[n_run:], left_s, room, is_profiled=True)
            sample.times_s, sample.cpu_s = times_s[:n_run], cpu_s
        sample.not_run = pulled[n_run:]

    def _pull(self, most: int | None, most_nbytes: int, until: float) -> list[tuple[int, Any]]:
        """Read items until there are enough, they are large, or time is up; at least one if there is one."""
        sample = self._sample
        pulled: list[tuple[int, Any]] = []
        nbytes_before = sample.nbytes_in
        before = time.perf_counter()
        for index, item in self._source:
            sample.read_s.append(time.perf_counter() - before)
            pulled.append((index, item))
            sample.are_scalars = sample.are_scalars and serialize.is_scalar(item)
            try:
                began = time.perf_counter()
                data, buffers = _pickled(item, serialize.dumps_to_compare)
                sample.nbytes_in += _copied_nbytes(data, buffers)
                sample.pickle_in_s += time.perf_counter() - began
                sample.n_pickled += 1
                sample.digests[index] = _digest(data, buffers)
            except Exception:  # it cannot be pickled: the map tells
                pass
            is_large = sample.nbytes_in - nbytes_before > most_nbytes
            before = time.perf_counter()
            if len(pulled) == most or is_large or before > until:
                break
        return pulled

    def _measure(self, pulled: list[tuple[int, Any]], time_s: float, most_nbytes: int, *, is_profiled: bool) -> int:
        """Run items in one chunk; returns how many there was time for."""
        sample = self._sample
        running = self._executor.start_map(
            _Timed(self._func, time_s, most_nbytes, is_profiled),
            [item for _, item in pulled],
            chunksize=len(pulled),
            n_workers=1,
            progress=False,
        )
        for n, (index, _) in enumerate(pulled):
            try:
                value, measured = next(running.results)
            except BaseException as error:
                if is_of_item(error):
                    note_index(error, index, self._n_items, sample.name)
                raise
            if measured is None:
                return n
            sample.results[index] = value
            sample.are_scalars = sample.are_scalars and serialize.is_scalar(value)
            sample.times_s.append(measured.time_s)
            sample.cpu_s += measured.cpu_s
            sample.pickle_out_s += measured.pickle_s
            sample.nbytes_out += measured.nbytes
            sample.n_imported += measured.n_imported
            sample.peak_nbytes = max(sample.peak_nbytes, measured.peak_nbytes)
            sample.report = measured.report or sample.report
        return len(pulled)


def stand_in(func: Callable[[Any], Any]) -> Callable[..., Any]:
    """What runs in the place of a function that is measured."""
    return _Timed(func, 0.0, 0, False)


def profiled(func: Callable[[Any], Any], n_items: int) -> tuple[Callable[[Any], Any], Callable[[], str]]:
    """`func` with its first calls in this process under the profiler, and what gives the report."""
    import cProfile

    profiler = cProfile.Profile()
    left = n_items

    def call(item: Any) -> Any:
        nonlocal left
        left -= 1
        return profiler.runcall(func, item) if left >= 0 else func(item)

    return call, lambda: _report(profiler)


def fingerprint(obj: Any) -> bytes:
    """Digest of the pickle of an object: another one if it has changed."""
    return _digest(*_pickled(obj, serialize.dumps_to_compare))


def _digest(data: bytes, buffers: list[pickle.PickleBuffer]) -> bytes:
    digest = hashlib.blake2b(data, digest_size=16)
    for buffer in buffers:
        digest.update(buffer.raw())
    return digest.digest()


def _pickled(obj: Any, dumps: Callable[..., bytes]) -> tuple[bytes, list[pickle.PickleBuffer]]:
    buffers: list[pickle.PickleBuffer] = []
    return dumps(obj, buffers.append), buffers


def _copied_nbytes(data: bytes, buffers: list[pickle.PickleBuffer]) -> int:
    """Bytes of a pickle. Its buffers are copied once, as they will be on their way."""
    return len(data) + sum(len(bytes(buffer.raw())) for buffer in buffers)


# ---------------------------------------------------------------------- in the worker


class _Measured(NamedTuple):
    """What a worker tells about an item that it ran."""

    time_s: float
    cpu_s: float
    pickle_s: float
    nbytes: int
    peak_nbytes: int
    n_imported: int
    report: str


class _Timed:
    """A function that also tells what its calls cost; and does nothing any more when time or memory is up.

    Each chunk has its own. The first call of a chunk always runs.
    """

    def __init__(self, func: Callable[[Any], Any], time_s: float, most_nbytes: int, is_profiled: bool) -> None:
        self.__qualname__ = serialize.name_of(func)
        self._func = func
        self._time_s = time_s
        self._left_nbytes = most_nbytes
        self._is_profiled = is_profiled
        self._profiler: cProfile.Profile | None = None
        self._until: float | None = None
        self._has_failed = False

    def __call__(self, item: Any) -> tuple[Any, _Measured | None]:
        now = time.perf_counter()
        if self._until is None:
            self._until = now + self._time_s
            if self._is_profiled:
                import cProfile

                self._profiler = cProfile.Profile()
        elif now > self._until or self._left_nbytes < 0 or self._has_failed:
            return None, None
        try:
            return self._measure(item)
        except BaseException:
            self._has_failed = True  # nobody wants the rest
            raise

    def _measure(self, item: Any) -> tuple[Any, _Measured]:
        func, profiler = self._func, self._profiler
        cpu_s, n_modules = _cpu_s(), len(sys.modules)
        started = time.perf_counter()
        value = func(item) if profiler is None else profiler.runcall(func, item)
        ended = time.perf_counter()
        cpu_s, n_imported = _cpu_s() - cpu_s, len(sys.modules) - n_modules
        try:
            nbytes = _copied_nbytes(*_pickled(value, serialize.dumps))
        except Exception as error:
            what = f"the result of {self.__qualname__}, a {type(value).__qualname__!r} object,"
            raise not_picklable(what, error) from error.__cause__
        pickle_s = time.perf_counter() - ended
        self._left_nbytes -= nbytes
        report = _report(profiler) if profiler is not None else ""
        return value, _Measured(ended - started, cpu_s, pickle_s, nbytes, machine.peak_nbytes(), n_imported, report)


def _nothing() -> None:
    """The empty task."""


def _cpu_s() -> float:
    """CPU time of this process with its threads and ended children, in seconds."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def _report(profiler: cProfile.Profile) -> str:
    """Where the time went, as text."""
    import pstats

    stream = io.StringIO()
    stats = pstats.Stats(profiler, stream=stream)
    stats.strip_dirs().sort_stats("cumulative").print_stats(_PROFILE_LINES)
    return "\n".join(line.rstrip() for line in stream.getvalue().strip().splitlines())
