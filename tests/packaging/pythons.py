"""The interpreters of this machine on which the package should work. As a program: prints their paths, one a line."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

#: What the package supports. Of each version, the first interpreter that is found counts.
VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
_TELL = "import sys; print(sys.implementation.name, '%d.%d' % sys.version_info[:2], sys.abiflags, sep=':')"


@functools.cache
def pythons() -> dict[str, str]:
    """Paths by version: of those on PATH, then of pyenv's."""
    found: dict[str, str] = {}
    for path in _candidates():
        try:
            told = subprocess.run([path, "-c", _TELL], capture_output=True, text=True, timeout=30)
        except OSError:
            continue
        name, _, rest = told.stdout.strip().partition(":")  # nothing, if pyenv has a command of that name turned off
        version, _, flags = rest.partition(":")
        if name == "cpython" and "t" not in flags and version in VERSIONS:
            found.setdefault(version, path)
    return dict(sorted(found.items(), key=lambda item: VERSIONS.index(item[0])))


def _candidates() -> Iterator[str]:
    for name in ("python3", *(f"python{version}" for version in VERSIONS)):
        path = shutil.which(name)
        if path is not None:
            yield path
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from map(str, sorted(root.glob("versions/3.1*/bin/python3"), reverse=True))


if __name__ == "__main__":
    print(*pythons().values(), sep="\n")
