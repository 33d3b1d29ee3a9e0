"""How many workers a PyTorch `DataLoader` should have, from a measurement instead of a rule of thumb.

`optimize` times the data set's `__getitem__` on a sample and says how many processes pay, and whether any do. The same
network is then trained with none and with as many as it said; both see the same images in the same order, so their loss
is the same.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from _compare import compare
from image_features import make_images
from PIL import Image
from skimage import exposure, transform
from torch.utils.data import DataLoader, Dataset

from amorsize_executor import optimize

N_IMAGES = 240
SIDE = 96  # pixels


class Photographs(Dataset):
    """JPEG files, decoded, turned, cut and equalised; the label is which photograph they were cut from."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        rng = np.random.default_rng(index)
        with Image.open(self.paths[index]) as image:
            pixels = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
        turned = transform.rotate(pixels, rng.uniform(-20, 20), mode="reflect")
        cut = transform.resize(turned[16:-16, 16:-16], (SIDE, SIDE))
        return exposure.equalize_adapthist(cut).astype(np.float32).transpose(2, 0, 1), index % 5


def train(photographs: Photographs, num_workers: int) -> float:
    """Train a small network for one epoch; return its last loss."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 5, stride=4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(5)
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for pixels, numbers in DataLoader(photographs, batch_size=16, num_workers=num_workers):
        loss = torch.nn.functional.cross_entropy(network(pixels), numbers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return round(loss.item(), 4)


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        photographs = Photographs(make_images(Path(folder), N_IMAGES))
        chosen = optimize(photographs.__getitem__, range(len(photographs)))
        print(chosen)
        num_workers = chosen.n_jobs if chosen.n_jobs > 1 else 0
        print(f"\nnum_workers={num_workers}", flush=True)
        train(Photographs(photographs.paths[:16]), 0)  # the loop should not be charged for what torch does once
        loss = compare(
            {
                "num_workers=0": lambda: train(photographs, 0),
                f"num_workers={num_workers}": lambda: train(photographs, num_workers),
            }
        )
    print(f"Loss at the end: {loss}")


if __name__ == "__main__":
    main()
