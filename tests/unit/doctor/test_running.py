"""What goes over the wire, byte for byte, in plain and over TLS."""

import asyncio
import shutil
import socket
import ssl
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from authsidecar.doctor.echo import echoing
from authsidecar.doctor.probes import FIRST, PROBES, Probe
from authsidecar.doctor.running import ProxyUnreachableError, _exchange, _reach, _written, place


def test_a_probe_is_written_as_the_table_has_it():
    """No library adds, orders or escapes anything."""
    probe = Probe("p", "", lambda _: None, "", "POST", "//a/%2e?b", (("X_A.b", "c"),), b"xy")
    assert _written(place("http://a.test:81"), probe, "Bearer d") == (
        b"POST //a/%2e?b HTTP/1.1\r\nHost: a.test:81\r\nAuthorization: Bearer d\r\nX_A.b: c\r\n"
        b"Connection: close\r\nContent-Length: 2\r\n\r\nxy"
    )


def test_a_probe_keeps_its_own_connection_header():
    """Two would be another probe."""
    [probe] = [probe for probe in PROBES if probe.name == "websocket"]
    assert _written(place("http://a.test"), probe, "x").count(b"Connection: ") == 1


async def test_every_probe_reaches_an_echo_and_a_websocket_opens():
    """Nothing in the table is too odd for a server that takes all."""
    async with echoing("127.0.0.1", 0) as address:
        where = place(f"http://{address}")
        for probe in PROBES:
            answer = await asyncio.to_thread(_exchange, where, _written(where, probe, "Bearer x"))
            assert answer is not None
            if probe.name == "websocket":
                assert answer.status == 101
            else:
                echoed = answer.echoed()
                assert echoed is not None
                assert (echoed.method, echoed.target) == (probe.method, probe.target)


def test_nobody_listening_is_said_at_once():
    """Not as forty probes without an answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        _reach(place(f"http://{address}"))
    with pytest.raises(ProxyUnreachableError, match=f"cannot connect to {address}: "):
        _reach(place(f"http://{address}"))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes the certificate")
def test_a_certificate_must_be_trusted_unless_the_operator_says_otherwise(tmp_path):
    """Over TLS the same bytes; an untrusted certificate is named as the cause."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    files = ("-keyout", str(key), "-out", str(certificate))
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *files, *names],
        check=True,
        capture_output=True,
    )
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as elsewhere:
        listener.settimeout(10)
        url = f"https://localhost:{listener.getsockname()[1]}"
        refused = elsewhere.submit(_answered_over, tls, listener)
        with pytest.raises(ProxyUnreachableError, match="--insecure"):
            _reach(place(url))
        with pytest.raises(ssl.SSLError):
            refused.result()
        where = place(url, insecure=True)
        request = _written(where, FIRST, "Bearer x")
        received = elsewhere.submit(_answered_over, tls, listener)
        answered = _exchange(where, request)
        assert received.result() == request
    assert answered is not None
    assert answered.status == 204


def _answered_over(tls: ssl.SSLContext, listener: socket.socket) -> bytes:
    """What came over one connection; closed in this thread, where nothing is left of it."""
    plain, _ = listener.accept()
    with plain:
        plain.settimeout(10)
        with tls.wrap_socket(plain, server_side=True) as secured:
            request = secured.recv(65536)
            secured.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
            return request
