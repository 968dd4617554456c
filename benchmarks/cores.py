"""Who runs on which core: servers on their own, Redis and the load generator on the others.

So a server is never measured while it waits for those who ask it, and keeps its caches; all
contestants are placed alike, with all of their threads. Where the cores are too few, everybody
shares them.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

ALL: Final = sorted(os.sched_getaffinity(0))


def enough(servers: int = 1) -> bool:
    """Whether so many can be left to servers."""
    return len(ALL) > servers


def leave(servers: int = 1) -> None:
    """Keep this process, and what it starts from here on, off so many cores."""
    if enough(servers):
        os.sched_setaffinity(0, ALL[:-servers])


@contextmanager
def for_servers(number: int = 1) -> Iterator[None]:
    """What is started within the context runs on so many of the servers' cores; they take turns."""
    if not enough(number):
        yield
        return
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, ALL[-number:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)
