"""The server that `benchmarks.serving` loads: one small ASGI application, its model run by one of several pools.

``python -m benchmarks._serving_server POOL MODEL.pickle [--workers N] [--retries N] [--preload]``

Prints its port when its workers have the model. Everything but `POOLS` is the same for all.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from benchmarks._serving_model import load, load_global, predict_all, predict_global, predict_one, rest

Predict = Callable[[list[float]], Awaitable[int]]
Close = Callable[[], None]


def amorsize(args: argparse.Namespace, *, batches: bool) -> tuple[Predict, Close, Any]:
    from amorsize_executor import AmorsizeExecutor

    context = None
    if args.preload:  # a worker that replaces another one has its libraries already
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["sklearn.ensemble", "benchmarks._serving_model"])
    executor = AmorsizeExecutor(args.workers, context, min_workers=args.workers, threads_per_worker=1)
    model = executor.resource(load, args.model)
    executor.warm_up()
    view = executor.options(retries=args.retries)
    if batches:
        return view.batch(partial(predict_all, model)).asubmit, executor.shutdown, executor
    return partial(view.asubmit, predict_one, model), executor.shutdown, executor


def standard(args: argparse.Namespace) -> tuple[Predict, Close, Any]:
    from concurrent.futures import ProcessPoolExecutor

    return _plain(ProcessPoolExecutor(args.workers, initializer=load_global, initargs=(args.model,)), args)


def loky(args: argparse.Namespace) -> tuple[Predict, Close, Any]:
    from loky import ProcessPoolExecutor

    return _plain(ProcessPoolExecutor(args.workers, initializer=load_global, initargs=(args.model,)), args)


def _plain(executor: Any, args: argparse.Namespace) -> tuple[Predict, Close, Any]:
    list(executor.map(rest, range(4 * args.workers)))

    async def predict(row: list[float]) -> int:
        digit: int = await asyncio.get_running_loop().run_in_executor(executor, predict_global, row)
        return digit

    return predict, executor.shutdown, None


POOLS: dict[str, Callable[[argparse.Namespace], tuple[Predict, Close, Any]]] = {
    "batches": partial(amorsize, batches=True),
    "one by one": partial(amorsize, batches=False),
    "standard": standard,
    "loky": loky,
}


def make_app(predict: Predict, executor: Any) -> Any:
    """An ASGI application: a digit for 64 pixels, and what the executor looks like."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        status = 200
        if scope["path"] == "/workers":
            workers = executor.stats().workers if executor is not None else ()
            answer: dict[str, Any] = {"workers": [[w.pid, w.state] for w in workers]}
        else:
            body, is_more = b"", True
            while is_more:
                message = await receive()
                body, is_more = body + message.get("body", b""), message.get("more_body", False)
            try:
                answer = {"digit": await predict(json.loads(body)["pixels"])}
            except Exception as error:
                status, answer = 500, {"error": type(error).__name__, "pid": getattr(error, "pid", None)}
        encoded = json.dumps(answer).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(encoded)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": encoded})

    return app


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", choices=POOLS)
    parser.add_argument("model")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--retries", type=int, default=0)
    parser.add_argument("--preload", action="store_true")
    args = parser.parse_args()
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"  # of all workers, whatever starts them
    import uvicorn

    predict, close, executor = POOLS[args.pool](args)
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        config = uvicorn.Config(make_app(predict, executor), log_level="warning", access_log=False, lifespan="off")
        server = uvicorn.Server(config)
        print(listening.getsockname()[1], flush=True)
        try:
            server.run([listening])
        except KeyboardInterrupt:  # how it is told to end
            pass
        finally:
            close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
