"""Which server the authz listener runs on: the quick connection, or aiohttp's own."""

import asyncio
from typing import Final, Literal, Protocol

import aiohttp

from authsidecar.serving.connection_limits import Room

Server = Literal["fast", "aiohttp"]

TESTED: Final = frozenset({"3.14"})
"""Minor versions of aiohttp whose parser, which is no documented interface, the quick connection
was tested with."""


class ListenerConnections(Protocol):
    """All connections of a listener; called for each new one."""

    draining: bool
    room: Room

    def __call__(self) -> asyncio.Protocol:
        """The protocol of a connection that was just accepted."""

    async def end(self, grace_s: float) -> None:
        """Close what is idle, wait for what is being answered, then close all."""


def choose(setting: Literal["auto", "fast", "aiohttp"], version: str | None = None) -> Server:
    """The server that a setting means with this version of aiohttp.

    >>> choose("auto", "3.99.0")
    'aiohttp'
    """
    if setting != "auto":
        return setting
    installed = version or aiohttp.__version__
    return "fast" if ".".join(installed.split(".")[:2]) in TESTED else "aiohttp"
