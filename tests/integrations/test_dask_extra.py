"""Without Dask: nothing but the engine is missing, and that says what would help."""

from __future__ import annotations

import sys

import pytest

from amorsize_executor import AmorsizeExecutor


def test_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r"pip install 'amorsize_executor\[dask\]'"):
        AmorsizeExecutor(engine=object())  # type: ignore[arg-type]
