"""Every Python snippet of the documentation and of the README works as it stands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .snippets import Script, scripts_of

ROOT = Path(__file__).parents[2]
#: Its cluster would import the snippets again: `tests/integrations/test_dask.py` runs them with one of its own.
ELSEWHERE = ROOT / "docs" / "dask.md"
PAGES = [ROOT / "README.md", *sorted({*(ROOT / "docs").rglob("*.md")} - {ELSEWHERE})]
#: Libraries that take seconds to import.
HEAVY = {"torch", "librosa", "mlflow", "numba", "sentence_transformers", "efficientnet_lite_pytorch"}
LIMIT_S = 110


def _parameters() -> list[object]:
    return [
        pytest.param(script, id=script.name, marks=[pytest.mark.heavy] if HEAVY & {*script.needs} else [])
        for page in PAGES
        if page.exists()
        for script in scripts_of(page)
    ]


@pytest.mark.timeout(LIMIT_S + 10)
@pytest.mark.parametrize("script", _parameters())
def test_snippets_run(script: Script, tmp_path: Path) -> None:
    if script.missing:
        pytest.skip(f"not installed: {', '.join(script.missing)}")
    path = tmp_path / "snippets.py"
    path.write_text(script.code, "utf-8")
    for name, code in script.files.items():
        (tmp_path / name).write_text(code, "utf-8")
    done = subprocess.run(
        [sys.executable, str(path)],
        cwd=tmp_path,
        env={
            **os.environ,
            "AMORSIZE_STORE": str(tmp_path / "store.sqlite3"),
            "XDG_CONFIG_HOME": str(tmp_path / "config"),
            "MPLBACKEND": "agg",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, f"{script.name} (line numbers are those of the page):\n{done.stdout}\n{done.stderr}"


def test_lines_are_those_of_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n\n<!-- snippets: code\nx = 1\n-->\n\n```python\ny = x\n```\n\n```sh\nrm -r nothing\n```\n"
        "<!-- snippets: script needs os nothing.of_this_name -->\n```python\nz = 1\n```\n"
        "<!-- snippets: file m.py -->\n```python\na = 1\n```\n<!-- snippets: not run -->\n```python\nb = 1\n```\n"
    )
    first, second = scripts_of(page)
    assert (first.name, first.code.splitlines()) == ("page", ["", "", "", "x = 1", "", "", "", "y = x"])
    assert (second.name, second.needs, second.code.strip()) == ("page: Title", ("os", "nothing.of_this_name"), "z = 1")
    assert second.code.splitlines()[15] == "z = 1"
    assert {name: code.strip() for name, code in second.files.items()} == {"m.py": "a = 1"}


@pytest.mark.parametrize("line", ["<!-- snippets: skip -->", "<!-- snippets: code -->", "<!-- snippets: script"])
def test_a_comment_that_is_not_understood_is_refused(tmp_path: Path, line: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(line)
    with pytest.raises(ValueError, match=r"page.md, line 1: '<!-- snippets"):
        scripts_of(page)
