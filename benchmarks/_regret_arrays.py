"""Tasks that need NumPy, apart from the others: only workers that run them import it."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

COPIES = 4
PRODUCTS = 3


def copy_memory(mebibytes: int) -> int:
    """Copy an array that no cache holds, a few times: bound by the memory's bandwidth, which workers share."""
    source, target = _pair(mebibytes)
    for _ in range(COPIES):
        np.copyto(target, source)
    return int(target[-1])


@cache
def _pair(mebibytes: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    source = np.arange(mebibytes * 2**20 // 8, dtype=np.int64)
    return source, np.zeros_like(source)


def multiply(side: int) -> int:
    """Multiply square matrices, in BLAS, which may use threads of its own; whole numbers make it exact."""
    factor = _matrix(side)
    return sum(int((factor @ factor)[0, 0]) for _ in range(PRODUCTS))


@cache
def _matrix(side: int) -> npt.NDArray[np.float64]:
    return (np.arange(side * side, dtype=np.float64) % 7).reshape(side, side)
