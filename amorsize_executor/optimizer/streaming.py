"""`optimize_streaming`: the same for an input that is read as it is used, and may be endless or larger than memory."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from statistics import median
from typing import TYPE_CHECKING, Any

from .. import machine
from ..decisions.plan import format_time
from ..workers.serialize import has_handle, name_of
from . import workload
from .arguments import Bounds, check_common, check_count, shown
from .choice import Choice, choose, learn, profile_of
from .executors import executor_for
from .functions import say
from .items import as_items, is_array, is_of_item, item_count, iterate, note_index
from .results import Profile, StreamingOptimizationResult
from .sampling import Sample, Sampler, fingerprint
from .workload import Workload

if TYPE_CHECKING:
    from ..executor import AmorsizeExecutor

#: An input of unknown length is planned as one of so much work, in seconds: long enough for workers to start.
_ASSUMED_S = 60.0
#: ... and of so many items at least and at most.
_ASSUMED_ITEMS = (1_000, 1_000_000_000)
#: Chunks that are read ahead for each worker: one runs, one waits there, and the rest makes up for uneven times.
_CHUNKS_AHEAD = 4
#: Nothing comes out before the buffer was filled for the first time, which should take no longer, in seconds.
_FILL_S = 0.05
#: What is read ahead takes at most this part of the memory limit.
_BUFFER_PART = 1 / 10


def optimize_streaming(
    func: Callable[[Any], Any],
    iterable: Iterable[Any],
    *,
    sample_size: int = 30,
    max_workers: int | None = None,
    memory_limit: int | float | None = None,
    buffersize: int | None = None,
    cache_key: str | None = None,
    profile: bool = False,
    verbose: bool = False,
) -> StreamingOptimizationResult:
    """Measure a function on the first items of an input, and choose how to run it over all of them as they come.

    Parameters
    ----------
    func
        Called with one item: any callable that can be pickled, also a lambda, closure or bound method.
    iterable
        What `optimize` takes as data. A generator is read no further than the sample needs.
    sample_size
        Items to measure, at most: the first ones of the input.
    max_workers
        Upper bound on processes. None: the CPUs that this process may use.
    memory_limit
        Bytes for this process and its workers. None: what the container or host allows.
    buffersize
        Items that are read ahead of the results taken, at most. None: four chunks for each worker, less if that would
        take more than a tenth of the memory, or 50 ms to fill.
    cache_key
        A name under which the measurements are kept, as for `optimize`.
    profile
        Whether half of the sample runs under `cProfile`; the report is ``result.profile.report``.
    verbose
        Whether to print the result on stderr.

    Returns
    -------
    StreamingOptimizationResult
        Its ``stream()`` gives the results, from the first item on; measured items are not run again.

    Raises
    ------
    TypeError, ValueError
        For a parameter of the wrong type or out of range.
    WorkerDied
        If `func` ends its process.
    Exception
        What `func` raises for a measured item, with the item's index in a note.

    Notes
    -----
    The time of an input without a length cannot be known: `estimated_time` is not a number then, and
    `estimated_speedup` that of a minute of work.

    Examples
    --------
    >>> result = optimize_streaming(abs, (-i for i in range(5)))
    >>> list(result.stream())
    [0, 1, 2, 3, 4]
    """
    bounds = check_common(func, sample_size, max_workers, memory_limit, cache_key, profile, verbose)
    buffersize = check_count("buffersize", buffersize)
    if is_array(iterable):
        iterable = as_items(iterable, "iterable")  # refuses one of no dimension
    source = iterate(iterable, "iterable")
    n_items = None if source is iterable else item_count(iterable)
    sample: Sample | None = None
    with executor_for(*bounds) as executor:
        load = None if cache_key is None or profile else workload.recall(cache_key, func)
        if load is None:
            pairs = islice(enumerate(source), min(sample_size, sys.maxsize))
            sample = Sampler(executor, func, pairs, n_items).run(is_profiled=profile)
            load = learn(executor, func, sample, cache_key) if sample.n_items else None
        if load is None:
            result = _empty(func, buffersize)
        else:
            n_planned = n_items if n_items is not None else _assumed_items(load)
            choice = choose(load, n_planned, executor, bounds, func)
            if sample is None:
                choice = choice.known_as(cache_key)
            read_s = median(sample.read_s) if sample is not None else 0.0
            if buffersize is None:
                buffersize = buffersize_for(choice, load, bounds, read_s)
            result = StreamingOptimizationResult(
                n_jobs=choice.n_jobs,
                chunksize=max(min(choice.plan.chunksize, buffersize // (2 * choice.n_jobs)), 1),
                estimated_speedup=choice.speedup,
                estimated_time=math.nan if n_items is None else choice.time_s,
                reason=f"{choice.reason} (for {format_time(_ASSUMED_S)} of work)" if n_items is None else choice.reason,
                warnings=(*choice.warnings, *slow_input(read_s, choice, load)),
                profile=profile_of(load, executor, sample.report if sample is not None else ""),
                n_items=n_items,
                plan=choice.plan,
                buffersize=buffersize,
            )
            stream = _Stream(func, iterable, source, sample, bounds, result)
            result = replace(result, start=stream.start)
    if verbose:
        say(str(result))
    return result


def _empty(func: Callable[..., Any], buffersize: int | None) -> StreamingOptimizationResult:
    return StreamingOptimizationResult(
        n_jobs=1,
        chunksize=1,
        estimated_speedup=1.0,
        estimated_time=0.0,
        reason="there are no items: nothing to do",
        profile=Profile(name_of(func)),
        buffersize=buffersize or 1,
        start=lambda: iter(()),
    )


def slow_input(read_s: float, choice: Choice, load: Workload) -> Iterator[str]:
    """A warning where workers would wait for the input."""
    if choice.n_jobs > 1 and read_s * choice.n_jobs > load.item_s:
        yield (
            f"to read an item from the input takes {format_time(read_s)} for {format_time(load.item_s)} of work, which "
            f"is too slow for {choice.n_jobs} workers"
        )


def _assumed_items(load: Workload) -> int:
    """How many items to plan for where nobody knows."""
    least, most = _ASSUMED_ITEMS
    return min(max(math.ceil(_ASSUMED_S / max(load.item_s, 1e-9)), least), most)


def buffersize_for(choice: Choice, load: Workload, bounds: Bounds, read_s: float) -> int:
    """Items to read ahead: enough for all workers, within a part of the memory, and soon read."""
    wanted = min(_CHUNKS_AHEAD * choice.n_jobs * choice.plan.chunksize, int(_FILL_S / max(read_s, 1e-6)))
    limit = min(bounds.memory_limit or math.inf, machine.memory_limit())
    fitting = limit * _BUFFER_PART / max(load.nbytes_in + load.nbytes_out, 1.0)
    return max(min(wanted, int(fitting)), choice.n_jobs + 1)


class _Stream:
    """The results of an input, from the first item on; each `start` begins anew where the input can be read anew.

    Parameters
    ----------
    func, iterable
        The function and its input.
    source
        The iterator from which the sample was read.
    sample
        What was measured; None if nothing was.
    bounds, result
        Bounds of the executor to use, and what was chosen.
    """

    def __init__(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        source: Iterator[Any],
        sample: Sample | None,
        bounds: Bounds,
        result: StreamingOptimizationResult,
    ) -> None:
        self._func = func
        self._iterable = iterable
        self._source = source
        self._is_once = source is iterable
        self._bounds = bounds
        self._result = result
        self._lock = threading.Lock()  # guards the two below
        self._sample = sample
        self._is_started = False
        # An input that can be read again may have changed by then, and so may what the function captured.
        self._function_digest = b"" if sample is None or self._is_once else fingerprint(func)

    def __deepcopy__(self, memo: object) -> _Stream:
        """Itself, for `dataclasses.asdict` of a result: an input is not copied."""
        return self

    def start(self) -> Iterator[Any]:
        """The results; see `StreamingOptimizationResult.stream`."""
        with self._lock:
            if self._is_once and self._is_started:
                raise ValueError(
                    f"the input of this stream, {shown(self._iterable)}, can be read only once, and stream() was "
                    "called before: call optimize_streaming with a new one, or with a list"
                )
            self._is_started = True
            sample, self._sample = self._sample, None
        if self._is_once:
            left = [] if sample is None else [item for _, item in sample.not_run]
            return self._run([] if sample is None else _in_order(sample), chain(left, self._source))
        source = iterate(self._iterable)
        if sample is None:
            return self._run([], source)
        head = list(islice(source, sample.n_items))
        if self._is_as_measured(sample, head):
            return self._run(_in_order(sample), source)
        return self._run([], chain(head, source))

    def _is_as_measured(self, sample: Sample, head: list[Any]) -> bool:
        try:
            digests = dict(enumerate(map(fingerprint, head)))
            return fingerprint(self._func) == self._function_digest and digests == {
                i: sample.digests.get(i) for i in sample.results
            }
        except Exception:  # something in it cannot be pickled any more, so it has changed
            return False

    def _run(self, known: list[Any], items: Iterator[Any]) -> Iterator[Any]:
        """Results that are known, then those of the items."""
        n = len(known)
        known.reverse()
        while known:  # keeps no result longer than its taker does
            yield known.pop()
        name, result = name_of(self._func), self._result
        with executor_for(*self._bounds) as executor:
            if result.is_serial and not has_handle(self._func):
                results = self._serially(executor, items)
            else:
                results = self._mapped(executor, items)
            while True:
                try:
                    value = next(results)
                except StopIteration:
                    return
                except BaseException as error:
                    if is_of_item(error):
                        note_index(error, n, result.n_items, name)
                    raise
                n += 1
                yield value
                del value

    def _serially(self, executor: AmorsizeExecutor, items: Iterator[Any]) -> Iterator[Any]:
        """A plain loop; from the first item on that has a handle, which only workers know, one worker goes on."""
        for item in items:
            if has_handle(item):
                yield from self._mapped(executor, chain((item,), items))
                return
            yield self._func(item)

    def _mapped(self, executor: AmorsizeExecutor, items: Iterator[Any]) -> Iterator[Any]:
        result = self._result
        return executor.start_map(
            self._func,
            items,
            chunksize=result.chunksize,
            buffersize=result.buffersize,
            n_workers=result.n_jobs,
            progress=False,
        ).results


def _in_order(sample: Sample) -> list[Any]:
    return [sample.results[i] for i in sorted(sample.results)]
