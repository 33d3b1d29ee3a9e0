"""A compiled function that releases the interpreter lock: threads and processes beside each other.

The function counts the steps that it takes for a grid of points to leave the Mandelbrot set. Compiled with
`nogil=True` it could run in threads, which share their memory and need not start. Processes earn nothing more here, but
they do not lose either, and they also help where parts of a task are plain Python.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from _compare import compare
from numba import njit

from amorsize_executor import AmorsizeExecutor

ROWS = np.linspace(-1.2, 1.2, 400)
COLUMNS = np.linspace(-2.0, 0.6, 800)


@njit(nogil=True, cache=True)
def escape_steps(row: float, columns: np.ndarray) -> np.ndarray:
    """Steps until each point of a row leaves the set, at most 3,000."""
    steps = np.zeros(len(columns), np.int32)
    for index in range(len(columns)):
        c, z = complex(columns[index], row), 0j
        while steps[index] < 3_000 and z.real * z.real + z.imag * z.imag < 4:
            z = z * z + c
            steps[index] += 1
    return steps


def steps_of_row(row: float) -> np.ndarray:
    return escape_steps(row, COLUMNS)


def with_threads() -> list[np.ndarray]:
    with ThreadPoolExecutor() as pool:
        return list(pool.map(steps_of_row, ROWS))


def main() -> None:
    print(f"{len(ROWS)} rows of {len(COLUMNS)} points", flush=True)
    steps_of_row(0.0)  # compile
    with AmorsizeExecutor() as ex:
        compare(
            {
                "serial loop": lambda: [steps_of_row(row) for row in ROWS],
                "ThreadPoolExecutor": with_threads,
                "AmorsizeExecutor": lambda: list(ex.map(steps_of_row, ROWS)),
                "... warm": lambda: list(ex.map(steps_of_row, ROWS)),
            },
            same=np.array_equal,
        )
        print(ex.last_plan)


if __name__ == "__main__":
    main()
