"""Measuring a function on a sample of its items, in a worker.

A crash, a leak or changed globals stay in that worker. Items are pickled one by one by the caller, which times it, and
go to the worker in two tasks: the first item alone, since the first call in a process imports and fills caches and may
take a hundred times as long as the next, and then as many others as time allows. Results come back pickled, so that
this is timed as well, and are kept: an item that was measured need not run again.

A sample ends after `BUDGET_S`, with at least one item, and two unless the first took longer than `LONE_ITEM_S`.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickle
import time
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, field
from statistics import median, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

from . import machine
from .decisions.cost_model import CostModel
from .failures import with_cause
from .items import note_index
from .workers import serialize
from .workers.blocks import BlockWriter
from .workers.process import encode_error, not_picklable
from .workload import Workload

if TYPE_CHECKING:
    import cProfile

    from .executor import AmorsizeExecutor

#: No further item of a sample begins after this, in seconds.
BUDGET_S = 1.0
#: A second item is run only if the first took at most this long, in seconds. It may have been imports: a model that
#: loads in 2 s tells nothing about the 10 ms of each later call.
LONE_ITEM_S = 5.0
#: Items, and results, of a sample are at most this large in all (one of each is always taken), in bytes.
MOST_NBYTES = 64 << 20
#: Longest and shortest of items this short, in seconds, are the machine's doing more than the function's ...
_NOISY_ITEM_S = 100e-6
#: ... and count for at most this many times the median.
_NOISY_CLIP = 10.0
#: Round trips of an empty task that are timed.
_ROUND_TRIPS = 5
#: Lines of a cProfile report.
_PROFILE_LINES = 15

#: A pickle and the buffers that it refers to.
_Pickled = tuple[bytes, list[Any]]


class _Measured(NamedTuple):
    """What a worker tells about the items that it ran."""

    times_s: list[float]
    cpu_s: float
    unpickle_s: float
    pickle_s: float
    results: list[_Pickled]
    error: bytes | None
    peak_nbytes: int
    report: str


class _Pulled(NamedTuple):
    """An item on its way to the worker."""

    at: int
    item: Any
    pickled: _Pickled


@dataclass
class Sample:
    """What was measured of a function, and the results that came out.

    Attributes
    ----------
    name
        Of the function.
    results
        By index of the item.
    first_s
        Time of the first call, in seconds.
    times_s
        Times of the other calls, in seconds; of the first if there was no other.
    cpu_s
        CPU time of all those, with threads and child processes of the function, in seconds.
    pickle_s, carry_s
        Seconds of pickling and unpickling, items and results, for all items: on both sides, and those of the caller.
    nbytes_in, nbytes_out
        Bytes of all items that were pickled (`n_pickled`), and of all results.
    peak_nbytes
        Peak resident memory of the worker, in bytes.
    round_trip_s
        Seconds from the submission of an empty task to its result.
    report
        Of cProfile; empty if it was not asked for.
    are_scalars
        Whether all items and results are numbers, short strings and the like.
    digests
        Fingerprints of the items that were pickled, by index.
    not_run
        Pairs (index, item) that were taken from the input and not run.
    """

    name: str
    results: dict[int, Any] = field(default_factory=dict)
    first_s: float = 0.0
    times_s: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    pickle_s: float = 0.0
    carry_s: float = 0.0
    nbytes_in: int = 0
    nbytes_out: int = 0
    peak_nbytes: int = 0
    round_trip_s: float = 0.0
    report: str = ""
    are_scalars: bool = True
    n_pickled: int = 0
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
            pickle_s=self.pickle_s / n,
            # Scalars travel in groups, many times cheaper than the single pickles that were timed here.
            carry_s=CostModel.PRIOR_CARRY_S if self.are_scalars else self.carry_s / n,
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
        began = time.perf_counter()
        first = self._pull(1, MOST_NBYTES, math.inf)
        if not first:
            return sample
        measured = self._measure(first, 0.0, MOST_NBYTES, is_profiled=False)
        sample.first_s, first_cpu_s = measured.times_s[0], measured.cpu_s
        if sample.first_s <= LONE_ITEM_S:
            self._run_others(began + BUDGET_S, is_profiled)
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
        measured = self._measure(
            pulled[:n_plain], left_s / 2 if is_split else left_s, room, is_profiled=is_profiled and not is_split
        )
        sample.times_s, sample.cpu_s = measured.times_s, measured.cpu_s
        rest = pulled[len(measured.results) :]
        if is_split:
            rest = rest[
                len(self._measure(rest, max(until - time.perf_counter(), 0.0), room, is_profiled=True).results) :
            ]
        sample.not_run = [(p.at, p.item) for p in rest]

    def _pull(self, most: int | None, most_nbytes: int, until: float) -> list[_Pulled]:
        """Read and pickle items until there are enough, they are large, or time is up; at least one if there is one."""
        sample = self._sample
        pulled: list[_Pulled] = []
        nbytes = 0
        for index, item in self._source:
            began = time.perf_counter()
            pickled = self._pickle(index, item)
            spent = time.perf_counter() - began
            nbytes += _nbytes(pickled)
            sample.pickle_s += spent
            sample.carry_s += spent
            sample.are_scalars = sample.are_scalars and serialize.is_scalar(item)
            sample.digests[index] = _digest(pickled)
            pulled.append(_Pulled(index, item, pickled))
            if len(pulled) == most or nbytes > most_nbytes or began + spent > until:
                break
        sample.nbytes_in += nbytes
        sample.n_pickled += len(pulled)
        return pulled

    def _pickle(self, index: int, item: Any) -> _Pickled:
        block = BlockWriter()  # what is large is copied once on its way, and that is timed, too
        try:
            serialize.encode(item, block)
        except Exception as error:
            what = f"item {index} of data, a {type(item).__qualname__!r} object,"
            raise not_picklable(what, error) from error.__cause__
        finally:
            block.close()
        return _pickled(item)

    def _measure(self, pulled: list[_Pulled], time_s: float, most_nbytes: int, *, is_profiled: bool) -> _Measured:
        sample = self._sample
        try:
            measured: _Measured = self._executor.submit(
                _run_in_worker, self._func, [p.pickled for p in pulled], time_s, most_nbytes, is_profiled
            ).result()
        except BrokenExecutor as error:
            if len(pulled) == 1:
                note_index(error, pulled[0].at, self._n_items, sample.name)
            raise
        began = time.perf_counter()
        for p, (data, buffers) in zip(pulled, measured.results, strict=False):
            try:
                value = pickle.loads(data, buffers=buffers)
            except Exception as error:
                note_index(error, p.at, self._n_items, sample.name)
                raise
            sample.results[p.at] = value
            sample.nbytes_out += _nbytes((data, buffers))
            sample.are_scalars = sample.are_scalars and serialize.is_scalar(value)
        spent = time.perf_counter() - began
        sample.carry_s += spent
        sample.pickle_s += spent + measured.unpickle_s + measured.pickle_s
        sample.peak_nbytes = max(sample.peak_nbytes, measured.peak_nbytes)
        sample.report = measured.report or sample.report
        if measured.error is not None:
            raised = with_cause(*pickle.loads(measured.error))
            note_index(raised, pulled[len(measured.results)].at, self._n_items, sample.name)
            raise raised
        return measured


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
    return _digest(_pickled(obj))


def _digest(pickled: _Pickled) -> bytes:
    data, buffers = pickled
    digest = hashlib.blake2b(data, digest_size=16)
    for buffer in buffers:
        digest.update(buffer.raw())
    return digest.digest()


def _pickled(obj: Any) -> _Pickled:
    buffers: list[Any] = []
    return serialize.dumps(obj, buffers.append), buffers


def _nbytes(pickled: _Pickled) -> int:
    data, buffers = pickled
    return len(data) + sum(memoryview(b).nbytes for b in buffers)


# ---------------------------------------------------------------------- in the worker


def _nothing() -> None:
    """The empty task."""


def _run_in_worker(
    func: Callable[..., Any], items: list[_Pickled], time_s: float, most_nbytes: int, is_profiled: bool
) -> _Measured:
    """Run items until time or memory is up, one at least; in the worker."""
    times_s: list[float] = []
    results: list[_Pickled] = []
    error: bytes | None = None
    unpickle_s = pickle_s = cpu_s = 0.0
    nbytes = 0
    profiler: cProfile.Profile | None = None
    if is_profiled:
        import cProfile

        profiler = cProfile.Profile()
    began_at = time.perf_counter()
    for data, buffers in items:
        started = time.perf_counter()
        item = pickle.loads(data, buffers=buffers)
        unpickle_s += time.perf_counter() - started
        try:
            cpu_before = _cpu_s()
            started = time.perf_counter()
            value = func(item) if profiler is None else profiler.runcall(func, item)
            ended = time.perf_counter()
            cpu_s += _cpu_s() - cpu_before
            times_s.append(ended - started)
            pickled = _pickle_result(func, value)
        except BaseException as e:  # raised again where the sample was asked for
            error = encode_error(e)
            break
        pickle_s += time.perf_counter() - ended
        results.append(pickled)
        nbytes += _nbytes(pickled)
        if time.perf_counter() - began_at > time_s or nbytes > most_nbytes:
            break
    report = _report(profiler) if profiler is not None else ""
    return _Measured(times_s, cpu_s, unpickle_s, pickle_s, results, error, machine.peak_nbytes(), report)


def _pickle_result(func: Callable[..., Any], value: Any) -> _Pickled:
    try:
        return _pickled(value)
    except Exception as error:
        what = f"the result of {serialize.name_of(func)}, a {type(value).__qualname__!r} object,"
        raise not_picklable(what, error) from error.__cause__


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
