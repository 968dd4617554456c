"""Where files are kept that processes share while they run: in memory, if the host has it so."""

import os
from pathlib import Path
from typing import Final

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108  # a private name is made in it

ROOM_BYTES: Final = 16 * 1024 * 1024
"""Less room than this, in bytes, is left to others."""


def directory() -> str | None:
    """A file system in memory that can be written and has room; None: TMPDIR's must do.

    Worker processes write to such files on their event loops. On a disk that is slow they would
    wait, and on one that is full, a write to a mapped file ends the process.
    """
    try:
        room = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    if not os.access(SHARED_MEMORY, os.W_OK | os.X_OK):
        return None
    return str(SHARED_MEMORY) if room.f_bavail * room.f_frsize >= ROOM_BYTES else None
