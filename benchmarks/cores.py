"""Who runs on which core: a server on one of its own, Redis and the load generator on the others.

So a server is never measured while it waits for those who ask it, and keeps its caches; all
contestants are placed alike. With a single core everybody shares it.
"""

import os
from typing import Final

import psutil

ALL: Final = sorted(os.sched_getaffinity(0))


def leave_one() -> None:
    """Keep this process, and what it starts from here on, off the servers' core."""
    if len(ALL) > 1:
        os.sched_setaffinity(0, ALL[:-1])


def give(server: int) -> None:
    """Move a server to the servers' core; they take turns.

    Args:
        server: its process id.
    """
    if len(ALL) > 1:
        psutil.Process(server).cpu_affinity(ALL[-1:])
