"""A stream that is larger than the memory one wants to spend on it.

A generator yields photographs, 1.2 GB in all. With `buffersize` the executor reads only a few ahead of the results that
were taken; the standard pool reads everything first, since it has such a parameter only from Python 3.14 on. The peak
of the memory that is used beyond the start is printed beside the times.
"""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from _compare import compare
from _memory import PeakMemory
from skimage import data, filters

from amorsize_executor import AmorsizeExecutor

N_FRAMES = 400
SIDE = 512  # pixels, of three bytes in 32-bit floats


def frames() -> Iterator[np.ndarray]:
    """Photographs as a camera would deliver them: each another one, of 3 MB."""
    photograph = data.astronaut().astype(np.float32) / 255
    for number in range(N_FRAMES):
        yield np.roll(photograph, number, axis=1)


def sharpness(frame: np.ndarray) -> float:
    """How much of an edge there is, on average."""
    return round(float(filters.sobel(frame.mean(axis=2)).mean()), 6)


def main() -> None:
    size_mb = N_FRAMES * SIDE * SIDE * 3 * 4 / 1e6
    print(f"{N_FRAMES} frames, {size_mb:.0f} MB in all", flush=True)
    watched: dict[str, PeakMemory] = {}

    def serial() -> list[float]:
        with PeakMemory() as watched["serial loop"]:
            return [sharpness(frame) for frame in frames()]

    def standard_pool() -> list[float]:
        with PeakMemory() as watched["ProcessPoolExecutor"], ProcessPoolExecutor() as pool:
            return list(pool.map(sharpness, frames(), chunksize=8))

    def amorsize() -> list[float]:
        with PeakMemory() as watched["AmorsizeExecutor"], AmorsizeExecutor() as ex:
            found = list(ex.map(sharpness, frames(), buffersize=16))
            print(f"\n{ex.last_plan}")
        return found

    compare({"serial loop": serial, "ProcessPoolExecutor": standard_pool, "AmorsizeExecutor": amorsize})
    grown_mb = {name: (memory.peak - memory.start) / 1e6 for name, memory in watched.items()}
    for name, mb in grown_mb.items():
        print(f"{name:22} {mb:6.0f} MB more than at the start, at the peak")
    assert grown_mb["AmorsizeExecutor"] < size_mb / 4


if __name__ == "__main__":
    main()
