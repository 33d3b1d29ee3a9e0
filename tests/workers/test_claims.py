from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from amorsize_executor.workers import blocks, claims


@pytest.fixture(params=["memory", "folder"])
def tickets(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[claims.ClaimFile]:
    if request.param == "folder":
        monkeypatch.setattr(claims, "_atomic_file", blocks.create_in_folder)
    made = claims.create()
    yield made
    made.close()


def test_there_are_no_tickets_before_some_are_offered(tickets: claims.ClaimFile) -> None:
    assert tickets.take(10) == 0


def test_as_many_are_taken_as_were_offered(tickets: claims.ClaimFile) -> None:
    tickets.offer(10)
    assert [tickets.take(4) for _ in range(4)] == [4, 4, 2, 0]
    tickets.offer(claims.MOST_TICKETS)
    assert tickets.take(claims.MOST_TICKETS) == claims.MOST_TICKETS


def test_either_side_sees_how_many_are_left(tickets: claims.ClaimFile) -> None:
    other = claims.ClaimFile(os.dup(tickets.fd))
    tickets.offer(10)
    other.take(3)
    assert (tickets.n_left, other.n_left, other.take(10), tickets.n_left) == (7, 7, 7, 0)
    other.close()


def test_what_one_descriptor_takes_is_gone_for_its_copies(tickets: claims.ClaimFile) -> None:
    other = claims.ClaimFile(os.dup(tickets.fd))
    tickets.offer(10)
    assert (tickets.take(3), other.take(5), tickets.take(5), other.take(1)) == (3, 5, 2, 0)
    other.close()


@pytest.mark.timeout(30)
def test_no_ticket_is_given_out_twice_to_processes_that_race(tickets: claims.ClaimFile) -> None:
    for size in (1, 7, 100):
        n = min(20_000 * size, claims.MOST_TICKETS)
        tickets.offer(n)
        receive, send = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                taken = 0
                while got := tickets.take(size):
                    taken += got
                os.write(send, str(taken).encode())
            finally:
                os.kill(os.getpid(), signal.SIGKILL)  # nothing of the parent's is to be done here
        taken = 0
        while got := tickets.take(size):
            taken += got
        os.waitpid(pid, 0)
        assert taken + int(os.read(receive, 100)) == n
        os.close(receive)
        os.close(send)
