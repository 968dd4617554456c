"""File descriptors: as many as the system allows, and how many of them connections may have."""

import resource
from typing import Final

MANAGEMENT: Final = 64
"""Connections to the management listener, at most."""

OTHERS: Final = 48
"""What a process needs beside connections: files, pipes, sockets that listen, a database, mail."""

_LEAST: Final = 16


def raise_limit() -> int:
    """Raise the soft limit of open files to the hard one.

    Returns:
        how many this process may have open.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def for_management(limit: int) -> int:
    """How many connections the management listener may have.

    Args:
        limit: how many files the process may have open.
    """
    return min(MANAGEMENT, limit // 8)


def for_authz(limit: int, redis: int) -> tuple[int, int]:
    """How many connections the authz listener may have: of trusted peers, and of others.

    Args:
        limit: how many files the process may have open.
        redis: how many connections to Redis there may be.
    """
    left = max(_LEAST, limit - OTHERS - for_management(limit) - redis)
    strangers = left // 4
    return left - strangers, strangers
