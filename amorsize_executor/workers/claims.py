"""Who may run an item: a count of tickets that worker and parent take from the same place.

A chunk's items are claimed by its worker before they run, and the parent may take back what was not claimed, at any
moment and without asking: a worker deep in a long item could not answer. Both take tickets by reading from one file
whose offset they share (an open file description that was sent over the channel); POSIX requires that such reads are
atomic, so no ticket is given out twice. The parent sets the offset so that a new chunk's number of tickets remain.

A worker claims its items in order. So if the parent gets k tickets, they are those of the chunk's last k items.
"""

from __future__ import annotations

import os

from . import blocks

#: Tickets that a chunk has at most: the size of the file, in bytes, of which none is ever written.
MOST_TICKETS = 1 << 20


class ClaimFile:
    """Tickets for the items of one chunk at a time; either side's view of them. Owns its descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def offer(self, n_tickets: int) -> None:
        """Let so many tickets be there; the parent's, when nobody takes any."""
        os.lseek(self.fd, MOST_TICKETS - n_tickets, os.SEEK_SET)

    def take(self, most: int) -> int:
        """Take up to `most` tickets; returns how many there were."""
        return len(os.read(self.fd, most))

    @property
    def n_left(self) -> int:
        """Tickets that nobody has taken."""
        return MOST_TICKETS - os.lseek(self.fd, 0, os.SEEK_CUR)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)


def create() -> ClaimFile:
    """A new file without tickets."""
    fd = _atomic_file()
    try:
        os.ftruncate(fd, MOST_TICKETS)
    except BaseException:
        os.close(fd)
        raise
    claims = ClaimFile(fd)
    claims.offer(0)
    return claims


def _atomic_file() -> int:
    """An anonymous file whose offset is atomic: on Linux, one that was opened by a name, as `memfd_create` does not."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("amorsize_executor-claims", os.MFD_CLOEXEC)
        try:
            return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            pass  # no /proc here
        finally:
            os.close(fd)
    return blocks.create_in_folder()
