"""The site builds without a warning, and every page is in it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / ".ci" / "mkdocs.yml"
MISSING = [name for name in ("mkdocs", "material", "mkdocstrings") if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"the docs extra is not installed: {', '.join(MISSING)}"),
    pytest.mark.skipif(not CONFIG.exists(), reason="no checkout"),
]


def test_the_site_builds_without_a_warning_and_has_every_page(tmp_path: Path) -> None:
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(CONFIG), "-d", str(site)],
        capture_output=True,
        text=True,
        timeout=55,
    )
    assert done.returncode == 0, done.stderr
    pages = [path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")]
    examples = [Path("examples", path.stem) for path in (ROOT / "examples").glob("*.py")]
    for page in [*pages, *examples, Path("changelog")]:
        place = site / (page.parent if page.name == "index" else page)
        assert (place / "index.html").is_file(), page
    reference = (site / "reference" / "executor" / "index.html").read_text("utf-8")
    assert "Upper bound on worker processes" in reference
