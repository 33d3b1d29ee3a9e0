"""Features of images from a pretrained network, as for a search by similarity.

EfficientNet-Lite0 turns each JPEG file into 1,280 numbers. A worker loads the network when it gets its first image and
keeps it for all others. The images are cut from the photographs that scikit-learn and scikit-image bring along.
"""

import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import skimage.data
import torch
from _compare import compare
from _models import image_model
from PIL import Image
from sklearn.datasets import load_sample_images

from amorsize_executor import AmorsizeExecutor

N_IMAGES = 160
SIZE = 224  # pixels on each side, as the network expects


def make_images(folder: Path, n_images: int = N_IMAGES) -> list[Path]:
    """Write JPEG files into a folder: random cuts from photographs."""
    photographs = [
        *load_sample_images().images,
        skimage.data.astronaut(),
        skimage.data.chelsea(),
        skimage.data.coffee(),
    ]
    rng = np.random.default_rng(0)
    paths = []
    for number in range(n_images):
        photograph = photographs[number % len(photographs)]
        top, left = (rng.integers(0, length - SIZE) for length in photograph.shape[:2])
        path = folder / f"{number:04}.jpg"
        Image.fromarray(photograph[top : top + SIZE, left : left + SIZE]).save(path, quality=90)
        paths.append(path)
    return paths


def pixels_of(path: Path) -> np.ndarray:
    """Decode an image; its pixels from about -1 to 1."""
    with Image.open(path) as image:
        return (np.asarray(image.convert("RGB"), dtype=np.float32) - 127) / 128


def features_of(pixels: np.ndarray) -> np.ndarray:
    """What the network sees in an image: 1,280 numbers."""
    model = image_model()
    with torch.inference_mode():
        return model.extract_features(torch.from_numpy(pixels).permute(2, 0, 1)[None]).mean((2, 3))[0].numpy()


def features(path: Path) -> np.ndarray:
    """The same, from the file on."""
    return features_of(pixels_of(path))


def serial(paths: list[Path]) -> list[np.ndarray]:
    return [features(path) for path in paths]


def standard_pool(paths: list[Path]) -> list[np.ndarray]:
    with ProcessPoolExecutor() as pool:
        return list(pool.map(features, paths, chunksize=4))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, AmorsizeExecutor() as ex:
        paths = make_images(Path(folder))
        print(f"{len(paths)} images of {SIZE} x {SIZE} pixels", flush=True)
        compare(
            {
                "serial loop": lambda: serial(paths),
                "ProcessPoolExecutor": lambda: standard_pool(paths),
                "AmorsizeExecutor": lambda: list(ex.map(features, paths)),
                "... warm": lambda: list(ex.map(features, paths)),
            },
            same=np.allclose,
        )
        print(ex.last_plan)


if __name__ == "__main__":
    main()
