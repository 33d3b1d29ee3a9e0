"""A function that is too fast for processes: the right number of workers is none, and the plan says so.

Cleaning a word takes less than a microsecond, and sending it to a worker and back takes more. The standard pool sends
each item by itself unless told otherwise, and becomes slower than a loop by orders of magnitude.
"""

from concurrent.futures import ProcessPoolExecutor
from pydoc_data.topics import topics

from _compare import compare

from amorsize_executor import AmorsizeExecutor


def clean(word: str) -> str:
    return word.strip(".,:;()`*'\"").lower()


def standard_pool(words: list[str]) -> list[str]:
    with ProcessPoolExecutor() as pool:
        return list(pool.map(clean, words))


def main() -> None:
    words = " ".join(topics.values()).split()[:20_000]
    print(f"{len(words)} words of Python's manual", flush=True)
    with AmorsizeExecutor() as ex:
        compare(
            {
                "serial loop": lambda: [clean(word) for word in words],
                "ProcessPoolExecutor": lambda: standard_pool(words),
                "AmorsizeExecutor": lambda: list(ex.map(clean, words)),
            }
        )
        print(ex.last_plan)


if __name__ == "__main__":
    main()
