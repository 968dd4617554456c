"""Reading a subrequest: row 0 of the order of checks, before anything is known of anybody."""

from ipaddress import IPv4Address, ip_network

import pytest

from authsidecar.decision.addresses import Networks
from authsidecar.decision.credentials import TOKEN_MISSING
from authsidecar.decision.model import AccessRequest, Credential, Deny, Proxy, Reason
from authsidecar.decision.policy import METHOD_NOT_ALLOWED
from authsidecar.decision.proxies.client_ip import CLIENT_ADDRESS_INVALID
from authsidecar.decision.proxies.forward_auth import FORWARDED_INVALID, RESERVED_HEADER, read
from authsidecar.decision.proxies.headers import Fields
from authsidecar.decision.proxies.target import AMBIGUOUS_TARGET, METHOD_OVERRIDE, TARGET_TOO_LONG

NO_HOPS = Networks.of(())
PLAIN = {
    "X-Forwarded-Method": "GET",
    "X-Forwarded-Uri": "/api/v1/teams",
    "X-Forwarded-For": "192.0.2.1",
}


def fields(*more: tuple[str, str], **changed: str | None) -> Fields:
    """A good subrequest with changes: `uri=None` leaves X-Forwarded-Uri out."""
    headers = dict(PLAIN)
    for name, value in changed.items():
        full = f"X-Forwarded-{name.capitalize()}"
        headers.pop(full)
        if value is not None:
            headers[full] = value
    return Fields((n.encode(), v.encode("latin-1")) for n, v in (*headers.items(), *more))


def accepted(given: Fields, proxy: Proxy = Proxy.TRAEFIK, **how) -> AccessRequest:
    found = read(given, proxy, NO_HOPS, **how)
    assert isinstance(found, AccessRequest), found
    return found


def refused(given: Fields, proxy: Proxy = Proxy.TRAEFIK, **how) -> Reason:
    found = read(given, proxy, NO_HOPS, **how)
    assert isinstance(found, Deny), found
    return found.reason


def test_a_plain_subrequest_is_read_whole() -> None:
    """Method, path, target, client and credential; the secret is only a digest."""
    request = accepted(
        fields(("Authorization", "Bearer 7|secret"), uri="/api/v1/%74eams/?page=2"), Proxy.CADDY
    )
    assert (request.method, request.path) == ("GET", "/api/v1/teams")
    assert request.target == b"/api/v1/%74eams/?page=2"
    assert request.client == IPv4Address("192.0.2.1")
    assert isinstance(request.credential, Credential)
    assert request.proxy is Proxy.CADDY
    assert not request.preflight
    assert "secret" not in repr(request)


@pytest.mark.parametrize("name", ["method", "uri", "for"])
@pytest.mark.parametrize("value", [None, ""])
def test_what_is_missing_or_empty_is_never_guessed(name: str, value: str | None) -> None:
    """Pitfall 4: absent headers are errors, not defaults."""
    expected = {FORWARDED_INVALID, CLIENT_ADDRESS_INVALID} if name == "for" else {FORWARDED_INVALID}
    assert refused(fields(**{name: value})) in expected


@pytest.mark.parametrize("name", ["X-Forwarded-Method", "X-Forwarded-Uri"])
def test_what_is_repeated_is_never_chosen_from(name: str) -> None:
    """Pitfall 4: not even between equal values."""
    assert refused(fields((name, PLAIN[name]))) is FORWARDED_INVALID


@pytest.mark.parametrize(
    "method", ["get", "FOO", "TRACE", "GET ", " GET", "GET,GET", "G\xcbT", "*"]
)
def test_seven_methods_in_upper_case(method: str) -> None:
    """Everything else is 405."""
    assert refused(fields(method=method)) is METHOD_NOT_ALLOWED


def test_the_order_within_row_zero() -> None:
    """Reserved names, forwarded headers, method, override, target, client address."""
    worse = [
        (RESERVED_HEADER, fields(("X_Auth_Id", "1"), method=None, uri="//", **{"for": "x"})),
        (FORWARDED_INVALID, fields(("X-Http-Method-Override", "1"), method=None, uri="//")),
        (METHOD_NOT_ALLOWED, fields(("X-Http-Method-Override", "1"), method="FOO", uri="//")),
        (METHOD_OVERRIDE, fields(("X-Http-Method-Override", "1"), uri="//")),
        (AMBIGUOUS_TARGET, fields(uri="//", **{"for": "x"})),
        (TARGET_TOO_LONG, fields(uri="/" + "x" * 16_384, **{"for": "x"})),
        (CLIENT_ADDRESS_INVALID, fields(**{"for": "x"})),
    ]
    assert [refused(given) for _, given in worse] == [reason for reason, _ in worse]


def test_a_refused_token_does_not_make_a_request_unreadable() -> None:
    """What is wrong with Authorization is row 2, so it travels on."""
    request = accepted(fields())
    assert isinstance(request.credential, Deny)
    assert request.credential.reason is TOKEN_MISSING


def test_envoys_request_line_stands_for_method_and_uri() -> None:
    """Whatever the client wrote into X-Forwarded-Method and -Uri is not read."""
    spoofed = fields(("X-Forwarded-Uri", "/api/health"), ("X-Forwarded-Method", "GET"))
    request = accepted(spoofed, Proxy.ENVOY, line=(b"DELETE", b"/api/v1/servers/x?y"))
    assert (request.method, request.path) == ("DELETE", "/api/v1/servers/x")
    without = fields(method=None, uri=None)
    assert refused(without, Proxy.ENVOY, line=(b"TRACE", b"/")) is METHOD_NOT_ALLOWED
    assert refused(without, Proxy.ENVOY, line=(b"GET", b"")) is FORWARDED_INVALID
    no_client = fields(method=None, uri=None, **{"for": None})
    assert refused(no_client, Proxy.ENVOY, line=(b"GET", b"/")) is FORWARDED_INVALID


@pytest.mark.parametrize(
    ("method", "headers", "preflight"),
    [
        ("OPTIONS", ["Origin", "Access-Control-Request-Method"], True),
        ("OPTIONS", ["Origin", "Access-Control-Request-Method", "Authorization"], False),
        ("OPTIONS", ["Origin"], False),
        ("OPTIONS", ["Access-Control-Request-Method"], False),
        ("GET", ["Origin", "Access-Control-Request-Method"], False),
    ],
)
def test_a_preflight_is_all_of_it(method: str, headers: list[str], preflight: bool) -> None:
    """Pitfall 16: OPTIONS, both headers, no Authorization (not even an empty one)."""
    given = fields(*((name, "") for name in headers), method=method)
    assert accepted(given).preflight is preflight


def test_a_request_id_counts_where_a_proxy_writes_it() -> None:
    """Traefik cannot set one and a direct request has no proxy: there the client invents it."""
    given = fields(("X-Authz-Request-Id", "abc"))
    for proxy in (Proxy.TRAEFIK, Proxy.DIRECT):
        assert accepted(given, proxy).request_id is None
    for proxy in (Proxy.NGINX, Proxy.CADDY, Proxy.HAPROXY):
        assert accepted(given, proxy).request_id == "abc"


@pytest.mark.parametrize("ids", [[], [""], ["x" * 129], ["a", "a"]])
def test_an_odd_request_id_is_none(ids: list[str]) -> None:
    """Such a request is counted like any other."""
    given = fields(*(("X-Authz-Request-Id", value) for value in ids))
    assert accepted(given, Proxy.NGINX).request_id is None


@pytest.mark.parametrize("uri", ["/index.php", "/INDEX.PHP/api/v1/teams", "/index.phpmcp?x"])
def test_the_front_controller_is_readable_and_has_no_route(uri: str) -> None:
    """So that the attempt is counted where unknown routes are."""
    assert accepted(fields(uri=uri)).path == "/index.php"


@pytest.mark.parametrize(
    ("given", "detail"),
    [
        (fields(("X_Auth_Id", "1")), "a name with _ or . that folds to a reserved one"),
        (fields(uri=None), "X-Forwarded-Method and X-Forwarded-Uri, once each"),
        (fields(method=""), "a forwarded header is missing or empty"),
        (fields(method="FOO"), "not one of the seven methods, in upper case"),
        (fields(("X-Http-Method-Override", "1")), "an X-HTTP-Method-Override header"),
    ],
)
def test_the_detail_says_what_is_wrong(given: Fields, detail: str) -> None:
    """For the log: the client is only told the reason."""
    found = read(given, Proxy.TRAEFIK, NO_HOPS)
    assert isinstance(found, Deny)
    assert found.detail == detail


def test_trusted_hops_are_skipped() -> None:
    """The address before them is judged."""
    hops = Networks.of([ip_network("10.0.0.0/8")])
    found = read(fields(**{"for": "192.0.2.1, 10.0.0.1"}), Proxy.TRAEFIK, hops)
    assert isinstance(found, AccessRequest)
    assert found.client == IPv4Address("192.0.2.1")


@pytest.mark.parametrize(
    ("agents", "kept"), [((), b""), (("curl/8",), b"curl/8"), (("curl/8", "other"), b"")]
)
def test_one_user_agent_is_kept(agents: tuple[str, ...], kept: bytes) -> None:
    """Of two, neither."""
    request = accepted(fields(*(("User-Agent", agent) for agent in agents)))
    assert request.user_agent == kept


@pytest.mark.parametrize(
    ("types", "makes"),
    [
        ((), False),
        (("text/plain",), False),
        (("Application/JSON; charset=utf-8",), True),
        (("application/vnd.api+json",), True),
        (("application/x-www-form-urlencoded",), True),
        (("multipart/form-data; boundary=x",), True),
        (("text/plain", "application/json"), True),
    ],
)
def test_a_content_type_that_makes_input_is_told(types: tuple[str, ...], makes: bool) -> None:
    """Such a body may name another resource."""
    request = accepted(fields(*(("Content-Type", one) for one in types)))
    assert request.body is makes


def test_the_longest_request_id_is_one() -> None:
    """As long as a proxy may make one."""
    found = accepted(fields(("X-Authz-Request-Id", "x" * 128)), Proxy.NGINX)
    assert found.request_id == "x" * 128
