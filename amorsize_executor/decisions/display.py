"""A plan as HTML, for notebooks: figures with their units, and bars that compare a serial loop, prediction and reality.

A pure function of the plan. Colours come from the page (``currentColor``) or are legible on light and on dark ground,
nothing is loaded from elsewhere, and every text that came from outside is escaped.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from .planner import format_time

if TYPE_CHECKING:
    from .planner import Plan

#: Blue and orange of a palette that colour-blind people tell apart (Okabe and Ito 2008), and the page's own colour.
_COLOURS = {"serial loop": "currentColor", "predicted": "#56b4e9", "real": "#e69f00"}
#: In pixels: of the picture, of the labels to the left, of the times to the right, of a row, and of a bar.
_WIDTH, _LABELS, _TIMES, _ROW, _BAR = 440, 84, 84, 20, 12


def plan_html(plan: Plan) -> str:
    """A plan as a fragment of HTML.

    Parameters
    ----------
    plan
        The plan; `actual_s` and the estimates may be None.

    Returns
    -------
    str
        A ``div`` that works in light and in dark pages.
    """
    items = f"{plan.n_items:,} item{_s(plan.n_items)}"
    caption = f"<b>Plan for <code>{escape(plan.function)}</code></b> over {items}"
    rows = "".join(
        f'<tr><th scope="row" style="text-align:left;font-weight:normal;opacity:.7;padding:1px 12px 1px 0">'
        f'{escape(name)}</th><td style="text-align:left;padding:1px 0">{escape(text)}</td></tr>'
        for name, text in _figures(plan)
    )
    return (
        f'<div style="font-size:13px;line-height:1.4;max-width:{_WIDTH}px"><div>{caption}</div>'
        f'<div style="margin:2px 0 4px">{escape(plan.reason)}</div>'
        f'<table style="border-collapse:collapse;font-size:inherit;margin:0"><tbody>{rows}</tbody></table>'
        f"{_bars(plan)}</div>"
    )


def _s(n: int) -> str:
    return "" if n == 1 else "s"


def _figures(plan: Plan) -> list[tuple[str, str]]:
    figures = []
    if plan.is_serial:
        figures.append(("choice", "serial, in the caller"))
    else:
        workers = f"{plan.n_workers:,} worker{_s(plan.n_workers)}"
        figures.append(("choice", f"{workers}, first chunk of {plan.chunksize:,} item{_s(plan.chunksize)}"))
    if plan.item_s is not None:
        spread = f" ± {format_time(plan.item_std_s)} (standard deviation)" if plan.item_std_s else ""
        figures.append(("one item", format_time(plan.item_s) + spread))
    if plan.actual_s is not None:
        inline = f"{plan.n_inline:,} item{_s(plan.n_inline)} in the caller"
        figures.append(("ran", f"{inline}, {plan.n_chunks:,} chunk{_s(plan.n_chunks)} in workers"))
        if plan.serial_s and plan.actual_s:
            figures.append(("speed-up", f"{plan.serial_s / plan.actual_s:.2f} times a serial loop"))
    elif plan.estimated_speedup is not None:
        figures.append(("speed-up", f"{plan.estimated_speedup:.2f} times a serial loop (predicted)"))
    return figures


def _bars(plan: Plan) -> str:
    """Bars from a common zero, as SVG; empty when no time is known."""
    named = (("serial loop", plan.serial_s), ("predicted", plan.predicted_s), ("real", plan.actual_s))
    times = [(name, seconds) for name, seconds in named if seconds is not None]
    longest = max((seconds for _, seconds in times), default=0.0)
    if longest <= 0:
        return ""
    height = _ROW * len(times)
    drawn = []
    for row, (name, seconds) in enumerate(times):
        width = max(seconds / longest * (_WIDTH - _LABELS - _TIMES), 1.0)
        top = row * _ROW + (_ROW - _BAR) / 2
        base = row * _ROW + _ROW / 2 + 4
        opacity = ".35" if _COLOURS[name] == "currentColor" else "1"
        drawn.append(
            f'<text x="0" y="{base:g}" fill="currentColor">{name}</text>'
            f'<rect x="{_LABELS}" y="{top:g}" width="{width:.1f}" height="{_BAR}" rx="2" '
            f'fill="{_COLOURS[name]}" fill-opacity="{opacity}"></rect>'
            f'<text x="{_LABELS + width + 6:.1f}" y="{base:g}" fill="currentColor">{format_time(seconds)}</text>'
        )
    told = escape(", ".join(f"{name} {format_time(seconds)}" for name, seconds in times), quote=True)
    return (
        f'<svg role="img" aria-label="{told}" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'style="max-width:100%;font-size:12px;margin-top:6px">{"".join(drawn)}</svg>'
    )
