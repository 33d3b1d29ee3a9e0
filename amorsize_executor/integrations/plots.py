"""Pictures of a plan with matplotlib: what was compared and chosen, and when which worker did what.

matplotlib is imported when a picture is asked for. Without `ax` a figure of its own is made outside of pyplot's
registry: a notebook shows it as the value of a cell, nothing has to be closed, and no backend is chosen. With `ax` the
picture goes into axes of the caller's, and their figure is returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from ..decisions.plan import format_time

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..decisions.plan import Plan, Span

#: Of a palette that colour-blind people tell apart (Okabe and Ito 2008).
_BLUE, _LIGHT_BLUE, _ORANGE, _GREEN = "#0072b2", "#56b4e9", "#e69f00", "#009e73"
_LIGHT_ORANGE, _GREY = "#f0c35e", "#888888"
#: Times are shown in the first unit of which the longest has at least one; seconds in each, and its name.
_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
#: Letters in a line of a title, at matplotlib's default size in a figure of default width.
_TITLE_WIDTH = 72
#: Above this number of workers not each of them has a label.
_MAX_LABELS = 24
#: More bars than this lie so close that edges would hide them.
_MAX_EDGES = 400
#: Times that differ by more than this factor are drawn on a logarithmic scale, where the short ones can be read.
_MAX_LINEAR = 20


def draw_plan(plan: Plan, ax: Axes | None = None) -> Figure:
    """Draw the predicted time against the number of workers, what was chosen, and the real time if it is known.

    Parameters
    ----------
    plan
        What to draw, such as `AmorsizeExecutor.last_plan`.
    ax
        Where to draw; None makes a figure.

    Returns
    -------
    matplotlib.figure.Figure
        The figure drawn in.

    Raises
    ------
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> from amorsize_executor import AmorsizeExecutor
    >>> with AmorsizeExecutor(2) as executor:  # doctest: +SKIP
    ...     figure = draw_plan(executor.plan(abs, range(1000)))
    >>> figure.savefig("plan.png")  # doctest: +SKIP
    """
    figure, ax = _figure_and_axes(ax, height_inch=4.0)
    choices = sorted(plan.considered)
    known = [s for s in (plan.serial_s, plan.actual_s, *(seconds for _, seconds in choices)) if s is not None]
    scale, unit = _unit_for(max(known, default=0.0))
    # Equal steps for the counts that were compared: with hundreds of workers, the first ones would stick together.
    counts = sorted({n for n, _ in choices} | {plan.n_workers})
    place = {n: i for i, n in enumerate(counts)}

    if plan.serial_s is not None:
        ideal = [n for n in counts if n >= 1]
        ax.plot(
            [place[n] for n in ideal],
            [plan.serial_s / n / scale for n in ideal],
            linestyle="--",
            color=_GREY,
            label="ideal: serial / workers",
            zorder=1,
        )
    if choices:
        ax.plot(
            [place[n] for n, _ in choices],
            [seconds / scale for _, seconds in choices],
            marker="o",
            markersize=5,
            color=_BLUE,
            label="predicted",
            zorder=2,
        )
    if plan.predicted_s is not None:
        ax.plot(
            [place[plan.n_workers]],
            [plan.predicted_s / scale],
            linestyle="none",
            marker="o",
            markersize=13,
            markerfacecolor="none",
            markeredgewidth=2.5,
            color=_ORANGE,
            label=f"chosen: {_choice(plan.n_workers)}, {format_time(plan.predicted_s)}",
            zorder=3,
        )
    if plan.actual_s is not None:
        ax.plot(
            [place[plan.n_workers]],
            [plan.actual_s / scale],
            linestyle="none",
            marker="D",
            markersize=7,
            color=_GREEN,
            label=f"real: {format_time(plan.actual_s)}",
            zorder=4,
        )
    every = -(-len(counts) // _MAX_LABELS)
    ax.set_xticks(range(0, len(counts), every), ["serial" if n == 0 else f"{n:,}" for n in counts[::every]])
    ax.set_xlim(-0.5, max(len(counts) - 0.5, 0.5))
    ax.set_xlabel("workers")
    ax.set_ylabel(f"time to the last result ({unit})")
    _set_title(ax, plan, plan.reason)
    _tidy(ax, "y")
    shown = [seconds for seconds in known if seconds > 0]
    if not shown:
        ax.set_yticks([])
        _write_across(ax, "nothing was predicted yet")
        return figure
    if max(shown) > _MAX_LINEAR * min(shown):
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        ax.set_ylim(0, max(shown) / scale * 1.1)
    ax.legend(frameon=False)
    return figure


def draw_timeline(plan: Plan, ax: Axes | None = None) -> Figure:
    """Draw when each worker, and the caller, ran items: a row for each, a bar for each chunk.

    Parameters
    ----------
    plan
        What to draw, such as `AmorsizeExecutor.last_plan` after its map has ended.
    ax
        Where to draw; None makes a figure as high as the rows need.

    Returns
    -------
    matplotlib.figure.Figure
        The figure drawn in.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    # A plan of a map that has not ended has none.
    timeline: Sequence[Span] = plan.timeline
    rows = sorted({span.worker for span in timeline})
    figure, ax = _figure_and_axes(ax, height_inch=min(1.4 + 0.36 * max(len(rows), 1), 12.0))
    end_s = max([plan.actual_s or 0.0, *(span.stop_s for span in timeline)])
    scale, unit = _unit_for(end_s)
    edge = {"edgecolor": "white", "linewidth": 0.6} if len(timeline) <= _MAX_EDGES else {"linewidth": 0.0}
    for row, worker in enumerate(rows):
        spans = sorted((span for span in timeline if span.worker == worker), key=lambda span: span.start_s)
        shades = (_ORANGE, _LIGHT_ORANGE) if worker == 0 else (_BLUE, _LIGHT_BLUE)
        ax.broken_barh(
            [(span.start_s / scale, (span.stop_s - span.start_s) / scale) for span in spans],
            (row - 0.38, 0.76),
            facecolors=[shades[i % 2] for i in range(len(spans))],  # so that neighbours can be told apart
            **edge,
        )
    n_items = sum(span.n_items for span in timeline)
    facts = (
        f"{n_items:,} item{'' if n_items == 1 else 's'} in {len(timeline):,} chunk{'' if len(timeline) == 1 else 's'}"
    )
    if plan.actual_s is not None:
        facts += f", last result after {format_time(plan.actual_s)}"
        ax.axvline(plan.actual_s / scale, linestyle="--", color=_GREY)
    every = max(-(-len(rows) // _MAX_LABELS), 1)
    ax.set_yticks(range(0, len(rows), every), [_row_label(worker) for worker in rows[::every]])
    ax.set_ylim(max(len(rows), 1) - 0.5, -0.5)  # the caller on top
    ax.set_xlabel(f"time since the call of map ({unit})")
    _set_title(ax, plan, facts)
    _tidy(ax, "x")
    if end_s:
        ax.set_xlim(0, end_s / scale * 1.02)
    if not rows:
        ax.set_xticks([])
        _write_across(ax, "no chunk was recorded")
    return figure


def _figure_and_axes(ax: Axes | None, height_inch: float) -> tuple[Figure, Axes]:
    if ax is not None:
        holder: Any = ax.figure
        figure: Figure = getattr(holder, "figure", holder)  # of a subfigure, the figure
        return figure, ax
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "pictures of plans need matplotlib, which is not installed: pip install 'amorsize_executor[plot]'"
        ) from error
    figure = Figure(figsize=(7.2, height_inch), layout="constrained")
    return figure, figure.subplots()


def _unit_for(longest_s: float) -> tuple[float, str]:
    """Seconds in the unit that suits a time, and the unit's name."""
    for scale, unit in _UNITS:
        if longest_s >= scale:
            return scale, unit
    return _UNITS[-1] if longest_s > 0 else _UNITS[0]


def _choice(n_workers: int) -> str:
    return "serial" if n_workers == 0 else f"{n_workers:,} worker{'' if n_workers == 1 else 's'}"


def _row_label(worker: int) -> str:
    return "caller" if worker == 0 else f"worker {worker}"


def _set_title(ax: Axes, plan: Plan, text: str) -> None:
    """The function's name and the text below it, in lines that fit; a dollar sign begins no formula."""
    import textwrap

    lines = [*textwrap.wrap(plan.function, _TITLE_WIDTH), *textwrap.wrap(text, _TITLE_WIDTH)]
    ax.set_title("\n".join(lines).replace("$", r"\$"), loc="left", fontsize="medium")


def _tidy(ax: Axes, axis: Literal["x", "y"]) -> None:
    """Lines to read the times by, behind everything, and no frame where it says nothing."""
    ax.grid(axis=axis, alpha=0.3)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _write_across(ax: Axes, text: str) -> None:
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=_GREY)
