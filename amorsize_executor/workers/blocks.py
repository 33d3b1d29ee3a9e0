"""Anonymous shared memory for what is too large for a frame.

A block is a file without a name: ``memfd_create`` where there is one, else a temporary file that is unlinked as soon as
it is open. Its descriptor travels over the channel's socket, so nothing can be left behind by any death: the kernel
frees a block when the last process that has it is gone. Memory files do not count against the size of /dev/shm, which
containers keep small; they do count against the container's memory limit.

A block grows by ``write``, never through a mapping: on a full disk or an exhausted memory limit that is an `OSError`
for one task, where a mapping would be a bus error for the process. What it has is written over through a mapping, three
times as fast.
"""

from __future__ import annotations

import mmap
import os
import sys
import weakref
from collections.abc import Sequence

#: Blocks smaller than this, in bytes, are copied: that takes less time than a mapping and its page faults.
_MAP_NBYTES = 64 << 10
#: Mappings alive at once, at most. Before Python 3.13 each keeps a descriptor, and a process often has just 1,024;
#: from then on the limit is the kernel's, 65,530 of all kinds.
_MOST_MAPPED = 16_384 if sys.version_info >= (3, 13) else 128
_mapped: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
#: Where files without a name lie in memory, without ``memfd_create``; containers often have 64 MB there ...
SHARED_MEMORY = "/dev/shm"
#: ... of which so much is left to others, in bytes.
_ROOM_LEFT_NBYTES = 8 << 20

#: Buffers start at multiples of this, in bytes: what SIMD code and NumPy like.
_ALIGNMENT = 64
#: Less than this is written over with ``write``, in bytes: a mapping has to find each page once.
_OVER_NBYTES = 256 << 10


class File:
    """A block that this process writes to, perhaps again and again.

    Attributes
    ----------
    fd
        Its descriptor; -1 when it is closed.
    nbytes
        Its size.
    """

    __slots__ = ("_view", "fd", "nbytes")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.nbytes = 0
        self._view: memoryview | None = None

    def view(self) -> memoryview:
        """All of its content, shared with everybody."""
        view = self._view
        if view is None or view.nbytes < self.nbytes:
            view = self._view = memoryview(_map_shared(self.fd, self.nbytes))
        return view

    def write(self, offset: int, buffer: memoryview) -> None:
        """Write a buffer (of bytes) at an offset.

        Raises
        ------
        OSError
            As `write_all`; it has its old size again.
        """
        n_over = min(self.nbytes - offset, buffer.nbytes)
        if n_over >= _OVER_NBYTES and self._write_over(offset, buffer[:n_over]):
            offset, buffer = offset + n_over, buffer[n_over:]
        if buffer.nbytes:
            self.nbytes = write_at(self.fd, buffer, offset, self.nbytes)

    def _write_over(self, offset: int, buffer: memoryview) -> bool:
        try:
            target = self.view()[offset : offset + buffer.nbytes]
        except (OSError, ValueError):  # too many mappings or descriptors
            return False
        numpy = sys.modules.get("numpy")
        if numpy is None:
            target[:] = buffer
        else:  # other threads run meanwhile
            numpy.copyto(numpy.frombuffer(target, numpy.uint8), numpy.frombuffer(buffer, numpy.uint8))
        return True

    def close(self) -> None:
        """Let go of the memory."""
        self._view = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def create(nbytes: int = 0) -> int:
    """Descriptor of a new, empty, anonymous file; the caller closes it.

    Parameters
    ----------
    nbytes
        What it is going to hold: without ``memfd_create``, a folder with room for it is chosen.
    """
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("amorsize_executor", os.MFD_CLOEXEC)
        os.fchmod(fd, 0o600)  # else anybody's, for who comes to it by /proc; mkstemp does the same
        return fd
    return create_in_folder(nbytes)


def create_in_folder(nbytes: int = 0) -> int:
    """The same as a file of a folder, unlinked at once: of one in memory if it has room, else of the temporary one."""
    import tempfile

    fd, path = tempfile.mkstemp(prefix="amorsize_executor-", dir=_folder_with_room(nbytes))
    os.unlink(path)
    return fd


def _folder_with_room(nbytes: int) -> str | None:
    """A folder in memory if there is one with room for so many bytes; else None: the one for temporary files."""
    try:
        room = os.statvfs(SHARED_MEMORY)
        if room.f_bavail * room.f_frsize > nbytes + _ROOM_LEFT_NBYTES and os.access(SHARED_MEMORY, os.W_OK):
            return SHARED_MEMORY
    except OSError:
        pass  # there is none
    return None


def create_sized(nbytes: int) -> int:
    """Descriptor of a new anonymous file of `nbytes` zero bytes, whose memory is reserved."""
    fd = create()
    try:
        write_all(fd, bytes(nbytes))
    except BaseException:
        os.close(fd)
        raise
    return fd


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Append all of `data`.

    Raises
    ------
    OSError
        When there is no room (ENOSPC, ENOMEM); names how much was asked for.
    """
    view = memoryview(data).cast("B") if not isinstance(data, bytes) else memoryview(data)
    total = view.nbytes
    try:
        while view.nbytes:
            view = view[os.write(fd, view) :]
    except OSError as error:
        raise _no_room(error, total) from error


def write_at(fd: int, data: memoryview, offset: int, size: int) -> int:
    """Write all of `data` (of bytes) at an offset of a file of `size` bytes; returns its new size.

    Raises
    ------
    OSError
        As `write_all`; the file has its old size again.
    """
    total = data.nbytes
    try:
        while data.nbytes:
            n = os.pwrite(fd, data, offset)
            data, offset = data[n:], offset + n
        return max(size, offset)
    except OSError as error:
        os.ftruncate(fd, size)
        raise _no_room(error, total) from error


def _no_room(error: OSError, nbytes: int) -> OSError:
    reason = os.strerror(error.errno or 0)
    return OSError(error.errno, f"{reason} while storing {nbytes:,} bytes for a worker; free memory or send less")


class BlockWriter:
    """Puts buffers one behind another into a new block.

    Owned by one thread. `detach` hands the descriptor over; `close` drops the block.
    """

    def __init__(self) -> None:
        self._fd = -1
        self.nbytes = 0

    def add(self, buffer: memoryview) -> int:
        """Store a buffer and return its offset in bytes."""
        if self._fd < 0:
            self._fd = create()
        padding = -self.nbytes % _ALIGNMENT
        offset = self.nbytes + padding
        try:
            if padding:
                write_all(self._fd, bytes(padding))
            write_all(self._fd, buffer)
        except BaseException:
            # What was written of it would shift the buffers that follow.
            os.lseek(self._fd, self.nbytes, os.SEEK_SET)
            os.ftruncate(self._fd, self.nbytes)
            raise
        self.nbytes = offset + buffer.nbytes
        return offset

    def store(self, buffer: memoryview) -> tuple[int, int, bool, int]:
        """Store a buffer and return what stands for it: offset, size, is read-only, and 0 for this block."""
        return self.add(buffer), buffer.nbytes, buffer.readonly, 0

    def serial(self, part: object) -> int:
        """None."""
        return 0

    def detach(self) -> int | None:
        """Descriptor of the block, now the caller's to close; None when nothing was stored."""
        fd, self._fd = self._fd, -1
        return fd if fd >= 0 else None

    def close(self) -> None:
        """Drop the block if it was not detached."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def map_private(fd: int, nbytes: int) -> memoryview:
    """A private, writable view of a block.

    Large blocks are mapped copy-on-write: reads share the memory, writes stay with this mapping. Small ones, and large
    ones beyond what this process has room to map, are copied.
    """
    mapping = try_map(fd, nbytes)
    return memoryview(mapping) if mapping is not None else memoryview(read_copy(fd, 0, nbytes))


def try_map(fd: int, nbytes: int) -> mmap.mmap | None:
    """A private, copy-on-write mapping of a block; None where a copy is cheaper or this process has no room for it."""
    if nbytes < _MAP_NBYTES or len(_mapped) >= _MOST_MAPPED:
        return None
    try:
        mapping = _map(fd, nbytes)
    except (OSError, ValueError):  # too many mappings or descriptors, or a block that is shorter: a copy will tell
        return None
    _mapped.add(mapping)
    return mapping


def read_copy(fd: int, start: int, stop: int) -> bytearray:
    """A copy of a part of a block."""
    copy = bytearray(stop - start)
    view = memoryview(copy)
    offset = start
    while offset < stop:
        n = os.preadv(fd, [view[offset - start :]], offset)
        if not n:
            raise OSError(f"a block holds {offset} of the expected {stop} bytes")
        offset += n
    return copy


if sys.version_info >= (3, 13):

    def _map(fd: int, nbytes: int) -> mmap.mmap:
        return mmap.mmap(fd, nbytes, access=mmap.ACCESS_COPY, trackfd=False)

    def _map_shared(fd: int, nbytes: int) -> mmap.mmap:
        return mmap.mmap(fd, nbytes, trackfd=False)

else:

    def _map(fd: int, nbytes: int) -> mmap.mmap:
        return mmap.mmap(fd, nbytes, access=mmap.ACCESS_COPY)

    def _map_shared(fd: int, nbytes: int) -> mmap.mmap:
        return mmap.mmap(fd, nbytes)


def read_all(fd: int, nbytes: int) -> bytes:
    """The first `nbytes` bytes of a block."""
    parts: list[bytes] = []
    offset = 0
    while offset < nbytes:
        part = os.pread(fd, nbytes - offset, offset)
        if not part:
            raise OSError(f"a block holds {offset} of the expected {nbytes} bytes")
        parts.append(part)
        offset += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def size(fd: int) -> int:
    """Size of a block in bytes."""
    return os.fstat(fd).st_size


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)
