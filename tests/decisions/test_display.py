"""What a notebook shows of a plan."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amorsize_executor.decisions.cost_model import FunctionCost
from amorsize_executor.decisions.display import plan_html
from amorsize_executor.decisions.planner import Plan, PoolState, plan_map

POOL = PoolState(n_ready=4, max_workers=4, n_cpus=4, worker_start_s=0.1)
COST = FunctionCost(0.012, 0.004, cpu_share=1.0, carry_s=1e-6, nbytes=0.0, n_items=100)
PARALLEL = plan_map("module.f", 1234, COST, POOL, inline=True)
PLANS = {
    "parallel": PARALLEL,
    "done": PARALLEL._replace(actual_s=4.2, n_inline=1, n_chunks=64),
    "serial": plan_map("f", 1, COST, POOL, inline=True)._replace(actual_s=0.0121, n_inline=1),
    "unknown": plan_map("f", 5, None, POOL, inline=True),
    "constrained": plan_map("f", 5, None, POOL, inline=False, constraint="inline='never'"),
    "instant": PARALLEL._replace(serial_s=0.0, predicted_s=0.0, actual_s=0.0),
}


class Reader(HTMLParser):
    """Checks that elements close in the order in which they opened; collects texts and attributes."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "\n".join(self.texts)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_html_is_well_formed_and_loads_nothing(plan: Plan) -> None:
    reader = Reader(plan_html(plan))
    assert set(reader.tags) <= {"div", "b", "code", "table", "tbody", "tr", "th", "td", "svg", "text", "rect"}
    assert not {name for name, _ in reader.attributes} & {"src", "href", "onload", "class", "id"}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_no_number_stands_without_its_unit(plan: Plan) -> None:
    text = Reader(plan_html(plan)).text
    units = r" (ns|us|µs|ms|s|min|items?|workers?|chunks?|times)\b"
    assert re.findall(r"\d[\d,.]*(?:e[+-]?\d+)?", text)
    assert re.findall(rf"\d[\d,.]*(?:e[+-]?\d+)?\b(?!{units})(?![\d,.])", text) == []


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_nothing_is_drawn_in_a_colour_that_needs_a_light_or_dark_page(plan: Plan) -> None:
    html = plan_html(plan)
    assert "background" not in html
    assert {value for name, value in Reader(html).attributes if name == "fill"} <= {
        "currentColor",
        "#56b4e9",
        "#e69f00",
    }


def test_plan_says_what_and_why() -> None:
    plan = PLANS["done"]
    text = Reader(plan_html(plan)).text
    assert plan.reason in text
    for part in ("module.f", "1,234 items", "4 workers", "12 ms ± 4 ms", "1 item in the caller, 64 chunks", "4.2 s"):
        assert part in text
    assert f"{plan.serial_s / 4.2:.2f} times a serial loop" in text  # type: ignore[operator]


def test_bars_are_as_long_as_the_times() -> None:
    html = plan_html(PARALLEL._replace(serial_s=4.0, predicted_s=2.0, actual_s=1.0))
    serial, predicted, real = (float(width) for width in re.findall(r'<rect [^>]*?width="([\d.]+)"', html))
    assert serial == pytest.approx(2 * predicted)
    assert serial == pytest.approx(4 * real)


def test_plan_without_times_has_no_bars() -> None:
    assert "<svg" not in plan_html(PLANS["unknown"])
    assert "<svg" not in plan_html(PLANS["instant"])


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])), st.text(st.sampled_from("<>&'\"ab")))
def test_texts_from_outside_are_escaped(name: str, constraint: str) -> None:
    for function in (name, f"<script>{name}", f"<lambda>'\"&amp;{name}"):
        reader = Reader(plan_html(PARALLEL._replace(function=function, constraint=constraint)))
        assert "script" not in reader.tags
        assert not function or function in reader.text
