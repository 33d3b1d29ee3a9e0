"""The tasks whose regret is measured, in a module that every worker imports: the standard library only.

Results are the same in every process, so that those of a contender can be compared with the loop's.
"""

from __future__ import annotations

import hashlib
import time
import zlib
from collections import Counter


def turn(loops: int) -> int:
    """Turn a loop `loops` times and add up: a second busy function, unknown to who knows `spin`."""
    total = 0
    for number in range(loops):
        total += number
    return total


def rest(duration_s: float) -> float:
    """Sleep: a task that waits for somebody else and leaves the CPU alone."""
    time.sleep(duration_s)
    return duration_s


def compress(data: bytes) -> int:
    """Return the compressed length; the time is in proportion to the length."""
    return len(zlib.compress(data))


def count_words(text: str) -> int:
    """Return how many different words there are; the time is in proportion to the length."""
    return len(Counter(text.split()))


def digest(data: bytes) -> str:
    """Hash: little work for so many bytes, so that carrying them is a good part of the cost."""
    return hashlib.sha256(data).hexdigest()


def produce(nbytes: int) -> bytes:
    """Return a large result after some work on a small part of it."""
    block = b"".join(number.to_bytes(2, "little") for number in range(4_096))
    return (block * (nbytes // len(block) + 1))[:nbytes]
