"""The sockets that are listened on, opened before anything is started: a used port is told first.

Worker processes inherit them, so that one address serves all of them.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from authsidecar.config import Endpoint, Settings

BACKLOG: Final = 1024
"""How many connections may wait to be accepted."""


class ListenError(Exception):
    """An address cannot be listened on; one line that names the setting and why."""


@dataclass(frozen=True, slots=True)
class Listeners:
    """Open sockets.

    Attributes:
        authz: what proxies ask on, TCP and unix.
        management: health and metrics.
    """

    authz: tuple[socket.socket, ...]
    management: tuple[socket.socket, ...]

    def addresses(self) -> dict[str, object]:
        """Where they listen, for people: with the ports that were found."""
        return {
            "authz": [_name(one) for one in self.authz],
            "management": [_name(one) for one in self.management],
        }


@contextmanager
def listening(settings: Settings) -> Iterator[Listeners]:
    """Open what the settings name; closed, and the unix socket removed, when the context ends.

    Raises:
        ListenError: an address is used, unknown or not ours to use.
    """
    with ExitStack() as stack:
        authz = list(_tcp(stack, settings.listen.endpoint, "listen.address"))
        if settings.listen.unix_socket is not None:
            path = Path(settings.listen.unix_socket)
            authz.append(_unix(stack, path, settings.listen.mode))
        management = _tcp(stack, settings.management.endpoint, "management.address")
        yield Listeners(tuple(authz), tuple(management))


def _tcp(stack: ExitStack, endpoint: Endpoint | None, setting: str) -> Iterator[socket.socket]:
    """One socket for each address that the host name has; none where nothing is listened on."""
    if endpoint is None:
        return
    try:
        found = socket.getaddrinfo(
            endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, _, _, _, address in dict.fromkeys(found):
            one = socket.socket(family, socket.SOCK_STREAM)
            stack.callback(one.close)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind(address)
            one.listen(BACKLOG)
            one.setblocking(False)
            yield one
    except OSError as error:
        where = f"{endpoint.host or '*'}:{endpoint.port}"
        raise ListenError(f"{setting}: cannot listen on {where}: {error.strerror}") from None


def _unix(stack: ExitStack, path: Path, mode: int) -> socket.socket:
    one = socket.socket(socket.AF_UNIX)
    stack.callback(one.close)
    try:
        if _answers(path):
            raise ListenError(f"listen.unix_socket: {path} is in use by another process")
        if path.is_socket():  # left by a crash
            path.unlink()
        before = os.umask(0o777 & ~mode)
        try:
            one.bind(str(path))
        finally:
            os.umask(before)
        one.listen(BACKLOG)
    except OSError as error:
        raise ListenError(
            f"listen.unix_socket: cannot listen on {path}: {error.strerror or error}"
        ) from None
    stack.callback(_remove, path)
    one.setblocking(False)
    return one


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _answers(path: Path) -> bool:
    """Whether somebody listens there; a socket left by a crash is nobody's."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _name(one: socket.socket) -> str:
    name = one.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
