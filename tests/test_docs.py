"""The snippets of a page work as they stand, one after the other, in one program."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .executor.tools import Script

DOCS = Path(__file__).parents[1] / "docs"

pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="the documentation is not installed")


def run_snippets(page: str, folder: Path, end: str = "") -> tuple[str, str]:
    """What the Python snippets of a page print, and what they say on stderr."""
    snippets = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    assert snippets
    status, out, err = Script(folder, "\n\n".join([*snippets, end])).finish()
    assert status == 0, err
    return out, err


def test_observability(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    pytest.importorskip("opentelemetry")
    _, err = run_snippets("observability.md", tmp_path)
    assert "INFO shop.loader in AmorsizeWorker: loading orders\n" in err


def test_testing(tmp_path: Path) -> None:
    run_snippets("testing.md", tmp_path)  # but for the fixtures, which have tests of their own
