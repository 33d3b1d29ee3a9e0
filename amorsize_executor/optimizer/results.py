"""What `optimize` and `optimize_streaming` give back: numbers to use, and the measurements and reasons behind them."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..decisions.plan import Plan, format_time

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Profile:
    """The measurements of a sample.

    Attributes
    ----------
    function
        Name of the function.
    n_measured
        Items that ran; 0 if there were none.
    avg_execution_time, std_execution_time
        Time of one item in seconds, and its standard deviation, without the first call.
    first_execution_time
        Time of the first call in the worker, in seconds; it may import and fill caches.
    avg_pickle_time
        Seconds to pickle one item and its result.
    avg_nbytes_in, avg_nbytes_out
        Bytes of one pickled item, and of its result.
    cpu_share
        CPU time over elapsed time; less than 1 if the function waits, more if it uses several CPUs.
    peak_worker_memory
        Largest resident memory of the worker so far, in bytes.
    worker_start_time
        Seconds to start a worker.
    dispatch_overhead
        Seconds from the submission of an empty task to its result.
    report
        Where the time goes, as text of cProfile; empty without ``profile=True``.
    """

    function: str
    n_measured: int = 0
    avg_execution_time: float = 0.0
    std_execution_time: float = 0.0
    first_execution_time: float = 0.0
    avg_pickle_time: float = 0.0
    avg_nbytes_in: float = 0.0
    avg_nbytes_out: float = 0.0
    cpu_share: float = 1.0
    peak_worker_memory: int = 0
    worker_start_time: float = 0.0
    dispatch_overhead: float = 0.0
    report: str = ""

    def __str__(self) -> str:
        return "\n".join(f"{name:<12}{text}" for name, text in self.rows())

    def rows(self) -> list[tuple[str, str]]:
        """Lines of a table for people."""
        if not self.n_measured:
            return [("measured", "nothing")]
        item = f"{format_time(self.avg_execution_time)} (std {format_time(self.std_execution_time)}"
        sizes = f"{format_nbytes(self.avg_nbytes_in)} in, {format_nbytes(self.avg_nbytes_out)} out"
        memory = f"{format_nbytes(self.peak_worker_memory)} at peak"
        return [
            ("one item", f"{item}, {self.n_measured} measured), CPU {100 * self.cpu_share:.0f} %"),
            ("carrying it", f"{format_time(self.avg_pickle_time)} to pickle, {sizes}"),
            (
                "a worker",
                f"starts in {format_time(self.worker_start_time)}, {memory}, "
                f"round trip {format_time(self.dispatch_overhead)}",
            ),
        ]


@dataclass(frozen=True)
class OptimizationResult:
    """How to run a function over its items, and why.

    Attributes
    ----------
    n_jobs
        Processes that compute; 1 means a serial loop.
    chunksize
        Items to send at once.
    estimated_speedup
        Against a serial loop.
    estimated_time
        Seconds until the last result; not a number where the input has no length.
    reason
        Why, in one sentence.
    warnings
        What to know before relying on it.
    profile
        The measurements.
    data
        All items, also those of a generator; empty in a result that was loaded.
    n_items
        How many there are; None if the input has no length.
    plan
        The comparison behind the choice; None without items and in a result that was loaded.

    Examples
    --------
    >>> from amorsize_executor import execute, optimize
    >>> result = optimize(abs, range(-500, 0))
    >>> result.n_jobs  # too little work to share
    1
    >>> execute(abs, result.data, n_jobs=result.n_jobs, chunksize=result.chunksize)[:3]
    [500, 499, 498]
    """

    n_jobs: int
    chunksize: int
    estimated_speedup: float
    estimated_time: float
    reason: str
    warnings: tuple[str, ...] = ()
    profile: Profile = Profile("")
    data: Sequence[Any] = field(default=(), repr=False, compare=False)
    n_items: int | None = 0
    plan: Plan | None = field(default=None, repr=False, compare=False)
    # Keeps what `execute` can take over alive as long as this result.
    kept: object = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copies: all but what only this very result can do (`kept`, and a stream's `start`)."""
        return {name: None if name in ("kept", "start") else value for name, value in self.__dict__.items()}

    @property
    def is_serial(self) -> bool:
        """Whether a serial loop was chosen."""
        return self.n_jobs == 1

    def __str__(self) -> str:
        return "\n".join([self._title(), *(f"  {name:<12}{text}" for name, text in self._rows())])

    def _title(self) -> str:
        n = self.n_items
        over = "an input of unknown length" if n is None else f"{n:,} item{'' if n == 1 else 's'}"
        return f"{self.profile.function} over {over}"

    def _choice(self) -> str:
        return "n_jobs=1: a serial loop" if self.is_serial else f"n_jobs={self.n_jobs}, chunksize={self.chunksize}"

    def _rows(self) -> list[tuple[str, str]]:
        predicted = f"{self.estimated_speedup:.2f} times a serial loop's speed"
        if not math.isnan(self.estimated_time):
            predicted = f"{format_time(self.estimated_time)}, {predicted}"
        return [
            *self.profile.rows(),
            ("choice", self._choice()),
            ("predicted", predicted),
            ("why", self.reason),
            *(("warning", text) for text in self.warnings),
        ]

    def _repr_html_(self) -> str:
        cells = "".join(
            f'<tr><th style="text-align:left">{html.escape(name)}</th>'
            f'<td style="text-align:left">{html.escape(text)}</td></tr>'
            for name, text in self._rows()
        )
        report = f"<pre>{html.escape(self.profile.report)}</pre>" if self.profile.report else ""
        return f"<table><caption>{html.escape(self._title())}</caption><tbody>{cells}</tbody></table>{report}"

    def plot(self, ax: Axes | None = None) -> Figure:
        """Draw the time that was predicted for each number of workers, with the choice marked.

        Parameters
        ----------
        ax
            Where to draw. None: a new figure.

        Returns
        -------
        matplotlib.figure.Figure
            The figure drawn in.

        Raises
        ------
        ModuleNotFoundError
            Without matplotlib.
        ValueError
            If nothing was compared: without items, or in a result that was loaded.
        """
        if self.plan is None and self.n_items != 0:
            raise ValueError("there is nothing to plot: a config, of which this was loaded, has only what was chosen")
        if self.plan is None or not self.plan.considered:
            raise ValueError(f"there is nothing to plot: {self.reason}")
        from ..integrations.plots import draw_plan

        return draw_plan(self.plan, ax)


@dataclass(frozen=True)
class StreamingOptimizationResult(OptimizationResult):
    """How to run a function over a stream of items, and why.

    Attributes
    ----------
    buffersize
        Items that are read ahead of the results taken, at most.

    Notes
    -----
    The other attributes are those of `OptimizationResult`; `data` is empty, since a stream need not fit into memory.
    """

    buffersize: int = 1
    # Yields the results from the first item on; raises if it cannot (again).
    start: Callable[[], Iterator[Any]] | None = field(default=None, repr=False, compare=False)

    def stream(self) -> Iterator[Any]:
        """Results from the first item on, in order; those that were measured are not computed again.

        Returns
        -------
        Iterator
            Of results. At most `buffersize` items are read ahead. An exception of the function is raised in place of
            its result, with the item's index in a note, and ends the iteration.

        Raises
        ------
        ValueError
            At the second call, if the input can be read only once (a generator), and in a result that was loaded,
            copied or unpickled.
        """
        if self.start is None:
            raise ValueError(
                "this result was loaded from a config, copied or unpickled: it has no input. "
                "Call optimize_streaming for one that has"
            )
        return self.start()

    def _choice(self) -> str:
        return f"{super()._choice()}, buffersize={self.buffersize}"


def format_nbytes(nbytes: float) -> str:
    """Bytes with a unit that a person reads.

    >>> format_nbytes(2_500_000)
    '2.5 MB'
    """
    for limit, scale, unit in ((1e3, 1, "B"), (1e6, 1e3, "kB"), (1e9, 1e6, "MB")):
        if nbytes < limit:
            return f"{nbytes / scale:.3g} {unit}"
    return f"{nbytes / 1e9:.3g} GB"
