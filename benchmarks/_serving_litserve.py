"""LitServe with the same model, answers and number of workers, for `benchmarks.serving`.

``python -m benchmarks._serving_litserve MODEL.pickle PORT [--workers N]``
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import litserve

from benchmarks._serving_model import load, predict_all

#: LitServe takes both from its user: sizes up to the number of clients, and the shortest wait that fills batches.
MAX_BATCH_SIZE = 32
BATCH_TIMEOUT_S = 0.002


class Digits(litserve.LitAPI):
    def __init__(self, path: str, **how: Any) -> None:
        super().__init__(**how)
        self.path = path

    def setup(self, device: str) -> None:
        self.model = load(self.path)

    def decode_request(self, request):  # LitServe reads annotations, and not as text
        pixels: list[float] = request["pixels"]
        return pixels

    def batch(self, inputs: list[list[float]]) -> list[list[float]]:
        return inputs

    def predict(self, rows: list[list[float]]) -> list[int]:
        return predict_all(self.model, rows)

    def unbatch(self, output: list[int]) -> list[int]:
        return output

    def encode_response(self, output: int) -> dict[str, int]:
        return {"digit": output}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("port", type=int)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    api = Digits(args.model, max_batch_size=MAX_BATCH_SIZE, batch_timeout=BATCH_TIMEOUT_S, api_path="/classify")
    server = litserve.LitServer(api, accelerator="cpu", devices=1, workers_per_device=args.workers)
    server.run(host="127.0.0.1", port=args.port, generate_client_file=False, log_level="warning")
    return 0


if __name__ == "__main__":
    sys.exit(main())
