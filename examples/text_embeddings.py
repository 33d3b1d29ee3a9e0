"""Sentence embeddings with a transformer model, as for semantic search.

all-MiniLM-L6-v2 turns each sentence into 384 numbers. Its items are batches, since the model is several times faster on
16 sentences at once than on one. A worker loads the model with its first batch, which takes seconds; so a program that
embeds again and again keeps its executor, and what counts is the time with warm workers. The sentences are from
Python's own manual.
"""

import re
from concurrent.futures import ProcessPoolExecutor
from pydoc_data.topics import topics

import numpy as np
from _compare import compare
from _models import text_model

from amorsize_executor import AmorsizeExecutor

N_SENTENCES = 800
BATCH = 16


def make_batches(n_sentences: int = N_SENTENCES) -> list[list[str]]:
    """Sentences of the manual, in batches of similar length: short ones are not padded to the longest."""
    text = re.sub(r"\s+", " ", " ".join(topics.values()))
    sentences = [sentence for sentence in re.split(r"(?<=[.!?]) ", text) if 30 < len(sentence) < 120]
    chosen = sorted(sentences[:n_sentences], key=len)
    return [chosen[start : start + BATCH] for start in range(0, len(chosen), BATCH)]


def embed(sentences: list[str]) -> np.ndarray:
    """One row of 384 numbers for each sentence."""
    return text_model().encode(sentences, show_progress_bar=False)


def serial(batches: list[list[str]]) -> list[np.ndarray]:
    return [embed(batch) for batch in batches]


def standard_pool(batches: list[list[str]]) -> list[np.ndarray]:
    with ProcessPoolExecutor() as pool:
        return list(pool.map(embed, batches))


def main() -> None:
    batches = make_batches()
    print(f"{sum(map(len, batches))} sentences in {len(batches)} batches", flush=True)
    text_model()  # the loop should not be charged for loading it
    with AmorsizeExecutor() as ex:
        compare(
            {
                "serial loop": lambda: serial(batches),
                "ProcessPoolExecutor": lambda: standard_pool(batches),
                "AmorsizeExecutor": lambda: list(ex.map(embed, batches)),
                "... warm": lambda: list(ex.map(embed, batches)),
            },
            same=lambda ours, theirs: np.allclose(np.concatenate(ours), np.concatenate(theirs), atol=1e-5),
        )
        print(ex.last_plan)


if __name__ == "__main__":
    main()
