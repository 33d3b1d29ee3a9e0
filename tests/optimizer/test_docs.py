"""The guide's snippets work as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ..executor.tools import run_script

GUIDE = Path(__file__).parents[2] / "docs" / "optimizer.md"


@pytest.mark.skipif(not GUIDE.exists(), reason="the guide is not installed")
def test_the_snippets_run(tmp_path: Path) -> None:
    snippets = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(snippets) > 5
    expected = "\n\nassert results == [evaluate(x) for x in range(len(results))], len(results)\n"
    out = run_script(tmp_path, "\n\n".join(snippets) + expected)
    assert out.startswith("evaluate over 2,000 items\n")
    assert (tmp_path / "nightly.json").exists()
