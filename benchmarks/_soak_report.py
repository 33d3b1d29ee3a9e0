"""What the parts of the soak found, added up over several calls."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

#: Problems of a part that are kept and shown.
MOST_PROBLEMS = 20


@dataclass
class Part:
    """Counts by name, and what went wrong. A count that begins with "longest" is a maximum, others are sums."""

    counts: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, other: Part) -> None:
        for name, value in other.counts.items():
            old = self.counts.get(name, 0)
            self.counts[name] = round(max(old, value) if name.startswith("longest") else old + value, 2)
        self.problems = [*self.problems, *other.problems][:MOST_PROBLEMS]

    def text(self) -> str:
        lines = [f"{name}: {value:,}" for name, value in self.counts.items()]
        return "\n".join([*lines, *(f"PROBLEM: {problem}" for problem in self.problems)])


def load(path: Path) -> dict[str, Part]:
    """What earlier calls have found."""
    if not path.exists():
        return {}
    return {name: Part(**found) for name, found in json.loads(path.read_text()).items()}


def save(path: Path, parts: Mapping[str, Part]) -> None:
    path.write_text(json.dumps({name: vars(part) for name, part in parts.items()}, indent=1))
