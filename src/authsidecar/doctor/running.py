"""Sends the probes, one after the other, byte for byte, and collects what became of them."""

import asyncio
import http.client
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from authsidecar.doctor.arming import ARMED_S, Armed, armed
from authsidecar.doctor.evidence import ALLOW, CODE, Answer, Sighting, credential
from authsidecar.doctor.judgements import Observation
from authsidecar.doctor.probes import FIRST, PROBES, Probe
from authsidecar.doctor.report import Finding, Report, Result
from authsidecar.model import Proxy
from authsidecar.store.keys import Keys

PATIENCE_S: Final = 5.0
"""How long one answer may take, in seconds."""

ATTEMPTS: Final = 3
"""How often a probe is sent that the sidecar answered and did not take down."""

_IN_TIME_S: Final = ARMED_S - PATIENCE_S
_LONGEST_BODY: Final = 1024 * 1024


class UnreachableError(Exception):
    """The proxy cannot be connected to; one line says why."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where probes are sent.

    Attributes:
        host: name or address, without brackets.
        port: of the proxy.
        authority: the Host header.
        tls: how to trust it, or None for plain http.
    """

    host: str
    port: int
    authority: str
    tls: ssl.SSLContext | None


def place(url: str, *, insecure: bool = False) -> Place:
    """Where `http(s)://host[:port]` leads; a path is refused, because the probes have theirs.

    Args:
        url: of the site, through the proxy.
        insecure: take any certificate.

    Raises:
        ValueError: it is not such an address.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("begin with http:// or https:// and name a host")
    if parts.path not in {"", "/"} or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("name host and port only; the probes have paths of their own")
    tls = None
    if parts.scheme == "https":
        tls = ssl.create_default_context()
        if insecure:
            tls.check_hostname = False
            tls.verify_mode = ssl.CERT_NONE
    port = parts.port or (443 if tls else 80)
    return Place(parts.hostname, port, parts.netloc, tls)


@dataclass(frozen=True, slots=True)
class Examination:
    """What is examined, and how.

    Attributes:
        proxy: which proxy the operator says it is.
        url: the site, through the proxy.
        echo_url: the same with an echo as its backend, or None.
        from_hop: the doctor runs where the proxy trusts X-Forwarded-For.
        insecure: take any certificate.
    """

    proxy: Proxy
    url: str
    echo_url: str | None = None
    from_hop: bool = False
    insecure: bool = False


async def examine(client: Any, keys: Keys, what: Examination) -> Report:
    """Send every probe that applies, and judge what is known of it afterwards.

    Args:
        client: a client of the Redis that the sidecar uses.
        keys: the sidecar's key names.
        what: where to send them.

    Raises:
        ValueError: a url is none.
        UnreachableError: nobody listens there.
    """
    site = place(what.url, insecure=what.insecure)
    echo = place(what.echo_url, insecure=what.insecure) if what.echo_url else None
    for named in (site, echo):
        if named is not None:
            await asyncio.to_thread(_reach, named)
    answers: dict[str, Answer | None] = {}
    async with armed(client, keys) as key:
        late = asyncio.get_running_loop().time() + _IN_TIME_S
        for probe in PROBES:
            where = echo if probe.echo else site
            if where is None or what.proxy in probe.skip:
                continue
            if asyncio.get_running_loop().time() > late:
                break
            answers[probe.name] = await _answered(where, probe, key)
            if probe is FIRST and not await key.sightings():
                break
        seen = await key.sightings()
    return Report(what.proxy, what.url, [_finding(p, what, answers, seen) for p in PROBES])


def _finding(
    probe: Probe,
    what: Examination,
    answers: dict[str, Answer | None],
    seen: Sequence[Sighting],
) -> Finding:
    if what.proxy in probe.skip:
        return Finding(probe, Result.SKIP, f"{what.proxy} cannot do this")
    if probe.echo and not what.echo_url:
        return Finding(probe, Result.SKIP, "only the backend can tell: needs --echo-url")
    if probe.name not in answers:
        if not seen:
            return Finding(probe, Result.SKIP, f"not sent: {FIRST.name} failed")
        return Finding(probe, Result.FAIL, "not sent: the answers before took too long")
    first = tuple(s for s in seen if s.probe == FIRST.name)
    if (probe.echo or probe.answer != ALLOW) and any(s.target != FIRST.target for s in first):
        return Finding(probe, Result.SKIP, "not judged: the sidecar is told another target")
    fault = probe.judge(
        Observation(
            proxy=what.proxy,
            method=probe.method,
            target=probe.target,
            answer=answers[probe.name],
            seen=tuple(s for s in seen if s.probe == probe.name),
            first=first,
            from_hop=what.from_hop,
        )
    )
    return Finding(probe, Result.PASS) if fault is None else Finding(probe, Result.FAIL, fault)


async def _answered(where: Place, probe: Probe, key: Armed) -> Answer | None:
    """The answer to a probe; sent again where the sidecar answered but could not take it down.

    A Redis that is slow for a moment must not look like a fault of the proxy.
    """
    for _ in range(ATTEMPTS - 1):
        answer = await _sent(where, probe, key)
        said = answer.document() if answer else {}
        if "decision_id" not in said or said.get("code") == CODE:
            return answer
        if any(seen.probe == probe.name for seen in await key.sightings()):
            return answer
    return await _sent(where, probe, key)


async def _sent(where: Place, probe: Probe, key: Armed) -> Answer | None:
    authorization = credential(key.key, probe.name, probe.answer)
    return await asyncio.to_thread(_exchange, where, _written(where, probe, authorization))


def _written(where: Place, probe: Probe, authorization: str) -> bytes:
    """The bytes of a probe's request: nothing is added, ordered or escaped by a library."""
    lines = [
        f"{probe.method} {probe.target} HTTP/1.1",
        f"Host: {where.authority}",
        f"Authorization: {authorization}",
        *(f"{name}: {value}" for name, value in probe.headers),
    ]
    if "Connection" not in dict(probe.headers):
        lines.append("Connection: close")
    if probe.body or probe.method == "POST":
        lines.append(f"Content-Length: {len(probe.body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + probe.body


def _exchange(where: Place, request: bytes) -> Answer | None:
    """One request on a connection of its own; None if there is no whole answer in time."""
    try:
        with _connected(where) as connection:
            connection.sendall(request)
            response = http.client.HTTPResponse(connection)
            response.begin()
            body = b"" if response.status == 101 else response.read(_LONGEST_BODY)
    except (OSError, http.client.HTTPException):
        return None
    headers = tuple((name.lower(), value) for name, value in response.getheaders())
    return Answer(response.status, headers, body)


def _reach(where: Place) -> None:
    """Connect once.

    Raises:
        UnreachableError: nobody listens, or the certificate is not trusted.
    """
    try:
        with _connected(where):
            return
    except ssl.SSLCertVerificationError as error:
        why = f"{error.verify_message}; --insecure takes any certificate"
    except OSError as error:
        why = error.strerror or str(error)
    raise UnreachableError(f"cannot connect to {where.authority}: {why}")


@contextmanager
def _connected(where: Place) -> Iterator[socket.socket]:
    with socket.create_connection((where.host, where.port), timeout=PATIENCE_S) as plain:
        if where.tls is None:
            yield plain
            return
        with where.tls.wrap_socket(plain, server_hostname=where.host) as secured:
            yield secured
