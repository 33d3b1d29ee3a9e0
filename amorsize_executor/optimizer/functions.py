"""The functions for people with a function and its items: `optimize` measures and advises, `execute` does it.

`execute` leaves the decision to the executor's map, which decides while it runs. `optimize` decides from a sample that
runs in a worker, for those who want to see numbers first, or to use them elsewhere. Both use the process-wide executors
(see `executors`), so later calls find warm workers and what earlier calls learned.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import Any

from ..decisions.plan import format_time
from ..executor import AmorsizeExecutor
from ..integrations.progress import is_watched, make_progress
from ..workers.serialize import has_handle, name_of
from . import workload
from .arguments import Bounds, check_common, check_count, check_progress
from .choice import choose, keep, learn, profile_of, seed
from .executors import executor_for
from .items import as_items, is_of_item, note_index, own_items, spread
from .results import OptimizationResult, Profile
from .sampling import Sample, Sampler, profiled
from .takeover import Takeover, take_over


def optimize(
    func: Callable[[Any], Any],
    data: Iterable[Any],
    *,
    sample_size: int = 30,
    max_workers: int | None = None,
    memory_limit: int | float | None = None,
    cache_key: str | None = None,
    profile: bool = False,
    verbose: bool = False,
) -> OptimizationResult:
    """Measure a function on some of its items and choose how to run it over all of them.

    The sample runs in a worker process, so a crash, a leak or changed globals stay there. Its items are spread over
    the data. It ends after about a second, with at least two items unless the first took more than five seconds and
    imported nothing large.

    Parameters
    ----------
    func
        Called with one item: any callable that can be pickled, also a lambda, closure or bound method.
    data
        A list, NumPy array (items are its rows), range, pandas object (values of a Series; rows of a DataFrame, each a
        Series) or other iterable. A generator is read to its end; the result has all items.
    sample_size
        Items to measure, at most.
    max_workers
        Upper bound on processes. None: the CPUs that this process may use.
    memory_limit
        Bytes for this process and its workers. None: what the container or host allows.
    cache_key
        A name under which the measurements are kept for later calls, also in later processes on this machine: they
        measure nothing. What was measured of another version of the function's code is not used.
    profile
        Whether half of the sample runs under `cProfile`; the report is ``result.profile.report``.
    verbose
        Whether to print the result on stderr.

    Returns
    -------
    OptimizationResult
        With ``data``, which goes to `execute`: results of the measured items are then taken over, once.

    Raises
    ------
    TypeError, ValueError
        For a parameter of the wrong type or out of range.
    WorkerDied
        If `func` ends its process.
    Exception
        What `func` raises for a measured item, with the item's index in a note.

    Examples
    --------
    >>> result = optimize(len, ["one", "three"])
    >>> result.n_jobs, result.data
    (1, ['one', 'three'])
    """
    bounds = check_common(func, sample_size, max_workers, memory_limit, cache_key, profile, verbose)
    items = own_items(data)
    if len(items) == 0:
        result = OptimizationResult(
            1, 1, 1.0, 0.0, "there are no items: nothing to do", profile=Profile(name_of(func)), data=items
        )
    else:
        result = _optimize(func, items, sample_size, bounds, cache_key, profile)
    if verbose:
        say(str(result))
    return result


def _optimize(
    func: Callable[[Any], Any],
    items: Sequence[Any],
    sample_size: int,
    bounds: Bounds,
    cache_key: str | None,
    is_profiled: bool,
) -> OptimizationResult:
    sample: Sample | None = None
    with executor_for(*bounds) as executor:
        load = None if cache_key is None or is_profiled else workload.recall(cache_key, func)
        if load is None:
            pairs = ((i, items[i]) for i in spread(len(items), sample_size))
            sample = Sampler(executor, func, pairs, len(items)).run(is_profiled=is_profiled)
            load = learn(executor, func, sample, cache_key)
        choice = choose(load, len(items), executor, bounds, func)
    if sample is None:
        choice = choice.known_as(cache_key)
    return OptimizationResult(
        n_jobs=choice.n_jobs,
        chunksize=choice.plan.chunksize,
        estimated_speedup=choice.speedup,
        estimated_time=choice.time_s,
        reason=choice.reason,
        warnings=choice.warnings,
        profile=profile_of(load, executor, sample.report if sample is not None else ""),
        data=items,
        n_items=len(items),
        plan=choice.plan,
        kept=None if sample is None else Takeover(func, items, sample),
    )


def execute(
    func: Callable[[Any], Any],
    data: Iterable[Any],
    *,
    n_jobs: int | None = None,
    chunksize: int | None = None,
    max_workers: int | None = None,
    memory_limit: int | float | None = None,
    sample_size: int = 30,
    cache_key: str | None = None,
    progress: bool | Callable[[int, int], object] | None = None,
    profile: bool = False,
    verbose: bool = False,
) -> list[Any]:
    """Apply a function to each item, serially or in parallel, whichever is faster.

    Nothing is measured beforehand: the map decides while it runs, in the process-wide executor. So repeated calls, in
    the requests of a server for example, find warm workers and what the calls before have learned.

    Parameters
    ----------
    func
        Called with one item: any callable that can be pickled, also a lambda, closure or bound method.
    data
        As for `optimize`. For ``result.data`` of an `optimize` of the same function, results of the measured items are
        taken over, once, if neither function nor items have changed since.
    n_jobs, chunksize
        Use exactly these, as `optimize` chose them for example. ``n_jobs=1`` is a plain loop in this process, with no
        copies and no need to pickle, unless something in it was given by `share` or `resource`, which only workers
        have; otherwise so many workers compute. A `chunksize` alone fixes only that.
    max_workers, memory_limit
        Bounds, as for `optimize`. For each distinct pair an executor of its own is kept warm, for a few of them.
    sample_size
        Of a function that is not known yet, at most so many items run in this process before it is decided how to go
        on (fewer if that takes more than half a millisecond). With `profile`, the items to run under the profiler.
    cache_key
        A name under which what is learned is kept for later processes on this machine.
    progress
        True shows a bar on stderr, a callable is called with (done, total). None: a bar if `verbose` and stderr is a
        terminal or a notebook.
    profile
        Whether to run a sample under `cProfile` first, and print measurements and report on stderr.
    verbose
        Whether to print on stderr what was measured, decided and why, and how long it really took.

    Returns
    -------
    list
        Results in the order of the items.

    Raises
    ------
    TypeError, ValueError
        For a parameter of the wrong type or out of range.
    WorkerDied
        If `func` ends its process.
    Exception
        What `func` raises, with the item's index in a note.

    Examples
    --------
    >>> execute(abs, [-1, 2, -3])
    [1, 2, 3]
    """
    bounds = check_common(func, sample_size, max_workers, memory_limit, cache_key, profile, verbose)
    n_jobs = check_count("n_jobs", n_jobs, hint="; None leaves the choice to execute, 1 is a serial loop")
    chunksize = check_count("chunksize", chunksize)
    if n_jobs is not None and max_workers is not None and n_jobs > max_workers:
        raise ValueError(f"n_jobs must be at most max_workers ({max_workers}), got {n_jobs}")
    check_progress(progress)
    if progress is None:
        progress = verbose and is_watched()
    items = as_items(data)
    if len(items) == 0:
        if verbose:
            say(f"{name_of(func)}: there are no items, nothing to do")
        return []
    call = _Call(func, items, take_over(func, data), progress, verbose)
    if n_jobs == 1 and not (has_handle(func) or any(map(has_handle, items))):
        return call.run_serially(sample_size if profile else 0)
    if n_jobs is not None:
        bounds = Bounds(n_jobs, bounds.memory_limit)
    with executor_for(*bounds) as executor:
        if profile:
            call.run_sample(executor, sample_size)
        if cache_key is not None:
            seed(executor, func, cache_key)
        results = call.run(executor, n_jobs, chunksize, sample_size)
        if cache_key is not None:
            keep(executor, func, cache_key)
    return results


class _Call:
    """One call of `execute`: the results so far, and the items that are left."""

    def __init__(
        self,
        func: Callable[[Any], Any],
        items: Sequence[Any],
        results: dict[int, Any],
        progress: bool | Callable[[int, int], object],
        verbose: bool,
    ) -> None:
        self._func = func
        self._items = items
        self._done = results
        self._progress = progress
        self._verbose = verbose
        self._n_taken_over = len(results)

    def run_serially(self, n_profiled: int) -> list[Any]:
        """A loop in this process; its first items under the profiler if asked for."""
        began = time.perf_counter()
        call = self._func
        report: Callable[[], str] | None = None
        if n_profiled:
            call, report = profiled(self._func, n_profiled)
        # No map(): there, a StopIteration of the function would end the loop, and the rest would be missing.
        results = self._collect(call(item) for item in self._left())
        if report is not None:
            say(report())
        if self._verbose:
            took = format_time(time.perf_counter() - began)
            say(f"{name_of(self._func)}: n_jobs=1 was asked for, a serial loop of {took}")
        return results

    def run_sample(self, executor: AmorsizeExecutor, sample_size: int) -> None:
        """Run some items under the profiler and print what was found."""
        n = len(self._items)
        pairs = [(i, self._items[i]) for i in spread(n, sample_size) if i not in self._done]
        sample = Sampler(executor, self._func, pairs, n).run(is_profiled=True)
        if not sample.n_items:
            return
        load = learn(executor, self._func, sample, None)
        say(f"{load.function}, a sample of {n:,} items\n{profile_of(load, executor, sample.report)}\n{sample.report}")
        self._done |= sample.results

    def run(self, executor: AmorsizeExecutor, n_jobs: int | None, chunksize: int | None, sample_size: int) -> list[Any]:
        """What is left, by a map."""
        running = executor.start_map(
            self._func,
            self._left(),
            chunksize=chunksize,
            n_workers=n_jobs,
            sample_size=sample_size,
            progress=False,
        )
        results = self._collect(running.results)
        if self._verbose:
            if self._n_taken_over:
                say(f"{self._n_taken_over} results were taken over from optimize")
            say(str(running.plan) if running.plan is not None else "nothing was left to do")
        return results

    def _left(self) -> Sequence[Any]:
        if not self._done:
            return self._items
        return [item for i, item in enumerate(self._items) if i not in self._done]

    def _collect(self, results: Iterator[Any]) -> list[Any]:
        """All results, in the order of the items."""
        collected: list[Any] = []
        if self._progress:
            collected.extend(self._shown(results))
        else:
            try:
                collected.extend(results)
            except BaseException as error:
                self._note(error, len(collected))
                raise
        if not self._done:
            return collected
        others = iter(collected)
        return [self._done[i] if i in self._done else next(others) for i in range(len(self._items))]

    def _shown(self, results: Iterator[Any]) -> Iterator[Any]:
        shown = make_progress(self._progress, len(self._items), name_of(self._func))
        try:
            if self._done:
                shown.advance(len(self._done))
            for n in count():
                try:
                    result = next(results)
                except StopIteration:
                    return
                except BaseException as error:
                    self._note(error, n)
                    raise
                shown.advance()
                yield result
        finally:
            shown.close()

    def _note(self, error: BaseException, n_collected: int) -> None:
        """Say in an exception which item raised it: the next one of those that were left."""
        if is_of_item(error):
            n = len(self._items)
            left = [i for i in range(n) if i not in self._done] if self._done else range(n)
            note_index(error, left[n_collected], n, name_of(self._func))


def say(text: str) -> None:
    """Print for people: on stderr, so that a program's own output stays as it is."""
    print(text, file=sys.stderr)
