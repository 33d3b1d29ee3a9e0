"""What the site has beyond docs/: the changelog, a page for each example, and the links to them.

The pages in docs/ are written to be read where they lie, too. So they link to files outside of that folder by relative
paths; here those files become pages, and the links are turned to them.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
#: Folders of the navigation that have a page to begin with.
_FIRST = "index.md"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages, and put all pages of a folder into the navigation where it names the folder."""
    for path, text in {"changelog.md": (ROOT / "CHANGELOG.md").read_text("utf-8"), **_example_pages()}.items():
        files.append(File.generated(config, path, content=text))
    known = sorted(file.src_uri for file in files.documentation_pages())
    config.nav = _filled(config.nav, known)
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Turn links that leave docs/ to the pages that were made of what they lead to."""
    markdown = re.sub(r"\]\(((?:\.\./)*)\.\./CHANGELOG\.md", r"](\1changelog.md", markdown)
    markdown = re.sub(r"\]\(((?:\.\./)*)\.\./examples/(\w+)\.py\)", r"](\1examples/\2.md)", markdown)
    return re.sub(r"\]\(((?:\.\./)*)\.\./examples/?\)", r"](\1examples/index.md)", markdown)


def _filled(nav: Any, known: list[str]) -> Any:
    if isinstance(nav, list):
        return [_filled(entry, known) for entry in nav]
    if isinstance(nav, dict):
        return {title: _filled(entry, known) for title, entry in nav.items()}
    if not nav.endswith("/"):
        return nav
    inside = [uri for uri in known if uri.startswith(nav)]
    return sorted(inside, key=lambda uri: (uri != nav + _FIRST, uri))


def _example_pages() -> dict[str, str]:
    """Each script as a page: its docstring, then its code."""
    pages = {}
    lines = []
    for path in sorted((ROOT / "examples").glob("*.py")):
        source = path.read_text("utf-8")
        told = (ast.get_docstring(ast.parse(source)) or path.stem).replace("[", r"\[")  # no links
        first, _, rest = told.partition("\n")
        code = source.split('"""', 2)[-1].strip() if source.startswith('"""') else source.strip()
        pages[f"examples/{path.stem}.md"] = f"# {path.name}\n\n{first}\n\n{rest.strip()}\n\n```python\n{code}\n```\n"
        if not path.stem.startswith("_"):
            lines.append(f"- [{path.name}]({path.stem}.md): {first}")
    pages["examples/index.md"] = (
        "# Examples\n\nEach runs as it stands, on real data, without a network. What one would write without the "
        "library stands beside it, and both are timed. [Pipelines](../pipelines.md) explains them.\n\n"
        + "\n".join(lines)
        + "\n"
    )
    return pages
