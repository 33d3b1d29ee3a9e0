"""A network trains in this process while workers prepare its next batches: on a GPU where there is one.

The images are cut, turned and distorted anew for each batch, which takes longer than the step of training that uses
them. `buffersize` keeps a few batches ready and no more, so the memory stays the same however long it trains. The order
of the batches is that of a plain loop, hence so is the loss at the end.
"""

import math
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from _compare import compare
from skimage import filters, transform
from sklearn.datasets import load_digits

from amorsize_executor import AmorsizeExecutor

N_BATCHES = 60
BATCH = 32
SIDE = 28  # pixels

images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8) / 16  # pixels from 0 to 1

Batch = tuple[np.ndarray, np.ndarray]


def prepare(number: int) -> Batch:
    """A batch of digits, each enlarged, turned, sheared, blurred and with noise."""
    rng = np.random.default_rng(number)
    chosen = rng.integers(0, len(images), BATCH)
    prepared = np.empty((BATCH, 1, SIDE, SIDE), np.float32)
    for place, image in enumerate(images[chosen]):
        turned = transform.rotate(transform.resize(image, (SIDE, SIDE)), rng.uniform(-15, 15))
        sheared = transform.warp(turned, transform.AffineTransform(shear=rng.uniform(-0.2, 0.2)).inverse)
        prepared[place] = filters.gaussian(sheared, rng.uniform(0, 0.7)) + rng.normal(0, 0.05, sheared.shape)
    return prepared, labels[chosen]


def train(batches: Iterable[Batch]) -> float:
    """Train a small network on the batches as they come; return its last loss."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, stride=2),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 16, 3, stride=2),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.LazyLinear(10),
    ).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for pixels, digits in batches:
        loss = torch.nn.functional.cross_entropy(
            network(torch.from_numpy(pixels).to(device)), torch.from_numpy(digits).to(device)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return round(loss.item(), 4)


def train_with_standard_pool(numbers: Iterable[int]) -> float:
    with ProcessPoolExecutor() as pool:
        return train(pool.map(prepare, numbers))


def main() -> None:
    print(f"{N_BATCHES} batches of {BATCH} images", flush=True)
    numbers = range(N_BATCHES)
    train(map(prepare, [0]))  # the loop should not be charged for what torch does once
    # This process trains: batches are prepared in workers only.
    with AmorsizeExecutor(inline="never") as ex:
        loss = compare(
            {
                "serial loop": lambda: train(map(prepare, numbers)),
                "ProcessPoolExecutor": lambda: train_with_standard_pool(numbers),
                "AmorsizeExecutor": lambda: train(ex.map(prepare, numbers, buffersize=8)),
                "... warm": lambda: train(ex.map(prepare, numbers, buffersize=8)),
            },
            same=lambda one, other: math.isclose(one, other, rel_tol=0.05),  # a GPU adds up in another order each time
        )
        print(ex.last_plan)
    print(f"\nLoss at the end: {loss}")


if __name__ == "__main__":
    main()
