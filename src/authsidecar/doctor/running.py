"""Sends the probes, one after the other, byte for byte, and collects what became of them."""

import asyncio
import http.client
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

from authsidecar.decision.model import Proxy
from authsidecar.doctor.evidence import Answer
from authsidecar.doctor.judgements import Observation
from authsidecar.doctor.one_time_key import ARMED_S, Armed, armed
from authsidecar.doctor.probes import FIRST, PROBES, Probe
from authsidecar.doctor.report import UNSENT, DoctorReport, Finding, ProbeResult
from authsidecar.serving.doctor_probe import ALLOW, CODE, Sighting, credential
from authsidecar.store.keys import Keys

PATIENCE_S: Final = 5.0
"""How long one answer may take, in seconds."""

ATTEMPTS: Final = 3
"""How often a probe is sent that the sidecar answered and did not take down."""

_IN_TIME_S: Final = ARMED_S - PATIENCE_S
_LONGEST_BODY: Final = 1024 * 1024


class ProxyUnreachableError(Exception):
    """The proxy or the sidecar cannot be connected to; one line says why."""


@dataclass(frozen=True, slots=True)
class ProbePlace:
    """Where probes are sent.

    Attributes:
        host: name or address, without brackets.
        port: of the proxy.
        authority: the Host header.
        tls: how to trust it, or None for plain http.
        address: what to connect to in place of the host; empty: the host itself.
    """

    host: str
    port: int
    authority: str
    tls: ssl.SSLContext | None
    address: str = ""


Resolved = Mapping[tuple[str, int], str]
"""Addresses to connect to, by host and port, in place of what the name resolves to."""


def place(
    url: str, *, insecure: bool = False, resolved: Resolved = MappingProxyType({})
) -> ProbePlace:
    """Where `http(s)://host[:port]` leads; a path is refused, because the probes have theirs.

    Args:
        url: of the site, through the proxy.
        insecure: take any certificate.
        resolved: addresses that are used in place of names.

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
    address = resolved.get((parts.hostname, port), "")
    return ProbePlace(parts.hostname, port, parts.netloc, tls, address)


@dataclass(frozen=True, slots=True)
class Examination:
    """What is examined, and how.

    Attributes:
        proxy: which proxy the operator says it is.
        url: the site, through the proxy.
        echo_url: the same with an echo as its backend, or None.
        from_hop: the doctor runs where the proxy trusts X-Forwarded-For.
        insecure: take any certificate.
        resolved: addresses that are used in place of names.
        management: host and port of the sidecar's management listener, which tells a sidecar
            that is down from a proxy that does not ask; None: that is not known.
    """

    proxy: Proxy
    url: str
    echo_url: str | None = None
    from_hop: bool = False
    insecure: bool = False
    resolved: Resolved = field(default_factory=dict)
    management: tuple[str, int] | None = None


async def examine(client: Any, keys: Keys, what: Examination) -> DoctorReport:
    """Send every probe that applies, and judge what is known of it afterwards.

    Args:
        client: a client of the Redis that the sidecar uses.
        keys: the sidecar's key names.
        what: where to send them.

    Raises:
        ValueError: a url is none.
        ProxyUnreachableError: nobody listens there, or no sidecar runs.
    """
    site, echo = (
        place(url, insecure=what.insecure, resolved=what.resolved) if url else None
        for url in (what.url, what.echo_url)
    )
    named = [one for one in (site, echo) if one is not None]
    if unused := set(what.resolved) - {(one.host, one.port) for one in named}:
        host, port = min(unused)
        raise ValueError(f"--resolve names {host}:{port}, which is in neither of them")
    for one in named:
        await asyncio.to_thread(_reach, one)
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
                await asyncio.to_thread(_alive, what.management, answers[FIRST.name])
                break
        seen = await key.sightings()
    return DoctorReport(what.proxy, what.url, [_finding(p, what, answers, seen) for p in PROBES])


def _finding(
    probe: Probe,
    what: Examination,
    answers: dict[str, Answer | None],
    seen: Sequence[Sighting],
) -> Finding:
    if what.proxy in probe.skip:
        return Finding(probe, ProbeResult.SKIP, f"{what.proxy} cannot do this")
    if probe.echo and not what.echo_url:
        return Finding(probe, ProbeResult.SKIP, "only the backend can tell: needs --echo-url")
    if probe.name not in answers:
        if not seen:
            return Finding(probe, ProbeResult.SKIP, UNSENT)
        return Finding(probe, ProbeResult.FAIL, "not sent: the answers before took too long")
    first = tuple(s for s in seen if s.probe == FIRST.name)
    if (probe.echo or probe.answer != ALLOW) and any(s.target != FIRST.target for s in first):
        return Finding(probe, ProbeResult.SKIP, "not judged: the sidecar is told another target")
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
    return (
        Finding(probe, ProbeResult.PASS)
        if fault is None
        else Finding(probe, ProbeResult.FAIL, fault)
    )


async def _answered(where: ProbePlace, probe: Probe, key: Armed) -> Answer | None:
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


async def _sent(where: ProbePlace, probe: Probe, key: Armed) -> Answer | None:
    authorization = credential(key.key, probe.name, probe.answer)
    return await asyncio.to_thread(_exchange, where, _written(where, probe, authorization))


def _written(where: ProbePlace, probe: Probe, authorization: str) -> bytes:
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


def _exchange(where: ProbePlace, request: bytes) -> Answer | None:
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


def _reach(where: ProbePlace) -> None:
    """Connect once.

    Raises:
        ProxyUnreachableError: nobody listens, or the certificate is not trusted.
    """
    try:
        with _connected(where):
            return
    except ssl.SSLCertVerificationError as error:
        why = f"{error.verify_message}; --insecure takes any certificate"
    except OSError as error:
        why = error.strerror or str(error)
    raise ProxyUnreachableError(f"cannot connect to {where.authority}: {why}")


def _alive(management: tuple[str, int] | None, answer: Answer | None) -> None:
    """Whether a sidecar runs, which saw nothing of the first probe.

    Args:
        management: its management listener, if it is known.
        answer: what the proxy answered.

    Raises:
        ProxyUnreachableError: none does: nothing can be said of the proxy.
    """
    if management is None or (answer is not None and "decision_id" in answer.document()):
        return
    try:
        with socket.create_connection(management, timeout=PATIENCE_S):
            return
    except OSError as error:
        why = error.strerror or str(error)
    host, port = management
    said = f"answered {answer.status}" if answer else "gave no answer"
    raise ProxyUnreachableError(
        f"no sidecar answers at {host}:{port} (management.address: {why}), and the proxy {said}: "
        "nothing was examined; start the sidecar, or run the doctor where it runs"
    )


@contextmanager
def _connected(where: ProbePlace) -> Iterator[socket.socket]:
    to = where.address or where.host, where.port
    with socket.create_connection(to, timeout=PATIENCE_S) as plain:
        if where.tls is None:
            yield plain
            return
        with where.tls.wrap_socket(plain, server_hostname=where.host) as secured:
            yield secured
