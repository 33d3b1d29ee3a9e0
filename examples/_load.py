"""A closed loop of clients for an HTTP server: each sends its next request when it has the answer to the last.

    python examples/_load.py URL REQUESTS.json [--clients 32] [--seconds 10] [--rate R]

The file has a list of {"body": ..., "answer": ...}, both JSON. An answer counts only with status 200 and the very body
that was expected: a dead server answers nothing at a splendid rate. Prints one line of JSON: what was counted, and the
latencies of right answers in milliseconds.

With a rate, the clients together send so many requests a second, if answers come fast enough for that; then a latency
counts from when the request was due, so that a stall is not told of by one request alone.

One process, one thread and a socket for each client; on a small machine it should not take the CPUs from the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

#: A request that is not answered for so long, in seconds, counts as failed.
PATIENCE_S = 30.0
#: After a refused connection a client waits, in seconds.
PAUSE_S = 0.05


class Tally:
    """What all clients have seen."""

    def __init__(self) -> None:
        self.latencies_s: list[float] = []
        self.problems: Counter[str] = Counter()

    def summary(self, elapsed_s: float) -> dict[str, Any]:
        times = sorted(self.latencies_s)
        return {
            "seconds": round(elapsed_s, 3),
            "right": len(times),
            "problems": dict(self.problems),
            "per_second": round(len(times) / elapsed_s, 1),
            "p50_ms": milliseconds(times, 0.5),
            "p99_ms": milliseconds(times, 0.99),
            "max_ms": milliseconds(times, 1.0),
        }


def milliseconds(ordered_s: Sequence[float], q: float) -> float | None:
    """A quantile of ascending times."""
    return round(1e3 * ordered_s[min(int(q * len(ordered_s)), len(ordered_s) - 1)], 3) if ordered_s else None


async def client(
    host: str, port: int, requests: list[tuple[bytes, Any]], number: int, until: float, period_s: float, tally: Tally
) -> None:
    """Send requests until a time, one every `period_s` if that is not 0."""
    writer: asyncio.StreamWriter | None = None
    n = number * 7
    due = time.perf_counter() + period_s * random.Random(number).random()
    while time.perf_counter() < until:
        request, answer = requests[n % len(requests)]
        n += 1
        begun = time.perf_counter()
        if period_s:
            await asyncio.sleep(max(due - begun, 0.0))
            begun, due = due, due + period_s
        try:
            if writer is None:
                reader, writer = await asyncio.open_connection(host, port)
            writer.write(request)
            status, body, is_kept = await asyncio.wait_for(read_answer(reader), PATIENCE_S)
        except (OSError, EOFError, ValueError, asyncio.TimeoutError) as error:
            tally.problems[type(error).__name__] += 1
            if writer is not None:
                writer.close()
                writer = None
            await asyncio.sleep(PAUSE_S)
            continue
        if not is_kept:
            writer.close()
            writer = None
        if status != 200:
            tally.problems[f"status {status}: {body[:100].decode(errors='replace')}"] += 1
        elif not is_right(body, answer):
            tally.problems["wrong answer"] += 1
        else:
            tally.latencies_s.append(time.perf_counter() - begun)
    if writer is not None:
        writer.close()


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
    """Status, body, and whether the connection stays."""
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head[:-4].split(b"\r\n")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    is_kept = first.startswith(b"HTTP/1.1") and fields.get(b"connection", b"").lower() != b"close"
    length = fields.get(b"content-length")
    body = await (reader.readexactly(int(length)) if length is not None else reader.read())
    return int(first.split()[1]), body, is_kept and length is not None


def is_right(body: bytes, answer: Any) -> bool:
    try:
        return close_to(json.loads(body), answer)
    except ValueError:
        return False


def close_to(found: Any, expected: Any) -> bool:
    """Equal, up to rounding in lists of numbers: those of a batch are computed in another order."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return found.keys() == expected.keys() and all(close_to(found[key], expected[key]) for key in expected)
    if isinstance(expected, list) and isinstance(found, list):
        return len(found) == len(expected) and all(map(close_to, found, expected))
    if isinstance(expected, float) and isinstance(found, (int, float)):
        return abs(found - expected) < 1e-5
    return bool(found == expected)


async def run(
    url: str, requests: list[dict[str, Any]], n_clients: int, seconds: float, rate: float = 0.0
) -> dict[str, Any]:
    """Load a server for some seconds."""
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    encoded = []
    for request in requests:
        body = json.dumps(request["body"]).encode()
        head = (
            f"POST {parts.path or '/'} HTTP/1.1\r\nHost: {host}:{port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        encoded.append((head.encode() + body, request["answer"]))
    tally = Tally()
    begun = time.perf_counter()
    period_s = n_clients / rate if rate else 0.0
    until = begun + seconds
    await asyncio.gather(*[client(host, port, encoded, i, until, period_s, tally) for i in range(n_clients)])
    return tally.summary(time.perf_counter() - begun)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("requests", type=Path)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second; 0: as fast as answers come")
    args = parser.parse_args()
    found = asyncio.run(run(args.url, json.loads(args.requests.read_text()), args.clients, args.seconds, args.rate))
    print(json.dumps(found))
    return 0 if found["right"] and not found["problems"] else 1


if __name__ == "__main__":
    sys.exit(main())
