"""Pictures of plans: what they show, with which names and units."""

from __future__ import annotations

import io
import sys
from typing import Any, NamedTuple

import pytest

from amorsize_executor.decisions.cost_model import FunctionCost
from amorsize_executor.decisions.plan import Plan
from amorsize_executor.decisions.planner import PoolState, plan_map
from amorsize_executor.integrations.plots import draw_plan, draw_timeline

COST = FunctionCost(0.012, 0.004, cpu_share=1.0, carry_s=1e-6, nbytes=0.0, n_items=100)
POOL = PoolState(n_ready=0, max_workers=4, n_cpus=4, worker_start_s=0.1)
PLAN = plan_map("module.f", 500, COST, POOL, inline=True)
UNKNOWN = plan_map("f", 5, None, POOL, inline=True)


class Span(NamedTuple):
    worker: int
    start_s: float
    stop_s: float
    n_items: int


class Run:
    """A plan whose map has ended."""

    def __init__(self, plan: Plan, *timeline: Span) -> None:
        self._plan = plan
        self.timeline = timeline

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plan, name)


RUN: Any = Run(
    PLAN._replace(actual_s=1.6),
    Span(0, 0, 0.012, 1),
    Span(2, 0.1, 0.8, 250),
    Span(1, 0.1, 0.9, 200),
    Span(2, 0.8, 1.5, 49),
)


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for draw in (draw_plan, draw_timeline):
        with pytest.raises(ImportError, match=r"pip install 'amorsize_executor\[plot\]'"):
            draw(PLAN)


def axes_of(figure: Any) -> Any:
    """The axes, after everything could be rendered."""
    pytest.importorskip("matplotlib.backends.backend_agg").FigureCanvasAgg(figure).print_png(io.BytesIO())
    (ax,) = figure.axes
    return ax


@pytest.fixture(autouse=True)
def _matplotlib(request: pytest.FixtureRequest) -> None:
    if "without_matplotlib" not in request.node.name:
        pytest.importorskip("matplotlib")


# the plan


def test_plan_shows_prediction_choice_and_reality() -> None:
    plan = PLAN._replace(actual_s=2.0)
    ax = axes_of(draw_plan(plan))
    lines = {line.get_label().partition(":")[0]: line for line in ax.get_lines()}
    assert list(lines["predicted"].get_ydata()) == [seconds for _, seconds in plan.considered]
    assert list(lines["chosen"].get_ydata()) == [plan.predicted_s]
    assert list(lines["real"].get_ydata()) == [2.0]
    assert list(lines["ideal"].get_ydata()) == [6.0, 3.0, 2.0, 1.5]
    assert lines["chosen"].get_label() == f"chosen: {plan.n_workers} workers, {plan.predicted_s:.3g} s"
    assert lines["chosen"].get_xdata() == lines["real"].get_xdata() == [plan.n_workers]


def test_axes_of_plan_have_units_and_names() -> None:
    ax = axes_of(draw_plan(PLAN))
    assert [label.get_text() for label in ax.get_xticklabels()] == ["serial", "1", "2", "3", "4"]
    assert ax.get_xlabel() == "workers"
    assert ax.get_ylabel() == "time to the last result (s)"
    assert ax.get_title(loc="left") == f"module.f\n{PLAN.reason}"


@pytest.mark.parametrize(("item_s", "unit"), [(1e-8, "µs"), (1e-5, "ms"), (1.0, "s")])
def test_unit_suits_the_times(item_s: float, unit: str) -> None:
    ax = axes_of(draw_plan(plan_map("f", 500, COST._replace(mean_s=item_s, std_s=0), POOL, inline=True)))
    assert ax.get_ylabel().endswith(f"({unit})")


def test_times_far_apart_are_drawn_on_a_logarithmic_scale() -> None:
    assert axes_of(draw_plan(PLAN)).get_yscale() == "linear"
    wide = plan_map("f", 100_000, COST, POOL._replace(max_workers=256, n_cpus=256), inline=True)
    ax = axes_of(draw_plan(wide))
    assert ax.get_yscale() == "log"
    assert len(ax.get_xticklabels()) <= 24


def test_serial_plan_marks_serial() -> None:
    serial = plan_map("f", 5, COST._replace(mean_s=1e-4), POOL, inline=True)
    assert serial.is_serial
    (chosen,) = [line for line in axes_of(draw_plan(serial)).get_lines() if line.get_label().startswith("chosen")]
    assert chosen.get_label() == "chosen: serial, 500 us"
    assert chosen.get_xdata() == [0]


@pytest.mark.parametrize("plan", [UNKNOWN, UNKNOWN._replace(actual_s=0.2), PLAN._replace(serial_s=0.0, actual_s=0.0)])
def test_plan_of_which_little_is_known_is_drawn(plan: Plan) -> None:
    axes_of(draw_plan(plan))


def test_plan_about_which_nothing_is_known_says_so() -> None:
    assert [text.get_text() for text in axes_of(draw_plan(UNKNOWN)).texts] == ["nothing was predicted yet"]


def test_names_are_no_formulas() -> None:
    ax = axes_of(draw_plan(PLAN._replace(function="cost_in_$\\frac$")))
    assert ax.get_title(loc="left").startswith(r"cost_in_\$\frac\$")


# the timeline


def test_timeline_has_a_row_for_each_worker_and_the_caller_on_top() -> None:
    ax = axes_of(draw_timeline(RUN))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["caller", "worker 1", "worker 2"]
    low, high = ax.get_ylim()
    assert low > high
    assert ax.get_xlabel() == "time since the call of map (s)"
    assert ax.get_title(loc="left") == "module.f\n500 items in 4 chunks, last result after 1.6 s"


def test_timeline_has_a_bar_for_each_chunk() -> None:
    ax = axes_of(draw_timeline(RUN))
    bars = [[path.get_extents() for path in row.get_paths()] for row in ax.collections]
    assert [[(round(bar.x0, 3), round(bar.x1, 3)) for bar in row] for row in bars] == [
        [(0, 0.012)],
        [(0.1, 0.9)],
        [(0.1, 0.8), (0.8, 1.5)],
    ]
    first, second = ax.collections[2].get_facecolors()
    assert list(first) != list(second)


def test_short_timeline_is_in_milliseconds() -> None:
    short: Any = Run(PLAN._replace(actual_s=None), Span(1, 0.001, 0.003, 5))
    ax = axes_of(draw_timeline(short))
    assert ax.get_xlabel().endswith("(ms)")
    ((path,),) = [row.get_paths() for row in ax.collections]
    assert path.get_extents().x1 == pytest.approx(3)


def test_timeline_of_many_workers_is_drawn() -> None:
    many: Any = Run(PLAN, *(Span(w, i * 0.1, i * 0.1 + 0.1, 3) for w in range(1, 201) for i in range(10)))
    figure = draw_timeline(many)
    assert len(axes_of(figure).get_yticklabels()) <= 24
    assert figure.get_figheight() <= 12


def test_timeline_without_chunks_says_so() -> None:
    for empty in (Run(UNKNOWN), PLAN):
        ax = axes_of(draw_timeline(empty))  # type: ignore[arg-type]
        assert [text.get_text() for text in ax.texts] == ["no chunk was recorded"]


# where it is drawn


@pytest.mark.parametrize("draw", [draw_plan, draw_timeline])
def test_picture_goes_into_axes_of_the_caller(draw: Any) -> None:
    figure_module = pytest.importorskip("matplotlib.figure")
    figure = figure_module.Figure()
    left, right = figure.subplots(1, 2)
    assert draw(RUN, ax=left) is figure
    assert left.get_title(loc="left")
    assert not right.get_title(loc="left")
    assert draw(RUN, right) is figure


def test_figure_of_its_own_needs_no_pyplot_and_no_closing() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before = pyplot.get_fignums()
    draw_plan(PLAN)
    draw_timeline(RUN)
    assert pyplot.get_fignums() == before


def test_picture_goes_into_a_subfigure() -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    left, _ = figure.subfigures(1, 2)
    assert draw_plan(PLAN, ax=left.subplots()) is figure
