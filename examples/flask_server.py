"""A Flask server whose models run in worker processes, in batches.

    python examples/flask_server.py                 a load test of 32 clients, on a free port
    python examples/flask_server.py --serve         a server on port 8000, for development
    gunicorn --chdir examples --threads 32 --preload flask_server:app

Each worker loads the models once. Handlers run in threads, each of which waits for its call; those that come while all
workers are busy run together. `docs/serving.md` tells how to deploy it.
"""

from __future__ import annotations

import sys
import threading

from _serving import Models, checked_pixels, checked_text, status_of, try_out
from flask import Flask, Response, jsonify, request
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server


def make_app() -> Flask:
    app = Flask(__name__)
    # Neither a thread nor a process is started here, so a server may fork afterwards: each process has workers of its
    # own when it first uses them.
    models = app.extensions["models"] = Models()

    @app.post("/classify")
    def classify() -> Response:
        return jsonify(digit=models.classify(checked_pixels(request.get_json(silent=True))))

    @app.post("/embed")
    def embed() -> tuple[Response, int]:
        if models.embed is None:
            return jsonify(error="no text model is installed"), 501
        return jsonify(embedding=models.embed(checked_text(request.get_json(silent=True)))), 200

    @app.get("/health")
    def health() -> tuple[Response, int]:
        is_open = models.executor.is_open
        return jsonify(is_open=is_open), 200 if is_open else 503

    @app.get("/stats")
    def stats() -> Response:
        return Response(f"{models.executor.stats(memory=True)}\n", mimetype="text/plain")

    @app.errorhandler(Exception)
    def refuse(error: Exception) -> tuple[Response, int, dict[str, str]]:
        status = getattr(error, "code", None) or status_of(error)  # Flask's own have a code
        return jsonify(error=str(error)), status, {"Retry-After": "1"} if status == 503 else {}

    return app


app = make_app()


class KeepAlive(WSGIRequestHandler):
    """Keeps connections, as servers for production do."""

    protocol_version = "HTTP/1.1"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing of each request."""


def serve(port: int) -> BaseWSGIServer:
    models: Models = app.extensions["models"]
    models.warm_up()  # before requests are taken
    return make_server("127.0.0.1", port, app, threaded=True, request_handler=KeepAlive)


def main(seconds: float = 3.0) -> None:
    models: Models = app.extensions["models"]
    server = serve(0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        try_out(f"http://127.0.0.1:{server.server_port}", lambda: models, seconds)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        models.close()


if __name__ == "__main__":
    if "--serve" in sys.argv:
        serve(8000).serve_forever()
    else:
        main()
