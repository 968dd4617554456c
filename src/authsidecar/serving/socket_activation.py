"""Sockets that a service manager opened and hands over: sd_listen_fds(3)."""

import os
import socket
from collections.abc import MutableMapping
from typing import Final

from authsidecar.serving.listeners import ListenError, Listeners

FIRST: Final = 3
"""The first descriptor that is handed over."""

AUTHZ: Final = "authz"
MANAGEMENT: Final = "management"


def handed_over(environ: MutableMapping[str, str]) -> Listeners:
    """Those that the environment tells of, by name; what it tells is taken out of it.

    Names are `authz` and `management`; several may have the same. A listener without any is
    opened as the settings say.

    Raises:
        ListenError: one has another name, or is nothing that can be listened on.
    """
    process = environ.pop("LISTEN_PID", "")
    count = environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    found: dict[str, list[socket.socket]] = {AUTHZ: [], MANAGEMENT: []}
    if process == str(os.getpid()) and count.isdecimal():
        for place in range(int(count)):
            name = names[place] if place < len(names) else ""
            if name not in found:
                raise ListenError(
                    f"LISTEN_FDNAMES: a socket is named {name!a}; set FileDescriptorName={AUTHZ} "
                    f"or FileDescriptorName={MANAGEMENT} in its unit"
                )
            found[name].append(_listening(FIRST + place, name))
    return Listeners(tuple(found[AUTHZ]), tuple(found[MANAGEMENT]))


def _listening(descriptor: int, name: str) -> socket.socket:
    try:
        one = socket.socket(fileno=descriptor)
    except OSError as error:
        raise ListenError(f"LISTEN_FDS: {descriptor} ({name}): {error.strerror}") from None
    stream = one.type == socket.SOCK_STREAM
    if not stream or not one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        one.detach()
        raise ListenError(
            f"LISTEN_FDS: {descriptor} ({name}) does not listen; its unit needs ListenStream= "
            "and Accept=no"
        )
    one.set_inheritable(False)
    one.setblocking(False)
    return one
