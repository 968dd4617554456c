"""The sockets that are listened on, opened before anything is started: a used port is told first.

Worker processes inherit them, so that one address serves all of them.
"""

import contextlib
import ctypes
import errno
import os
import socket
import ssl
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from authsidecar.config import ListenAddress, Settings

BACKLOG: Final = 1024
"""How many connections may wait to be accepted."""


_ABSENT: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})
"""What a host without IPv6 says, in its kernel or on its interfaces."""

_SO_ATTACH_REUSEPORT_CBPF: Final = 51
_RETURN_ONE: Final = struct.pack("HBBI", 0x06, 0, 0, 1)
"""A packet filter of one instruction: choose the second socket that listens on the port, if any."""


class ListenError(Exception):
    """An address cannot be listened on; one line that names the setting and why."""


@dataclass(frozen=True, slots=True)
class Listeners:
    """Open sockets.

    Attributes:
        authz: what proxies ask on, TCP and unix.
        management: health and metrics.
        shared: whether another process may listen on the same addresses.
        paths: of unix sockets that are bound under another name.
    """

    authz: tuple[socket.socket, ...]
    management: tuple[socket.socket, ...]
    shared: bool = False
    paths: tuple[tuple[str, str], ...] = ()

    def addresses(self) -> dict[str, object]:
        """Where they listen, for people: with the ports that were found."""
        paths = dict(self.paths)
        return {
            "authz": [_name(one, paths) for one in self.authz],
            "management": [_name(one, paths) for one in self.management],
        }

    def close(self) -> None:
        """Close them; copies go on."""
        for one in (*self.authz, *self.management):
            one.close()

    def give_way(self) -> None:
        """Have the kernel hand new connections to a process that came to the same port later.

        Closing a socket of several on a port resets the connections that it was given and has not
        accepted. So it gets no more first. Alone on the port it goes on as before.
        """
        if not self.shared:
            return
        filters = ctypes.create_string_buffer(_RETURN_ONE, len(_RETURN_ONE))
        program = struct.pack("HP", 1, ctypes.addressof(filters))
        for one in (*self.authz, *self.management):
            if one.family != socket.AF_UNIX:
                with contextlib.suppress(OSError):
                    one.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, program)


NONE: Final = Listeners((), ())


@contextmanager
def listening(settings: Settings, handed: Listeners = NONE) -> Iterator[Listeners]:
    """Open what the settings name; closed, and the unix socket removed, when the context ends.

    What was handed over stands in place of the settings' addresses.

    Sockets whose addresses are shared with another process are bound only: whoever listens on
    them is given connections at once.

    Raises:
        ListenError: an address is used, unknown or not ours to use.
    """
    # A socket that was handed over outlives this process: nobody else needs its address.
    shared = settings.listen.reuse_port and handed == NONE
    paths: list[tuple[str, str]] = []
    with ExitStack() as stack:
        stack.callback(handed.close)
        authz = list(handed.authz) or list(
            _tcp(stack, settings.listen.endpoint, "listen.address", shared=shared)
        )
        if settings.listen.unix_socket is not None and not handed.authz:
            path = Path(settings.listen.unix_socket)
            one = _unix(stack, path, settings.listen.mode, shared=shared)
            paths.append((one.getsockname(), str(path)))
            authz.append(one)
        management = list(handed.management) or list(
            _tcp(stack, settings.management.endpoint, "management.address", shared=shared)
        )
        yield Listeners(tuple(authz), tuple(management), shared, tuple(paths))


def server_tls(certificate: Path, key: Path) -> ssl.SSLContext:
    """What a listener with this certificate speaks: TLS 1.2 or later.

    Args:
        certificate: a PEM file, with its chain.
        key: its private key.

    Raises:
        OSError, ValueError: they are no such pair, or can't be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # An encrypted key would have a password asked for on the terminal.
    context.load_cert_chain(certificate, key, password="")
    return context


def _tcp(
    stack: ExitStack, endpoint: ListenAddress | None, setting: str, *, shared: bool
) -> Iterator[socket.socket]:
    """One socket for each address that the host name has; none where nothing is listened on.

    IPv6 is left out where the host has none, unless there is nothing else.
    """
    if endpoint is None:
        return
    where = f"{endpoint.host or '*'}:{endpoint.port}"
    opened, absent = 0, None
    try:
        found = socket.getaddrinfo(
            endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, _, _, _, address in dict.fromkeys(found):
            try:
                yield _bound(stack, family, address, shared=shared)
                opened += 1
            except OSError as error:
                if family != socket.AF_INET6 or error.errno not in _ABSENT:
                    raise
                absent = error
        if absent is not None and not opened:
            raise absent
    except OSError as error:
        raise ListenError(f"{setting}: cannot listen on {where}: {error.strerror}") from None


def _bound(stack: ExitStack, family: int, address: Any, *, shared: bool) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    stack.callback(one.close)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    one.bind(address)
    if not shared:
        one.listen(BACKLOG)
    one.setblocking(False)
    return one


def _unix(stack: ExitStack, path: Path, mode: int, *, shared: bool) -> socket.socket:
    one = socket.socket(socket.AF_UNIX)
    stack.callback(one.close)
    # Under a name of its own first, so that the path is never without somebody who listens.
    name = path.with_name(f".{os.getpid()}") if shared else path
    try:
        if not shared and _answers(path):
            raise ListenError(f"listen.unix_socket: {path} is in use by another process")
        if name.is_socket():  # left by a crash
            name.unlink()
        before = os.umask(0o777 & ~mode)
        try:
            one.bind(str(name))
        finally:
            os.umask(before)
        one.listen(BACKLOG)
        ours = name.stat()
        if shared:
            name.replace(path)
    except OSError as error:
        raise ListenError(
            f"listen.unix_socket: cannot listen on {path}: {error.strerror or error}"
        ) from None
    stack.callback(_remove, path, ours)
    one.setblocking(False)
    return one


def _remove(path: Path, ours: os.stat_result) -> None:
    """Remove the socket, unless another process has put its own there."""
    with contextlib.suppress(OSError):
        if os.path.samestat(path.stat(), ours):
            path.unlink()


def _answers(path: Path) -> bool:
    """Whether somebody listens there; a socket left by a crash is nobody's."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _name(one: socket.socket, paths: Mapping[str, str]) -> str:
    name = one.getsockname()
    if isinstance(name, str):
        return f"unix:{paths.get(name, name)}"
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
