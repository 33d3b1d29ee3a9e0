"""What was decided about a map, in numbers and in words: `Plan`, and what it is made of.

All values: nothing here decides, measures or changes anything.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Cost(NamedTuple):
    """What a map is expected to take with so many workers (0: a serial loop), in seconds, by cause.

    Attributes
    ----------
    n_workers
        Worker processes.
    start_s
        Waiting for workers to start, less the work that is done meanwhile.
    dispatch_s
        Sending chunks and waking up for them.
    pickling_s
        Carrying items and results.
    compute_s
        The items themselves, shared among those who work.
    tail_s
        Waiting for the last ones.
    helped
        Whether the caller runs items beside the workers.
    """

    n_workers: int
    start_s: float
    dispatch_s: float
    pickling_s: float
    compute_s: float
    tail_s: float
    helped: bool = False

    @property
    def total_s(self) -> float:
        """All of it, in seconds."""
        return self.start_s + self.dispatch_s + self.pickling_s + self.compute_s + self.tail_s


class Span(NamedTuple):
    """Items that ran one after another.

    Attributes
    ----------
    worker
        0 is the caller's thread; workers are numbered from 1 in the order in which they gave results.
    start_s, stop_s
        Seconds since `map` was called.
    n_items
        How many.
    """

    worker: int
    start_s: float
    stop_s: float
    n_items: int


class Plan(NamedTuple):
    """What a map does, and why.

    Attributes
    ----------
    function
        Name of the function.
    n_items
        Items of the map; those seen so far when the input is read lazily.
    n_workers
        Worker processes to use; 0 means that all items run in the caller (serial).
    chunksize
        Items in the first chunk; later ones follow the measured times unless the caller fixed the size.
    item_s
        Expected time of one item in seconds; None when nothing is known about the function yet.
    item_std_s
        Standard deviation of `item_s`, in seconds.
    serial_s, predicted_s
        Expected time of a serial loop and of this plan, in seconds; None when unknown.
    terms
        What was compared: the serial loop and each number of workers, with the parts of their cost.
    actual_s
        Time from the call of `map` until its last result was there, in seconds; None while it runs.
    n_inline
        Items that ran in the caller's thread.
    n_chunks
        Chunks that went to workers.
    constraint
        Why the choice was not free (for example "inline='never'"), or an empty string.
    is_helped
        Whether the caller runs items beside the workers.
    timeline
        Who ran what and when, for a map that has ended: the first 10,000 spans.
    """

    function: str
    n_items: int
    n_workers: int
    chunksize: int
    item_s: float | None = None
    item_std_s: float = 0.0
    serial_s: float | None = None
    predicted_s: float | None = None
    terms: tuple[Cost, ...] = ()
    actual_s: float | None = None
    n_inline: int = 0
    n_chunks: int = 0
    constraint: str = ""
    is_helped: bool = False
    timeline: tuple[Span, ...] = ()

    @property
    def considered(self) -> tuple[tuple[int, float], ...]:
        """Pairs (workers, predicted seconds) that were compared; 0 workers is the serial loop."""
        return tuple((cost.n_workers, cost.total_s) for cost in self.terms)

    @property
    def is_serial(self) -> bool:
        """Whether all items run in the caller."""
        return self.n_workers == 0

    @property
    def estimated_speedup(self) -> float | None:
        """Predicted speed-up over a serial loop; None when nothing is known yet."""
        if self.serial_s is None or not self.predicted_s:
            return None
        return self.serial_s / self.predicted_s

    @property
    def reason(self) -> str:
        """Why, in one sentence."""
        if not self.n_items:
            return "there are no items"
        if self.item_s is None:
            if self.constraint:
                unknown = f"nothing is known about {self.function} yet and {self.constraint}"
                return f"{unknown}: workers start with single items"
            return f"nothing is known about {self.function} yet: its first item tells"
        if self.constraint and not self.is_serial:
            return f"{self.constraint}: items run in workers{', too' if self.is_helped else ''}"
        serial = format_time(self.serial_s or 0.0)
        if self.is_serial and self.constraint:
            return f"serial: {self.constraint}"
        if self.is_serial:
            others = [c for c in self.considered if c[0]]
            if not others or self.predicted_s is None:
                return f"serial: {serial} of work in all leaves nothing to gain"
            n, best = min(others, key=lambda c: c[1])
            return (
                f"serial: {format_time(self.predicted_s)} in the caller, against {format_time(best)} with {n} "
                f"worker{'s' if n > 1 else ''} (starting, carrying and waiting included)"
            )
        return f"{self._choice}: {format_time(self.predicted_s or 0.0)} instead of {serial} in a serial loop"

    @property
    def _choice(self) -> str:
        if self.is_serial:
            return "serial, in the caller"
        beside = " beside the caller" if self.is_helped else ""
        return f"{self.n_workers} worker{'s' if self.n_workers > 1 else ''}{beside}"

    def plot(self, *, timeline: bool = False) -> Any:
        """Draw the predicted time against the number of workers, or who ran what and when.

        Needs matplotlib, the ``plot`` extra.

        Parameters
        ----------
        timeline
            Whether to draw a row for each worker, with a bar for each chunk, in place of the times.

        Returns
        -------
        matplotlib.figure.Figure
            Shown by notebooks; ``savefig`` writes it.

        Raises
        ------
        ImportError
            Without matplotlib.
        """
        import importlib

        plots = importlib.import_module("amorsize_executor.integrations.plots")
        return (plots.draw_timeline if timeline else plots.draw_plan)(self)

    def _repr_html_(self) -> str:
        from .display import plan_html

        return plan_html(self)

    def __str__(self) -> str:
        lines = [f"Plan for {self.function} over {self.n_items:,} item{'s' if self.n_items != 1 else ''}"]
        if self.item_s is not None:
            lines.append(f"  one item    {format_time(self.item_s)} (std {format_time(self.item_std_s)})")
        first_chunk = "" if self.is_serial else f", first chunk {self.chunksize:,}"
        lines.append(f"  choice      {self._choice}{first_chunk}")
        lines.append(f"  why         {self.reason}")
        chosen = next((c for c in self.terms if c.n_workers == self.n_workers), None)
        if chosen is not None and chosen.n_workers:
            parts = ("start", "dispatch", "pickling", "compute", "tail")
            told = ", ".join(f"{part} {format_time(getattr(chosen, f'{part}_s'))}" for part in parts)
            lines.append(f"  cost        {told}")
        if self.predicted_s is not None:
            gain = None if self.is_serial else self.estimated_speedup
            lines.append(
                f"  predicted   {format_time(self.predicted_s)}"
                + (f", {gain:.2f} times a serial loop's speed" if gain else "")
            )
        if self.actual_s is not None:
            lines.append(
                f"  real        {format_time(self.actual_s)}, {self.n_inline:,} items in the caller, "
                f"{self.n_chunks:,} chunk{'s' if self.n_chunks != 1 else ''} to workers"
            )
        return "\n".join(lines)


def format_time(seconds: float) -> str:
    """Seconds with a unit that a person reads.

    >>> format_time(0.00125)
    '1.25 ms'
    """
    for limit, scale, unit in ((1e-6, 1e9, "ns"), (1e-3, 1e6, "us"), (1.0, 1e3, "ms")):
        if abs(seconds) < limit:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:.1f} min"
