"""Titles of workers: what they say, how often they change, and where they do not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from amorsize_executor import AmorsizeExecutor
from amorsize_executor.workers import title as module
from amorsize_executor.workers.title import Title

from ..executor.tools import LIMIT_S, run_script


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What titles were set, instead of setting them."""
    texts: list[str] = []

    def write(text: str) -> bool:
        texts.append(text)
        return text != "the last"

    monkeypatch.setattr(module, "_writer", lambda worker_id: write)
    return texts


def test_a_title_follows_what_runs(clock: Clock, shown: list[str]) -> None:
    title = Title("3")
    title.idle()
    title.show(1, "square")
    assert (title.shown, title.is_idle) == (1, False)
    title.idle()
    assert (title.shown, title.is_idle) == (None, True)
    assert shown == ["starting", "idle", "square", "idle"]


def test_changes_have_a_budget(clock: Clock, shown: list[str]) -> None:
    title = Title("3")
    for i in range(1000):
        title.show(i, str(i))
    assert shown[1:] == [*map(str, range(20)), "several functions"]
    assert title.shown is None
    clock.now_s = 0.1
    title.show(7, "square")
    title.show(8, "cube")
    assert shown[-2:] == ["square", "several functions"]
    clock.now_s = 100.0
    for i in range(1000):
        title.show(i, str(i))
    assert len(shown) <= 1 + 21 + 2 + 21


def test_a_title_that_is_not_ours_any_more_is_left_alone(clock: Clock, shown: list[str]) -> None:
    title = Title("3")
    title.show(1, "the last")
    title.show(2, "square")
    title.idle()
    assert shown == ["starting", "the last"]


def command_line(pid: int | None) -> str:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read().rstrip(b"\0 ").decode()


def own_title() -> str:
    return command_line(os.getpid())


def own_environment() -> bytes:
    with open("/proc/self/environ", "rb") as file:
        return file.read()


def set_title(text: str) -> None:
    import setproctitle

    setproctitle.setproctitle(text)


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/comm"), reason="the system has no /proc")


@needs_proc
def test_a_worker_tells_what_it_runs_and_that_it_is_idle() -> None:
    pytest.importorskip("setproctitle")
    with AmorsizeExecutor(1) as executor:
        title = executor.submit(own_title).result(LIMIT_S)
        assert title.startswith("amorsize worker ")
        assert title.endswith(": own_title")
        pid = executor.stats().workers[0].pid
        idle = title.replace("own_title", "idle")
        while command_line(pid) != idle:
            pass  # a tenth of a second
        assert executor.submit(own_title).result(LIMIT_S) == title
        assert b"PATH=" in executor.submit(own_environment).result(LIMIT_S)


@needs_proc
def test_a_task_that_sets_a_title_keeps_it() -> None:
    pytest.importorskip("setproctitle")
    with AmorsizeExecutor(1) as executor:
        executor.submit(set_title, "mine").result(LIMIT_S)
        assert executor.submit(own_title).result(LIMIT_S) == "mine"


@needs_proc
def test_without_setproctitle_the_name_of_the_process_tells(tmp_path: Path) -> None:
    source = """
        import os, sys
        sys.modules["setproctitle"] = None  # cannot be imported; nor can forks
        from amorsize_executor import AmorsizeExecutor

        def own_name():
            with open("/proc/self/comm") as file:
                return file.read().strip()

        with AmorsizeExecutor(1, "fork") as executor:
            print(executor.submit(own_name).result())
        """
    assert run_script(tmp_path, source) == "amor-1 own_name\n"
