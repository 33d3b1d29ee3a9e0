"""The Python in a Markdown page as scripts that run as they stand.

All ```` ```python ```` blocks of a page make one script, in their order. Comments that no reader sees tell the rest:

``<!-- snippets: script needs torch skimage -->``
    Another script begins here; ``needs`` and modules without which it is not run may be left out.
``<!-- snippets: code`` ... ``-->``
    The lines between run, too: imports and data that would only be in the reader's way, or what a result must be.
``<!-- snippets: file models.py -->``
    The next block is a module of that name, which the script can import.
``<!-- snippets: not run -->``
    The next block is only compiled.

In a script everything that is no code is a blank line, so the lines in a traceback are those of the page.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Script:
    """Blocks of a page that run together.

    Attributes
    ----------
    name
        Of the page, and of the section where it begins if it is not the page's first.
    needs
        Modules that it imports and that need not be installed.
    lines
        Its code, at the lines of the page.
    files
        Code of modules beside it, by their names.
    """

    name: str
    needs: tuple[str, ...] = ()
    lines: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)

    @property
    def code(self) -> str:
        """What runs."""
        return "\n".join(self.lines) + "\n"

    @property
    def missing(self) -> list[str]:
        """Modules that it needs and that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


_FENCE = re.compile(r"```(\w*)")
_COMMENT = re.compile(r"<!-- snippets: (script|code|file|not run)( needs)?((?: [\w.]+)*)( -->)?$")


def scripts_of(path: Path) -> list[Script]:
    """The scripts of a page.

    Raises
    ------
    ValueError
        If a comment says something else than the module's docstring tells.
    """
    page = path.read_text("utf-8").splitlines()
    script = Script(path.stem)
    found = [script]
    heading = ""
    target = ""  # of the next block: "not run", or the name of a file
    number = 0
    while number < len(page):
        line = page[number]
        if line.startswith("<!-- snippets:"):
            comment = _COMMENT.match(line)
            if comment is None or (comment[1] == "code") == bool(comment[4]):
                raise ValueError(f"{path.name}, line {number + 1}: {line!r} is not understood")
            words = comment[3].split()
            if comment[1] == "script":
                script = Script(f"{path.stem}: {heading}", tuple(words))
                found.append(script)
            elif comment[1] == "code":
                number = _take(page, number + 1, "-->", script.lines)
            else:
                target = words[0] if words else "not run"
        elif line.startswith("#"):
            heading = line.strip("# ")
        elif fence := _FENCE.match(line):
            lines = script.lines if fence[1] == "python" and not target else []
            number = _take(page, number + 1, "```", lines)
            if fence[1] == "python" and target:
                code = "\n".join(lines)
                compile(code, f"{path.name}, line {number}", "exec")
                if target != "not run":
                    script.files[target] = code
                target = ""
        number += 1
    return [script for script in found if any(line.strip() for line in script.lines)]


def _take(page: list[str], start: int, end: str, lines: list[str]) -> int:
    """Append the lines of a block to a script, at their place; where its last line is."""
    stop = page.index(end, start)
    lines.extend([""] * (start - len(lines)))
    lines.extend(page[start:stop])
    return stop
