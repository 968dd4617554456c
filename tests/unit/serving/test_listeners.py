"""The sockets that are listened on, on hosts of every kind."""

import errno
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from authsidecar.config import Settings
from authsidecar.config.sections import Management
from authsidecar.serving.listeners import ListenError, listening


def settings(address: str | None, **listen: object) -> Settings:
    given: Any = {"listen": {"address": address, **listen}}
    return Settings(**given, management=Management(address="127.0.0.1:0"))


class NoIPv6(socket.socket):
    """A socket of a kernel that was started with ipv6.disable=1."""

    def __init__(self, family: int = -1, *args: Any, **kwargs: Any) -> None:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        super().__init__(family, *args, **kwargs)


class NoAddress(socket.socket):
    """A socket of a kernel whose interfaces have no IPv6 address, `disable_ipv6=1`."""

    def bind(self, address: Any) -> None:
        if self.family == socket.AF_INET6:
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        super().bind(address)


def test_all_interfaces_are_both_families() -> None:
    """`:PORT` is IPv4 and IPv6, where the host has both."""
    with listening(settings(":0")) as opened:
        families = {one.family for one in opened.authz}
    assert families == {socket.AF_INET, *({socket.AF_INET6} if socket.has_ipv6 else ())}


@pytest.mark.parametrize("kind", [NoIPv6, NoAddress])
@pytest.mark.parametrize("address", [":0", "localhost:0"])
def test_a_family_that_the_host_lacks_is_left_out(
    monkeypatch: pytest.MonkeyPatch, kind: type[socket.socket], address: str
) -> None:
    """No IPv6 is no reason not to start."""
    monkeypatch.setattr(socket, "socket", kind)
    with listening(settings(address)) as opened:
        assert [one.family for one in opened.authz] == [socket.AF_INET]


@pytest.mark.parametrize("kind", [NoIPv6, NoAddress])
def test_an_address_that_the_host_lacks_is_refused(
    monkeypatch: pytest.MonkeyPatch, kind: type[socket.socket]
) -> None:
    """Who names an IPv6 address wants that one."""
    monkeypatch.setattr(socket, "socket", kind)
    with (
        pytest.raises(ListenError, match=r"listen\.address: cannot listen on ::1:0"),
        listening(settings("[::1]:0")),
    ):
        pass


def test_a_used_port_is_refused() -> None:
    """Whatever else could be listened on."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with (
            pytest.raises(ListenError, match="Address already in use"),
            listening(settings(f"127.0.0.1:{port}")),
        ):
            pass


def test_a_shared_unix_socket_is_left_to_the_one_that_took_it(tmp_path: Path) -> None:
    """The path always leads to somebody; it is removed by the last one alone."""
    path = tmp_path / "socket"
    shared = settings(None, unix_socket=path, reuse_port=True)
    with listening(shared) as old:
        assert old.addresses()["authz"] == [f"unix:{path}"]
        with listening(shared):
            old.close()
            with socket.socket(socket.AF_UNIX) as proxy:
                proxy.connect(str(path))
        assert not path.exists()
    assert list(tmp_path.iterdir()) == []
