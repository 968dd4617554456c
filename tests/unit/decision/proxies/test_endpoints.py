"""Endpoints: which one a target asks, and where the client's own request line is."""

import pytest

from authsidecar.decision.model import Proxy
from authsidecar.decision.proxies.endpoints import ENDPOINTS, NOWHERE, find, guess
from authsidecar.decision.proxies.replies import Reply


def test_every_proxy_has_an_endpoint() -> None:
    """A proxy without a row could not ask."""
    assert {one.proxy for one in ENDPOINTS} == set(Proxy)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda one: one.path)
def test_an_endpoint_is_found_by_its_path(endpoint) -> None:
    """And a query on it is no part of it, but for the switch: there it is the client's."""
    assert find(endpoint.path) is endpoint
    for query in ("?", "?a=1", "?a=1?b"):
        assert find(endpoint.path + query) is (endpoint if endpoint.enables is None else NOWHERE)
    assert find(endpoint.path + "x") is NOWHERE


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda one: one.path)
def test_only_native_admissions_are_remembered(endpoint) -> None:
    """The short way of a request that was seen before does not ask `write`."""
    admission = Reply(200, "X-Auth-User-Id: 1\r\nCache-Control: no-store\r\n")
    written = admission if endpoint.write is None else endpoint.write(admission)
    assert endpoint.native_admissions is (written == admission)


@pytest.mark.parametrize("target", ["", "/", "/authz", "/authz/", "/authz/direct", "/api/v1/me"])
def test_other_targets_ask_nothing(target: str) -> None:
    """The endpoints are a closed set."""
    assert find(target) is NOWHERE


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ("/authz/envoy/api/v1/teams?page=2", (b"GET", b"/api/v1/teams?page=2")),
        ("/authz/envoy", (b"GET", b"/")),
        ("/authz/envoy?a=1", (b"GET", b"?a=1")),
        ("/api/v1/enable", (b"GET", b"/api/v1/enable")),
        ("/authz/whoami?a=1", (b"GET", b"/authz/whoami?a=1")),
        ("/authz/traefik", None),
    ],
)
def test_the_request_line_is_where_the_row_says(target: str, line: object) -> None:
    """Envoy appends the client's target; the switch is the client's own request."""
    assert find(target).line("GET", target) == line


@pytest.mark.parametrize(
    ("path", "method", "target", "line"),
    [
        ("/authz/envoy", "PÜT", "/authz/envoy/\udcff", ("PÜT".encode(), b"/\xff")),
        ("/authz/whoami", "GET", "/authz/whoami?ü\udc80", (b"GET", b"/authz/whoami?\xc3\xbc\x80")),
    ],
)
def test_the_request_line_has_the_bytes_that_were_sent(
    path: str, method: str, target: str, line: object
) -> None:
    """Those that are no UTF-8 as well: the server keeps them as surrogates."""
    assert find(path).line(method, target) == line


@pytest.mark.parametrize(
    ("start", "proxy"),
    [
        (b"GET /authz/nginx HTTP/1.1", Proxy.NGINX),
        (b"GET /authz/nginxx", Proxy.NGINX),
        (b"GET /authz/envoy/api", Proxy.ENVOY),
        (b"GET /authz/envoy\xff HTTP/1.1", Proxy.ENVOY),
        (b"GET /authz/nginx?a=1 HTTP/1.1\r\nHost: a b c d", Proxy.NGINX),
        (b"GET\t/authz/nginx\tHTTP/1.1", Proxy.NGINX),
        (b"GET /x /authz/nginx HTTP/1.1", None),
        (b"GET /api/v1/enablex HTTP/1.1", None),
        (b"GET /elsewhere HTTP/1.1", None),
        (b"GET", None),
        (b"", None),
    ],
)
def test_who_sent_a_broken_request_is_guessed_by_its_start(start: bytes, proxy) -> None:
    """nginx has to be answered in its dialect all the same."""
    assert guess(start).proxy is proxy
