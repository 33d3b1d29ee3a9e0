"""A FastAPI server whose models run in worker processes, in batches.

    python examples/fastapi_server.py               a load test of 32 clients, on a free port
    python examples/fastapi_server.py --serve       a server on port 8000
    uvicorn --app-dir examples fastapi_server:app   the same under uvicorn

Each worker loads the models once, before the first request is taken. Handlers are coroutines which wait for their call;
those that come while all workers are busy run together. `docs/serving.md` tells how to deploy it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator

import uvicorn
from _serving import Models, checked_pixels, checked_text, status_of, try_out
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse


def make_app() -> FastAPI:
    models: Models | None = None

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        nonlocal models
        models = app.state.models = Models()
        await asyncio.to_thread(models.warm_up)  # requests are taken when this is done
        yield
        await asyncio.to_thread(models.close)

    app = FastAPI(lifespan=lifespan)

    @app.post("/classify")
    async def classify(request: Request) -> JSONResponse:
        assert models is not None
        return JSONResponse({"digit": await models.classify.asubmit(checked_pixels(await request.json()))})

    @app.post("/embed")
    async def embed(request: Request) -> JSONResponse:
        assert models is not None
        if models.embed is None:
            return JSONResponse({"error": "no text model is installed"}, 501)
        return JSONResponse({"embedding": await models.embed.asubmit(checked_text(await request.json()))})

    @app.get("/health")
    async def health() -> JSONResponse:
        is_open = models is not None and models.executor.is_open
        return JSONResponse({"is_open": is_open}, 200 if is_open else 503)

    @app.get("/stats")
    async def stats() -> PlainTextResponse:
        assert models is not None
        return PlainTextResponse(f"{models.executor.stats(memory=True)}\n")

    @app.exception_handler(Exception)
    @app.exception_handler(ValueError)
    async def refuse(request: Request, error: Exception) -> JSONResponse:
        status = status_of(error)
        return JSONResponse({"error": str(error)}, status, {"Retry-After": "1"} if status == 503 else None)

    return app


app = make_app()


def main(seconds: float = 3.0) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.05)
            try_out(f"http://127.0.0.1:{listening.getsockname()[1]}", lambda: app.state.models, seconds)
        finally:
            server.should_exit = True
            thread.join()


if __name__ == "__main__":
    if "--serve" in sys.argv:
        uvicorn.run(app, port=8000, log_level="warning")
    else:
        main()
